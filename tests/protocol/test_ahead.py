"""Tokens are decoded ahead, many at once, when that is sure to be right; what comes out is what one line at a time gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.protocol.codec import decode_event, decode_tokens
from aheadless.protocol.events import Token
from aheadless.protocol.turn import Turn
from tests.protocol import strategies
from tests.support import cut, play

START = b'{"type":"start","conversationId":"c"}\n'
DONE = b'{"type":"done","message":"ab","conversationId":"c"}\n'


def line(text: str, *, ascii_only: bool = False) -> bytes:
    """Return a token as the server writes it."""
    written = json.dumps({"type": "token", "token": text}, ensure_ascii=ascii_only, separators=(",", ":"))
    return written.encode("utf-8", "surrogatepass") + b"\n"


# Each is a line or more, and none is a token as the server writes it, though some say the same.
ODD = [
    b'{"type": "token", "token": "spaced"}\n',
    b'{"token":"turned","type":"token"}\n',
    b'{"type":"token","token":"a"}{"type":"token","token":"b"}\n',
    b'{"type":"token","token":"a"} {"type":"token","token":"b"}\n',
    b'{"type":"token",\n"token":"over two lines"}\n',
    b'{"type":"token","token":"a"\n,"token":"b"}\n',
    b'{"type":"token","token":"a"\n}\n',
    b'{"type":"token","token":"a","token":"b"}\n',
    b'{"type":"start","type":"token","token":"a"}\n',
    b'{"type":"token","token":"a","more":1}\n',
    b'{"type":"token","token":"a","more":{"deep":[]}}\n',
    b'{"type":"token","token":null}\n',
    b'{"type":"token","token":5}\n',
    b'{"type":"token"}\n',
    b'{"type":"token","token":"a"},\n',
    b'[{"type":"token","token":"a"}]\n',
    b'{"type":"token","token":"crlf"}\r\n',
    b'{"type":"token","token":"tab\there"}\n',
    b'{"type":"token","token":"nul\x00here"}\n',
    b'{"type":"token","token":"\\ud83d"}\n',
    b'{"type":"token","token":"\\ude00"}\n',
    b'{"type":"token","token":"\\ud83d\\ude00"}\n',
    b'{"type":"token","token":"\xed\xa0\xbd"}\n',
    b'{"type":"token","token":"\xff"}\n',
    b'{"type":"token","token":"a\\"}\\n{\\"type\\":\\"token\\",\\"token\\":\\"b"}\n',
    b'{"type":"token","token":"' + b"x" * 300 + b'"}\n',
    b'{"type":"token","token":"open\n',
    b'\xef\xbb\xbf{"type":"token","token":"mark"}\n',
    b'{"type":"future","token":"a"}\n',
    b'{"type":"error","error":"no"}\n',
    b"[" * 2000 + b"]" * 2000 + b"\n",
    b"\n",
    b" \r\n",
    b"no JSON\n",
    START,
    DONE,
]
lines = st.lists(
    st.one_of(st.builds(line, strategies.texts), st.builds(line, st.text('ab"\\\n\u2028é😀')), st.sampled_from(ODD))
)


class OneByOne(Turn):
    """The same turn without the short cut."""

    def _read_ahead(self) -> bool:
        return False


def outcome(chunks: list[bytes], turn: Turn) -> object:
    events, error, turn = play(chunks, turn)
    said = (
        None if error is None else (type(error), str(error), error.delivery, error.partial, getattr(error, "line", 0))
    )
    return events, said, turn.text, turn.state, turn.surplus


@given(lines, st.data())
def test_any_lines_in_any_pieces(rest: list[bytes], data: st.DataObject) -> None:
    """Events, errors with their line numbers, partial texts: all the same, whatever comes in whatever pieces."""
    chunks = data.draw(strategies.pieces(START + b"".join(rest)))

    assert outcome(chunks, Turn(max_line=200)) == outcome(chunks, OneByOne(max_line=200))


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_line_among_tokens(odd: bytes) -> None:
    """It is seen, and where it is."""
    whole = START + line("a") * 3 + odd + line("b") * 3 + DONE

    assert outcome([whole], Turn(max_line=5000)) == outcome([whole], OneByOne(max_line=5000))


@pytest.mark.parametrize("odd", ODD)
def test_what_is_not_sure_is_not_decided_here(odd: bytes) -> None:
    """A block is decoded at once only if the strict reader would take each line, and gives the same."""
    block = line("a") + odd + line("b")

    if tokens := decode_tokens(block):
        assert tokens == [decode_event(part) for part in block.split(b"\n")[:-1]]


def test_a_block_is_decoded_once() -> None:
    """Tokens that come together are decoded together, `done` behind them or not."""
    turn = Turn()
    turn.receive_data(START + line("a") * 100 + DONE)

    turn.next_event()
    assert turn.next_event() == Token("a")

    assert len(turn.ready) == 99
    assert turn.text == "a"
    turn.ready.pop()
    assert turn.text == "aa"


def test_a_block_that_is_not_all_tokens_is_looked_at_once() -> None:
    """However many lines it has: to look again for each of them would cost the square of their number."""
    turn = Turn()
    calls = 0
    show = turn._decoder.next_block

    def counted() -> bytes:
        nonlocal calls
        block = show()
        calls += bool(block)
        return block

    turn._decoder.next_block = counted  # type: ignore[method-assign]
    turn.receive_data(START + (line("a") + b'{"type":"future"}\n') * 100)

    assert len([*iter(turn.next_event, None)]) == 201
    assert calls == 1


def test_withdrawn_tokens_are_given_one_by_one() -> None:
    """Who holds the list of those that are ready finds it empty; they are not lost."""
    turn = Turn()
    turn.receive_data(START + b"".join(map(line, "abc")))
    turn.next_event(), turn.next_event()
    held = turn.ready

    turn.withdraw()

    assert held == []
    assert [*iter(turn.next_event, None)] == [Token("b"), Token("c")]
    assert turn.text == "abc"


def test_interrupted_with_tokens_at_hand() -> None:
    """What was not given is not in the text, and cannot be taken any more."""
    turn = Turn()
    turn.receive_data(START + b"".join(map(line, "abc")))
    turn.next_event(), turn.next_event()

    turn.interrupt()

    assert (turn.text, turn.ready, turn.next_event()) == ("a", [], None)


@pytest.mark.parametrize("size", [1, 7, 64, 10**6])
def test_many_tokens_in_pieces_of_any_size(size: int) -> None:
    """Each comes once and in order."""
    texts = [f"token {number} é" for number in range(500)]

    events, _, turn = play(cut(START + b"".join(map(line, texts)), size))

    assert events[1:] == [*map(Token, texts)]
    assert turn.text == "".join(texts)
