// Anthropic's SDK for JavaScript: a session of streamed tools through the gateway, counts, models, errors.
import { execSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import Anthropic from '@anthropic-ai/sdk';

const client = new Anthropic({ baseURL: process.env.ANTHROPIC_BASE_URL, apiKey: 'none', maxRetries: 0 });
const tools = [
  { name: 'write_file', input_schema: { type: 'object', required: ['path', 'content'],
    properties: { path: { type: 'string' }, content: { type: 'string' } } } },
  { name: 'run_command', input_schema: { type: 'object', required: ['command'], properties: { command: { type: 'string' } } } },
];
const carryOut = ({ name, input }) => {
  if (name === 'run_command') return execSync(input.command).toString();
  writeFileSync(input.path, input.content);
  return 'written';
};
const messages = [{ role: 'user', content: 'Write the file note.txt' }];
const counted = await client.messages.countTokens({ model: 'claude-x', messages, tools });
if (!(counted.input_tokens > 0)) throw new Error('nothing was counted');
const models = await client.models.list();
if (models.data[0].display_name !== 'vllm/coder') throw new Error('no models');
let message;
for (;;) {
  message = await client.messages.stream({ model: 'claude-x', max_tokens: 1000, messages, tools }).finalMessage();
  messages.push({ role: 'assistant', content: message.content });
  if (message.stop_reason !== 'tool_use') break;
  const results = message.content.filter((block) => block.type === 'tool_use').map(
    (block) => ({ type: 'tool_result', tool_use_id: block.id, content: carryOut(block) }));
  messages.push({ role: 'user', content: results });
}
try {
  await client.models.retrieve('nobody');
  throw new Error('a model that is not there was found');
} catch (error) {
  if (!(error instanceof Anthropic.NotFoundError) || error.error.error.type !== 'not_found_error') throw error;
}
console.log(message.content.at(-1).text.slice(-60));
