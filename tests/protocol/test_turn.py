"""The state table, and all that can go wrong in a stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.exceptions import AheadlessError, Delivery, ProtocolError, StreamInterruptedError
from aheadless.protocol.codec import encode_event, trim
from aheadless.protocol.events import Done, Event, Failure, Start, Token, Unknown
from aheadless.protocol.turn import MAX_STREAM, NEXT, Turn, TurnState
from tests.protocol import strategies
from tests.support import cut, play, recorded

START, DONE = Start("c"), Done("ab", "c")
STREAMS = [name for name, exchange in recorded().items() if exchange["chunk_sizes"]]


def stream(*events: Event) -> bytes:
    return b"".join(map(encode_event, events))


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_recorded_streams(name: str, size: int) -> None:
    """The right thing is made of each recorded stream, in whatever pieces it comes."""
    body = recorded()[name]["body"].encode()

    events, error, turn = play(cut(body, size))

    if name == "server_killed":
        assert isinstance(error, StreamInterruptedError)
        assert error.partial == "tok0 tok1 tok2 tok3 tok4"
        assert error.delivery is Delivery.ACCEPTED
        return
    assert error is None
    last = events[-1]
    if isinstance(last, Done):
        assert turn.state is TurnState.DONE
        assert last.text == (trim(turn.text) or "I could not generate a response right now.")
    else:
        assert last == Failure("Internal server error")
        assert turn.state is TurnState.FAILED


@given(strategies.replies(), st.data())
def test_any_cut_gives_the_same_events(events: list[Event], data: st.DataObject) -> None:
    """However the bytes are cut, the events are those that were sent."""
    chunks = data.draw(strategies.pieces(stream(*events)))

    found, error, turn = play(chunks)

    assert found == events
    assert error is None
    assert turn.over


@given(strategies.replies(), st.data())
def test_any_early_end_is_an_interruption(events: list[Event], data: st.DataObject) -> None:
    """A stream that ends before its last event is never taken for a complete one, and no token before is lost."""
    whole = stream(*events)
    size = data.draw(st.integers(0, len(whole) - 2))  # the last newline may be missing

    found, error, turn = play([whole[:size]])

    assert type(error) is StreamInterruptedError
    assert found == events[: len(found)]
    assert error.partial == "".join(event.text for event in found if isinstance(event, Token))
    assert error.delivery is (Delivery.ACCEPTED if found else Delivery.UNKNOWN)
    assert turn.state is TurnState.INTERRUPTED


@given(st.lists(strategies.events, max_size=6))
def test_the_table_decides(events: list[Event]) -> None:
    """Whatever comes in whatever order, the states are those of the table or the stream is refused."""
    found, error, turn = play([stream(*events)])

    state = TurnState.WAITING
    for event in found:
        state = NEXT[state][type(event)]
    assert turn.state in {state, TurnState.INTERRUPTED}
    assert error is None or isinstance(error, ProtocolError | StreamInterruptedError)


@given(st.lists(strategies.token_texts, max_size=8))
def test_halves_of_pairs_are_joined(texts: list[str]) -> None:
    """Each piece that is given out can be encoded, and together they are the text as UTF-16 reads it."""
    found, error, turn = play([stream(START, *map(Token, texts), Done("x", "c"))])

    given = [event.text for event in found if isinstance(event, Token)]
    for text in given:
        text.encode()
    joined = "".join(texts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert error is None
    assert "".join(given) == turn.text == joined


def test_pair_over_two_tokens() -> None:
    """A half is held until its other half comes; a token that is nothing else gives no event."""
    found, _, _ = play([stream(START, Token("x\ud83d"), Token("\ude00y"), Token("\ud83d"), Token("\ude00"), DONE)])

    assert found == [START, Token("x"), Token("😀y"), Token("😀"), DONE]


def test_half_before_plain_text() -> None:
    """A half that cannot be completed goes out in its place, before what follows; the first and the last half too."""
    for half in ("\ud800", "\ud83d", "\udbff"):
        found, _, turn = play([stream(START, Token(f"a{half}"), Token("b"), DONE)])

        assert found == [START, Token("a"), Token("\ufffdb"), DONE]
        assert turn.text == "a\ufffdb"


def test_held_half_does_not_hold_up_the_rest() -> None:
    """What has come behind a token that is nothing but a half is given at once."""
    turn = Turn()

    turn.receive_data(stream(START, Token("\ud83d"), Token("\ude00")))

    assert [turn.next_event(), turn.next_event(), turn.next_event()] == [START, Token("😀"), None]


@pytest.mark.parametrize("end", [DONE, Failure("e")])
def test_lone_half_at_the_end(end: Event) -> None:
    """A half whose other half never comes is given as U+FFFD before the end."""
    found, _, turn = play([stream(START, Token("a\ud83d"), end)])

    assert found == [START, Token("a"), Token("\ufffd"), end]
    assert turn.text == "a\ufffd"


def test_lone_half_at_an_early_end() -> None:
    """It is part of the partial text too."""
    _, error, _ = play([stream(START, Token("a"), Token("\ud83d"))])

    assert error is not None
    assert error.partial == "a\ufffd"


def test_unknown_event_keeps_a_half() -> None:
    """An unknown event between two halves changes nothing."""
    unknown = Unknown("x", {"type": "x"})

    found, _, _ = play([stream(START, Token("\ud83d"), unknown, Token("\ude00"), DONE)])

    assert found == [START, unknown, Token("😀"), DONE]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([Token("a")], "line 1: `token` event while the turn is waiting"),
        ([Token("\ud83d")], "line 1: `token` event while the turn is waiting"),
        ([DONE], "line 1: `done` event while the turn is waiting"),
        ([START, START], "line 2: `start` event while the turn is streaming"),
        ([START, Token("a"), Done("a", "other")], "line 3: `done` names another conversation than `start`"),
    ],
)
def test_out_of_order(events: list[Event], message: str) -> None:
    """What is not in the table breaks the protocol; what came before is given first."""
    found, error, turn = play([stream(*events)])

    assert found == events[:-1]
    assert isinstance(error, ProtocolError)
    assert str(error) == message
    assert error.line == len(events)
    assert error.partial == turn.text
    assert turn.state is TurnState.INTERRUPTED
    assert turn.next_event() is None


def test_failure_first() -> None:
    """`error` may be the only event; the message was taken all the same."""
    found, error, turn = play([stream(Failure("no"))])

    assert found == [Failure("no")]
    assert error is None
    assert turn.state is TurnState.FAILED
    assert turn.delivery is Delivery.ACCEPTED


@pytest.mark.parametrize("end", [DONE, Failure("e")])
def test_nothing_counts_after_the_end(end: Event) -> None:
    """What follows `done` or `error` is not looked at, good or bad."""
    found, error, turn = play([stream(START, end, Token("late")) + b"garbage\n"])

    assert found == [START, end]
    assert error is None
    assert turn.surplus


def test_good_tokens_before_a_bad_line_arrive() -> None:
    """The error comes in its turn."""
    found, error, _ = play([stream(START, Token("a"), Token("b")) + b"oops\n" + stream(Token("c"))])

    assert found == [START, Token("a"), Token("b")]
    assert isinstance(error, ProtocolError)
    assert (error.line, error.partial, error.delivery) == (4, "ab", Delivery.ACCEPTED)


def test_no_newline_after_done() -> None:
    """The last newline may be missing."""
    found, error, _ = play([stream(START, DONE)[:-1]])

    assert found == [START, DONE]
    assert error is None


@pytest.mark.parametrize("rest", [b'{"type":"tok', b'{"type":"token","token":"\xc3', b"{", b' {"type":'])
def test_last_line_cut(rest: bytes) -> None:
    """The beginning of an object at the end of the bytes is an interruption, not a protocol error."""
    _, error, _ = play([stream(START, Token("a")) + rest])

    assert type(error) is StreamInterruptedError
    assert error.partial == "a"


def test_last_line_of_another_kind() -> None:
    """What could never have become an object is a protocol error, newline or not."""
    _, error, _ = play([b"<html>"])

    assert type(error) is ProtocolError
    assert error.delivery is Delivery.UNKNOWN


def test_line_over_the_bound() -> None:
    """The bound of a line holds inside a turn; the partial text is kept."""
    _, error, _ = play([stream(START, Token("a"), Token("b" * 100))], Turn(max_line=60))

    assert isinstance(error, ProtocolError)
    assert str(error) == "line 3: a line is longer than 60 bytes"
    assert error.partial == "a"


def test_endless_stream() -> None:
    """A stream over its bound ends in an error, and what fits into the bound is given first."""
    turn = Turn(max_stream=len(stream(START)) + 3 * len(stream(Token("a"))))

    found, error, _ = play([stream(START), *[stream(Token("a"))] * 10], turn)

    assert found == [START, *[Token("a")] * 3]
    assert isinstance(error, ProtocolError)
    assert str(error) == f"line 4: the stream is longer than {turn._max_stream} bytes"
    assert error.partial == "aaa"
    assert MAX_STREAM == 32 * 1024 * 1024


def test_stream_of_exactly_the_bound() -> None:
    """Is not too long; it may end, or break off, as any other."""
    whole = stream(START, Token("a"))

    found, error, _ = play([whole], Turn(max_stream=len(whole)))

    assert found == [START, Token("a")]
    assert type(error) is StreamInterruptedError
    assert str(error) == "the stream ended without `done` or `error`"


def test_interrupt_from_this_side() -> None:
    """interrupt() ends the turn and keeps the text; after the end it changes nothing."""
    turn = Turn()
    turn.receive_data(stream(START, Token("a"), Token("\ud83d"), Token("x")))
    assert [turn.next_event(), turn.next_event()] == [START, Token("a")]

    turn.interrupt()

    assert turn.state is TurnState.INTERRUPTED
    assert turn.over
    assert turn.next_event() is None
    assert turn.text == "a"
    turn.interrupt()
    assert turn.state is TurnState.INTERRUPTED


def test_delivery_follows_the_stream() -> None:
    """Unknown until `start` tells that the message is stored."""
    turn = Turn()
    before = turn.delivery

    turn.receive_data(stream(START))
    turn.next_event()

    assert (before, turn.delivery) == (Delivery.UNKNOWN, Delivery.ACCEPTED)
    assert turn.conversation_id == "c"


def test_needs_more_bytes() -> None:
    """None means: more bytes, please."""
    turn = Turn()

    assert turn.next_event() is None
    turn.receive_data(b'{"type":"start",')
    assert turn.next_event() is None
    turn.receive_data(b'"conversationId":"c"}\n')
    assert turn.next_event() == START


@pytest.mark.parametrize(
    ("come", "text", "rest"),
    [
        ([], "ab", [START, Token("ab"), Done("ab", "c")]),
        ([START], "ab", [Token("ab"), Done("ab", "c")]),
        ([START, Token(" a")], "ab", [Token("b"), Done("ab", "c")]),
        ([START, Token("ab "), Token("\n")], "ab", [Done("ab", "c")]),
        ([START, Token("xy")], "ab", [Done("ab", "c")]),
        ([START, Token("a\ud83d")], "a\U0001f600", [Token("\U0001f600"), Done("a\U0001f600", "c")]),
    ],
    ids=["nothing", "start", "a part", "all", "another", "half a pair"],
)
@pytest.mark.parametrize("ended", [True, False], ids=["cut", "stalled"])
def test_complete(come: list[Event], text: str, rest: list[Event], ended: bool) -> None:
    """A turn that broke off goes on with the stored reply, as if nothing had been."""
    turn = Turn()
    turn.receive_data(stream(*come))
    events = [*iter(turn.next_event, None)]
    if ended:
        turn.receive_eof()
        with pytest.raises(StreamInterruptedError):
            turn.next_event()

    turn.complete(text, "c")
    rest_events = [*iter(turn.next_event, None)]

    assert rest_events == rest
    assert (turn.state, turn.over, turn.conversation_id) == (TurnState.DONE, True, "c")
    assert turn.text == "".join(event.text for event in events + rest_events if isinstance(event, Token))


@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """No bytes raise anything but an error of ours."""
    _, error, _ = play([stream(START), data])

    assert isinstance(error, AheadlessError)
