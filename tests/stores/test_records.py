"""Messages as stores write them: what goes in comes out, and nothing else does."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import Delivery, Message, StoreError
from aheadless._session import MessageStatus, Role
from aheadless.stores._records import decode_message, encode_message

AT = datetime(2026, 11, 26, 12, 0, 0, 123456, tzinfo=timezone.utc)
WRITTEN = b'{"role":"user","text":"Hi","status":"pending","at":"2026-11-26T12:00:00.123456Z","delivery":"unknown"}'

messages = st.builds(
    Message,
    role=st.sampled_from(get_args(Role)),
    text=st.text(),
    status=st.sampled_from(get_args(MessageStatus)),
    created_at=st.datetimes(timezones=st.just(timezone.utc)),
    delivery=st.sampled_from(Delivery),
)


@given(messages)
def test_any_message(message: Message) -> None:
    """It comes back as it was, to the microsecond."""
    assert decode_message(encode_message(message)) == message


def test_what_is_written() -> None:
    """Databases outlive versions: this form does not change."""
    message = Message("user", "Hi", status="pending", created_at=AT, delivery=Delivery.UNKNOWN)

    assert encode_message(message) == WRITTEN
    assert decode_message(WRITTEN) == message


def test_another_time_zone() -> None:
    """The same moment, in UTC."""
    there = AT.astimezone(timezone(timedelta(hours=5, minutes=30, seconds=1)))

    back = decode_message(encode_message(Message("user", "Hi", created_at=there)))

    assert (back.created_at, back.created_at.utcoffset()) == (AT, timedelta(0))


def test_surrogates() -> None:
    """A pair is joined, a lone half becomes U+FFFD: no text makes saving fail."""
    message = Message("assistant", "\ud83d\ude00 \ud83d", created_at=AT)

    assert decode_message(encode_message(message)) == attrs.evolve(message, text="\U0001f600 \ufffd")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff",
        b"[1]",
        WRITTEN[:-1],
        WRITTEN + b"x",
        WRITTEN.replace(b'"user"', b'"system"'),
        WRITTEN.replace(b'"Hi"', b"null"),
        WRITTEN.replace(b'"Hi"', b'"\xff"'),
        WRITTEN.replace(b'"pending"', b'"done"'),
        WRITTEN.replace(b'123456Z"', b'123456"'),
        WRITTEN.replace(b"{", b'{"more":1,'),
    ],
)
def test_no_message(data: bytes) -> None:
    """Whatever is damaged or not ours is said to be that."""
    with pytest.raises(StoreError, match="cannot be read"):
        decode_message(data)
