"""A message as stores outside this process keep it: one line of JSON."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated

import msgspec

from aheadless._session import Message, MessageStatus, Role
from aheadless.exceptions import Delivery, StoreError
from aheadless.protocol.codec import join_surrogates

__all__ = ["decode_message", "encode_message"]


class _Record(msgspec.Struct, forbid_unknown_fields=True):
    role: Role
    text: str
    status: MessageStatus
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    delivery: Delivery


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Record).decode


def encode_message(message: Message) -> bytes:
    """Return a message as JSON, its time in UTC. Half a surrogate pair becomes U+FFFD: UTF-8 cannot hold it."""
    return _encode(
        _Record(
            message.role,
            join_surrogates(message.text),
            message.status,
            message.created_at.astimezone(timezone.utc),
            message.delivery,
        )
    )


def decode_message(data: bytes) -> Message:
    """Return the message that :func:`encode_message` wrote. Raises StoreError for anything else."""
    try:
        record = _decode(data)
    # ValueError: bytes that are no UTF-8, which msgspec does not translate.
    except (msgspec.MsgspecError, ValueError) as exc:
        raise StoreError(f"a stored message cannot be read: {exc}") from exc
    return Message(record.role, record.text, status=record.status, created_at=record.at, delivery=record.delivery)
