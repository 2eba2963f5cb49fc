"""Litestar, under uvicorn and hypercorn."""

from __future__ import annotations

from typing import Any

import pytest
from litestar import Litestar, Request, Response, post

from aheadless import AheadlessError
from aheadless.bridges.litestar import refuse, stream_response
from tests.bridges.web_apps import Ask, Serve, WebBackEndContract, under_hypercorn, under_uvicorn


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
