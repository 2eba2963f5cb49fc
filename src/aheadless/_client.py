"""`ChatClient` and `Chat`: what users hold. Here the parts are wired together."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from datetime import datetime, timezone
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import attrs

from aheadless._gate import Gate
from aheadless._http import Key, Transport
from aheadless._keeper import Keeper
from aheadless._options import (
    OnBusy,
    RateLimit,
    Secret,
    Timeouts,
    hide,
    parse_base_url,
    parse_count,
    parse_endpoint,
    parse_headers,
    parse_key,
    parse_on_busy,
    parse_seconds,
    without_frames,
)
from aheadless._pacing import Pacing, PacingState, Pass, Waiting, pacer_for
from aheadless._readback import ReadBack
from aheadless._recovery import LostTurn, Preceding, lost_turn, preceding
from aheadless._retry import Retry, RetryBudget, Retrying
from aheadless._session import (
    MAX_SESSIONS,
    EventLog,
    Following,
    HasEvents,
    HasPace,
    Message,
    MessageStatus,
    Reply,
    Session,
    SessionManager,
    SessionStore,
    SharedPace,
    Timings,
)
from aheadless._stream import NO_CALLBACKS, Callbacks, ReplyStream, call
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    ProtocolError,
    RateLimitError,
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
from aheadless.protocol.codec import (
    ChatRequest,
    decode_reply,
    encode_event,
    encode_request,
    validate_message,
    validate_session_id,
)
from aheadless.protocol.events import Done, Start, Token
from aheadless.protocol.ndjson import parse_object
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    import aiohttp

    from aheadless._readback import Found
    from aheadless._stream import OnDone, OnError, OnStart, OnToken, Outcome, Source
    from aheadless.admin import AdminClient
    from aheadless.protocol.events import Event

__all__ = ["Chat", "ChatClient", "Health", "PendingTurn", "Recovery"]

F = TypeVar("F")
T = TypeVar("T")

OnRetry: TypeAlias = "Callable[[Retrying], Awaitable[object] | None]"
OnWait: TypeAlias = "Callable[[Waiting], Awaitable[object] | None]"

Recovery: TypeAlias = Literal["off", "auto"]
"""Whether the client reads back by itself what a broken connection kept from it."""

logger = logging.getLogger("aheadless")

# aiohttp's own default of 100 lets the hundred and first stream wait in silence. A thousand open streams cost this
# process some 15 MB.
MAX_CONNECTIONS = 1000

# Two hundred messages are a long evening, and more than the server shows to the model (30, protocol.md §5).
HISTORY_LIMIT = 200

# Nobody waits for longer for the turns before; one that waits for itself, by way of a task that it made, ends here.
LONGEST_QUEUE = 600.0

# Longer than the usual window of 60 s, so that a turn that meets a full one gets into the next.
MAX_WAIT = 75.0

# The reference ends a model that hangs after about 300 s (protocol.md §3.6): no reply comes later than that.
LONGEST_REPLY = 300.0


@attrs.frozen
class Health:
    """What the server says of itself."""

    status: str
    """"ok" when it is well."""

    @property
    def ok(self) -> bool:
        """Whether the server is well."""
        return self.status == "ok"


@attrs.define(eq=False)
class _Core:
    """What a client shares with its chats and their questions."""

    transport: Transport
    sessions: SessionManager
    chat_key: Key | None
    endpoint: str
    timeouts: Timeouts
    on_busy: OnBusy
    callbacks: Callbacks
    retry: Retry
    rate_limit: RateLimit | None
    max_wait: float
    on_retry: tuple[OnRetry, ...]
    on_wait: tuple[OnWait, ...]
    store: SessionStore | None
    keeper: Keeper | None
    readback: ReadBack | None
    recovery: Recovery
    log: EventLog | None  # the store's, if it keeps one
    pace: SharedPace | None  # the store's, if it shares one
    budget: RetryBudget = attrs.field(factory=RetryBudget, init=False)
    live: set[ReplyStream | _Search] = attrs.field(factory=set["ReplyStream | _Search"], init=False)
    closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _pid: int | None = attrs.field(default=None, init=False)

    def check_open(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed")

    def bind(self) -> None:
        """Raise unless this is the client's own loop and process; the first use makes them its own."""
        self.check_open()
        if self._loop is None:
            self._loop, self._pid = _running_loop(), os.getpid()
        self.check_place()

    def check_place(self) -> None:
        """Raise in a process or on an event loop that is not the client's own, unless it has none yet."""
        if self._loop is None:
            return
        if self._pid != os.getpid():
            raise UsageError("this client was used before the process forked; make a new one in each process")
        if self._loop is not _running_loop():
            raise UsageError("this client belongs to another event loop; make one for each loop")

    def check_may_close(self) -> None:
        """Raise where closing would tear at connections of a loop or a process that is still using them."""
        if self._loop is None or self._pid != os.getpid() or not self._loop.is_closed():
            self.check_place()

    def touch(self, session: Session) -> None:
        self.sessions.touch(session, time.monotonic())

    def pacing(self) -> Pacing:
        """Return the pace towards this origin, which all of its clients here share, and others if the store does."""
        return Pacing(self.transport.origin, self.pace)

    async def get(self, path: str, key: Key | None = None) -> tuple[bytes, datetime | None]:
        self.bind()
        return await self.transport.get(path, key, timeouts=self.timeouts)


class ChatClient:
    """The way to one Headless chat API; opens nothing until it is used.

    `base_url` and `api_key` default to the environment's `AHEADLESS_BASE_URL` and `AHEADLESS_API_KEY` (or
    `WIDGET_API_KEY`), `admin_key` to `AHEADLESS_ADMIN_KEY` (or `ADMIN_API_KEY`). Nothing else is taken from the
    environment: no proxies, no netrc.

    - `legacy_auth`: send the key as `x-widget-api-key`.
    - `endpoint`: the streaming endpoint's path; "/chat" is its old name.
    - `retry`: when a message is sent again; by default up to twice, and only if it cannot have been stored.
    - `rate_limit`: how many requests the server takes from this address, to stay below it from the beginning.
    - `max_wait`: how many seconds a turn waits at the most for a rate limit, its own or the server's 429, before it
      gives up with a RateLimitError; 0: it does not wait. A 503 that asks for a longer pause is not waited out either.
    - `max_connections`: how many streams can be open at once; further ones wait for `timeouts.connect`.
    - `on_busy`: what a new turn does when its session has a live one: "queue" (wait, in order), "reject" (raise
      SessionBusyError) or "interrupt" (stop the live one).
    - `store`: where sessions outlive this process, from `aheadless.stores`; it is closed with the client unless it was
      entered as a block. Without one they live as long as the client.
    - `recovery`: "auto" reads back from the server's history what a broken connection kept from a stream, which then
      goes on; it needs an admin key. With "off" (and an admin key) `recover()` of an error or a chat does so.
    - `history_limit`: how many messages of a session are kept here, the oldest go first.
    - `max_sessions`, `session_idle`: how many sessions are kept here, and for how many seconds without use (None: no
      limit); the least recently used go first, never one with a live turn.
    - `session`: an aiohttp session of yours to send with. It is never closed by the client, and its own headers,
      cookies and connector apply.
    - `ssl`, `proxy`, `headers`: as aiohttp takes them, for every request. Keys and `Origin` are not among the headers.
    - `allow_insecure_http`: let the key go over `http://` to a public host.
    - `on_retry` (Retrying), `on_wait` (Waiting): called before a message is sent again, and before a turn waits for a
      rate limit; plain or async.
    - `on_start`, `on_token`, `on_done`, `on_error`: called for every turn, before those of the chat and the stream.

    A client belongs to the event loop and the process that used it first. Raises ConfigurationError for a setting
    that cannot work.
    """

    @without_frames
    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | Secret | None = None,
        admin_key: str | Secret | None = None,
        legacy_auth: bool = False,
        endpoint: str = "/v1/chat/stream",
        timeouts: Timeouts | None = None,
        retry: Retry | None = None,
        rate_limit: RateLimit | None = None,
        max_wait: float = MAX_WAIT,
        max_connections: int = MAX_CONNECTIONS,
        on_busy: OnBusy = "queue",
        store: SessionStore | None = None,
        recovery: Recovery = "off",
        history_limit: int = HISTORY_LIMIT,
        max_sessions: int = MAX_SESSIONS,
        session_idle: float | None = None,
        session: aiohttp.ClientSession | None = None,
        ssl: ssl_module.SSLContext | bool | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        allow_insecure_http: bool = False,
        on_retry: OnRetry | None = None,
        on_wait: OnWait | None = None,
        on_start: OnStart | None = None,
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        on_error: OnError | None = None,
    ) -> None:
        url = base_url if base_url is not None else os.environ.get("AHEADLESS_BASE_URL")
        if not url:
            raise ConfigurationError("no base URL: pass base_url or set AHEADLESS_BASE_URL")
        chat_header = "x-widget-api-key" if legacy_auth else "x-api-key"
        self._admin_key = _key("x-admin-api-key", admin_key, "admin_key", "AHEADLESS_ADMIN_KEY", "ADMIN_API_KEY")
        if recovery not in {"off", "auto"}:
            raise ConfigurationError(f'recovery must be "off" or "auto", not {snippet(repr(recovery), 40)}')
        if recovery == "auto" and self._admin_key is None:
            raise ConfigurationError('recovery="auto" needs an admin key: pass admin_key or set AHEADLESS_ADMIN_KEY')
        history_limit = parse_count(history_limit, "history_limit", least=0)
        keeper = None if store is None else Keeper(store, history_limit=history_limit)
        self._core = _Core(
            transport=Transport(
                parse_base_url(url, allow_insecure_http=allow_insecure_http),
                headers=parse_headers(headers),
                session=session,
                ssl=ssl,
                proxy=proxy,
                max_connections=parse_count(max_connections, "max_connections", least=1),
            ),
            sessions=SessionManager(
                history_limit=history_limit,
                max_sessions=parse_count(max_sessions, "max_sessions", least=1),
                idle_limit=None if session_idle is None else parse_seconds(session_idle, "session_idle"),
                store=store,
                bring_back=None if keeper is None else keeper.bring_back,
            ),
            store=store,
            keeper=keeper,
            readback=None if self._admin_key is None else ReadBack(lambda: self.admin),
            recovery=recovery,
            log=store.events if isinstance(store, HasEvents) else None,
            pace=store.pace if isinstance(store, HasPace) else None,
            chat_key=_key(chat_header, api_key, "api_key", "AHEADLESS_API_KEY", "WIDGET_API_KEY"),
            endpoint=parse_endpoint(endpoint),
            timeouts=_checked(timeouts, Timeouts, "timeouts") or Timeouts(),
            on_busy=parse_on_busy(on_busy),
            callbacks=Callbacks.of(on_start, on_token, on_done, on_error),
            retry=_checked(retry, Retry, "retry") or Retry(),
            rate_limit=_checked(rate_limit, RateLimit, "rate_limit"),
            max_wait=parse_seconds(max_wait, "max_wait", zero=True),
            on_retry=_checked_callback(on_retry, "on_retry"),
            on_wait=_checked_callback(on_wait, "on_wait"),
        )

    def __repr__(self) -> str:
        state = "closed" if self._core.closed else f"{len(self._core.live)} live turns"
        return f"<ChatClient {self._core.transport.base_url}, {state}>"

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return self._core.transport.base_url

    @property
    def closed(self) -> bool:
        """Whether :meth:`aclose` was called."""
        return self._core.closed

    @property
    def sessions(self) -> SessionManager:
        """What this client knows of its sessions."""
        return self._core.sessions

    @property
    def pacing(self) -> PacingState:
        """Whether turns are held back now; shared by the clients of this origin on this event loop."""
        self._core.bind()
        return pacer_for(self._core.transport.origin).state()

    @property
    def admin(self) -> AdminClient:
        """The conversations as the server stores them; ConfigurationError without an admin key."""
        # Here, as it loads cattrs, which nothing else needs.
        from aheadless.admin import AdminClient  # noqa: PLC0415

        if self._admin_key is None:
            raise ConfigurationError("no admin key: pass admin_key or set AHEADLESS_ADMIN_KEY")
        return AdminClient(self._core.get, self._admin_key)

    def chat(
        self,
        session_id: str,
        *,
        on_busy: OnBusy | None = None,
        on_start: OnStart | None = None,
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        on_error: OnError | None = None,
    ) -> Chat:
        """Return the conversation with this id: the same object for the same id, nothing is sent.

        What is given here replaces what was given for this id before. Raises InvalidRequestError unless the id is
        1 to 128 of `A-Z a-z 0-9 . _ : -`.
        """
        self._core.check_open()
        sessions = self._core.sessions
        session = sessions.known(validate_session_id(session_id)) or sessions.new(session_id)
        chat = session.handle if isinstance(session.handle, Chat) else Chat(self._core, session)
        self._core.touch(session)
        # Chat is the other half of this module.
        chat._configure(on_busy, Callbacks.of(on_start, on_token, on_done, on_error))  # noqa: SLF001
        return chat

    async def health(self) -> Health:
        """Ask `GET /health`; needs no key. Errors as for a chat, and ProtocolError for another kind of answer.

        If cancelled, its connection is closed; there is nothing to undo.
        """
        body, _ = await self._core.get("/health")
        data = parse_object(body)
        status = data.get("status")
        if not isinstance(status, str):
            raise ProtocolError("the health answer has no status")
        return Health(status)

    async def aclose(self) -> None:
        """End all live turns, whose readers get a ClientClosedError, and close the connections. May be called again.

        Does not wait for readers. With a store, what was not saved yet is saved, for at most 5 s. If cancelled, the
        client is closed all the same. Raises UsageError on another event loop, unless the client's own is closed, and
        in a process that was forked off.
        """
        core = self._core
        core.check_may_close()
        core.closed = True
        for stream in tuple(core.live):
            stream.fail(ClientClosedError("the client was closed"))
        try:
            if core.keeper is not None:
                await core.keeper.aclose()
        finally:
            try:
                await core.transport.aclose()
            finally:
                if core.store is not None and not core.store.shared:
                    await core.store.aclose()

    async def __aenter__(self) -> ChatClient:
        self._core.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Chat:
    """One conversation: made by :meth:`ChatClient.chat`, the same object for the same id."""

    # There may be a hundred thousand.
    __slots__ = ("__weakref__", "_core", "_gate", "_given", "_on_busy", "_registered", "_session")

    def __init__(self, core: _Core, session: Session) -> None:
        self._core = core
        self._session = session
        session.handle = self
        self._gate = Gate()
        self._on_busy: OnBusy | None = None
        self._given = NO_CALLBACKS  # with client.chat(...): replaced by the next call
        self._registered = NO_CALLBACKS  # by decorators: they stay

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
        """The messages of this conversation that went through this client, oldest first.

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
        stream. If cancelled, the connection is closed and the turn recorded as interrupted; the message may have been
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
        search = _Search(self._core, self._session, self._gate)
        reply, _ = await search.run(self._session.unended, wait=wait)
        return reply

    async def pending(self) -> list[PendingTurn]:
        """Return the questions of which nobody knows whether the server has them, the oldest first.

        A process that crashed leaves one behind in the store, a lost connection does so as well. Nothing of them is
        sent again by itself: they are recovered, discarded, or stay. The question of a turn that is live, here or in
        another process, is not among them. Raises StoreError.
        """
        core, session = self._core, self._session
        core.bind()
        if core.keeper is not None and not self.busy:
            try:
                await _Search(core, session, self._gate).look()
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

    def _question(self, message: str, timeouts: Timeouts | None, on_busy: OnBusy | None, *, json: bool) -> _Question:
        core = self._core
        core.check_open()
        if core.chat_key is None:
            raise ConfigurationError("no API key: pass api_key or set AHEADLESS_API_KEY")
        policy = self._on_busy if on_busy is None else on_busy
        return _Question(
            core,
            self._session,
            self._gate,
            encode_request(ChatRequest(self.session_id, validate_message(message))),
            message=message,
            key=core.chat_key,
            timeouts=_checked(timeouts, Timeouts, "timeouts") or core.timeouts,
            on_busy=parse_on_busy(core.on_busy if policy is None else policy),
            json=json,
        )


class PendingTurn:
    """A question of which nobody knows whether the server has it; from :meth:`Chat.pending`."""

    def __init__(self, core: _Core, session: Session, gate: Gate, question: Message) -> None:
        self._core = core
        self._session = session
        self._gate = gate
        self._question = question
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
        search = _Search(self._core, self._session, self._gate)
        reply, _ = await search.run(lambda: self._question, wait=wait)
        return reply

    async def discard(self) -> None:
        """Leave it as it is: it stays in the history with the status `interrupted` and is pending no more.

        Raises StoreError. If cancelled, it may be discarded.
        """
        await _Search(self._core, self._session, self._gate).discard(self._question)


@attrs.define(eq=False)
class _Search:
    """A search for the end of a turn; it holds the session as a turn does."""

    core: _Core
    session: Session
    gate: Gate
    task: asyncio.Task[object] | None = attrs.field(default=None, init=False)
    _scope: asyncio.Timeout | None = attrs.field(default=None, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _error: AheadlessError | None = attrs.field(default=None, init=False)

    async def run(
        self,
        choose: Callable[[], Message | None],
        *,
        wait: float,
        delivery: Delivery | None = None,
        ended: bool = False,
        age: Callable[[], float] | None = None,
        remembered: Preceding | None = None,
    ) -> tuple[Reply | None, Delivery]:
        """Return the reply to a question of the session, if it is there, and what has become of the question."""
        readback = self.core.readback
        if readback is None:
            raise UsageError("a reply is recovered with an admin key: pass admin_key or set AHEADLESS_ADMIN_KEY")
        wait = 0.0 if wait == 0 else parse_seconds(wait, "wait")
        result: tuple[Reply | None, Delivery] = None, delivery or Delivery.UNKNOWN

        async def work() -> None:
            nonlocal result
            question = choose()
            if question is None:
                return
            turn = lost_turn(self.session, question, remembered=remembered)
            result = None, delivery or turn.question.delivery
            begun_at = readback.now()
            if (known := self.session.reply_to(question)) is not None:
                result = self._reply(known.text, turn, 0.0), Delivery.ACCEPTED
                return
            found = await readback.search(self.session, turn, delivery=result[1], wait=wait, ended=ended, age=age)
            self._correct(question, found)
            result = None, found.delivery
            if found.reply is not None:
                result = self._reply(found.reply, turn, readback.now() - begun_at), found.delivery

        try:
            await self._hold(work, wait=True)
        except AheadlessError as exc:
            # Of the admin API or the store; what it says of a message is not about this one.
            exc.delivery = result[1]
            if isinstance(exc, StoreError):
                exc.reply = result[0]
            raise
        return result

    async def look(self) -> None:
        """Take over what the store has; SessionBusyError if another process has the session."""

        async def work() -> None: ...

        await self._hold(work, wait=False)

    async def discard(self, question: Message) -> None:
        """Let a question be pending no more."""

        async def work() -> None:
            index = self.session.index(question)
            if index is not None and self.session.messages[index].status == "unknown":
                self._record(question, "interrupted", self.session.messages[index].delivery, None, None)

        await self._hold(work, wait=True)

    def stop(self) -> None:
        """End the search; it leaves the gate as soon as its task runs."""
        self._ended = True
        if self._scope is not None:
            self._scope.reschedule(0)

    def fail(self, error: AheadlessError) -> None:
        """End the search with an error."""
        self._error = error
        self.stop()

    async def _hold(self, work: Callable[[], Awaitable[None]], *, wait: bool) -> None:
        core = self.core
        core.bind()
        core.live.add(self)
        self.task = asyncio.current_task()
        try:
            async with asyncio.timeout(None) as self._scope:
                await self.gate.enter(self, "queue")
                await self._with_store(work, wait=wait)
        except TimeoutError:
            if not self._ended:
                raise
            # The scope's: it was stopped, or the client was closed.
        except AheadlessError as exc:
            exc.session_id = self.session.session_id
            raise
        finally:
            self._scope = None
            self.gate.leave(self)
            core.live.discard(self)
        if self._error is not None:
            self._error.session_id = self.session.session_id
            raise self._error

    async def _with_store(self, work: Callable[[], Awaitable[None]], *, wait: bool) -> None:
        keeper = self.core.keeper
        if keeper is None:
            await work()
            return
        await keeper.take(self.session, wait=wait)
        try:
            self.core.touch(self.session)
            await work()
        finally:
            keeper.end(self.session)
        await keeper.bring_back(self.session)

    def _correct(self, question: Message, found: Found) -> None:
        if found.reply is not None:
            self._record(question, "complete", found.delivery, found.conversation_id, found.reply)
        elif found.unanswered or found.delivery is Delivery.REJECTED:
            self._record(question, "failed", found.delivery, found.conversation_id, None)
        else:
            return
        if self.core.readback is not None:
            self.core.readback.remember(self.session, found.thread)

    def _record(
        self,
        question: Message,
        status: MessageStatus,
        delivery: Delivery,
        conversation_id: str | None,
        reply: str | None,
    ) -> None:
        self.session.correct(
            question, status=status, delivery=delivery, conversation_id=conversation_id, reply=reply, at=_utc_now()
        )

    def _reply(self, text: str, turn: LostTurn, seconds: float) -> Reply:
        return Reply(
            text,
            session_id=self.session.session_id,
            conversation_id=self.session.conversation_id or "",
            streamed_text=turn.partial,
            timings=Timings(None, seconds),
            recovered=True,
        )


@attrs.define(eq=False)
class _Question:
    """One message on its way: the wiring of its stream."""

    core: _Core
    session: Session
    gate: Gate
    body: bytes
    message: str
    key: Key
    timeouts: Timeouts
    on_busy: OnBusy
    json: bool
    give_up_at: float | None = attrs.field(default=None, init=False)
    unsure: bool = attrs.field(default=False, init=False)  # whether an earlier attempt may have arrived
    asked: Message | None = attrs.field(default=None, init=False)
    asked_at: float = attrs.field(default=0.0, init=False)  # by the loop's clock
    remembered: Preceding | None = attrs.field(default=None, init=False)
    unanswered: bool = attrs.field(default=False, init=False)  # the history shows the question, and no reply
    saved: bool = attrs.field(default=False, init=False)

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def idle_timeout(self) -> float | None:
        return self.timeouts.idle

    @property
    def log(self) -> Callable[[Event], None] | None:
        return None if self.core.log is None else partial(self.core.log.append, self.session_id)

    async def enter(self, stream: ReplyStream) -> None:
        self.core.bind()
        self.core.live.add(stream)
        try:
            async with asyncio.timeout(LONGEST_QUEUE):
                await self.gate.enter(stream, self.on_busy)
                if self.core.keeper is not None:
                    await self.core.keeper.take(self.session, wait=self.on_busy != "reject")
        except TimeoutError:
            raise SessionBusyError(f"the session's turn did not end within {LONGEST_QUEUE:.0f} s") from None

    async def send(self, stream: ReplyStream) -> Source:
        self.core.touch(self.session)
        if self.core.readback is not None:
            if self.core.recovery == "auto":
                await self.core.readback.take_baseline(self.session)
            self.remembered = preceding(self.session)
        self.asked = self.session.begin(self.message, at=_utc_now())
        self.asked_at = asyncio.get_running_loop().time()
        if self.core.keeper is not None:
            await self.core.keeper.save_question(self.session)
        if self.core.log is not None:
            self.core.log.begin(self.session_id)
        core, attempt = self.core, 1
        while True:
            try:
                source = await self._send_paced(stream)
            except AheadlessError as exc:
                asked = (exc.retry_after or 0.0) if isinstance(exc, StatusError) else 0.0
                again = core.retry.allows(exc, attempt)
                exc.delivery = self._verdict(exc.delivery)
                if (stored := await self._read_back_whole(stream, exc)) is not None:
                    return stored
                again = asked <= core.max_wait and (again or core.retry.allows(exc, attempt))
                if self.unanswered or not again or not core.budget.spend():
                    raise
                error = exc
            else:
                core.budget.earn()
                return source
            delay = max(core.retry.pause(attempt, random.random), asked)
            self.unsure = error.delivery is Delivery.UNKNOWN
            stream.note_delivery(error.delivery)
            logger.info("attempt %d for %s failed (%s), next in %.1f s", attempt, self.session_id, error, delay)
            await call(core.on_retry, Retrying(self.session_id, attempt, delay, error))
            await asyncio.sleep(delay)
            attempt += 1

    async def _send_paced(self, stream: ReplyStream) -> Source:
        """Send when the pace allows it, again and again as long as the server says 429 and time is left."""
        pacer = self.core.pacing()
        refusal: RateLimitError | None = None
        while True:
            leave = await self._wait_for_leave(pacer, refusal)
            counted = True
            stream.note_request()
            try:
                source = await self._post(stream)
            except RateLimitError as exc:
                counted = False
                refusal = exc
                pacer.refused(leave, exc.retry_after)
                stream.note_delivery(self._verdict(Delivery.REJECTED))
            except AheadlessError as exc:
                counted = exc.delivery is not Delivery.NOT_SENT
                if isinstance(exc, StatusError):
                    pacer.accepted(leave)  # the rate limit is looked at before anything else that refuses
                raise
            else:
                pacer.accepted(leave)
                return source
            finally:
                pacer.leave(leave, counted=counted)

    async def _wait_for_leave(self, pacer: Pacing, refusal: RateLimitError | None) -> Pass:
        core = self.core
        leave = await pacer.try_enter(core.rate_limit)
        if isinstance(leave, Pass):
            return leave
        now = asyncio.get_running_loop().time()
        if self.give_up_at is None and core.max_wait:
            self.give_up_at = now + core.max_wait
            logger.info("%s waits for the rate limit, for %.0f s at the most", self.session_id, core.max_wait)
            await call(core.on_wait, Waiting(self.session_id, leave, core.max_wait))
        pause = refusal.retry_after if refusal is not None else None
        if self.give_up_at is not None and now + (pause or 0.0) < self.give_up_at:
            try:
                async with asyncio.timeout_at(self.give_up_at):
                    return await pacer.enter(core.rate_limit, again=refusal is not None)
            except TimeoutError:
                pass
        if refusal is not None:
            raise refusal
        raise RateLimitError(f"the rate limit left no room within {core.max_wait:.0f} s", delivery=Delivery.NOT_SENT)

    async def _post(self, stream: ReplyStream) -> Source:
        keeper, session = self.core.keeper, self.session

        def on_news(delivery: Delivery) -> None:
            if stream.state is not TurnState.WAITING:
                # It was ended from outside as not sent, and this comes before anything is.
                raise TimeoutError
            if keeper is not None:
                keeper.check(session)
            stream.note_delivery(self._verdict(delivery))

        transport, timeouts = self.core.transport, self.timeouts
        if not self.json:
            return await transport.open_stream(
                self.core.endpoint, self.body, self.key, timeouts=timeouts, on_news=on_news
            )
        reply = decode_reply(await transport.post("/v1/chat", self.body, self.key, timeouts=timeouts, on_news=on_news))
        return _Whole(
            encode_event(Start(reply.conversation_id)) + encode_event(Done(reply.text, reply.conversation_id))
        )

    def _verdict(self, delivery: Delivery) -> Delivery:
        """Return what is known of all attempts, from what is known of the last."""
        return Delivery.UNKNOWN if self.unsure and delivery is not Delivery.ACCEPTED else delivery

    # --- reading back -------------------------------------------------------------------------------------------------

    async def read_back(self, stream: ReplyStream, error: AheadlessError) -> tuple[str, str] | None:
        found = await self._search(stream, error) if self._is_cut(error) else None
        if found is None or found.reply is None or found.conversation_id is None:
            return None
        return found.reply, found.conversation_id

    async def _read_back_whole(self, stream: ReplyStream, error: AheadlessError) -> Source | None:
        """Return the stored reply as the answer to a message of which nobody knows whether it was stored."""
        stored = await self.read_back(stream, error) if error.delivery is Delivery.UNKNOWN else None
        if stored is None:
            return None
        text, conversation_id = stored
        stream.note_recovered()
        token = b"" if self.json else encode_event(Token(text))
        return _Whole(encode_event(Start(conversation_id)) + token + encode_event(Done(text, conversation_id)))

    def _is_cut(self, error: AheadlessError) -> bool:
        """Whether it is an end of the connection, and not one that this side wanted, that kept the reply away."""
        match error:
            case StreamInterruptedError() | ConnectionLostError() | RequestTimeoutError(phase="first_token" | "idle"):
                return True
            case ServerError() | ProtocolError():
                return error.delivery is Delivery.UNKNOWN
            case _:
                return False

    async def _search(self, stream: ReplyStream, error: AheadlessError) -> Found | None:
        """Find out what became of the question, and correct the error's verdict; None if that is not wanted."""
        readback = self.core.readback
        if readback is None or self.core.recovery != "auto" or self.asked is None:
            return None
        turn = lost_turn(self.session, self.asked, remembered=self.remembered)
        logger.info("%s broke off (%s); reading back", self.session_id, error)
        try:
            found = await readback.search(
                self.session,
                attrs.evolve(turn, partial=stream.snapshot),
                delivery=error.delivery,
                wait=self._patience(),
                conversation_id=stream.conversation_id,
                ended=_is_final(error),
                age=self._age,
            )
        except AheadlessError as exc:
            logger.warning("the history of %s cannot be read: %s", self.session_id, exc)
            return None
        error.delivery = found.delivery
        if found.delivery is not Delivery.UNKNOWN:
            self.unsure = False  # the history tells of all attempts
        self.unanswered = found.unanswered
        return found

    def _patience(self) -> float:
        """Return for how long a reply is waited for: as for one that comes in one piece."""
        seconds = LONGEST_REPLY if self.timeouts.send is None else min(self.timeouts.send, LONGEST_REPLY)
        if self.timeouts.total is not None:
            seconds = min(seconds, self.timeouts.total - (asyncio.get_running_loop().time() - self.asked_at))
        return max(seconds, 0.0)

    def _age(self) -> float:
        """Return how long ago the message was sent. Of the two clocks one may have been set and one may have slept."""
        assert self.asked is not None  # noqa: S101 - it was sent
        slept = (_utc_now() - self.asked.created_at).total_seconds()
        return max(slept, asyncio.get_running_loop().time() - self.asked_at)

    async def _recover(self, error: AheadlessError, wait: float) -> tuple[Reply | None, Delivery]:
        """Be the error's way back."""
        search = _Search(self.core, self.session, self.gate)
        return await search.run(
            lambda: self.asked,
            wait=wait,
            delivery=error.delivery,
            ended=_is_final(error),
            age=self._age,
            remembered=self.remembered,
        )

    def settle(self, stream: ReplyStream, outcome: Outcome) -> None:
        if isinstance(outcome, AheadlessError):
            hide(self.key.secret, outcome)
        if self.core.readback is not None and self.asked is not None and isinstance(outcome, AheadlessError):
            outcome.way_back = partial(self._recover, outcome)
        if self.asked is not None:
            if isinstance(outcome, Reply):
                text, delivery = outcome.text, Delivery.ACCEPTED
            else:
                text, delivery = outcome.partial, outcome.delivery
            self.session.settle(
                text,
                status="cancelled" if stream.cancelled else "failed" if self.unanswered else _status(outcome),
                delivery=delivery,
                conversation_id=stream.conversation_id,
                at=_utc_now(),
            )
        if self.core.log is not None:
            self.core.log.end(self.session_id)
        if self.core.keeper is not None:
            self.core.keeper.end(self.session)
        self.gate.leave(stream)
        self.core.live.discard(stream)

    async def record(self) -> None:
        if self.core.keeper is not None and not self.saved:
            await self.core.keeper.bring_back(self.session)
            self.saved = True  # what becomes of a later turn is told to that one


@attrs.define(eq=False)
class _Whole:
    """A JSON answer told as the stream that it might have been: a reply comes from `done` and from nowhere else."""

    events: bytes
    first_token_at: None = None
    total_at: None = None

    async def read(self, _deadline: float | None, /) -> bytes:
        events, self.events = self.events, b""
        return events

    def wake(self, error: Exception) -> None: ...

    def close(self) -> None: ...

    def finish(self) -> None: ...


def _is_final(error: AheadlessError) -> bool:
    """Whether the server itself has said that no reply comes. A 502 or 504 is a proxy's, which does not know."""
    own = isinstance(error, ServerError) and error.status == HTTPStatus.INTERNAL_SERVER_ERROR
    return own or isinstance(error, ReplyFailedError)


def _status(outcome: Outcome) -> MessageStatus:
    match outcome:
        case Reply():
            return "complete"
        case ReplyFailedError() | StatusError() | ConnectError() | StoreError():
            return "failed"
        case StreamStoppedError() | ClientClosedError():
            return "interrupted"
        case AheadlessError(delivery=Delivery.UNKNOWN):
            return "unknown"
        case AheadlessError(delivery=Delivery.NOT_SENT | Delivery.REJECTED):
            return "failed"
        case _:
            return "interrupted"


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError("no event loop is running") from None


def _key(header: str, given: str | Secret | None, name: str, *variables: str) -> Key | None:
    if given is not None:
        return Key(header, parse_key(given, name))
    for variable in variables:
        # Set but empty is how many tools say "not set".
        if value := os.environ.get(variable):
            return Key(header, parse_key(value, variable))
    return None


def _checked(value: object, kind: type[T], name: str) -> T | None:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigurationError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")


def _checked_callback(callback: F | None, name: str) -> tuple[F, ...]:
    if callback is None:
        return ()
    if not callable(callback):
        raise ConfigurationError(f"{name} must be a function, not {type(callback).__name__}")
    return (callback,)


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)
