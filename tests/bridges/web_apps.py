"""What every web back end must do, as tests: each framework's own file says how an application of its is made.

The applications run under the servers that people run them under, in this process, on a real socket; behind them stands
a ChatClient, and behind that a scripted server that notes when a request's connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from ssl import SSLContext
from typing import Any, TypeAlias

import aiohttp
import attrs
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
from aiohttp import web

from aheadless import RateLimit, ReplyStream
from aheadless.bridges._visitors import Fields
from aheadless.bridges.web import ByteStream, Visitors, to_ndjson, to_sse
from aheadless.protocol.events import Event, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.conftest import MakeClient

# The bound for the time from the browser's leaving to the end of the upstream connection, in seconds.
SOON = 0.05
# A machine that does something else meanwhile spoils a try, not all of them.
TRIES = 5

Form: TypeAlias = Callable[[ReplyStream], ByteStream]
Ask: TypeAlias = Callable[[Fields, Mapping[str, str], str | bytes], tuple[ByteStream, dict[str, Any]]]
"""What an application does with a request's headers, cookies and body: it gets what `stream_response` needs."""

Serve: TypeAlias = Callable[[Any, socket.socket], contextlib.AbstractAsyncContextManager[None]]

BEGINNING = stream_answer([Start(CONVERSATION_ID), Token("Hello")])
SILENT_AFTER_A_TOKEN = Script(BEGINNING).cut(len(BEGINNING) - len(b"0\r\n\r\n"), "stall")
SILENT_BEFORE_THE_FIRST_EVENT = Script(BEGINNING).cut(BEGINNING.index(b"\r\n\r\n") + 4, "stall")
SILENT_BEFORE_ANYTHING = Script().cut(0, "stall")
# More than all buffers between the upstream and a browser that does not read.
FLOOD = Script(stream_answer([Start(CONVERSATION_ID), *[Token("x" * 1000)] * 8000]), end="stall")


def listening() -> socket.socket:
    """Return a socket of loopback that listens, with a small buffer for what is sent."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
    sock.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return sock


# --- servers ----------------------------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """Uvicorn that stops when it is told to instead of looking every 100 ms whether it should."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        await self.stopping.wait()


@contextlib.asynccontextmanager
async def under_uvicorn(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    """Serve an ASGI application by uvicorn until the block is left."""
    server = _Uvicorn(uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=5))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.serve([sock]))
        try:
            yield
        finally:
            server.stopping.set()


@contextlib.asynccontextmanager
async def under_hypercorn(app: Any, sock: socket.socket) -> AsyncIterator[None]:
    """Serve an ASGI application by hypercorn until the block is left."""
    config = hypercorn.config.Config()
    config.bind = [f"fd://{sock.detach()}"]
    config.accesslog = config.errorlog = None
    stopping = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stopping.wait))
        try:
            yield
        finally:
            stopping.set()


@contextlib.asynccontextmanager
async def under_aiohttp(
    app: web.Application,
    sock: socket.socket,
    *,
    handler_cancellation: bool = False,
    ssl: SSLContext | None = None,
) -> AsyncIterator[None]:
    """Serve an application of aiohttp.web by its own server until the block is left."""
    runner = web.AppRunner(app, handler_cancellation=handler_cancellation, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, ssl_context=ssl).start()
        yield
    finally:
        await runner.cleanup()


# --- browsers ---------------------------------------------------------------------------------------------------------


class Browser:
    """A browser's connection, byte by byte. It is closed when the block is left, or earlier by `leave`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sock = socket.socket()
        self._sock.setblocking(False)  # noqa: FBT003 - the socket's own signature
        # Before connecting: it decides what the kernel offers to take.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Browser:
        await self._loop.sock_connect(self._sock, ("127.0.0.1", self._port))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()

    async def ask(self, message: str = "Hi") -> None:
        """Post a question, and read nothing yet."""
        body = json.dumps({"message": message}).encode()
        await self._loop.sock_sendall(
            self._sock,
            b"POST /ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        )

    async def read_until(self, wanted: bytes) -> bytes:
        """Return what came up to and with these bytes, and what came along with them."""
        received = b""
        while wanted not in received:
            chunk = await self._loop.sock_recv(self._sock, 64 * 1024)
            assert chunk, received
            received += chunk
        return received

    def leave(self) -> float:
        """Close the connection, as a closed tab does; return when, in loop time."""
        now = self._loop.time()
        self._sock.close()
        return now


# --- the contract -----------------------------------------------------------------------------------------------------


class WebBackEndContract:
    """What each framework's `stream_response` keeps. A subclass says how an application is made and what serves it."""

    @pytest.fixture
    def serve(self) -> Serve:
        """What serves the application."""
        raise NotImplementedError

    def make_app(self, ask: Ask) -> Any:
        """Return an application whose `POST /ask` answers with what `ask` makes of the request, or refuses it."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def quiet(self, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
        """No server and no event loop complains of anything; that Django reports its answers with 5xx is its way."""
        yield
        assert [
            r for r in caplog.get_records("call") if r.levelno >= logging.ERROR and r.name != "django.request"
        ] == []

    @pytest.fixture
    async def run(
        self, scripted: ScriptedServer, make_client: MakeClient, serve: Serve
    ) -> AsyncIterator[Callable[..., Awaitable[int]]]:
        """Run an application in front of the scripted server; return its port."""
        visitors = Visitors("x" * 32, limit=RateLimit(2, per=60), secure=False)

        async with contextlib.AsyncExitStack() as stack:

            async def run(form: Form = to_ndjson, *, send_timeout: float | None = 60.0, **options: Any) -> int:
                client = make_client(scripted.url, **options)

                def ask(
                    headers: Fields, cookies: Mapping[str, str], body: str | bytes
                ) -> tuple[ByteStream, dict[str, Any]]:
                    visitor = visitors.admit(headers, cookies)
                    stream = client.chat(visitor.session_id).stream(json.loads(body)["message"])
                    return form(stream), {"headers": visitor.headers, "send_timeout": send_timeout}

                sock = stack.enter_context(listening())
                port: int = sock.getsockname()[1]
                await stack.enter_async_context(serve(self.make_app(ask), sock))
                return port

            yield run

    async def test_reply_arrives_while_it_is_written(self, run, scripted):
        """The browser has the first token while the upstream is silent, and later the end."""
        going_on = asyncio.Event()
        scripted.add(Script(stream_answer(events("Hello", " world")), gates={len(SILENT_AFTER_A_TOKEN.data): going_on}))
        port = await run()

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            beginning = await browser.read_until(b"Hello")
            going_on.set()
            rest = await browser.read_until(b"0\r\n\r\n")

        assert beginning.startswith(b"HTTP/1.1 200 ")
        assert b" world" not in beginning
        assert b'"type":"done"' in rest

    async def test_headers(self, run):
        """Nothing on the way keeps the reply or holds it back."""
        port = await run()

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            lines = [json.loads(line) async for line in answer.content]

        assert answer.content_type == "application/x-ndjson"
        assert "no-store" in answer.headers["Cache-Control"]
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert [line["type"] for line in lines] == ["start", "token", "token", "done"]

    async def test_next_question_on_the_same_connection(self, run, scripted):
        """Nothing of the first answer is left on it, be it whole or a refusal."""
        scripted.add(Script(stream_answer(events("one"))), Script(json_answer({}, status=503)))
        scripted.add(Script(stream_answer(events("two"))))
        port = await run()

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            answers = []
            for _ in range(3):
                async with ask(session, port) as answer:
                    answers.append((answer.status, await answer.text()))

        assert [status for status, _ in answers] == [200, 503, 200]
        assert ["one" in answers[0][1], "two" in answers[2][1]] == [True, True]

    @pytest.mark.parametrize(
        ("status", "headers"), [(401, {}), (429, {"Retry-After": "7"}), (503, {"Retry-After": "3"}), (503, {})]
    )
    async def test_refused_turn(self, run, scripted, status, headers):
        """It keeps its status, and how long to wait, and says nothing of what the upstream said."""
        scripted.add(Script(json_answer({"error": "internal: sk-123"}, status=status, headers=headers)))
        port = await run()

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            refused = await answer.json()

        assert answer.status == status
        assert answer.headers.get("Retry-After") == headers.get("Retry-After")
        assert "no-store" in answer.headers["Cache-Control"]
        assert "sk-123" not in refused["error"]

    async def test_nothing_left_to_resume(self, run):
        """The browser is told not to ask again."""
        port = await run(lambda _: to_sse(nothing()))

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            assert (answer.status, await answer.read(), "visitor" in answer.cookies) == (204, b"", True)

    async def test_api_is_not_there(self, run, scripted):
        """The browser gets a bad gateway, and no address."""
        await scripted.aclose()
        port = await run()

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            assert (answer.status, "127.0.0.1" in await answer.text()) == (502, False)

    async def test_visitor_comes_back(self, run, scripted):
        """A new one gets a cookie, which leads to the same session, where only so many questions are admitted."""
        port = await run()

        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            answers = []
            for _ in range(3):
                async with ask(session, port) as answer:
                    await answer.read()
                    answers.append(answer)

        asked = {json.loads(request.body)["sessionId"] for request in scripted.requests}
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert [len(answer.headers.getall("Set-Cookie", [])) for answer in answers] == [1, 0, 0]
        assert 0 < int(answers[2].headers["Retry-After"]) <= 60
        assert (len(scripted.requests), len(asked)) == (2, 1)

    async def test_refused_new_visitor(self, run, scripted):
        """The cookie comes along with the refusal, so that nobody is new again and again."""
        scripted.add(Script(json_answer({}, status=429)))
        port = await run()

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            assert (answer.status, "visitor" in answer.cookies) == (429, True)

    async def test_what_is_refused_before_there_is_a_stream(self, run, scripted):
        """A message that is empty, a request from another site: each has its status, and nothing goes upstream."""
        port = await run()

        async with aiohttp.ClientSession() as session:
            async with ask(session, port, "") as answer:
                assert (answer.status, (await answer.json())["error"]) == (400, "The message is empty.")
            async with ask(session, port, headers={"Origin": "https://other.example"}) as answer:
                assert answer.status == 403
        assert scripted.requests == []

    async def test_stream_breaks_off(self, run, scripted):
        """The answer ends with a line that says so: half a reply does not look whole."""
        scripted.add(attrs.evolve(SILENT_AFTER_A_TOKEN, end="rst"))
        port = await run()

        async with aiohttp.ClientSession() as session, ask(session, port) as answer:
            lines = [json.loads(line) async for line in answer.content]

        assert [line["type"] for line in lines] == ["start", "token", "error"]

    async def test_heartbeat(self, run, scripted):
        """Bytes come while the upstream is silent, so that no proxy takes the connection for dead."""
        scripted.add(SILENT_AFTER_A_TOKEN)
        port = await run(lambda stream: to_sse(stream, heartbeat=0.02))

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            begun = await browser.read_until(b"Hello")
            await browser.read_until(b"\r\n:")

        assert b"text/event-stream" in begun

    async def test_browser_leaves_while_the_upstream_is_silent(self, run, scripted):
        """The upstream's connection is closed at once, and the session is free for the next question."""
        port = await run()

        async def leave() -> float:
            async with Browser(port) as browser:
                await browser.ask()
                await browser.read_until(b"Hello")
                return browser.leave()

        await closes_soon(scripted, SILENT_AFTER_A_TOKEN, leave)

    async def test_browser_stops_reading_and_leaves(self, run, scripted):
        """Although all buffers are full, the upstream's connection is closed at once."""
        taken = 0

        def count(text: str) -> None:
            nonlocal taken
            taken += 1

        port = await run(on_token=count)

        async def leave() -> float:
            nonlocal taken
            taken = 0
            async with Browser(port) as browser:
                await browser.ask()
                await browser.read_until(b"xxx")
                await settled(lambda: taken)
                assert 0 < taken < 8000
                return browser.leave()

        await closes_soon(scripted, FLOOD, leave)

    async def test_browser_stops_reading_and_goes_on(self, run, scripted):
        """The reply arrives whole all the same."""
        taken = 0

        def count(_: str) -> None:
            nonlocal taken
            taken += 1

        scripted.add(Script(stream_answer(events(*["x" * 1000] * 500))))
        port = await run(on_token=count)

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            received = await browser.read_until(b"xxx")
            await settled(lambda: taken)
            before = taken
            received += await browser.read_until(b"0\r\n\r\n")

        assert 0 < before < taken == 500
        assert received.count(b'"type":"token"') == 500

    async def test_browser_takes_nothing_for_too_long(self, run, scripted):
        """The upstream's connection is closed although the browser is still there."""
        scripted.add(FLOOD)
        port = await run(send_timeout=0.05)

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            request = await scripted.arrived(1)
            await request.left.wait()

    @pytest.mark.parametrize("send_timeout", [0.05, None])
    async def test_upstream_is_silent_for_longer_than_a_browser_may_be(self, run, scripted, send_timeout):
        """That is no fault of the browser's, and the reply goes on."""
        going_on = asyncio.Event()
        scripted.add(Script(stream_answer(events("Hello", " world")), gates={len(SILENT_AFTER_A_TOKEN.data): going_on}))
        port = await run(lambda stream: to_sse(stream, heartbeat=0.1), send_timeout=send_timeout)

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            await browser.read_until(b": ping")
            going_on.set()
            await browser.read_until(b'"type":"done"')

    @pytest.mark.parametrize("script", [SILENT_BEFORE_ANYTHING, SILENT_BEFORE_THE_FIRST_EVENT], ids=["sent", "open"])
    async def test_browser_leaves_before_the_first_event(self, run, scripted, script):
        """The upstream's connection is closed at once, although there is no answer yet."""
        port = await run()

        async def leave() -> float:
            count = len(scripted.requests)
            async with Browser(port) as browser:
                await browser.ask()
                await scripted.arrived(count + 1)
                return browser.leave()

        await closes_soon(scripted, script, leave)


async def nothing() -> AsyncIterator[Event]:
    """The events of a turn that is over."""
    return
    yield  # what makes it an iterator


def ask(session: aiohttp.ClientSession, port: int, message: str = "Hi", **options: Any) -> Any:
    """Post a question."""
    return session.post(f"http://127.0.0.1:{port}/ask", json={"message": message}, **options)


async def settled(count: Callable[[], int]) -> None:
    """Wait until nothing moves any more, because all buffers are full."""
    seen = -1
    while seen != count():
        seen = count()
        await asyncio.sleep(0.02)


async def closes_soon(scripted: ScriptedServer, script: Script, leave: Callable[[], Awaitable[float]]) -> None:
    """Assert that the upstream's connection is closed each time, and soon at least once."""
    took: list[float] = []
    while len(took) < TRIES and min(took, default=SOON) >= SOON:
        count = len(scripted.requests)
        scripted.add(script)
        async with asyncio.timeout(30):
            left_at = await leave()
            request = await scripted.arrived(count + 1)
            await request.left.wait()
        assert request.left_at is not None
        took.append(request.left_at - left_at)
    assert min(took) < SOON, took
