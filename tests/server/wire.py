"""HTTP by hand, for what a client library hides: the bytes, the order of headers, whether the connection stays open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs

from tests.support import KEY

GOOD = b'{"sessionId":"s","message":"Hi"}'


@attrs.frozen
class Answer:
    """An answer as it came."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    chunk_sizes: list[int] = attrs.field(factory=list)
    version: str = ""

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.body.split(b"\n")[:-1]]


@attrs.frozen
class Connection:
    """One connection to a server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> Answer:
        """Send a request and read its answer."""
        self.writer.write(request)
        await self.writer.drain()
        return await self.answer(head_only=request.startswith(b"HEAD"))

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Read an answer to its end: the length, the last chunk, or the end of the connection."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = [tuple(line.split(": ", 1)) for line in head[1:-2]]
        version, status = head[0].split()[:2]
        answer = Answer(int(status), [(name, value) for name, value in headers], version=version)
        length = answer.header("Content-Length")
        if head_only or answer.status in {100, 204}:
            return answer
        if answer.header("Transfer-Encoding") == "chunked":
            chunks = [chunk async for chunk in self.chunks()]
            return attrs.evolve(answer, body=b"".join(chunks), chunk_sizes=[*map(len, chunks)])
        body = await self.reader.read() if length is None else await self.reader.readexactly(int(length))
        return attrs.evolve(answer, body=body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Return the chunks of a body as they come."""
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    async def is_open(self) -> bool:
        """Whether another request is answered."""
        self.writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            return (await self.answer()).status == 200
        except (asyncio.IncompleteReadError, ConnectionError):
            return False


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Connection]:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass  # the server was faster


async def ask(url: str, request: bytes) -> Answer:
    """Ask once, on a connection of its own."""
    async with connect(url) as connection:
        return await connection.ask(request)


def request(
    method: str, path: str, body: bytes = b"", *headers: str, version: str = "1.1", length: bool = True
) -> bytes:
    fields = ["Host: x", *headers, *([f"Content-Length: {len(body)}"] if length and body else [])]
    return (
        f"{method} {path} HTTP/{version}\r\n".encode("latin-1")
        + "".join(f"{field}\r\n" for field in fields).encode("latin-1")
        + b"\r\n"
        + body
    )


def post(path: str = "/v1/chat", body: bytes = GOOD, *headers: str, version: str = "1.1") -> bytes:
    """Return a chat request that passes every check, but for what is added."""
    defaults = [] if any(h.lower().startswith("content-type") for h in headers) else ["Content-Type: application/json"]
    return request("POST", path, body, f"x-api-key: {KEY}", *defaults, *headers, version=version)
