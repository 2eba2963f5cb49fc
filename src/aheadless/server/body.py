"""The request's body, read as leniently as the reference reads it (protocol.md §1)."""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

from aiohttp.web import RequestPayloadError

from aheadless.server.answers import Refusal, error_page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from aiohttp import web

__all__ = ["MAX_BODY", "Inflater", "Room", "discard_body", "parse_body", "read_body"]

T = TypeVar("T")

MAX_BODY: Final = 2_097_152  # bytes, protocol.md §1

# A body that is refused is still taken in, so that the connection stays usable; but not without an end.
MAX_DRAIN: Final = 64 * 1024 * 1024

# A message takes 24 KB however it is escaped. What is longer, up to MAX_BODY, is kept only while all such bodies
# together fit in here: a flood of large uploads costs no more, and holds up no message.
SMALL_BODY: Final = 64 * 1024
MAX_LARGE_BODIES: Final = 128 * 1024 * 1024

# Node's own limit for a whole request; without one, a client that trickles holds its connection for ever.
UPLOAD_TIMEOUT: Final = 300.0  # seconds

_CHARSETS: Final = frozenset({"utf-8", "utf-16", "utf-16le", "utf-16be"})
_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_FIELDS: Final = frozenset({"sessionId", "message"})
_GZIP_MAGIC: Final = b"\x1f\x8b"
_CONTAINER: Final = re.compile(r"[ \t\r\n]*[{\[]")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


# An unknown field may hold a number of any length; as a float it costs nothing.
_JSON: Final = json.JSONDecoder(parse_constant=_refuse, parse_int=float)


class Room:
    """The memory for the large ones among the bodies that are being read."""

    def __init__(self, size: int = MAX_LARGE_BODIES) -> None:
        self._free = size

    @contextmanager
    def share(self) -> Generator[Callable[[int], bool]]:
        """Give a function that says whether a body may grow to a size; what it was given is free after the block."""
        held = 0

        def may_hold(size: int) -> bool:
            nonlocal held
            if size <= max(SMALL_BODY, held):
                return True
            if size - held > self._free:
                return False
            self._free -= size - held
            held = size
            return True

        try:
            yield may_hold
        finally:
            self._free += held


async def read_body(request: web.Request, *, inflated: bool, room: Room) -> object:
    """Return the parsed body; {} when there is none or it is no JSON. Raises Refusal: 400, 408, 413, 415 or 503.

    `inflated` says that aiohttp has undone the content coding already. A refused body of a sane size was read to its
    end, so the connection stays usable. Of an object only what a request can hold is there.
    """
    if not request.can_read_body:
        return {}
    with room.share() as may_hold:
        return await _bounded(request, _read_body(request, inflated=inflated, may_hold=may_hold))


async def discard_body(request: web.Request) -> None:
    """Take in a body that nobody wants, so that the connection stays usable. Raises Refusal: 400 or 408."""
    if request.can_read_body:
        await _bounded(request, _drain(request))


async def _bounded(request: web.Request, reading: Awaitable[T]) -> T:
    try:
        if request.content.is_eof():
            return await reading  # all of it is here, as nearly always, so no time is needed
        async with asyncio.timeout(UPLOAD_TIMEOUT):
            return await reading
    except TimeoutError:
        raise Refusal(error_page(408)) from None
    except RequestPayloadError:
        raise Refusal(error_page(400)) from None


async def _read_body(request: web.Request, *, inflated: bool, may_hold: Callable[[int], bool]) -> object:
    if request.content_type != "application/json":
        await _drain(request)
        return {}
    charset = (request.charset or "utf-8").lower()
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if charset not in _CHARSETS or coding not in {"identity", *_WINDOW_BITS}:
        await _drain(request)
        raise Refusal(error_page(415))
    decoder = _Plain() if inflated or coding == "identity" else Inflater(coding, MAX_BODY)
    data = await _read(request, decoder, may_hold)
    try:
        payload = parse_body(data, charset)
    except (ValueError, RecursionError):
        raise Refusal(error_page(400)) from None
    if isinstance(payload, dict):
        # 2 MiB of other fields are 50 MB of objects, which would stay for as long as the reply is written.
        return {name: value for name, value in cast("dict[str, object]", payload).items() if name in _FIELDS}
    return payload


def parse_body(data: bytes, charset: str = "utf-8") -> object:
    """Return the JSON object or array in `data`, {} for no data.

    A byte order mark is passed over, what cannot be decoded becomes U+FFFD, of a repeated key the last counts. Raises
    ValueError for anything else, and RecursionError for what is nested too deep.
    """
    if not data:
        return {}
    text = data.decode(charset, "replace").removeprefix("\ufeff")
    if not _CONTAINER.match(text):
        raise ValueError("neither an object nor an array")
    payload: object = _JSON.decode(text)
    return payload


class Inflater:
    """Undo gzip or deflate, up to `limit` bytes: what is beyond, as of a bomb, is never made.

    :meth:`receive_data` and :meth:`receive_eof` raise ValueError for bytes that are not of that coding.
    """

    def __init__(self, coding: str, limit: int) -> None:
        self.data: bytearray = bytearray()
        """What came out so far; one byte over the limit tells that there is more."""
        self._limit = limit
        self._coding = coding
        self._decoder = zlib.decompressobj(_WINDOW_BITS[coding])
        self._held = b""
        self._ended = False

    def receive_data(self, chunk: bytes) -> None:
        """Take the next compressed bytes; those after the end of the data are passed over, as zlib's own tools do."""
        chunk = self._held + chunk
        self._held = b""
        while chunk and not self._ended and len(self.data) <= self._limit:
            if self._decoder.eof:
                # gzip may go on with another member; one byte does not yet tell.
                if len(chunk) < len(_GZIP_MAGIC):
                    self._held = chunk
                    return
                self._ended = self._coding != "gzip" or not chunk.startswith(_GZIP_MAGIC)
                self._decoder = self._decoder if self._ended else zlib.decompressobj(_WINDOW_BITS[self._coding])
                continue
            try:
                # One byte more than there is room for, so the room is never 0, which would mean no limit.
                self.data += self._decoder.decompress(chunk, self._limit + 1 - len(self.data))
            except zlib.error as exc:
                raise ValueError(str(exc)) from None
            chunk = self._decoder.unused_data

    def receive_eof(self) -> None:
        """Take the end of the compressed bytes."""
        if not self._decoder.eof and len(self.data) <= self._limit:
            raise ValueError("the compressed data is cut")


class _Plain:
    """Stands for an Inflater where nothing is compressed."""

    def __init__(self) -> None:
        self.data: bytearray = bytearray()

    def receive_data(self, chunk: bytes) -> None:
        self.data += chunk

    def receive_eof(self) -> None:
        pass


async def _read(request: web.Request, decoder: Inflater | _Plain, may_hold: Callable[[int], bool]) -> bytes:
    """Return the body, inflated.

    Raises Refusal, after all was read: 413 if it is too long, 400 if it is broken, 503 if there is no room for it.
    """
    size, refused = 0, 0
    while size <= MAX_DRAIN and (chunk := await request.content.readany()):
        size += len(chunk)
        if size > MAX_BODY:
            refused = 413
        elif not refused:
            try:
                decoder.receive_data(chunk)
            except ValueError:
                refused = 400
            if not may_hold(len(decoder.data)):
                refused = 503
        if refused:
            decoder.data.clear()
    if refused:
        raise Refusal(error_page(refused))
    return _decoded(decoder)


def _decoded(decoder: Inflater | _Plain) -> bytes:
    try:
        decoder.receive_eof()
    except ValueError:
        raise Refusal(error_page(400)) from None
    if len(decoder.data) > MAX_BODY:
        raise Refusal(error_page(413))
    return bytes(decoder.data)


async def _drain(request: web.Request) -> None:
    size = 0
    while size <= MAX_DRAIN and (chunk := await request.content.readany()):
        size += len(chunk)
