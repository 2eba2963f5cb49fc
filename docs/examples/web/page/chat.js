/* The page: what was asked, what is answered, and what the reader can do about it. */

import { Failure, ask, history } from "./api.js";
import { Turn } from "./turn.js";

const $ = (id) => document.getElementById(id);
const [log, turns, form, message, sendButton, stopButton] = ["log", "turns", "ask", "message", "send", "stop"].map($);

const STATES = {
  connecting: "Connecting…",
  ready: "Ready",
  writing: "Writing…",
  lost: "Reconnecting…",
  offline: "Offline",
};
const POLL = 1500; // ms between two looks at a conversation that somebody else is changing
const LONGEST_POLL = 10_000; // ms between two tries to reach a back end that is away
const NEAR_THE_END = 60; // px: a reader who is this close to the end wants to stay there

let writing = null; // the AbortController of the answer that is being written
let opened = false; // whether the first look at the conversation is over
let looking = null; // the timer of the next look at the conversation
let seen = null; // the conversation when it was last looked at
let pinned = true; // whether the log follows the answer

// --- asking ----------------------------------------------------------------------------------------------------------

async function send(text) {
  if (writing || !text.trim()) return;
  writing = new AbortController();
  await opening; // or two answers at once would make two visitors of one, each with a cookie
  stopLooking();
  const unsure = seen === null || last()?.pending; // whether all that came before is there
  last()?.settle();
  const turn = addTurn(text);
  show("writing");
  speak("The answer is being written.");
  toTheEnd();
  try {
    for await (const event of ask(text, writing.signal)) turn.take(event);
    speak(`Answer: ${turn.spoken}`);
  } catch (error) {
    if (error.name === "AbortError") turn.stopped();
    else if (error instanceof Failure) turn.failed(error);
    else {
      turn.failed(new Failure("The page does not understand the answer.", { delivery: "unknown" }));
      console.error(error);
    }
    speak(turn.spoken);
    if (error.lost) lookAgain(POLL);
  } finally {
    writing = null;
    show(looking ? "lost" : "ready");
    if (unsure && !looking) look();
  }
}

/* Asking again: a question that did not arrive is asked in its own place. */
function again(turn) {
  if (writing) return;
  if (turn.neverArrived) turn.remove();
  message.focus();
  send(turn.question);
}

function stop() {
  writing?.abort();
}

// --- the conversation as the back end has it -------------------------------------------------------------------------

async function look(pause = POLL) {
  stopLooking();
  let messages;
  try {
    messages = await history();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    show("lost");
    lookAgain(Math.min(pause * 2, LONGEST_POLL));
    return;
  }
  if (writing && opened) return; // the reader was quicker
  const failed = last()?.failedHere ? last() : null;
  if (failed || JSON.stringify(messages) !== seen) rebuild(messages, failed);
  seen = JSON.stringify(messages);
  show(last()?.pending ? "writing" : "ready");
  if (last()?.pending) lookAgain(POLL); // in another tab, or the page was loaded anew in the middle
  if (pinned) toTheEnd();
}

/* What the reader has asked in vain stays, too, if the back end has not heard of it. */
function rebuild(messages, failed) {
  const times = failed && timesAsked(failed.question);
  turns.replaceChildren();
  for (const said of messages) {
    if (said.role === "user") {
      if (last()?.neverArrived) last().remove();
      last()?.settle();
      addTurn(said.text).restore(said);
    } else last()?.restoreAnswer(said);
  }
  if (failed && timesAsked(failed.question) < times) {
    last()?.settle();
    failed.neverCame();
    turns.append(failed.element);
  }
}

function timesAsked(question) {
  const counts = (turn) => turn.question === question && (turn === last() || !turn.neverArrived);
  return [...turns.children].filter(({ turn }) => counts(turn)).length;
}

function lookAgain(pause) {
  stopLooking();
  looking = setTimeout(look, pause, pause);
}

function stopLooking() {
  clearTimeout(looking);
  looking = null;
}

// --- what is seen ----------------------------------------------------------------------------------------------------

const last = () => turns.lastElementChild?.turn;

function addTurn(text) {
  const turn = new Turn(text, { onGrow: follow, onAgain: again });
  turns.append(turn.element);
  return turn;
}

function show(state) {
  const shown = navigator.onLine ? state : "offline";
  $("state").dataset.state = shown;
  $("state").textContent = STATES[shown];
  $("welcome").hidden = turns.childElementCount > 0 || state === "connecting" || state === "lost";
  const focused = document.activeElement === stopButton;
  stopButton.hidden = !writing;
  sendButton.hidden = Boolean(writing);
  if (focused && !writing) message.focus();
}

/* Emptied first, so that the same words are read out again. */
function speak(text) {
  $("spoken").textContent = "";
  $("spoken").textContent = text;
}

function follow() {
  if (pinned) toTheEnd();
  $("newest").hidden = pinned;
}

function toTheEnd() {
  pinned = true;
  log.scrollTop = log.scrollHeight;
  $("newest").hidden = true;
}

function showLeft() {
  const left = message.maxLength - message.value.length;
  $("left").hidden = left > 400;
  $("left").textContent = `${left} characters left`;
}

// --- what the reader does --------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (writing || !message.value.trim()) return;
  send(message.value);
  message.value = "";
  showLeft();
});

message.addEventListener("input", showLeft);
message.addEventListener("keydown", (event) => {
  // Not while an input method is choosing a character.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

document.addEventListener("keydown", (event) => event.key === "Escape" && stop());
stopButton.addEventListener("click", stop);
$("newest").addEventListener("click", toTheEnd);
$("welcome").addEventListener("click", (event) => {
  if (event.target.className !== "idea") return;
  message.focus();
  send(event.target.textContent);
});

log.addEventListener("scroll", () => {
  pinned = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_THE_END;
  $("newest").hidden = pinned;
});

addEventListener("offline", () => show("offline"));
addEventListener("online", () => (writing ? show("writing") : look()));

const opening = look().finally(() => (opened = true));
