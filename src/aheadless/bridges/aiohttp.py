"""Replies as answers of aiohttp.web."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web

from aheadless.bridges.web import refusal, report
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from aiohttp.typedefs import Handler

    from aheadless.bridges.web import ByteStream

__all__ = ["refusals", "stream_response"]

# What nginx logs for a browser that left before there was an answer; nobody gets it.
LEFT: Final = 499


async def stream_response(
    request: web.Request, body: ByteStream, *, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    """Send a stream, or the refusal of its turn with its status, and return what was sent, for the handler to return.

    `headers` go along with either: a `Set-Cookie`, say. When the browser leaves, the upstream is closed at once, and
    this returns, or is cancelled if the application runs with `handler_cancellation`.
    """
    given = headers or {}
    answer: web.StreamResponse = web.Response(status=LEFT)
    async with aclosing(body):
        if _has_left(request):
            return answer
        scope = asyncio.timeout(None)
        try:
            async with scope:
                with _watching(request, lambda: scope.reschedule(0)):
                    try:
                        await body.open()
                    except AheadlessError as error:
                        return _refused(error, given)
                    answer = web.StreamResponse(headers={"Content-Type": body.media_type, **body.headers, **given})
                    await answer.prepare(request)
                    async for piece in body:
                        await answer.write(piece)
                    await answer.write_eof()
        except (TimeoutError, ConnectionError):
            if not (scope.expired() or _has_left(request)):
                raise  # from a callback of the stream's
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


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> web.Response:
    refused = refusal(error)
    return web.Response(status=refused.status, headers={**refused.headers, **headers}, body=refused.body)


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


@contextmanager
def _watching(request: web.Request, left: Callable[[], None]) -> Generator[None]:
    """Call `left` when the browser leaves.

    aiohttp.web itself tells a handler only with `handler_cancellation`, and otherwise when it writes to the closed
    connection for the second time: with a model that thinks, many seconds later.
    """
    transport = request.transport
    assert transport is not None  # noqa: S101 - it was there a moment ago
    inner = transport.get_protocol()
    assert isinstance(inner, asyncio.Protocol)  # noqa: S101 - aiohttp's RequestHandler
    watch = _Watch(inner, left)
    transport.set_protocol(watch)
    try:
        yield
    finally:
        if transport.get_protocol() is watch:
            transport.set_protocol(inner)


class _Watch(asyncio.Protocol):
    """Stands between a connection and its protocol, lets everything through, and says when the other side leaves."""

    def __init__(self, inner: asyncio.Protocol, left: Callable[[], None]) -> None:
        self._inner = inner
        self._left = left

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        self._left()
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
