// Run in the guest: the port of the server that plays all hosts.
import OpenAI from "/usr/local/lib/clients/node_modules/openai/index.mjs";

const port = process.argv[2];
const key = process.env.OPENAI_API_KEY;
const base = `https://api.openai.com:${port}`;
const say = (...what) => console.log(...what);

const answer = await fetch(`${base}/echo`, { headers: { authorization: `Bearer ${key}` } });
const text = await answer.text();
say("fetch", answer.status, text.includes(key), answer.headers.get("x-echo") === key);

const client = new OpenAI({ baseURL: `${base}/v1` });
const messages = [{ role: "user", content: "who am I" }];
const whole = await client.chat.completions.create({ model: "m", messages });
say("node-openai", whole.choices[0].message.content === `you are ${key}`);
const tokens = [];
for await (const chunk of await client.chat.completions.create({ model: "m", messages, stream: true })) {
  tokens.push(chunk.choices[0].delta.content);
  await fetch(`${base}/acknowledge`);
}
say("node-openai-stream", tokens.length, tokens.join(""));
