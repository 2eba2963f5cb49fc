/* One question and its answer on the page. */

import { MarkdownView } from "./markdown.js";

/* What is said below an answer that is not whole, by what became of the question; and what the button says. */
const NOT_WHOLE = {
  __proto__: null, // no other names than these
  not_sent: ["Your message was not sent.", "Try again"],
  rejected: ["Your message was not taken.", "Try again"],
  unknown: ["Your message may have arrived all the same. Asking again may ask twice.", "Ask again"],
  accepted: ["Your message did arrive. Asking again asks a second time.", "Ask again"],
};
const ENDED = {
  __proto__: null,
  interrupted: "Stopped.",
  cancelled: "Stopped.",
  failed: "No answer could be given.",
  unknown: "The answer broke off.",
};

export class Turn {
  #question;
  #view;
  #answer = make("div", "answer");
  #note = make("p", "note");
  #onGrow;
  #onAgain;
  #frame = null; // of the next rendering
  #cost = 0; // ms that the last rendering took
  #delivery = "unknown";
  #status = "pending";
  #failedHere = false;
  #lost = false; // only the back end can tell how it ended, as the connection broke
  #why = ""; // there is no whole answer
  #countdown = null;

  /** `onGrow()` is called after the answer has grown, `onAgain(turn)` when its button is pressed. */
  constructor(question, { onGrow, onAgain }) {
    this.#question = question;
    this.#onGrow = onGrow;
    this.#onAgain = onAgain;
    this.#view = new MarkdownView(this.#answer);
    this.element = make("article", "turn");
    this.element.turn = this;
    const asked = make("div", "question");
    asked.textContent = question;
    asked.dir = this.#answer.dir = "auto"; // as its first letter is written
    this.element.append(heading("You"), asked, heading("Answer"), this.#answer, this.#note);
    this.element.classList.add("waiting");
    this.element.setAttribute("aria-busy", "true");
  }

  get question() {
    return this.#question;
  }

  get pending() {
    return this.#status === "pending";
  }

  /** Whether the question is known to be nowhere but here. */
  get neverArrived() {
    return this.#status !== "complete" && ["not_sent", "rejected"].includes(this.#delivery);
  }

  /** Whether it failed while this page was looking. */
  get failedHere() {
    return this.#failedHere;
  }

  /** What a screen reader is to say of it: the answer, and why it is not whole. */
  get spoken() {
    return `${this.#answer.innerText} ${this.#note.innerText}`.trim();
  }

  // --- while it is written ---

  /** Take an event of the answer. */
  take(event) {
    if (event.type === "start") this.#delivery = "accepted";
    if (event.type === "token") {
      this.element.classList.remove("waiting");
      this.element.classList.add("growing");
      this.#view.append(event.token);
      this.#renderSoon();
    }
    if (event.type === "done") {
      this.#view.finish(event.message);
      this.#end("complete");
      this.#onGrow();
    }
  }

  stopped() {
    this.#breakOff("cancelled", ENDED.cancelled);
  }

  failed({ message, delivery, retryAfter, lost }) {
    this.#delivery = delivery;
    this.#failedHere = true;
    this.#lost = lost;
    this.#breakOff("failed", message, retryAfter);
  }

  // --- as it is stored ---

  /** Show what became of the question, as the back end has it. */
  restore({ status, delivery }) {
    this.#delivery = delivery;
    if (status === "pending") return;
    this.#end(status);
    if (status in ENDED) this.#explain(ENDED[status]);
  }

  /** Show the answer, as the back end has it. */
  restoreAnswer({ text }) {
    this.#view.finish(text);
  }

  /** The back end has never heard of the question. */
  neverCame() {
    if (!this.#lost) return; // it was refused, and that is known
    this.#delivery = "not_sent";
    this.#lost = false;
    this.#explain("The chat could not be reached.");
  }

  /** Take the offer back: the conversation goes on. */
  settle() {
    if (this.#why) this.#note.textContent = this.#why;
    clearInterval(this.#countdown);
  }

  remove() {
    this.settle();
    this.element.remove();
  }

  // --- inside ---

  /* Once a frame, and rarely enough that a long answer leaves most of the time to the reader. */
  #renderSoon() {
    if (this.#frame !== null) return;
    this.#frame = setTimeout(() => {
      requestAnimationFrame(() => {
        if (this.#frame === null) return; // it has ended since
        this.#frame = null;
        const begun = performance.now();
        this.#view.render();
        this.#onGrow();
        this.#cost = performance.now() - begun;
      });
    }, this.#cost * 4);
  }

  #breakOff(status, why, retryAfter = null) {
    this.#view.finish(this.#view.source.trim());
    this.#end(status);
    this.#explain(why, retryAfter);
    this.#onGrow();
  }

  #end(status) {
    clearTimeout(this.#frame);
    this.#frame = null;
    this.#status = status;
    this.element.classList.remove("waiting", "growing");
    this.element.classList.toggle("partial", status !== "complete");
    this.element.removeAttribute("aria-busy");
  }

  #explain(why, retryAfter = null) {
    const [arrived, label] = NOT_WHOLE[this.#delivery] ?? NOT_WHOLE.unknown;
    const button = make("button", "again");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => this.#onAgain(this));
    this.#why = why;
    // Who has pressed Stop knows what happened, unless it was so early that nobody can tell.
    const calm = why === ENDED.cancelled && this.#delivery === "accepted";
    this.#note.classList.toggle("calm", calm);
    this.#note.replaceChildren(calm ? `${why} ` : `${why} ${arrived} `, button);
    if (retryAfter) this.#countDown(button, label, retryAfter);
  }

  #countDown(button, label, seconds) {
    const end = performance.now() + seconds * 1000;
    const tick = () => {
      const left = Math.ceil((end - performance.now()) / 1000);
      button.disabled = left > 0;
      button.textContent = left > 0 ? `${label} in ${left} s` : label;
      if (left <= 0) clearInterval(this.#countdown);
    };
    this.#countdown = setInterval(tick, 250);
    tick();
  }
}

function heading(text) {
  const made = make("h2", "unseen");
  made.textContent = text;
  return made;
}

function make(name, className) {
  const made = document.createElement(name);
  made.className = className;
  return made;
}
