"""The writing of replies: each in a task of the server's own, so that it is finished and stored whoever has gone."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aheadless.exceptions import StatusError, StoreError
from aheadless.protocol.codec import FALLBACK_REPLY, join_surrogates, trim
from aheadless.protocol.events import Done, Failure, Start, Token
from aheadless.server.answers import INTERNAL_ERROR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aheadless._session import Message
    from aheadless.protocol.codec import ChatRequest
    from aheadless.protocol.events import Event
    from aheadless.server.engines import ReplyEngine
    from aheadless.server.storage import Storage

__all__ = ["Replies", "RunningReply"]

logger: logging.Logger = logging.getLogger("aheadless.server")

# A reply is kept until it is stored and read by its client. A model that goes on and on is cut here, as one that ended.
MAX_REPLY: Final = 1024 * 1024  # characters
MAX_TOKENS: Final = 200_000

# Events that a reader gets at once: enough to be cheap, few enough to encode without holding up anybody.
MAX_READ: Final = 100

# What a cancelled engine gets for its own cleaning up.
CANCEL_GRACE: Final = 1.0  # seconds


class RunningReply:
    """A reply while it is written: its events so far. It is written at the model's pace, and read at each reader's."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._changed: asyncio.Event | None = None  # made by who waits for it: of most events nobody has to be told
        self._end = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether the last event is there."""
        return self._end.is_set()

    def add(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def end(self, event: Done | Failure) -> None:
        """Append the last event."""
        self.add(event)
        self._end.set()

    async def event(self, number: int) -> Event:
        """Return an event by its number, from 0, as soon as it is there. The last one is Done or Failure.

        A Failure as the very first means that nothing was stored, or at least that nobody can tell.
        """
        return (await self.events(number))[0]

    async def events(self, number: int) -> list[Event]:
        """Return the event of this number and those after it that are there, up to 100, as soon as it is there."""
        while number >= len(self._events):
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._changed.wait()
        return self._events[number : number + MAX_READ]

    async def last_event(self) -> Event:
        """Return the last event when the reply has ended."""
        await self._end.wait()
        return self._events[-1]


class Replies:
    """All that are being written, at most `limit` at once, each for at most `reply_timeout` seconds."""

    def __init__(self, storage: Storage, engine: ReplyEngine, *, limit: int, reply_timeout: float) -> None:
        self._storage = storage
        self._engine = engine
        self._limit = limit
        self._reply_timeout = reply_timeout
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def full(self) -> bool:
        """Whether no further reply can be begun."""
        return self._closing or len(self._tasks) >= self._limit

    def begin(self, question: ChatRequest) -> RunningReply:
        """Store a question and write its reply; both go on without the caller. Not to be called when full."""
        reply = RunningReply()
        task = asyncio.get_running_loop().create_task(self._write(reply, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reply

    async def drain(self, seconds: float) -> None:
        """Begin no more replies, let the running ones finish for so long, then cancel the rest; never hangs."""
        self._closing = True
        try:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=seconds)
        finally:
            late = set(self._tasks)
            for task in late:
                task.cancel()
        if late:
            logger.warning("%d replies were cut off by the shutdown", len(late))
            _, stubborn = await asyncio.wait(late, timeout=CANCEL_GRACE)
            if stubborn:
                logger.error("%d replies ignore that they were cancelled", len(stubborn))

    async def _write(self, reply: RunningReply, question: ChatRequest) -> None:
        try:
            conversation_id, history = await self._storage.add_question(question.session_id, question.message)
            reply.add(Start(conversation_id))
            # The reader wakes now and sends the start, before an engine that blocks could keep it from that.
            await asyncio.sleep(0)
            async with asyncio.timeout(self._reply_timeout):
                text = await self._generate(reply, history)
            await self._storage.add_reply(conversation_id, text)
            reply.end(Done(text, conversation_id))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:
            logger.warning("a reply failed: %s", _describe(exc))
            # Not in the warning: the text of a foreign error may hold the conversation.
            logger.debug("the failure", exc_info=exc)
        finally:
            if not reply.ended:
                reply.end(Failure(INTERNAL_ERROR))

    async def _generate(self, reply: RunningReply, history: Sequence[Message]) -> str:
        """Return the whole reply, as it is to be stored, after its tokens were added."""
        texts: list[str] = []
        size = 0
        tokens = self._engine.reply(history)
        try:
            async for text in tokens:
                if not isinstance(text, str):
                    raise TypeError(f"an engine gives texts, not {type(text).__name__}")
                if not text:
                    continue
                size += len(text)
                if size > MAX_REPLY or len(texts) >= MAX_TOKENS:
                    logger.warning("a reply was cut after %d tokens", len(texts))
                    break
                texts.append(text)
                reply.add(Token(text))
        finally:
            if (aclose := getattr(tokens, "aclose", None)) is not None:
                await aclose()
        return trim(join_surrogates("".join(texts))) or FALLBACK_REPLY


def _describe(error: BaseException) -> str:
    match error:
        case StoreError():
            return str(error)  # the database's own words
        case StatusError():
            return f"{type(error).__name__} with status {error.status}"
        case _:
            return type(error).__name__
