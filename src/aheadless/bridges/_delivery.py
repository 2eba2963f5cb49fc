"""When the text on a platform is brought up to date: the first words early, then paced, the final text always.

Pure: the clock comes in, in seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from typing import Any, Final

import attrs

from aheadless._options import parse_seconds

__all__ = ["ATTEMPTS", "Pace", "Schedule", "check_seconds"]

# How often in a row the final text is tried; with the pauses between, some half a minute of a platform that is down.
ATTEMPTS: Final = 7
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 10.0
# Nobody reads an answer that is an hour late, and a platform that asks for more means something else.
LONGEST_WAIT: Final = 3600.0


def check_seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Raise ConfigurationError unless a field holds a number of seconds, or 0."""
    parse_seconds(value, attribute.name, zero=True)


@attrs.frozen
class Pace:
    """How often a message is edited while its reply is written, in seconds."""

    first: float = attrs.field(default=0.3, kw_only=True, validator=check_seconds)
    """From the first token to the first edit: enough for a few words, and still early."""

    every: float = attrs.field(default=1.2, kw_only=True, validator=check_seconds)
    """From the end of an edit to the next one. The final edit waits for none of this, only for what the platform
    demands."""


class Schedule:
    """Says when the next call to the platform may be made, and when it is no use to make one more."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._paced = -math.inf  # not before this, for the sake of the pace
        self._pushed = -math.inf  # not before this, as the platform failed or demanded it
        self._began = False
        self._failures = 0
        self._deadline: float | None = None  # once the text is final

    @property
    def final(self) -> bool:
        """Whether the text is final."""
        return self._deadline is not None

    @property
    def due(self) -> float:
        """When the next call is due, if there is something new to show."""
        return self._pushed if self.final else max(self._paced, self._pushed)

    @property
    def exhausted(self) -> bool:
        """Whether the final text was tried as often, or is as late, as it may be."""
        return self._deadline is not None and (self._failures >= ATTEMPTS or self._pushed >= self._deadline)

    def written(self, now: float) -> None:
        """Take note that there is text; only the first time matters."""
        if not self._began:
            self._began = True
            self._paced = max(self._paced, now + self._pace.first)

    def shown(self, now: float) -> None:
        """Take note that a call was made."""
        self._failures = 0
        # What was shown before the first token, a placeholder, does not make the first words late.
        if self._began:
            self._paced = now + self._pace.every

    def failed(self, now: float) -> None:
        """Take note that a call failed: the pauses grow."""
        self._failures += 1
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures - 1, 30))
        self._push(now, max(pause, 0.0 if self.final else self._pace.every))

    def postponed(self, now: float, seconds: float) -> None:
        """Take note that the platform wants to be left alone for so long; what is no number counts as a second."""
        self._push(now, 1.0 if math.isnan(seconds) else min(max(seconds, 0.0), LONGEST_WAIT))

    def _push(self, now: float, seconds: float) -> None:
        self._pushed = max(self._pushed, now + seconds)

    def finish(self, now: float, within: float) -> None:
        """Take note that the text is final and is to be there after `within` seconds; a shorter time counts later."""
        self._failures = 0
        self._deadline = min(now + within, math.inf if self._deadline is None else self._deadline)
