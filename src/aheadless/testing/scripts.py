"""What a scripted server says: plain bytes, and where they are cut, held back or broken off."""

from __future__ import annotations

import json
import zlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from aheadless.protocol.codec import encode_event, trim
from aheadless.protocol.events import Done, Start, Token

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Mapping

    from aheadless.protocol.events import Event

__all__ = [
    "CONVERSATION_ID",
    "End",
    "Script",
    "chunked",
    "events",
    "gzip_bomb",
    "gzipped",
    "head",
    "json_answer",
    "lines",
    "stream_answer",
]

CONVERSATION_ID: Final = "j57ay725c3xs5nabt5hedqmgxg94kjqt"

End: TypeAlias = Literal["keep", "fin", "rst", "stall"]
"""What follows the last byte: the next request, an orderly close, a reset, or nothing at all."""


@attrs.frozen
class Script:
    """What the server does with one request."""

    data: bytes = b""
    """All that is sent, from the status line on."""

    end: End = attrs.field(default="keep", kw_only=True)
    """What becomes of the connection after that."""

    pieces: int | tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    """Into how many bytes a piece the data is cut, each piece its own packet; of several sizes the last repeats."""

    gates: Mapping[int, asyncio.Event] = attrs.field(factory=dict[int, "asyncio.Event"], kw_only=True)
    """At an offset of the data: wait for the event before sending on."""

    drip: bytes = attrs.field(default=b"", kw_only=True)
    """Sent over and over after the data, every `interval` seconds, until the client leaves."""

    interval: float = attrs.field(default=0.01, kw_only=True)

    read: int | None = attrs.field(default=None, kw_only=True)
    """Answer, or end, after this many bytes of the request instead of after the whole.

    0: before reading at all, if the script is the next one when the connection is made.
    """

    def cut(self, size: int, end: End = "fin") -> Script:
        """Return this script broken off after `size` bytes."""
        return attrs.evolve(self, data=self.data[:size], end=end)

    @property
    def refuses(self) -> bool:
        """Whether this answer says that nothing was stored: 3xx, 4xx, or 503 with a `Retry-After`."""
        status = self.data[9:12]
        return status[:1] in {b"3", b"4"} or (status == b"503" and b"\r\nretry-after:" in self.data.lower())

    def slices(self) -> Iterable[tuple[int, bytes]]:
        """Return the data as it is to be written, each piece with its offset; a gate begins a piece."""
        start = 0
        for stop in sorted({*self.gates, *self._piece_ends()}):
            if start < stop <= len(self.data):
                yield start, self.data[start:stop]
                start = stop

    def _piece_ends(self) -> Iterable[int]:
        sizes = (self.pieces,) if isinstance(self.pieces, int) else self.pieces or (len(self.data),)
        end, index = 0, 0
        while end < len(self.data):
            end += max(sizes[min(index, len(sizes) - 1)], 1)
            index += 1
            yield min(end, len(self.data))


def head(status: int = 200, headers: Mapping[str, str] | None = None, *, reason: str | None = None) -> bytes:
    """Return a status line and headers."""
    if reason is None:
        reason = HTTPStatus(status).phrase if status in {*HTTPStatus} else "Unknown"
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return f"HTTP/1.1 {status} {reason}\r\n{fields}\r\n".encode("latin-1")


def events(*tokens: str, text: str | None = None, conversation_id: str = CONVERSATION_ID) -> list[Event]:
    """Return the events of a complete reply in these tokens."""
    said = trim("".join(tokens)) if text is None else text
    return [Start(conversation_id), *map(Token, tokens), Done(said, conversation_id)]


def lines(items: Iterable[Event | bytes]) -> list[bytes]:
    """Return the lines of events; bytes among them stay as they are."""
    return [item if isinstance(item, bytes) else encode_event(item) for item in items]


def chunked(chunks: Iterable[bytes], *, last: bool = True) -> bytes:
    """Return a chunked body with one HTTP chunk for each of these; without its end if not `last`."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n" * last


def stream_answer(
    items: Iterable[Event | bytes],
    *,
    framing: Literal["chunked", "length", "close"] = "chunked",
    headers: Mapping[str, str] | None = None,
    status: int = 200,
) -> bytes:
    """Return the bytes of a stream: each item a chunk, or all of them in a body with a length or up to the close."""
    body = lines(items)
    fields = {"Content-Type": "application/x-ndjson; charset=utf-8", **(headers or {})}
    if framing == "chunked":
        return head(status, {**fields, "Transfer-Encoding": "chunked"}) + chunked(body)
    if framing == "length":
        fields = {"Content-Length": str(sum(map(len, body))), **fields}
    else:
        fields["Connection"] = "close"
    return head(status, fields) + b"".join(body)


def json_answer(payload: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a JSON answer; text and bytes are sent as they are, as HTML."""
    if isinstance(payload, bytes):
        body, kind = payload, "text/html; charset=utf-8"
    elif isinstance(payload, str):
        body, kind = payload.encode(), "text/html; charset=utf-8"
    else:
        body, kind = json.dumps(payload).encode(), "application/json; charset=utf-8"
    return head(status, {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}) + body


def gzipped(data: bytes) -> bytes:
    """Return the data compressed as `Content-Encoding: gzip` wants it."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(data) + compressor.flush()


def gzip_bomb(size: int, filler: bytes = b" ") -> bytes:
    """Return gzip that comes apart into `size` MiB of one character: a thousand times its own length."""
    compressor = zlib.compressobj(wbits=31)
    first = compressor.compress(filler * 2**20) + compressor.flush(zlib.Z_FULL_FLUSH)
    again = compressor.compress(filler * 2**20) + compressor.flush(zlib.Z_FULL_FLUSH)
    # Only the checksum at the end is not the right one, and nobody should get that far.
    return first + again * (size - 1) + compressor.flush()
