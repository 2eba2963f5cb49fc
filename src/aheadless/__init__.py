"""The asyncio client for Headless chat APIs."""

from typing import TYPE_CHECKING

from aheadless._version import __version__

if TYPE_CHECKING:
    from aheadless._client import Chat, ChatClient, Health
    from aheadless._options import OnBusy, RateLimit, Secret, Timeouts
    from aheadless._pacing import PacingState, Waiting
    from aheadless._retry import Retry, Retrying
    from aheadless._session import Message, MessageStatus, Reply, Role, Session, SessionManager, Timings
    from aheadless._stream import Overflow, ReplyStream, Subscription
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
        Phase,
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
    )
    from aheadless.protocol.events import Done, Event, Failure, Start, Token, Unknown
    from aheadless.protocol.turn import TurnState

__all__ = [
    "AheadlessError",
    "AuthenticationError",
    "Chat",
    "ChatClient",
    "ClientClosedError",
    "ConfigurationError",
    "ConnectError",
    "ConnectionLostError",
    "Delivery",
    "Done",
    "Event",
    "Failure",
    "Health",
    "InvalidRequestError",
    "Message",
    "MessageStatus",
    "NotFoundError",
    "OnBusy",
    "Overflow",
    "PacingState",
    "Phase",
    "ProtocolError",
    "RateLimit",
    "RateLimitError",
    "RedirectError",
    "RejectedError",
    "Reply",
    "ReplyFailedError",
    "ReplyStream",
    "RequestTimeoutError",
    "Retry",
    "Retrying",
    "Role",
    "Secret",
    "ServerError",
    "Session",
    "SessionBusyError",
    "SessionManager",
    "Start",
    "StatusError",
    "StoreError",
    "StreamInterruptedError",
    "StreamStoppedError",
    "Subscription",
    "Timeouts",
    "Timings",
    "Token",
    "TurnState",
    "Unknown",
    "UsageError",
    "Waiting",
    "__version__",
]

if not TYPE_CHECKING:  # a checker would take every name to be there

    def __getattr__(name: str) -> object:
        """Load what is exported, when the first of it is asked for.

        The command comes by here, too, before it can answer a Ctrl-C: all that it has to wait for is this module.
        """
        if name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415 - not an attribute of this module

        homes = ("_client", "_options", "_pacing", "_retry", "_session", "_stream", "exceptions")
        for home in (*homes, "protocol.events", "protocol.turn"):
            module = import_module(f"aheadless.{home}")
            globals().update((name, getattr(module, name)) for name in module.__all__ if name in __all__)
        try:
            return globals()[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
