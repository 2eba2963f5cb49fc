"""Bytes to lines to JSON objects: incremental, bounded, and linear however the bytes are cut."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final, cast

from aheadless.exceptions import ProtocolError, snippet

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["MAX_LINE", "LineSplitter", "NDJSONDecoder", "parse_object"]

# A whole reply is a few KiB, and `done` repeats it on one line. A line of megabytes is a broken or hostile server.
MAX_LINE: Final = 8 * 1024 * 1024

# CPython's own default limit for int(), whose cost grows with the square; its environment variable can lift that one.
MAX_INTEGER_DIGITS: Final = 4300

_BOM: Final = b"\xef\xbb\xbf"
_BLANKS: Final = b" \t\r"


class LineSplitter:
    """Cut a byte stream into lines at `\\n` and nowhere else (protocol.md §3.7).

    Give it chunks with :meth:`receive_data`, take lines with :meth:`next_line`. A line in crumbs costs O(length): its
    pieces are kept apart and joined once, when the newline comes. Of an unfinished line at most `max_line` bytes are
    held; the complete lines of a chunk are held, as one block, until they are taken.
    """

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        self.max_line = max_line
        self._block = b""  # complete lines
        self._at = 0  # where the next of them begins
        self._shown = False  # whether they were given as a block
        self._later: list[bytes] = []  # more blocks
        self._pieces: list[bytes] = []
        self._size = 0  # of those pieces together
        self._eof = False
        self.unterminated: bool = False
        """Whether the line given last was the rest before the end of the bytes."""

    def receive_data(self, chunk: bytes) -> None:
        """Take the next bytes. A line over the bound is reported by :meth:`next_line` when its turn comes."""
        if end := chunk.rfind(b"\n") + 1:
            block, chunk = chunk[:end], chunk[end:]
            if self._pieces:
                block = self._join(block)
            if self._block:
                self._later.append(block)
            else:
                self._block = block
        # One byte over the bound is enough to know; the rest of an endless line is not kept.
        if piece := chunk[: self.max_line + 1 - self._size]:
            self._pieces.append(piece)
            self._size += len(piece)

    def receive_eof(self) -> None:
        """Take the end of the bytes: what is left without a newline becomes the last line."""
        self._eof = True

    @property
    def pending(self) -> bool:
        """Whether bytes are held that no line was made of yet, or lines that were not taken."""
        return bool(self._block or self._pieces)

    def next_block(self) -> bytes:
        """Return complete lines as they came, which are not taken by this; empty if there are none.

        They are shown once: to have them again after a look that was in vain would cost as much as they are long.
        """
        if self._shown:
            return b""
        self._shown = bool(self._block)
        return self._block[self._at :]

    def skip(self, size: int) -> None:
        """Take so many bytes, which end with a newline, of what :meth:`next_block` gave."""
        self._at += size
        if self._at == len(self._block):
            self._block = b"".join(self._later)
            self._later.clear()
            self._at = 0
            self._shown = False

    def next_line(self) -> bytes | None:
        """Return the next line without its newline, or None if more bytes are needed.

        Raises ProtocolError when the line is longer than the bound.
        """
        if self._block:
            end = self._block.index(b"\n", self._at)
            line = self._block[self._at : end]
            self.skip(len(line) + 1)
        elif self._eof and self._pieces:
            line = self._join(b"")
            self.unterminated = True
        elif self._size > self.max_line:
            self._refuse()
        else:
            return None
        if len(line) > self.max_line:
            self._refuse()
        return line

    def _join(self, last: bytes) -> bytes:
        joined = b"".join((*self._pieces, last))
        self._pieces.clear()
        self._size = 0
        return joined

    def _refuse(self) -> NoReturn:
        raise ProtocolError(f"a line is longer than {self.max_line} bytes")


class NDJSONDecoder(LineSplitter):
    """Give one JSON object a line: chunks in, objects out.

    Blank lines are passed over, a carriage return before the newline and a byte order mark on line one are accepted.
    The last line needs no newline once :meth:`receive_eof` was called.
    """

    def __init__(self, *, max_line: int = MAX_LINE) -> None:
        super().__init__(max_line=max_line)
        self.line_number: int = 0
        """The number of the line given last, from 1; blank lines count."""

    def skip_lines(self, size: int, number: int) -> None:
        """Take so many bytes, which are so many lines, of what :meth:`next_block` gave."""
        self.skip(size)
        self.line_number += number

    def next_object(self) -> dict[str, object] | None:
        """Return the next object, or None if more bytes are needed.

        Raises ProtocolError, its `line` set, for a line that is over the bound or no JSON object.
        """
        line = self.next_line()
        if line is None:
            return None
        try:
            return parse_object(line)
        except ProtocolError as exc:
            raise self.located(exc) from None

    def next_line(self) -> bytes | None:
        """Return the next line that is not blank, or None if more bytes are needed.

        Raises ProtocolError, its `line` set, for a line over the bound.
        """
        while True:
            try:
                line = super().next_line()
            except ProtocolError as exc:
                self.line_number += 1
                raise self.located(exc) from None
            if line is None:
                return None
            self.line_number += 1
            if self.line_number == 1:
                line = line.removeprefix(_BOM)
            if line.strip(_BLANKS):
                return line

    def located(self, error: ProtocolError) -> ProtocolError:
        """Return an error with the number of the line given last."""
        return ProtocolError(f"line {self.line_number}: {error}", line=self.line_number)


def parse_object(data: bytes) -> dict[str, object]:
    """Return the JSON object in `data`; of a repeated key the last counts.

    Raw control characters in strings and halves of surrogate pairs are accepted, as the server sends them
    (protocol.md §3.7 and 8). Raises ProtocolError for everything that is not one JSON object in UTF-8, for NaN,
    Infinity and numbers too large to hold, and for nesting too deep to parse.
    """
    try:
        value: object = json.loads(
            data.decode("utf-8"),
            strict=False,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    # These causes are not kept: each holds the whole line, and says nothing that the message does not.
    except UnicodeDecodeError as exc:
        raise ProtocolError(f"byte {exc.start} is not UTF-8") from None
    except json.JSONDecodeError as exc:
        raise ProtocolError(f"not JSON ({exc.msg} at character {exc.pos}): {snippet(exc.doc)}") from None
    except RecursionError:
        raise ProtocolError("the JSON is nested too deep") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"expected an object, got {_JSON_NAMES[type(value)]}")
    return cast("dict[str, object]", value)


_JSON_NAMES: Final[dict[type, str]] = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def _refuse_constant(name: str) -> NoReturn:
    raise ProtocolError(f"{name} is no JSON number")


def _parse_int(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ProtocolError(f"a number has {len(digits)} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ProtocolError(f"a number is too large: {snippet(digits, 40)}")
    return number
