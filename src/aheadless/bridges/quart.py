"""Replies as answers of Quart, under any ASGI server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aheadless._extras import needs
from aheadless.bridges._refusals import refusal, report
from aheadless.bridges._sending import Sending
from aheadless.exceptions import AheadlessError

with needs("quart"):
    from quart import Response

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aheadless.bridges.web import ByteStream

__all__ = ["refuse", "stream_response"]


async def stream_response(
    body: ByteStream, *, headers: Mapping[str, str] | None = None, send_timeout: float | None = 60.0
) -> Response:
    """Open a stream and return the answer that sends it, or the refusal of its turn with its status.

    `headers` go along with either: a `Set-Cookie`, say. Quart cancels the handler when the browser leaves and closes
    what it sends, and the upstream with it. When the browser takes nothing for `send_timeout` seconds, the upstream is
    closed as well; None: no limit. The application's `RESPONSE_TIMEOUT` is not for these answers.
    """
    sending = Sending(body, send_timeout)
    try:
        await body.open()
    except AheadlessError as error:
        return _refused(error, headers or {})
    if body.empty:
        await body.aclose()
        return Response(status=204, headers={**(headers or {})})
    answer = Response(sending, headers={**body.headers, **(headers or {})}, content_type=body.media_type)
    answer.timeout = None
    return answer


async def refuse(error: AheadlessError) -> Response:
    """Return a status and a text for the visitor: for `app.register_error_handler(AheadlessError, refuse)`.

    It is for what handlers raise before there is a stream: a visitor who is not admitted, a message that is empty.
    """
    report(error)
    return _refused(error, {})


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> Response:
    refused = refusal(error)
    return Response(refused.body, refused.status, {**refused.headers, **headers})
