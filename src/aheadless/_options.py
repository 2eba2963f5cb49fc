"""What a client is told: keys, base URL, time-outs. Every setting is checked here, before any I/O."""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs

from aheadless.exceptions import ConfigurationError, ReplyFailedError, StatusError, snippet

if TYPE_CHECKING:
    from collections.abc import Callable

    from aheadless.exceptions import AheadlessError

__all__ = [
    "OnBusy",
    "RateLimit",
    "Secret",
    "Timeouts",
    "hide",
    "parse_base_url",
    "parse_count",
    "parse_endpoint",
    "parse_headers",
    "parse_key",
    "parse_on_busy",
    "parse_seconds",
    "without_frames",
    "without_userinfo",
]

P = ParamSpec("P")
T = TypeVar("T")

OnBusy: TypeAlias = Literal["queue", "reject", "interrupt"]
"""What a new turn does when its session has a live one."""


class Secret:
    """A text that shows itself as `***` and refuses to be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the text itself; for the one place that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


# So much of a key, at the place where a long text was cut, is worth hiding; less tells nothing.
LEAST_HIDDEN: Final = 8


def hide(secret: Secret, error: AheadlessError) -> None:
    """Put stars in the place of a secret that a server has quoted, as error pages for developers do."""
    error.args = tuple(_without(secret, arg) if isinstance(arg, str) else arg for arg in error.args)
    if isinstance(error, StatusError):
        error.detail = _without(secret, error.detail)
    elif isinstance(error, ReplyFailedError):
        error.reason = _without(secret, error.reason)


def _without(secret: Secret, text: str) -> str:
    value = secret.reveal()
    if len(value) < LEAST_HIDDEN:
        return text  # nobody's secret; every other word would hold it
    for written in (value, json.dumps(value)[1:-1]):
        text = text.replace(written, "***")
        start, cut, rest = text.rpartition("…")
        if cut:
            sizes = range(min(len(written), len(start)), LEAST_HIDDEN - 1, -1)
            size = next((size for size in sizes if start.endswith(written[:size])), None)
            text = text if size is None else f"{start[:-size]}***{cut}{rest}"
    return text


def without_frames(function: Callable[P, T]) -> Callable[P, T]:
    """Let a ConfigurationError come out of a function without the frames inside it: their locals hold keys."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ConfigurationError as exc:
            error = exc.with_traceback(None)
        error.__context__ = None
        del args, kwargs  # this frame stays
        raise error

    return call


def parse_key(value: object, name: str) -> Secret:
    """Return a key that can travel in a header as it is; ConfigurationError, without the key, otherwise."""
    if isinstance(value, Secret):
        value = value.reveal()
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a string, not {type(value).__name__}")
    if not value:
        raise ConfigurationError(f"{name} is empty")
    if not (value.isascii() and value.isprintable()):
        raise ConfigurationError(f"{name} holds a character that is not printable ASCII")
    if value != value.strip():
        raise ConfigurationError(f"{name} begins or ends with a space")
    return Secret(value)


def parse_seconds(value: object, name: str, *, zero: bool = False) -> float:
    """Return a positive, finite number, or 0 where it has a meaning; ConfigurationError otherwise."""
    least = 0.0 if zero else sys.float_info.min
    # Compared and not given to math.isfinite(), which fails for an int beyond the largest float.
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= sys.float_info.max:
        return value
    raise ConfigurationError(f"{name} must be a positive number of seconds, not {snippet(repr(value), 40)}")


def _check_seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None:
        parse_seconds(value, attribute.name)


@attrs.frozen(kw_only=True)
class Timeouts:
    """How long to wait, in seconds; None: for ever."""

    connect: float | None = attrs.field(default=5.0, validator=_check_seconds)
    """For a connection, the wait for a free one in the pool included."""

    first_token: float | None = attrs.field(default=60.0, validator=_check_seconds)
    """From the connection to the first token."""

    idle: float | None = attrs.field(default=60.0, validator=_check_seconds)
    """Between two events, counted only while this side waits. Bytes that make no event do not count."""

    total: float | None = attrs.field(default=None, validator=_check_seconds)
    """For a whole stream, from the request on."""

    send: float | None = attrs.field(default=120.0, validator=_check_seconds)
    """For the whole answer of `chat.send()`, from the connection on."""


@attrs.frozen
class RateLimit:
    """At most `limit` requests in a window of `per` seconds."""

    limit: int = attrs.field()
    per: float = attrs.field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        parse_count(self.limit, "limit", least=1)
        parse_seconds(self.per, "per")


def parse_count(value: object, name: str, *, least: int) -> int:
    """Return a whole number that is large enough; ConfigurationError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number from {least}, not {snippet(repr(value), 40)}")
    return value


def parse_on_busy(value: str) -> OnBusy:
    """Return the policy; ConfigurationError for another word."""
    match value:
        case "queue" | "reject" | "interrupt":
            return value
        case _:
            raise ConfigurationError(
                f'on_busy must be "queue", "reject" or "interrupt", not {snippet(repr(value), 40)}'
            )


# --- base URL ---------------------------------------------------------------------------------------------------------


def parse_base_url(value: object, *, allow_insecure_http: bool = False) -> str:
    """Return the base URL without its last slashes, ready for a path to follow.

    Raises ConfigurationError for what is no plain http(s) URL and, unless allowed, for `http://` to a public host:
    the key would cross the internet in the clear.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"base_url must be a string, not {type(value).__name__}")
    if not value.isprintable() or " " in value or "\\" in value:
        _refuse(value, "it holds a blank, a backslash or a control character")
    try:
        url = urlsplit(value)
        port = url.port
    except ValueError:
        # The error's own text would quote what may be a password.
        raise ConfigurationError(f"base_url is not a URL: {_shown(value)}") from None
    if url.scheme not in {"http", "https"}:
        _refuse(value, "it must begin with http:// or https://")
    if "@" in url.netloc:
        raise ConfigurationError("base_url holds a user name or password; the key goes into api_key")
    if not url.hostname:
        _refuse(value, "it names no host")
    if port == 0 or url.netloc.endswith(":"):
        _refuse(value, "its port is not usable")
    if "?" in value or "#" in value:
        _refuse(value, "it may have no query and no fragment")
    if url.scheme == "http" and not allow_insecure_http and not _is_private(url.hostname):
        _refuse(value, "http:// would send the key in the clear; use https:// or pass allow_insecure_http=True")
    return value.rstrip("/")


def _refuse(value: str, why: str) -> NoReturn:
    raise ConfigurationError(f"base_url {_shown(value)}: {why}")


def _shown(value: str) -> str:
    # A password or a key in a malformed URL must not come out in the message.
    return snippet(repr(re.sub(r"([?#]).*", r"\1…", without_userinfo(value), flags=re.DOTALL)), 100)


def without_userinfo(url: str) -> str:
    """Return a URL, be it malformed, with stars in the place of a user name and a password."""
    return re.sub(r"^([^/@]*//)?.*@", r"\1***@", url, flags=re.DOTALL)


def _is_private(host: str) -> bool:
    """Whether a name or an address can only be on this machine or in its own network."""
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.lower()
        if name.endswith((".localhost", ".local", ".internal")):
            return True
        # A single label is a name of a container network; a number is an address in disguise (0x08080808).
        return "." not in name and not re.fullmatch(r"[0-9]+|0x[0-9a-f]+", name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_private or address.is_loopback


def parse_endpoint(value: object) -> str:
    """Return the path of the streaming endpoint; ConfigurationError unless it is an absolute path and no more."""
    if not isinstance(value, str) or not re.fullmatch(r"/[A-Za-z0-9._~/-]+", value) or value.startswith("//"):
        raise ConfigurationError(f"endpoint must be a path such as /v1/chat/stream, not {snippet(repr(value), 60)}")
    return value


# The keys have parameters of their own, the server answers an `Origin` with its CORS rules, and the body's headers are
# the transport's.
_RESERVED_HEADERS: Final = frozenset(
    [
        "x-api-key",
        "x-widget-api-key",
        "x-admin-api-key",
        "origin",
        "host",
        "content-length",
        "content-encoding",
        "transfer-encoding",
        "connection",
        "expect",
    ]
)


def parse_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of the headers to add to each request; ConfigurationError for one that cannot be sent."""
    checked: dict[str, str] = {}
    if headers is not None and not isinstance(headers, Mapping):
        raise ConfigurationError(f"headers must be a mapping, not {type(headers).__name__}")
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ConfigurationError(f"{snippet(repr(name), 60)} is no header name")
        if name.lower() in _RESERVED_HEADERS:
            raise ConfigurationError(f"the header {name} is set by the client itself")
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()):
            raise ConfigurationError(f"the value of the header {name} is not printable ASCII")
        checked[name] = value
    return checked
