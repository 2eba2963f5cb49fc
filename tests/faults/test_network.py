"""Rows 1 to 17 of the guarantees: connections that fail, break, stall and dribble."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import aiohttp
import aiohttp.connector
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from aheadless import (
    ChatClient,
    ConnectError,
    ConnectionLostError,
    RequestTimeoutError,
    Retrying,
    StreamInterruptedError,
    Timeouts,
    Token,
)
from aheadless.testing import Script, ScriptedServer, chunked, events, lines, stream_answer
from tests.conftest import MakeClient
from tests.faults.asking import AC, FIRST, HELLO, NS, UN, WHOLE, fail, now, virtually

ENDS = pytest.mark.parametrize("end", ["fin", "rst"])


@pytest.fixture
def client(scripted: ScriptedServer, make: MakeClient) -> ChatClient:
    """A client that may try three times."""
    return make(scripted.url)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, so that nobody else gets it, and at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def client_context(*authorities: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in authorities:
        authority.configure_trust(context)
    return context


# --- before there is a connection -------------------------------------------------------------------------------------


async def test_connection_refused(make: MakeClient, retries: list[Retrying], closed_port: int) -> None:
    """Row 1: it is tried again, after a pause that chance decides."""
    url = f"http://127.0.0.1:{closed_port}"

    error = await fail(make(url), ConnectError, NS)

    assert str(error).startswith(f"cannot connect to {url}: ")
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert not error.permanent
    assert [retry.attempt for retry in retries] == [1, 2]
    assert all(isinstance(retry.error, ConnectError) and 0 <= retry.delay <= 0.001 for retry in retries)


async def test_host_is_unknown(make: MakeClient, retries: list[Retrying]) -> None:
    """Row 2: a name that is reserved for not existing. A resolver that is out of order may know better a moment later."""
    error = await fail(make("https://nowhere.invalid", timeouts=Timeouts(connect=None)), ConnectError, NS)

    assert str(error).startswith("the host of https://nowhere.invalid is not known: ")
    assert [retry.attempt for retry in retries] == [1, 2]


@pytest.mark.parametrize("wrong", ["authority", "name"])
async def test_bad_certificate(make: MakeClient, retries: list[Retrying], authority: trustme.CA, wrong: str) -> None:
    """Row 3: an authority that is not trusted, or the certificate of another host."""
    trusted = trustme.CA() if wrong == "authority" else authority
    name = "127.0.0.1" if wrong == "authority" else "other.example"
    async with ScriptedServer(ssl=server_context(authority, name)) as server:
        error = await fail(make(server.url, ssl=client_context(trusted)), ConnectError, NS)

        assert str(error).startswith(f"the certificate of {server.url} is not valid: ")
        assert server.requests == []
    assert error.permanent
    assert retries == []


async def test_handshake_fails(scripted: ScriptedServer, make: MakeClient, retries: list[Retrying]) -> None:
    """Row 3: the server has no version or cipher in common with us, and says so."""
    url = scripted.url.replace("http://", "https://")
    scripted.add(Script(b"\x15\x03\x03\x00\x02\x02\x28", end="fin", read=1))  # the alert `handshake_failure`

    error = await fail(make(url), ConnectError, NS)

    assert str(error).startswith(f"TLS with {url} failed: ")
    assert "HANDSHAKE_FAILURE" in str(error)
    assert error.permanent
    assert retries == []


@ENDS
async def test_handshake_is_cut(
    scripted: ScriptedServer, make: MakeClient, retries: list[Retrying], end: Literal["fin", "rst"]
) -> None:
    """Row 7: nothing of the request is written before the handshake is done, so it may be tried again."""
    url = scripted.url.replace("http://", "https://")
    scripted.add(*[Script(end=end, read=1)] * 3)

    error = await fail(make(url), ConnectError, NS)

    said = str(error).removeprefix(f"cannot connect to {url}: ")
    assert said == ("[Errno 104] Connection reset by peer" if end == "rst" else "ConnectionResetError")
    assert not error.permanent
    assert [retry.attempt for retry in retries] == [1, 2]
    assert scripted.connections == 3


async def test_good_certificate(make: MakeClient, authority: trustme.CA) -> None:
    """Row 3, the other side of it: with a context that trusts the authority all is well."""
    async with ScriptedServer(ssl=server_context(authority, "127.0.0.1")) as server:
        client = make(server.url, ssl=client_context(authority))

        assert (await client.chat("s").stream("Hi")).text == "Hello world"
        await client.aclose()


async def test_https_to_a_plain_port(scripted: ScriptedServer, make: MakeClient, retries: list[Retrying]) -> None:
    """Row 4: the error says what is wrong with the address."""
    url = scripted.url.replace("http://", "https://")
    scripted.add(Script(b"HTTP/1.1 400 Bad Request\r\n\r\n", end="fin", read=1))

    error = await fail(make(url), ConnectError, NS)

    assert str(error) == f"{url} does not speak TLS: is it an http:// address?"
    assert error.permanent
    assert retries == []
    assert scripted.stored == []


def test_connect_timeout() -> None:
    """Row 5: a server that accepts and then says nothing to the offer of TLS; after 5 s, three times."""

    async def scenario(server: ScriptedServer, _client: ChatClient, retries: list[Retrying]) -> None:
        url = server.url.replace("http://", "https://")
        async with ChatClient(url, api_key="k", retry=_client._core.retry, on_retry=retries.append) as client:
            error = await fail(client, RequestTimeoutError, NS)

            assert error.phase == "connect"
            assert str(error) == "timed out waiting for a connection"
            assert now() == pytest.approx(15, abs=0.1)
            assert [retry.attempt for retry in retries] == [1, 2]
            assert server.connections == 3
            assert server.requests == []

    silent = Script(read=0, end="stall")
    virtually(scenario, silent, silent, silent)


def test_pool_is_exhausted() -> None:
    """Row 6: waiting for a connection of one's own is waiting for a connection; not without end, and not in silence."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        async with client.chat("other").stream("Hi"):
            error = await fail(client, RequestTimeoutError, NS)

            assert error.phase == "connect"
            assert now() == pytest.approx(15, abs=0.1)
            assert [retry.attempt for retry in retries] == [1, 2]
            assert len(server.stored) == server.connections == 1
        assert (await client.chat("s").stream("Hi")).text == "Hello world"

    virtually(scenario, Script(FIRST, end="stall"), max_connections=1)


# --- without an answer ------------------------------------------------------------------------------------------------


async def test_reset_before_anything_was_written(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 7: seen to be closed before the request was written, so it was not sent."""
    connect: Any = aiohttp.TCPConnector.connect

    async def connect_late(*args: Any) -> aiohttp.connector.Connection:
        connection: aiohttp.connector.Connection = await connect(*args)
        while connection.protocol is not None and connection.protocol.is_connected():
            await asyncio.sleep(0)
        return connection

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_late)
    scripted.add(*[Script(end="rst", read=0)] * 3)

    error = await fail(client, ConnectError, NS)

    assert str(error) == f"the connection to {scripted.url} ended before the request was sent"
    assert [retry.attempt for retry in retries] == [1, 2]
    assert scripted.connections == 3
    assert scripted.requests == []


async def test_reset_after_something_was_written(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying]
) -> None:
    """Row 7: one byte that was read, and this side cannot know that it was not more."""
    scripted.add(Script(end="rst", read=1))

    error = await fail(client, ConnectionLostError, UN)

    assert str(error) == f"{scripted.url} ended the connection without an answer"
    assert isinstance(error.__cause__, ConnectionResetError)
    assert retries == []
    assert scripted.connections == 1
    assert scripted.stored == []


@ENDS
@pytest.mark.parametrize("json", [False, True])
async def test_closed_without_an_answer(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], end: Literal["fin", "rst"], json: bool
) -> None:
    """Row 8: the server had all of it, and may have stored it."""
    scripted.add(Script(end=end))

    await fail(client, ConnectionLostError, UN, json=json)

    assert retries == []
    assert len(scripted.stored) == len(scripted.requests) == 1


def test_idle_connection_is_not_kept_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 9: it is used again within 4 s, and not later: the server closes it after 5."""
    monkeypatch.setattr(aiohttp.connector, "monotonic", now)

    async def scenario(server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        chat = client.chat("s")
        await chat.stream("Hi")
        await chat.stream("Hi")
        assert server.connections == 1
        await asyncio.sleep(3.9)
        await chat.stream("Hi")
        assert server.connections == 1

        await asyncio.sleep(4.1)
        await chat.stream("Hi")

        assert server.connections == 2
        await server.requests[0].left.wait()
        assert len(server.stored) == 4

    virtually(scenario)


async def test_connection_that_was_closed_while_idle(scripted: ScriptedServer, client: ChatClient) -> None:
    """Row 9: the server's own close, once it is seen, costs no turn."""
    scripted.add(Script(WHOLE, end="fin"))

    assert (await client.chat("s").stream("Hi")).text == "Hello"
    connector: Any = client._core.transport._session.connector  # type: ignore[union-attr]
    while any(protocol.is_connected() for pool in connector._conns.values() for protocol, _ in pool):
        await asyncio.sleep(0)
    assert (await client.chat("s").stream("Hi")).text == "Hello world"

    assert scripted.connections == len(scripted.stored) == 2


# --- too slow ---------------------------------------------------------------------------------------------------------


def test_no_headers() -> None:
    """Row 10: after a minute, counted from the connection."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        error = await fail(client, RequestTimeoutError, UN)

        assert (error.phase, str(error)) == ("first_token", "timed out waiting for the first token")
        assert now() == pytest.approx(60, abs=0.1)
        assert retries == []
        assert len(server.stored) == 1
        await server.requests[0].left.wait()

    virtually(scenario, Script(end="stall"))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_stall(count: int) -> None:
    """Row 11: a minute without an event; before the first token it is that which did not come."""
    partial = "".join(["", "", "Hel", "Hello"][count])
    delivery = AC if count else UN

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        error = await fail(client, RequestTimeoutError, delivery, partial=partial)

        assert error.phase == ("idle" if count >= 2 else "first_token")
        assert now() == pytest.approx(60, abs=0.1)
        assert retries == []
        assert len(server.stored) == 1
        await server.requests[0].left.wait()

    virtually(
        scenario, Script(FIRST[: FIRST.index(b"\r\n\r\n") + 4] + chunked(lines(HELLO[:count]), last=False), end="stall")
    )


@pytest.mark.parametrize("drip", [b"\n", b" \n", b"{", b'{"type":"token",'])
def test_bytes_that_make_no_event(drip: bytes) -> None:
    """Row 12: blank lines, and pieces of a line that does not end. Events count, bytes do not."""

    async def scenario(server: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
        error = await fail(client, RequestTimeoutError, AC, partial="Hel")

        assert (error.phase, str(error)) == ("idle", "timed out waiting for the next event")
        assert now() == pytest.approx(60, abs=0.1)
        assert retries == []

    virtually(scenario, Script(FIRST, drip=chunked([drip], last=False), interval=7))


def test_slow_but_steady() -> None:
    """Row 12, the other side of it: an event just within the limit, again and again."""

    async def scenario(_server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        count = 0
        async for event in client.chat("s").stream("Hi"):
            count += isinstance(event, Token)
            if count == 6:
                break
        assert now() == pytest.approx(4 * 59, abs=1)

    virtually(scenario, Script(FIRST, drip=chunked(lines([Token("x")]), last=False), interval=59))


# --- cut --------------------------------------------------------------------------------------------------------------


@ENDS
@pytest.mark.parametrize(("count", "partial"), [(1, ""), (2, "Hel"), (3, "Hello")])
async def test_chunked_body_is_cut(
    scripted: ScriptedServer,
    client: ChatClient,
    retries: list[Retrying],
    end: Literal["fin", "rst"],
    count: int,
    partial: str,
) -> None:
    """Row 13: also when all tokens have come, and only `done` is missing. test_delivery.py has the cuts at every byte."""
    whole = stream_answer(HELLO[:count])
    scripted.add(Script(whole.removesuffix(b"0\r\n\r\n"), end=end))

    error = await fail(client, StreamInterruptedError, AC, partial=partial)

    assert str(error) == "the stream ended without `done` or `error`"
    assert isinstance(error.__cause__, ConnectionLostError)
    assert retries == []
    assert len(scripted.stored) == 1


async def test_chunked_body_ends_early(scripted: ScriptedServer, client: ChatClient, retries: list[Retrying]) -> None:
    """Row 13: an end in good order is none, either."""
    scripted.add(Script(stream_answer(HELLO[:3])))

    error = await fail(client, StreamInterruptedError, AC, partial="Hello")

    assert error.__cause__ is None
    assert retries == []
    assert len(scripted.stored) == 1


@ENDS
async def test_body_up_to_the_close_is_cut(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], end: Literal["fin", "rst"]
) -> None:
    """Row 14: for HTTP a close is a good end of such a body; for us only `done` is."""
    scripted.add(Script(stream_answer(HELLO[:2], framing="close"), end=end))

    await fail(client, StreamInterruptedError, AC, partial="Hel")

    assert retries == []
    assert len(scripted.stored) == 1


@ENDS
async def test_body_is_shorter_than_its_length(
    scripted: ScriptedServer, client: ChatClient, retries: list[Retrying], end: Literal["fin", "rst"]
) -> None:
    """Row 15: fewer bytes than the Content-Length said."""
    whole = stream_answer(HELLO, framing="length")
    scripted.add(Script(whole, end="keep").cut(whole.index(b"\n", whole.index(b"Hel")) + 1, end))

    await fail(client, StreamInterruptedError, AC, partial="Hel")

    assert retries == []
    assert len(scripted.stored) == 1


# --- in pieces --------------------------------------------------------------------------------------------------------

LONG = events("Hé", "l\U0001f600o", "\u2028", " ", "end")
FRAMINGS: list[Literal["chunked", "length", "close"]] = ["chunked", "length", "close"]


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_one_byte_a_packet(
    scripted: ScriptedServer, client: ChatClient, framing: Literal["chunked", "length", "close"]
) -> None:
    """Row 16: from the status line on."""
    scripted.add(Script(stream_answer(LONG, framing=framing), pieces=1, end="fin" if framing == "close" else "keep"))

    assert [event async for event in client.chat("s").stream("Hi")] == LONG


@pytest.mark.slow
@given(st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=20), min_size=1, max_size=4))
def test_any_split(splits: list[list[int]]) -> None:
    """Row 16: however it is cut, the events are the same."""

    async def main() -> None:
        async with ScriptedServer() as server, ChatClient(server.url, api_key="k") as client:
            for sizes in splits:
                server.add(Script(stream_answer(LONG), pieces=tuple(sizes)))
                assert [event async for event in client.chat("s").stream("Hi")] == LONG

    asyncio.run(main())


# --- long -------------------------------------------------------------------------------------------------------------


def test_stream_of_twenty_minutes() -> None:
    """Row 17: as long as events come, there is no limit but one's own."""
    token = chunked(lines([Token("x")]), last=False)

    async def scenario(server: ScriptedServer, client: ChatClient, _retries: list[Retrying]) -> None:
        async for event in client.chat("s").stream("Hi"):
            if isinstance(event, Token) and now() > 1200:
                break
        assert len(server.stored) == 1

        error = await fail(client, RequestTimeoutError, AC, partial="Hel" + "x" * 6, timeouts=Timeouts(total=300))
        assert error.phase == "total"

    virtually(scenario, *[Script(FIRST, drip=token, interval=55)] * 2)


async def test_idle_connection_that_is_reset(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is passed over, and nobody is bothered with it: there is nothing in the log."""
    rest, reset, answer = asyncio.Event(), asyncio.Event(), stream_answer(events("Hello"))
    scripted.add(Script(answer, gates={answer.index(b'{"type":"token"'): rest, len(answer): reset}, end="rst"))
    client = make_client(scripted.url)
    await client.chat("s").stream("Hi", on_start=lambda _: rest.set())

    reset.set()
    while scripted.open_connections:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)  # the client reads the reset, too
    assert (await client.chat("s").stream("Hi")).text == "Hello world"
    gc.collect()

    assert scripted.connections == 2
    assert caplog.records == []
