// openai-node against the base URL given as the first argument. Prints one JSON object: what each kind of request gave.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "sk-any", maxRetries: 0 });
const asked = { model: "emulated", messages: [{ role: "user", content: "hi" }], max_tokens: 12 };
const tool = {
  type: "function",
  function: { name: "get_weather", parameters: { type: "object", properties: { city: { type: "string" } } } },
};

async function whole() {
  const answer = await client.chat.completions.create(asked);
  return { tokens: answer.usage.completion_tokens, finish: answer.choices[0].finish_reason };
}

async function stream() {
  let chunks = 0;
  let text = "";
  let withoutChoices = 0;
  let finish = null;
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    chunks += 1;
    withoutChoices += chunk.choices.length === 0 ? 1 : 0;
    text += chunk.choices[0]?.delta?.content ?? "";
    finish = chunk.choices[0]?.finish_reason ?? finish;
  }
  return { several: chunks > 2, text: text.length > 0, withoutChoices, finish };
}

async function tools() {
  const answer = await client.chat.completions.create({ ...asked, max_tokens: 200, tools: [tool], tool_choice: "required" });
  const call = answer.choices[0].message.tool_calls[0].function;
  return { name: call.name, arguments: Object.keys(JSON.parse(call.arguments)) };
}

async function aborted() {
  const running = await client.chat.completions.create({ ...asked, max_tokens: 20000, stream: true });
  for await (const _ of running) break;
  running.controller.abort();
  return { aborted: running.controller.signal.aborted };
}

async function unknownModel() {
  try {
    await client.chat.completions.create({ ...asked, model: "other" });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status };
  }
}

const result = {};
for (const step of [whole, stream, tools, aborted, unknownModel]) result[step.name] = await step();
console.log(JSON.stringify(result));
