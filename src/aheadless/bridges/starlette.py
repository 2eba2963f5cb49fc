"""Replies as answers of Starlette and FastAPI, under any ASGI server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aheadless._extras import needs
from aheadless._options import parse_seconds
from aheadless.bridges._refusals import refusal, report
from aheadless.exceptions import AheadlessError

with needs("aheadless[starlette]"):
    from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.types import Message, Receive, Scope, Send

    from aheadless.bridges.web import ByteStream

__all__ = ["refuse", "stream_response"]

# What nginx logs for a browser that left before there was an answer.
LEFT: Final = 499


# It awaits nothing; those of the other frameworks do, and a handler should read the same on each of them.
async def stream_response(
    body: ByteStream, *, headers: Mapping[str, str] | None = None, send_timeout: float | None = 60.0
) -> Response:
    """Return an answer that sends a stream, or the refusal of its turn with its status.

    The turn begins when the framework sends the answer, so its status is not known before. `headers` go along with
    either: a `Set-Cookie`, say. When the browser leaves, the upstream is closed at once, even before the first event.
    When it takes nothing for `send_timeout` seconds, so is the upstream, and the answer is broken off; None: no limit.
    """
    return _Streamed(body, headers or {}, send_timeout)


async def refuse(_request: Request, error: Exception) -> Response:
    """Return the refusal that an error makes: a handler for `exception_handlers={AheadlessError: refuse}`.

    It is for what is raised before there is a stream: a message that is too long, a visitor who asks too often.
    """
    if not isinstance(error, AheadlessError):
        raise error
    report(error)
    return _refused(error, {})


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> Response:
    refused = refusal(error)
    return Response(refused.body, refused.status, {**refused.headers, **headers})


class _Streamed(Response):
    """Opens and sends in one go, with an eye on the browser all the time.

    Starlette's StreamingResponse and sse-starlette's EventSourceResponse are given their status before the turn can be
    refused. The one does not look for a browser that leaves on servers of ASGI 2.4; the other does, but leaves a task
    behind that asks twice a second whether the program is to end.
    """

    def __init__(self, stream: ByteStream, headers: Mapping[str, str], send_timeout: float | None) -> None:
        self.status_code = 200
        self.media_type = stream.media_type
        self.background: BackgroundTask | None = None
        self.init_headers({**stream.headers, **headers})
        self._stream = stream
        self._begun = False
        self._send_timeout = None if send_timeout is None else parse_seconds(send_timeout, "send_timeout")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        leaving, answering = asyncio.create_task(_left(receive)), asyncio.create_task(self._answer(send))
        try:
            await asyncio.wait([leaving, answering], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            await asyncio.wait([leaving, answering])
            await self._stream.aclose()
        for task in (answering, leaving):
            if not task.cancelled():
                task.result()
        if not self._begun:
            # Nobody gets it, but a BaseHTTPMiddleware fails without an answer.
            self.status_code = LEFT
            if await self._begin(send):
                await self._sent(send, {"type": "http.response.body"})
        if self.background is not None:
            await self.background()

    async def _answer(self, send: Send) -> None:
        last = b""
        try:
            await self._stream.open()
        except AheadlessError as exc:
            refused = refusal(exc)
            self.status_code, last = refused.status, refused.body
            self.headers.update(refused.headers)
        else:
            if self._stream.empty:
                self.status_code = 204
        if not await self._begin(send):
            return
        async for piece in self._stream:
            if not await self._sent(send, {"type": "http.response.body", "body": piece, "more_body": True}):
                return
        await self._sent(send, {"type": "http.response.body", "body": last})

    async def _begin(self, send: Send) -> bool:
        self._begun = True
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        return await self._sent(send, start)

    async def _sent(self, send: Send, message: Message) -> bool:
        """Return whether it went out: False if the browser takes nothing, or has left, which some servers say so."""
        try:
            async with asyncio.timeout(self._send_timeout):
                await send(message)
        except OSError:  # a TimeoutError is one
            return False
        return True


async def _left(receive: Receive) -> None:
    """Return when the browser has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
