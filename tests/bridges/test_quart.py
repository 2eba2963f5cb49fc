"""Quart, under both of the servers that it is run under."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from quart import Quart, Response, request

from aheadless.bridges.quart import stream_response
from aheadless.bridges.web import ByteStream
from tests.bridges.web_apps import Serve, WebBackEndContract, under_hypercorn, under_uvicorn


class TestQuart(WebBackEndContract):
    @pytest.fixture(params=[under_uvicorn, under_hypercorn], ids=["uvicorn", "hypercorn"])
    def serve(self, request: pytest.FixtureRequest) -> Serve:
        return request.param  # type: ignore[no-any-return]

    def make_app(self, ask: Callable[[str], ByteStream]) -> Quart:
        app = Quart(__name__)

        @app.post("/ask")
        async def answer() -> Response:
            return await stream_response(ask((await request.get_json())["message"]))

        return app
