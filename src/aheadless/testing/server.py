"""A server on a real socket that does what its scripts say, fault by fault, and keeps a log of what reached it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import attrs

from aheadless.testing.scripts import Script, events, stream_answer

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from aheadless.testing.scripts import End

__all__ = ["Request", "ScriptedServer"]

# Far above any request of this API (2 MiB, protocol.md §1).
MAX_REQUEST = 4 * 1024 * 1024


# A failing assertion prints requests, and the program under test may have sent a real key.
_KEYS = frozenset({"x-api-key", "x-widget-api-key", "x-admin-api-key", "authorization", "proxy-authorization"})


def _without_keys(headers: tuple[tuple[str, str], ...]) -> str:
    return repr(tuple((name, "***" if name.lower() in _KEYS else value) for name, value in headers))


@attrs.define(eq=False)
class Request:
    """A request as the server got it; its `repr` shows no key, `headers` has it."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=_without_keys)
    body: bytes = b""
    whole: bool = False
    """Whether all of it was read."""

    size: int = 0
    """How many bytes of it were read, head and body."""

    refused: bool = False
    """Whether its script turns it away before a real server would have stored anything: see `Script.refuses`."""

    left: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    """Set once the connection is closed, by the client or as the script ends it."""

    left_at: float | None = None
    """When that was, in loop time."""

    def header(self, name: str) -> str | None:
        """Return the value of a header, or None."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class ScriptedServer:
    """A server on loopback that answers each request by the next script, faults included.

    A request for which there is none gets a short whole stream, or what `otherwise` makes of it. Every path, method and
    key is taken. What is no HTTP request costs its sender the connection.

    ::

        async with ScriptedServer() as server:
            server.add(Script(stream_answer(events("Hel", "lo"))).cut(200, "rst"))
            client = ChatClient(server.url, api_key="any key")

    Leaving the block closes every connection.
    """

    def __init__(
        self,
        *scripts: Script,
        otherwise: Callable[[Request], Script] | None = None,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self.requests: list[Request] = []
        """All requests whose head was read, in order."""
        self.connections: int = 0
        """How many connections were accepted."""
        self._scripts = deque(scripts)
        self._otherwise = otherwise or _say_hello
        self._ssl = ssl
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._arrived = asyncio.Condition()
        self._port = 0

    def __repr__(self) -> str:
        listening = self._server is not None and self._server.is_serving()
        return f"<ScriptedServer {self.url if listening else 'not listening'}, {len(self.requests)} requests>"

    @property
    def url(self) -> str:
        """The base URL, such as `http://127.0.0.1:40321`; usable within the block."""
        return f"http{'s' * bool(self._ssl)}://127.0.0.1:{self._port}"

    @property
    def stored(self) -> list[Request]:
        """The chat requests whose message a real server has stored: those read whole and not refused."""
        return [
            request for request in self.requests if request.method == "POST" and request.whole and not request.refused
        ]

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def add(self, *scripts: Script) -> None:
        """Append scripts for the next requests."""
        self._scripts.extend(scripts)

    async def arrived(self, count: int) -> Request:
        """Wait until `count` requests have come whole or as far as their scripts read; return that last one."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests[count - 1]

    async def __aenter__(self) -> ScriptedServer:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._accept), "127.0.0.1", self._port, ssl=self._ssl
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and cut every connection; new ones are refused from now on. May be called again."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, connection: _Connection) -> None:
        self.connections += 1
        self._open.add(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: _Connection) -> None:
        try:
            while await self._answer(connection):
                pass
        except _Gone:
            pass
        finally:
            self._open.discard(connection)
            connection.close()

    async def _answer(self, connection: _Connection) -> bool:
        if self._scripts and self._scripts[0].read == 0:
            script: Script | None = self._scripts.popleft()
        else:
            script = None
            await connection.readable()
            if self._scripts:
                script = self._scripts.popleft()
        request = await connection.read_request(None if script is None else script.read)
        if script is None:
            assert request is not None  # noqa: S101 - it was read whole
            script = self._otherwise(request)
        if request is not None:
            request.refused = script.refuses
            self.requests.append(request)
        async with self._arrived:
            self._arrived.notify_all()
        for offset, piece in script.slices():
            if (gate := script.gates.get(offset)) is not None:
                await connection.unless_gone(gate.wait())
            await connection.write(piece)
        if (gate := script.gates.get(len(script.data))) is not None:
            await connection.unless_gone(gate.wait())
        while script.drip:
            await connection.write(script.drip)
            await connection.unless_gone(asyncio.sleep(script.interval))
        return await connection.end(script.end)


def _say_hello(_request: Request) -> Script:
    return Script(stream_answer(events("Hello", " world")))


class _Gone(Exception):  # noqa: N818 - an event, not an error
    """The client closed the connection."""


class _Connection(asyncio.Protocol):
    """One connection: what came in, and whether the client is still there."""

    def __init__(self, accepted: Callable[[_Connection], None]) -> None:
        self._accepted = accepted
        self._received = bytearray()
        self._changed = asyncio.Event()
        self._gone: asyncio.Future[float] = asyncio.get_running_loop().create_future()  # when the connection was closed
        self._requests: list[Request] = []
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not looked into: uvloop's are no subclass.
        self._transport = cast("asyncio.Transport", transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._changed.set()
        if len(self._received) > MAX_REQUEST:
            self.abort()

    def eof_received(self) -> None:
        self._leave()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._leave()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _leave(self) -> None:
        if not self._gone.done():
            self._gone.set_result(asyncio.get_running_loop().time())
        self._note_leave()

    def _note_leave(self) -> None:
        if self._gone.done():
            for request in self._requests:
                request.left_at = self._gone.result()
                request.left.set()

    # --- for the server ---

    async def unless_gone(self, waiting: Coroutine[object, object, object]) -> None:
        """Wait for something as long as the client is there; raise _Gone when it leaves."""
        task = asyncio.ensure_future(waiting)
        either: set[asyncio.Future[Any]] = {task, self._gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = task.done()
            task.cancel()
        if not finished:
            raise _Gone

    async def readable(self) -> None:
        """Wait for the first byte of a request."""
        while not self._received:
            self._changed.clear()
            await self.unless_gone(self._changed.wait())

    async def read_request(self, limit: int | None) -> Request | None:
        """Read a request, or its first `limit` bytes; None when its head was not among them."""
        if limit is not None:
            while len(self._received) < limit:
                self._changed.clear()
                await self.unless_gone(self._changed.wait())
            del self._received[limit:]
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if limit is not None:
                return None
            self._changed.clear()
            await self.unless_gone(self._changed.wait())
        first, *fields = self._received[:end].decode("latin-1").split("\r\n")
        headers = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
        try:
            method, path, _version = first.split(" ", 2)
            request = Request(method, path, headers)
            length = int(request.header("content-length") or 0)
        except ValueError:
            raise _Gone from None
        self._requests.append(request)
        self._note_leave()  # the client may have written it and left before it was read
        del self._received[: end + 4]
        while len(self._received) < length and limit is None:
            self._changed.clear()
            await self.unless_gone(self._changed.wait())
        request.body = bytes(self._received[:length])
        request.whole = len(request.body) == length
        request.size = end + 4 + len(request.body)
        del self._received[:length]
        return request

    async def write(self, data: bytes) -> None:
        """Send bytes as a packet of their own, as far as the kernel lets us."""
        assert self._transport is not None  # noqa: S101 - connected
        if self._gone.done():
            raise _Gone
        self._transport.write(data)
        # Give the reader, which is in this process as often as not, the chance to take this piece alone.
        await asyncio.sleep(0)
        await self.unless_gone(self._writable.wait())

    async def end(self, how: End) -> bool:
        """Do what follows the answer; return whether another request can come."""
        if how == "stall":
            await asyncio.shield(self._gone)  # the server's end cancels this wait, not what is waited for
        elif how == "rst":
            self.reset()
        return how == "keep"

    def reset(self) -> None:
        """Close with a RST: what was not sent is thrown away."""
        assert self._transport is not None  # noqa: S101 - connected
        if (sock := self._transport.get_extra_info("socket")) is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close in order: what was written is sent, then a FIN."""
        if self._transport is not None:
            self._transport.close()
