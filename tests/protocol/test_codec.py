"""Objects to events and back, requests and replies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.exceptions import AheadlessError, Delivery, InvalidRequestError, ProtocolError
from aheadless.protocol import codec
from aheadless.protocol.codec import (
    ChatRequest,
    JSONReply,
    decode_event,
    decode_reply,
    encode_event,
    encode_reply,
    encode_request,
    join_surrogates,
    parse_request,
    trim,
    utf16_length,
    validate_message,
    validate_session_id,
)
from aheadless.protocol.events import Done, Event, Failure, Start, Token, Unknown
from aheadless.protocol.ndjson import parse_object
from tests.protocol import strategies
from tests.support import recorded


@given(strategies.events)
def test_encode_then_decode_is_identity(event: Event) -> None:
    """What is encoded comes back, halves of surrogate pairs in tokens included."""
    line = encode_event(event)

    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_event(line[:-1]) == event


@given(strategies.events)
def test_fast_and_lenient_reader_agree(event: Event) -> None:
    """The quick decoder takes nothing that the careful one reads differently."""
    line = encode_event(event)

    assert decode_event(line) == codec._event_from(parse_object(line))


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: json.dumps({"type": text}).encode()))
def test_decode_raises_protocol_error_only(data: bytes) -> None:
    """No bytes raise anything but ProtocolError."""
    try:
        decode_event(data)
    except ProtocolError:
        pass


def test_wire_form() -> None:
    """The bytes are those of the reference: no spaces, text as it is, halves as lower-case escapes."""
    assert encode_event(Start("c")) == b'{"type":"start","conversationId":"c"}\n'
    assert encode_event(Token("é\u2028\x0b\ud83d")) == '{"type":"token","token":"é\u2028\\u000b\\ud83d"}\n'.encode()
    assert encode_event(Done("m", "c")) == b'{"type":"done","message":"m","conversationId":"c"}\n'
    assert encode_event(Failure("e")) == b'{"type":"error","error":"e"}\n'
    assert encode_event(Unknown("x", {"type": "x", "n": 1})) == b'{"type":"x","n":1}\n'


@pytest.mark.parametrize("name", [name for name, exchange in recorded().items() if exchange["chunk_sizes"]])
def test_recorded_streams_encode_as_they_came(name: str) -> None:
    """Our encoding of a recorded event is the very line that the reference sent."""
    for line in recorded()[name]["body"].encode().splitlines(keepends=True)[:1]:
        assert encode_event(decode_event(line)) == line


def test_unknown_types_and_fields() -> None:
    """An unknown type is an Unknown event with its data, unknown fields of a known one are ignored."""
    assert decode_event(b'{"type":"x","a":[1]}') == Unknown("x", {"type": "x", "a": [1]})
    assert decode_event(b'{"type":"token","token":"a","extra":{"b":null}}') == Token("a")
    assert decode_event(b'{"type":"start","conversationId":"c","token":5}') == Start("c")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}", "the `type` of an event is missing"),
        (b'{"type":null}', "the `type` of an event is null, not a string"),
        (b'{"type":5}', "the `type` of an event is 5, not a string"),
        (b'{"type":"token"}', "the `token` of a token event is missing"),
        (b'{"type":"token","token":null}', "the `token` of a token event is null, not a string"),
        (b'{"type":"token","token":5}', "the `token` of a token event is 5, not a string"),
        (b'{"type":"token","token":["a"]}', 'the `token` of a token event is ["a"], not a string'),
        (b'{"type":"start"}', "the `conversationId` of a start event is missing"),
        (b'{"type":"done","message":"m"}', "the `conversationId` of a done event is missing"),
        (b'{"type":"done","conversationId":"c"}', "the `message` of a done event is missing"),
        (b'{"type":"error","error":{}}', "the `error` of an error event is {}, not a string"),
    ],
)
def test_wrong_fields(line: bytes, message: str) -> None:
    """A field that is missing or of another type is named; a null never becomes the word "None"."""
    with pytest.raises(ProtocolError) as caught:
        decode_event(line)

    assert str(caught.value) == message


def test_lone_halves_become_replacement_characters_outside_tokens() -> None:
    """Texts that are given out whole can be encoded; only a token keeps a half, whose other half may follow."""
    assert decode_event(rb'{"type":"done","message":"a\ud83d","conversationId":"c\ude00"}') == Done(
        "a\ufffd", "c\ufffd"
    )
    assert decode_event(rb'{"type":"error","error":"\ud83d\ude00"}') == Failure("😀")
    assert decode_event(rb'{"type":"token","token":"\ud83d"}') == Token("\ud83d")


@given(strategies.token_texts)
def test_join_surrogates(text: str) -> None:
    """What comes out can be encoded, and is the text as UTF-16 reads it."""
    joined = join_surrogates(text)

    joined.encode()
    assert joined == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- what users give --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("session_id", ["a", "Az09._:-", "x" * 128, "discord:1:2:3"])
def test_session_ids(session_id: str) -> None:
    """1 to 128 of the allowed characters."""
    assert validate_session_id(session_id) == session_id


@pytest.mark.parametrize(
    "session_id",
    ["", "x" * 129, "é", "ａ", "\u212a", "a\n", "\na", "a b", "a/b", "a\x00", "٣", None, b"a", 5, ["a"]],
)
def test_wrong_session_ids(session_id: object) -> None:
    """Everything else is refused, by the whole string and by ASCII alone."""
    with pytest.raises(InvalidRequestError, match="sessionId") as caught:
        validate_session_id(session_id)

    assert caught.value.delivery is Delivery.NOT_SENT
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("message", ["a", " ", "\n", "x" * 4000, "😀" * 2000, "😀" * 1999 + "ab", "\x00"])
def test_messages(message: str) -> None:
    """1 to 4000 UTF-16 units, kept as they are."""
    assert validate_message(message) == message


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("", "message is empty"),
        (None, "message must be a string, not NoneType"),
        (b"a", "message must be a string, not bytes"),
        ("x" * 4001, "message has 4001 UTF-16 units, more than 4000"),
        ("😀" * 2001, "message has 4002 UTF-16 units, more than 4000"),
        ("😀" * 1999 + "abc", "message has 4001 UTF-16 units, more than 4000"),
        ("a\ud83d", "message holds half of a surrogate pair, which cannot be encoded"),
    ],
)
def test_wrong_messages(message: object, why: str) -> None:
    """Everything else is refused, and the error says why."""
    with pytest.raises(InvalidRequestError) as caught:
        validate_message(message)

    assert str(caught.value) == why


@given(st.text())
def test_utf16_length(text: str) -> None:
    """One for most characters, two for those beyond the basic plane."""
    assert utf16_length(text) == sum(2 if char > "\uffff" else 1 for char in text)


def test_request_both_ways() -> None:
    """A request that is encoded is the one that the server reads."""
    request = ChatRequest("s:1", 'é"\u2028😀')

    assert encode_request(request) == '{"sessionId":"s:1","message":"é\\"\u2028😀"}'.encode()
    assert parse_request(json.loads(encode_request(request))) == request


def test_server_reads_leniently() -> None:
    """Unknown fields are ignored, a half of a pair is replaced."""
    assert parse_request({"sessionId": "s", "message": "a\ud83d", "x": 1}) == ChatRequest("s", "a\ufffd")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ([], "the body is not a JSON object"),
        (None, "the body is not a JSON object"),
        ({}, "sessionId is missing"),
        ({"sessionId": "s"}, "message is missing"),
        ({"sessionId": 5, "message": "m"}, "sessionId must be a string, not a number"),
        ({"sessionId": 5.0, "message": "m"}, "sessionId must be a string, not a number"),
        ({"sessionId": "s", "message": None}, "message must be a string, not null"),
        ({"sessionId": "s", "message": True}, "message must be a string, not a boolean"),
        ({"sessionId": "s", "message": ["m"]}, "message must be a string, not an array"),
        ({"sessionId": "s", "message": {}}, "message must be a string, not an object"),
        ({"sessionId": "s", "message": ""}, "message is empty"),
    ],
)
def test_wrong_requests(payload: object, said: str) -> None:
    """The error names the field, and what came in the words of JSON."""
    with pytest.raises(InvalidRequestError, match=f"^{said}"):
        parse_request(payload)


def test_json_reply_both_ways() -> None:
    """The JSON reply of the reference, byte for byte."""
    body = recorded()["chat_json_ok"]["body"].encode()

    reply = decode_reply(body)

    assert reply == JSONReply("hello big world", "j5705jz09wdrkwnzzqhnbgtx6c5qwgc5")
    assert encode_reply(reply) == body


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"message":null,"conversationId":"c"}', b'{"message":"m"}'])
def test_wrong_json_replies(body: bytes) -> None:
    """What is no reply is a ProtocolError."""
    with pytest.raises(ProtocolError):
        decode_reply(body)


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        (" a ", "a"),
        ("\ufeff\xa0\u3000 \x85\x1c core \x1f\x85 \u2029\ufeff", "\x85\x1c core \x1f\x85"),
        ("\t\n\v\f\r\u1680\u2000\u200a\u2028\u202f\u205f", ""),
        ("\u200b", "\u200b"),
        ("\u180e", "\u180e"),
    ],
)
def test_trim_as_javascript(text: str, trimmed: str) -> None:
    """U+FEFF goes; U+0085 and U+001C stay, which str.strip would take."""
    assert trim(text) == trimmed


def test_errors_are_ours() -> None:
    """Every error of the codec is one of the tree."""
    assert issubclass(ProtocolError, AheadlessError)
    assert issubclass(InvalidRequestError, AheadlessError)


@given(strategies.token_texts)
def test_events_are_written_as_json_writes_them(text: str) -> None:
    """The short way and the long one give the same bytes, whatever the text."""
    long_way = json.dumps({"type": "token", "token": text}, ensure_ascii=False, separators=(",", ":"))

    assert encode_event(Token(text)) == long_way.encode("utf-8", "backslashreplace") + b"\n"


def test_half_a_pair_in_a_reply() -> None:
    """It is written as an escape, as in a token."""
    assert codec.encode_reply(JSONReply("a\ud83d", "c")) == b'{"conversationId":"c","message":"a\\ud83d"}'
