"""`ChatClient` and `Chat`: what users hold. Here the parts are wired together."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar
from weakref import WeakValueDictionary

import attrs

from aheadless._gate import Gate
from aheadless._http import Key, Transport
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
from aheadless._pacing import Pacer, PacingState, Pass, Waiting, pacer_for
from aheadless._retry import Retry, RetryBudget, Retrying
from aheadless._session import Message, MessageStatus, Reply, Session, SessionManager
from aheadless._stream import Callbacks, ReplyStream, call
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    Delivery,
    ProtocolError,
    RateLimitError,
    ReplyFailedError,
    StatusError,
    UsageError,
)
from aheadless.protocol.codec import (
    ChatRequest,
    decode_reply,
    encode_event,
    encode_request,
    validate_message,
    validate_session_id,
)
from aheadless.protocol.events import Done, Start
from aheadless.protocol.ndjson import parse_object

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    import aiohttp

    from aheadless._stream import OnDone, OnError, OnStart, OnToken, Outcome, Source
    from aheadless.admin import AdminClient

__all__ = ["Chat", "ChatClient", "Health"]

F = TypeVar("F")
T = TypeVar("T")

OnRetry: TypeAlias = "Callable[[Retrying], Awaitable[object] | None]"
OnWait: TypeAlias = "Callable[[Waiting], Awaitable[object] | None]"

logger = logging.getLogger("aheadless")

# aiohttp's own default of 100 lets the hundred and first stream wait in silence. A thousand open streams cost this
# process some 15 MB.
MAX_CONNECTIONS = 1000

# Two hundred messages are a long evening, and more than the server shows to the model (30, protocol.md §5).
HISTORY_LIMIT = 200

# Longer than the usual window of 60 s, so that a turn that meets a full one gets into the next.
MAX_WAIT = 75.0


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
    budget: RetryBudget = attrs.field(factory=RetryBudget, init=False)
    live: set[ReplyStream] = attrs.field(factory=set["ReplyStream"], init=False)
    closed: bool = attrs.field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop | None = attrs.field(default=None, init=False)
    _pid: int | None = attrs.field(default=None, init=False)

    def check_open(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed")

    def bind(self) -> None:
        """Raise unless this is the client's own loop and process; the first use makes them its own."""
        self.check_open()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop, self._pid = loop, os.getpid()
        if self._pid != os.getpid():
            raise UsageError("this client was used before the process forked; make a new one in each process")
        if self._loop is not loop:
            raise UsageError("this client belongs to another event loop; make one for each loop")

    def pacer(self) -> Pacer:
        """Return the pacer that all clients of this origin share."""
        return pacer_for(self.transport.origin)

    async def get(self, path: str, key: Key | None = None) -> bytes:
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
      gives up with a RateLimitError; 0: it does not wait.
    - `max_connections`: how many streams can be open at once; further ones wait for `timeouts.connect`.
    - `on_busy`: what a new turn does when its session has a live one: "queue" (wait, in order), "reject" (raise
      SessionBusyError) or "interrupt" (stop the live one).
    - `history_limit`: how many messages of a session are kept here, the oldest go first.
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
        history_limit: int = HISTORY_LIMIT,
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
        self._core = _Core(
            transport=Transport(
                parse_base_url(url, allow_insecure_http=allow_insecure_http),
                headers=parse_headers(headers),
                session=session,
                ssl=ssl,
                proxy=proxy,
                max_connections=parse_count(max_connections, "max_connections", least=1),
            ),
            sessions=SessionManager(history_limit=parse_count(history_limit, "history_limit", least=0)),
            chat_key=_key(chat_header, api_key, "api_key", "AHEADLESS_API_KEY", "WIDGET_API_KEY"),
            endpoint=parse_endpoint(endpoint),
            timeouts=_checked(timeouts, Timeouts, "timeouts") or Timeouts(),
            on_busy=parse_on_busy(on_busy),
            callbacks=Callbacks.of(on_start, on_token, on_done, on_error),
            retry=_checked(retry, Retry, "retry") or Retry(),
            rate_limit=_checked(rate_limit, RateLimit, "rate_limit"),
            max_wait=0.0 if max_wait == 0 else parse_seconds(max_wait, "max_wait"),
            on_retry=_checked_callback(on_retry, "on_retry"),
            on_wait=_checked_callback(on_wait, "on_wait"),
        )
        self._chats: WeakValueDictionary[str, Chat] = WeakValueDictionary()

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
        return self._core.pacer().state()

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
        chat = self._chats.get(validate_session_id(session_id))
        if chat is None:
            chat = Chat(self._core, self._core.sessions.new(session_id))
            self._chats[session_id] = chat
        self._core.sessions.touch(chat._session)  # noqa: SLF001 - Chat is the other half of this module
        chat._configure(on_busy, Callbacks.of(on_start, on_token, on_done, on_error))  # noqa: SLF001
        return chat

    async def health(self) -> Health:
        """Ask `GET /health`; needs no key. Errors as for a chat, and ProtocolError for another kind of answer."""
        data = parse_object(await self._core.get("/health"))
        status = data.get("status")
        if not isinstance(status, str):
            raise ProtocolError("the health answer has no status")
        return Health(status)

    async def aclose(self) -> None:
        """End all live turns, whose readers get a ClientClosedError, and close the connections. May be called again.

        Does not wait for readers. If cancelled, the client is closed all the same.
        """
        self._core.closed = True
        for stream in tuple(self._core.live):
            stream.fail(ClientClosedError("the client was closed"))
        await self._core.transport.aclose()

    async def __aenter__(self) -> ChatClient:
        self._core.check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Chat:
    """One conversation: made by :meth:`ChatClient.chat`, the same object for the same id."""

    def __init__(self, core: _Core, session: Session) -> None:
        self._core = core
        self._session = session
        session.handle = self
        self._gate = Gate()
        self._on_busy: OnBusy | None = None
        self._given = Callbacks()  # with client.chat(...): replaced by the next call
        self._registered = Callbacks()  # by decorators: they stay

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
        stream. If cancelled, the message may have been stored, and the server writes its reply all the same.
        """
        return await self._ask(
            message, timeouts, on_busy, Callbacks.of(on_start, on_token, on_done, on_error), json=True
        )

    def stop(self) -> None:
        """End the live turn as its own `stop()` does; without one nothing happens."""
        self._gate.stop()

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
        if callbacks != Callbacks():
            self._given = callbacks

    def _ask(
        self, message: str, timeouts: Timeouts | None, on_busy: OnBusy | None, callbacks: Callbacks, *, json: bool
    ) -> ReplyStream:
        core = self._core
        core.check_open()
        if core.chat_key is None:
            raise ConfigurationError("no API key: pass api_key or set AHEADLESS_API_KEY")
        question = _Question(
            core,
            self._session,
            self._gate,
            encode_request(ChatRequest(self.session_id, validate_message(message))),
            message=message,
            key=core.chat_key,
            timeouts=_checked(timeouts, Timeouts, "timeouts") or core.timeouts,
            on_busy=parse_on_busy(on_busy or self._on_busy or core.on_busy),
            json=json,
        )
        return ReplyStream(question, core.callbacks + self._given + self._registered + callbacks)


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
    recorded: bool = attrs.field(default=False, init=False)

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def idle_timeout(self) -> float | None:
        return self.timeouts.idle

    async def enter(self, stream: ReplyStream) -> None:
        self.core.bind()
        self.core.live.add(stream)
        await self.gate.enter(stream, self.on_busy)

    async def send(self, stream: ReplyStream) -> Source:
        self.core.sessions.touch(self.session)
        self.session.begin(self.message, at=_utc_now())
        self.recorded = True
        core, attempt = self.core, 1
        while True:
            try:
                source = await self._send_paced(stream)
            except AheadlessError as exc:
                if not core.retry.allows(exc, attempt) or not core.budget.spend():
                    raise
                error = exc
            else:
                core.budget.earn()
                return source
            delay = max(core.retry.pause(attempt, random.random), getattr(error, "retry_after", None) or 0.0)
            stream.note_delivery(error.delivery)
            logger.info("attempt %d for %s failed (%s), next in %.1f s", attempt, self.session_id, error, delay)
            await call(core.on_retry, Retrying(self.session_id, attempt, delay, error))
            await asyncio.sleep(delay)
            attempt += 1

    async def _send_paced(self, stream: ReplyStream) -> Source:
        """Send when the pace allows it, again and again as long as the server says 429 and time is left."""
        pacer = self.core.pacer()
        refusal: RateLimitError | None = None
        while True:
            leave = await self._wait_for_leave(pacer, refusal)
            counted = True
            try:
                stream.note_delivery(Delivery.UNKNOWN)
            except AheadlessError:
                pacer.leave(leave, counted=False)  # ended from outside a moment ago
                raise
            try:
                source = await self._post()
            except RateLimitError as exc:
                counted = False
                refusal = exc
                pacer.refused(leave, exc.retry_after)
                stream.note_delivery(Delivery.REJECTED)
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

    async def _wait_for_leave(self, pacer: Pacer, refusal: RateLimitError | None) -> Pass:
        core = self.core
        if not pacer.must_wait(core.rate_limit):
            return await pacer.enter(core.rate_limit)
        now = asyncio.get_running_loop().time()
        if self.give_up_at is None and core.max_wait:
            self.give_up_at = now + core.max_wait
            reason: Literal["rate_limit", "cool_down"] = "rate_limit" if pacer.state().state == "open" else "cool_down"
            logger.info("%s waits for the rate limit, for %.0f s at the most", self.session_id, core.max_wait)
            await call(core.on_wait, Waiting(self.session_id, reason, core.max_wait))
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

    async def _post(self) -> Source:
        transport = self.core.transport
        if not self.json:
            return await transport.open_stream(self.core.endpoint, self.body, self.key, timeouts=self.timeouts)
        reply = decode_reply(await transport.post("/v1/chat", self.body, self.key, timeouts=self.timeouts))
        return _Whole(
            encode_event(Start(reply.conversation_id)) + encode_event(Done(reply.text, reply.conversation_id))
        )

    def settle(self, stream: ReplyStream, outcome: Outcome) -> None:
        if isinstance(outcome, AheadlessError):
            hide(self.key.secret, outcome)
        if self.recorded:
            if isinstance(outcome, Reply):
                text, delivery = outcome.text, Delivery.ACCEPTED
            else:
                text, delivery = outcome.partial, outcome.delivery
            self.session.settle(
                text,
                status=_status(outcome),
                delivery=delivery,
                conversation_id=stream.conversation_id,
                at=_utc_now(),
            )
        self.gate.leave(stream)
        self.core.live.discard(stream)


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


def _status(outcome: Outcome) -> MessageStatus:
    match outcome:
        case Reply():
            return "complete"
        case ReplyFailedError() | StatusError() | ConnectError():
            return "failed"
        case _:
            return "interrupted"


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
