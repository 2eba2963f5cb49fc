"""Bytes to lines to objects."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.exceptions import ProtocolError
from aheadless.protocol.ndjson import MAX_LINE, LineSplitter, NDJSONDecoder, parse_object
from tests.protocol import strategies
from tests.support import cut


def test_line_split_inside_a_character() -> None:
    """A character cut in two by the network arrives whole."""
    decoder = NDJSONDecoder()

    decoder.receive_data(b'{"text": "caf\xc3')
    assert decoder.next_object() is None
    decoder.receive_data(b'\xa9"}\n')

    assert decoder.next_object() == {"text": "café"}


def test_blank_lines_crlf_and_bom() -> None:
    """Blank lines are passed over but counted; CRLF and a BOM on line one are accepted."""
    decoder = NDJSONDecoder()

    decoder.receive_data(b'\xef\xbb\xbf{"a":1}\r\n\r\n \t\n{"b":2}\n')

    assert decoder.next_object() == {"a": 1}
    assert decoder.next_object() == {"b": 2}
    assert decoder.line_number == 4
    assert decoder.next_object() is None


def test_bom_later_is_no_bom() -> None:
    """Only line one may begin with a byte order mark."""
    decoder = NDJSONDecoder()
    decoder.receive_data(b'{"a":1}\n\xef\xbb\xbf{"b":2}\n')
    decoder.next_object()

    with pytest.raises(ProtocolError) as caught:
        decoder.next_object()

    assert caught.value.line == 2


def test_last_line_without_newline() -> None:
    """The end of the bytes ends the last line, and the decoder says that nothing else did."""
    decoder = NDJSONDecoder()
    decoder.receive_data(b'{"a":1}\n{"b":2}')

    assert decoder.next_object() == {"a": 1}
    assert decoder.next_object() is None
    decoder.receive_eof()
    assert not decoder.unterminated
    assert decoder.next_object() == {"b": 2}
    assert decoder.unterminated
    assert decoder.next_object() is None


def test_error_names_the_line() -> None:
    """What is wrong with an object comes with the number of its line."""
    decoder = NDJSONDecoder()
    decoder.receive_data(b'{"a":1}\n\n[1]\n')
    decoder.next_object()

    with pytest.raises(ProtocolError, match=r"^line 3: expected an object, got an array$") as caught:
        decoder.next_object()

    assert caught.value.line == 3


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_only_newline_ends_a_line(separator: str) -> None:
    """Other characters that Python's splitlines would cut at stand raw inside strings."""
    decoder = NDJSONDecoder()

    decoder.receive_data(f'{{"t":"a{separator}b"}}\n'.encode())

    assert decoder.next_object() == {"t": f"a{separator}b"}


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_line_at_and_over_the_bound(piece: int) -> None:
    """A line of exactly the bound passes, one byte more does not, in whatever pieces it comes."""
    splitter = LineSplitter(max_line=10)
    for chunk in cut(b"x" * 10 + b"\n" + b"y" * 11 + b"\n", piece):
        splitter.receive_data(chunk)

    assert splitter.next_line() == b"x" * 10
    with pytest.raises(ProtocolError, match=r"^a line is longer than 10 bytes$"):
        splitter.next_line()


def test_endless_line_is_refused_before_its_end() -> None:
    """The bound holds for a line that never ends, and no more than the bound is kept of it."""
    decoder = NDJSONDecoder(max_line=1000)
    for _ in range(100):
        decoder.receive_data(b"x" * 1000)

    with pytest.raises(ProtocolError, match="line 1: a line is longer than 1000 bytes"):
        decoder.next_object()

    assert sum(map(len, decoder._pieces)) == 1001


def test_a_line_that_is_not_over_the_bound_yet() -> None:
    """Exactly so many bytes without a newline may still become a line."""
    splitter = LineSplitter(max_line=10)

    splitter.receive_data(b"x" * 10)
    assert splitter.next_line() is None
    splitter.receive_data(b"\n")

    assert splitter.next_line() == b"x" * 10


@pytest.mark.parametrize("line", [b"\x0b", b"\x0c", b"\x1c", b"\xc2\xa0", b"\x00"])
def test_what_is_no_blank(line: bytes) -> None:
    """Only what JSON calls blank makes a line that is passed over."""
    decoder = NDJSONDecoder()
    decoder.receive_data(line + b"\n")

    with pytest.raises(ProtocolError, match="line 1: "):
        decoder.next_object()


def test_default_bound() -> None:
    """Eight MiB: a whole reply is a few KiB, and `done` repeats it on one line."""
    assert MAX_LINE == 8 * 1024 * 1024
    assert LineSplitter().max_line == MAX_LINE


@given(st.lists(st.binary(max_size=8).filter(lambda line: b"\n" not in line), max_size=6), st.data())
def test_any_cut_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    """Lines are what stands between newlines, however the bytes are cut."""
    splitter = LineSplitter()
    found: list[bytes] = []
    for chunk in data.draw(strategies.pieces(b"".join(line + b"\n" for line in lines))):
        splitter.receive_data(chunk)
        if data.draw(st.booleans()):
            found += iter(splitter.next_line, None)
    found += iter(splitter.next_line, None)

    assert found == lines


def test_a_line_in_crumbs_is_joined_once() -> None:
    """The pieces of a line are kept as they came: no piece is copied or searched again before the newline."""
    splitter = LineSplitter()
    crumbs = [bytes([65 + n]) * 3 for n in range(20)]
    for crumb in crumbs:
        splitter.receive_data(crumb)
        assert splitter.next_line() is None

    assert all(kept is crumb for kept, crumb in zip(splitter._pieces, crumbs, strict=True))
    splitter.receive_data(b"\n")
    assert splitter.next_line() == b"".join(crumbs)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[1]", "expected an object, got an array"),
        (b'"a"', "expected an object, got a string"),
        (b"1", "expected an object, got a number"),
        (b"1.5", "expected an object, got a number"),
        (b"true", "expected an object, got a boolean"),
        (b"null", "expected an object, got null"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": Infinity}', "Infinity is no JSON number"),
        (b'{"a": -Infinity}', "-Infinity is no JSON number"),
        (b'{"a": 1e999}', "a number is too large: 1e999"),
        (b'{"a": ' + b"1" * 400 + b".0}", "a number is too large: " + "1" * 39 + "…"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number has 5000 digits"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b'{"a": "\xed\xa0\xbd"}', "byte 7 is not UTF-8"),
        (b"{", "not JSON (Expecting property name enclosed in double quotes at character 1): {"),
        (b"", "not JSON (Expecting value at character 0): "),
        (b"\x1b[31m", "not JSON (Expecting value at character 0): \\x1b[31m"),
        (b'{"a":' * 100_000, "the JSON is nested too deep"),
    ],
)
def test_what_is_no_object(data: bytes, message: str) -> None:
    """Everything but one JSON object is a ProtocolError that says what came."""
    with pytest.raises(ProtocolError) as caught:
        parse_object(data)

    # The json module of 3.13 words one message differently.
    assert str(caught.value).replace("Illegal trailing comma before end of object", "") == message


def test_lenient_where_the_server_is() -> None:
    """Raw control characters, halves of pairs, repeated keys (the last counts) and large numbers are taken."""
    digits = b"1" * 4300 if sys.get_int_max_str_digits() else b"1"

    assert parse_object(b'{"a":"\x0b\x1c","b":"\\ud83d","c":1,"c":2,"d":1e300}') == {
        "a": "\x0b\x1c",
        "b": "\ud83d",
        "c": 2,
        "d": 1e300,
    }
    assert parse_object(b'{"n":' + digits + b"}") == {"n": int(digits)}


@given(st.binary(max_size=60) | strategies.json_values.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """No bytes raise anything but ProtocolError."""
    decoder = NDJSONDecoder(max_line=50)
    decoder.receive_data(data)
    decoder.receive_eof()

    line: int | None = None
    try:
        while decoder.next_object() is not None:
            pass
    except ProtocolError as exc:
        line = exc.line
    assert line in {None, decoder.line_number}
