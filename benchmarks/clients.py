"""How each client reads a stream. One function each: it asks, counts the tokens, and returns how many there were.

The rows called "aiohttp, …" are what people write by hand; the SDKs are used as their documentation shows it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Ask = Callable[[str], Awaitable[int]]
OnText = Callable[[str], None] | None

BODY = {"sessionId": "bench", "message": "Hello"}
UNLIMITED = 0


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[Any]:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=UNLIMITED)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as opened:
        yield opened


@contextlib.asynccontextmanager
async def aiohttp_read_only(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """The floor: nothing is parsed."""
    async with session() as http:

        async def ask(path: str) -> int:
            async with http.post(f"{base}/chat/{path}/v1", json=BODY) as response:
                content = response.content
                while await content.readany():
                    pass
            return 0

        yield ask


@contextlib.asynccontextmanager
async def aiohttp_orjson(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """What a careful person writes: chunks, lines, orjson."""
    import orjson

    async with session() as http:

        async def ask(path: str) -> int:
            count, rest = 0, b""
            async with http.post(f"{base}/chat/{path}/v1", json=BODY) as response:
                async for chunk in response.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        event = orjson.loads(line)
                        if event["type"] == "token":
                            count += 1
                            if on_text is not None:
                                on_text(event["token"])
            return count

        yield ask


@contextlib.asynccontextmanager
async def aiohttp_json(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """What most people write: aiohttp's lines, and json."""
    async with session() as http:

        async def ask(path: str) -> int:
            count = 0
            async with http.post(f"{base}/chat/{path}/v1", json=BODY) as response:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "token":
                        count += 1
                        if on_text is not None:
                            on_text(event["token"])
            return count

        yield ask


@contextlib.asynccontextmanager
async def aheadless_events(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """`async for event in chat.stream(…)`."""
    from aheadless import Token

    async with our_client(base) as chat:

        async def ask(path: str) -> int:
            count = 0
            async for event in chat(path).stream("Hello"):
                match event:
                    case Token(text):
                        count += 1
                        if on_text is not None:
                            on_text(text)
            return count

        yield ask


@contextlib.asynccontextmanager
async def aheadless_text(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """`async for text in chat.stream(…).text()`."""
    async with our_client(base) as chat:

        async def ask(path: str) -> int:
            count = 0
            async for text in chat(path).stream("Hello").text():
                count += 1
                if on_text is not None:
                    on_text(text)
            return count

        yield ask


@contextlib.asynccontextmanager
async def aheadless_on_token(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """`await chat.stream(…, on_token=…)` with a plain function."""
    async with our_client(base) as chat:

        async def ask(path: str) -> int:
            count = 0

            def on_token(text: str) -> None:
                nonlocal count
                count += 1
                if on_text is not None:
                    on_text(text)

            await chat(path).stream("Hello", on_token=on_token)
            return count

        yield ask


@contextlib.asynccontextmanager
async def our_client(base: str) -> AsyncIterator[Callable[[str], Any]]:
    """Give chats of one client for each path, as the path is the client's; each turn is a session of its own."""
    from aheadless import ChatClient, Timeouts

    clients: dict[str, ChatClient] = {}
    number = 0

    def chat(path: str) -> Any:
        nonlocal number
        if path not in clients:
            clients[path] = ChatClient(
                base,
                api_key="bench",
                endpoint=f"/chat/{path}/v1",
                max_connections=100_000,
                timeouts=Timeouts(connect=None, first_token=None, idle=None),
            )
        number += 1
        return clients[path].chat(f"bench-{number}")

    try:
        yield chat
    finally:
        for client in clients.values():
            await client.aclose()


@contextlib.asynccontextmanager
async def httpx_json(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """httpx, its lines, and json."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits, trust_env=False) as http:

        async def ask(path: str) -> int:
            count = 0
            async with http.stream("POST", f"{base}/chat/{path}/v1", json=BODY) as response:
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "token":
                        count += 1
                        if on_text is not None:
                            on_text(event["token"])
            return count

        yield ask


@contextlib.asynccontextmanager
async def ollama_sdk(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """The SDK of Ollama, which speaks NDJSON as well."""
    import ollama

    async def ask(path: str) -> int:
        client = ollama.AsyncClient(host=f"{base}/ollama/{path}", trust_env=False)
        count = 0
        async for part in await client.chat("m", [{"role": "user", "content": "Hello"}], stream=True):
            if text := part.message.content:
                count += 1
                if on_text is not None:
                    on_text(text)
        return count

    yield ask


@contextlib.asynccontextmanager
async def openai_sdk(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """The SDK of OpenAI."""
    import openai

    async def ask(path: str) -> int:
        count = 0
        async with openai.AsyncOpenAI(base_url=f"{base}/openai/{path}", api_key="bench", timeout=None) as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
            )
            async for part in stream:
                if text := part.choices[0].delta.content:
                    count += 1
                    if on_text is not None:
                        on_text(text)
        return count

    yield ask


@contextlib.asynccontextmanager
async def anthropic_sdk(base: str, on_text: OnText = None) -> AsyncIterator[Ask]:
    """The SDK of Anthropic, with its helper for streams."""
    import anthropic

    async def ask(path: str) -> int:
        count = 0
        async with (
            anthropic.AsyncAnthropic(base_url=f"{base}/anthropic/{path}", api_key="bench", timeout=None) as client,
            client.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "Hello"}]) as stream,
        ):
            async for text in stream.text_stream:
                count += 1
                if on_text is not None:
                    on_text(text)
        return count

    yield ask


CLIENTS: dict[str, Callable[..., contextlib.AbstractAsyncContextManager[Ask]]] = {
    "aiohttp, read only": aiohttp_read_only,
    "aiohttp + orjson": aiohttp_orjson,
    "aiohttp + json": aiohttp_json,
    "aheadless": aheadless_events,
    "aheadless, text()": aheadless_text,
    "aheadless, on_token": aheadless_on_token,
    "httpx + json": httpx_json,
    "ollama": ollama_sdk,
    "anthropic": anthropic_sdk,
    "openai": openai_sdk,
}

PACKAGES: dict[str, tuple[str, ...]] = dict.fromkeys(CLIENTS, ()) | {
    "aiohttp + orjson": ("orjson",),
    "httpx + json": ("httpx",),
    "ollama": ("ollama",),
    "anthropic": ("anthropic",),
    "openai": ("openai",),
}
"""What has to be installed beside aheadless itself."""
