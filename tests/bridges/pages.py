"""A platform without a socket, and replies that are written at given times, for a clock that jumps."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import attrs

from aheadless import AheadlessError, Event, Reply, ReplyStream, StoreError
from aheadless._stream import NO_CALLBACKS
from aheadless.bridges import MessageGone
from aheadless.protocol.codec import encode_event
from aheadless.testing import events


@attrs.frozen
class Call:
    """What a page was asked to do, and when that ended."""

    kind: str
    text: str
    began: float
    ended: float


class FakePage:
    """Keeps messages in a list, takes time for each call, and fails as it is told."""

    def __init__(self, *, limit: int = 2000, takes: float = 0.1) -> None:
        self.limit = limit
        self.takes = takes
        self.messages: list[str | None] = []
        """What people see; None for a message that was deleted."""
        self.calls: list[Call] = []
        self.faults: deque[BaseException | float | None] = deque()
        """What is in the way of the next calls: an error, another time that it takes, or nothing."""
        self._posted = asyncio.Condition()

    @property
    def seen(self) -> list[str]:
        """The messages that are there."""
        return [text for text in self.messages if text is not None]

    def length(self, text: str) -> int:
        return len(text)

    async def post(self, text: str) -> int:
        await self._call("post", text)
        async with self._posted:
            self.messages.append(text)
            self._posted.notify_all()
        return len(self.messages) - 1

    async def edit(self, message: int, text: str) -> None:
        await self._call("edit", text)
        if self.messages[message] is None:
            raise MessageGone
        self.messages[message] = text

    async def has(self, count: int) -> None:
        """Wait until so many messages were posted."""
        async with self._posted:
            await self._posted.wait_for(lambda: len(self.messages) >= count)

    async def _call(self, kind: str, text: str) -> None:
        assert 0 < len(text.strip()) <= len(text) <= self.limit
        now = asyncio.get_running_loop().time
        began = now()
        fault = self.faults.popleft() if self.faults else None
        await asyncio.sleep(fault if isinstance(fault, float) else self.takes)
        self.calls.append(Call(kind, text, began, now()))
        if isinstance(fault, BaseException):
            raise fault


class Telling:
    """A stream's source and wiring in one: says each event after a pause, and fails where an error stands."""

    session_id = "s"
    idle_timeout = None
    log = None
    first_token_at = None
    total_at = None

    def __init__(self, script: Iterable[tuple[float, Event | AheadlessError]], unsaved: StoreError | None) -> None:
        self._script = iter(script)
        self._unsaved = unsaved
        self._outcome: object = None
        self._woken: asyncio.Future[None] | None = None

    async def enter(self, stream: ReplyStream) -> None:
        pass

    async def send(self, stream: ReplyStream) -> Telling:
        stream.note_request()
        return self

    def settle(self, stream: ReplyStream, outcome: Reply | AheadlessError) -> None:
        self._outcome = outcome

    async def read_back(self, stream: ReplyStream, error: AheadlessError) -> None:
        return None

    async def record(self) -> None:
        if self._unsaved is not None and isinstance(self._outcome, Reply):
            raise self._unsaved

    async def read(self, deadline: float | None, /) -> bytes:
        pause, event = next(self._script, (0, None))
        self._woken = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(pause):
                await self._woken
        except TimeoutError:
            pass
        if isinstance(event, AheadlessError):
            raise event
        return b"" if event is None else encode_event(event)

    def wake(self, error: Exception) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_exception(error)

    def close(self) -> None:
        pass

    def finish(self) -> None:
        pass


def told(
    *tokens: str,
    every: float = 0.1,
    text: str | None = None,
    error: AheadlessError | None = None,
    unsaved: StoreError | None = None,
) -> ReplyStream:
    """Return a stream whose tokens come at a pace, and then its end, or an error instead."""
    script: list[tuple[float, Event | AheadlessError]] = [(every, event) for event in events(*tokens, text=text)]
    if error is not None:
        script[-1] = (every, error)
    return ReplyStream(Telling(script, unsaved), NO_CALLBACKS)
