"""What is known of a conversation: its messages and its id on the server. No I/O, no clock."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from aheadless.exceptions import Delivery, SessionBusyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

__all__ = ["Message", "MessageStatus", "Reply", "Role", "Session", "SessionManager", "Timings"]

Role: TypeAlias = Literal["user", "assistant"]
MessageStatus: TypeAlias = Literal["pending", "complete", "interrupted", "failed"]

# A busy bot's users of a day; an idle session without messages is a few hundred bytes.
MAX_SESSIONS: Final = 10_000


@attrs.frozen
class Message:
    """One message of a conversation, as far as this side knows it."""

    role: Role

    text: str
    """The whole text; of a reply that never completed, what had come."""

    status: MessageStatus = attrs.field(default="complete", kw_only=True)
    """`pending` while its turn is live, `complete` when `done` was read, `interrupted` when the stream ended early,
    `failed` when the server or the way to it failed."""

    created_at: datetime = attrs.field(kw_only=True)
    """Aware; by this machine's clock."""

    delivery: Delivery = attrs.field(default=Delivery.ACCEPTED, kw_only=True)
    """Whether the server has the user's message of this turn."""

    @property
    def partial(self) -> str:
        """The text of a reply that never completed, otherwise empty."""
        return self.text if self.role == "assistant" and self.status != "complete" else ""


@attrs.frozen
class Timings:
    """How long the turn took, in seconds from the request (waiting for the session not included)."""

    first_token: float | None
    """To the first token; None when none came."""

    total: float
    """To `done`, or to the end of a JSON answer."""


@attrs.frozen
class Reply:
    """A complete answer: it exists only because the server said that it is done."""

    text: str
    """The reply as the server stored it, which is trimmed."""

    session_id: str = attrs.field(kw_only=True)
    conversation_id: str = attrs.field(kw_only=True)

    streamed_text: str = attrs.field(default="", kw_only=True)
    """The joined tokens; empty for an answer that was not streamed."""

    timings: Timings = attrs.field(kw_only=True)

    recovered: bool = attrs.field(default=False, kw_only=True)
    """Whether it was read back from the server's history after its stream had ended early."""

    def __str__(self) -> str:
        return self.text


@attrs.define(eq=False)
class Session:
    """The state of one conversation. At most `history_limit` messages are kept, the oldest go first."""

    session_id: str
    history_limit: int
    conversation_id: str | None = None
    _messages: list[Message] = attrs.field(factory=list[Message], init=False)
    live: bool = attrs.field(default=False, init=False)
    """Whether a turn has begun and is not settled."""
    handle: object = attrs.field(default=None, init=False, repr=False)
    """The object that users hold for this session; it lives, with its callbacks, as long as the session is known."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages, oldest first."""
        return tuple(self._messages)

    def begin(self, text: str, *, at: datetime) -> None:
        """Record a question that is about to be sent."""
        self.live = True
        self._append(Message("user", text, status="pending", created_at=at, delivery=Delivery.UNKNOWN))

    def settle(
        self,
        text: str,
        *,
        status: MessageStatus,
        delivery: Delivery,
        conversation_id: str | None,
        at: datetime,
    ) -> None:
        """Record how the turn ended; `text` is the reply or what had come of it."""
        self.live = False
        if conversation_id is not None:
            self.conversation_id = conversation_id
        if self._messages and self._messages[-1].status == "pending":
            self._messages[-1] = attrs.evolve(self._messages[-1], status=status, delivery=delivery)
        if text or status == "complete":
            self._append(Message("assistant", text, status=status, created_at=at, delivery=delivery))

    def clear(self) -> None:
        """Forget the conversation; the server does not."""
        self._messages.clear()
        self.conversation_id = None

    def _append(self, message: Message) -> None:
        self._messages.append(message)
        if (surplus := len(self._messages) - self.history_limit) > 0:
            del self._messages[:surplus]


class SessionManager:
    """The sessions that a client knows, the most recently used 10,000 of them.

    Nothing here waits, so that a cancel cannot leave anything half-done.
    """

    def __init__(self, *, history_limit: int, max_sessions: int = MAX_SESSIONS) -> None:
        self._history_limit = history_limit
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    async def get(self, session_id: str) -> Session | None:
        """Return the state of a session, or None if this client does not know it."""
        return self._sessions.get(session_id)

    async def list(self) -> list[str]:
        """Return the ids of the sessions, the least recently used first."""
        return [*self._sessions]

    async def forget(self, session_id: str) -> None:
        """Drop what is known of a session, if anything is. The server keeps its own history.

        Raises SessionBusyError while a turn is live.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        if session.live:
            raise SessionBusyError("a session is not forgotten while a turn is live", session_id=session_id)
        del self._sessions[session_id]
        session.clear()

    def new(self, session_id: str) -> Session:
        """Return a new session; it is known from :meth:`touch` on."""
        return Session(session_id, self._history_limit)

    def touch(self, session: Session) -> None:
        """Count a session as just used, and let the least recently used idle one go if there are too many."""
        self._sessions[session.session_id] = session
        self._sessions.move_to_end(session.session_id)
        if len(self._sessions) > self._max_sessions:
            idle = next(self._idle(), None)
            if idle is not None:
                del self._sessions[idle]

    def _idle(self) -> Iterator[str]:
        return (session_id for session_id, session in self._sessions.items() if not session.live)
