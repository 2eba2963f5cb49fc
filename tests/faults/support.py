"""What the tests of faults share: a server that never stops, and a connection of which the kernel holds next to
nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from aheadless import ChatClient, Retry
from aheadless.protocol.events import Event
from aheadless.testing import stream_answer
from tests.support import KEY

# For each side; the kernel doubles it, and would make it megabytes if it were left alone.
KERNEL_BUFFER = 65_536

NARROW = 1_000_000
"""More than the kernel's and asyncio's buffers hold of one connection together."""


class Flood:
    """A server that begins an answer, says the same over and over as fast as the client takes it, and ends it if there
    is an end."""

    def __init__(
        self, piece: bytes, *, count: int | None = None, begin: list[Event | bytes], last: bytes = b""
    ) -> None:
        self.sent = 0
        """How many bytes of the pieces have left."""
        self.stuck = asyncio.Event()
        """Set when the client takes no more for the moment, and when all is sent."""
        self.left = asyncio.Event()
        """Set when the client has closed the connection before the end."""
        self.url = ""
        self._piece, self._count, self._last = piece, count, last
        self._begin = stream_answer(begin, framing="close")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._begin)
            while self._count is None or self.sent < self._count * len(self._piece):
                writer.write(self._piece)
                await self._drain(writer)
                self.sent += len(self._piece)
            writer.write(self._last)
            await self._drain(writer)
            self.stuck.set()
        except OSError:
            self.left.set()
        finally:
            writer.close()

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        waiting = asyncio.ensure_future(writer.drain())
        # A client that reads at all has made room after so many passes of the loop that both share.
        for _ in range(100):
            await asyncio.sleep(0)
            if waiting.done():
                break
        else:
            self.stuck.set()
        await waiting

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Flood]:
        """Serve on loopback as long as the block lasts."""
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
            server = await asyncio.start_server(self._answer, sock=listening)
            self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                yield self
            finally:
                server.close()


@asynccontextmanager
async def narrow_client(url: str) -> AsyncIterator[ChatClient]:
    """A client whose connections have small buffers in the kernel, so that back-pressure is felt at once."""

    def make_socket(address: aiohttp.connector.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        return sock

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=make_socket)) as session:
        async with ChatClient(url, api_key=KEY, session=session, retry=Retry(attempts=1)) as client:
            yield client
