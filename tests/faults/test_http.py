"""Rows 18 to 35 of the guarantees: answers that are no HTTP, no success, no stream, or not what they say they are."""

from __future__ import annotations

import asyncio
import tracemalloc
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest

from aheadless import (
    AuthenticationError,
    ChatClient,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    Retrying,
    ServerError,
    StatusError,
    StreamInterruptedError,
)
from aheadless.testing import (
    Script,
    ScriptedServer,
    chunked,
    events,
    gzip_bomb,
    gzipped,
    head,
    json_answer,
    lines,
    stream_answer,
)
from tests.conftest import MakeClient
from tests.faults.asking import AC, HELLO, REST, RJ, UN, WHOLE, fail, now, virtually
from tests.support import KEY
from tests.test_http import chain

HEAD = head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"})
REFUSAL = {"error": "no \x1b way"}


@pytest.fixture
def client(scripted: ScriptedServer, make: MakeClient) -> ChatClient:
    """A client that may try three times."""
    return make(scripted.url)


# --- no HTTP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"HELLO\r\n\r\n", "Bad status line:"),
        (b"HTTP/1.1 twohundred OK\r\n\r\n", "Bad status line:"),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "Bad status line:"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 8191 + b"\r\n\r\n", "Got more than 8190 bytes"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "Invalid"),
    ],
)
async def test_head_is_no_http(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], data: bytes, said: str
) -> None:
    """Row 18: aiohttp gives it the status 400, which the server never said."""
    scripted.add(Script(data, end="fin"))

    error = await fail(client, ProtocolError, UN)

    assert str(error).startswith(f"the answer is not HTTP: {said}")
    assert "400" not in str(error)
    assert "bad request" not in str(error).lower()
    assert retries == []
    assert len(scripted.stored) == 1


@pytest.mark.parametrize(("count", "partial", "delivery"), [(0, "", UN), (1, "", AC), (2, "Hel", AC), (3, "Hello", AC)])
@pytest.mark.parametrize("bad", [b"zz\r\noops\r\n", b"-5\r\n", b"\r\n", b"fffffffffffffffff\r\n"])
async def test_bad_chunk_size(
    scripted: ScriptedServer,
    client: ChatClient,
    retries: list[Retrying],
    count: int,
    partial: str,
    delivery: Any,
    bad: bytes,
) -> None:
    """Row 18: what came before it is not lost, though it came in the same packet, unless the head did so, too."""
    gate = asyncio.Event()
    scripted.add(Script(HEAD + chunked(lines(HELLO[:count]), last=False) + bad, gates={len(HEAD): gate}, end="fin"))
    asyncio.get_running_loop().call_soon(gate.set)

    error = await fail(client, ProtocolError, delivery, partial=partial)

    assert "bad request" not in str(error).lower()
    assert retries == []
    assert len(scripted.stored) == 1


async def test_bad_chunk_size_in_one_packet_with_the_head(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 18: here aiohttp (3.14.5) gives out nothing of what it had read, so nothing can be said of it."""
    scripted.add(Script(HEAD + chunked(lines(HELLO[:2]), last=False) + b"zz\r\n", end="fin"))

    error = await fail(client, ProtocolError, UN)

    assert str(error).startswith("the answer is not HTTP: Invalid character in chunk size")


# --- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("json", [False, True])
async def test_redirect(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], status: int, json: bool
) -> None:
    """Row 19: not even a connection to where it points is made."""
    async with ScriptedServer() as other:
        target = f"{other.url}/v1/chat/stream"
        scripted.add(Script(json_answer("", status=status, headers={"Location": target})))

        error = await fail(client, RedirectError, RJ, json=json)

        assert other.connections == 0
    assert str(error) == f"{status}: a redirect to {target} is not followed"
    assert error.status == status
    assert retries == []
    assert len(scripted.requests) == 1
    assert scripted.stored == []


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        (400, RejectedError, ""),
        (413, RejectedError, ""),
        (415, RejectedError, ""),
        (422, RejectedError, ""),
        (401, AuthenticationError, " (check the API key)"),
        (403, AuthenticationError, " (check the API key)"),
        (404, NotFoundError, " (check the base URL)"),
        (405, NotFoundError, " (check the base URL)"),
    ],
)
@pytest.mark.parametrize("json", [False, True])
async def test_refused(
    scripted: ScriptedServer,
    client: ChatClient,
    retries: list[Retrying],
    status: int,
    kind: type[StatusError],
    hint: str,
    json: bool,
) -> None:
    """Rows 20 to 22: refused before it was stored, and of no use to be tried again."""
    scripted.add(Script(json_answer(REFUSAL, status=status)))

    error = await fail(client, kind, RJ, json=json)

    assert str(error) == f"{status}: no \\x1b way{hint}"
    assert (error.status, error.detail) == (status, "no \\x1b way")
    assert retries == []
    assert len(scripted.requests) == 1
    assert scripted.stored == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    "body", [{"error": f"{KEY} is no key"}, f"<pre>x-api-key: {KEY}\n</pre>", {"error": {"key": KEY}}]
)
async def test_refusal_that_repeats_the_key(
    scripted: ScriptedServer, client: ChatClient, status: int, body: object
) -> None:
    """Row 21: the key is not shown, not even if the server does so."""
    scripted.add(Script(json_answer(body, status=status)))

    error = await fail(client, AuthenticationError, RJ)

    assert "***" in error.detail
    for item in chain(error):
        assert KEY not in f"{item!r} {item} {item.__dict__}"


def test_bare_429() -> None:
    """Row 23: turns wait behind one cool-down, for 75 s at the most, and only one at a time asks again."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        others = [asyncio.create_task(client.chat(str(number)).stream("Hi").reply()) for number in range(5)]
        error = await fail(client, RateLimitError, RJ)

        assert error.status == 429
        assert 60 < now() <= 75
        found = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(item, RateLimitError) for item in found)
        assert now() <= 75.1
        # Six that were on their way when the first refusal came, and then one every 2 to 10 s.
        assert 6 + 7 <= len(server.requests) <= 6 + 25
        assert server.stored == []
        assert retries == []

    virtually(scenario, *[Script(json_answer(REFUSAL, status=429))] * 100)


def test_429_that_ends() -> None:
    """Row 23: the message is sent again by itself, and stored once."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        assert (await client.chat("s").stream("Hi")).text == "Hello world"

        assert 2 <= now() <= 2 + 4 + 8
        assert len(server.requests) == 4
        assert len(server.stored) == 1
        assert retries == []

    virtually(scenario, *[Script(json_answer(REFUSAL, status=429))] * 3)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("1.5", 1.5),
        ("-3", 0),
        ("nan", None),
        ("1e9", 3600),
        ("inf", 3600),
        ("9" * 400, 3600),
        ("Mon, 01 Jan 1990 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
        ("soon", None),
        ("\xff\xfe", None),
        ("", None),
    ],
)
async def test_429_with_retry_after(
    scripted: ScriptedServer, client: ChatClient, value: str, seconds: float | None
) -> None:
    """Row 24: a number or a date between 0 and 3600 s from now; anything else says nothing."""
    scripted.add(*[Script(json_answer(REFUSAL, status=429, headers={"Retry-After": value}))] * 9)

    error = await fail(client, RateLimitError, RJ)

    assert error.retry_after == seconds
    # This client does not wait; but for "now" nobody has to, the first time.
    assert len(scripted.requests) == (2 if seconds == 0 else 1)
    assert scripted.stored == []


def test_429_that_says_now_for_ever() -> None:
    """Row 24: it is taken at its word once; then the pauses are ours."""

    async def scenario(server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        error = await fail(client, RateLimitError, RJ)

        assert error.retry_after == 0
        assert 60 < now() <= 75
        assert len(server.requests) < 30

    virtually(scenario, *[Script(json_answer(REFUSAL, status=429, headers={"Retry-After": "0"}))] * 1000)


async def test_429_with_a_date(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 24: a date is as far away as it is."""
    date = datetime.now(timezone.utc) + timedelta(seconds=1000)
    scripted.add(Script(json_answer(REFUSAL, status=429, headers={"Retry-After": format_datetime(date, usegmt=True)})))

    error = await fail(client, RateLimitError, RJ)

    assert error.retry_after is not None
    assert 900 < error.retry_after <= 1000


@pytest.mark.parametrize(("value", "waited"), [("7", 7), ("70", 70)])
def test_retry_after_is_waited_for(value: str, waited: float) -> None:
    """Row 24: exactly as long as the server said."""

    async def scenario(server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        assert (await client.chat("s").stream("Hi")).text == "Hello world"
        assert now() == pytest.approx(waited, abs=0.1)
        assert len(server.stored) == 1

    virtually(scenario, Script(json_answer(REFUSAL, status=429, headers={"Retry-After": value})))


@pytest.mark.parametrize("value", ["76", "1e9"])
def test_retry_after_that_is_too_long(value: str) -> None:
    """Row 24: who would have to wait for longer than `max_wait` is told so at once."""

    async def scenario(server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        await fail(client, RateLimitError, RJ)
        assert now() < 0.1
        assert len(server.requests) == 1

    virtually(scenario, Script(json_answer(REFUSAL, status=429, headers={"Retry-After": value})))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
@pytest.mark.parametrize("json", [False, True])
async def test_server_error(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], status: int, json: bool
) -> None:
    """Rows 25 and 26: the message may have been stored before the server failed."""
    scripted.add(Script(json_answer(REFUSAL, status=status)))

    error = await fail(client, ServerError, UN, json=json)

    assert str(error) == f"{status}: no \\x1b way"
    assert retries == []
    assert len(scripted.stored) == 1


@pytest.mark.parametrize("value", ["0", "3", "Mon, 01 Jan 1990 00:00:00 GMT"])
def test_503_that_names_a_time(value: str) -> None:
    """Row 26: it has turned the message away, and is asked again when it says so."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        assert (await client.chat("s").stream("Hi")).text == "Hello world"

        assert now() == pytest.approx(3 if value == "3" else 0, abs=0.1)
        assert [type(retry.error) for retry in retries] == [ServerError]
        assert len(server.requests) == 2
        assert len(server.stored) == 1

    virtually(scenario, Script(json_answer(REFUSAL, status=503, headers={"Retry-After": value})))


async def test_503_that_names_a_time_three_times(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying]
) -> None:
    """Row 26: no more often than a message is sent."""
    scripted.add(*[Script(json_answer(REFUSAL, status=503, headers={"Retry-After": "0"}))] * 3)

    await fail(client, ServerError, RJ)

    assert len(retries) == 2
    assert len(scripted.requests) == 3
    assert scripted.stored == []


@pytest.mark.parametrize("status", [101, 999, 201, 206, 600])
async def test_status_of_no_meaning(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], status: int
) -> None:
    """Row 29: it says neither that all is well nor that it is not."""
    fields = {"Upgrade": "x", "Connection": "upgrade"} if status == 101 else {"Content-Length": "2"}
    scripted.add(Script(head(status, fields) + b"no", end="fin"))

    error = await fail(client, ProtocolError, UN)

    assert str(error).startswith(f"{status} is no answer of this API: ")
    assert retries == []
    assert len(scripted.stored) == 1


@pytest.mark.parametrize("count", [1, 3])
async def test_early_hints(scripted: ScriptedServer, client: ChatClient, count: int) -> None:
    """Row 30: they are passed over."""
    scripted.add(Script(head(103, {"Link": "</a.css>; rel=preload"}) * count + WHOLE))

    assert [event async for event in client.chat("s").stream("Hi")] == HELLO
    assert len(scripted.stored) == 1


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("<html>\n<h1>Log in\x1b[2J</h1>", "<html>\\n<h1>Log in\\x1b[2J</h1>"),
        ("<p>" * 100, "<p>" * 66 + "<…"),
        ("\n" * 200, ""),
        ("<\u2028>" * 60, ("<\\u2028>" * 60)[:199] + "…"),
    ],
)
@pytest.mark.parametrize("json", [False, True])
async def test_web_page(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], page: str, shown: str, json: bool
) -> None:
    """Row 27: what a captive portal says is shown, on one line, and not at length."""
    scripted.add(Script(json_answer(page)))

    error = await fail(client, ProtocolError, UN, json=json)

    assert str(error) == f"expected a chat answer, got a web page: {shown}"
    assert len(shown) <= 200
    assert retries == []


@pytest.mark.parametrize(
    "data",
    [
        head(204),
        head(204, {"Content-Length": "0"}),
        head(200, {"Content-Length": "0"}),
        HEAD + chunked([]),
        HEAD + chunked([b"\n\r\n"]),
        head(200, {"Connection": "close"}),
    ],
)
async def test_empty_body(scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], data: bytes) -> None:
    """Row 28: a success without a stream is a stream that broke off."""
    scripted.add(Script(data, end="fin"))

    error = await fail(client, StreamInterruptedError, UN)

    assert str(error) == "the stream ended without `done` or `error`"
    assert retries == []
    assert len(scripted.stored) == 1


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"<p>", b"[" * 100_000, b'{"error": 5}', b'"a"', b"null"])
@pytest.mark.parametrize(
    ("status", "kind", "delivery"), [(401, AuthenticationError, RJ), (429, RateLimitError, RJ), (500, ServerError, UN)]
)
async def test_error_body_is_no_json(
    scripted: ScriptedServer,
    client: ChatClient,
    body: bytes,
    status: int,
    kind: type[StatusError],
    delivery: Any,
) -> None:
    """Row 31: the status counts."""
    scripted.add(Script(json_answer(body, status=status)))

    error = await fail(client, kind, delivery)

    assert error.status == status
    assert len(error.detail) <= 200


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_error_body_is_cut(scripted: ScriptedServer, client: ChatClient, end: Any) -> None:
    """Row 31: the status counts, whatever becomes of the rest."""
    scripted.add(Script(json_answer(REFUSAL, status=401)).cut(-3, end))

    error = await fail(client, AuthenticationError, RJ)

    assert error.status == 401


async def test_error_body_is_large(scripted: ScriptedServer, make: MakeClient) -> None:
    """Row 31: of 100 MB about 64 KiB are read, and no more than the buffers on the way hold."""
    scripted.add(Script(head(500, {"Content-Length": "100000000"}), drip=b"x" * 65536, interval=0))
    read: list[aiohttp.StreamReader] = []

    async def ended(_session: object, _context: object, params: aiohttp.TraceRequestEndParams) -> None:
        read.append(params.response.content)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(ended)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        error = await fail(make(scripted.url, session=session), ServerError, UN)

        await scripted.requests[0].left.wait()
    assert error.detail == "x" * 199 + "…"
    assert 65536 <= read[0].total_bytes <= 1024 * 1024


def test_error_body_is_slow() -> None:
    """Row 31: after 5 s the status has to do."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        error = await fail(client, ServerError, UN)

        assert error.status == 500
        assert now() == pytest.approx(5, abs=0.1)
        assert retries == []
        await server.requests[0].left.wait()

    virtually(scenario, Script(head(500, {"Content-Length": "1000"}), drip=b"x", interval=1))


# --- gzip -------------------------------------------------------------------------------------------------------------

GZIP = {"Content-Encoding": "gzip"}
PACKED = gzipped(b"".join(lines(HELLO)))


async def test_gzip(scripted: ScriptedServer, client: ChatClient) -> None:
    """Rows 32 to 34, the other side of it: nobody asked for it, but a proxy's gzip is read."""
    scripted.add(Script(stream_answer([PACKED], headers=GZIP)))

    assert [event async for event in client.chat("s").stream("Hi")] == HELLO
    assert scripted.requests[0].header("accept-encoding") == "identity"


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
async def test_gzip_is_cut(scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], framing: Any) -> None:
    """Row 32: the HTTP body is whole, but what is in it is not. test_delivery.py has the cuts at every byte."""
    cut = gzipped(b"".join(lines(HELLO[:2])))[:-8]
    scripted.add(Script(stream_answer([cut], headers=GZIP, framing=framing), end="fin"))

    await fail(client, StreamInterruptedError, AC, partial="Hel")

    assert retries == []
    assert len(scripted.stored) == 1


async def test_gzip_is_cut_at_once(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 32: before `start` could be read nothing is known."""
    scripted.add(Script(stream_answer([PACKED[:12]], headers=GZIP), end="fin"))

    await fail(client, StreamInterruptedError, UN)


@pytest.mark.parametrize(("good", "partial", "delivery"), [(0, "", UN), (2, "Hel", AC)])
async def test_gzip_is_corrupt(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], good: int, partial: str, delivery: Any
) -> None:
    """Row 33: what could be read of it is not lost."""
    gate = asyncio.Event()
    data = head(200, {**GZIP, "Transfer-Encoding": "chunked"})
    if good:
        data += chunked([gzip_start(b"".join(lines(HELLO[:good])))], last=False)
    scripted.add(Script(data + chunked([b"no gzip"]), gates={len(data): gate}))
    asyncio.get_running_loop().call_later(0.01, gate.set)

    error = await fail(client, ProtocolError, delivery, partial=partial)

    assert str(error).startswith("the body cannot be decoded: ")
    assert retries == []
    assert len(scripted.stored) == 1


def gzip_start(data: bytes) -> bytes:
    """Return gzip that is whole up to here and goes on."""
    import zlib

    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize("encoding", ["rot13", "br", "zstd", "deflate"])
async def test_unknown_content_encoding(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], encoding: str
) -> None:
    """Row 33: bytes that are no lines of JSON, or a coding that is not at hand."""
    scripted.add(Script(stream_answer([b"\x8b\x05\x80{}\n"], headers={"Content-Encoding": encoding})))

    await fail(client, ProtocolError, UN)

    assert retries == []
    assert len(scripted.stored) == 1


async def test_gzip_bomb(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 34: 1 GiB in 1 MiB, after a good start; it is read up to the cap of a line and no further."""
    first = gzip_start(b"".join(lines(HELLO[:2])))
    bomb = first + gzip_bomb(1024)[10:]  # without a second header
    scripted.add(Script(stream_answer([bomb], headers=GZIP)))

    tracemalloc.start()
    try:
        error = await fail(client, ProtocolError, AC, partial="Hel")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert str(error) == "line 3: a line is longer than 8388608 bytes"
    assert peak < 64 * 1024 * 1024
    await scripted.requests[0].left.wait()


# --- after the body ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("more", [stream_answer(events("not yours")), json_answer({}, status=500), b"garbage\r\n\r\n"])
async def test_bytes_after_the_body(scripted: ScriptedServer, client: ChatClient, more: bytes, late: bool) -> None:
    """Row 35: they are not taken for the answer to the next question, whether they come at once or while it is idle."""
    gate = asyncio.Event()
    data, first = WHOLE + more, len(WHOLE) if late else WHOLE.index(REST)
    scripted.add(Script(data, gates={first: gate}, end="stall"))
    chat = client.chat("s")

    assert (await chat.stream("Hi", on_token=None if late else lambda _: gate.set())).text == "Hello"
    if late:
        connector: Any = client._core.transport._session.connector  # type: ignore[union-attr]
        while not connector._conns:
            await asyncio.sleep(0)
        ((protocol, _),) = next(iter(connector._conns.values()))
        gate.set()
        while protocol.is_connected() and not protocol.should_close:
            await asyncio.sleep(0)

    assert (await chat.stream("Hi")).text == "Hello world"
    assert scripted.connections == len(scripted.stored) == 2
    await scripted.requests[0].left.wait()


async def test_bytes_after_done(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 35: within the body, too, if that goes on."""
    scripted.add(Script(WHOLE.removesuffix(b"0\r\n\r\n") + chunked([b"oops\n"], last=False), end="stall"))
    chat = client.chat("s")

    assert (await chat.stream("Hi")).text == "Hello"
    await scripted.requests[0].left.wait()
    assert (await chat.stream("Hi")).text == "Hello world"

    assert scripted.connections == len(scripted.stored) == 2
