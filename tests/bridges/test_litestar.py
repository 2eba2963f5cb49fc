"""Litestar under uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from litestar import Litestar, Request, Response, post

from aheadless.bridges.litestar import stream_response
from aheadless.bridges.web import ByteStream
from tests.bridges.web_apps import Serve, WebBackEndContract, under_uvicorn


class TestLitestar(WebBackEndContract):
    @pytest.fixture
    def serve(self) -> Serve:
        return under_uvicorn

    def make_app(self, ask: Callable[[str], ByteStream]) -> Litestar:
        @post("/ask")
        async def answer(request: Request[Any, Any, Any]) -> Response[Any]:
            return await stream_response(request, ask((await request.json())["message"]))

        return Litestar([answer])
