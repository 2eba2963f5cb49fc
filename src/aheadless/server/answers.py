"""The answers that are not replies: JSON, the error pages, and the headers that every answer carries."""

from __future__ import annotations

import html
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "INTERNAL_ERROR",
    "KEEP_ALIVE_SECONDS",
    "SECURITY_HEADERS",
    "STRICT_TRANSPORT",
    "Refusal",
    "error_page",
    "json_answer",
    "json_bytes",
]

KEEP_ALIVE_SECONDS: Final = 5  # protocol.md §3.9
INTERNAL_ERROR: Final = "Internal server error"  # protocol.md §2

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
STRICT_TRANSPORT: Final = "max-age=31536000; includeSubDomains"

_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Error</title>
</head>
<body>
<pre>{}</pre>
</body>
</html>
"""


class Refusal(Exception):  # noqa: N818 - it carries an answer, which may well be a right one
    """Ends the handling of a request with this answer."""

    def __init__(self, answer: web.Response) -> None:
        super().__init__(answer.status)
        self.answer = answer


def json_answer(data: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON answer."""
    body = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return json_bytes(body, status, headers=headers)


def json_bytes(body: bytes, status: int = 200, *, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a JSON answer whose body is ready."""
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    )


def error_page(status: int, text: str | None = None) -> web.Response:
    """Return an error page, which is what a browser would be shown."""
    said = html.escape(HTTPStatus(status).phrase if text is None else text)
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": "default-src 'none'"}
    return web.Response(body=_PAGE.format(said).encode("utf-8", "replace"), status=status, headers=headers)
