"""How fast turns go to one origin: a limit that is known beforehand, and a shared cool-down after a 429.

A rate limit counts the requests of an address, so all clients of a process (on one event loop) share what is known of
an origin. The server's 429 does not say for how long: a probe goes first, and when it gets through the others follow,
at first two at once, then four: each answer lets one more out.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import attrs
import msgspec

from aheadless.exceptions import Delivery, RateLimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from aheadless._exchange import Slot
    from aheadless._options import RateLimit
    from aheadless._store import SharedPace, WaitReason

__all__ = ["Pacer", "Pacing", "PacingState", "Pass", "Waiting", "pacer_for"]

# Probes that are refused do not count at the server (protocol.md §2), so asking now and then costs nothing but the
# asking. The usual window is 60 s: some ten probes.
FIRST_COOL_DOWN: Final = 2.0
LONGEST_COOL_DOWN: Final = 10.0

# Beyond this many the limit is no longer felt.
OPEN_AGAIN: Final = 16

# A thousand turns behind a limit of 30 a minute would wait for half an hour; max_wait ends them long before.
MAX_WAITING: Final = 1000

# A limit of more requests than this in a window is none that a person's bot can feel.
MAX_LOG: Final = 10_000

PacingPhase: TypeAlias = Literal["open", "cooling", "releasing"]


@attrs.frozen
class PacingState:
    """Where the pace of an origin stands; from :attr:`ChatClient.pacing`."""

    state: PacingPhase
    """"open": nothing holds turns back but a limit of one's own; "cooling": all wait, as the server said 429;
    "releasing": it lets turns through again, and the queue follows."""
    waiting: int
    """How many turns wait."""
    seconds_left: float
    """Until the next probe, while cooling; 0 otherwise."""


@attrs.frozen
class Waiting:
    """A turn has to wait before it is sent; what `on_wait` is given."""

    session_id: str
    reason: WaitReason
    """"rate_limit": the client's own limit is used up; "cool_down": the server said 429."""
    longest: float
    """After so many seconds it gives up with a RateLimitError."""


class Pass(msgspec.Struct, eq=False):
    """The leave to send one request; to be given back by :meth:`Pacer.leave`."""

    round: int
    slot: Slot | None = None
    """The leave of the pace that several processes share."""
    answer: Literal["accepted", "refused"] | None = None
    """What the server's rate limit said."""
    retry_after: float | None = None


class _Place(msgspec.Struct, eq=False):
    limit: RateLimit | None
    turn: asyncio.Future[Pass]


class Pacer:
    """The pace towards one origin.

    `now` and `chance` (a number from 0 to 1) come in, so that all of it can be tested without waiting.
    """

    def __init__(self, *, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._places: deque[_Place] = deque()
        self._answered: deque[float] = deque(maxlen=MAX_LOG)  # when, of the requests that count against a limit
        self._in_flight = 0
        self._cooling_until: float | None = None
        self._round = 0  # of cooling down; what was sent in an earlier one tells nothing of this one
        self._refusals = 0  # one after the other
        self._allowance: int | None = None  # how many may be in flight while releasing
        self._in_round = 0  # how many of this round are
        self._timer: asyncio.TimerHandle | None = None

    def state(self) -> PacingState:
        """Return where it stands."""
        left = 0.0 if self._cooling_until is None else max(self._cooling_until - _now(), 0.0)
        phase: PacingPhase = "open" if self._allowance is None else "cooling" if left else "releasing"
        return PacingState(phase, len(self._places), left)

    def must_wait(self, limit: RateLimit | None) -> bool:
        """Whether a turn that comes now cannot go at once."""
        return bool(self._places) or self._ready_at(limit, _now()) != 0

    async def enter(self, limit: RateLimit | None, *, again: bool = False) -> Pass:
        """Return the leave to send, when the pace allows it; those who come `again` go before the others.

        Raises RateLimitError when a thousand turns are waiting. If cancelled, the place is given up.
        """
        if not self._places and self._ready_at(limit, _now()) == 0:
            return self._let_go()
        if len(self._places) >= MAX_WAITING:
            raise RateLimitError(f"{MAX_WAITING} turns wait for the rate limit", delivery=Delivery.NOT_SENT)
        place = _Place(limit, asyncio.get_running_loop().create_future())
        if again:
            self._places.appendleft(place)
        else:
            self._places.append(place)
        self._pump()
        try:
            return await place.turn
        except BaseException:
            if place in self._places:
                self._places.remove(place)
                self._pump()
            elif not place.turn.cancelled():
                self.leave(place.turn.result(), counted=False)  # let go in the very moment of being cancelled
            raise

    def leave(self, leave: Pass, *, counted: bool) -> None:
        """Give a leave back: the answer's headers are there, or there will be none.

        `counted`: whether the server may have counted the request. It is stamped now and not when it was sent: it
        cannot have arrived later than this, which is what keeps a sliding log within any fixed window.
        """
        self._in_flight -= 1
        if leave.round == self._round:
            self._in_round -= 1
        if counted:
            self._answered.append(_now())
        self._pump()

    def accepted(self, leave: Pass) -> None:
        """Take note that the server let a request through its rate limit."""
        if leave.round == self._round and self._allowance is not None:
            self._refusals = 0
            self._cooling_until = None
            self._allowance += 1
            if self._allowance >= OPEN_AGAIN:
                self._allowance = None
            self._pump()

    def refused(self, leave: Pass, retry_after: float | None) -> None:
        """Take note of a 429: all wait for `retry_after` seconds, or for a while of our own choosing."""
        if leave.round != self._round:
            return  # it was on its way when the cool-down began
        if retry_after is None or self._refusals:
            # A server that keeps saying "now" is not taken at its word twice.
            longest = min(LONGEST_COOL_DOWN, FIRST_COOL_DOWN * 2.0 ** min(self._refusals, 10))
            retry_after = max(retry_after or 0.0, longest * (1 + self._chance()) / 2)
        self._round += 1
        self._refusals += 1
        self._allowance = 1
        self._in_round = 0
        self._cooling_until = _now() + retry_after
        self._pump()

    def _ready_at(self, limit: RateLimit | None, now: float) -> float | None:
        """Return when a turn can go: 0 for now, None for when an answer comes."""
        if self._cooling_until is not None and now < self._cooling_until:
            return self._cooling_until
        if self._allowance is not None and self._in_round >= self._allowance:
            return None
        if limit is None:
            return 0
        recent = [stamp for stamp in islice(reversed(self._answered), limit.limit) if stamp > now - limit.per]
        if self._in_flight + len(recent) < limit.limit:
            return 0
        # One more can go when the oldest of so many leaves the window; if all of them are under way, when one is back.
        needed = limit.limit - self._in_flight
        return recent[needed - 1] + limit.per if needed > 0 else None

    def _let_go(self) -> Pass:
        self._in_flight += 1
        self._in_round += 1
        return Pass(self._round)

    def _pump(self) -> None:
        """Let go whoever can go, in order, and come back when the next one can."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _now()
        while self._places:
            place = self._places[0]
            if place.turn.done():
                self._places.popleft()
                continue
            ready_at = self._ready_at(place.limit, now)
            if ready_at is None:
                return
            if ready_at > now:
                self._timer = asyncio.get_running_loop().call_at(ready_at, self._pump)
                return
            self._places.popleft()
            place.turn.set_result(self._let_go())


def _now() -> float:
    return asyncio.get_running_loop().time()


_pacers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Pacer]] = WeakKeyDictionary()


def pacer_for(origin: str) -> Pacer:
    """Return the pacer that all clients on this event loop share for an origin."""
    return _pacers.setdefault(asyncio.get_running_loop(), {}).setdefault(origin, Pacer())


class Pacing:
    """The pace of a client: that of its process, and behind it the one that several processes share, if they do."""

    def __init__(self, origin: str, shared: SharedPace | None) -> None:
        self._pacer = pacer_for(origin)
        self._origin = origin
        self._shared = shared

    async def try_enter(self, limit: RateLimit | None) -> Pass | WaitReason:
        """Return the leave to send if there is one now, or why there is none. Raises StoreError."""
        if self._pacer.must_wait(limit):
            return "rate_limit" if self._pacer.state().state == "open" else "cool_down"
        return await self._enter_shared(await self._pacer.enter(limit), limit, wait=False)

    async def enter(self, limit: RateLimit | None, *, again: bool) -> Pass:
        """Return the leave to send, when there is one; errors and cancellation as for :meth:`Pacer.enter`."""
        leave = await self._enter_shared(await self._pacer.enter(limit, again=again), limit, wait=True)
        assert isinstance(leave, Pass)  # noqa: S101 - it was waited for
        return leave

    async def _enter_shared(self, leave: Pass, limit: RateLimit | None, *, wait: bool) -> Pass | WaitReason:
        if self._shared is None:
            return leave
        entered = False
        try:
            slot = await self._shared.enter(self._origin, limit, wait=wait)
            if isinstance(slot, str):
                return slot
            leave.slot = slot
            entered = True
            return leave
        finally:
            if not entered:
                self._pacer.leave(leave, counted=False)

    def leave(self, leave: Pass, *, counted: bool) -> None:
        """Give a leave back, as :meth:`Pacer.leave`."""
        self._pacer.leave(leave, counted=counted)
        if self._shared is not None and leave.slot is not None:
            self._shared.leave(leave.slot, counted=counted, answer=leave.answer, retry_after=leave.retry_after)

    def accepted(self, leave: Pass) -> None:
        """Take note that the server let a request through its rate limit."""
        self._pacer.accepted(leave)
        leave.answer = "accepted"

    def refused(self, leave: Pass, retry_after: float | None) -> None:
        """Take note of a 429, as :meth:`Pacer.refused`."""
        self._pacer.refused(leave, retry_after)
        leave.answer, leave.retry_after = "refused", retry_after
