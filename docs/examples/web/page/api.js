/* What the page says to its back end, and hears from it. Every address is relative: the page can live below any path. */

/** Why there is no answer, or no whole one. */
export class Failure extends Error {
  /** `delivery`: what became of the question, "not_sent", "rejected", "unknown" or "accepted". */
  constructor(message, { delivery, retryAfter = null, lost = false }) {
    super(message);
    this.delivery = delivery;
    this.retryAfter = retryAfter; // seconds
    this.lost = lost; // the back end itself could not be reached, or went away
  }
}

/* What a status alone says of the question; with another one it may have arrived. */
const REFUSED = new Set([400, 401, 403, 404, 405, 409, 413, 415, 422, 429]);

/* Where the text of an event is, of those that have one. */
const TEXTS = { __proto__: null, token: "token", done: "message", error: "error" };

/**
 * Ask, and yield the events of the answer: {type: "start"}, {type: "token", token}, {type: "done", message}.
 * Ends after `done` and in no other way: throws a Failure, or an AbortError once the signal was given. Other errors are
 * of an answer that is none of the back end's.
 */
export async function* ask(message, signal) {
  const response = await send(message, signal);
  let delivery = "unknown";
  for await (const line of lines(response.body, signal, () => delivery)) {
    const event = parse(line);
    if (event.type === "error") throw new Failure(event.error, { delivery: event.delivery ?? "accepted" });
    delivery = "accepted"; // the question is stored before the first event comes
    yield event;
    if (event.type === "done") return;
  }
  throw new Failure("The connection broke off.", { delivery, lost: true });
}

/** Return the conversation so far: [{role, text, status, delivery}], the oldest first. */
export async function history() {
  const response = await reach(() => fetch("messages", { cache: "no-store" }), "not_sent");
  if (!response.ok) throw await refusal(response);
  return reach(() => response.json(), "not_sent");
}

function parse(line) {
  const event = JSON.parse(line);
  const text = TEXTS[event.type];
  if (text && typeof event[text] !== "string") throw new TypeError(`there is no ${text} in ${line}`);
  return event;
}

async function send(message, signal) {
  if (!navigator.onLine) throw new Failure("You are offline.", { delivery: "not_sent", lost: true });
  const response = await reach(() => {
    const headers = { "Content-Type": "application/json" };
    return fetch("chat", { method: "POST", headers, body: JSON.stringify({ message }), signal });
  }, "unknown");
  if (!response.ok) throw await refusal(response);
  return response;
}

async function reach(request, delivery) {
  try {
    return await request();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The chat cannot be reached.", { delivery, lost: true });
  }
}

async function refusal(response) {
  const said = await response.json().catch(() => ({}));
  const seconds = Number(response.headers.get("Retry-After"));
  return new Failure(said.error ?? "The chat does not answer.", {
    delivery: said.delivery ?? (REFUSED.has(response.status) ? "rejected" : "unknown"),
    retryAfter: seconds > 0 ? Math.ceil(seconds) : null,
  });
}

/* Lines end at a newline and at nothing else: a text may hold every other kind of line end. */
async function* lines(body, signal, delivery) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = []; // of the line that is not whole yet: a long one in many pieces must not be copied again for each
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = value.split("\n");
      for (const part of parts.slice(0, -1)) {
        pieces.push(part);
        const line = pieces.join("");
        pieces = [];
        if (line) yield line;
      }
      pieces.push(parts.at(-1));
    }
  } catch (error) {
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    throw new Failure("The connection broke off.", { delivery: delivery(), lost: true });
  } finally {
    reader.cancel().catch(() => {}); // of a stream that failed it fails as well
  }
}
