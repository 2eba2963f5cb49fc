"""The embedded server, and the same application on plain aiohttp.web that stores nothing and limits nobody.

Both ask the same engine. A third kind, "unstored", is the embedded server with nothing behind its storage: what it
costs more than the plain one is what the API costs, and what the first one costs more than it is what SQLite costs.

`python -m benchmarks.servers <kind>` serves until its standard input ends; `measured(kind, …)` puts it under load.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from aiohttp import web

from aheadless import Message
from aheadless.server import ServerSettings, run_server
from aheadless.server.storage import Storage
from benchmarks.measure import pin, raise_file_limit

KINDS = ("aheadless", "unstored", "plain")
CONVERSATION = "c" * 32
KEY = "benchmark-key-0123456789abcdef"
TOKENS = [f"token{number} " for number in range(20)]
CONNECTIONS = 32


class Twenty:
    """Says the same twenty words to everybody."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        for token in TOKENS:
            yield token


class Forgetful(Storage):
    """Stores nothing."""

    async def add_question(self, session_id: str, text: str) -> tuple[str, list[Message]]:
        return CONVERSATION, [Message("user", text, created_at=datetime.now(timezone.utc))]

    async def add_reply(self, conversation_id: str, text: str) -> None:
        pass


# --- servers ----------------------------------------------------------------------------------------------------------


async def serve_ours() -> None:
    with TemporaryDirectory() as folder:
        settings = ServerSettings(
            port=0, api_key=KEY, engine=Twenty(), database=Path(folder, "chats.db"), rate_limit=None
        )
        async with run_server(settings) as server:
            await announce(int(server.url.rpartition(":")[2]))


async def serve_plain() -> None:
    app = web.Application()
    app.add_routes([web.post("/v1/chat", plain_reply), web.post("/v1/chat/stream", plain_stream)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    await announce(runner.addresses[0][1])
    await runner.cleanup()


async def serve(kind: str) -> None:
    with patch("aheadless.server.api.Storage", Forgetful if kind == "unstored" else Storage):
        await (serve_plain() if kind == "plain" else serve_ours())


async def announce(port: int) -> None:
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def asked(request: web.Request) -> str:
    """Check what has to be checked, and return the message."""
    if request.headers.get("x-api-key") != KEY:
        raise web.HTTPUnauthorized
    body = await request.json()
    if not isinstance(body.get("sessionId"), str) or not isinstance(body.get("message"), str):
        raise web.HTTPBadRequest
    return str(body["message"])


def line(event: dict[str, str]) -> bytes:
    return json.dumps(event).encode() + b"\n"


async def plain_reply(request: web.Request) -> web.Response:
    await asked(request)
    text = "".join([token async for token in Twenty().reply([])]).strip()
    return web.json_response({"conversationId": CONVERSATION, "message": text})


async def plain_stream(request: web.Request) -> web.StreamResponse:
    await asked(request)
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    await response.write(line({"type": "start", "conversationId": CONVERSATION}))
    tokens = []
    async for token in Twenty().reply([]):
        tokens.append(token)
        await response.write(line({"type": "token", "token": token}))
    await response.write(line({"type": "done", "message": "".join(tokens).strip(), "conversationId": CONVERSATION}))
    await response.write_eof()
    return response


# --- load -------------------------------------------------------------------------------------------------------------


class Asker(asyncio.Protocol):
    """Asks over one connection, again and again, as little as possible being done with the answers."""

    def __init__(self, requests: list[bytes], end: bytes, ended: asyncio.Future[None]) -> None:
        self.requests = requests
        self.end = end
        self.ended = ended
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if self.requests:
            self.transport.write(self.requests.pop())  # type: ignore[attr-defined]
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-8:]
        if self.tail.endswith(self.end):
            self.tail = b""
            self.ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and not self.requests:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(exc or ConnectionError("the server closed the connection"))


def request(path: str, session: str) -> bytes:
    body = json.dumps({"sessionId": session, "message": "Hello"}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nx-api-key: {KEY}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def ask_all(port: int, path: str, *, turns: int, connections: int) -> float:
    """Return how many answers a second there were."""
    loop = asyncio.get_running_loop()
    requests = [request(path, f"bench-{number}") for number in range(turns)]
    end = b"0\r\n\r\n" if path.endswith("stream") else b'"}'
    begun = time.perf_counter()
    ends = []
    for _ in range(connections):
        ended = loop.create_future()
        ends.append(ended)
        await loop.create_connection(lambda ended=ended: Asker(requests, end, ended), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return turns / (time.perf_counter() - begun)


async def load(port: int, turns: int, streams: int) -> dict[str, float]:
    await ask_all(port, "/v1/chat", turns=50, connections=2)
    return {
        "replies": await ask_all(port, "/v1/chat", turns=turns, connections=CONNECTIONS),
        "streams": await ask_all(port, "/v1/chat/stream", turns=turns, connections=streams),
    }


def measured(kind: str, *, turns: int, streams: int) -> dict[str, float]:
    """Return answers a second of one kind of server: whole replies, and streams of which so many are open at once."""
    pin(0)
    command = [sys.executable, "-m", "benchmarks.servers", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            return asyncio.run(load(int(process.stdout.readline()), turns, streams))
        finally:
            process.stdin.close()


if __name__ == "__main__":
    pin(1)
    raise_file_limit()
    asyncio.run(serve(sys.argv[1]))
