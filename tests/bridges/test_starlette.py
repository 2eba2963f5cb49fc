"""Starlette and FastAPI, under uvicorn and hypercorn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aheadless import AheadlessError, ChatClient, ConfigurationError
from aheadless.bridges.starlette import refuse, stream_response
from aheadless.bridges.web import to_ndjson, to_sse
from aheadless.testing import ScriptedServer
from tests.bridges.web_apps import (
    FLOOD,
    SILENT_AFTER_A_TOKEN,
    SILENT_BEFORE_THE_FIRST_EVENT,
    Ask,
    Browser,
    Serve,
    WebBackEndContract,
    ask,
    closes_soon,
    listening,
    under_hypercorn,
    under_uvicorn,
)
from tests.support import KEY


def starlette_app(ask: Ask, **settings: Any) -> Starlette:
    async def answer(request: Request) -> Response:
        body, options = ask(request.headers, request.cookies, await request.body())
        return await stream_response(body, **options)

    routes = [Route("/ask", answer, methods=["POST"])]
    return Starlette(routes=routes, exception_handlers={AheadlessError: refuse}, **settings)


class TestStarlette(WebBackEndContract):
    @pytest.fixture(params=[under_uvicorn, under_hypercorn], ids=["uvicorn", "hypercorn"])
    def serve(self, request: pytest.FixtureRequest) -> Serve:
        return request.param  # type: ignore[no-any-return]

    def make_app(self, ask: Ask) -> Starlette:
        return starlette_app(ask)


class TestStarletteBehindMiddleware(WebBackEndContract):
    """The kind that most applications have, and that runs the application in a task of its own."""

    @pytest.fixture
    def serve(self) -> Serve:
        return under_uvicorn

    def make_app(self, ask: Ask) -> Starlette:
        async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
            return await call_next(request)

        return starlette_app(
            ask, middleware=[Middleware(GZipMiddleware), Middleware(BaseHTTPMiddleware, dispatch=pass_on)]
        )


class TestFastAPI(WebBackEndContract):
    @pytest.fixture
    def serve(self) -> Serve:
        return under_uvicorn

    def make_app(self, ask: Ask) -> FastAPI:
        app = FastAPI(exception_handlers={AheadlessError: refuse})

        @app.post("/ask")
        async def answer(request: Request) -> Response:
            body, options = ask(request.headers, request.cookies, await request.body())
            return await stream_response(body, **options)

        return app


async def run(app: Any, use: Callable[[int], Awaitable[None]]) -> None:
    """Run an application, and do something with its port."""
    with listening() as sock:
        port = sock.getsockname()[1]
        async with asyncio.timeout(30), under_uvicorn(app, sock):
            await use(port)


async def test_browser_that_stops_reading_for_ever(scripted: ScriptedServer, client: ChatClient):
    """After the time-out the upstream is closed, although the browser is still there."""
    scripted.add(FLOOD)

    async def answer(_: Request) -> Response:
        return await stream_response(to_ndjson(client.chat("s").stream("Hi")), send_timeout=0.05)

    async def use(port: int) -> None:
        async with Browser(port) as browser:
            await browser.ask()
            await (await scripted.arrived(1)).left.wait()
            assert not client.chat("s").busy

    await run(Starlette(routes=[Route("/ask", answer, methods=["POST"])]), use)


async def test_program_of_the_page(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch):
    """What docs/howto/fastapi.md shows first is a whole back end."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "fastapi.md").read_text("utf-8")
    monkeypatch.setenv("AHEADLESS_BASE_URL", scripted.url)
    monkeypatch.setenv("AHEADLESS_API_KEY", KEY)
    names: dict[str, Any] = {"__name__": "page"}
    exec(page.split("```python\n")[1].split("```")[0], names)

    async def use(port: int) -> None:
        async with aiohttp.ClientSession() as session:
            async with ask(session, port) as answer:
                assert (answer.status, "visitor" in answer.cookies) == (200, True)
                assert b'"done"' in await answer.read()
            async with ask(session, port, "") as answer:
                assert (answer.status, (await answer.json())["error"]) == (400, "The message is empty.")

    async with names["app"].router.lifespan_context(names["app"]):
        await run(names["app"], use)


async def test_refusal_of_what_is_not_ours():
    """An error of another kind stays what it is."""
    with pytest.raises(KeyError):
        await refuse(Request({"type": "http"}), KeyError("x"))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
async def test_time_out_that_is_no_time(client: ChatClient, seconds: float):
    """It is refused before anything is sent."""
    with pytest.raises(ConfigurationError):
        await stream_response(to_ndjson(client.chat("s").stream("Hi")), send_timeout=seconds)


async def test_background_task(client: ChatClient):
    """It runs after the answer, as with every other response."""
    ran = asyncio.Event()

    async def later() -> None:
        ran.set()

    async def answer(_: Request) -> Response:
        response = await stream_response(to_ndjson(client.chat("s").stream("Hi")))
        response.background = BackgroundTask(later)
        response.set_cookie("a", "b")
        return response

    async def use(port: int) -> None:
        async with aiohttp.ClientSession() as session, ask(session, port) as got:
            assert b'"done"' in await got.read()
            assert got.cookies["a"].value == "b"
        await ran.wait()

    await run(Starlette(routes=[Route("/ask", answer, methods=["POST"])]), use)


@pytest.mark.parametrize("says_so", [{"http.response.body"}, {"http.response.start", "http.response.body"}])
async def test_server_that_says_so_by_an_error(scripted: ScriptedServer, client: ChatClient, says_so: set[str]):
    """Where `send` fails for a browser that has left, as in ASGI 2.4, the answer ends and the upstream is closed."""
    scripted.add(SILENT_AFTER_A_TOKEN)
    answer = await stream_response(to_ndjson(client.chat("s").stream("Hi")))

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] in says_so:
            raise ConnectionResetError

    async with asyncio.timeout(30):
        await answer({"type": "http"}, receive, send)

    assert not client.chat("s").busy


async def test_server_that_says_so_after_the_browser_has_left(scripted: ScriptedServer, client: ChatClient):
    """That nobody takes the answer is no error when nobody is there."""
    scripted.add(SILENT_BEFORE_THE_FIRST_EVENT)
    answer = await stream_response(to_ndjson(client.chat("s").stream("Hi")))

    async def receive() -> Any:
        await scripted.arrived(1)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        raise ConnectionResetError

    async with asyncio.timeout(30):
        await answer({"type": "http"}, receive, send)

    assert not client.chat("s").busy


async def test_callback_that_raises(client: ChatClient):
    """What a callback of the back end's raises is an error of the application, not of the browser's."""

    def fail(_: str) -> None:
        raise TimeoutError("ours")

    answer = await stream_response(to_ndjson(client.chat("s").stream("Hi", on_token=fail)))

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(_: Any) -> None: ...

    with pytest.raises(TimeoutError, match="ours"):
        await answer({"type": "http"}, receive, send)


@pytest.fixture
async def _without_watcher() -> AsyncIterator[None]:
    """sse-starlette starts a task that looks for the end of the program, and never ends it."""
    yield
    AppStatus.should_exit = True
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    AppStatus.should_exit = False


@pytest.mark.usefixtures("_without_watcher")
async def test_in_the_response_of_sse_starlette(scripted: ScriptedServer, client: ChatClient):
    """Who has that in place can go on with it: the bytes go through it as they are, and it stops as soon."""

    async def answer(_: Request) -> Response:
        body = to_sse(client.chat("s").stream("Hi"))
        await body.open()
        return EventSourceResponse(body, headers=body.headers, ping=0)

    async def use(port: int) -> None:
        async def leave() -> float:
            async with Browser(port) as browser:
                await browser.ask()
                begun = await browser.read_until(b'"Hello"}\n\n')
                assert b"\n\nevent: start\ndata: {" in begun
                return browser.leave()

        await closes_soon(scripted, SILENT_AFTER_A_TOKEN, leave)

    await run(Starlette(routes=[Route("/ask", answer, methods=["POST"])]), use)
