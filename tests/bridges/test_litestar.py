"""Litestar, under uvicorn and hypercorn."""

from __future__ import annotations

from typing import Any

import pytest
from litestar import Litestar, Request, Response, post

from aheadless import AheadlessError, ChatClient
from aheadless.bridges.litestar import refuse, stream_response
from aheadless.bridges.web import to_ndjson
from aheadless.testing import ScriptedServer
from tests.bridges.web_apps import (
    SILENT_BEFORE_ANYTHING,
    Ask,
    Browser,
    Serve,
    WebBackEndContract,
    closes_soon,
    listening,
    under_hypercorn,
    under_uvicorn,
)


class TestLitestar(WebBackEndContract):
    @pytest.fixture(params=[under_uvicorn, under_hypercorn], ids=["uvicorn", "hypercorn"])
    def serve(self, request: pytest.FixtureRequest) -> Serve:
        return request.param  # type: ignore[no-any-return]

    def make_app(self, ask: Ask) -> Litestar:
        @post("/ask")
        async def answer(request: Request[Any, Any, Any]) -> Response[Any]:
            body, options = ask(request.headers, request.cookies, await request.body())
            return await stream_response(request, body, **options)

        return Litestar([answer], exception_handlers={AheadlessError: refuse})


async def test_handler_does_not_read_the_body(scripted: ScriptedServer, client: ChatClient):
    """The browser's leaving is noticed nevertheless."""

    @post("/ask")
    async def answer(request: Request[Any, Any, Any]) -> Response[Any]:
        return await stream_response(request, to_ndjson(client.chat("s").stream("Hi")))

    with listening() as sock:
        port = sock.getsockname()[1]

        async def leave() -> float:
            count = len(scripted.requests)
            async with Browser(port) as browser:
                await browser.ask()
                await scripted.arrived(count + 1)
                return browser.leave()

        async with under_uvicorn(Litestar([answer]), sock):
            await closes_soon(scripted, SILENT_BEFORE_ANYTHING, leave)
