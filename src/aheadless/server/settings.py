"""What a server is told; checked here, before a socket opens."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from aheadless._options import (
    RateLimit,
    Secret,
    parse_count,
    parse_key,
    parse_seconds,
    without_frames,
    without_userinfo,
)
from aheadless.exceptions import ConfigurationError, snippet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aheadless.server.engines import ReplyEngine

__all__ = ["SYSTEM_PROMPT", "ServerSettings", "settings_from_env"]

MIN_KEY_LENGTH: Final = 24  # protocol.md §1
MAX_PORT: Final = 65535
SYSTEM_PROMPT: Final = "You are a helpful assistant. Answer briefly and honestly."
DEFAULT_RATE_LIMIT: Final = RateLimit(30, per=60)  # protocol.md §2
ENGINES: Final = ("answers", "openai", "echo")

Attribute = attrs.Attribute  # shorter, for the many validators


def parse_server_key(value: object, name: str) -> Secret:
    """Return a key that is long enough; ConfigurationError, which does not show it, otherwise."""
    key = parse_key(value, name)
    if len(key.reveal()) < MIN_KEY_LENGTH:
        raise ConfigurationError(f"{name} is weak: it needs at least {MIN_KEY_LENGTH} characters")
    return key


def _chat_key(value: str | Secret | None) -> Secret:
    # A None stays one until __attrs_post_init__ has seen the host.
    return cast("Secret", None if value is None else parse_server_key(value, "api_key"))


def _admin_key(value: str | Secret | None) -> Secret | None:
    return None if value is None else parse_server_key(value, "admin_key")


def _openai_key(value: str | Secret | None) -> Secret | None:
    return None if value is None else parse_key(value, "openai_api_key")


def _origin_tuple(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ConfigurationError("cors_origins must be several texts, not one")
    return tuple(value)


def _seconds(_instance: object, attribute: Attribute[Any], value: object) -> None:
    parse_seconds(value, attribute.name)


def _seconds_or_none_at_all(_instance: object, attribute: Attribute[Any], value: object) -> None:
    if value != 0:
        parse_seconds(value, attribute.name)


def _from(least: int) -> Callable[[object, Attribute[Any], object], None]:
    def check(_instance: object, attribute: Attribute[Any], value: object) -> None:
        parse_count(value, attribute.name, least=least)

    return check


def _is(*kinds: type) -> Callable[[object, Attribute[Any], object], None]:
    def check(_instance: object, attribute: Attribute[Any], value: object) -> None:
        if not isinstance(value, kinds):
            raise ConfigurationError(f"{attribute.name} cannot be {snippet(repr(value), 40)}")

    return check


def _shown_url(value: str | None) -> str:
    return repr(None if value is None else without_userinfo(value))


def _is_file(instance: object, attribute: Attribute[Any], value: object) -> None:
    _is(str, Path)(instance, attribute, value)
    if not value:
        raise ConfigurationError(f"{attribute.name} is empty")


def _is_host(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigurationError("host must be an address or a name")


def _is_port(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if parse_count(value, "port", least=0) > MAX_PORT:
        raise ConfigurationError(f"port is at most {MAX_PORT}, not {value}")


def _is_rate_limit(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if value is not None and not isinstance(value, RateLimit):
        raise ConfigurationError("rate_limit must be a RateLimit or None")


def _are_origins(_instance: object, _attribute: Attribute[Any], value: tuple[object, ...]) -> None:
    for origin in value:
        if not isinstance(origin, str) or not origin.startswith(("http://", "https://")) or origin.count("/") > 2:  # noqa: PLR2004
            raise ConfigurationError(f"{snippet(repr(origin), 60)} is no origin such as https://example.org")


def _is_engine(_instance: object, _attribute: Attribute[Any], value: object) -> None:
    if value in ENGINES or callable(getattr(value, "reply", None)):
        return
    raise ConfigurationError(
        f'engine must be "answers", "openai", "echo" or have a reply method; got {snippet(repr(value), 40)}'
    )


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of a server.

    Without an `api_key` one is made, on loopback only: it is then in :attr:`api_key`. Raises ConfigurationError for a
    weak key, for another address without a key, and for whatever else cannot work.
    """

    host: str = attrs.field(default="127.0.0.1", validator=_is_host)
    port: int = attrs.field(default=4000, validator=_is_port)
    """0: any free one."""
    api_key: Secret = attrs.field(default=None, converter=_chat_key)
    """At least 24 characters; text is accepted too."""
    admin_key: Secret | None = attrs.field(default=None, converter=_admin_key)
    """Without one the admin routes answer 503."""
    engine: str | ReplyEngine = attrs.field(default="answers", validator=_is_engine)
    """"answers", "openai", "echo", or an object with a `reply` method. It is closed with the server, if it can be."""
    database: str | Path = attrs.field(default=":memory:", validator=_is_file)
    """The SQLite file that keeps the conversations; by default they end with the server."""
    rate_limit: RateLimit | None = attrs.field(default=DEFAULT_RATE_LIMIT, validator=_is_rate_limit)
    """For each client address; None: off."""
    trusted_proxies: int = attrs.field(default=0, validator=_from(0))
    """How many proxies of yours stand in front: that many entries of `X-Forwarded-For` are believed, from the right."""
    cors_origins: tuple[str, ...] = attrs.field(default=(), converter=_origin_tuple, validator=_are_origins)
    """The origins whose pages may call the API; a request with another `Origin` is refused."""
    production: bool = attrs.field(default=False, validator=_is(bool))
    """Add HSTS to every answer, and leave the details out of a refusal."""
    max_replies: int = attrs.field(default=1000, validator=_from(1))
    """How many replies may be written at once; a request beyond them gets a 503."""
    reply_timeout: float = attrs.field(default=300.0, validator=_seconds)
    """Seconds after which a reply that is not finished fails."""
    shutdown_timeout: float = attrs.field(default=10.0, validator=_seconds)
    """Seconds that running replies get to finish when the server stops."""
    answers_folder: str | Path | None = attrs.field(default=None, validator=_is(str, Path, NoneType))
    """The Markdown that the "answers" engine answers from; None: the documentation of aheadless."""
    answers_delay: float = attrs.field(default=0.0, validator=_seconds_or_none_at_all)
    """Seconds between two words of the "answers" engine."""
    openai_base_url: str | None = attrs.field(default=None, validator=_is(str, NoneType), repr=_shown_url)
    """Of an OpenAI-compatible API, as in "http://127.0.0.1:11434/v1"; None: OpenAI's own."""
    openai_api_key: Secret | None = attrs.field(default=None, converter=_openai_key)
    """Text is accepted too; None: none is sent."""
    openai_model: str | None = attrs.field(default=None, validator=_is(str, NoneType))
    """Needed by the "openai" engine."""
    system_prompt: str = attrs.field(default=SYSTEM_PROMPT, validator=_is(str))
    """What the "openai" engine tells the model first."""
    key_was_made: bool = attrs.field(default=False, init=False)
    """Whether :attr:`api_key` was made here."""

    def __attrs_post_init__(self) -> None:
        if self.api_key is None:
            if not _is_loopback(self.host):
                raise ConfigurationError(
                    f"a server on {snippet(self.host)} needs an api_key; only loopback goes without"
                )
            object.__setattr__(self, "api_key", Secret(secrets.token_urlsafe(MIN_KEY_LENGTH)))
            object.__setattr__(self, "key_was_made", True)
        if self.admin_key is not None and self.admin_key == self.api_key:
            raise ConfigurationError("admin_key and api_key are the same; whoever may chat could read everything")

    @classmethod
    @without_frames
    def from_env(cls, **given: Any) -> ServerSettings:  # noqa: ANN401 - the fields of this class, each of its own type
        """Return the settings from the environment, with those that are given in their place (None: not given).

        An empty variable counts as not set; the first one that is set counts. ConfigurationError names the variable
        that cannot be used, and never shows a key.

        =================== ====================================================================
        setting             variables
        =================== ====================================================================
        `host`, `port`      AHEADLESS_HOST, AHEADLESS_PORT
        `api_key`           AHEADLESS_API_KEY, WIDGET_API_KEY
        `admin_key`         AHEADLESS_ADMIN_KEY, ADMIN_API_KEY
        `engine`            AHEADLESS_ENGINE: answers, openai or echo
        `database`          AHEADLESS_DATABASE: a file
        `rate_limit`        AHEADLESS_RATE_LIMIT: 30/60 for 30 requests in 60 s; off
        `trusted_proxies`   AHEADLESS_TRUSTED_PROXIES
        `cors_origins`      AHEADLESS_CORS_ORIGINS: with commas between them
        `production`        AHEADLESS_PRODUCTION: 1 or 0, true or false, yes or no
        `max_replies`       AHEADLESS_MAX_REPLIES
        `reply_timeout`     AHEADLESS_REPLY_TIMEOUT: seconds
        `shutdown_timeout`  AHEADLESS_SHUTDOWN_TIMEOUT: seconds
        `answers_folder`    AHEADLESS_ANSWERS_FOLDER
        `answers_delay`     AHEADLESS_ANSWERS_DELAY: seconds
        `openai_base_url`   AHEADLESS_OPENAI_BASE_URL, OPENAI_BASE_URL
        `openai_api_key`    AHEADLESS_OPENAI_API_KEY, OPENAI_API_KEY
        `openai_model`      AHEADLESS_OPENAI_MODEL, OPENAI_MODEL
        `system_prompt`     AHEADLESS_SYSTEM_PROMPT
        =================== ====================================================================
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**settings_from_env(os.environ, without=chosen), **chosen})


# attrs writes this one, so it cannot be decorated in its place.
ServerSettings.__init__ = without_frames(ServerSettings.__init__)  # type: ignore[method-assign]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _flag(text: str) -> bool:
    try:
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
    except KeyError:
        raise ConfigurationError("it is neither yes nor no") from None


def _origins(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (origin.strip() for origin in text.split(","))))


def _rate_limit(text: str) -> RateLimit | None:
    if text.lower() in {"off", "none"}:
        return None
    limit, _, per = text.partition("/")
    return RateLimit(int(limit), per=float(per or 60))


# Setting: the variables that can give it, the first that is set counts; and how its text is read.
_VARIABLES: Final[dict[str, tuple[tuple[str, ...], Callable[[str], object]]]] = {
    "host": (("AHEADLESS_HOST",), str),
    "port": (("AHEADLESS_PORT",), int),
    "api_key": (("AHEADLESS_API_KEY", "WIDGET_API_KEY"), _chat_key),
    "admin_key": (("AHEADLESS_ADMIN_KEY", "ADMIN_API_KEY"), _admin_key),
    "engine": (("AHEADLESS_ENGINE",), str),
    "database": (("AHEADLESS_DATABASE",), str),
    "rate_limit": (("AHEADLESS_RATE_LIMIT",), _rate_limit),
    "trusted_proxies": (("AHEADLESS_TRUSTED_PROXIES",), int),
    "cors_origins": (("AHEADLESS_CORS_ORIGINS",), _origins),
    "production": (("AHEADLESS_PRODUCTION",), _flag),
    "max_replies": (("AHEADLESS_MAX_REPLIES",), int),
    "reply_timeout": (("AHEADLESS_REPLY_TIMEOUT",), float),
    "shutdown_timeout": (("AHEADLESS_SHUTDOWN_TIMEOUT",), float),
    "answers_folder": (("AHEADLESS_ANSWERS_FOLDER",), str),
    "answers_delay": (("AHEADLESS_ANSWERS_DELAY",), float),
    "openai_base_url": (("AHEADLESS_OPENAI_BASE_URL", "OPENAI_BASE_URL"), str),
    "openai_api_key": (("AHEADLESS_OPENAI_API_KEY", "OPENAI_API_KEY"), _openai_key),
    "openai_model": (("AHEADLESS_OPENAI_MODEL", "OPENAI_MODEL"), str),
    "system_prompt": (("AHEADLESS_SYSTEM_PROMPT",), str),
}


@without_frames
def settings_from_env(environ: Mapping[str, str], *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings that the environment gives; ConfigurationError names the variable that cannot be used.

    Variables of the settings in `without` are not looked at.
    """
    settings: dict[str, Any] = {}
    for setting in _VARIABLES.keys() - set(without):
        variables, read = _VARIABLES[setting]
        variable = next((name for name in variables if environ.get(name)), None)
        if variable is not None:
            settings[setting] = _read(setting, variable, environ[variable], read)
    return settings


def _read(setting: str, variable: str, text: str, read: Callable[[str], object]) -> object:
    """Return the value of a setting, checked as the class would check it, so that the error names the variable."""
    field: Attribute[Any] = attrs.fields_dict(ServerSettings)[setting]
    try:
        value = read(text)
        if field.validator is not None:
            field.validator(None, field, value)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{variable}: {exc}") from None
    except ValueError:
        raise ConfigurationError(f"{variable}: it is no number") from None
    return value
