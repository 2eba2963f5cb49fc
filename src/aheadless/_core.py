"""What a client shares with its chats, their turns and their searches."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from aheadless._pacing import Pacing, Waiting
from aheadless._retry import Retry, RetryBudget, Retrying
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConfigurationError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aheadless._http import Key, Transport
    from aheadless._keeper import Keeper
    from aheadless._manager import SessionManager
    from aheadless._options import (
        OnBusy,
        RateLimit,
        Timeouts,
    )
    from aheadless._readback import ReadBack
    from aheadless._session import Session
    from aheadless._store import EventLog, SessionStore, SharedPace
    from aheadless._stream import Callbacks


__all__ = ["Core", "Live", "OnRetry", "OnWait", "Recovery", "checked", "running_loop", "utc_now"]

T = TypeVar("T")

OnRetry: TypeAlias = "Callable[[Retrying], Awaitable[object] | None]"
OnWait: TypeAlias = "Callable[[Waiting], Awaitable[object] | None]"

Recovery: TypeAlias = Literal["off", "auto"]
"""Whether the client reads back by itself what a broken connection kept from it."""


class Live(Protocol):
    """What holds a session now or waits for it: a turn, or the search for the end of one."""

    def fail(self, error: AheadlessError) -> None:
        """End it with an error of this side."""


class Core(msgspec.Struct, eq=False):
    """What a client shares with its chats and their questions."""

    transport: Transport
    sessions: SessionManager
    chat_key: Key | None
    endpoint: str
    timeouts: Timeouts
    on_busy: OnBusy
    callbacks: Callbacks
    retry: Retry
    rate_limit: RateLimit | None
    max_wait: float
    on_retry: tuple[OnRetry, ...]
    on_wait: tuple[OnWait, ...]
    store: SessionStore | None
    keeper: Keeper | None
    readback: ReadBack | None
    recovery: Recovery
    log: EventLog | None  # the store's, if it keeps one
    pace: SharedPace | None  # the store's, if it shares one
    budget: RetryBudget = msgspec.field(default_factory=RetryBudget)
    live: set[Live] = msgspec.field(default_factory=set["Live"])
    closed: bool = False
    _loop: asyncio.AbstractEventLoop | None = None
    _pacing: Pacing | None = None
    _pid: int | None = None

    def check_open(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed")

    def bind(self) -> None:
        """Raise unless this is the client's own loop and process; the first use makes them its own."""
        self.check_open()
        if self._loop is None:
            self._loop, self._pid = running_loop(), os.getpid()
        self.check_place()

    def check_place(self) -> None:
        """Raise in a process or on an event loop that is not the client's own, unless it has none yet."""
        if self._loop is None:
            return
        if self._pid != os.getpid():
            raise UsageError("this client was used before the process forked; make a new one in each process")
        if self._loop is not running_loop():
            raise UsageError("this client belongs to another event loop; make one for each loop")

    def check_may_close(self) -> None:
        """Raise where closing would tear at connections of a loop or a process that is still using them."""
        if self._loop is None or self._pid != os.getpid() or not self._loop.is_closed():
            self.check_place()

    def touch(self, session: Session) -> None:
        self.sessions.touch(session, time.monotonic())

    def pacing(self) -> Pacing:
        """Return the pace towards this origin, which all of its clients here share, and others if the store does."""
        if self._pacing is None:
            self._pacing = Pacing(self.transport.origin, self.pace)
        return self._pacing

    async def get(self, path: str, key: Key | None = None) -> tuple[bytes, datetime | None]:
        self.bind()
        return await self.transport.get(path, key, timeouts=self.timeouts)


def checked(value: object, kind: type[T], name: str) -> T | None:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigurationError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


def running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("no event loop is running") from None


def utc_now() -> datetime:
    return datetime.now(timezone.utc)
