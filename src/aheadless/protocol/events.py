"""What a stream says, one frozen value an event.

These are msgspec's structs, where the other values that users see are attrs classes: the decoder makes them straight
from the bytes, and a token costs a third of what an attrs object made from a decoded one did.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - the signature of a struct is looked up at run time
from typing import TypeAlias

import msgspec

__all__ = ["Done", "Event", "Failure", "Start", "Token", "Unknown"]


class _Known(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """An event of the protocol (protocol.md §3.3), with the names of its fields on the wire."""


class Start(_Known, frozen=True, tag="start"):
    """The server has stored the message and is about to ask the model."""

    conversation_id: str = msgspec.field(name="conversationId")


class Token(_Known, frozen=True, tag="token"):
    """The next piece of the reply's text."""

    text: str = msgspec.field(name="token")


class Done(_Known, frozen=True, tag="done"):
    """The reply is complete and stored; `text` is the reply, trimmed by the server."""

    text: str = msgspec.field(name="message")
    conversation_id: str = msgspec.field(name="conversationId")


class Failure(_Known, frozen=True, tag="error"):
    """The server gave up on the reply."""

    reason: str = msgspec.field(name="error")


class Unknown(msgspec.Struct, frozen=True):
    """An event of a type that this version does not know; `data` is the object as it came."""

    type: str
    data: Mapping[str, object]


Event: TypeAlias = Start | Token | Done | Failure | Unknown
