"""What a browser is told of a failure: a status and a kind text that holds nothing of ours; and what the log is."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    InvalidRequestError,
    RateLimitError,
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Refusal", "describe", "kind_text", "refusal", "report"]

logger = logging.getLogger("aheadless.bridges")

# The API's 429 does not say how long; its window is this long at the most (protocol.md §2).
WINDOW: Final = 60

# The first class that fits counts. What is not here is a failure of the way to the API or of the API: 502.
_STATUS: Final[tuple[tuple[type[AheadlessError], int], ...]] = (
    (InvalidRequestError, 400),
    (SessionBusyError, 409),
    (StreamStoppedError, 409),  # by the visitor's next question, or by a Stop button elsewhere
    (RequestTimeoutError, 504),
    (StoreError, 503),
    (ClientClosedError, 503),  # the back end shuts down
    (ConfigurationError, 500),
    (UsageError, 500),
)

# Of the API's own statuses those that mean the same to a browser. A 404, say, would mean that our page is not there.
_PASSED_ON: Final = frozenset({400, 401, 403, 409, 413, 415, 422, 429, 503, 504})

_TEXT: Final[tuple[tuple[type[AheadlessError], str], ...]] = (
    (SessionBusyError, "The last question is still being answered."),
    (RateLimitError, "Too many questions right now. Please try again in a moment."),
    (InvalidRequestError, "The chat does not take this message."),
    (RejectedError, "The chat does not take this message."),
    (RequestTimeoutError, "The answer took too long."),
    (StreamStoppedError, "The answer was stopped."),
    (StreamInterruptedError, "The answer broke off."),
    (ConnectionLostError, "The answer broke off."),
    (ReplyFailedError, "Sorry, no answer could be given."),
    (ConnectError, "The chat cannot be reached right now. Please try again later."),
    (ServerError, "The chat cannot be reached right now. Please try again later."),
    (StoreError, "The chat cannot be reached right now. Please try again later."),
    (ClientClosedError, "The chat is closing. Please try again in a moment."),
)
_ANY: Final = "The chat does not work right now."


@attrs.frozen
class Refusal:
    """The whole answer to a request whose turn did not begin."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    """JSON: `error`, a text for the visitor, and `delivery`, the verdict on the message."""


def refusal(error: AheadlessError) -> Refusal:
    """Return what a browser gets for an error that came before its answer had begun.

    The API's own 400, 401, 403, 409, 413, 415, 422, 429, 503 and 504 stay what they are, a 429 with a `Retry-After`
    in any case. Else the kind of the error counts: 400 for a message that cannot be sent, 409 for a session that is
    busy, 500 for a mistake in the back end, 503 for a store that is gone, 504 for a time-out, and 502 for the rest.
    """
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if (seconds := _retry_after(error)) is not None:
        headers["Retry-After"] = str(seconds)
    return Refusal(_status(error), headers, json.dumps(describe(error)).encode())


def describe(error: AheadlessError) -> dict[str, str]:
    """Return the text and the verdict, as they stand in a refusal and in a stream's last line."""
    return {"error": kind_text(error), "delivery": error.delivery.value}


def kind_text(error: AheadlessError) -> str:
    """Return one or two sentences for the visitor: no key, no address, nothing that a server has said."""
    if isinstance(error, InvalidRequestError) and str(error).startswith("message "):
        return f"The {error}."  # our own words: that it is empty, or how much too long
    return next((text for kind, text in _TEXT if isinstance(error, kind)), _ANY)


def report(error: AheadlessError) -> None:
    """Tell the log of an error, as the visitor is told next to nothing; not of one that is the visitor's own doing."""
    if isinstance(error, RejectedError) and error.session_id is None:
        return  # by `Visitors`, before there was a turn
    if not isinstance(error, InvalidRequestError | RateLimitError | SessionBusyError | StreamStoppedError):
        logger.warning("a turn of %s failed: %s: %s", error.session_id, type(error).__name__, error)


def _status(error: AheadlessError) -> int:
    if isinstance(error, StatusError) and error.status in _PASSED_ON:
        return error.status
    if isinstance(error, RateLimitError):
        return 429  # from the client's own pace: it has no status
    if isinstance(error, AuthenticationError):
        return 401
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 502)


def _retry_after(error: AheadlessError) -> int | None:
    """Return whole seconds, at least 1; None if the error says nothing about another try."""
    asked = error.retry_after if isinstance(error, StatusError) else None
    if asked is None:
        return WINDOW if isinstance(error, RateLimitError) else None
    return max(1, math.ceil(asked))
