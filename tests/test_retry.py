"""When a message is sent again, and that it is never sent twice where it may have been stored."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    Retry,
    Retrying,
    ServerError,
    StreamInterruptedError,
    StreamStoppedError,
    Timeouts,
)
from aheadless._failures import MAX_RETRY_AFTER, parse_retry_after
from aheadless._pacing import pacer_for
from aheadless._retry import RetryBudget
from aheadless.testing import Script, ScriptedServer, head, json_answer
from tests.conftest import MakeClient
from tests.test_stream import FIRST

FAST = Retry(attempts=3, base=0.001, cap=0.002)
NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)


# --- the rules --------------------------------------------------------------------------------------------------------

NEVER: list[AheadlessError] = [
    ConnectError(permanent=True),
    AuthenticationError(),
    NotFoundError(),
    RejectedError(),
    RedirectError(),
    RateLimitError(),
    ProtocolError(),
    ReplyFailedError(),
    StreamInterruptedError(),
    StreamStoppedError(),
    ConfigurationError(),
]
SAFE: list[AheadlessError] = [
    ConnectError(),
    RequestTimeoutError(phase="connect", delivery=Delivery.NOT_SENT),
    ServerError(status=503, retry_after=1.0, delivery=Delivery.REJECTED),
]
RISKY: list[AheadlessError] = [ConnectionLostError(), RequestTimeoutError(phase="first_token"), ServerError(status=500)]


@pytest.mark.parametrize("error", NEVER + SAFE + RISKY, ids=lambda error: type(error).__name__)
def test_what_is_sent_again(error: AheadlessError) -> None:
    """What cannot have been stored; the rest only for those who accept duplicates; some things never."""
    assert Retry().allows(error, 1) is (error in SAFE)
    assert Retry(may_duplicate=True).allows(error, 1) is (error in SAFE + RISKY)


@given(st.integers(1, 6), st.integers(1, 8))
def test_attempts_are_bounded(attempts: int, attempt: int) -> None:
    """At most so many, whatever the error."""
    assert Retry(attempts).allows(ConnectError(), attempt) is (attempt < attempts)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pause(attempt: int, chance: float) -> None:
    """Full jitter: from nothing to a bound that doubles up to the cap."""
    retry = Retry(base=0.5, cap=8)

    assert retry.pause(attempt, lambda: chance) == chance * min(8, 0.5 * 2.0 ** min(attempt - 1, 100))


def test_pause_doubles() -> None:
    """Its bound is exactly twice the one before, for as long as the cap allows."""
    retry = Retry(base=1, cap=1e12)

    assert [retry.pause(attempt, lambda: 1.0) for attempt in range(1, 5)] == [1, 2, 4, 8]
    assert retry.pause(1000, lambda: 1.0) == 2**30
    assert retry.pause(3, lambda: 0.25) == 1


def test_budget() -> None:
    """Ten at once, then one for every ten messages that got through."""
    budget = RetryBudget()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]
    for _ in range(1000):
        budget.earn()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": True},
        {"attempts": 1.5},
        {"base": 0},
        {"cap": -1},
        {"base": math.nan},
        {"may_duplicate": 1},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    """Refused before anything is sent, by name."""
    with pytest.raises(ConfigurationError, match=f"^{next(iter(options))} must be "):
        Retry(**options)


# --- Retry-After ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("-3", 0.0),
        ("1e9", MAX_RETRY_AFTER),
        ("inf", MAX_RETRY_AFTER),
        ("-inf", 0.0),
        ("9" * 400, MAX_RETRY_AFTER),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2026 12:00:30 -0000", 30.0),
        ("Tue, 24 Nov 9999 12:00:30 GMT", MAX_RETRY_AFTER),
        ("Tue, 99 Nov 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    """A number or a date, capped; anything else says nothing."""
    assert parse_retry_after(value, NOW) == seconds


@given(st.text() | st.text("0123456789 ,:GMTnovTue-+.e"))
def test_retry_after_takes_anything(value: str) -> None:
    """A server writes it."""
    seconds = parse_retry_after(value, NOW)

    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


# --- on the wire ------------------------------------------------------------------------------------------------------


async def test_until_the_server_is_up(make_client: MakeClient) -> None:
    """A refused connection is tried again, and each event is given once."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    server = ScriptedServer()
    server._port = port
    told: list[Retrying] = []
    tokens: list[str] = []

    async def on_retry(retrying: Retrying) -> None:
        told.append(retrying)
        if len(told) == 2:
            await server.__aenter__()

    client = make_client(f"http://127.0.0.1:{port}", retry=FAST, on_retry=on_retry)
    reply = await client.chat("s").stream("Hi", on_token=tokens.append)
    await server.aclose()

    assert reply.text == "Hello world"
    assert tokens == ["Hello", " world"]
    assert [(retrying.session_id, retrying.attempt) for retrying in told] == [("s", 1), ("s", 2)]
    assert all(isinstance(retrying.error, ConnectError) and 0 <= retrying.delay <= 0.002 for retrying in told)
    assert len(server.stored) == 1
    assert [message.status for message in client.chat("s").messages] == ["complete", "complete"]


async def test_503_with_retry_after(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """It says when; without that it is a server that failed."""
    unavailable = {"error": "busy"}
    scripted.add(Script(json_answer(unavailable, status=503, headers={"Retry-After": "0"})))
    client = make_client(scripted.url, retry=FAST)

    assert (await client.chat("s").stream("Hi")).text == "Hello world"
    assert len(scripted.requests) == 2

    scripted.add(Script(json_answer(unavailable, status=503)))
    with pytest.raises(ServerError) as caught:
        await client.chat("s").stream("Hi")
    assert caught.value.delivery is Delivery.UNKNOWN
    assert len(scripted.requests) == 3


async def test_503_that_asks_for_too_much(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """A pause longer than `max_wait` is not waited out: who asked is told at once."""
    scripted.add(Script(json_answer({"error": "busy"}, status=503, headers={"Retry-After": "3"})))
    client = make_client(scripted.url, retry=FAST, max_wait=2)

    with pytest.raises(ServerError) as caught:
        await client.chat("s").stream("Hi")

    assert (caught.value.retry_after, caught.value.delivery) == (3.0, Delivery.REJECTED)
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script(end="fin"),
        Script(end="rst"),
        Script(head(200)[:20], end="fin"),
        Script(json_answer({}, status=500)),
        Script(json_answer({}, status=502)),
        Script(json_answer({}, status=401)),
        Script(json_answer({}, status=400)),
        Script(end="stall"),
        Script(FIRST, end="fin"),
    ],
)
async def test_what_may_have_arrived_is_not_sent_again(
    scripted: ScriptedServer, make_client: MakeClient, script: Script
) -> None:
    """One request, whatever happens to it."""
    scripted.add(script)
    client = make_client(scripted.url, retry=FAST, timeouts=Timeouts(first_token=0.05))

    with pytest.raises(AheadlessError):
        await client.chat("s").stream("Hi")

    assert len(scripted.requests) == 1


async def test_opting_in_to_duplicates(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Named so that one sees the risk; but never once a byte of the answer has come."""
    client = make_client(scripted.url, retry=Retry(attempts=3, base=0.001, may_duplicate=True))
    scripted.add(Script(end="fin"), Script(json_answer({}, status=500)))

    assert (await client.chat("s").stream("Hi")).text == "Hello world"
    assert len(scripted.stored) == 3

    scripted.add(Script(FIRST, end="fin"))
    with pytest.raises(StreamInterruptedError):
        await client.chat("s").stream("Hi")
    assert len(scripted.stored) == 4


async def test_budget_of_a_client(make_client: MakeClient) -> None:
    """A server that is down is not asked three times by everyone."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    told: list[Retrying] = []
    client = make_client(f"http://127.0.0.1:{port}", retry=FAST, on_retry=told.append)

    for number in range(10):
        with pytest.raises(ConnectError):
            await client.chat(str(number)).stream("Hi")

    assert len(told) == 10


async def test_stopped_between_two_attempts(make_client: MakeClient) -> None:
    """The pause can be stopped; nothing was sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    told: list[Retrying] = []
    waits = asyncio.Event()

    def on_retry(retrying: Retrying) -> None:
        told.append(retrying)
        waits.set()

    client = make_client(f"http://127.0.0.1:{port}", retry=Retry(base=1000, cap=1000), on_retry=on_retry)
    chat = client.chat("s")
    task = asyncio.create_task(chat.stream("Hi").reply())
    await waits.wait()
    await asyncio.sleep(0)
    chat.stop()

    with pytest.raises(StreamStoppedError) as caught:
        await task
    assert caught.value.delivery is Delivery.NOT_SENT
    assert len(told) == 1
    assert not chat.busy


async def test_stopped_as_the_pause_ends(
    scripted: ScriptedServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that was ended sends nothing any more, although its pause is over before it can be woken up."""
    monkeypatch.setattr("random.random", lambda: 0.0)
    scripted.add(Script(json_answer({"error": "busy"}, status=503, headers={"Retry-After": "0"})))

    def on_retry(_: Retrying) -> None:
        asyncio.get_running_loop().call_soon(stream.stop)  # just before the task goes on, and just after it could

    client = make_client(scripted.url, retry=Retry(attempts=2), on_retry=on_retry)
    stream = client.chat("s").stream("Hi")

    with pytest.raises(StreamStoppedError) as caught:
        await stream
    await client.chat("other").stream("Hi")  # on the same connection: what was sent before would be there

    assert caught.value.delivery is Delivery.REJECTED
    assert [json.loads(request.body)["sessionId"] for request in scripted.requests] == ["s", "other"]
    assert scripted.connections == 1
    assert pacer_for(scripted.url)._in_flight == 0
