"""Reading a body: what is JSON here, and inflating within a bound."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.server.body import Inflater, parse_body
from tests.support import cut

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
codings = st.sampled_from(sorted(PACK))


def inflate(coding: str, chunks: list[bytes], limit: int = 1000) -> bytes:
    inflater = Inflater(coding, limit)
    for chunk in chunks:
        inflater.receive_data(chunk)
    inflater.receive_eof()
    return bytes(inflater.data)


# --- JSON -------------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.lists(values) | st.dictionaries(st.text(), values), st.sampled_from(["utf-8", "utf-16", "utf-16le", "utf-8-sig"])
)
def test_every_object_and_array_is_read(value: object, encoding: str) -> None:
    """As it was written, in each charset, with a byte order mark or without."""
    data = json.dumps(value, ensure_ascii=False).encode(encoding, "surrogatepass" if "8" not in encoding else "replace")

    charset = encoding.removesuffix("-sig")

    assert parse_body(data, charset) == json.loads(data.decode(charset, "replace").removeprefix("\ufeff"))


@given(values.filter(lambda value: not isinstance(value, list | dict)))
def test_nothing_else_is_read(value: object) -> None:
    """A top level of null, a string or a number is malformed here."""
    with pytest.raises(ValueError, match="neither"):
        parse_body(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (b" \t\r\n{}\n", {}),
        (b"[]", []),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'{"a":"\xff\xc3"}', {"a": "\ufffd\ufffd"}),
        (b'{"a":"\\ud83d"}', {"a": "\ud83d"}),
        (b'{"__proto__":1}', {"__proto__": 1}),
    ],
)
def test_lenient(data: bytes, expected: object) -> None:
    """What protocol.md says is taken."""
    assert parse_body(data) == expected


@pytest.mark.parametrize(
    "data",
    [
        b" ",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b"\x0b{}",
        b"{} {}",
        b"{'a':1}",
        b"[1,]",
        b'["\n"]',
        b"[Infinity]",
    ],
)
def test_malformed(data: bytes) -> None:
    """A ValueError, whatever is wrong."""
    with pytest.raises(ValueError):
        parse_body(data)


# --- inflating --------------------------------------------------------------------------------------------------------


@given(codings, st.binary(max_size=1000), st.integers(1, 50))
def test_any_cut_inflates_alike(coding: str, data: bytes, size: int) -> None:
    """However the network cuts the bytes."""
    assert inflate(coding, cut(PACK[coding](data), size)) == data


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=5), st.integers(1, 50))
def test_members_are_joined(members: list[bytes], size: int) -> None:
    """gzip files may be put one behind the other."""
    packed = b"".join(map(gzip.compress, members))

    assert inflate("gzip", cut(packed, size)) == b"".join(members)


@pytest.mark.parametrize("coding", sorted(PACK))
def test_what_follows_is_passed_over(coding: str) -> None:
    """Padding behind the end is no error, and never data."""
    assert inflate(coding, [PACK[coding](b"data") + b"\0\0", b"more", PACK[coding](b"x")]) == b"data"


@given(codings, st.binary(min_size=1, max_size=100), st.data())
def test_cut_data_is_refused(coding: str, data: bytes, more: st.DataObject) -> None:
    """A body that lacks its end is broken, although what came may look whole."""
    packed = PACK[coding](data)

    with pytest.raises(ValueError, match="cut"):
        inflate(coding, [packed[: more.draw(st.integers(0, len(packed) - 1))]])


@pytest.mark.parametrize(
    ("coding", "data"),
    [("gzip", b"nope"), ("deflate", b"nope"), ("gzip", zlib.compress(b"x")), ("deflate", gzip.compress(b"x", mtime=0))],
)
def test_other_data_is_refused(coding: str, data: bytes) -> None:
    """Bytes of no coding, or of the other one."""
    with pytest.raises(ValueError, match="header"):
        inflate(coding, [data])


@pytest.mark.parametrize("coding", sorted(PACK))
@pytest.mark.parametrize("size", [10, 1000, 10**9])
def test_a_bomb_is_not_made(coding: str, size: int) -> None:
    """One byte over the limit is all that comes out of ten megabytes."""
    inflater = Inflater(coding, 1000)

    for chunk in cut(PACK[coding](b" " * 10_000_000), size):
        inflater.receive_data(chunk)
    inflater.receive_eof()

    assert len(inflater.data) == 1001


@pytest.mark.parametrize("coding", sorted(PACK))
def test_exactly_the_limit(coding: str) -> None:
    """Is not over it."""
    assert len(inflate(coding, [PACK[coding](b" " * 1000)])) == 1000
