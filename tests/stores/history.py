"""The history checker: looks at what the server and the store have of some sessions, and what workers say they did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from aheadless._exchange import SessionRecord

Thread = Sequence[tuple[str, str]]
"""Role and text of the messages as the server has them."""


def answer_to(question: str) -> str:
    """Return what the server's engine says: a reply that tells which question it answers."""
    return f"re {question}"


def problems(
    threads: Mapping[str, Thread], records: Mapping[str, SessionRecord], told: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return what is wrong, one sentence each; `told` in the order of each worker's lines."""
    told = list(told)
    found = [
        f"{report['text']}: {report['outcome']}" for report in told if report["outcome"] not in {"complete", "lost"}
    ]
    asked = Counter(text for thread in threads.values() for role, text in thread if role == "user")
    found += [f"{text} is {count} times on the server" for text, count in asked.items() if count > 1]
    for session_id, thread in threads.items():
        complete = {
            report["text"]: report
            for report in told
            if report["session"] == session_id and report["outcome"] == "complete"
        }
        found += (f"{session_id}: {problem}" for problem in _of_thread(thread))
        found += (f"{session_id}: {problem}" for problem in _of_order(thread, complete))
        found += (f"{session_id}: {problem}" for problem in _of_record(records[session_id], thread, complete))
    return found


def _of_thread(thread: Thread) -> Iterable[str]:
    """Question, answer, question, answer, and each answer is that to the question before it."""
    for position in range(0, len(thread), 2):
        question = thread[position]
        if question[0] != "user" or [*thread[position + 1 : position + 2]] != [("assistant", answer_to(question[1]))]:
            yield f"the turns are interleaved at {thread[max(position - 2, 0) : position + 4]}"
            return


def _of_order(thread: Thread, complete: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Every turn that was complete is there; one that had ended before another was asked for stands before it."""
    there = [text for role, text in thread if role == "user" and text in complete]
    for text in complete.keys() - set(there):
        yield f"{text} was complete and is not on the server"
    for text, report in complete.items():
        if report["reply"] != answer_to(text):
            yield f"{text} got another question's answer: {report['reply']}"
    latest = 0.0
    for text in there:
        if complete[text]["ended"] < latest:
            yield f"{text} had ended before one that stands before it was asked for"
        latest = max(latest, complete[text]["asked"])


def _of_record(record: SessionRecord, thread: Thread, complete: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """The store has every question that the server has, in the same order, and every reply that was reported."""
    questions = [message for message in record.messages if message.role == "user"]
    on_server = [text for role, text in thread if role == "user"]
    if [question.text for question in questions if question.text in set(on_server)] != on_server:
        yield "the store has not the server's questions in the server's order"
    for question in questions:
        if question.status == "complete" and question.text not in on_server:
            yield f"{question.text} is complete in the store and not on the server"
    stored = [(message.text, message.status) for message in record.messages]
    pairs = set(pairwise(stored))
    for text in complete:
        if ((text, "complete"), (answer_to(text), "complete")) not in pairs:
            yield f"{text} was complete and is not so in the store"
