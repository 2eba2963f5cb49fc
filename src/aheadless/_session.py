"""What is known of a conversation: its messages and its id on the server.

No I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs
import msgspec

from aheadless.exceptions import Delivery

if TYPE_CHECKING:
    from datetime import datetime

    from aheadless._exchange import SessionChange, SessionRecord

__all__ = ["Baseline", "Message", "MessageStatus", "Reply", "Role", "Session", "Timings"]

Role: TypeAlias = Literal["user", "assistant"]
MessageStatus: TypeAlias = Literal["pending", "complete", "interrupted", "cancelled", "failed", "unknown"]

_NOT_THERE: Final = frozenset([Delivery.NOT_SENT, Delivery.REJECTED])


@attrs.frozen
class Message:
    """One message of a conversation, as far as this side knows it."""

    role: Role

    text: str
    """The whole text; of a reply that never completed, what had come."""

    status: MessageStatus = attrs.field(default="complete", kw_only=True)
    """`pending` while its turn is live, `complete` when `done` was read, `interrupted` when the stream ended early,
    `cancelled` when its reader was cancelled, `failed` when the server or the way to it failed, and `unknown` when
    nobody can tell whether the server has the question: the connection was lost, or the process died."""

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
    """How long the turn took, in seconds: `queued` until the last request that was made for it, and from there `total`.

    Of a reply that was recovered later, `queued` is the wait for the session and `total` the search that followed.
    """

    first_token: float | None
    """To the first token; None when none came."""

    total: float
    """To `done`, or to the end of a JSON answer."""

    queued: float = attrs.field(default=0.0, kw_only=True)
    """For the session, the store and the rate limit, and for attempts that failed, with the pauses after them."""

    connect: float | None = attrs.field(default=None, kw_only=True)
    """To a new connection that is ready: DNS, TCP, TLS. None when an open one was used again."""


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


# Here and not beside its users: msgspec looks up what the fields below are, as for `help(Session)`.
class Baseline(msgspec.Struct, frozen=True):
    """What the server had of a conversation at a moment when no turn of this side was live."""

    ids: frozenset[str]
    """Of its newest messages; none if it did not exist."""
    count: int
    """How many messages the session had known until then."""


class Session(msgspec.Struct, eq=False, weakref=True):
    """The state of one conversation. At most `history_limit` messages are kept, the oldest go first."""

    session_id: str
    history_limit: int
    conversation_id: str | None = None
    revision: int = 0
    """Of the stored record that this one was read from or written to; 0 without one."""
    used_at: float = 0.0
    """When it was last used, by the clock of whoever uses it."""
    baseline: Baseline | None = None
    """What the server had when somebody looked, if nobody else has changed this session since."""
    messages: tuple[Message, ...] = ()
    """The messages, oldest first."""
    _count: int = 0
    _asked: tuple[int, Message] | None = None  # the live turn's question, numbered
    _unsaved: dict[int, Message] | None = None  # None: there is no store
    handle: object = None
    """The object that users hold for this session; it lives, with its callbacks, as long as the session is known."""

    def __repr__(self) -> str:
        return f"<Session {self.session_id}, {len(self.messages)} messages{', live' * self.live}>"

    @property
    def live(self) -> bool:
        """Whether a turn has begun and is not settled."""
        return self._asked is not None

    @property
    def count(self) -> int:
        """How many messages there have ever been."""
        return self._count

    def begin(self, text: str, *, at: datetime) -> Message:
        """Record a question that is about to be sent, and return it."""
        question = Message("user", text, status="pending", created_at=at, delivery=Delivery.UNKNOWN)
        self._asked = (self._count, question)
        self._append(question)
        return question

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
        if conversation_id is not None:
            self.conversation_id = conversation_id
        if self._asked is not None:
            number, question = self._asked
            self._asked = None
            self._put(number, attrs.evolve(question, status=status, delivery=delivery))
        if text or status == "complete":
            self._append(Message("assistant", text, status=status, created_at=at, delivery=delivery))

    # --- turns whose end was not seen ---------------------------------------------------------------------------------

    def index(self, question: Message) -> int | None:
        """Return where a question is among the messages, whatever has become of it since; None if it is not kept."""
        for index in range(len(self.messages) - 1, -1, -1):
            message = self.messages[index]
            if message.created_at == question.created_at and (message.role, message.text) == ("user", question.text):
                return index
        return None

    def unended(self) -> Message | None:
        """Return the last question that the server has or may have, and whose reply did not come."""
        for message in reversed(self.messages):
            ended = message.status in {"complete", "pending"} or message.delivery in _NOT_THERE
            if message.role == "user" and not ended:
                return message
        return None

    def reply_to(self, question: Message) -> Message | None:
        """Return the whole reply to a question, if it is there."""
        index = self.index(question)
        if index is None or self.messages[index].status != "complete" or index + 1 == len(self.messages):
            return None
        return self.messages[index + 1]

    def correct(
        self,
        question: Message,
        *,
        status: MessageStatus,
        delivery: Delivery,
        conversation_id: str | None,
        reply: str | None,
        at: datetime,
    ) -> None:
        """Record what was found out about a turn later. A reply takes the place of what had come of it."""
        if conversation_id is not None:
            self.conversation_id = conversation_id
        index = self.index(question)
        if index is None:
            return
        first = self._count - len(self.messages)
        self._put(first + index, attrs.evolve(self.messages[index], status=status, delivery=delivery))
        if reply is None:
            return
        # Not before any other message: what is younger than a question cannot be taken for what the server had then.
        at = max([at, *(message.created_at for message in self.messages)])
        answer = Message("assistant", reply, created_at=at, delivery=delivery)
        index += 1
        following = self.messages[index] if index < len(self.messages) else None
        if following is not None and following.role == "assistant":
            self._put(first + index, answer)
            return
        self.messages = (*self.messages[:index], answer, *self.messages[index:])
        self._count += 1
        for moved in range(index, len(self.messages)):
            self._note(first + moved, self.messages[moved])
        self._trim()

    def clear(self) -> None:
        """Forget the conversation; the server does not."""
        self.baseline = None
        self.messages = ()
        self.conversation_id = None
        self.revision = self._count = 0

    # --- with a store -------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost if this object went away."""
        return not self.live and not self._unsaved

    def adopt(self, record: SessionRecord | None, *, held: bool) -> None:
        """Take over what a store has, in place of what was known here.

        `held`: whether this process has the session's lease. Then a question that is still pending is one whose
        process died, and what became of it is unknown; and changes are kept from now on, to be saved.
        """
        self._unsaved = {} if held else None
        baseline = self.baseline if record is not None and record.revision == self.revision else None
        self.clear()
        if record is None:
            return
        self.baseline = baseline
        self.revision, self.conversation_id, self._count = record.revision, record.conversation_id, record.count
        self.messages = record.messages
        for number, message in enumerate(record.messages, record.count - len(record.messages)):
            if held and message.status == "pending":
                self._put(number, attrs.evolve(message, status="unknown"))
        self._trim()

    def change(self) -> SessionChange | None:
        """Return what is to be saved, or None."""
        if not self._unsaved:
            return None
        from aheadless._exchange import SessionChange  # noqa: PLC0415 - as that says

        return SessionChange(self.session_id, self.revision, self.conversation_id, tuple(sorted(self._unsaved.items())))

    def saved(self, change: SessionChange) -> None:
        """Take note that a change was saved; what has changed since is still to be."""
        self.revision = change.revision + 1
        for number, message in change.messages:
            if self._unsaved and self._unsaved.get(number) is message:
                del self._unsaved[number]

    def give_up(self) -> None:
        """Keep no more changes to be saved: what is known here is all that remains of them."""
        self._unsaved = None

    def _append(self, message: Message) -> None:
        self.messages = (*self.messages, message)
        self._count += 1
        self._note(self._count - 1, message)
        self._trim()

    def _put(self, number: int, message: Message) -> None:
        index = number - (self._count - len(self.messages))
        if index >= 0:
            self.messages = (*self.messages[:index], message, *self.messages[index + 1 :])
        self._note(number, message)

    def _note(self, number: int, message: Message) -> None:
        if self._unsaved is not None:
            self._unsaved[number] = message

    def _trim(self) -> None:
        if (surplus := len(self.messages) - self.history_limit) > 0:
            self.messages = self.messages[surplus:]
