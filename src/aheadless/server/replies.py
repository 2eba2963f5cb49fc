"""The writing of replies: each in a task of the server's own, so that it is finished and stored whoever has gone."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from aheadless.protocol.codec import FALLBACK_REPLY, join_surrogates, trim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aheadless._session import Message
    from aheadless.server.engines import ReplyEngine
    from aheadless.server.storage import Storage

__all__ = ["Replies", "RunningReply"]

logger = logging.getLogger("aheadless.server")

# A reply is kept until it is stored and read by its client. A model that goes on and on is cut here, as one that ended.
MAX_REPLY: Final = 1024 * 1024  # characters
MAX_TOKENS: Final = 200_000


class RunningReply:
    """A reply while it is written: its tokens so far, and how it ended. Any number may follow it."""

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.tokens: list[str] = []
        self.text: str | None = None
        """The stored reply; None until then, and for ever if it failed."""
        self.failed = False
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[str]:
        """Return the tokens as they come; ends when the reply is stored or has failed."""
        taken = 0
        while True:
            changed = self._changed
            while taken < len(self.tokens):
                taken += 1
                yield self.tokens[taken - 1]
            if self.text is not None or self.failed:
                return
            await changed.wait()

    def add(self, token: str) -> None:
        """Append a token."""
        self.tokens.append(token)
        self._notify()

    def finish(self, text: str | None) -> None:
        """End it: stored, or failed if there is no text."""
        self.text, self.failed = text, text is None
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Replies:
    """All that are being written, at most `limit` at once, each for at most `timeout` seconds."""

    def __init__(self, storage: Storage, engine: ReplyEngine, *, limit: int, timeout: float) -> None:  # noqa: ASYNC109
        self._storage = storage
        self._engine = engine
        self._limit = limit
        self._timeout = timeout
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Whether no further reply can be begun."""
        return len(self._tasks) >= self._limit

    def begin(self, conversation_id: str, history: Sequence[Message]) -> RunningReply:
        """Begin the reply to a stored question; it goes on without its caller."""
        reply = RunningReply(conversation_id)
        task = asyncio.get_running_loop().create_task(self._write(reply, history))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reply

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - asyncio.wait does not cancel, a scope would
        """Let the running replies finish for so many seconds, then cancel the rest."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _write(self, reply: RunningReply, history: Sequence[Message]) -> None:
        text: str | None = None
        try:
            async with asyncio.timeout(self._timeout):
                await self._generate(reply, history)
            text = trim(join_surrogates("".join(reply.tokens))) or FALLBACK_REPLY
            await self._storage.add_reply(reply.conversation_id, text)
        except Exception as exc:  # noqa: BLE001 - an engine may raise anything, and its text may hold the conversation
            text = None
            logger.warning("a reply failed: %s", type(exc).__name__)
        except asyncio.CancelledError:
            text = None
            raise
        finally:
            reply.finish(text)

    async def _generate(self, reply: RunningReply, history: Sequence[Message]) -> None:
        size = 0
        tokens = self._engine.reply(history)
        try:
            async for token in tokens:
                size += len(token)
                if size > MAX_REPLY or len(reply.tokens) >= MAX_TOKENS:
                    logger.warning("a reply was cut at %d characters", size)
                    break
                reply.add(token)
        finally:
            if (aclose := getattr(tokens, "aclose", None)) is not None:
                await aclose()
