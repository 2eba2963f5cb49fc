"""The request's body, read as leniently as the reference reads it (protocol.md §1)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, NoReturn

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aheadless.server.answers import Refusal, error_page

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["MAX_BODY", "parse_body", "read_body"]

MAX_BODY: Final = 2_097_152  # bytes, protocol.md §1

# A body that is refused is still taken in, so that the connection stays usable; but not without an end.
MAX_DRAIN: Final = 64 * 1024 * 1024


async def read_body(request: web.Request) -> object:
    """Return the parsed body; {} when there is none or it is no JSON. Raises Refusal: 400, 413 or 415."""
    if request.content_type != "application/json" or not request.can_read_body:
        await _drain(request)
        return {}
    charset = (request.charset or "utf-8").lower()
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if not charset.startswith("utf-") or coding not in {"identity", "gzip", "deflate"}:
        await _drain(request)
        raise Refusal(error_page(415))
    try:
        return parse_body(await _read(request), charset)
    except (ValueError, LookupError, RecursionError):
        raise Refusal(error_page(400)) from None


def parse_body(data: bytes, charset: str = "utf-8") -> object:
    """Return the JSON object or array in `data`, {} for no data.

    A byte order mark is passed over, what cannot be decoded becomes U+FFFD, of a repeated key the last counts. Raises
    ValueError for anything else, and RecursionError for what is nested too deep.
    """
    if not data:
        return {}
    text = data.decode(charset, "replace").removeprefix("\ufeff")
    if not re.match(r"[ \t\r\n]*[{\[]", text):
        raise ValueError("neither an object nor an array")
    # An unknown field may hold a number of any length; as a float it costs nothing.
    return json.loads(text, parse_constant=_refuse, parse_int=float)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


async def _read(request: web.Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := await request.content.readany():
            size += len(chunk)  # after decompression: a bomb is too large, whatever came over the wire
            if size > MAX_BODY:
                chunks.clear()
                if size > MAX_DRAIN:
                    break
            else:
                chunks.append(chunk)
    except (aiohttp.ClientError, aiohttp.web.RequestPayloadError, HttpProcessingError):
        raise Refusal(error_page(400)) from None
    if size > MAX_BODY:
        raise Refusal(error_page(413))
    return b"".join(chunks)


async def _drain(request: web.Request) -> None:
    size = 0
    try:
        while size <= MAX_DRAIN and (chunk := await request.content.readany()):
            size += len(chunk)
    except (aiohttp.ClientError, aiohttp.web.RequestPayloadError, HttpProcessingError):
        raise Refusal(error_page(400)) from None
