"""`ChatClient`: the way to one API, where the parts are wired together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn, TypeVar

import attrs

from aheadless._http import Key, Transport
from aheadless._manager import MAX_SESSIONS, SessionManager
from aheadless._options import (
    OnBusy,
    RateLimit,
    Secret,
    Timeouts,
    parse_base_url,
    parse_count,
    parse_endpoint,
    parse_headers,
    parse_key,
    parse_on_busy,
    parse_seconds,
    without_frames,
)
from aheadless._pacing import PacingState, pacer_for
from aheadless._retry import Retry
from aheadless._store import HasEvents, HasPace, SessionStore
from aheadless._stream import Callbacks
from aheadless.exceptions import (
    ClientClosedError,
    ConfigurationError,
    ProtocolError,
    snippet,
)
from aheadless.protocol.codec import (
    validate_session_id,
)
from aheadless.protocol.ndjson import parse_object

if TYPE_CHECKING:
    import ssl as ssl_module
    from collections.abc import Callable, Mapping
    from types import TracebackType

    import aiohttp

    from aheadless._keeper import Keeper
    from aheadless._readback import ReadBack
    from aheadless._stream import OnDone, OnError, OnStart, OnToken
    from aheadless.admin import AdminClient


from aheadless._chat import Chat
from aheadless._core import Core, OnRetry, OnWait, Recovery, checked

__all__ = ["ChatClient", "Health"]

F = TypeVar("F")

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
        keeper = None if store is None else _keeper(store, history_limit)
        self._core = Core(
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
            readback=None if self._admin_key is None else _readback(lambda: self.admin),
            recovery=recovery,
            log=store.events if isinstance(store, HasEvents) else None,
            pace=store.pace if isinstance(store, HasPace) else None,
            chat_key=_key(chat_header, api_key, "api_key", "AHEADLESS_API_KEY", "WIDGET_API_KEY"),
            endpoint=parse_endpoint(endpoint),
            timeouts=checked(timeouts, Timeouts, "timeouts") or Timeouts(),
            on_busy=parse_on_busy(on_busy),
            callbacks=Callbacks.of(on_start, on_token, on_done, on_error),
            retry=checked(retry, Retry, "retry") or Retry(),
            rate_limit=checked(rate_limit, RateLimit, "rate_limit"),
            max_wait=parse_seconds(max_wait, "max_wait", zero=True),
            on_retry=_checked_callback(on_retry, "on_retry"),
            on_wait=_checked_callback(on_wait, "on_wait"),
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a client holds keys and connections, and is not pickled")

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
        chat._configure(on_busy, Callbacks.of(on_start, on_token, on_done, on_error))  # noqa: SLF001 - no user's
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


def _key(header: str, given: str | Secret | None, name: str, *variables: str) -> Key | None:
    if given is not None:
        return Key(header, parse_key(given, name))
    for variable in variables:
        # Set but empty is how many tools say "not set".
        if value := os.environ.get(variable):
            return Key(header, parse_key(value, variable))
    return None


def _checked_callback(callback: F | None, name: str) -> tuple[F, ...]:
    if callback is None:
        return ()
    if not callable(callback):
        raise ConfigurationError(f"{name} must be a function, not {type(callback).__name__}")
    return (callback,)


# What only some clients have is loaded with the first that does: it would make the import of this module 3 % slower.
def _keeper(store: SessionStore, history_limit: int) -> Keeper:
    from aheadless._keeper import Keeper  # noqa: PLC0415

    return Keeper(store, history_limit=history_limit)


def _readback(admin: Callable[[], AdminClient]) -> ReadBack:
    from aheadless._readback import ReadBack  # noqa: PLC0415

    return ReadBack(admin)
