"""Replies as answers of Django, under any ASGI server."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, cast

from django.http import HttpResponse, StreamingHttpResponse  # pyright: ignore[reportMissingTypeStubs]

from aheadless.bridges.web import refusal
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from django.http.response import HttpResponseBase  # pyright: ignore[reportMissingTypeStubs]

    from aheadless.bridges.web import ByteStream

__all__ = ["stream_response"]


async def stream_response(body: ByteStream, *, headers: Mapping[str, str] | None = None) -> HttpResponseBase:
    """Open a stream and return the answer that sends it, or the refusal of its turn with its status.

    `headers` go along with either: a `Set-Cookie`, say. For asynchronous views under ASGI, which Django cancels when
    the browser leaves; the upstream is then closed at once.
    """
    try:
        await body.open()
    except AheadlessError as error:
        refused = refusal(error)
        return HttpResponse(refused.body, status=refused.status, headers={**refused.headers, **(headers or {})})
    return _Answer(body, headers={"Content-Type": body.media_type, **body.headers, **(headers or {})})


class _Answer(StreamingHttpResponse):  # type: ignore[misc]  # Django has no types
    """Closes what it sends when Django stops sending it: Django itself would leave that to the collector."""

    def __init__(self, body: ByteStream, *, headers: Mapping[str, str]) -> None:
        super().__init__(body, headers=headers)  # pyright: ignore[reportUnknownMemberType]
        self._body = body

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._body):
            async for piece in cast("AsyncGenerator[bytes]", super().__aiter__()):
                yield piece
