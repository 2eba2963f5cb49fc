"""The scripted server as a plain socket sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aheadless.testing import Request, Script, ScriptedServer, events, head, json_answer, stream_answer

HELLO = stream_answer(events("Hello", " world"))
BODY = b'{"sessionId":"s","message":"Hi"}'
POST = b"POST /v1/chat/stream HTTP/1.1\r\nHost: x\r\nX-Api-Key:  k \r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
DATA = b"0123456789"


class Wire:
    """A socket of a client."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server

    async def __aenter__(self) -> Wire:
        port = int(self.server.url.rpartition(":")[2])
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    async def ask(self, data: bytes = POST) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> tuple[bytes, bool]:
        """Return all that comes up to the end, and whether that was a reset."""
        received = b""
        try:
            while chunk := await self.reader.read(1000):
                received += chunk
        except ConnectionResetError:
            return received, True
        return received, False


@pytest.fixture
async def wire(scripted: ScriptedServer) -> AsyncIterator[Wire]:
    async with Wire(scripted) as wire:
        yield wire


async def test_default_answer_and_log(scripted: ScriptedServer, wire: Wire) -> None:
    """Without a script it answers in full; the log has the request as it came."""
    await wire.ask()

    assert await wire.reader.readexactly(len(HELLO)) == HELLO
    (request,) = scripted.requests
    assert (request.method, request.path, request.body) == ("POST", "/v1/chat/stream", BODY)
    assert request.headers == (("Host", "x"), ("X-Api-Key", "k"), ("Content-Length", str(len(BODY))))
    assert (request.header("x-api-key"), request.header("origin")) == ("k", None)
    assert (request.whole, request.size, request.refused) == (True, len(POST), False)
    assert scripted.stored == [request]
    assert (scripted.connections, scripted.open_connections) == (1, 1)


async def test_scripts_are_used_in_order(scripted: ScriptedServer, wire: Wire) -> None:
    """One for each request, on a connection that is kept, even if they come at once."""
    scripted.add(Script(b"one"), Script(b"two"))
    await wire.ask(POST + POST + POST)

    assert await wire.reader.readexactly(6 + len(HELLO)) == b"onetwo" + HELLO
    assert scripted.connections == 1


@pytest.mark.parametrize("size", range(len(DATA) + 1))
@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_cut(scripted: ScriptedServer, wire: Wire, size: int, end: str) -> None:
    """Exactly so many bytes, and then an orderly close or a reset."""
    scripted.add(Script(DATA).cut(size, "rst" if end == "rst" else "fin"))
    await wire.ask()

    assert await wire.rest() == (DATA[:size], end == "rst")


async def test_stall(scripted: ScriptedServer, wire: Wire) -> None:
    """Nothing follows, for as long as the client stays; the log tells when it left."""
    scripted.add(Script(DATA, end="stall"))
    await wire.ask(POST + POST)
    assert await wire.reader.readexactly(len(DATA)) == DATA
    request = scripted.requests[0]
    assert not request.left.is_set()
    assert not wire.reader.at_eof()

    wire.writer.close()
    await request.left.wait()

    assert request.left_at is not None
    assert len(scripted.requests) == 1


async def test_left(scripted: ScriptedServer, wire: Wire) -> None:
    """All requests of a connection hear of its end, once."""
    scripted.add(Script(DATA), Script(DATA, end="fin"))
    await wire.ask(POST + POST)
    await wire.rest()

    first, second = scripted.requests
    await first.left.wait()
    assert first.left_at == second.left_at is not None


async def test_left_before_it_was_read(scripted: ScriptedServer) -> None:
    """The log has a request, and that its client has left, even if both came at once."""
    async with Wire(scripted) as wire:
        wire.writer.write(POST)
        wire.writer.write_eof()

    request = await scripted.arrived(1)
    await request.left.wait()
    assert request.whole


async def test_pieces(scripted: ScriptedServer) -> None:
    """Each is a packet of its own, which a reader that keeps up gets alone."""
    found: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()

    class Recorder(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            found.append(data)

        def connection_lost(self, exc: Exception | None) -> None:
            ended.set_result(exc)

    scripted.add(Script(DATA, pieces=(1, 2, 3), end="fin"))
    port = int(scripted.url.rpartition(":")[2])
    transport, _ = await asyncio.get_running_loop().create_connection(Recorder, "127.0.0.1", port)
    transport.write(POST)
    await ended

    assert found == [b"0", b"12", b"345", b"678", b"9"]


async def test_gates(scripted: ScriptedServer, wire: Wire) -> None:
    """The bytes from an offset on wait for an event, the end too."""
    middle, end = asyncio.Event(), asyncio.Event()
    scripted.add(Script(DATA, gates={4: middle, len(DATA): end}, end="fin"))
    await wire.ask()

    assert await wire.reader.readexactly(4) == DATA[:4]
    middle.set()
    assert await wire.reader.readexactly(6) == DATA[4:]
    assert not wire.reader.at_eof()
    end.set()
    assert await wire.rest() == (b"", False)


async def test_client_leaves_at_a_gate(scripted: ScriptedServer, wire: Wire) -> None:
    """The server does not wait for an event when nobody is there to hear the rest."""
    scripted.add(Script(DATA, gates={4: asyncio.Event()}))
    await wire.ask()
    await wire.reader.readexactly(4)

    wire.writer.close()

    await scripted.requests[0].left.wait()


async def test_drip(scripted: ScriptedServer, wire: Wire) -> None:
    """After the data, over and over."""
    scripted.add(Script(b"a", drip=b"\n", interval=0))
    await wire.ask()

    assert await wire.reader.readexactly(6) == b"a\n\n\n\n\n"


@pytest.mark.parametrize("size", [0, 1, POST.index(BODY) - 1, POST.index(BODY), len(POST) - 1, len(POST)])
async def test_answer_before_the_whole_request(scripted: ScriptedServer, size: int) -> None:
    """Of a request that is not read to its end the log has what was read, from its whole head on."""
    scripted.add(Script(DATA, read=size, end="fin"))
    async with Wire(scripted) as wire:
        await wire.ask(POST[:size])

        assert await wire.rest() == (DATA, False)
    if size < POST.index(BODY):
        assert scripted.requests == []
    else:
        (request,) = scripted.requests
        assert (request.size, request.body) == (size, POST[POST.index(BODY) : size])
        assert request.whole is (size == len(POST))
        assert scripted.stored == [request] * (size == len(POST))


async def test_stored(scripted: ScriptedServer, wire: Wire) -> None:
    """Those are stored that a real server has stored: no GET, and none that was refused."""
    answers = [json_answer({}, status=status) for status in (401, 200, 429, 500, 307, 503)]
    answers.append(json_answer({}, status=503, headers={"Retry-After": "1"}))
    scripted.add(*map(Script, answers), Script(json_answer({})))
    await wire.ask(POST * len(answers) + b"GET /health HTTP/1.1\r\n\r\n")
    await wire.reader.readexactly(len(b"".join(answers) + json_answer({})))

    refused = [request.refused for request in scripted.requests]
    assert refused == [True, False, True, False, True, False, True, False]
    assert scripted.stored == [scripted.requests[number] for number in (1, 3, 5)]


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"HELLO\r\n\r\n", POST.replace(b"h: 3", b"h: x")])
async def test_what_is_no_request(scripted: ScriptedServer, wire: Wire, data: bytes) -> None:
    """It costs the connection, and is in no log as read."""
    await wire.ask(data)

    assert await wire.rest() == (b"", False)
    assert scripted.stored == []


async def test_endless_request(scripted: ScriptedServer, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has a bound."""
    monkeypatch.setattr("aheadless.testing.server.MAX_REQUEST", 1000)
    await wire.ask(b"x" * 1001)

    assert await wire.rest() == (b"", False)


async def test_arrived(scripted: ScriptedServer, wire: Wire) -> None:
    """A test can wait for the nth request."""
    waiting = asyncio.create_task(scripted.arrived(2))
    await wire.ask()
    await wire.reader.readexactly(len(HELLO))
    assert not waiting.done()

    await wire.ask(POST.replace(b"stream", b"second"))

    assert (await waiting).path == "/v1/chat/second"
    assert isinstance(await scripted.arrived(1), Request)


async def test_server_gone(scripted: ScriptedServer, wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    """Once it is closed, what was open is cut and what comes new is refused; asyncio has nothing to complain about."""
    scripted.add(Script(DATA, end="stall"))
    await wire.ask()
    await wire.reader.readexactly(len(DATA))
    port = int(scripted.url.rpartition(":")[2])

    await scripted.aclose()

    assert (await wire.rest())[0] == b""
    assert scripted.open_connections == 0
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert scripted.requests[0].left.is_set()
    assert caplog.records == []


async def test_server_is_closed_with_its_block() -> None:
    """Also while a client reads."""
    async with ScriptedServer(Script(head(200), end="stall")) as server, Wire(server) as wire:
        await wire.ask()
        await wire.reader.readuntil(b"\r\n\r\n")
        await server.aclose()

        assert (await wire.rest())[0] == b""


async def test_otherwise() -> None:
    """What follows the scripts can be made of the request."""

    def echo(request: Request) -> Script:
        return Script(json_answer({"path": request.path}, status=404))

    async with ScriptedServer(Script(HELLO), otherwise=echo) as server, Wire(server) as wire:
        await wire.ask()
        assert await wire.reader.readexactly(len(HELLO)) == HELLO
        await wire.ask()
        answer = await wire.reader.readuntil(b"}")

    assert answer.endswith(b'{"path": "/v1/chat/stream"}')
    assert [request.refused for request in server.requests] == [False, True]
