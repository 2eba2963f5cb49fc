"""Spans and metrics of OpenTelemetry: the only module that imports it, and only `_telemetry` imports this one.

Names are those of the GenAI conventions (opentelemetry-semantic-conventions 0.66b2); those of our own begin with
`aheadless.`. Metrics carry nothing that grows with the number of users.
"""

from __future__ import annotations

import json
import os
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import urlsplit

import attrs
from opentelemetry import metrics, propagate, trace

from aheadless._version import __version__
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from aheadless._session import MessageStatus, Reply, Timings

__all__ = ["TurnSpan", "start_turn"]

_Attributes: TypeAlias = "dict[str, str | bool | int | float]"

# In seconds, as the conventions want them; the SDK's own are meant for milliseconds.
_BUCKETS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

_WITH_CONTENTS: Final = frozenset({"true", "span_only", "span_and_event"})


@attrs.frozen
class _Instruments:
    """What spans and metrics are made with, of one pair of providers."""

    tracer: trace.Tracer
    duration: metrics.Histogram
    first_chunk: metrics.Histogram
    queued: metrics.Histogram
    retries: metrics.Counter
    waits: metrics.Counter


# The application sets its providers once, though maybe after the first turn.
@lru_cache(maxsize=1)
def _instruments(tracers: trace.TracerProvider, meters: metrics.MeterProvider) -> _Instruments:
    meter = meters.get_meter("aheadless", __version__)

    def histogram(name: str, description: str) -> metrics.Histogram:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=_BUCKETS)

    return _Instruments(
        tracers.get_tracer("aheadless", __version__),
        histogram("gen_ai.client.operation.duration", "GenAI operation duration."),
        histogram("gen_ai.client.operation.time_to_first_chunk", "From the request to the reply's first token."),
        histogram("aheadless.client.queue.duration", "Waiting for the session and the rate limit."),
        meter.create_counter("aheadless.client.retries", "{retry}", "Messages that were sent again."),
        meter.create_counter("aheadless.client.waits", "{wait}", "Turns that had to wait for a rate limit."),
    )


@cache
def _server(base_url: str) -> _Attributes:
    parts = urlsplit(base_url)
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "headless",
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def start_turn(base_url: str, *, session_id: str, turn_id: str, stream: bool, message: str) -> TurnSpan:
    """Return the span of a turn that begins now; its parent is the caller's current span. End it once."""
    instruments = _instruments(trace.get_tracer_provider(), metrics.get_meter_provider())
    known = _server(base_url)
    contents = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").lower() in _WITH_CONTENTS
    span = instruments.tracer.start_span(
        "chat",
        kind=trace.SpanKind.CLIENT,
        attributes={
            **known,
            "gen_ai.request.stream": stream,
            "session.id": session_id,
            "aheadless.turn.id": turn_id,
            **({"gen_ai.input.messages": _message("user", message)} if contents else {}),
        },
    )
    return TurnSpan(span, instruments, known, stream=stream, contents=contents)


class TurnSpan:
    """One turn as a span, and what its end adds to the metrics.

    It is never made the current span: what the caller does between two events belongs to the caller's.
    """

    def __init__(
        self, span: trace.Span, instruments: _Instruments, known: _Attributes, *, stream: bool, contents: bool
    ) -> None:
        self._span = span
        self._instruments = instruments
        self._known = known
        self._stream = stream
        self._contents = contents
        self._context: Context = trace.set_span_in_context(span)  # for exemplars and the server; not attached

    def headers(self) -> dict[str, str]:
        """Return the headers that let the server's spans belong to this one, as the application's propagator wants."""
        carrier: dict[str, str] = {}
        if self._span.get_span_context().is_valid:
            propagate.inject(carrier, self._context)
        return carrier

    def waits(self, reason: str) -> None:
        """Count a wait for a rate limit."""
        self._span.add_event("aheadless.wait", {"aheadless.wait.reason": reason})
        self._instruments.waits.add(1, {**self._known, "aheadless.wait.reason": reason}, self._context)

    def retries(self, attempt: int, error: AheadlessError) -> None:
        """Count an attempt that failed and is followed by another one."""
        kind = type(error).__name__
        self._span.add_event("aheadless.retry", {"aheadless.attempt": attempt, "error.type": kind})
        self._instruments.retries.add(1, {**self._known, "error.type": kind}, self._context)

    def end(
        self,
        outcome: Reply | AheadlessError,
        *,
        status: MessageStatus,
        wanted: bool,
        timings: Timings,
        conversation_id: str | None,
    ) -> None:
        """Record how the turn ended. `wanted`: whether this side wanted that, so that it is no failure."""
        recorded: _Attributes = {"aheadless.turn.status": status}
        if not wanted:
            assert isinstance(outcome, AheadlessError)  # noqa: S101 - a reply is wanted
            recorded["error.type"] = type(outcome).__name__
            self._span.set_status(trace.StatusCode.ERROR, type(outcome).__name__)
        self._record(recorded, timings)
        self._describe(recorded, outcome, timings, conversation_id)
        self._span.end()

    def _record(self, recorded: _Attributes, timings: Timings) -> None:
        instruments = self._instruments
        instruments.duration.record(timings.queued + timings.total, {**self._known, **recorded}, self._context)
        instruments.queued.record(timings.queued, self._known, self._context)
        if timings.first_token is not None:
            instruments.first_chunk.record(timings.first_token, self._known, self._context)

    def _describe(
        self, recorded: _Attributes, outcome: Reply | AheadlessError, timings: Timings, conversation_id: str | None
    ) -> None:
        if not self._span.is_recording():
            return
        described = {**recorded, "aheadless.queued": timings.queued}
        if timings.first_token is not None:
            described["gen_ai.response.time_to_first_chunk"] = timings.first_token
        if conversation_id is not None:
            described["gen_ai.conversation.id"] = conversation_id
        if isinstance(outcome, AheadlessError):
            described["aheadless.delivery"] = outcome.delivery.value
        else:
            described["aheadless.recovered"] = outcome.recovered
        if self._contents:
            finish = "error" if isinstance(outcome, AheadlessError) else "stop"
            text = outcome.partial if isinstance(outcome, AheadlessError) else outcome.text
            described["gen_ai.output.messages"] = _message("assistant", text, finish_reason=finish)
        self._span.set_attributes(described)


def _message(role: str, text: str, **more: str) -> str:
    """Return one message in the form that the conventions give to contents."""
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}], **more}], ensure_ascii=False)
