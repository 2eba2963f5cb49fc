"""What went wrong on the way to the server, in our words, and what it tells of the message. No I/O.

Nothing of aiohttp's own errors goes out of here, neither as a cause nor as a context: their `repr` and the frames of
their tracebacks hold the request's headers, the key among them.
"""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    ServerError,
    StatusError,
    snippet,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["body_failure", "parse_date", "parse_retry_after", "refusal", "request_failure"]

# A server that wants to be left alone for longer than an hour is not waited for; nor does it get to name 1e9 s.
MAX_RETRY_AFTER: Final = 3600.0

_BROKEN_BODY: Final = (aiohttp.ClientPayloadError, HttpProcessingError)


def request_failure(exc: Exception, delivery: Delivery, base_url: str) -> AheadlessError:
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
            failure = ProtocolError(f"the answer is not HTTP: {snippet(exc.message)}", delivery=delivery)
        case _ if delivery is Delivery.NOT_SENT:
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


def body_failure(exc: Exception) -> AheadlessError:
    if isinstance(exc, OSError) or "not completed" in str(exc) or not isinstance(exc, _BROKEN_BODY):
        return ConnectionLostError("the connection was lost in the middle of the answer")
    # Their text begins with a status of 400, which no server has sent.
    said = exc.message if isinstance(exc, HttpProcessingError) else str(exc)
    return ProtocolError(f"the body cannot be decoded: {snippet(said)}")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> AheadlessError:
    """Return what an answer means that is no success."""
    detail = _detail(body)
    if status == HTTPStatus.OK:
        return ProtocolError(f"expected a chat answer, got a web page: {detail}")
    if 300 <= status < 400:  # noqa: PLR2004
        target = snippet(headers.get("Location", "nowhere"))
        return RedirectError(f"{status}: a redirect to {target} is not followed", status=status, detail=detail)
    if not 400 <= status < 600:  # noqa: PLR2004
        return ProtocolError(f"{status} is no answer of this API: {detail}")
    retry_after = parse_retry_after(headers.get("Retry-After"), datetime.now(timezone.utc))
    return _status_error(status, detail, retry_after)


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
