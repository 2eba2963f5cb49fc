"""The life of a reply, without HTTP: who waits for what, and what ends it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aheadless import AheadlessError, ConfigurationError, Message, ServerError
from aheadless.protocol.codec import ChatRequest
from aheadless.protocol.events import Done, Event, Failure, Start, Token
from aheadless.server import ReplyEngine, ScriptedEngine, replies
from aheadless.server.replies import Replies, RunningReply
from aheadless.server.storage import Storage

QUESTION = ChatRequest("s", "Hi")
FAILURE = Failure("Internal server error")


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    storage = await Storage.open(tmp_path / "chat.db")
    yield storage
    await storage.aclose()


class Engine:
    """Made of an async generator function."""

    def __init__(self, write: Callable[[], AsyncIterator[Any]]) -> None:
        self._write = write

    def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        return self._write()


def make(storage: Storage, engine: ReplyEngine, *, limit: int = 10, reply_timeout: float = 10) -> Replies:
    return Replies(storage, engine, limit=limit, reply_timeout=reply_timeout)


async def events(reply: RunningReply) -> list[Event]:
    """Return all events, with the id of the conversation left out."""
    found: list[Event] = []
    while not (found and isinstance(found[-1], Done | Failure)):
        found.append(await reply.event(len(found)))
    return [Start("…") if isinstance(e, Start) else Done(e.text, "…") if isinstance(e, Done) else e for e in found]


async def roles(storage: Storage) -> list[object]:
    page: Any = await storage.conversations(1)
    thread: Any = await storage.conversation(page["conversations"][0]["_id"])
    return [message["role"] for message in thread["messages"]]


async def test_a_reader_that_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets what is there at once, but only so much that nobody waits long for its being encoded."""
    monkeypatch.setattr(replies, "MAX_READ", 3)
    reply = RunningReply()
    written: list[Event] = [Start("c"), *map(Token, "abc"), Done("abc", "c")]
    for event in written[:-1]:
        reply.add(event)
    reply.end(Done("abc", "c"))

    assert await reply.events(0) == written[:3]
    assert await reply.events(3) == written[3:]
    assert await reply.last_event() == written[-1]


async def test_start_is_read_before_the_model_is_asked(storage: Storage) -> None:
    """Even an engine that blocks the event loop cannot keep a reader from its start."""
    seen: list[str] = []

    async def write() -> AsyncIterator[str]:
        seen.append("asked")
        yield "a"

    reply = make(storage, Engine(write)).begin(QUESTION)
    await reply.event(0)
    seen.append("start")
    await reply.last_event()

    assert seen == ["start", "asked"]


async def test_many_readers_at_their_own_pace(storage: Storage) -> None:
    """Late or early, each gets every event."""
    gate = asyncio.Event()
    reply = make(storage, ScriptedEngine(["a", gate, "b"])).begin(QUESTION)
    early = asyncio.create_task(events(reply))
    waiting = asyncio.create_task(reply.last_event())
    await reply.event(1)
    gate.set()

    assert isinstance(await waiting, Done)
    assert await early == await events(reply) == [Start("…"), Token("a"), Token("b"), Done("ab", "…")]


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ([], "I could not generate a response right now."),
        ([" ", "\ufeff"], "I could not generate a response right now."),
        (["", " a ", ""], "a"),
        (["x\ud83d", "\ude00"], "x😀"),
        (["\ud83d"], "\ufffd"),
    ],
)
async def test_what_is_stored(storage: Storage, script: list[str], text: str) -> None:
    """The joined tokens, trimmed as JavaScript trims; empty tokens are none."""
    reply = make(storage, ScriptedEngine(script)).begin(QUESTION)

    found = await events(reply)

    assert found == [Start("…"), *(Token(token) for token in script if token), Done(text, "…")]
    assert await roles(storage) == ["user", "assistant"]


@pytest.mark.parametrize(
    "bad", [b"bytes", None, 5, RuntimeError("secret"), asyncio.CancelledError(), GeneratorExit("secret")]
)
async def test_an_engine_that_fails(storage: Storage, bad: object, caplog: pytest.LogCaptureFixture) -> None:
    """Or gives what is no text: only the question is stored, and the log does not tell what was said."""

    async def write() -> AsyncIterator[Any]:
        yield "a"
        if isinstance(bad, BaseException):
            raise bad
        yield bad

    reply = make(storage, Engine(write)).begin(QUESTION)

    assert await events(reply) == [Start("…"), Token("a"), FAILURE]
    assert await roles(storage) == ["user"]
    gc.collect()  # asyncio would now say which task's exception nobody has seen
    assert {r.name for r in caplog.records} <= {"aheadless.server"}
    assert "secret" not in " ".join(r.getMessage() for r in caplog.records)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServerError("text", status=503), "ServerError with status 503"),
        (AheadlessError("text"), "AheadlessError"),
        (ConfigurationError("text"), "ConfigurationError"),
    ],
)
async def test_what_the_log_says(
    storage: Storage, error: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The kind of a failure at once, its text only to those who debug."""
    caplog.set_level(logging.WARNING, "aheadless.server")

    await make(storage, ScriptedEngine([error])).begin(QUESTION).last_event()

    assert caplog.messages == [f"a reply failed: {said}"]


async def test_the_question_cannot_be_stored(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """There is no start, and the model is not asked."""
    with sqlite3.connect(tmp_path / "chat.db") as other:
        other.execute("DROP TABLE messages")
    other.close()
    engine = ScriptedEngine(["a"])

    reply = make(storage, engine).begin(QUESTION)

    assert await events(reply) == [FAILURE]
    assert engine.asked == []
    assert "no such table: messages" in caplog.text


@pytest.mark.parametrize(("bound", "value"), [("MAX_REPLY", 3), ("MAX_TOKENS", 3)])
async def test_a_model_that_goes_on_and_on(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    """Is cut, closed, and counts as ended."""
    monkeypatch.setattr(replies, bound, value)
    closed = asyncio.Event()

    async def write() -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        finally:
            closed.set()

    reply = make(storage, Engine(write)).begin(QUESTION)

    assert await reply.last_event() == Done("xxx", await _conversation_id(reply))
    assert closed.is_set()


async def _conversation_id(reply: RunningReply) -> str:
    start = await reply.event(0)
    assert isinstance(start, Start)
    return start.conversation_id


async def test_an_engine_without_aclose(storage: Storage) -> None:
    """Any async iterator will do."""

    class Tokens:
        left = 2

        def __aiter__(self) -> Tokens:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return "t"

    reply = make(storage, Engine(Tokens)).begin(QUESTION)

    assert (await events(reply))[-1] == Done("tt", "…")


async def test_the_limit_holds_while_questions_are_stored(storage: Storage) -> None:
    """A reply takes its place at once, so that a burst cannot slip through."""
    gate = asyncio.Event()
    running = make(storage, ScriptedEngine([gate]), limit=2)

    first = running.begin(QUESTION)
    assert not running.full
    second = running.begin(QUESTION)
    assert running.full
    gate.set()
    await first.last_event()
    await second.last_event()
    await running.drain(10)

    assert running.full, "none are begun when the server stops"


async def test_drain_waits(storage: Storage) -> None:
    """For replies that end in time."""
    gate = asyncio.Event()
    running = make(storage, ScriptedEngine(["a", gate]))
    reply = running.begin(QUESTION)
    await reply.event(1)
    draining = asyncio.create_task(running.drain(60))
    gate.set()
    await draining

    assert (await events(reply))[-1] == Done("a", "…")
    assert await roles(storage) == ["user", "assistant"]


async def test_drain_cuts_off(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    """What goes on longer ends with a failure, and its engine is closed."""
    running = make(storage, ScriptedEngine(["a", asyncio.Event()]))
    reply = running.begin(QUESTION)
    await reply.event(1)

    await running.drain(0)

    assert (await events(reply))[-1] == FAILURE
    assert await roles(storage) == ["user"]
    assert "1 replies were cut off by the shutdown" in caplog.messages


async def test_drain_of_an_engine_that_does_not_listen(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It gets a moment, and then the server goes without it."""
    monkeypatch.setattr(replies, "CANCEL_GRACE", 0.01)
    gate = asyncio.Event()

    async def write() -> AsyncIterator[str]:
        yield "a"
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    running = make(storage, Engine(write))
    reply = running.begin(QUESTION)
    await reply.event(1)

    await running.drain(0)

    assert "1 replies ignore that they were cancelled" in caplog.messages
    gate.set()
    await reply.last_event()


async def test_drain_that_is_cancelled(storage: Storage) -> None:
    """An impatient shutdown leaves no reply running."""
    running = make(storage, ScriptedEngine(["a", asyncio.Event()]))
    reply = running.begin(QUESTION)
    await reply.event(1)
    draining = asyncio.create_task(running.drain(60))
    await asyncio.sleep(0)

    draining.cancel()

    with pytest.raises(asyncio.CancelledError):
        await draining
    assert await reply.last_event() == FAILURE


async def test_a_reader_that_is_cancelled(storage: Storage) -> None:
    """Does not disturb the reply."""
    gate = asyncio.Event()
    reply = make(storage, ScriptedEngine(["a", gate, "b"])).begin(QUESTION)
    reader = asyncio.create_task(reply.last_event())
    await reply.event(1)

    reader.cancel()
    gate.set()

    assert (await events(reply))[-1] == Done("ab", "…")
    with pytest.raises(asyncio.CancelledError):
        await reader
