"""What an operator sees of a turn: records of the logger `aheadless` and, where the application has set up
OpenTelemetry, a span and metrics.

Nothing of what is said gets in here, and no key. A token costs nothing more: all of it happens at the beginning, the
end, and the troubles of a turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from aheadless.exceptions import AheadlessError, StreamStoppedError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import ModuleType

    from aheadless._otel import TurnSpan
    from aheadless._session import MessageStatus, Reply, Timings

__all__ = ["Watch"]

logger = logging.getLogger("aheadless")


class Watch:
    """One turn, watched. Each of its calls is one moment of the turn; none waits, and none raises."""

    __slots__ = ("_session_id", "_span", "_turn_id")

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self._turn_id = ""
        self._span: TurnSpan | None = None

    def log(self, level: int, message: str, *values: object, **fields: object) -> None:
        """Write a record with the turn's ids, and more fields, for formatters that keep them apart from the text."""
        if logger.isEnabledFor(level):
            extra = {"session_id": self._session_id, "turn_id": self._turn_id, **fields}
            logger.log(level, message, *values, extra=extra, stacklevel=2)

    def begin(self, base_url: str, *, stream: bool, message: str) -> None:
        """Take note that the turn is driven."""
        self._turn_id = os.urandom(6).hex()
        if "opentelemetry" in sys.modules and (otel := _load_otel()) is not None:
            with _harmless():
                self._span = otel.start_turn(
                    base_url, session_id=self._session_id, turn_id=self._turn_id, stream=stream, message=message
                )
        self.log(logging.DEBUG, "turn of %s begins", self._session_id)

    def request_headers(self) -> Mapping[str, str]:
        """Return what is sent along, so that the server's spans can belong to this one."""
        if self._span is not None:
            with _harmless():
                return self._span.headers()
        return {}

    def waits(self, reason: str, longest: float) -> None:
        """Take note of a wait for a rate limit."""
        self.log(
            logging.INFO,
            "%s waits for the rate limit, for %.0f s at the most",
            self._session_id,
            longest,
            reason=reason,
            seconds=longest,
        )
        if self._span is not None:
            with _harmless():
                self._span.waits(reason)

    def retries(self, attempt: int, error: AheadlessError, pause: float) -> None:
        """Take note that an attempt failed, and that there will be another one."""
        self.log(
            logging.WARNING,
            "attempt %d for %s failed (%s), next in %.1f s",
            attempt,
            self._session_id,
            error,
            pause,
            attempt=attempt,
            error_type=type(error).__name__,
            delivery=error.delivery.value,
            seconds=pause,
        )
        if self._span is not None:
            with _harmless():
                self._span.retries(attempt, error)

    def end(
        self,
        outcome: Reply | AheadlessError,
        *,
        status: MessageStatus,
        timings: Timings,
        conversation_id: str | None,
    ) -> None:
        """Take note of the turn's end, whatever it is; of one that never began there is nothing to tell."""
        if not self._turn_id:
            return
        failure = outcome if isinstance(outcome, AheadlessError) else None
        # Who stops a reply, leaves it or is cancelled wanted no more of it.
        wanted = failure is None or isinstance(failure, StreamStoppedError) or status == "cancelled"
        self.log(
            logging.DEBUG,
            "turn of %s is over: %s",
            self._session_id,
            status,
            status=status,
            error_type=None if wanted else type(failure).__name__,
            delivery=None if failure is None else failure.delivery.value,
            conversation_id=conversation_id,
            seconds=timings.queued + timings.total,
        )
        if self._span is not None:
            span, self._span = self._span, None
            with _harmless():
                span.end(outcome, status=status, wanted=wanted, timings=timings, conversation_id=conversation_id)


@contextlib.contextmanager
def _harmless() -> Generator[None]:
    """Whatever the application's exporters and propagators raise, it costs no reply and frees the session."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001 - see above
        logger.warning("telemetry failed: %s", type(exc).__name__)


@cache
def _load_otel() -> ModuleType | None:
    """Return the spans' module; None if what is installed under the name is not what they need."""
    try:
        from aheadless import _otel  # noqa: PLC0415 - an application without telemetry does not load it
    except ImportError:
        return None
    return _otel
