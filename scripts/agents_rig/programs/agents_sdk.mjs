// OpenAI's Agents SDK for JavaScript: a session of tools through the gateway, over Responses, then over chats.
import { execSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { Agent, OpenAIProvider, Runner, setTracingDisabled, tool } from '@openai/agents';
import { z } from 'zod';

setTracingDisabled(true);
const tools = [
  tool({ name: 'write_file', description: 'Write a file', parameters: z.object({ path: z.string(), content: z.string() }),
         execute: ({ path, content }) => { writeFileSync(path, content); return 'written'; } }),
  tool({ name: 'run_command', description: 'Run a command', parameters: z.object({ command: z.string() }),
         execute: ({ command }) => execSync(command).toString() }),
];
for (const useResponses of [true, false]) {
  rmSync('note.txt', { force: true });
  const modelProvider = new OpenAIProvider({ baseURL: process.env.OPENAI_BASE_URL, apiKey: 'none', useResponses });
  const agent = new Agent({ name: 'writer', model: 'coder', tools });
  const result = await new Runner({ modelProvider }).run(agent, 'Write the file note.txt', { stream: true });
  for await (const event of result) { void event; }
  await result.completed;
  console.log(result.finalOutput.slice(-60));
}
