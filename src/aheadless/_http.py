"""The client's only aiohttp: open an answer, read it, and say in our words what went wrong and what became of the
message.

Nothing of aiohttp's own errors goes out of here, neither as a cause nor as a context: their `repr` and the frames of
their tracebacks hold the request's headers, the key among them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl as ssl_module
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from aheadless._options import hide
from aheadless._version import __version__
from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    UsageError,
    snippet,
)
from aheadless.protocol.ndjson import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.client_proto import ResponseHandler

    from aheadless._options import Secret, Timeouts
    from aheadless.exceptions import Phase

__all__ = ["Answer", "Key", "Observer", "OnNews", "Transport", "parse_date"]

logger: logging.Logger = logging.getLogger("aheadless")

OnNews: TypeAlias = "Callable[[Delivery, float | None], None]"
"""Hears of a request on its way: :meth:`Transport.open_stream` tells what."""

USER_AGENT: Final = f"aheadless/{__version__} aiohttp/{aiohttp.__version__}"
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)
_BROKEN_BODY: Final = (aiohttp.ClientPayloadError, HttpProcessingError)

# The server closes an idle connection after 5 s, and a request that meets the close may or may not have been read
# (protocol.md §3.9).
KEEPALIVE: Final = 4.0

# The chunked body's end follows `done` within one segment or two; if it does not, the connection is not worth keeping.
LINGER: Final = 1.0

# An error page is for a human: 64 KiB of it, and 5 s for them, are plenty (faults.md row 31).
MAX_ERROR_BODY: Final = 64 * 1024
ERROR_BODY_TIMEOUT: Final = 5.0

# A server that wants to be left alone for longer than an hour is not waited for; nor does it get to name 1e9 s.
MAX_RETRY_AFTER: Final = 3600.0

# A reply of 8 MiB is as unlikely as a line of that size.
MAX_JSON_BODY: Final = MAX_LINE


class _HeaderValue(str):
    """A header's value that a traceback with locals shows as `***`; on the wire it is itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"


class _Evidence(msgspec.Struct, eq=False):
    """What aiohttp's trace told of one request."""

    on_connected: Callable[[], None] | None = None
    on_news: OnNews | None = None
    started_at: float | None = None
    connect: float | None = None
    """How many seconds it took to connect; None if an open connection is used again, or as long as there is none."""
    sent: bool = False
    queued: bool = False
    """Whether all connections are busy, and it waits for one."""

    @property
    def delivery(self) -> Delivery:
        """Unless the trace shows that no header was written, the message may have arrived."""
        return Delivery.NOT_SENT if self.started_at is not None and not self.sent else Delivery.UNKNOWN

    def tell(self) -> None:
        """Tell whoever waits for the answer, and may give up on it, how the delivery stands."""
        if self.on_news is not None:
            self.on_news(self.delivery, self.connect)


def _make_trace(on_full: Callable[[], None]) -> aiohttp.TraceConfig:
    """Return what gathers the evidence; `on_full` is called when a request has to wait as all connections are busy."""

    async def queued(_session: object, context: object, _params: object) -> None:
        if (evidence := _evidence(context)) is not None:
            evidence.queued = True
            on_full()

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(_started)
    trace.on_connection_queued_start.append(queued)
    trace.on_connection_queued_end.append(_left_queue)
    trace.on_connection_create_end.append(_created)
    trace.on_connection_reuseconn.append(_connected)
    trace.on_request_headers_sent.append(_sent)
    trace.freeze()
    return trace


async def _started(_session: object, context: object, _params: object) -> None:
    if (evidence := _evidence(context)) is not None:
        evidence.started_at = asyncio.get_running_loop().time()
        evidence.tell()


async def _left_queue(_session: object, context: object, _params: object) -> None:
    if (evidence := _evidence(context)) is not None:
        evidence.queued = False


async def _created(session: object, context: object, params: object) -> None:
    if (evidence := _evidence(context)) is not None and evidence.started_at is not None:
        evidence.connect = asyncio.get_running_loop().time() - evidence.started_at
    await _connected(session, context, params)


async def _connected(_session: object, context: object, _params: object) -> None:
    if (evidence := _evidence(context)) is not None and evidence.on_connected is not None:
        evidence.on_connected()


async def _sent(_session: object, context: object, _params: object) -> None:
    if (evidence := _evidence(context)) is not None:
        evidence.sent = True
        evidence.tell()


def _evidence(context: object) -> _Evidence | None:
    found = getattr(context, "trace_request_ctx", None)
    return found if isinstance(found, _Evidence) else None  # a session of the user's makes other requests too


class Answer:
    """An answer whose headers have come, and its body as chunks.

    One reader at a time. All but :meth:`read` are plain calls that may come at any time and do not wait.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        lingering: set[Answer],
        *,
        first_token_at: float | None,
        total_at: float | None,
    ) -> None:
        self.first_token_at = first_token_at
        """The loop time by which the first token must have come; None: no limit."""
        self.total_at = total_at
        """The loop time by which everything must have come; None: no limit."""
        self._response = response
        self._lingering = lingering
        self._content = response.content
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None  # of the read that is waiting now
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        self._protocol = None if response.connection is None else response.connection.protocol
        self._watch()

    @property
    def date(self) -> datetime | None:
        """The server's time when it answered, if it says so."""
        return parse_date(self._response.headers.get("Date", ""))

    async def read(self, deadline: float | None, /) -> bytes:
        """Return the bytes that are there, or wait for some; `b""` at the end of the body.

        Raises TimeoutError when nothing came until `deadline` (loop time), ConnectionLostError when the body was cut,
        ProtocolError when its framing or coding is broken, and what :meth:`wake` was given. What had arrived before a
        failure is returned first. If cancelled, no byte is lost.
        """
        self._arm(deadline)
        failure: BaseException | None = None
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, HttpProcessingError, OSError) as exc:
            chunk = self._salvage()
            if not chunk:
                failure = exc if isinstance(exc, TimeoutError) else _body_failure(exc)
        finally:
            self._deadline = None
        if failure is not None:
            raise failure
        self._taken += len(chunk)
        return chunk

    def wake(self, error: Exception) -> None:
        """Make the waiting reader raise `error`; without one, the next read does."""
        self._content.set_exception(error)

    def close(self) -> None:
        """Close the connection at once, unless the whole body was read, which gave it back to the pool."""
        self._disarm()
        self._lingering.discard(self)
        self._response.close()

    def finish(self) -> None:
        """Let the connection go back to the pool: the reply is read, only the body's end may be missing.

        `release()` would drop the connection, as the end comes a moment after `done` (faults.md). It is given a
        second, and a body that goes on after `done` costs the connection.
        """
        self._disarm()
        if self._response.closed:
            return
        if self._content.total_bytes > self._taken or self._loop.is_closed():
            self._response.close()
            return
        timer = self._timer = self._loop.call_later(LINGER, self.close)
        self._lingering.add(self)
        transport = None if self._response.connection is None else self._response.connection.transport

        def ended() -> None:
            timer.cancel()
            self._lingering.discard(self)
            if transport is not None and self._content.total_bytes > self._taken:
                transport.close()  # it went on after `done`; the pool, which has it by now, passes it over

        self._content.on_eof(ended)

    def _watch(self) -> None:
        """See to it that a reader does not wait for a connection that is gone.

        aiohttp leaves it waiting when the framing breaks after the head: it closes the connection and tells nobody
        (seen on 3.14.5).
        """
        if self._protocol is None or self._content.is_eof():
            return
        if (closed := self._protocol.closed) is None:
            self._gone()
            return
        closed.remove_done_callback(_retrieve)  # once for all answers of a connection
        closed.add_done_callback(_retrieve)
        closed.add_done_callback(self._gone)
        self._content.on_eof(self._unwatch)

    def _gone(self, _closed: asyncio.Future[None] | None = None) -> None:
        assert self._protocol is not None  # noqa: S101 - it is what was watched
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(self._protocol.exception() or aiohttp.ServerDisconnectedError())

    def _unwatch(self) -> None:
        if self._protocol is not None and self._protocol.closed is not None:
            self._protocol.closed.remove_done_callback(self._gone)

    def _arm(self, deadline: float | None) -> None:
        # One timer, moved when it rings: a new one for each read would cost more than the read.
        self._deadline = deadline
        if deadline is None:
            return
        if self._timer is not None and self._timer.when() > deadline:
            self._disarm()
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None:
            return  # nobody waits: the next read arms it again
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
        else:
            self._content.set_exception(TimeoutError())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _salvage(self) -> bytes:
        """Return what aiohttp had received and would throw away, now that the connection is broken."""
        content = self._content
        error = content.exception()
        # Typed as an error only, yet None is what the attribute holds before one (aiohttp 3.14.5).
        content.set_exception(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        rest = content.read_nowait()
        if error is not None and not isinstance(error, TimeoutError):
            content.set_exception(error)
        return rest


def _retrieve(closed: asyncio.Future[None]) -> None:
    """Look at how a connection ended, or asyncio would log that nobody did: an idle one may be reset as well."""
    if not closed.cancelled():
        closed.exception()


class _Limits(msgspec.Struct, eq=False):
    """The deadlines of one request, in loop time; a None never comes."""

    phase: Phase
    _wait: float | None
    connect_at: float | None
    total_at: float | None
    wait_until: float | None = None
    _connected: bool = False

    @classmethod
    def start(cls, *, connect: float | None, wait: float | None, phase: Phase, total: float | None) -> _Limits:
        now = asyncio.get_running_loop().time()
        # Until the connection is seen the wait is counted from here: a mocked session tells of none.
        return cls(phase, wait, _after(now, connect), _after(now, total), _after(now, wait))

    @property
    def current(self) -> float | None:
        at = self.wait_until if self._connected else self.connect_at
        return self.total_at if at is None or (self.total_at is not None and self.total_at < at) else at

    def connected(self) -> None:
        self._connected = True
        self.wait_until = _after(asyncio.get_running_loop().time(), self._wait)

    def expired(self) -> Phase:
        if self.total_at is not None and self.total_at <= asyncio.get_running_loop().time():
            return "total"
        return self.phase if self._connected else "connect"


def _after(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds


class Key(msgspec.Struct, frozen=True):
    """A key and the header it travels in."""

    header: str
    secret: Secret


class _Post(msgspec.Struct, frozen=True):
    """What a POST has that a GET has not."""

    body: bytes
    on_news: OnNews
    headers: Mapping[str, str]


class Observer(Protocol):
    """Sees of the requests what their answers do not tell. Plain calls that do not wait."""

    def connected(self, connection: asyncio.BaseTransport, *, reused: bool) -> None:
        """Note which connection a request gets, and whether an earlier one had it before."""

    def answered(self, headers: Mapping[str, str]) -> None:
        """Note the headers of an answer, a refusal's as well; their names are looked up in any case."""


class _Connector(aiohttp.TCPConnector):
    """Gives out no connection of which it can be told that a request has no business on it, and closes each at once."""

    def __init__(self, *, limit: int, observer: Observer | None) -> None:
        # One of its other parameters has a type that aiohttp leaves open.
        super().__init__(limit=limit, keepalive_timeout=KEEPALIVE)  # pyright: ignore[reportUnknownMemberType]
        self._observer = observer
        self._used: WeakSet[ResponseHandler] = WeakSet()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> aiohttp.connector.Connection:
        """Return a connection that is still open and, if it was used before, on which nothing has come since.

        aiohttp would take what came meanwhile for the answer to the next request (seen on 3.14.5), and write a request
        to what is closed already, after which nobody could tell that it was not sent.
        """
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101 - only a closed connection has none
            used = protocol in self._used
            if protocol.is_connected() and not (used and protocol.should_close):
                if not used:
                    _close_at_once(protocol)
                self._used.add(protocol)
                if self._observer is not None and protocol.transport is not None:
                    self._observer.connected(protocol.transport, reused=used)
                return connection
            connection.close()
            if not used:
                raise aiohttp.ClientConnectionError("closed as soon as it was open")


def _close_at_once(protocol: ResponseHandler) -> None:
    # To close TLS, asyncio says farewell and waits for the other side's, for up to 30 s. A proxy that is passing on a
    # reply gives none, and so does not notice that we have left (nginx 1.22: tests/test_nginx.py).
    if protocol.transport is not None and protocol.transport.get_extra_info("ssl_object") is not None:
        protocol.close = protocol.abort  # type: ignore[method-assign]


class Transport:
    """Send requests to one base URL."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str],
        session: aiohttp.ClientSession | None,
        ssl: ssl_module.SSLContext | bool | None,
        proxy: str | None,
        max_connections: int,
    ) -> None:
        self.base_url = base_url
        self.origin: str = "{0.scheme}://{0.netloc}".format(urlsplit(base_url)).lower()
        # Those may be secrets as well: a gateway's token.
        self._headers = {name: _HeaderValue(value) for name, value in headers.items()}
        _check_transport(session, ssl, proxy)
        self._session = session
        self._owns_session = session is None
        self._closed = False
        self._lingering: set[Answer] = set()  # whose reply is read, but not yet the end of their body
        self._ssl = True if ssl is None else ssl
        self._proxy = proxy
        self._max_connections = max_connections
        self._was_full = False
        self.observer: Observer | None = None
        """Who is told of the connections of the client's own, and of all answers; set before the first request."""
        self._trace: aiohttp.TraceConfig | None = None

    async def open_stream(
        self,
        path: str,
        body: bytes,
        key: Key,
        *,
        timeouts: Timeouts,
        on_news: OnNews,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Post a question and return its answer as soon as the headers are there and tell of a success.

        `on_news` hears how the delivery stands while this waits, if that can be told, and how many seconds a new
        connection took, if one was made; when it hears that the message may have arrived, nothing was written yet, and
        what it raises keeps it so. `headers` are sent with this request, unless the client has its own of that name.

        Raises ConnectError, ConnectionLostError, RequestTimeoutError, StatusError or ProtocolError, each with its
        verdict on the delivery. If cancelled, the connection is closed, and the message may have been stored.
        """
        limits = _Limits.start(
            connect=timeouts.connect, wait=timeouts.first_token, phase="first_token", total=timeouts.total
        )
        post = _Post(body, on_news, headers or {})
        return await self._request(path, key, limits, accept="application/x-ndjson", post=post)

    async def post(
        self,
        path: str,
        body: bytes,
        key: Key,
        *,
        timeouts: Timeouts,
        on_news: OnNews,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """Post a question and return the body of the JSON answer. All else: as :meth:`open_stream`."""
        return (await self._fetch(path, key, timeouts, post=_Post(body, on_news, headers or {})))[0]

    async def get(self, path: str, key: Key | None, *, timeouts: Timeouts) -> tuple[bytes, datetime | None]:
        """Return the body of the JSON answer to a GET, and the server's time. Errors and cancel: as for a stream."""
        return await self._fetch(path, key, timeouts)

    async def aclose(self) -> None:
        """Close the connections; a session that the user gave stays open."""
        self._closed = True
        for answer in tuple(self._lingering):
            answer.close()
        if self._session is None:
            return
        if self._owns_session:
            await self._session.close()
        elif self._trace in self._session.trace_configs:
            self._session.trace_configs.remove(self._trace)

    async def _fetch(
        self, path: str, key: Key | None, timeouts: Timeouts, *, post: _Post | None = None
    ) -> tuple[bytes, datetime | None]:
        limits = _Limits.start(connect=timeouts.connect, wait=timeouts.send, phase="total", total=None)
        answer = await self._request(path, key, limits, accept="application/json", post=post)
        try:
            content = await _read_up_to(answer, MAX_JSON_BODY + 1, limits.wait_until)
        except TimeoutError:
            content = None
        finally:
            answer.close()
        if content is None:
            raise RequestTimeoutError(phase="total")
        if len(content) > MAX_JSON_BODY:
            raise ProtocolError(f"the answer is longer than {MAX_JSON_BODY} bytes")
        return content, answer.date

    async def _request(self, path: str, key: Key | None, limits: _Limits, *, accept: str, post: _Post | None) -> Answer:
        try:
            return await self._open(path, key, limits, accept=accept, post=post)
        except AheadlessError as exc:
            if key is not None:
                hide(key.secret, exc)
            raise

    async def _open(self, path: str, key: Key | None, limits: _Limits, *, accept: str, post: _Post | None) -> Answer:
        session = self._open_session()
        headers: dict[str, str] = {"User-Agent": USER_AGENT, **self._headers, "Accept": accept}
        # A compressed stream is held back by the compressor, and the server offers none (protocol.md §1).
        headers["Accept-Encoding"] = "identity"
        if post is not None:
            headers["Content-Type"] = "application/json"
            given = {name.lower() for name in headers}
            headers |= {name: value for name, value in post.headers.items() if name.lower() not in given}
        if key is not None:
            headers[key.header] = _HeaderValue(key.secret.reveal())
        evidence = _Evidence(on_news=None if post is None else post.on_news)
        failure: AheadlessError | None = None
        response = None
        scope = asyncio.timeout_at(limits.current)

        def connected() -> None:
            limits.connected()
            scope.reschedule(limits.current)

        evidence.on_connected = connected
        try:
            async with scope:
                response = await session.request(
                    "GET" if post is None else "POST",
                    self.base_url + path,
                    data=None if post is None else post.body,
                    headers=headers,
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=_NO_TIMEOUT,
                    ssl=self._ssl,
                    proxy=self._proxy,
                    trace_request_ctx=evidence,
                )
        except TimeoutError:
            said = f"{self._all_connections} were busy until the time-out (max_connections)" if evidence.queued else ""
            failure = RequestTimeoutError(said, phase=limits.expired(), delivery=evidence.delivery)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as exc:
            failure = _request_failure(exc, evidence, self.base_url)
        except AheadlessError as exc:  # what `on_news` raised
            failure = exc.with_traceback(None)
        finally:
            evidence.on_connected = evidence.on_news = None
        if failure is not None:
            # Raised here and not in the handler, so that it has no context: see the top of this module.
            raise failure
        assert response is not None  # noqa: S101 - for the type checker
        if self.observer is not None:
            self.observer.answered(response.headers)
        answer = Answer(response, self._lingering, first_token_at=limits.wait_until, total_at=limits.total_at)
        if response.status != HTTPStatus.OK or response.content_type == "text/html":
            await _refuse(response, answer, key)
        return answer

    @property
    def _all_connections(self) -> str:
        limit = self._max_connections
        if self._session is not None and self._session.connector is not None:
            limit = self._session.connector.limit  # of the user's own session
        return f"all {limit} connections"

    def _note_full(self) -> None:
        """Say once that the number of connections is what holds streams up: nothing else would show it."""
        if not self._was_full:
            self._was_full = True
            logger.warning("%s are busy; streams wait for one, or raise max_connections", self._all_connections)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ClientClosedError("the client is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(limit=self._max_connections, observer=self.observer),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        elif self._session.closed:
            raise UsageError("the aiohttp session that this client was given is closed")
        if self._trace is None:
            self._trace = _make_trace(self._note_full)
            self._session.trace_configs.append(self._trace)
        return self._session


# With these the server would refuse what we send, or see two keys (protocol.md §3.10).
_NOT_FROM_A_SESSION: Final = ("Origin", "x-api-key", "x-widget-api-key", "x-admin-api-key")


def _check_transport(session: object, ssl: object, proxy: object) -> None:
    """Raise ConfigurationError for what aiohttp would trip over in the middle of a turn."""
    if session is not None:
        if not isinstance(session, aiohttp.ClientSession):
            raise ConfigurationError(f"session must be an aiohttp.ClientSession, not {type(session).__name__}")
        if unfit := [name for name in _NOT_FROM_A_SESSION if name in session.headers]:
            raise ConfigurationError(f"the session has a default header {unfit[0]}, which would be sent along")
    if not isinstance(ssl, bool | ssl_module.SSLContext | aiohttp.Fingerprint | None):
        raise ConfigurationError(f"ssl must be an SSLContext or a bool, not {type(ssl).__name__}")
    if proxy is not None and not (isinstance(proxy, str) and proxy.startswith(("http://", "https://"))):
        raise ConfigurationError("proxy must be an http:// or https:// URL")


async def _read_up_to(answer: Answer, size: int, deadline: float | None) -> bytes:
    chunks: list[bytes] = []
    while size > 0 and (chunk := await answer.read(deadline)):
        chunks.append(chunk[:size])
        size -= len(chunk)
    return b"".join(chunks)


# --- what went wrong --------------------------------------------------------------------------------------------------


def _request_failure(exc: Exception, evidence: _Evidence, base_url: str) -> AheadlessError:
    """Translate what aiohttp raised before it had an answer."""
    failure: AheadlessError
    match exc:
        case aiohttp.ClientConnectorError():
            failure = _connect_failure(exc, base_url)
        case aiohttp.ClientHttpProxyError():
            failure = ConnectError(f"the proxy refused to connect ({exc.status})")
        case aiohttp.InvalidURL() | ValueError():
            failure = ConfigurationError(f"{base_url} cannot be requested: {snippet(str(exc))}")
        case aiohttp.ClientResponseError() | HttpProcessingError():
            # aiohttp gives these a status of 400, which no server has sent.
            failure = ProtocolError(f"the answer is not HTTP: {snippet(exc.message)}", delivery=evidence.delivery)
        case _ if evidence.delivery is Delivery.NOT_SENT:
            failure = ConnectError(f"the connection to {base_url} ended before the request was sent")
        case _:
            failure = ConnectionLostError(f"{base_url} ended the connection without an answer")
    if isinstance(error := getattr(exc, "os_error", exc), OSError) and error.errno:
        failure.__cause__ = OSError(error.errno, error.strerror)
    return failure


def _connect_failure(exc: aiohttp.ClientConnectorError, base_url: str) -> ConnectError:
    # A reset in the middle of a TLS handshake comes without a text.
    said = snippet(str(exc.os_error) or type(exc.os_error).__name__)
    match exc:
        case aiohttp.ClientConnectorCertificateError():
            said = snippet(str(exc.certificate_error))
            return ConnectError(f"the certificate of {base_url} is not valid: {said}", permanent=True)
        case aiohttp.ClientConnectorSSLError() if "WRONG_VERSION_NUMBER" in said:
            return ConnectError(f"{base_url} does not speak TLS: is it an http:// address?", permanent=True)
        case aiohttp.ClientConnectorSSLError():
            return ConnectError(f"TLS with {base_url} failed: {said}", permanent=True)
        case aiohttp.ClientConnectorDNSError():
            return ConnectError(f"the host of {base_url} is not known: {said}")
        case _:
            return ConnectError(f"cannot connect to {base_url}: {said}")


def _body_failure(exc: Exception) -> AheadlessError:
    if isinstance(exc, OSError) or "not completed" in str(exc) or not isinstance(exc, _BROKEN_BODY):
        return ConnectionLostError("the connection was lost in the middle of the answer")
    # Their text begins with a status of 400, which no server has sent.
    said = exc.message if isinstance(exc, HttpProcessingError) else str(exc)
    return ProtocolError(f"the body cannot be decoded: {snippet(said)}")


async def _refuse(response: aiohttp.ClientResponse, answer: Answer, key: Key | None) -> None:
    """Raise what a response that is no success means; 204 is a stream without events and passes."""
    status = response.status
    if status == HTTPStatus.NO_CONTENT:
        return
    until = asyncio.get_running_loop().time() + ERROR_BODY_TIMEOUT
    body = b""
    try:
        body = await _read_up_to(answer, MAX_ERROR_BODY, until)
    except (TimeoutError, AheadlessError):
        pass  # the status says enough
    finally:
        answer.close()
    body = _without(key, body)
    detail = _detail(body)
    if status == HTTPStatus.OK:
        raise ProtocolError(f"expected a chat answer, got a web page: {detail}")
    if 300 <= status < 400:  # noqa: PLR2004
        target = snippet(response.headers.get("Location", "nowhere"))
        raise RedirectError(f"{status}: a redirect to {target} is not followed", status=status, detail=detail)
    if not 400 <= status < 600:  # noqa: PLR2004
        raise ProtocolError(f"{status} is no answer of this API: {detail}")
    retry_after = parse_retry_after(response.headers.get("Retry-After"), datetime.now(timezone.utc))
    raise _status_error(status, detail, retry_after)


def _without(key: Key | None, body: bytes) -> bytes:
    """Return a body in which the key is stars: error pages for developers print the request's headers."""
    return body if key is None else body.replace(key.secret.reveal().encode("ascii"), b"***")


_ERRORS: Final[dict[int, type[StatusError]]] = {
    400: RejectedError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    405: NotFoundError,
    413: RejectedError,
    415: RejectedError,
    422: RejectedError,
    429: RateLimitError,
}
_HINTS: Final[dict[type[StatusError], str]] = {
    AuthenticationError: " (check the API key)",
    NotFoundError: " (check the base URL)",
}


def _status_error(status: int, detail: str, retry_after: float | None) -> StatusError:
    kind = _ERRORS.get(status)
    delivery: Delivery | None = None  # the class's own
    if kind is None and status < HTTPStatus.INTERNAL_SERVER_ERROR:
        # No refusal of this API: a proxy's, which may have passed the message on before.
        kind, delivery = RejectedError, Delivery.UNKNOWN
    elif status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None:
        # Who names a time has turned the message away; a 503 alone may come from behind the store.
        delivery = Delivery.REJECTED
    kind = kind or ServerError
    message = f"{status}: {detail or 'no detail'}{_HINTS.get(kind, '')}"
    return kind(message, status=status, detail=detail, retry_after=retry_after, delivery=delivery)


def _detail(body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        said: object = json.loads(text)
    except (ValueError, RecursionError):
        return snippet(text)
    error = cast("dict[str, object]", said).get("error") if isinstance(said, dict) else None
    return snippet(error if isinstance(error, str) else text)


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a `Retry-After` asks for, from 0 to 3600; None if it is not there or says nothing.

    It is a number of seconds or an HTTP date, and may be anything: a server writes it.
    """
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text)
    except ValueError:
        if (date := parse_date(text)) is None:
            return None
        seconds = (date - now).total_seconds()
    return None if math.isnan(seconds) else min(max(seconds, 0.0), MAX_RETRY_AFTER)


def parse_date(text: str) -> datetime | None:
    """Return what an HTTP date says, aware; None if it is none."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=timezone.utc)
