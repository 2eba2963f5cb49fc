"""Rows 36 to 56 of docs/explanation/guarantees.md: what a server can do wrong in the stream itself."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterable
from typing import Any

import attrs
import pytest

from aheadless import (
    AheadlessError,
    ChatClient,
    Delivery,
    Done,
    Event,
    ProtocolError,
    ReplyFailedError,
    Retry,
    Start,
    StreamInterruptedError,
    Token,
    Unknown,
)
from aheadless.protocol.events import Failure
from aheadless.protocol.ndjson import MAX_LINE
from aheadless.protocol.turn import MAX_STREAM
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, chunked, events, head, stream_answer
from tests.conftest import MakeClient
from tests.faults.support import NARROW, Flood, narrow_client

START = Start(CONVERSATION_ID)
# What a good stream begins with; what is wrong comes after it, on line 3.
HEAD: list[Event | bytes] = [START, Token("Hel")]
TAIL: list[Event | bytes] = [Token("lo"), Done("Hello", CONVERSATION_ID)]
HTTP = head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"})


@attrs.define
class Ended:
    """How a turn ended for the one who reads it."""

    events: list[Event] = attrs.field(factory=list[Event])
    told: list[object] = attrs.field(factory=list[object])
    """What the callbacks were given."""
    error: AheadlessError | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Token))


async def read(scripted: ScriptedServer, client: ChatClient, *scripts: Script) -> Ended:
    """Read one turn to its end and show what holds whatever happened: the session is free, nothing was sent twice."""
    scripted.add(*scripts)
    chat, ended = client.chat("s"), Ended()
    tell = ended.told.append
    try:
        async for event in chat.stream("Hi", on_start=tell, on_token=tell, on_done=tell, on_error=tell):
            ended.events.append(event)
    except AheadlessError as exc:
        ended.error = exc

    assert not chat.busy
    assert len(scripted.stored) == 1
    messages = chat.messages
    assert (await chat.stream("And now?")).text == "Hello world"
    if ended.error is not None:
        assert ended.told[-1] is ended.error
        assert ended.error.session_id == "s"
        # A half whose other half cannot come any more after a cut is in the partial text only.
        assert ended.error.partial.removesuffix("\ufffd") == ended.text.removesuffix("\ufffd")
        assert ended.error.delivery is messages[0].delivery
        assert [message.text for message in messages] == ["Hi", *filter(None, [ended.error.partial])]
        assert "complete" not in {message.status for message in messages}
    return ended


def assert_broken(ended: Ended, message: str, *, line: int = 3, partial: str = "Hel") -> None:
    """The server broke the protocol in this line; all before it was given out."""
    assert type(ended.error) is ProtocolError
    assert str(ended.error) == f"line {line}: {message}"
    assert ended.error.line == line
    assert ended.error.partial == partial
    assert ended.error.delivery is (Delivery.ACCEPTED if line > 1 else Delivery.UNKNOWN)


# --- lines ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("pieces", [None, 1])
async def test_lenient_lines(scripted: ScriptedServer, client: ChatClient, framing: Any, pieces: int | None) -> None:
    """A BOM on line one, CRLF, blank lines and no newline after `done` are accepted, in any framing and any pieces."""
    body = "".join(
        [
            f'\ufeff{{"type":"start","conversationId":"{CONVERSATION_ID}"}}\r\n',
            "\r\n\n \t\n",
            '{"type":"token","token":"Hello"}\r\n\n',
            f'{{"type":"done","message":"Hello","conversationId":"{CONVERSATION_ID}"}}',
        ]
    )
    answer = stream_answer([body.encode()], framing=framing)

    ended = await read(scripted, client, Script(answer, pieces=pieces, end="fin" if framing == "close" else "keep"))

    assert ended.error is None
    assert ended.events == events("Hello")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
async def test_only_newline_ends_a_line(scripted: ScriptedServer, client: ChatClient, separator: str) -> None:
    """What other languages take for the end of a line stands raw in strings and stays."""
    token = f'{{"type":"token","token":"a{separator}b"}}\n'.encode()
    done = f'{{"type":"done","message":"a{separator}b","conversationId":"{CONVERSATION_ID}"}}\n'.encode()

    ended = await read(scripted, client, Script(stream_answer([START, token, done]), pieces=7))

    assert ended.error is None
    assert ended.events == events(f"a{separator}b")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
async def test_character_over_chunks(scripted: ScriptedServer, client: ChatClient, size: int) -> None:
    """A character arrives whole though HTTP chunks and packets cut it."""
    body = b"".join(map(_line, events("é😀", "\u2028ﷺ")))
    answer = HTTP + chunked(body[start : start + size] for start in range(0, len(body), size))

    ended = await read(scripted, client, Script(answer, pieces=size))

    assert ended.error is None
    assert ended.events == events("é😀", "\u2028ﷺ")


def _line(event: Event) -> bytes:
    # One chunk of a stream, without its framing.
    return stream_answer([event], framing="close").partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    ("wrong", "at"),
    [
        (b"\xff", 0),  # never in UTF-8
        (b"\xc3(", 0),  # a beginning without its rest
        (b"a\xe2\x80", 1),  # cut by the quote
        (b"\xc0\xaf", 0),  # an overlong "/"
        (b"\xed\xa0\xbd", 0),  # half of a pair, as CESU-8 has it
        (b"\xf4\x90\x80\x80", 0),  # beyond U+10FFFF
    ],
)
async def test_invalid_utf8(scripted: ScriptedServer, client: ChatClient, wrong: bytes, at: int) -> None:
    """Bytes that are no UTF-8 are not guessed at; the text before them is kept."""
    bad = b'{"type":"token","token":"' + wrong + b'"}\n'

    ended = await read(scripted, client, Script(stream_answer([*HEAD, bad, *TAIL])))

    assert_broken(ended, f"byte {25 + at} is not UTF-8")


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize(
    "last", [b'{"type":"token","token":"l\xc3\xb6"}\n', b'{"type":"done","message":"Hello","conversationId":"c"}\n']
)
async def test_last_line_cut(
    scripted: ScriptedServer, make_client: MakeClient, last: bytes, framing: Any, end: Any
) -> None:
    """Cut wherever one likes, a line is not taken for an event and costs nothing of the text before it."""
    whole = stream_answer([*HEAD, last], framing=framing)
    begin = whole.index(last)
    client = make_client(scripted.url)

    for size in range(1, len(last) - 2, 3):
        scripted.requests.clear()
        ended = await read(scripted, client, Script(whole).cut(begin + size, end))
        await client.sessions.forget("s")

        assert type(ended.error) is StreamInterruptedError
        assert ended.events == HEAD
        assert (ended.error.partial, ended.error.delivery) == ("Hel", Delivery.ACCEPTED)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "bound", "message"),
    [
        (b"x" * 65536, MAX_LINE, "line 3: a line is longer than 8388608 bytes"),
        (b'{"type":"x","data":"' + b"x" * 65536 + b'"}\n', MAX_STREAM, "the stream is longer than 33554432 bytes"),
        (b" " * 65535 + b"\n", MAX_STREAM, "the stream is longer than 33554432 bytes"),
    ],
    ids=["line", "stream", "blank lines"],
)
async def test_flood(piece: bytes, bound: int, message: str) -> None:
    """An endless line and an endless stream end at their bounds: no more is read, and no more than a line is held."""
    async with Flood(piece, begin=HEAD).running() as flood, narrow_client(flood.url) as client:
        chat = client.chat("s")
        tracemalloc.start()
        try:
            with pytest.raises(ProtocolError) as caught:
                await chat.stream("Hi")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await flood.left.wait()

    assert message in str(caught.value)
    assert (caught.value.partial, caught.value.delivery) == ("Hel", Delivery.ACCEPTED)
    assert not chat.busy
    assert bound <= flood.sent + NARROW
    assert flood.sent <= bound + NARROW
    # A line in pieces, and once more while they are joined: two of the longest lines, and room for all else.
    assert peak < 3 * MAX_LINE


# --- objects ----------------------------------------------------------------------------------------------------------


async def broken_by(scripted: ScriptedServer, client: ChatClient, line: bytes) -> Ended:
    """Send a bad line after a good beginning."""
    return await read(scripted, client, Script(stream_answer([*HEAD, line + b"\n", *TAIL])))


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("bracket", [b"[]", b"{}"])
@pytest.mark.parametrize("kind", [b"token", b"unheard-of"])
async def test_nested_brackets(
    scripted: ScriptedServer, client: ChatClient, kind: bytes, bracket: bytes, closed: bool
) -> None:
    """100,000 of them are an error of ours, not a RecursionError, and not one that carries them along."""
    opening, closing = bracket[:1] + b'"a":' * (bracket == b"{}"), bracket[1:]
    nested = opening * 100_000 + (b"1" + closing * 100_000) * closed

    ended = await broken_by(scripted, client, b'{"type":"' + kind + b'","token":' + nested + b"}")

    assert_broken(ended, "the JSON is nested too deep")
    assert ended.error is not None
    assert ended.error.__cause__ is None


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (b"1" * 5000, "a number has 5000 digits"),
        (b"-" + b"1" * 5000, "a number has 5001 digits"),
        (b"NaN", "NaN is no JSON number"),
        (b"Infinity", "Infinity is no JSON number"),
        (b"-Infinity", "-Infinity is no JSON number"),
        (b"1e999", "a number is too large: 1e999"),
    ],
)
@pytest.mark.parametrize("line", [b'{"type":"token","token":"x","n":%b}', b'{"type":"unheard-of","n":[%b]}'])
async def test_numbers(scripted: ScriptedServer, client: ChatClient, line: bytes, number: bytes, message: str) -> None:
    """What is no number, or one that costs too much to read, is refused wherever it stands."""
    ended = await broken_by(scripted, client, line % number)

    assert_broken(ended, message)


@pytest.mark.parametrize(
    ("line", "kind"),
    [(b"[1]", "an array"), (b'"token"', "a string"), (b"5", "a number"), (b"null", "null"), (b"true", "a boolean")],
)
@pytest.mark.parametrize("first", [False, True])
async def test_no_object(scripted: ScriptedServer, client: ChatClient, line: bytes, kind: str, first: bool) -> None:
    """JSON that is no object is no event, be it the first line or a later one."""
    lines = [line + b"\n", *HEAD, *TAIL] if first else [*HEAD, line + b"\n", *TAIL]

    ended = await read(scripted, client, Script(stream_answer(lines)))

    if first:
        assert_broken(ended, f"expected an object, got {kind}", line=1, partial="")
    else:
        assert_broken(ended, f"expected an object, got {kind}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", "is missing"),
        (b'{"token":"x"}', "is missing"),
        (b'{"type":null,"token":"x"}', "is null, not a string"),
        (b'{"type":5}', "is 5, not a string"),
        (b'{"type":["token"],"token":"x"}', 'is ["token"], not a string'),
        (b'{"type":{}}', "is {}, not a string"),
    ],
)
async def test_type(scripted: ScriptedServer, client: ChatClient, line: bytes, message: str) -> None:
    """An object that does not say what it is is no event."""
    ended = await broken_by(scripted, client, line)

    assert_broken(ended, f"the `type` of an event {message}")


async def test_unknown(scripted: ScriptedServer, client: ChatClient) -> None:
    """A newer server may say more: another type is an event of its own, another field is passed over."""
    lines: list[Event | bytes] = [
        b'{"type":"hello","version":2}\n',
        b'{"type":"start","conversationId":"%b","model":"m"}\n' % CONVERSATION_ID.encode(),
        b'{"type":"token","token":"Hel","logprob":-0.5,"type_":null}\n',
        b'{"type":"Token","token":"no token"}\n',
        b'{"type":"","usage":{"tokens":[1,2]}}\n',
        b'{"token":"lo","index":1,"type":"token"}\n',
        b'{"type":"done","message":"Hello","conversationId":"%b","error":null}\n' % CONVERSATION_ID.encode(),
    ]

    ended = await read(scripted, client, Script(stream_answer(lines)))

    assert ended.error is None
    assert ended.events == [
        Unknown("hello", {"type": "hello", "version": 2}),
        START,
        Token("Hel"),
        Unknown("Token", {"type": "Token", "token": "no token"}),
        Unknown("", {"type": "", "usage": {"tokens": [1, 2]}}),
        *TAIL,
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"null", "is null, not a string"),
        (b"5", "is 5, not a string"),
        (b"false", "is false, not a string"),
        (b'["x"]', 'is ["x"], not a string'),
        (b'{"text":"x"}', 'is {"text": "x"}, not a string'),
        (None, "is missing"),
    ],
)
async def test_token_text(scripted: ScriptedServer, client: ChatClient, value: bytes | None, message: str) -> None:
    """What is no text does not become one: a null is not the word "None" in an answer."""
    field = b"" if value is None else b',"token":' + value

    ended = await broken_by(scripted, client, b'{"type":"token"' + field + b"}")

    assert_broken(ended, f"the `token` of a token event {message}")


# --- halves of pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        (["\ud83d", "\ude00"], ["😀"]),
        (["a\ud83d", "\ude00b"], ["a", "😀b"]),
        (["a\ud83d", "", "\ude00\ud83d", "\ude00"], ["a", "", "😀", "😀"]),
        (["\ud83d", "x"], ["\ufffdx"]),  # its other half never comes
        (["x\ude00"], ["x\ufffd"]),
        (["\ud83d", "\ud83d", "\ude00"], ["\ufffd", "😀"]),
    ],
)
async def test_halves_of_pairs(
    scripted: ScriptedServer, client: ChatClient, tokens: list[str], given: list[str]
) -> None:
    """The joined text is right, and each piece of it can be encoded, for a loop and for a callback."""
    ended = await read(scripted, client, Script(stream_answer(events(*tokens, text="whole")), pieces=5))

    assert ended.error is None
    assert [event.text for event in ended.events if isinstance(event, Token)] == given
    assert [told for told in ended.told if isinstance(told, str)] == given
    assert "".join(given) == "".join(tokens).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@pytest.mark.parametrize("how", ["done", "error", "cut"])
async def test_lone_half_at_the_end(scripted: ScriptedServer, client: ChatClient, how: str) -> None:
    """It is given as U+FFFD once it is clear that its other half will not come, and is in the partial text."""
    last: dict[str, list[Event | bytes]] = {
        "done": [Done("a", CONVERSATION_ID)],
        "error": [Failure("no model")],
        "cut": [],
    }

    ended = await read(scripted, client, Script(stream_answer([START, Token("a"), Token("\ud83d"), *last[how]])))

    if how == "done":
        assert ended.events == [START, Token("a"), Token("\ufffd"), Done("a", CONVERSATION_ID)]
    else:
        assert isinstance(ended.error, ReplyFailedError if how == "error" else StreamInterruptedError)
        assert ended.error.partial == "a\ufffd"
        assert ended.events == [START, Token("a"), *[Token("\ufffd")] * (how == "error")]


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ([Token("x"), START, *TAIL], 1, "`token` event while the turn is waiting"),
        ([Done("x", CONVERSATION_ID)], 1, "`done` event while the turn is waiting"),
        ([*HEAD, START, *TAIL], 3, "`start` event while the turn is streaming"),
        ([*HEAD, Start("another"), *TAIL], 3, "`start` event while the turn is streaming"),
        ([*HEAD, Done("Hello", "another")], 3, "`done` names another conversation than `start`"),
    ],
)
async def test_order(
    scripted: ScriptedServer, client: ChatClient, lines: Iterable[Event | bytes], line: int, message: str
) -> None:
    """Events that cannot follow each other are not made the best of."""
    ended = await read(scripted, client, Script(stream_answer(lines)))

    assert_broken(ended, message, line=line, partial="" if line == 1 else "Hel")


@pytest.mark.parametrize("how", ["at once", "without an end", "later"])
@pytest.mark.parametrize(
    "surplus", [Token("late"), Failure("late"), Done("other", CONVERSATION_ID), START, b"garbage\n", b"\xff" * 10]
)
async def test_events_after_done(
    scripted: ScriptedServer, client: ChatClient, surplus: Event | bytes, how: str
) -> None:
    """They are not looked at. The connection is not used again, unless HTTP had ended the body in order before."""
    end = b"0\r\n\r\n"
    whole, gate = stream_answer([*HEAD, *TAIL, surplus]), asyncio.Event()
    surplus_at = len(stream_answer([*HEAD, *TAIL]).removesuffix(end))
    if how == "later":
        scripted.add(Script(whole, gates={surplus_at: gate}))
    else:
        scripted.add(Script(whole.removesuffix(end) if how == "without an end" else whole))
    chat = client.chat("s")

    found = [event async for event in chat.stream("Hi")]
    gate.set()
    if how != "at once":
        async with asyncio.timeout(2):  # not only when the pool lets an idle one go, after four seconds
            await scripted.requests[0].left.wait()
    again = await chat.stream("And now?")

    assert found == [*HEAD, *TAIL]
    assert [message.text for message in chat.messages] == ["Hi", "Hello", "And now?", "Hello world"]
    assert again.text == "Hello world"
    assert scripted.connections == (1 if how == "at once" else 2)


async def test_done_on_a_connection_that_stays_open(scripted: ScriptedServer, client: ChatClient) -> None:
    """The reply is there with `done`; nobody waits for the end of the body, not even the next turn."""
    answer = stream_answer([*HEAD, *TAIL]).removesuffix(b"0\r\n\r\n")

    ended = await read(scripted, client, Script(answer, end="stall"))

    assert ended.error is None
    assert ended.events == [*HEAD, *TAIL]
    assert not scripted.requests[0].left.is_set()


async def test_done_differs_from_the_tokens(scripted: ScriptedServer, client: ChatClient) -> None:
    """`done` says what was stored; what was streamed can be read beside it."""
    scripted.add(Script(stream_answer(events(" one ", "two\x85\n", text="something else"))))
    chat = client.chat("s")
    stream = chat.stream("Hi")

    reply = await stream

    assert (reply.text, reply.streamed_text, stream.snapshot) == ("something else", " one two\x85\n", " one two\x85\n")
    assert chat.messages[-1].text == "something else"


@pytest.mark.parametrize(
    ("lines", "partial"),
    [([], ""), ([START], ""), (HEAD, "Hel"), ([*HEAD, Token("lo")], "Hello")],
    ids=["first", "after start", "after a token", "after all tokens"],
)
async def test_error_event(
    scripted: ScriptedServer, make_client: MakeClient, lines: list[Event | bytes], partial: str
) -> None:
    """The reply failed, wherever it comes; the message is in the history, so it is not sent again at any price."""
    client = make_client(scripted.url, retry=Retry(attempts=3, may_duplicate=True))

    ended = await read(scripted, client, Script(stream_answer([*lines, Failure("no\x1bmodel")])))

    assert type(ended.error) is ReplyFailedError
    assert ended.error.reason == "no\x1bmodel"
    assert str(ended.error) == "the server gave up: no\\x1bmodel"
    assert (ended.error.partial, ended.error.delivery) == (partial, Delivery.ACCEPTED)
    assert ended.events == lines


async def test_control_characters(scripted: ScriptedServer, client: ChatClient) -> None:
    """The library changes nothing of a text: who shows it knows where it is shown."""
    tokens = ["\x1b[2J", "\x1b]0;title\x07", "\x00\x08\x7f\x9b", "\u202e", "\r\n"]

    ended = await read(scripted, client, Script(stream_answer(events(*tokens, text="".join(tokens)))))

    assert ended.error is None
    assert ended.events == events(*tokens, text="".join(tokens))
