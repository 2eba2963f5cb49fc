"""aiohttp.web under its own server, with and without the setting that cancels handlers."""

from __future__ import annotations

import asyncio
import ssl
from functools import partial

import pytest
import trustme
from aiohttp import web

from aheadless.bridges.aiohttp import refusals, stream_response
from aheadless.bridges.web import to_ndjson
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


async def test_browser_leaves_a_connection_with_tls(scripted, client):
    """The upstream's connection is closed at once there as well."""
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await stream_response(request, to_ndjson(client.chat("web:visitor").stream("Hi")))

    app = web.Application()
    app.add_routes([web.get("/ask", answer)])

    with listening() as sock:
        port = sock.getsockname()[1]

        async def leave() -> float:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writer.write(b"GET /ask HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            await reader.readuntil(b"Hello")
            left_at = asyncio.get_running_loop().time()
            writer.transport.abort()
            return left_at

        async with under_aiohttp(app, sock, ssl=context):
            await closes_soon(scripted, SILENT_AFTER_A_TOKEN, leave)
