"""The client's way to the server: make a request, and return its answer as soon as there is one.

Nothing of aiohttp's own errors goes out of here, neither as a cause nor as a context: their `repr` and the frames of
their tracebacks hold the request's headers, the key among them.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from aheadless._answer import Answer, read_up_to
from aheadless._failures import refusal, request_failure
from aheadless._options import hide
from aheadless._version import __version__
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConfigurationError,
    Delivery,
    ProtocolError,
    RequestTimeoutError,
    UsageError,
)
from aheadless.protocol.ndjson import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from aiohttp.client_proto import ResponseHandler

    from aheadless._options import Secret, Timeouts
    from aheadless.exceptions import Phase

__all__ = ["Key", "Observer", "OnNews", "Transport"]

logger: logging.Logger = logging.getLogger("aheadless")

OnNews: TypeAlias = "Callable[[Delivery, float | None], None]"
"""Hears of a request on its way: :meth:`Transport.open_stream` tells what."""

USER_AGENT: Final = f"aheadless/{__version__} aiohttp/{aiohttp.__version__}"
_NO_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None)

# The server closes an idle connection after 5 s, and a request that meets the close may or may not have been read
# (protocol.md §3.9).
KEEPALIVE: Final = 4.0

# An error page is for a human: 64 KiB of it, and 5 s for them, are plenty (faults.md row 31).
MAX_ERROR_BODY: Final = 64 * 1024
ERROR_BODY_TIMEOUT: Final = 5.0

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
            content = await read_up_to(answer, MAX_JSON_BODY + 1, limits.wait_until)
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
            failure = request_failure(exc, evidence.delivery, self.base_url)
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


async def _refuse(response: aiohttp.ClientResponse, answer: Answer, key: Key | None) -> None:
    """Raise what a response that is no success means; 204 is a stream without events and passes."""
    status = response.status
    if status == HTTPStatus.NO_CONTENT:
        return
    until = asyncio.get_running_loop().time() + ERROR_BODY_TIMEOUT
    body = b""
    try:
        body = await read_up_to(answer, MAX_ERROR_BODY, until)
    except (TimeoutError, AheadlessError):
        pass  # the status says enough
    finally:
        answer.close()
    raise refusal(status, response.headers, _without(key, body))


def _without(key: Key | None, body: bytes) -> bytes:
    """Return a body in which the key is stars: error pages for developers print the request's headers."""
    return body if key is None else body.replace(key.secret.reveal().encode("ascii"), b"***")
