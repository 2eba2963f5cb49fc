"""What a script says, byte by byte."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.testing import (
    CONVERSATION_ID,
    Script,
    chunked,
    events,
    gzip_bomb,
    gzipped,
    head,
    json_answer,
    lines,
    stream_answer,
)

SIZES = st.integers(0, 7)


@given(
    st.binary(max_size=40),
    st.none() | SIZES | st.lists(SIZES).map(tuple),
    st.sets(st.integers(0, 50)),
)
def test_slices(data: bytes, pieces: int | tuple[int, ...] | None, gates: set[int]) -> None:
    """They are the data, each with its offset, and a gate is never inside one."""
    script = Script(data, pieces=pieces, gates=dict.fromkeys(gates, asyncio.Event()))

    slices = list(script.slices())

    assert b"".join(piece for _, piece in slices) == data
    assert [offset for offset, _ in slices] == [
        sum(len(piece) for _, piece in slices[:count]) for count in range(len(slices))
    ]
    for offset, piece in slices:
        assert piece
        assert gates.isdisjoint(range(offset + 1, offset + len(piece)))


@pytest.mark.parametrize(
    ("pieces", "sizes"), [(None, [10]), (4, [4, 4, 2]), ((1, 2), [1, 2, 2, 2, 2, 1]), (1, [1] * 10), (99, [10])]
)
def test_piece_sizes(pieces: int | tuple[int, ...] | None, sizes: list[int]) -> None:
    """Of several sizes the last one repeats."""
    assert [len(piece) for _, piece in Script(b"0123456789", pieces=pieces).slices()] == sizes


def test_cut() -> None:
    """A cut script has the first bytes and another end; the rest of it stays."""
    whole = Script(b"0123456789", pieces=2)

    assert whole.cut(3) == Script(b"012", end="fin", pieces=2)
    assert whole.cut(0, "rst") == Script(end="rst", pieces=2)
    assert whole.cut(99, "stall") == Script(b"0123456789", end="stall", pieces=2)


@pytest.mark.parametrize(
    ("data", "refuses"),
    [
        (b"", False),
        (stream_answer(events("a")), False),
        (head(100), False),
        (head(302), True),
        (head(400), True),
        (head(429), True),
        (head(500), False),
        (head(503), False),
        (head(503, {"retry-After": "1"}), True),
        (head(503)[:11], False),
    ],
)
def test_refuses(data: bytes, refuses: bool) -> None:
    """After 3xx, 4xx and a 503 that names a time nothing is stored."""
    assert Script(data).refuses is refuses


def test_framings() -> None:
    """The same lines in chunks, with a length, or up to the close."""
    items = [*events("é"), b"no event\n"]
    body = b"".join(lines(items))
    kind = b"Content-Type: application/x-ndjson; charset=utf-8\r\n"

    assert body.startswith(b'{"type":"start","conversationId":"' + CONVERSATION_ID.encode())
    assert stream_answer(items) == (
        b"HTTP/1.1 200 OK\r\n" + kind + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(lines(items))
    )
    assert stream_answer(items, framing="length") == (
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(body) + kind + b"\r\n" + body
    )
    assert stream_answer(items, framing="close", status=999, headers={"X-A": "b"}) == (
        b"HTTP/1.1 999 Unknown\r\n" + kind + b"X-A: b\r\nConnection: close\r\n\r\n" + body
    )


def test_chunked() -> None:
    """Each item is a chunk; the end can be left out."""
    assert chunked([b"a" * 17, b"b"]) == b"11\r\n" + b"a" * 17 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    assert chunked([b"b"], last=False) == b"1\r\nb\r\n"


def test_json_answers() -> None:
    """An object is JSON, a text a page; headers can be added and replaced."""
    assert json_answer({"a": 1}, status=429, headers={"Retry-After": "3"}) == (
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json; charset=utf-8\r\n"
        b'Content-Length: 8\r\nRetry-After: 3\r\n\r\n{"a": 1}'
    )
    assert json_answer("<p>", headers={"Content-Length": "9"}) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 9\r\n\r\n<p>"
    )


def test_events_are_a_reply() -> None:
    """`done` has the text as the server trims it, unless told otherwise."""
    assert [type(event).__name__ for event in events("a", " b ")] == ["Start", "Token", "Token", "Done"]
    assert lines(events(" a "))[-1].startswith(b'{"type":"done","message":"a",')
    assert lines(events("a", text="other", conversation_id="c"))[-1] == (
        b'{"type":"done","message":"other","conversationId":"c"}\n'
    )


def test_gzip() -> None:
    """It comes apart into what went in."""
    assert zlib.decompress(gzipped(b"abc" * 99), wbits=31) == b"abc" * 99


def test_gzip_bomb() -> None:
    """A thousand times as long when it comes apart."""
    bomb = gzip_bomb(5, b"\n")
    inflator = zlib.decompressobj(wbits=31)

    assert len(bomb) < 5 * 2**20 / 900
    assert inflator.decompress(bomb[:-8]) == b"\n" * (5 * 2**20)
