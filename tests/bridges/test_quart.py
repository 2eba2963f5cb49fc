"""Quart, under both of the servers that it is run under."""

from __future__ import annotations

import asyncio

import pytest
from quart import Quart, Response, request

from aheadless import AheadlessError
from aheadless.bridges.quart import refuse, stream_response
from aheadless.bridges.web import to_sse
from aheadless.testing import Script, events, stream_answer
from tests.bridges.web_apps import (
    SILENT_AFTER_A_TOKEN,
    Ask,
    Browser,
    Serve,
    WebBackEndContract,
    under_hypercorn,
    under_uvicorn,
)


class TestQuart(WebBackEndContract):
    @pytest.fixture(params=[under_uvicorn, under_hypercorn], ids=["uvicorn", "hypercorn"])
    def serve(self, request: pytest.FixtureRequest) -> Serve:
        return request.param  # type: ignore[no-any-return]

    def make_app(self, ask: Ask) -> Quart:
        app = Quart(__name__)
        app.config["RESPONSE_TIMEOUT"] = 0.1
        app.register_error_handler(AheadlessError, refuse)

        @app.post("/ask")
        async def answer() -> Response:
            body, options = ask(request.headers, request.cookies, await request.get_data())
            return await stream_response(body, **options)

        return app

    async def test_reply_takes_longer_than_other_answers(self, run, scripted):
        """The application's time-out for answers does not cut it."""
        going_on = asyncio.Event()
        scripted.add(Script(stream_answer(events("Hello", " world")), gates={len(SILENT_AFTER_A_TOKEN.data): going_on}))
        port = await run(lambda stream: to_sse(stream, heartbeat=0.03))

        async with asyncio.timeout(30), Browser(port) as browser:
            await browser.ask()
            for _ in range(4):
                await browser.read_until(b": ping")  # together longer than RESPONSE_TIMEOUT
            going_on.set()
            await browser.read_until(b'"type":"done"')
