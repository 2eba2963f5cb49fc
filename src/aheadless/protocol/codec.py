"""The wire's objects and ours, both ways: events, requests, replies. The client and the server use the same ones."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final, cast

import msgspec

from aheadless.exceptions import InvalidRequestError, ProtocolError, snippet
from aheadless.protocol.events import Done, Failure, Start, Token, Unknown
from aheadless.protocol.ndjson import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aheadless.protocol.events import Event

__all__ = [
    "FALLBACK_REPLY",
    "MAX_MESSAGE_UNITS",
    "ChatRequest",
    "JSONReply",
    "decode_event",
    "decode_reply",
    "decode_tokens",
    "encode_event",
    "encode_reply",
    "encode_request",
    "join_surrogates",
    "parse_request",
    "remainder",
    "trim",
    "utf16_length",
    "validate_message",
    "validate_session_id",
]

MAX_MESSAGE_UNITS: Final = 4000  # UTF-16 units, protocol.md §1
FALLBACK_REPLY: Final = "I could not generate a response right now."  # protocol.md §3.2

_SESSION_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# What String.prototype.trim takes off. str.strip would leave U+FEFF and take U+0085 and U+001C to U+001F.
_JS_BLANKS: Final = (
    "\t\n\v\f\r \xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000\ufeff"
)


# --- events -----------------------------------------------------------------------------------------------------------


_encode_known = msgspec.json.Encoder().encode
_decode_line = msgspec.json.Decoder(Start | Token | Done | Failure).decode
_decode_token_lines = msgspec.json.Decoder(Token).decode_lines

# How the server writes a token (protocol.md §3.3); between two of them, and around them.
_OPENING: Final = b'{"type":"token","token":"'
_CLOSING: Final = b'"}\n'
_SEAM: Final = _CLOSING + _OPENING


def decode_event(line: bytes) -> Event:
    """Return the event on a line of the stream.

    A token's text may hold half a surrogate pair, whose other half is in the next token; other texts hold U+FFFD in
    such a place. Raises ProtocolError when the line is no event.
    """
    # Nearly every line has exactly the known fields and costs a tenth this way. Whatever msgspec does not take, for
    # whatever reason, is decided by the lenient reader below, so the two never disagree.
    try:
        event: Event = _decode_line(line)
    except (ValueError, RecursionError):
        event = _event_from(parse_object(line))
    return event


def decode_tokens(block: bytes) -> list[Token]:
    """Return the tokens of a block of lines that is nothing else, just as the server writes them; else an empty list.

    What is not sure to be a token on each line is for :func:`decode_event`, which tells what is wrong with it.
    """
    if not (block.startswith(_OPENING) and block.endswith(_CLOSING)):
        return []
    try:
        tokens = _decode_token_lines(block)
    except (ValueError, RecursionError):
        return []
    # msgspec does not care where newlines are, except that none is in a string. If each but the last is in a seam, and
    # there is a seam after each object but the last, there is one object a line.
    whole = block.count(b"\n") == block.count(_SEAM) + 1 == len(tokens)
    return tokens if whole else []


def _event_from(data: Mapping[str, object]) -> Event:
    match kind := _string(data, "type", "an event"):
        case "token":
            return Token(_string(data, "token", "a token event"))
        case "start":
            return Start(_text(data, "conversationId", "a start event"))
        case "done":
            return Done(_text(data, "message", "a done event"), _text(data, "conversationId", "a done event"))
        case "error":
            return Failure(_text(data, "error", "an error event"))
        case _:
            return Unknown(kind, data)


def _text(data: Mapping[str, object], name: str, owner: str) -> str:
    return join_surrogates(_string(data, name, owner))


def _string(data: Mapping[str, object], name: str, owner: str) -> str:
    value = data.get(name)
    if isinstance(value, str):
        return value
    found = f"is {snippet(json.dumps(value), 40)}, not a string" if name in data else "is missing"
    raise ProtocolError(f"the `{name}` of {owner} {found}")


def encode_event(event: Event) -> bytes:
    """Return the line for an event, its newline included. Half a surrogate pair is written as a `\\ud83d` escape."""
    if isinstance(event, Unknown):
        return _encode(event.data) + b"\n"
    try:
        return _encode_known(event) + b"\n"  # a third of the time
    except UnicodeEncodeError:
        return _encode(msgspec.to_builtins(event)) + b"\n"


def join_surrogates(text: str) -> str:
    """Return the text with surrogate pairs joined and every lone half replaced by U+FFFD."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# --- requests and replies ---------------------------------------------------------------------------------------------


class ChatRequest(msgspec.Struct, frozen=True):
    """One question as it goes over the wire."""

    session_id: str
    message: str


class JSONReply(msgspec.Struct, frozen=True):
    """What `POST /v1/chat` answers."""

    text: str
    conversation_id: str


def encode_request(request: ChatRequest) -> bytes:
    """Return the body of a chat request."""
    return _encode({"sessionId": request.session_id, "message": request.message})


def parse_request(payload: object) -> ChatRequest:
    """Return the request in a parsed JSON body, as leniently as the server reads it: unknown fields are ignored.

    Raises InvalidRequestError, which names the field.
    """
    if not isinstance(payload, dict):
        raise InvalidRequestError("the body is not a JSON object")
    fields = cast("Mapping[str, object]", payload)
    session_id = validate_session_id(_request_field(fields, "sessionId"))
    # A browser may cut an emoji in half; the server takes that, and what is stored has to be encodable.
    message = join_surrogates(_request_field(fields, "message"))
    return ChatRequest(session_id, validate_message(message))


def _request_field(fields: Mapping[str, object], name: str) -> str:
    if name not in fields:
        raise InvalidRequestError(f"{name} is missing")
    value = fields[name]
    if not isinstance(value, str):
        raise InvalidRequestError(f"{name} must be a string, not {_json_kind(value)}")
    return value


def _json_kind(value: object) -> str:
    """Return what a value was in the JSON that the client sent; which Python type stands for it is our affair."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"


def encode_reply(reply: JSONReply) -> bytes:
    """Return the body of a JSON reply."""
    data = {"conversationId": reply.conversation_id, "message": reply.text}
    try:
        return _encode_known(data)
    except UnicodeEncodeError:
        return _encode(data)


def decode_reply(body: bytes) -> JSONReply:
    """Return the reply in the body of a JSON answer; ProtocolError when it is none."""
    data = parse_object(body)
    return JSONReply(_text(data, "message", "a reply"), _text(data, "conversationId", "a reply"))


def _encode(data: Mapping[str, object]) -> bytes:
    # "backslashreplace" meets lone surrogates only, and writes them just as JSON escapes them.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def validate_session_id(value: object) -> str:
    """Return the session id; InvalidRequestError unless it is 1 to 128 of `A-Z a-z 0-9 . _ : -`."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"sessionId must be a string, not {type(value).__name__}")
    if not _SESSION_ID.fullmatch(value):
        raise InvalidRequestError(
            f"sessionId must be 1 to 128 of A-Z a-z 0-9 . _ : - ; got {snippet(repr(value), 160)}"
        )
    return value


def validate_message(value: object) -> str:
    """Return the message; InvalidRequestError unless it is encodable text of 1 to 4000 UTF-16 units."""
    if not isinstance(value, str):
        raise InvalidRequestError(f"message must be a string, not {type(value).__name__}")
    if not value:
        raise InvalidRequestError("message is empty")
    if _SURROGATE.search(value):
        raise InvalidRequestError("message holds half of a surrogate pair, which cannot be encoded")
    if (units := utf16_length(value)) > MAX_MESSAGE_UNITS:
        raise InvalidRequestError(f"message has {units} UTF-16 units, more than {MAX_MESSAGE_UNITS}")
    return value


def utf16_length(text: str) -> int:
    """Return the length as JavaScript counts it: most characters are 1, emoji are 2."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def trim(text: str) -> str:
    """Return the text trimmed as JavaScript trims it, which is how the server makes `done.message`."""
    return text.strip(_JS_BLANKS)


def remainder(stored: str, streamed: str) -> str | None:
    """Return what of a stored reply follows the tokens that came; None if they are not its beginning."""
    begun = streamed.lstrip(_JS_BLANKS)
    if stored.startswith(begun):
        return stored[len(begun) :]
    return "" if trim(begun) == stored else None
