"""What an operator sees of a turn: one span whatever ends it, a few metrics, and log records with ids."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import attrs
import pytest
from opentelemetry import baggage, context, metrics, propagate, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes, server_attributes
from opentelemetry.trace import SpanKind, StatusCode

import aheadless._telemetry
from aheadless import AheadlessError, ChatClient, RateLimit, Reply, Retry, Start, StoreError, Timeouts, Token
from aheadless._exchange import Lease, SessionChange
from aheadless.protocol.events import Failure
from aheadless.stores import MemoryStore
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.support import ADMIN_KEY, KEY
from tests.test_readback import CUT_IN_TEXT, history, listing
from tests.test_stream import STALLED

QUESTION, ANSWER = "a question that is nobody's business", "an answer that is nobody's business"
JSON_REPLY = Script(json_answer({"conversationId": CONVERSATION_ID, "message": ANSWER}))
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"


class Telemetry:
    """An application's OpenTelemetry, with all that it got."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended."""
        return [*self.exporter.get_finished_spans()]

    @property
    def span(self) -> dict[str, Any]:
        """The attributes of the only span."""
        [span] = self.spans
        return dict(span.attributes or {})

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """What a metric has counted, or how often and how much it has measured, by its attributes."""
        data = self.reader.get_metrics_data()
        found: list[tuple[dict[str, Any], Any]] = []
        for scope in (scope for resource in data.resource_metrics for scope in resource.scope_metrics) if data else ():
            for metric in scope.metrics:
                for point in metric.data.data_points if metric.name == name else ():
                    if isinstance(point, HistogramDataPoint):
                        found.append((dict(point.attributes or {}), (point.count, point.sum)))
                    elif isinstance(point, NumberDataPoint):
                        found.append((dict(point.attributes or {}), point.value))
        return found


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    monkeypatch.delenv(CAPTURE, raising=False)
    made = Telemetry()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: made.tracers)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: made.meters)
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


# --- all the ends of a turn -------------------------------------------------------------------------------------------


@attrs.frozen
class Stage:
    """Where a turn is played."""

    scripted: ScriptedServer
    client: ChatClient

    async def stall(self) -> asyncio.Task[Reply]:
        """Return a reader of a reply that has begun, and does not go on."""
        self.scripted.add(STALLED)
        begun = asyncio.Event()
        stream = self.client.chat("s").stream(QUESTION, on_token=lambda _: begun.set())
        task = asyncio.ensure_future(stream.reply())
        await begun.wait()
        return task


async def whole(stage: Stage) -> None:
    await stage.client.chat("s").stream(QUESTION)


async def in_one_piece(stage: Stage) -> None:
    stage.scripted.add(JSON_REPLY)
    await stage.client.chat("s").send(QUESTION)


async def left_by_break(stage: Stage) -> None:
    async for _ in stage.client.chat("s").stream(QUESTION).text():
        break


async def left_by_break_in_a_block(stage: Stage) -> None:
    async with stage.client.chat("s").stream(QUESTION) as stream:
        async for _ in stream:
            break


async def dropped(stage: Stage) -> None:
    iterator = aiter(stage.client.chat("s").stream(QUESTION))
    await anext(iterator)
    del iterator
    gc.collect()


async def block_that_raises(stage: Stage) -> None:
    async with stage.client.chat("s").stream(QUESTION):
        raise ValueError


async def stopped(stage: Stage) -> None:
    task = await stage.stall()
    stage.client.chat("s").stop()
    await task


async def cancelled(stage: Stage) -> None:
    task = await stage.stall()
    task.cancel()
    await task


async def client_closed(stage: Stage) -> None:
    task = await stage.stall()
    await stage.client.aclose()
    await task


async def callback_that_raises(stage: Stage) -> None:
    def fail(_text: str) -> None:
        raise ValueError

    await stage.client.chat("s").stream(QUESTION, on_token=fail)


async def given_up(stage: Stage) -> None:
    stage.scripted.add(Script(stream_answer([Start(CONVERSATION_ID), Token(ANSWER), Failure("no model")])))
    await stage.client.chat("s").stream(QUESTION)


async def cut(stage: Stage) -> None:
    stage.scripted.add(CUT_IN_TEXT)
    await stage.client.chat("s").stream(QUESTION)


async def lost(stage: Stage) -> None:
    stage.scripted.add(Script(end="fin"))
    await stage.client.chat("s").stream(QUESTION)


async def wrong_key(stage: Stage) -> None:
    stage.scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))
    await stage.client.chat("s").send(QUESTION)


async def too_many(stage: Stage) -> None:
    stage.scripted.add(Script(json_answer({"error": "Too many requests"}, status=429)))
    await stage.client.chat("s").stream(QUESTION)


async def web_page(stage: Stage) -> None:
    stage.scripted.add(Script(json_answer("<html>")))
    await stage.client.chat("s").stream(QUESTION)


async def silence(stage: Stage) -> None:
    stage.scripted.add(STALLED)
    await stage.client.chat("s").stream(QUESTION, timeouts=Timeouts(idle=0.01))


async def nobody_there(stage: Stage) -> None:
    await stage.scripted.aclose()
    await stage.client.chat("s").stream(QUESTION)


async def other_loop(stage: Stage) -> None:
    with pytest.raises(AheadlessError):
        await stage.client.health()  # the answer is none, but the client belongs to this loop now
    await asyncio.to_thread(asyncio.run, stage.client.chat("s").send(QUESTION))


ENDS: dict[Callable[[Stage], Awaitable[None]], tuple[str, str | None]] = {
    whole: ("complete", None),
    in_one_piece: ("complete", None),
    left_by_break: ("interrupted", None),
    left_by_break_in_a_block: ("interrupted", None),
    dropped: ("interrupted", None),
    block_that_raises: ("interrupted", None),
    stopped: ("interrupted", None),
    cancelled: ("cancelled", None),
    client_closed: ("interrupted", "ClientClosedError"),
    callback_that_raises: ("interrupted", "StreamInterruptedError"),
    given_up: ("failed", "ReplyFailedError"),
    cut: ("interrupted", "StreamInterruptedError"),
    lost: ("unknown", "ConnectionLostError"),
    wrong_key: ("failed", "AuthenticationError"),
    too_many: ("failed", "RateLimitError"),
    web_page: ("unknown", "ProtocolError"),
    silence: ("interrupted", "RequestTimeoutError"),
    nobody_there: ("failed", "ConnectError"),
    other_loop: ("failed", "UsageError"),
}


async def play(end: Callable[[Stage], Awaitable[None]], stage: Stage) -> None:
    try:
        await end(stage)
    except (AheadlessError, ValueError, asyncio.CancelledError):
        pass


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_one_span_whatever_ends_the_turn(
    scripted: ScriptedServer,
    client: ChatClient,
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
    end: Callable[[Stage], Awaitable[None]],
) -> None:
    """It says how the turn ended, and is an error if this side did not want it so; the metrics and the log agree."""
    caplog.set_level(logging.DEBUG, "aheadless")
    status, error_type = ENDS[end]

    await play(end, Stage(scripted, client))

    [span] = telemetry.spans
    attributes = telemetry.span
    assert (span.name, span.kind) == ("chat", SpanKind.CLIENT)
    assert attributes["aheadless.turn.status"] == status
    assert attributes.get(error_attributes.ERROR_TYPE) == error_type
    assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
    assert span.status.description == error_type
    assert ("aheadless.delivery" in attributes) == (status != "complete")
    [(labels, (count, _))] = telemetry.points(gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION)
    assert (labels["aheadless.turn.status"], labels.get("error.type"), count) == (status, error_type, 1)
    [begun, *_, over] = [record for record in caplog.records if record.levelno == logging.DEBUG]
    assert (over.__dict__["status"], over.__dict__["error_type"]) == (status, error_type)
    assert begun.__dict__["turn_id"] == over.__dict__["turn_id"] == attributes["aheadless.turn.id"]
    told = [span.to_json(), str(telemetry.reader.get_metrics_data()), caplog.text]
    assert not any(secret in text for secret in (KEY, QUESTION, ANSWER) for text in told)


async def test_turns_in_a_queue(scripted: ScriptedServer, client: ChatClient, telemetry: Telemetry) -> None:
    """One that was refused, or stopped before its turn came, has its span; one that was never driven has none."""
    stage = Stage(scripted, client)
    chat = client.chat("s")
    live = await stage.stall()
    queued = chat.stream("2")
    waiting = asyncio.ensure_future(queued.reply())
    await asyncio.sleep(0)

    chat.stream("3").stop()
    await play(lambda _: chat.send("4", on_busy="reject"), stage)  # type: ignore[arg-type, return-value]
    queued.stop()
    chat.stop()
    await asyncio.gather(live, waiting, return_exceptions=True)

    assert [(dict(span.attributes or {})).get("error.type") for span in telemetry.spans] == [
        "SessionBusyError",
        None,
        None,
    ]


async def test_stored_reply(scripted: ScriptedServer, make_client: MakeClient, telemetry: Telemetry) -> None:
    """A stream that broke off and went on is one turn."""
    client = make_client(scripted.url, admin_key=ADMIN_KEY, recovery="auto")
    scripted.add(listing(), CUT_IN_TEXT, history(">Hi", "Hello"))

    assert (await client.chat("s").stream("Hi")).recovered

    assert telemetry.span["aheadless.recovered"] is True
    assert telemetry.span["aheadless.turn.status"] == "complete"


async def test_store_that_fails(scripted: ScriptedServer, make_client: MakeClient, telemetry: Telemetry) -> None:
    """A question that could not be saved was not sent, and its turn is over."""

    class FullStore(MemoryStore):
        async def save(self, change: SessionChange, lease: Lease) -> None:
            raise StoreError("disk full")

    client = make_client(scripted.url, store=FullStore())

    with pytest.raises(StoreError):
        await client.chat("s").stream("Hi")

    assert (telemetry.span["error.type"], telemetry.span["aheadless.delivery"]) == ("StoreError", "not_sent")


# --- what is on a span ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_attributes(scripted: ScriptedServer, client: ChatClient, telemetry: Telemetry, stream: bool) -> None:
    """They have the names of the conventions, and the times are those of the reply."""
    if not stream:
        scripted.add(JSON_REPLY)
    chat = client.chat("s")

    reply = await (chat.stream(QUESTION) if stream else chat.send(QUESTION))

    first_chunk = {gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: reply.timings.first_token} if stream else {}
    turn_id = telemetry.span["aheadless.turn.id"]
    assert telemetry.span == {
        gen_ai.GEN_AI_OPERATION_NAME: "chat",
        gen_ai.GEN_AI_PROVIDER_NAME: "headless",
        gen_ai.GEN_AI_CONVERSATION_ID: CONVERSATION_ID,
        gen_ai.GEN_AI_REQUEST_STREAM: stream,
        server_attributes.SERVER_ADDRESS: "127.0.0.1",
        server_attributes.SERVER_PORT: int(scripted.url.rpartition(":")[2]),
        "session.id": "s",
        "aheadless.turn.id": turn_id,
        "aheadless.turn.status": "complete",
        "aheadless.recovered": False,
        "aheadless.queued": reply.timings.queued,
        **first_chunk,
    }
    assert len(turn_id) == 12


@pytest.mark.parametrize("value", ["true", "SPAN_ONLY", "span_and_event"])
async def test_contents_if_wanted(
    scripted: ScriptedServer,
    client: ChatClient,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
) -> None:
    """The standard variable puts them on the spans, and nowhere else; of a reply that broke off, what had come."""
    monkeypatch.setenv(CAPTURE, value)
    scripted.add(JSON_REPLY, CUT_IN_TEXT)
    chat = client.chat("s")

    await chat.send(QUESTION)
    with pytest.raises(AheadlessError):
        await chat.stream(QUESTION)

    said = [
        [json.loads(str((span.attributes or {})[name])) for name in ("gen_ai.input.messages", "gen_ai.output.messages")]
        for span in telemetry.spans
    ]
    question = [{"role": "user", "parts": [{"type": "text", "content": QUESTION}]}]
    assert said == [
        [question, [{"role": "assistant", "parts": [{"type": "text", "content": text}], "finish_reason": reason}]]
        for text, reason in ((ANSWER, "stop"), ("Hel", "error"))
    ]


@pytest.mark.parametrize("value", ["", "false", "NO_CONTENT", "EVENT_ONLY", "yes please"])
async def test_contents_are_off(
    client: ChatClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Any other value leaves them out."""
    monkeypatch.setenv(CAPTURE, value)

    await client.chat("s").stream(QUESTION)

    assert not {"gen_ai.input.messages", "gen_ai.output.messages"} & {*telemetry.span}


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://chat.example.org/api", ("chat.example.org", 443)),
        ("http://localhost", ("localhost", 80)),
        ("http://[::1]:8080", ("::1", 8080)),
    ],
)
async def test_server(
    make_client: MakeClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, url: str, server: tuple[str, int]
) -> None:
    """Its name and port are those of the base URL."""
    client = make_client(url)

    async def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError

    monkeypatch.setattr("aiohttp.TCPConnector.connect", refuse)
    with pytest.raises(AheadlessError):
        await client.chat("s").stream("Hi")

    assert (telemetry.span["server.address"], telemetry.span["server.port"]) == server


# --- its place in a trace ---------------------------------------------------------------------------------------------


async def test_parent(client: ChatClient, telemetry: Telemetry) -> None:
    """It is the caller's current span, which stays the current one in the caller's loop and callbacks."""
    seen = []
    tracer = telemetry.tracers.get_tracer("the bot")
    stream = client.chat("s").stream("Hi", on_token=lambda _: seen.append(trace.get_current_span()))
    with tracer.start_as_current_span("handler") as handler:
        async for _ in stream:
            seen.append(trace.get_current_span())

    ours, theirs = telemetry.spans
    assert {*seen} == {handler}
    assert ours.parent == theirs.context
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_left_in_another_context(client: ChatClient, telemetry: Telemetry) -> None:
    """A turn that ends elsewhere than it began leaves no context behind, and no complaint."""
    stream = client.chat("s").stream("Hi")
    iterator = aiter(stream)
    await asyncio.ensure_future(anext(iterator))  # a task has a context of its own
    stream.stop()

    assert len(telemetry.spans) == 1
    assert context.get_current() == {}


async def test_headers(scripted: ScriptedServer, client: ChatClient, telemetry: Telemetry) -> None:
    """The server is told of our span, on every attempt and by either endpoint."""
    scripted.add(JSON_REPLY)
    await client.chat("s").send("Hi")
    await client.chat("s").stream("Hi")

    for span, request in zip(telemetry.spans, scripted.requests, strict=True):
        parent = propagate.extract({"traceparent": request.header("traceparent") or ""})
        found = trace.get_current_span(parent).get_span_context()
        assert span.context is not None
        assert (found.trace_id, found.span_id) == (span.context.trace_id, span.context.span_id)


async def test_headers_of_the_client_win(
    scripted: ScriptedServer, make_client: MakeClient, telemetry: Telemetry
) -> None:
    """Whoever sets such a header themselves keeps it; baggage travels as the propagator wants."""
    client = make_client(scripted.url, headers={"TraceParent": "mine"})
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        await client.chat("s").stream("Hi")
    finally:
        context.detach(token)

    [request] = scripted.requests
    assert [value for name, value in request.headers if name.lower() == "traceparent"] == ["mine"]
    assert request.header("baggage") == "tenant=blue"


# --- metrics ----------------------------------------------------------------------------------------------------------


async def test_durations(client: ChatClient, scripted: ScriptedServer, telemetry: Telemetry) -> None:
    """They are those of the replies, and a whole answer has no first chunk; no label grows with the users."""
    scripted.add(JSON_REPLY)
    replies: list[Reply] = [await client.chat("a").send("Hi")]
    replies += [await client.chat(f"user-{number}").stream("Hi") for number in range(3)]

    timings = [reply.timings for reply in replies]
    known = {"gen_ai.operation.name", "gen_ai.provider.name", "server.address", "server.port"}
    for name, labels, count, total in (
        (
            gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION,
            {*known, "aheadless.turn.status"},
            4,
            sum(timing.queued + timing.total for timing in timings),
        ),
        (
            gen_ai_metrics.GEN_AI_CLIENT_OPERATION_TIME_TO_FIRST_CHUNK,
            known,
            3,
            sum(timing.first_token or 0.0 for timing in timings),
        ),
        ("aheadless.client.queue.duration", known, 4, sum(timing.queued for timing in timings)),
    ):
        [(attributes, measured)] = telemetry.points(name)
        assert {*attributes} == labels
        assert measured == (count, pytest.approx(total))


async def test_retries_and_waits(scripted: ScriptedServer, make_client: MakeClient, telemetry: Telemetry) -> None:
    """They are counted, by their reason, and are events of the span."""
    client = make_client(
        scripted.url, retry=Retry(attempts=2, base=0.001), max_wait=20, rate_limit=RateLimit(1, per=0.01)
    )
    scripted.add(
        Script(json_answer({}, status=503, headers={"Retry-After": "0"})),
        Script(json_answer({}, status=429, headers={"Retry-After": "0.01"})),
    )

    await client.chat("s").stream("Hi")

    [(labels, count)] = telemetry.points("aheadless.client.retries")
    assert (labels["error.type"], count) == ("ServerError", 1)
    [(labels, count)] = telemetry.points("aheadless.client.waits")
    assert labels["aheadless.wait.reason"] in {"rate_limit", "cool_down"}
    assert count == 1
    [span] = telemetry.spans
    assert sorted(event.name for event in span.events) == ["aheadless.retry", "aheadless.wait"]


# --- switched off, broken, free of charge -----------------------------------------------------------------------------


def test_loads_nothing() -> None:
    """Importing the package, and having a turn without telemetry, loads no OpenTelemetry though it is installed."""
    code = """
import asyncio, sys
from aheadless import ChatClient
from aheadless.testing import ScriptedServer

async def main():
    async with ScriptedServer() as server, ChatClient(server.url, api_key="k") as client:
        await client.chat("s").stream("Hi")
        assert server.requests[0].header("traceparent") is None
    print(sorted(name for name in sys.modules if name.startswith("opentelemetry")), "aheadless._otel" in sys.modules)

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert ran.stdout == "[] False\n"


async def test_application_without_a_provider(scripted: ScriptedServer, client: ChatClient) -> None:
    """Where OpenTelemetry was imported but not set up, turns go on as ever, and nothing is sent along."""
    await client.chat("s").stream("Hi")

    assert scripted.requests[0].header("traceparent") is None


async def test_other_package_of_that_name(
    client: ChatClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what is installed is not what is needed, there is no telemetry, and a reply all the same."""
    aheadless._telemetry._load_otel.cache_clear()
    monkeypatch.delattr("aheadless._otel", raising=False)
    monkeypatch.setitem(sys.modules, "aheadless._otel", None)
    try:
        await client.chat("s").stream("Hi")
    finally:
        aheadless._telemetry._load_otel.cache_clear()

    assert telemetry.spans == []


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
async def test_broken_processor(
    client: ChatClient,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: str,
) -> None:
    """What the application's own parts raise costs no reply, and the session is free again."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError(QUESTION)

    processor = SpanProcessor()
    monkeypatch.setattr(processor, moment, fail)
    telemetry.tracers.add_span_processor(processor)

    for _ in range(2):
        assert (await client.chat("s").stream("Hi")).text == "Hello world"

    assert caplog.messages == ["telemetry failed: RuntimeError"] * 2


async def test_broken_propagator(
    client: ChatClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The message is sent without what it would have added."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(propagate, "inject", fail)

    assert (await client.chat("s").stream("Hi")).text == "Hello world"
    assert caplog.messages == ["telemetry failed: RuntimeError"]
    assert len(telemetry.spans) == 1


@pytest.mark.parametrize("loaded", [True, False])
async def test_tokens_are_free_of_charge(
    scripted: ScriptedServer, client: ChatClient, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    """However many come, telemetry and logging run as many calls as for one token; without them it is a handful."""
    if not loaded:
        monkeypatch.delitem(sys.modules, "opentelemetry")
    scripted.add(*(Script(stream_answer(events(*"x" * size))) for size in (1, 1, 500)))
    await client.chat("s").stream("Hi")  # what is made once is made

    async def count() -> int:
        calls = 0

        def note(frame: FrameType, event: str, _argument: object) -> None:
            nonlocal calls
            file = frame.f_code.co_filename  # OpenTelemetry's own run for these two
            calls += event == "call" and file.endswith(("_telemetry.py", "_otel.py"))

        sys.setprofile(note)
        try:
            await client.chat("s").stream("Hi")
        finally:
            sys.setprofile(None)
        return calls

    few, many = await count(), await count()

    assert few == many
    if not loaded:
        assert few < 10
        assert len(telemetry.spans) == 0


# --- the log ----------------------------------------------------------------------------------------------------------


async def test_records_of_a_turn(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has the session's and the turn's id; troubles are warnings, and the fields say what the text says."""
    caplog.set_level(logging.DEBUG, "aheadless")
    client = make_client(scripted.url, retry=Retry(attempts=2, base=0.001), max_wait=20)
    scripted.add(
        Script(json_answer({}, status=503, headers={"Retry-After": "0.01"})),
        Script(json_answer({}, status=429, headers={"Retry-After": "0.01"})),
    )

    reply = await client.chat("s").stream("Hi")

    fields = [record.__dict__ for record in caplog.records]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "turn of s begins"),
        ("WARNING", "attempt 1 for s failed (503: {}), next in 0.0 s"),
        ("WARNING", "the server refuses s for now (429)"),
        ("INFO", "s waits for the rate limit, for 20 s at the most"),
        ("DEBUG", "turn of s is over: complete"),
    ]
    assert {record["session_id"] for record in fields} == {"s"}
    assert len({record["turn_id"] for record in fields}) == 1
    assert (fields[1]["attempt"], fields[1]["error_type"], fields[1]["delivery"]) == (1, "ServerError", "rejected")
    assert fields[1]["seconds"] >= 0.01
    assert fields[3]["reason"] == "cool_down"
    assert fields[4]["conversation_id"] == CONVERSATION_ID
    assert fields[4]["seconds"] == pytest.approx(reply.timings.queued + reply.timings.total)
    assert {record.filename for record in caplog.records} == {"_question.py", "_telemetry.py"}


async def test_each_turn_has_its_id(client: ChatClient, caplog: pytest.LogCaptureFixture) -> None:
    """So that the records of one can be found among those of its session."""
    caplog.set_level(logging.DEBUG, "aheadless")

    for _ in range(3):
        await client.chat("s").stream("Hi")

    assert len({record.__dict__["turn_id"] for record in caplog.records}) == 3
