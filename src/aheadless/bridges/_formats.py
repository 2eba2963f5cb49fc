"""The events of a turn as bytes for a browser, in three formats; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol, cast

from aheadless.bridges._refusals import describe, kind_text
from aheadless.exceptions import InvalidRequestError
from aheadless.protocol.codec import encode_event, join_surrogates, validate_message
from aheadless.protocol.events import Done, Start, Token, Unknown

if TYPE_CHECKING:
    from aheadless.exceptions import AheadlessError
    from aheadless.protocol.events import Event

__all__ = ["AISDKFormat", "Format", "NDJSONFormat", "SSEFormat", "ai_sdk_message"]

# A browser's EventSource asks again after so many milliseconds; its own default is 3 to 5 seconds.
RETRY: Final = 1000

# What may stand in a line of its own without an end of line getting in, which would begin another field.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")

HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # or nginx holds the tokens back
    "X-Content-Type-Options": "nosniff",
    # It means nothing to browsers, and to middleware that it is not wanted: Starlette's would hold the tokens back to
    # compress them, and Django's packs each piece by itself, of which browsers unpack the first.
    "Content-Encoding": "identity",
}


class Format(Protocol):
    """How a turn is written; one object for each turn."""

    media_type: str
    headers: Mapping[str, str] = HEADERS
    heartbeat: bytes
    """What keeps a connection open and says nothing."""

    def begin(self) -> bytes:
        """Return what comes before the first event; may be empty, as all of these."""
        ...

    def event(self, event: Event, event_id: str | None) -> bytes:
        """Return an event."""
        ...

    def failure(self, error: AheadlessError) -> bytes:
        """Return the end of a turn that failed."""
        ...


class NDJSONFormat(Format):
    """The API's own lines. The last one is `done`, or `error` with a kind text and the verdict as `delivery`."""

    media_type = "application/x-ndjson"
    heartbeat = b""

    def begin(self) -> bytes:
        return b""

    def event(self, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002 - lines have no ids
        return encode_event(event)

    def failure(self, error: AheadlessError) -> bytes:
        return _json({"type": "error", **describe(error)}) + b"\n"


class SSEFormat(Format):
    """Server-sent events: `event` is the type, `data` the API's own line, `id` the store's id of the event."""

    media_type = "text/event-stream"
    heartbeat = b": ping\n\n"

    def begin(self) -> bytes:
        return b"retry: %d\n\n" % RETRY

    def event(self, event: Event, event_id: str | None) -> bytes:
        # JSON writes every end of line as an escape, so that `data` is one line whatever the model says.
        data = encode_event(event).rstrip(b"\n")
        identity = f"id: {event_id}\n" if event_id is not None and _PLAIN.fullmatch(event_id) else ""
        return f"{identity}event: {_name(event)}\ndata: ".encode() + data + b"\n\n"

    def failure(self, error: AheadlessError) -> bytes:
        return b"event: error\ndata: " + _json({"type": "error", **describe(error)}) + b"\n\n"


class AISDKFormat(Format):
    """The UI message stream of the Vercel AI SDK (checked with ai 6 and 7): one text part."""

    media_type = "text/event-stream"
    headers: Mapping[str, str] = {**HEADERS, "x-vercel-ai-ui-message-stream": "v1"}
    heartbeat = b": ping\n\n"

    def __init__(self) -> None:
        self._writing = False

    def begin(self) -> bytes:
        return _part({"type": "start"})

    def event(self, event: Event, event_id: str | None) -> bytes:  # noqa: ARG002 - the SDK resumes in a way of its own
        match event:
            case Token():
                return self._text(event.text)
            case Done():
                # Without a token it is the API's fixed text, which stands in `done` alone.
                text = b"" if self._writing else self._text(event.text)
                return text + _part({"type": "text-end", "id": "text"}) + _part({"type": "finish"}) + _LAST
            case _:
                return b""

    def failure(self, error: AheadlessError) -> bytes:
        return _part({"type": "error", "errorText": kind_text(error)}) + _LAST

    def _text(self, text: str) -> bytes:
        begin = b"" if self._writing else _part({"type": "text-start", "id": "text"})
        self._writing = True
        return begin + _part({"type": "text-delta", "id": "text", "delta": text})


_LAST: Final = b"data: [DONE]\n\n"


def _part(data: Mapping[str, object]) -> bytes:
    return b"data: " + _json(data) + b"\n\n"


def _json(data: Mapping[str, object]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def _name(event: Event) -> str:
    match event:
        case Start():
            return "start"
        case Token():
            return "token"
        case Done():
            return "done"
        case Unknown() if _PLAIN.fullmatch(event.type):
            return event.type
        case _:
            return "unknown"


def ai_sdk_message(body: object) -> str:
    """Return the question in what the AI SDK has posted, parsed from JSON: the text of the last message, the user's.

    The SDK posts the whole history; the rest of it is not looked at, as the API keeps its own. Raises
    InvalidRequestError for another body, and for a text that the API would not take.
    """
    messages = _field(body, "messages")
    last = cast("list[object]", messages)[-1] if isinstance(messages, list) and messages else None
    parts = _field(last, "parts")
    if _field(last, "role") != "user" or not isinstance(parts, list):
        raise InvalidRequestError("the body holds no history that ends with a message of the user's")
    texts = [_field(part, "text") for part in cast("list[object]", parts) if _field(part, "type") == "text"]
    # As the API does: a browser may cut an emoji in half.
    return validate_message(join_surrogates("".join(text for text in texts if isinstance(text, str))))


def _field(value: object, name: str) -> object:
    return cast("Mapping[str, object]", value).get(name) if isinstance(value, Mapping) else None
