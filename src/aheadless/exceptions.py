"""The whole error tree in one look.

Every failure says what became of the message: :attr:`AheadlessError.delivery`. Only a message that was not sent or was
refused before it was stored may be sent again without the risk that the model reads it twice.

Messages are safe to log: they hold no key, and text that came from a server is escaped and cut.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aheadless._session import Reply

__all__ = [
    "AheadlessError",
    "AuthenticationError",
    "ClientClosedError",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "Delivery",
    "InvalidRequestError",
    "NotFoundError",
    "Phase",
    "ProtocolError",
    "RateLimitError",
    "RedirectError",
    "RejectedError",
    "ReplyFailedError",
    "RequestTimeoutError",
    "ServerError",
    "SessionBusyError",
    "StatusError",
    "StoreError",
    "StreamInterruptedError",
    "StreamStoppedError",
    "UsageError",
    "snippet",
]

# Long enough to recognise a proxy's error page, short enough for one log line (faults.md row 27).
SNIPPET_LIMIT = 200


class Delivery(enum.Enum):
    """What became of the user's message."""

    NOT_SENT = "not_sent"
    """No byte of the request left: safe to send again."""

    REJECTED = "rejected"
    """The server refused it before storing it, or its history shows that it was never stored: safe to send again.

    A refusal is the server's word. That a message is not in the history is found out by `recover()`, which looks for as
    long as a request that got through might still be on its way to the store."""

    UNKNOWN = "unknown"
    """It may have been stored: sending again may show it to the model twice."""

    ACCEPTED = "accepted"
    """The server took it: sending again stores a second copy."""


Phase = Literal["connect", "first_token", "idle", "total"]
"""Which wait ran out of time."""

_AWAITED: dict[Phase, str] = {
    "connect": "a connection",
    "first_token": "the first token",
    "idle": "the next event",
    "total": "the whole answer",
}


def snippet(text: str, limit: int = SNIPPET_LIMIT) -> str:
    """Return foreign text on one line, escaped, at most `limit` characters: safe in a message and in a log."""
    # Escaping only lengthens, so nothing beyond the first `limit` characters can be shown.
    escaped = "".join(char if char.isprintable() else _escape(char) for char in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


class AheadlessError(Exception):
    """The base of everything that this library raises by itself."""

    default_delivery: ClassVar[Delivery] = Delivery.UNKNOWN

    delivery: Delivery
    """What became of the user's message."""

    session_id: str | None
    """The session whose turn failed, or None outside of a turn."""

    partial: str
    """The reply's text up to the failure; empty when none had come."""

    way_back: Callable[[float], Awaitable[tuple[Reply | None, Delivery]]] | None = None
    """How :meth:`recover` reads the reply back; set by a client that has an admin key."""

    def __init__(
        self,
        message: str = "",
        *,
        delivery: Delivery | None = None,
        session_id: str | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(message)
        self.delivery = self.default_delivery if delivery is None else delivery
        self.session_id = session_id
        self.partial = partial

    def __reduce__(self) -> tuple[object, ...]:
        # The way back leads into the client; it neither travels nor is copied.
        state = {key: value for key, value in vars(self).items() if key != "way_back"}
        return (type(self), self.args, state)

    async def recover(self, *, wait: float = 30.0) -> Reply | None:
        """Return the reply from the server's history, where it was written to its end although nobody read it.

        Looks again and again, for at most `wait` seconds, while the server may still be writing. None: the message was
        not stored, or no reply was there in time; :attr:`delivery` and the session's messages then say what was found
        out. Where it is certain that the message was not stored, nothing is asked.

        Raises UsageError if the client has no admin key, and what the admin API fails with, `delivery` being that of
        the message. If cancelled, nothing has changed, or all of it has.
        """
        if self.delivery in {Delivery.NOT_SENT, Delivery.REJECTED}:
            return None
        if self.way_back is None:
            raise UsageError("a reply is recovered with an admin key: pass admin_key to the client that asks")
        reply, self.delivery = await self.way_back(wait)
        return reply


class ConfigurationError(AheadlessError, ValueError):
    """A setting is unusable: a key, a URL, a time-out. Raised before any I/O."""

    default_delivery = Delivery.NOT_SENT


class InvalidRequestError(AheadlessError, ValueError):
    """The session id or the message is not one that the API takes. Raised before any I/O."""

    default_delivery = Delivery.NOT_SENT


class ConnectError(AheadlessError):
    """No connection came about: refused, unknown host, TLS."""

    default_delivery = Delivery.NOT_SENT

    permanent: bool
    """Whether trying again is of no use, as for a certificate that is not valid."""

    def __init__(
        self,
        message: str = "",
        *,
        permanent: bool = False,
        delivery: Delivery | None = None,
        session_id: str | None = None,
    ) -> None:
        super().__init__(message, delivery=delivery, session_id=session_id)
        self.permanent = permanent


class ConnectionLostError(AheadlessError):
    """The connection ended with no answer or with half of one."""


class RequestTimeoutError(AheadlessError, TimeoutError):
    """A wait ran out of time; :attr:`phase` tells which."""

    phase: Phase
    """Which wait it was."""

    def __init__(
        self,
        message: str = "",
        *,
        phase: Phase = "total",
        delivery: Delivery | None = None,
        session_id: str | None = None,
        partial: str = "",
    ) -> None:
        message = message or f"timed out waiting for {_AWAITED[phase]}"
        super().__init__(message, delivery=delivery, session_id=session_id, partial=partial)
        self.phase = phase


class StatusError(AheadlessError):
    """The server answered with a status that is not a success."""

    status: int
    """The HTTP status code."""

    detail: str
    """What the server said about it, escaped and cut to 200 characters; may be empty."""

    retry_after: float | None
    """After how many seconds the server wants to be asked again (0 to 3600); None if it does not say."""

    def __init__(
        self,
        message: str = "",
        *,
        status: int = 0,
        detail: str = "",
        retry_after: float | None = None,
        delivery: Delivery | None = None,
        session_id: str | None = None,
    ) -> None:
        super().__init__(message, delivery=delivery, session_id=session_id)
        self.status = status
        self.detail = detail
        self.retry_after = retry_after


class AuthenticationError(StatusError):
    """401 or 403: the key is missing, wrong or not allowed."""

    default_delivery = Delivery.REJECTED


class NotFoundError(StatusError):
    """404 or 405: no such API at this base URL."""

    default_delivery = Delivery.REJECTED


class RejectedError(StatusError):
    """400, 413, 415, 422 or another 4xx: the server takes no such request."""

    default_delivery = Delivery.REJECTED


class RateLimitError(StatusError):
    """429: too many requests from this address."""

    default_delivery = Delivery.REJECTED


class ServerError(StatusError):
    """5xx: the server failed, and may have stored the message before it did."""


class RedirectError(StatusError):
    """3xx: redirects are not part of this API and never followed, as the key belongs to one origin."""

    default_delivery = Delivery.REJECTED


class ProtocolError(AheadlessError):
    """The server's answer breaks the protocol."""

    line: int | None
    """The number of the offending line of the stream, from 1; None when it was not a line."""

    def __init__(
        self,
        message: str = "",
        *,
        line: int | None = None,
        delivery: Delivery | None = None,
        session_id: str | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(message, delivery=delivery, session_id=session_id, partial=partial)
        self.line = line


class StreamInterruptedError(AheadlessError):
    """The stream ended without `done` and without `error`: the reply is not complete."""


class StreamStoppedError(StreamInterruptedError):
    """The stream ended early because this side stopped it."""


class ReplyFailedError(AheadlessError):
    """The server sent its `error` event; :attr:`reason` is what it said."""

    default_delivery = Delivery.ACCEPTED

    reason: str
    """What the server said; not escaped, and as long as a line of the stream may be (8 MiB)."""

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "",
        delivery: Delivery | None = None,
        session_id: str | None = None,
        partial: str = "",
    ) -> None:
        super().__init__(message, delivery=delivery, session_id=session_id, partial=partial)
        self.reason = reason


class SessionBusyError(AheadlessError, RuntimeError):
    """The session has a live turn, and waiting for it is not wanted, would never end, or has too long a queue."""

    default_delivery = Delivery.NOT_SENT


class ClientClosedError(AheadlessError, RuntimeError):
    """The client was closed, before or during this call."""

    default_delivery = Delivery.NOT_SENT


class UsageError(AheadlessError, RuntimeError):
    """The call cannot work: a second reader, another event loop, a forked process."""

    default_delivery = Delivery.NOT_SENT


class StoreError(AheadlessError):
    """Saving or loading a session failed; a reply that could not be saved travels along."""

    default_delivery = Delivery.ACCEPTED

    reply: Reply | None
    """The reply that could not be saved, if there is one."""

    lost: bool
    """Whether another holder has taken the session over, so that nothing of this turn can be saved any more."""

    def __init__(
        self,
        message: str = "",
        *,
        reply: Reply | None = None,
        lost: bool = False,
        delivery: Delivery | None = None,
        session_id: str | None = None,
    ) -> None:
        super().__init__(message, delivery=delivery, session_id=session_id)
        self.reply = reply
        self.lost = lost

    async def recover(self, *, wait: float = 30.0) -> Reply | None:
        """Return the reply that travels along, otherwise as for any error."""
        return self.reply if self.reply is not None else await super().recover(wait=wait)
