"""A TCP proxy that cuts the connection of one chat request, at whatever byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Side = Literal["request", "response"]
How = Literal["fin", "rst"]


class CuttingProxy:
    """Pass everything on, but for the next POST: that ends after so many bytes of its request or of its answer."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._upstream = (address.hostname, address.port)
        self._cut: tuple[Side, int, How] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.sizes: dict[Side, int] = {"request": 0, "response": 0}
        """How many bytes the last POST and its answer had."""
        self.posts = 0

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self, side: Side, size: int, how: How) -> None:
        """Cut the next POST."""
        self._cut = side, size, how

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # the end of the test; asyncio would complain of it
            await _Connection(self, reader, writer).run(*self._upstream)

    def take_cut(self) -> tuple[Side, int, How] | None:
        cut, self._cut = self._cut, None
        return cut


class _Connection:
    def __init__(self, proxy: CuttingProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._cut: tuple[Side, int, How] | None = None
        self._posting = False

    async def run(self, host: str | None, port: int | None) -> None:
        how: How = "fin"
        writers = [self._writer]
        try:
            reader, writer = await asyncio.open_connection(host, port)
            writers.append(writer)
            ways = [
                asyncio.create_task(self._pass("request", self._reader, writer)),
                asyncio.create_task(self._pass("response", reader, self._writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                results = await asyncio.gather(*ways, return_exceptions=True)
            if "rst" in results:
                how = "rst"
        except OSError:
            pass
        finally:
            for writer in writers:
                if how == "rst":
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
                writer.close()

    async def _pass(self, side: Side, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> How:
        while data := await reader.read(65536):
            if side == "request" and not data.startswith(b"POST ") and not self._posting:
                writer.write(data)
                continue
            if side == "request" and not self._posting:
                self._posting = True
                self._cut = self._proxy.take_cut()
                self._proxy.posts += 1
                self._proxy.sizes = {"request": 0, "response": 0}
            if not self._posting:
                writer.write(data)
                continue
            sent = self._proxy.sizes[side]
            if self._cut is not None and self._cut[0] == side and sent + len(data) >= self._cut[1]:
                writer.write(data[: self._cut[1] - sent])
                await writer.drain()
                return self._cut[2]
            self._proxy.sizes[side] += len(data)
            writer.write(data)
            if side == "response" and data.endswith(b"0\r\n\r\n"):
                self._posting = False  # the next request on this connection may be a GET
        return "fin"
