"""What a stream says, one frozen value an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Done", "Event", "Failure", "Start", "Token", "Unknown"]


@attrs.frozen
class Start:
    """The server has stored the message and is about to ask the model."""

    conversation_id: str


@attrs.frozen
class Token:
    """The next piece of the reply's text."""

    text: str


@attrs.frozen
class Done:
    """The reply is complete and stored; `text` is the reply, trimmed by the server."""

    text: str
    conversation_id: str


@attrs.frozen
class Failure:
    """The server gave up on the reply."""

    reason: str


@attrs.frozen
class Unknown:
    """An event of a type that this version does not know; `data` is the object as it came."""

    type: str
    data: Mapping[str, object]


Event: TypeAlias = Start | Token | Done | Failure | Unknown
