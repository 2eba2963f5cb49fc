"""Replies as answers of aiohttp.web."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from aiohttp import web

from aheadless._options import parse_seconds
from aheadless.bridges._refusals import refusal, report
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from aiohttp.typedefs import Handler

    from aheadless.bridges.web import ByteStream

__all__ = ["refusals", "stream_response"]

# What nginx logs for a browser that left before there was an answer; nobody gets it.
LEFT: Final = 499


async def stream_response(
    request: web.Request,
    body: ByteStream,
    *,
    headers: Mapping[str, str] | None = None,
    send_timeout: float | None = 60.0,
) -> web.StreamResponse:
    """Send a stream, or the refusal of its turn with its status, and return what the handler has to return.

    `headers` go along in any case: a `Set-Cookie`, say. Where nothing is left to resume, the status is 204. When the
    browser leaves, the upstream is closed at once, and this returns, or is cancelled if the application runs with
    `handler_cancellation`. When it takes nothing for `send_timeout` seconds, the connection is cut as if it had left;
    None: no limit.
    """
    patience = None if send_timeout is None else parse_seconds(send_timeout, "send_timeout")
    answer: web.StreamResponse = web.Response(status=LEFT)
    transport = request.transport
    async with aclosing(body):
        if transport is None or transport.is_closing():
            return answer
        async with _WhileThere(transport):
            answer = await _begin(body, headers or {})
            if isinstance(answer, web.Response):
                return answer
            await answer.prepare(request)
            async for piece in body:
                await _write(answer, piece, transport, patience)
            await answer.write_eof()
    return answer


@web.middleware
async def refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with a status and a text for the visitor what a handler raises of ours: a middleware for the application.

    That is what comes before there is a stream: a visitor who is not admitted, a message that is empty.
    """
    try:
        return await handler(request)
    except AheadlessError as error:
        report(error)
        return _refused(error, {})


async def _begin(body: ByteStream, headers: Mapping[str, str]) -> web.StreamResponse:
    """Return the answer to be filled with the stream, or a Response, which is whole."""
    try:
        await body.open()
    except AheadlessError as error:
        return _refused(error, headers)
    if body.empty:
        return web.Response(status=204, headers=headers)
    return web.StreamResponse(headers={"Content-Type": body.media_type, **body.headers, **headers})


async def _write(answer: web.StreamResponse, piece: bytes, to: asyncio.Transport, patience: float | None) -> None:
    try:
        async with asyncio.timeout(patience):
            await answer.write(piece)
    except TimeoutError:
        to.abort()
        raise ConnectionResetError("the browser takes nothing") from None


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> web.Response:
    refused = refusal(error)
    return web.Response(status=refused.status, headers={**refused.headers, **headers}, body=refused.body)


class _WhileThere(asyncio.Protocol):
    """A block that ends, without an error, when the other side of a connection leaves.

    aiohttp.web itself tells a handler only with `handler_cancellation`, and otherwise when it writes to the closed
    connection for the second time: with a model that thinks, many seconds later. So this stands between the connection
    and its protocol as long as the block lasts, and lets everything through.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        inner = transport.get_protocol()
        assert isinstance(inner, asyncio.Protocol)  # noqa: S101 - aiohttp's RequestHandler
        self._transport = transport
        self._inner = inner
        self._scope = asyncio.timeout(None)  # to end the block from outside
        self._left = False

    async def __aenter__(self) -> None:
        await self._scope.__aenter__()
        self._transport.set_protocol(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._transport.get_protocol() is self:
            self._transport.set_protocol(self._inner)
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            return True
        return isinstance(error, ConnectionError) and self._transport.is_closing()  # found out by writing

    def _leave(self) -> None:
        if not self._left:  # the end of what it sends, and the end of the connection: both come
            self._left = True
            self._scope.reschedule(0)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._leave()
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
