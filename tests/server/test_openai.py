"""The engine for OpenAI-compatible APIs, against servers on loopback that speak that protocol more or less well."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, TypeAlias

import aiohttp
import pytest
from aiohttp import web

from aheadless import AheadlessError, Message, ProtocolError, Secret, ServerError
from aheadless.server import OpenAIEngine, ServerSettings, run_server
from tests.server.wire import ask, post
from tests.support import KEY

Handler: TypeAlias = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]
SECRET = "sk-0123456789"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Run a model's API; give its base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def saying(*lines: str) -> Handler:
    """Return a handler that streams these lines and ends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text="".join(f"{line}\n" for line in lines), content_type="text/event-stream")

    return handle


def delta(text: str | None, **more: object) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}, **more}]})


def history(count: int = 1) -> list[Message]:
    now = datetime.now(timezone.utc)
    return [Message("assistant" if number % 2 else "user", f"text {number}", created_at=now) for number in range(count)]


async def collect(url: str, messages: Sequence[Message] | None = None) -> list[str]:
    engine = OpenAIEngine(model="m", base_url=url, api_key=Secret(SECRET))
    try:
        return [text async for text in engine.reply(messages or history())]
    finally:
        await engine.aclose()


@pytest.mark.parametrize(
    "lines",
    [
        [delta("a"), delta("b"), "data: [DONE]"],
        [
            delta("a"),
            "",
            ": comment",
            "event: message",
            "id: 1",
            "retry: 5",
            "data",
            "data:",
            delta("b"),
            "data:[DONE]",
        ],
        [delta("a"), delta("b", finish_reason="stop")],
        [delta("a"), delta("b", finish_reason=None), delta(None, finish_reason="length")],
        [delta(None), delta(""), delta("a"), delta("b"), "data: [DONE]", "data: oops"],
        [
            'data: {"choices":[]}',
            'data: {"usage":{}}',
            'data: {"choices":null}',
            delta("a"),
            delta("b"),
            "data: [DONE]",
        ],
        ['data: {"choices":[null]}', 'data: {"choices":[{"delta":null}]}', delta("a"), delta("b"), "data: [DONE]"],
        ['data: {"choices":[{"delta":{"tool_calls":[{}]}}],"error":null}', delta("a"), delta("b"), "data: [DONE]"],
        [delta("a") + "\r", "\r", delta("b") + "\r", "\r", "data: [DONE]\r", "\r"],
    ],
)
async def test_dialects(lines: list[str]) -> None:
    """Two texts and an end, however they are said."""
    async with serving(saying(*lines)) as url:
        assert await collect(url) == ["a", "b"]


async def test_last_line_without_a_newline() -> None:
    """Counts like any other."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(text=delta("a") + "\n" + delta("b", finish_reason="stop"))

    async with serving(handle) as url:
        assert await collect(url) == ["a", "b"]


async def test_texts_come_one_by_one() -> None:
    """Each as soon as the model says it."""
    gates = [asyncio.Event(), asyncio.Event()]

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for text, gate in zip("ab", gates, strict=True):
            await response.write(f"{delta(text)}\n\n".encode())
            await gate.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    async with serving(handle) as url:
        engine = OpenAIEngine(model="m", base_url=url)
        found = []
        async for text in engine.reply(history()):
            found.append(text)
            gates[len(found) - 1].set()
        await engine.aclose()

    assert found == ["a", "b"]


async def test_what_is_asked() -> None:
    """The system prompt, the last 30 messages, the key in its header, and no environment's proxy or cookie."""
    requests: list[tuple[str, dict[str, Any], str | None, str | None]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        requests.append(
            (request.path, await request.json(), request.headers.get("Authorization"), request.headers.get("Cookie"))
        )
        response = web.Response(text="data: [DONE]\n")
        response.set_cookie("tracked", "yes")
        return response

    async with serving(handle) as url:
        engine = OpenAIEngine(model="m", base_url=f"{url}/", api_key=Secret(SECRET), system_prompt="Be kind.")
        for count in (1, 40):
            assert [text async for text in engine.reply(history(count))] == []
        await engine.aclose()

    path, body, authorization, _ = requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "stream": True,
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "text 0"}],
    }
    assert authorization == f"Bearer {SECRET}"
    assert [message["content"] for message in requests[1][1]["messages"]] == [
        "Be kind.",
        *(f"text {number}" for number in range(10, 40)),
    ]
    assert requests[1][3] is None


@pytest.mark.parametrize(
    ("lines", "kind", "match"),
    [
        ([delta("a")], ProtocolError, "without a finish_reason and without"),
        ([], ProtocolError, "without a finish_reason and without"),
        (["data: {"], ProtocolError, "not JSON"),
        (["data: []"], ProtocolError, "expected an object"),
        (["data: " + "[" * 100_000], ProtocolError, "nested too deep"),
        (['data: {"error":{"message":"over\\u001b[31mloaded"}}'], AheadlessError, r"over\\u001b\[31mloaded"),
        (['data: {"error":"no"}'], AheadlessError, "no"),
        (["data: " + "x" * 1024 * 1024], ProtocolError, "longer than 1048576"),
    ],
)
async def test_streams_that_fail(lines: list[str], kind: type[Exception], match: str) -> None:
    """A reply that was cut does not pass as complete; foreign text is escaped."""
    async with serving(saying(*lines)) as url:
        with pytest.raises(kind, match=match):
            await collect(url)


@pytest.mark.parametrize("status", [201, 204, 302, 401, 404, 429, 500])
async def test_refusals(status: int) -> None:
    """Anything but 200: the status and a bounded piece of what was said, without the key; no redirect is followed."""
    paths: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        said = f"bad key {SECRET}\x1b " + "x" * 1_000_000
        return web.Response(status=status, text=None if status == 204 else said, headers={"Location": "/elsewhere"})

    async with serving(handle) as url:
        with pytest.raises(ServerError, match=f"answered {status}") as caught:
            await collect(url)

    assert caught.value.status == status
    assert len(str(caught.value)) < 300
    assert SECRET not in str(caught.value)
    assert paths == ["/v1/chat/completions"]


async def test_connection_that_breaks() -> None:
    """Is a failure, not an end."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(f"{delta('a')}\n".encode())
        assert request.transport is not None
        request.transport.abort()
        return response

    async with serving(handle) as url:
        with pytest.raises(aiohttp.ClientError):
            await collect(url)


async def test_nobody_there() -> None:
    """A refused connection fails the reply."""
    async with serving(saying()) as url:
        pass
    with pytest.raises(aiohttp.ClientConnectionError):
        await collect(url)


async def test_the_key_is_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the log of a server whose model refuses it, nor in the answer, nor in the settings."""
    caplog.set_level(logging.DEBUG)

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=401, text=f"no such key: {request.headers['Authorization']}")

    async with serving(handle) as url:
        settings = ServerSettings(
            port=0, api_key=KEY, engine="openai", openai_model="m", openai_base_url=url, openai_api_key=SECRET
        )
        async with run_server(settings) as server:
            answer = await ask(server.url, post())

    assert answer.text == '{"error":"Internal server error"}'
    assert "ServerError with status 401" in caplog.text
    for text in (caplog.text, repr(settings), repr(server)):
        assert SECRET not in text
        assert KEY not in text


async def test_replies_of_a_server() -> None:
    """The whole way: the model's texts are the tokens of the stream."""
    async with serving(saying(delta("Hel"), delta("lo "), "data: [DONE]")) as url:
        settings = ServerSettings(port=0, api_key=KEY, engine="openai", openai_model="m", openai_base_url=url)
        async with run_server(settings) as server:
            answer = await ask(server.url, post("/v1/chat/stream"))

    assert [event.get("token") for event in answer.events] == [None, "Hel", "lo ", None]
    assert answer.events[-1]["message"] == "Hello"
