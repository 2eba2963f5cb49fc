"""aiohttp.web under its own server, with and without the setting that cancels handlers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trustme
from aiohttp import web
from aiohttp.typedefs import Handler

from aheadless import ChatClient
from aheadless.bridges.aiohttp import refusals, stream_response
from aheadless.bridges.web import to_ndjson
from aheadless.testing import Script, ScriptedServer, events, stream_answer
from tests.bridges.web_apps import (
    SILENT_AFTER_A_TOKEN,
    Ask,
    Serve,
    WebBackEndContract,
    closes_soon,
    listening,
    under_aiohttp,
)


class TestAiohttp(WebBackEndContract):
    @pytest.fixture(params=[False, True], ids=["as it is", "handler_cancellation"])
    def serve(self, request: pytest.FixtureRequest) -> Serve:
        return partial(under_aiohttp, handler_cancellation=request.param)

    def make_app(self, ask: Ask) -> web.Application:
        async def answer(request: web.Request) -> web.StreamResponse:
            body, options = ask(request.headers, request.cookies, await request.read())
            return await stream_response(request, body, **options)

        app = web.Application(middlewares=[refusals])
        app.add_routes([web.post("/ask", answer)])
        return app


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[int]:
    """Serve `GET /ask` by a handler; yield the port."""
    app = web.Application()
    app.add_routes([web.get("/ask", handler)])
    with listening() as sock:
        port = sock.getsockname()[1]
        async with under_aiohttp(app, sock, **options):
            yield port


async def get(port: int, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask, and read nothing yet."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
    writer.write(b"GET /ask HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    return reader, writer


async def test_browser_leaves_a_connection_with_tls(scripted: ScriptedServer, client: ChatClient):
    """The upstream's connection is closed at once there as well."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream_response(request, to_ndjson(client.chat("s").stream("Hi")))

    async with serving(answer, ssl=context) as port:

        async def leave() -> float:
            reader, writer = await get(port, ssl=trusting)
            await reader.readuntil(b"Hello")
            left_at = asyncio.get_running_loop().time()
            writer.transport.abort()
            return left_at

        await closes_soon(scripted, SILENT_AFTER_A_TOKEN, leave)


async def test_browser_has_left_before_the_handler_comes_to_it(scripted: ScriptedServer, client: ChatClient):
    """Nothing is asked for nobody."""
    asked, returned = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.set()
        while request.transport is not None:
            await asyncio.sleep(0)
        answered = await stream_response(request, to_ndjson(client.chat("s").stream("Hi")))
        assert answered.status == 499
        returned.set()
        return answered

    async with asyncio.timeout(30), serving(answer) as port:
        _, writer = await get(port)
        await asked.wait()
        writer.transport.abort()
        await returned.wait()

    assert scripted.requests == []


@pytest.mark.parametrize("error", [ValueError, TimeoutError, ConnectionResetError])
async def test_callback_raises(client: ChatClient, error: type[Exception]):
    """That is an error in the application, and it is not taken for a browser that has left."""
    raised = asyncio.Event()

    def fail(_: str) -> None:
        raise error

    async def answer(request: web.Request) -> web.StreamResponse:
        with pytest.raises(error):
            await stream_response(request, to_ndjson(client.chat("s").stream("Hi", on_token=fail)))
        raised.set()
        return web.Response()

    async with asyncio.timeout(30), serving(answer) as port:
        _, writer = await get(port)
        await raised.wait()
        writer.transport.abort()


async def test_next_request_comes_while_the_first_is_answered(scripted: ScriptedServer, client: ChatClient):
    """Both are answered, one after the other."""
    going_on = asyncio.Event()
    scripted.add(Script(stream_answer(events("Hello", " world")), gates={len(SILENT_AFTER_A_TOKEN.data): going_on}))

    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream_response(request, to_ndjson(client.chat("s").stream("Hi")))

    async with asyncio.timeout(30), serving(answer) as port:
        reader, writer = await get(port)
        await reader.readuntil(b"Hello")
        writer.write(b"GET /ask HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await writer.drain()
        going_on.set()
        for _ in range(2):
            await reader.readuntil(b'"type":"done"')
        writer.transport.abort()


async def test_handler_goes_on_after_the_browser_has_left(scripted: ScriptedServer, client: ChatClient):
    """Without `handler_cancellation` it gets back what was begun, and is not cancelled any more."""
    scripted.add(SILENT_AFTER_A_TOKEN)
    statuses = asyncio.Queue[int]()

    async def answer(request: web.Request) -> web.StreamResponse:
        answered = await stream_response(request, to_ndjson(client.chat("s").stream("Hi")))
        await asyncio.sleep(0)
        statuses.put_nowait(answered.status)
        return answered

    async with asyncio.timeout(30), serving(answer) as port:
        reader, writer = await get(port)
        await reader.readuntil(b"Hello")
        writer.transport.abort()
        assert await statuses.get() == 200
