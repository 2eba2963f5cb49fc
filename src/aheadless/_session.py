"""What is known of a conversation: its messages and its id on the server, and what a store keeps of it.

No I/O, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias, runtime_checkable
from weakref import WeakValueDictionary

import attrs

from aheadless.exceptions import Delivery, SessionBusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime

    from aheadless._options import RateLimit
    from aheadless.protocol.events import Event

__all__ = [
    "Baseline",
    "EventLog",
    "Following",
    "HasEvents",
    "HasPace",
    "Lease",
    "Message",
    "MessageStatus",
    "Reply",
    "Role",
    "Session",
    "SessionChange",
    "SessionManager",
    "SessionRecord",
    "SessionStore",
    "SharedPace",
    "Slot",
    "Timings",
    "WaitReason",
]

Role: TypeAlias = Literal["user", "assistant"]
MessageStatus: TypeAlias = Literal["pending", "complete", "interrupted", "cancelled", "failed", "unknown"]

_NOT_THERE: Final = frozenset([Delivery.NOT_SENT, Delivery.REJECTED])
WaitReason: TypeAlias = Literal["rate_limit", "cool_down"]
"""Why a turn has to wait before it is sent: its own limit, or the server's 429."""

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


@attrs.frozen
class Baseline:
    """What the server had of a conversation at a moment when no turn of this side was live."""

    ids: frozenset[str]
    """Of its newest messages; none if it did not exist."""
    count: int
    """How many messages the session had known until then."""


@attrs.frozen
class Lease:
    """The right to the one turn that a session can have, over all processes that share a store."""

    session_id: str

    token: int
    """Grows with each lease of the session, so that a holder who was believed dead can be told from the next one."""


@attrs.frozen
class SessionRecord:
    """A session as a store keeps it."""

    session_id: str
    revision: int
    """Grows by one with each change that was saved."""
    conversation_id: str | None
    messages: tuple[Message, ...]
    """The newest ones, oldest first, without a gap."""
    count: int
    """How many there have ever been: the number that the next one gets. The first one has number 0."""


@attrs.frozen
class SessionChange:
    """What is new in a session."""

    session_id: str
    revision: int
    """Of the record that this changes; 0 for a session that was never saved."""
    conversation_id: str | None
    messages: tuple[tuple[int, Message], ...]
    """Those that are new or replaced, with their numbers, in order."""


class SessionStore(Protocol):
    """Where sessions outlive a process.

    Every failure is a StoreError. A call that is cancelled may have been carried out. A store is used on one event
    loop; what it keeps can be shared by many processes.
    """

    @property
    def lease_seconds(self) -> float:
        """For how long a lease lasts that is not renewed."""
        ...

    @property
    def on_outage(self) -> Literal["raise", "local"]:
        """What a turn does when the store cannot be reached: it fails, or it goes on with what this process knows."""
        ...

    @property
    def shared(self) -> bool:
        """Whether its owner closes it (it was entered as a block), and not the client that uses it."""
        ...

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        """Return the lease of a session when it is free; waiters get it in the order of asking.

        A lease that was not renewed in time is free. If not `wait`, returns None for one that is held or waited for.
        If cancelled, the place in the queue is given up.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Let a lease last for another `lease_seconds`; False when somebody else has had the session meanwhile."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it is lost."""
        ...

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        """Return a session with its newest `limit` messages, or None if it is not known."""
        ...

    async def save(self, change: SessionChange, lease: Lease) -> None:
        """Carry out a change, all of it or nothing, and renew the lease.

        Raises StoreError with `lost` set, nothing changed, when somebody else has had the session since the lease was
        given, or when the record has another revision.
        """
        ...

    async def forget(self, session_id: str, lease: Lease) -> None:
        """Drop what is kept of a session. Raises StoreError as :meth:`save` does."""
        ...

    async def list(self) -> list[str]:
        """Return the ids of all sessions, the least recently saved first."""
        ...

    async def aclose(self) -> None:
        """Close files and connections; may be called again."""
        ...


class Following(Protocol):
    """The events of a turn that another process may drive: an async iterator, for one reader.

    It ends after `Done`. Raises ReplyFailedError after `Failure`, StreamInterruptedError when the turn ended otherwise,
    when its process died, or when events are no longer kept; and StoreError.
    """

    @property
    def event_id(self) -> str | None:
        """The id of the event that was given last, to go on after it; before the first, what was begun with."""
        ...

    def __aiter__(self) -> Following:
        """Return itself."""
        ...

    async def __anext__(self) -> Event:
        """Return the next event. If cancelled, none is lost."""
        ...

    async def aclose(self) -> None:
        """Stop following; the turn goes on."""
        ...


class EventLog(Protocol):
    """Where the events of live turns are kept for a while. All but :meth:`follow` wait for nothing and never fail."""

    def begin(self, session_id: str) -> None:
        """Take note that a turn begins, by the process that has the session's lease."""
        ...

    def append(self, session_id: str, event: Event) -> None:
        """Add an event of the live turn."""
        ...

    def end(self, session_id: str) -> None:
        """Take note that the turn is over; without `Done` or `Failure` it ended early."""
        ...

    def follow(self, session_id: str, after: str | None) -> Following:
        """Return the events after the one with this id, or those of the live turn, or of the next one."""
        ...


@runtime_checkable
class HasEvents(Protocol):
    """A store that can keep the events of live turns."""

    @property
    def events(self) -> EventLog | None:
        """Where; None if it does not."""
        ...


@attrs.frozen(eq=False)
class Slot:
    """The leave to send one request to an origin, from the processes that share a pace."""

    origin: str
    name: str


class SharedPace(Protocol):
    """A rate limit and a cool-down that hold over all processes which send from one address."""

    async def enter(self, origin: str, limit: RateLimit | None, *, wait: bool) -> Slot | WaitReason | None:
        """Return the leave to send when there is room, or, if not `wait`, why there is none now.

        None when nobody knows, as the store cannot be reached, and that is not to hinder anyone; otherwise raises
        StoreError with verdict NOT_SENT. If cancelled, the place is given up.
        """
        ...

    def leave(
        self, slot: Slot, *, counted: bool, answer: Literal["accepted", "refused"] | None, retry_after: float | None
    ) -> None:
        """Give a leave back, with what the server's rate limit said; waits for nothing and never fails."""
        ...


@runtime_checkable
class HasPace(Protocol):
    """A store that can share a pace."""

    @property
    def pace(self) -> SharedPace | None:
        """The pace; None if it does not."""
        ...


@attrs.define(eq=False)
class Session:
    """The state of one conversation. At most `history_limit` messages are kept, the oldest go first."""

    session_id: str
    history_limit: int
    conversation_id: str | None = None
    revision: int = attrs.field(default=0, init=False)
    """Of the stored record that this one was read from or written to; 0 without one."""
    used_at: float = attrs.field(default=0.0, init=False)
    """When it was last used, by the clock of whoever uses it."""
    baseline: Baseline | None = attrs.field(default=None, init=False)
    """What the server had when somebody looked, if nobody else has changed this session since."""
    messages: tuple[Message, ...] = attrs.field(default=(), init=False)
    """The messages, oldest first."""
    _count: int = attrs.field(default=0, init=False)
    _asked: tuple[int, Message] | None = attrs.field(default=None, init=False)  # the live turn's question, numbered
    _unsaved: dict[int, Message] | None = attrs.field(default=None, init=False)  # None: there is no store
    handle: object = attrs.field(default=None, init=False, repr=False)
    """The object that users hold for this session; it lives, with its callbacks, as long as the session is known."""

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


class SessionManager:
    """The sessions that a client knows, the most recently used 10,000 of them.

    Nothing here waits, so that a cancel cannot leave anything half-done.
    """

    def __init__(
        self,
        *,
        history_limit: int,
        max_sessions: int = MAX_SESSIONS,
        idle_limit: float | None = None,
        store: SessionStore | None = None,
        bring_back: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        self._history_limit = history_limit
        self._max_sessions = max_sessions
        self._idle_limit = idle_limit
        self._store = store
        self._bring_back = bring_back  # saves the end of a turn and releases its lease, if that is still to be done
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        # Who still holds the chat of a session that is known no more gets the same one again.
        self._left: WeakValueDictionary[str, Session] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._sessions)

    async def get(self, session_id: str) -> Session | None:
        """Return the state of a session, or None if neither this client nor its store knows it.

        With a store, what it has is read first, so that `chat.messages` is what all processes have said.
        """
        if self._store is not None and self._is_idle(session_id):
            record = await self._store.load(session_id, limit=self._history_limit)
            if record is not None and self._is_idle(session_id):  # no turn has begun meanwhile
                session = self.known(session_id) or self.new(session_id)
                session.adopt(record, held=False)
                self._sessions.setdefault(session_id, session)
        return self._sessions.get(session_id)

    async def list(self) -> list[str]:
        """Return the ids of the sessions, the least recently used first; those in the store come before the others."""
        stored = [] if self._store is None else await self._store.list()
        return [*dict.fromkeys([*(known for known in stored if known not in self._sessions), *self._sessions])]

    async def forget(self, session_id: str) -> None:
        """Drop what is known of a session, here and in the store, if anything is. The server keeps its own history.

        Raises SessionBusyError while a turn is live, in whatever process.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.live:
            raise SessionBusyError("a session is not forgotten while a turn is live", session_id=session_id)
        if self._store is not None:
            if session is not None and self._bring_back is not None:
                await self._bring_back(session)
            lease = await self._store.acquire(session_id, wait=False)
            if lease is None:
                raise SessionBusyError("the session has a live turn in another process", session_id=session_id)
            try:
                await self._store.forget(session_id, lease)
            finally:
                await self._store.release(lease)
        if session is not None:
            if session_id in self._sessions:
                self._let_go(session_id)
            session.clear()

    def known(self, session_id: str) -> Session | None:
        """Return a session if it is known here."""
        return self._sessions.get(session_id)

    def new(self, session_id: str) -> Session:
        """Return a session that is not known, a new one unless somebody holds it; it is known from :meth:`touch` on."""
        return self._left.get(session_id) or Session(session_id, self._history_limit)

    def touch(self, session: Session, now: float) -> None:
        """Count a session as used at this time, and let those go that have been idle for too long or are too many."""
        session.used_at = now
        self._sessions[session.session_id] = session
        self._sessions.move_to_end(session.session_id)
        if len(self._sessions) > self._max_sessions:
            self._let_go(next(self._idle(), None))
        if self._idle_limit is not None:
            for session_id in [*self._expired(now - self._idle_limit)]:
                self._let_go(session_id)

    def _expired(self, before: float) -> Iterator[str]:
        for session_id, session in self._sessions.items():
            if session.used_at >= before:
                return
            if session.idle:
                yield session_id

    def _idle(self) -> Iterator[str]:
        return (session_id for session_id, session in self._sessions.items() if session.idle)

    def _is_idle(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is None or session.idle

    def _let_go(self, session_id: str | None) -> None:
        if session_id is not None:
            self._left[session_id] = self._sessions.pop(session_id)
