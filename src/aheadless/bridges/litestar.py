"""Replies as answers of Litestar, under any ASGI server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from aheadless._extras import needs
from aheadless.bridges._refusals import refusal, report
from aheadless.bridges._sending import Sending
from aheadless.exceptions import AheadlessError

with needs("litestar"):
    from litestar import Request, Response
    from litestar.background_tasks import BackgroundTask
    from litestar.response import Stream

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.types import Receive

    from aheadless.bridges.web import ByteStream

__all__ = ["refuse", "stream_response"]


async def stream_response(
    request: Request[Any, Any, Any],
    body: ByteStream,
    *,
    headers: Mapping[str, str] | None = None,
    send_timeout: float | None = 60.0,
) -> Response[Any]:
    """Open a stream and return the answer that sends it, or the refusal of its turn with its status.

    `headers` go along with either: a `Set-Cookie`, say. When the browser leaves, the upstream is closed at once, also
    while this waits for the first event: from the call on, nothing else can read the request's body. When the browser
    takes nothing for `send_timeout` seconds, the upstream is closed as well; None: no limit. If cancelled, it is too.
    """
    sending = Sending(body, send_timeout)
    leaving = asyncio.ensure_future(_close_on_leave(body, request.receive))
    try:
        await body.open()
    except AheadlessError as error:
        return _refused(error, headers or {})
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    if body.empty:
        await body.aclose()
        return Response(None, status_code=204, headers=headers)
    return Stream(
        sending,
        status_code=200,
        media_type=body.media_type,
        headers={**body.headers, **(headers or {})},
        # Litestar stops sending when the browser leaves, and then comes to this; what it sends it does not close.
        background=BackgroundTask(sending.aclose),
    )


def refuse(request: Request[Any, Any, Any], error: AheadlessError) -> Response[bytes]:  # noqa: ARG001 - Litestar's way
    """Return a status and a text for the visitor: for `Litestar(..., exception_handlers={AheadlessError: refuse})`.

    It is for what handlers raise before there is a stream: a visitor who is not admitted, a message that is empty.
    """
    report(error)
    return _refused(error, {})


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> Response[bytes]:
    refused = refusal(error)
    return Response(refused.body, status_code=refused.status, headers={**refused.headers, **headers})


async def _close_on_leave(body: ByteStream, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    await body.aclose()
