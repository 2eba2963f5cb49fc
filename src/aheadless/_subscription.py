"""More readers of one stream: each has a mailbox of a limited size, and says what happens when it is full."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

from aheadless._session import Reply
from aheadless.exceptions import AheadlessError, ConfigurationError, StreamStoppedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aheadless.protocol.events import Event

__all__ = ["Mailbox", "Outcome", "Overflow", "Subscription", "call_on"]

Outcome: TypeAlias = Reply | AheadlessError
"""How a turn ended: with a reply or with what kept it from one."""

Overflow: TypeAlias = Literal["block", "drop_oldest", "raise"]
"""What happens when a subscription is full: the stream waits, the oldest event goes, the subscription ends."""


class Mailbox:
    """The events that one more reader has not read yet."""

    def __init__(self, maxsize: int, overflow: Overflow, leave: Callable[[Mailbox], None]) -> None:
        if not isinstance(maxsize, int) or isinstance(maxsize, bool) or maxsize < 1:
            raise ConfigurationError(f"maxsize must be a whole number from 1, not {maxsize!r}")
        if overflow not in {"block", "drop_oldest", "raise"}:
            raise ConfigurationError(f'overflow must be "block", "drop_oldest" or "raise", not {overflow!r}')
        self._maxsize = maxsize
        self._overflow = overflow
        self._leave = leave
        self._events: deque[Event] = deque()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._outcome: Outcome | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._events)

    @property
    def over(self) -> bool:
        """Whether nothing more comes in."""
        return self._outcome is not None

    async def put(self, event: Event) -> None:
        """Take an event from the stream; waits only when full and told to block."""
        self._loop = asyncio.get_running_loop()
        while len(self._events) >= self._maxsize and self._outcome is None:
            if self._overflow == "drop_oldest":
                self._events.popleft()
            elif self._overflow == "raise":
                self._leave(self)
                self.end(UsageError(f"the reader of this subscription is more than {self._maxsize} events behind"))
            else:
                self._writable.clear()
                await self._writable.wait()
        if self._outcome is None:
            self._events.append(event)
            self._readable.set()

    async def get(self) -> Event | None:
        """Return the next event; None at the end. Raises what the stream's reader gets."""
        while not self._events:
            if self._outcome is not None:
                if isinstance(self._outcome, Reply | StreamStoppedError):
                    return None
                raise self._outcome
            self._readable.clear()
            await self._readable.wait()
        self._writable.set()
        return self._events.popleft()

    def end(self, outcome: Outcome) -> None:
        """Take the end of the stream."""
        if self._outcome is None:
            self._outcome = outcome
            self._readable.set()
            self._writable.set()

    def close(self) -> None:
        """Take and hold no more events."""
        self._leave(self)
        self._events.clear()
        self.end(StreamStoppedError("the subscription was closed"))

    def abandon(self) -> None:
        """Close because the reader is gone; from a finaliser, so on whatever thread and even without a loop."""
        if self._outcome is None or self._events:
            call_on(self._loop, self.close)


class Subscription:
    """The events of a stream for one more reader: an async iterator that is closed when it goes away.

    If a reader is cancelled, no event is lost: the next one to ask gets it. The stream goes on.
    """

    __slots__ = ("_mailbox", "_reading")

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._reading = False

    def __reduce__(self) -> NoReturn:
        raise TypeError("a subscription belongs to its stream, and is neither pickled nor copied")

    def __repr__(self) -> str:
        return f"<Subscription, {len(self._mailbox)} events not read{', ended' * self._mailbox.over}>"

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        if self._reading:
            raise UsageError("another task reads this subscription; make one for each reader")
        self._reading = True
        try:
            event = await self._mailbox.get()
        finally:
            self._reading = False
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Stop listening; the stream goes on."""
        self._mailbox.close()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._mailbox.abandon()


def call_on(loop: asyncio.AbstractEventLoop | None, function: Callable[[], object]) -> None:
    """Call a function of a loop's objects from wherever a finaliser runs; of a loop that is over, here."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is None or here is loop or loop.is_closed():
        function()
    else:
        loop.call_soon_threadsafe(function)
