"""`Chat`: one conversation as users hold it, and the turns of it whose end nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar

from aheadless._gate import Gate
from aheadless._options import (
    OnBusy,
    Timeouts,
    parse_on_busy,
)
from aheadless._stream import NO_CALLBACKS, Callbacks, ReplyStream
from aheadless._telemetry import Watch
from aheadless.exceptions import (
    AheadlessError,
    ConfigurationError,
    Delivery,
    SessionBusyError,
    UsageError,
)
from aheadless.protocol.codec import (
    ChatRequest,
    encode_request,
    validate_message,
)

if TYPE_CHECKING:
    from datetime import datetime

    from aheadless._session import Message, Reply, Session
    from aheadless._store import Following
    from aheadless._stream import OnDone, OnError, OnStart, OnToken


from aheadless._core import Core, checked
from aheadless._question import Question, search

__all__ = ["Chat", "PendingTurn"]

F = TypeVar("F")


class Chat:
    """One conversation: made by :meth:`ChatClient.chat`, the same object for the same id."""

    # There may be a hundred thousand.
    __slots__ = ("__weakref__", "_core", "_gate", "_given", "_on_busy", "_registered", "_session")

    def __init__(self, core: Core, session: Session) -> None:
        self._core = core
        self._session = session
        session.handle = self
        self._gate = Gate()
        self._on_busy: OnBusy | None = None
        self._given = NO_CALLBACKS  # with client.chat(...): replaced by the next call
        self._registered = NO_CALLBACKS  # by decorators: they stay

    def __reduce__(self) -> NoReturn:
        raise TypeError("a chat belongs to its client, and is not pickled")

    def __repr__(self) -> str:
        return f"<Chat {self.session_id}, {len(self._session.messages)} messages{', busy' * self.busy}>"

    @property
    def session_id(self) -> str:
        """The id under which the server keeps the conversation."""
        return self._session.session_id

    @property
    def conversation_id(self) -> str | None:
        """The server's own id of the conversation; None before the first answer."""
        return self._session.conversation_id

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages of this conversation that went through this client, or its store, oldest first.

        A question is there from the moment it is about to be sent, and a reply that broke off with what had come.
        """
        return self._session.messages

    @property
    def busy(self) -> bool:
        """Whether a turn is live."""
        return self._gate.busy

    def stream(
        self,
        message: str,
        *,
        timeouts: Timeouts | None = None,
        on_busy: OnBusy | None = None,
        on_start: OnStart | None = None,
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        on_error: OnError | None = None,
    ) -> ReplyStream:
        """Return the answer to a message, to be driven by iterating, entering or awaiting it; nothing is sent before.

        Raises InvalidRequestError unless the message has 1 to 4000 UTF-16 units.
        """
        return self._ask(message, timeouts, on_busy, Callbacks.of(on_start, on_token, on_done, on_error), json=False)

    async def send(
        self,
        message: str,
        *,
        timeouts: Timeouts | None = None,
        on_busy: OnBusy | None = None,
        on_start: OnStart | None = None,
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        on_error: OnError | None = None,
    ) -> Reply:
        """Send a message and return the reply in one piece, by `POST /v1/chat`.

        The callbacks are those of a stream, but as there are no tokens `on_token` is not called. Errors as for a
        stream. If cancelled, the connection is closed and the turn recorded as cancelled; the message may have been
        stored, and the server then writes its reply all the same.
        """
        return await self._ask(
            message, timeouts, on_busy, Callbacks.of(on_start, on_token, on_done, on_error), json=True
        )

    def follow(self, after: str | None = None) -> Following:
        """Return the events of the live turn, whichever process drives it, as an async iterator.

        From its beginning, or that of the next turn if none is live; or after the event with the id `after`, to go on
        where another reader was (its `event_id`). Ends after `Done`. Raises ReplyFailedError after `Failure`, and
        StreamInterruptedError when the turn ended otherwise, its process died, or the events are no longer kept.

        Raises UsageError unless the client's store keeps events: `RedisStore(url, follow=True)`.
        """
        self._core.check_open()
        if self._core.log is None:
            raise UsageError("only a turn whose events are kept can be followed: RedisStore(url, follow=True)")
        return self._core.log.follow(self.session_id, after)

    def stop(self) -> None:
        """End the live turn as its own `stop()` does, or the search for the end of one; otherwise nothing happens."""
        self._gate.stop()

    async def recover(self, *, wait: float = 30.0) -> Reply | None:
        """Return the reply to the last question that was, or may have been, stored and whose reply did not come.

        It is read from the server's history, again and again for at most `wait` seconds while the server may still be
        writing, and takes the place in :attr:`messages` of what had come of it. None: there is no such question, it was
        not stored, or no reply was there in time; the question's `delivery` tells. The session is busy meanwhile, and
        waits for its turn as a question does.

        Raises UsageError without an admin key, StoreError, and what the admin API fails with. If cancelled, nothing has
        changed, or all of it has.
        """
        reply, _ = await search(self._core, self._session, self._gate).run(self._session.unended, wait=wait)
        return reply

    async def pending(self) -> list[PendingTurn]:
        """Return the questions of which nobody knows whether the server has them, the oldest first.

        A process that crashed leaves one behind in the store, a lost connection does so as well. Nothing of them is
        sent again by itself: they are recovered, discarded, or stay. The question of a turn that is live, here or in
        another process, is not among them. Raises StoreError. If cancelled, all of them are still pending.
        """
        core, session = self._core, self._session
        core.bind()
        if core.keeper is not None and not self.busy:
            try:
                await search(core, session, self._gate).look()
            except SessionBusyError:
                await core.sessions.get(session.session_id)  # another process has a live turn
        return [
            PendingTurn(core, session, self._gate, message)
            for message in session.messages
            if message.role == "user" and message.status == "unknown"
        ]

    def on_start(self, callback: F) -> F:
        """Register a callback for `start` of every turn of this session; returns it, so it can decorate."""
        return self._register(callback, "on_start")

    def on_token(self, callback: F) -> F:
        """Register a callback for the text of every token of this session."""
        return self._register(callback, "on_token")

    def on_done(self, callback: F) -> F:
        """Register a callback for every complete Reply of this session; the turn is recorded before it is called."""
        return self._register(callback, "on_done")

    def on_error(self, callback: F) -> F:
        """Register a callback for every AheadlessError that a reader of this session is about to get."""
        return self._register(callback, "on_error")

    def _register(self, callback: F, name: str) -> F:
        self._registered += Callbacks.of(**{name: callback})  # type: ignore[arg-type]
        return callback

    def _configure(self, on_busy: OnBusy | None, callbacks: Callbacks) -> None:
        if on_busy is not None:
            self._on_busy = parse_on_busy(on_busy)
        if callbacks is not NO_CALLBACKS:
            self._given = callbacks

    def _ask(
        self, message: str, timeouts: Timeouts | None, on_busy: OnBusy | None, callbacks: Callbacks, *, json: bool
    ) -> ReplyStream:
        try:
            question = self._question(message, timeouts, on_busy, json=json)
        except AheadlessError as exc:
            exc.session_id = self.session_id
            raise
        return ReplyStream(question, self._core.callbacks + self._given + self._registered + callbacks)

    def _question(self, message: str, timeouts: Timeouts | None, on_busy: OnBusy | None, *, json: bool) -> Question:
        core = self._core
        core.check_open()
        if core.chat_key is None:
            raise ConfigurationError("no API key: pass api_key or set AHEADLESS_API_KEY")
        policy = self._on_busy if on_busy is None else on_busy
        return Question(
            core,
            self._session,
            self._gate,
            encode_request(ChatRequest(self.session_id, validate_message(message))),
            message=message,
            key=core.chat_key,
            timeouts=checked(timeouts, Timeouts, "timeouts") or core.timeouts,
            on_busy=parse_on_busy(core.on_busy if policy is None else policy),
            json=json,
            watch=Watch(self.session_id),
        )


class PendingTurn:
    """A question of which nobody knows whether the server has it; from :meth:`Chat.pending`."""

    def __init__(self, core: Core, session: Session, gate: Gate, question: Message) -> None:
        self._core = core
        self._session = session
        self._gate = gate
        self._question = question
        from aheadless._recovery import lost_turn  # noqa: PLC0415 - most programs never see such a turn

        self._turn = lost_turn(session, question)

    def __repr__(self) -> str:
        return f"<PendingTurn {self._session.session_id} {self.created_at.isoformat()}, {self.delivery.value}>"

    @property
    def message(self) -> str:
        """The question's text."""
        return self._question.text

    @property
    def created_at(self) -> datetime:
        """When it was asked, by the clock of the machine that did."""
        return self._question.created_at

    @property
    def partial(self) -> str:
        """What had come of the reply."""
        return self._turn.partial

    @property
    def delivery(self) -> Delivery:
        """What is known of it by now."""
        index = self._session.index(self._question)
        return self._question.delivery if index is None else self._session.messages[index].delivery

    async def recover(self, *, wait: float = 30.0) -> Reply | None:
        """Return its reply, as :meth:`Chat.recover` does for the last such turn."""
        reply, _ = await search(self._core, self._session, self._gate).run(lambda: self._question, wait=wait)
        return reply

    async def discard(self) -> None:
        """Leave it as it is: it stays in the history with the status `interrupted` and is pending no more.

        Raises StoreError. If cancelled, it may be discarded.
        """
        await search(self._core, self._session, self._gate).discard(self._question)
