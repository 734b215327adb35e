// The AI SDK in its Responses mode without a store: a session of tools through the gateway.
import { execSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { createOpenAI } from '@ai-sdk/openai';
import { stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const vllm = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: 'none' });
const result = streamText({
  model: vllm.responses('coder'),
  prompt: 'Write the file note.txt',
  providerOptions: { openai: { store: false } },
  stopWhen: stepCountIs(8),
  tools: {
    write_file: tool({ description: 'Write a file', inputSchema: z.object({ path: z.string(), content: z.string() }),
                       execute: async ({ path, content }) => { writeFileSync(path, content); return 'written'; } }),
    run_command: tool({ description: 'Run a command', inputSchema: z.object({ command: z.string() }),
                        execute: async ({ command }) => execSync(command).toString() }),
  },
});
let text = '';
for await (const part of result.fullStream) {
  if (part.type === 'text-delta') text += part.text;
  if (part.type === 'error') throw part.error;
}
console.log(text.slice(-60));
