"""The public names, nothing else."""

from aheadless._chat import Chat, PendingTurn
from aheadless._client import ChatClient, Health
from aheadless._core import Recovery
from aheadless._manager import SessionManager
from aheadless._options import OnBusy, RateLimit, Secret, Timeouts
from aheadless._pacing import PacingState, Waiting
from aheadless._retry import Retry, Retrying
from aheadless._session import Message, MessageStatus, Reply, Role, Session, Timings
from aheadless._store import Following
from aheadless._stream import ReplyStream
from aheadless._subscription import Overflow, Subscription
from aheadless._version import __version__
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
    "Following",
    "Health",
    "InvalidRequestError",
    "Message",
    "MessageStatus",
    "NotFoundError",
    "OnBusy",
    "Overflow",
    "PacingState",
    "PendingTurn",
    "Phase",
    "ProtocolError",
    "RateLimit",
    "RateLimitError",
    "Recovery",
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
