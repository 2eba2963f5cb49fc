"""Whether and when a message may be sent again. No I/O, no clock; chance comes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from aheadless._options import parse_count, parse_seconds
from aheadless.exceptions import (
    AheadlessError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    RequestTimeoutError,
    ServerError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Retry", "RetryBudget", "Retrying"]

# Ten retries at once, and one more for every ten messages that got through: a server that is down is not asked
# much more often than one that is up.
BUDGET: Final = 10.0
EARNED: Final = 0.1

_NOT_THERE: Final = frozenset([Delivery.NOT_SENT, Delivery.REJECTED])


@attrs.frozen
class Retry:
    """When to send a message again by itself: only if it cannot have been stored.

    That is: no connection came about, the server said 503 with a `Retry-After`, or (with `recovery="auto"`) its history
    shows that the message is not there. (429 is waited out in any case.)
    The pause before try n is random, up to `base` * 2 ** (n - 1) seconds and never over `cap`. Once a byte of the
    answer has come nothing is sent again.
    """

    attempts: int = 3
    """How many times a message is sent at the most; 1: never again."""
    base: float = attrs.field(default=0.5, kw_only=True)
    cap: float = attrs.field(default=8.0, kw_only=True)
    may_duplicate: bool = attrs.field(default=False, kw_only=True)
    """Send again, too, where the message may have been stored: after a lost connection, a time-out or a 5xx without a
    byte of an answer. The model may then read it twice, and the history hold it twice."""

    def __attrs_post_init__(self) -> None:
        parse_count(self.attempts, "attempts", least=1)
        parse_seconds(self.base, "base")
        parse_seconds(self.cap, "cap")
        if not isinstance(self.may_duplicate, bool):
            raise ConfigurationError(f"may_duplicate must be True or False, not {self.may_duplicate!r}")

    def allows(self, error: AheadlessError, attempt: int) -> bool:
        """Return whether a message that failed at this attempt (from 1) may be sent again."""
        if attempt >= self.attempts:
            return False
        match error:
            case ConnectError():
                return not error.permanent
            case RequestTimeoutError():
                return error.delivery in _NOT_THERE or self.may_duplicate
            case ServerError() | ConnectionLostError():
                # A lost one is REJECTED when the server's history shows that it was not stored.
                return error.delivery is Delivery.REJECTED or self.may_duplicate
            case _:
                return False

    def pause(self, attempt: int, chance: Callable[[], float]) -> float:
        """Return the seconds to wait after this attempt (from 1); `chance` gives a number from 0 to 1."""
        return chance() * min(self.cap, self.base * 2.0 ** min(attempt - 1, 30))


@attrs.frozen
class Retrying:
    """A message is about to be sent again."""

    session_id: str
    attempt: int
    """The number of the attempt that failed, from 1."""
    delay: float
    """Seconds until the next one."""
    error: AheadlessError
    """Why it failed."""


class RetryBudget:
    """How many retries a client has left, over all its messages."""

    def __init__(self) -> None:
        self._left = BUDGET

    def spend(self) -> bool:
        """Take one, if there is one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def earn(self) -> None:
        """Count a message that got through."""
        self._left = min(BUDGET, self._left + EARNED)
