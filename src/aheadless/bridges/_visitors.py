"""Who asks: a signed cookie that leads to a session, a limit for each visitor, and no questions from other sites."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, Literal, NoReturn, Protocol
from urllib.parse import urlsplit

import attrs

from aheadless._extras import needs
from aheadless._options import RateLimit, Secret, parse_count, without_frames
from aheadless.exceptions import ConfigurationError, RateLimitError, RejectedError, snippet

with needs("aheadless[web]"):
    import itsdangerous

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Visitor", "Visitors"]

# What `secrets.token_urlsafe()` gives without being asked for more has 43; a word out of a dictionary has less.
LEAST_SECRET: Final = 32

# An id of 18 random bytes, a time and a signature have 75 characters.
MAX_COOKIE: Final = 200

# By so many seconds the clocks of the machines that share a secret may differ.
CLOCKS_APART: Final = 300

# Times of admissions that are remembered, of all visitors together: some 10 MB.
MAX_STAMPS: Final = 100_000

_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ID: Final = re.compile(r"[A-Za-z0-9_-]{24}")


class Fields(Protocol):
    """The headers of a request, in whatever case; every framework's have this."""

    def items(self) -> Iterable[tuple[str, str]]:
        """Return the names and values."""
        ...


@attrs.frozen
class Visitor:
    """A browser, as its cookie tells it."""

    session_id: str
    """The session of this visitor: `web:` and 43 characters, which tell nothing of the cookie."""

    set_cookie: str | None = attrs.field(default=None, repr=False)
    """What to send as `Set-Cookie`, for a new visitor or a cookie that is to last longer; None: nothing."""

    @property
    def headers(self) -> dict[str, str]:
        """The same as headers for the answer, to any request of a visitor's."""
        return {} if self.set_cookie is None else {"Set-Cookie": self.set_cookie}


class Visitors:
    """Tell visitors apart by a signed cookie, and admit so many questions of each.

    `secret` signs: at least 32 characters that nobody else knows, such as `secrets.token_urlsafe()` gives. Of several,
    the first one signs for new visitors, and the others are still good for those who have their cookies from them: drop
    one, and they become new visitors. A session belongs to the secret that its cookie is from.

    `limit` is for each visitor, in a window that slides; None: no limit. Who drops the cookie is a new visitor, with
    the whole limit before them: a limit for an address is the proxy's job, one for all visitors the client's own.

    The cookie is HttpOnly, lasts for `max_age` seconds, and is renewed in the second half of them. With `secure` it
    is sent over https alone, and its name is `__Host-visitor`, so that no neighbouring host can plant one; without,
    which is for development, it is `visitor`. `origins` are other hosts of the same site whose pages may ask, such as
    `https://www.example.com`.
    """

    @without_frames
    def __init__(
        self,
        secret: str | Secret | Sequence[str | Secret],
        *,
        limit: RateLimit | None = RateLimit(20, per=60),  # noqa: B008 - frozen
        cookie: str | None = None,
        max_age: int = 90 * 24 * 3600,
        secure: bool = True,
        samesite: Literal["Lax", "Strict"] = "Lax",
        origins: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = [_Key(known, clock) for known in _revealed(secret)]
        self._limiter = None if limit is None else SlidingLimit(limit)
        self._cookie = cookie if cookie is not None else "__Host-visitor" if secure else "visitor"
        if not _COOKIE_NAME.fullmatch(self._cookie):
            raise ConfigurationError(f"{snippet(repr(cookie), 80)} is no name for a cookie")
        if not secure and self._cookie.lower().startswith(("__host-", "__secure-")):
            raise ConfigurationError(f"browsers take a cookie {self._cookie} with secure=True alone")
        self._max_age = parse_count(max_age, "max_age", least=1)
        if samesite not in {"Lax", "Strict"}:
            raise ConfigurationError(f'samesite must be "Lax" or "Strict", not {snippet(repr(samesite), 40)}')
        self._attributes = f"; Max-Age={max_age}; Path=/; HttpOnly; SameSite={samesite}{'; Secure' * secure}"
        self._origins = frozenset(map(_checked_origin, origins))
        self._clock = clock

    def __reduce__(self) -> NoReturn:
        raise TypeError("visitors hold secrets, and are neither pickled nor copied; make them anew in each process")

    def __repr__(self) -> str:
        return f"<Visitors by the cookie {self._cookie}, {len(self._keys)} secrets>"

    def of(self, cookies: Mapping[str, str]) -> Visitor:
        """Return whose cookies these are: a new visitor for one that is missing, forged, expired or another site's."""
        value = cookies.get(self._cookie, "")
        now = self._clock()
        newest = self._keys[0]
        for key in self._keys:
            if (found := key.read(value, now)) is None:
                continue
            visitor_id, age = found
            if -CLOCKS_APART <= age < self._max_age:
                # One from an older secret is not renewed, so that after `max_age` seconds nobody needs that any more.
                renewed = key is newest and age > self._max_age / 2
                return Visitor(key.session_id(visitor_id), self._set_cookie(visitor_id) if renewed else None)
        visitor_id = secrets.token_urlsafe(18)
        return Visitor(newest.session_id(visitor_id), self._set_cookie(visitor_id))

    def admit(self, headers: Fields, cookies: Mapping[str, str]) -> Visitor:
        """Return the visitor who may ask now, and count the question.

        Raises RejectedError for a request that another site made the browser send (403) and for a body that is not
        JSON, which such a site can send unasked (415), and RateLimitError with `retry_after` for one question too many
        (429). :func:`refusal` makes answers of them.
        """
        self._check(headers)
        visitor = self.of(cookies)
        if self._limiter is not None and (seconds := self._limiter.admit(visitor.session_id, self._clock())) > 0:
            raise RateLimitError("the visitor asks too often", status=429, retry_after=seconds)
        return visitor

    def _set_cookie(self, visitor_id: str) -> str:
        return f"{self._cookie}={self._keys[0].write(visitor_id)}{self._attributes}"

    def _check(self, headers: Fields) -> None:
        fields = {name.lower(): value for name, value in headers.items()}
        if not is_own_page(fields, self._origins):
            raise RejectedError("another site sent this request", status=403)
        if fields.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RejectedError("the body is not application/json", status=415)


def is_own_page(fields: Mapping[str, str], origins: frozenset[str]) -> bool:
    """Whether a request comes from our own pages, those of `origins`, or no browser; `fields` has lower-case names.

    Every browser of today sends `Sec-Fetch-Site`, and older ones send `Origin` with a POST.
    """
    origin = fields.get("origin")
    if origin is not None and origin in origins:
        return True
    if (site := fields.get("sec-fetch-site")) is not None:
        return site in {"same-origin", "none"}
    if origin is None:
        return True
    try:
        return bool(host := urlsplit(origin).netloc) and host.lower() == fields.get("host", "").lower()
    except ValueError:
        return False


class SlidingLimit:
    """So many admissions for each name in any window of that length; pure, the time comes in.

    Beyond `max_stamps` admissions in all, who was admitted longest ago is forgotten and starts anew.
    """

    def __init__(self, limit: RateLimit, *, max_stamps: int = MAX_STAMPS) -> None:
        self._limit = limit
        self._max_stamps = max_stamps
        self._stamps = 0
        self._admitted: OrderedDict[str, deque[float]] = OrderedDict()  # who was admitted last stands last

    def __len__(self) -> int:
        return self._stamps

    def admit(self, name: str, now: float) -> float:
        """Return 0.0 and count it, or the seconds after which there is room, and count nothing."""
        stamps = self._admitted.get(name, deque[float]())
        while stamps and not 0 <= now - stamps[0] < self._limit.per:  # also after the clock was put back
            stamps.popleft()
            self._stamps -= 1
        if len(stamps) >= self._limit.limit:
            return stamps[0] + self._limit.per - now
        stamps.append(now)
        self._stamps += 1
        self._admitted[name] = stamps
        self._admitted.move_to_end(name)
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        while self._admitted:
            name, stamps = next(iter(self._admitted.items()))
            if self._stamps <= self._max_stamps and now - stamps[-1] < self._limit.per:
                return
            del self._admitted[name]
            self._stamps -= len(stamps)


class _Key:
    """One secret, and what it is for."""

    def __init__(self, secret: str, clock: Callable[[], float]) -> None:
        known = secret.encode("utf-8", "surrogateescape")
        self._signer = _Signer(known, clock)
        self._for_sessions = hmac.digest(known, b"aheadless session", hashlib.sha256)

    def write(self, visitor_id: str) -> str:
        """Return what goes into the cookie: the id, the time and the signature."""
        return self._signer.sign(visitor_id).decode()

    def read(self, value: str, now: float) -> tuple[str, float] | None:
        """Return the id in a cookie and the cookie's age in seconds; None unless it is from this secret."""
        if len(value) > MAX_COOKIE or not value.isascii():
            return None
        try:
            signed, made_at = self._signer.unsign(value, return_timestamp=True)
        except itsdangerous.BadData:
            return None
        visitor_id = signed.decode()
        return (visitor_id, now - made_at.timestamp()) if _ID.fullmatch(visitor_id) else None

    def session_id(self, visitor_id: str) -> str:
        """Return the session of a visitor, from which the id cannot be found out."""
        digest = hmac.digest(self._for_sessions, visitor_id.encode(), hashlib.sha256)
        return "web:" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class _Signer(itsdangerous.TimestampSigner):
    """With a clock that can be passed in."""

    def __init__(self, secret: bytes, clock: Callable[[], float]) -> None:
        super().__init__(secret, salt="aheadless visitor", key_derivation="hmac", digest_method=hashlib.sha256)
        self._clock = clock

    def get_timestamp(self) -> int:
        return int(self._clock())


def _revealed(given: str | Secret | Sequence[str | Secret]) -> list[str]:
    """Return the secrets; ConfigurationError for one that can be guessed."""
    found = [secret.reveal() if isinstance(secret, Secret) else secret for secret in _several(given)]
    if not found:
        raise ConfigurationError("there is no secret to sign with")
    for secret in found:
        if not isinstance(secret, str):
            raise ConfigurationError(f"a secret must be a string, not {type(secret).__name__}")
        if len(secret) < LEAST_SECRET:
            raise ConfigurationError(f"a secret has fewer than {LEAST_SECRET} characters; try secrets.token_urlsafe()")
    return found


def _several(given: str | Secret | Sequence[str | Secret]) -> Sequence[str | Secret]:
    return [given] if isinstance(given, str | Secret) else given


def _checked_origin(origin: str) -> str:
    # As browsers write it, who never send a capital letter or the port that is the scheme's own: others match nothing.
    if not re.fullmatch(r"https?://[^/?#@\sA-Z]+", origin) or re.match(r"http:.*:80$|https:.*:443$", origin):
        raise ConfigurationError(f"{snippet(repr(origin), 80)} is no origin, such as https://www.example.com")
    return origin
