/* The Vercel AI SDK's own chat, as `useChat` wraps it, driven over stdin and stdout by a test.

   node client.js ai6 http://127.0.0.1:8000/chat
   in:  {"send": "Hello"}   {"stop": true}
   out: {"status": "submitted"}   {"text": "Hel"}   {"error": "…"}   {"idle": true} once a question is through
*/

import { createInterface } from "node:readline";

const [, , version, api] = process.argv;
const { AbstractChat, DefaultChatTransport } = await import(version);

const say = (said) => process.stdout.write(`${JSON.stringify(said)}\n`);

/* What a framework would show; here it is written down. */
class State {
  messages = [];
  #status = "ready";
  #error;

  get status() {
    return this.#status;
  }

  set status(status) {
    this.#status = status;
    say({ status });
  }

  get error() {
    return this.#error;
  }

  set error(error) {
    this.#error = error;
    if (error) say({ error: error.message });
  }

  pushMessage = (message) => {
    this.messages = [...this.messages, message];
    this.#show(message);
  };

  popMessage = () => {
    this.messages = this.messages.slice(0, -1);
  };

  replaceMessage = (index, message) => {
    this.messages = this.messages.toSpliced(index, 1, message);
    this.#show(message);
  };

  snapshot = (value) => structuredClone(value);

  #show(message) {
    const text = message.parts.filter((part) => part.type === "text").map((part) => part.text).join("");
    if (message.role === "assistant" && text) say({ text });
  }
}

class Chat extends AbstractChat {}

/* What a browser does by itself. */
let cookie = "";
async function browserFetch(url, options) {
  const headers = { ...options.headers, cookie, origin: new URL(url).origin, "sec-fetch-site": "same-origin" };
  const response = await fetch(url, { ...options, headers });
  cookie = response.headers.getSetCookie()[0]?.split(";")[0] ?? cookie;
  return response;
}

const chat = new Chat({ state: new State(), transport: new DefaultChatTransport({ api, fetch: browserFetch }) });

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.send) chat.sendMessage({ text: command.send }).then(() => say({ idle: true }));
  if (command.stop) chat.stop();
}
