"""Replies as answers of Django, under any ASGI server."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from aheadless._extras import needs
from aheadless.bridges._refusals import refusal, report
from aheadless.bridges._sending import Sending
from aheadless.exceptions import AheadlessError

with needs("django"):
    from asgiref.sync import iscoroutinefunction, markcoroutinefunction
    from django.http import HttpResponse, StreamingHttpResponse  # pyright: ignore[reportMissingTypeStubs]

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from django.http import HttpRequest  # pyright: ignore[reportMissingTypeStubs]
    from django.http.response import HttpResponseBase  # pyright: ignore[reportMissingTypeStubs]

    from aheadless.bridges.web import ByteStream

__all__ = ["RefusalMiddleware", "stream_response"]


async def stream_response(
    body: ByteStream, *, headers: Mapping[str, str] | None = None, send_timeout: float | None = 60.0
) -> HttpResponseBase:
    """Open a stream and return the answer that sends it, or the refusal of its turn with its status.

    `headers` go along with either: a `Set-Cookie`, say. For asynchronous views under ASGI, which Django cancels when
    the browser leaves; the upstream is then closed at once. When the browser takes nothing for `send_timeout` seconds,
    the upstream is closed as well; None: no limit.
    """
    sending = Sending(body, send_timeout)
    try:
        await body.open()
    except AheadlessError as error:
        return _refused(error, headers or {})
    if body.empty:
        await body.aclose()
        return HttpResponse(status=204, headers=headers)
    return _Answer(sending, headers={"Content-Type": body.media_type, **body.headers, **(headers or {})})


class RefusalMiddleware:
    """Answer with a status and a text for the visitor what a view raises of ours: an entry for `MIDDLEWARE`.

    That is what comes before there is a stream: a visitor who is not admitted, a message that is empty.
    """

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], object]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):  # pyright: ignore[reportDeprecated] - asgiref's fits every Python
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> object:
        """Let the request through."""
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:  # noqa: ARG002
        """Return the refusal; None for what is none of ours."""
        if not isinstance(exception, AheadlessError):
            return None
        report(exception)
        return _refused(exception, {})


def _refused(error: AheadlessError, headers: Mapping[str, str]) -> HttpResponse:
    refused = refusal(error)
    return HttpResponse(refused.body, status=refused.status, headers={**refused.headers, **headers})


class _Answer(StreamingHttpResponse):  # type: ignore[misc]  # Django has no types
    """Closes what it sends when Django stops sending it: Django itself would leave that to the collector."""

    def __init__(self, sending: Sending, *, headers: Mapping[str, str]) -> None:
        super().__init__(sending, headers=headers)  # pyright: ignore[reportUnknownMemberType]
        self._sending = sending

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._sending):
            async for piece in cast("AsyncGenerator[bytes]", super().__aiter__()):
                yield piece
