"""One turn at a time in a session, in the order of asking (protocol.md §3.5 tells what happens otherwise)."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from aheadless.exceptions import SessionBusyError

if TYPE_CHECKING:
    from aheadless._options import OnBusy

__all__ = ["Gate", "Holder"]

# A person does not ask a hundred questions while one is answered; a loop that lost its way does.
MAX_WAITING: Final = 100


class Holder(Protocol):
    """A turn that has the session, or waits for it."""

    @property
    def task(self) -> asyncio.Task[object] | None:
        """The task that drives the turn."""

    def stop(self) -> None:
        """End the turn; it has left the gate when this returns."""


class Gate:
    """Let one holder in at a time."""

    __slots__ = ("_holder", "_waiting")

    def __init__(self) -> None:
        self._holder: Holder | None = None
        self._waiting: deque[tuple[asyncio.Future[None], Holder]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a turn is live."""
        return self._holder is not None

    def stop(self) -> None:
        """End the live turn; without one nothing happens."""
        if self._holder is not None:
            self._holder.stop()

    async def enter(self, holder: Holder, on_busy: OnBusy) -> None:
        """Return when the session belongs to `holder`; end that with :meth:`leave`.

        Raises SessionBusyError by policy, when a hundred are waiting, and for a call from the very task that holds
        the session, which would wait for itself. If cancelled, the place in the queue is given up.
        """
        if self._holder is None:
            self._holder = holder
            return
        if on_busy == "reject":
            raise SessionBusyError("the session has a live turn")
        if on_busy == "queue" and self._holder.task is asyncio.current_task():
            raise SessionBusyError(
                "this task holds the session's live turn and would wait for itself; end that turn first, "
                'or use on_busy="interrupt"'
            )
        if self._waiting is None:
            self._waiting = deque()
        if len(self._waiting) >= MAX_WAITING:
            raise SessionBusyError(f"{MAX_WAITING} turns are waiting for this session")
        await self._wait(holder, first=on_busy == "interrupt")

    def leave(self, holder: Holder) -> None:
        """Give the session to the next in the queue; nothing happens if `holder` does not have it."""
        if self._holder is not holder:
            return
        self._holder = None
        while self._waiting:
            turn, waiting = self._waiting.popleft()
            if not turn.done():
                self._holder = waiting
                turn.set_result(None)
                return
        self._waiting = None

    async def _wait(self, holder: Holder, *, first: bool) -> None:
        assert self._waiting is not None  # noqa: S101 - for the type checker
        place = (asyncio.get_running_loop().create_future(), holder)
        if first:
            self._waiting.appendleft(place)
            self.stop()
        else:
            self._waiting.append(place)
        try:
            await place[0]
        except BaseException:
            # Cancelled: maybe in the very moment in which the session became ours.
            if self._waiting is not None and place in self._waiting:
                self._waiting.remove(place)
            self.leave(holder)
            raise
