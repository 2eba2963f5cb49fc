"""The error tree: its classes, verdicts, and what its messages let through."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import exceptions
from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    SessionBusyError,
    StatusError,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
    UsageError,
    snippet,
)

NS, RJ, UN, AC = Delivery.NOT_SENT, Delivery.REJECTED, Delivery.UNKNOWN, Delivery.ACCEPTED
TREE: list[tuple[type[AheadlessError], type[Exception], Delivery]] = [
    (ConfigurationError, ValueError, NS),
    (InvalidRequestError, ValueError, NS),
    (ConnectError, AheadlessError, NS),
    (ConnectionLostError, AheadlessError, UN),
    (RequestTimeoutError, TimeoutError, UN),
    (StatusError, AheadlessError, UN),
    (AuthenticationError, StatusError, RJ),
    (NotFoundError, StatusError, RJ),
    (RejectedError, StatusError, RJ),
    (RateLimitError, StatusError, RJ),
    (ServerError, StatusError, UN),
    (RedirectError, StatusError, RJ),
    (ProtocolError, AheadlessError, UN),
    (StreamInterruptedError, AheadlessError, UN),
    (StreamStoppedError, StreamInterruptedError, UN),
    (ReplyFailedError, AheadlessError, AC),
    (SessionBusyError, RuntimeError, NS),
    (ClientClosedError, RuntimeError, NS),
    (UsageError, RuntimeError, NS),
    (StoreError, AheadlessError, AC),
]


@pytest.mark.parametrize(("kind", "base", "delivery"), TREE)
def test_tree(kind: type[AheadlessError], base: type[Exception], delivery: Delivery) -> None:
    """Each has its base, its verdict, and travels by pickle with all that is on it."""
    error = kind("why")

    assert isinstance(error, base)
    assert isinstance(error, AheadlessError)
    assert (str(error), error.delivery, error.session_id, error.partial) == ("why", delivery, None, "")
    error.session_id, error.partial = "s", "text"
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert (twin.args, twin.__dict__) == (error.args, error.__dict__)


def test_the_tree_is_whole() -> None:
    """No class is missing above."""
    classes = {
        item for item in vars(exceptions).values() if isinstance(item, type) and issubclass(item, AheadlessError)
    }

    assert classes == {AheadlessError, *(kind for kind, _, _ in TREE)}


def test_what_is_on_them() -> None:
    """The attributes that some of them add."""
    assert RequestTimeoutError(phase="idle").phase == "idle"
    assert str(RequestTimeoutError(phase="connect")) == "timed out waiting for a connection"
    assert StatusError(status=418, detail="teapot").status == 418
    assert ProtocolError(line=3).line == 3
    assert ReplyFailedError(reason="r").reason == "r"
    assert StoreError().reply is None
    assert AheadlessError(delivery=RJ, session_id="s", partial="p").delivery is RJ


@given(st.text())
def test_snippets_are_safe(text: str) -> None:
    """One line, printable, at most 200 characters."""
    shown = snippet(text)

    assert shown.isprintable()
    assert len(shown) <= 200


def test_snippet() -> None:
    """Escaped and cut."""
    assert snippet("a\n\x1b[31m\u2028é😀") == "a\\n\\x1b[31m\\u2028é😀"
    assert snippet("x" * 200) == "x" * 200
    assert snippet("x" * 201) == "x" * 199 + "…"
    assert snippet("\x00" * 100, 10) == "\\x00\\x00\\…"
