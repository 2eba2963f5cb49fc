"""What a server is told; checked here, before a socket opens."""

from __future__ import annotations

import ipaddress
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs

from aheadless._options import RateLimit, Secret, parse_count, parse_key, parse_seconds
from aheadless.exceptions import ConfigurationError, snippet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aheadless.server.engines import ReplyEngine

__all__ = ["ServerSettings", "settings_from_env"]

MIN_KEY_LENGTH: Final = 24  # protocol.md §1
MIN_KEY_VARIETY: Final = 8  # different characters; a key made by hand out of fewer is a pattern
MAX_PORT: Final = 65535
SYSTEM_PROMPT: Final = "You are a helpful assistant. Answer briefly and honestly."


def _parse_optional_key(value: object, name: str) -> Secret | None:
    if value is None:
        return None
    key = parse_key(value, name)
    text = key.reveal()
    if len(text) < MIN_KEY_LENGTH:
        raise ConfigurationError(f"{name} is weak: it needs at least {MIN_KEY_LENGTH} characters")
    if len(set(text)) < MIN_KEY_VARIETY:
        raise ConfigurationError(f"{name} is weak: it needs at least {MIN_KEY_VARIETY} different characters")
    return key


def _seconds(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    parse_seconds(value, attribute.name)


def _chat_key(value: str | Secret | None) -> Secret:
    # A None stays one until __attrs_post_init__ has seen the host.
    return cast("Secret", _parse_optional_key(value, "api_key"))


def _admin_key(value: str | Secret | None) -> Secret | None:
    return _parse_optional_key(value, "admin_key")


def _openai_key(value: str | Secret | None) -> Secret | None:
    return None if value is None else parse_key(value, "openai_api_key")


@attrs.frozen(kw_only=True)
class ServerSettings:
    """The settings of a server.

    Without an `api_key` one is made, on loopback only: it is then in :attr:`api_key`. Raises ConfigurationError for a
    weak key, for another address without a key, and for whatever else cannot work.
    """

    host: str = "127.0.0.1"
    port: int = 4000
    """0: any free one."""
    api_key: Secret = attrs.field(default=None, converter=_chat_key)
    """At least 24 characters; text is accepted too."""
    admin_key: Secret | None = attrs.field(default=None, converter=_admin_key)
    """Without one the admin routes answer 503."""
    engine: str | ReplyEngine = "answers"
    """"answers", "openai", "echo", or an object with a `reply` method."""
    database: str | Path = ":memory:"
    """The SQLite file that keeps the conversations."""
    rate_limit: RateLimit | None = RateLimit(30, per=60)
    """For each client address; None: off."""
    trusted_proxies: int = 0
    """How many proxies of yours stand in front: that many entries of `X-Forwarded-For` are believed, from the right."""
    cors_origins: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    """The origins whose pages may call the API; a request with another `Origin` is refused."""
    production: bool = False
    """Add HSTS to every answer, and leave the details out of a refusal."""
    max_replies: int = 1000
    """How many replies may be written at once; a request beyond them gets a 503."""
    reply_timeout: float = attrs.field(default=300.0, validator=_seconds)
    """Seconds after which a reply that is not finished fails."""
    shutdown_timeout: float = attrs.field(default=10.0, validator=_seconds)
    """Seconds that running replies get to finish when the server stops."""
    answers_folder: str | Path | None = None
    """The Markdown that the "answers" engine answers from; None: the documentation of aheadless."""
    answers_delay: float = 0.0
    """Seconds between two words of the "answers" engine."""
    openai_base_url: str | None = None
    """Of an OpenAI-compatible API, as in "http://127.0.0.1:11434/v1"."""
    openai_api_key: Secret | None = attrs.field(default=None, converter=_openai_key)
    openai_model: str | None = None
    system_prompt: str = SYSTEM_PROMPT
    """What the "openai" engine tells the model first."""
    key_was_made: bool = attrs.field(default=False, init=False)
    """Whether :attr:`api_key` was made here."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise ConfigurationError("host is empty")
        if parse_count(self.port, "port", least=0) > MAX_PORT:
            raise ConfigurationError(f"port is at most {MAX_PORT}, not {self.port}")
        parse_count(self.trusted_proxies, "trusted_proxies", least=0)
        parse_count(self.max_replies, "max_replies", least=1)
        if self.answers_delay:
            parse_seconds(self.answers_delay, "answers_delay")
        if self.rate_limit is not None and not isinstance(self.rate_limit, RateLimit):
            raise ConfigurationError("rate_limit must be a RateLimit or None")
        for origin in self.cors_origins:
            if not isinstance(origin, str) or not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise ConfigurationError(f"{snippet(repr(origin), 60)} is no origin such as https://example.org")
        if isinstance(self.engine, str) and self.engine not in {"answers", "openai", "echo"}:
            raise ConfigurationError(f'engine must be "answers", "openai" or "echo", not {snippet(repr(self.engine), 40)}')
        if self.api_key is None:
            if not _is_loopback(self.host):
                raise ConfigurationError(f"a server on {snippet(self.host)} needs an api_key; only loopback goes without")
            object.__setattr__(self, "api_key", Secret(secrets.token_urlsafe(MIN_KEY_LENGTH)))
            object.__setattr__(self, "key_was_made", True)
        if self.admin_key is not None and self.admin_key == self.api_key:
            raise ConfigurationError("admin_key and api_key are the same; whoever may chat could read everything")

    @classmethod
    def from_env(cls, **given: Any) -> ServerSettings:
        """Return the settings from the environment, with those that are given in their place (None: not given)."""
        return cls(**{**settings_from_env(os.environ), **{key: value for key, value in given.items() if value is not None}})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _whole(text: str) -> int:
    return int(text)


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]


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
    "port": (("AHEADLESS_PORT",), _whole),
    "api_key": (("AHEADLESS_API_KEY", "WIDGET_API_KEY"), str),
    "admin_key": (("AHEADLESS_ADMIN_KEY", "ADMIN_API_KEY"), str),
    "engine": (("AHEADLESS_ENGINE",), str),
    "database": (("AHEADLESS_DATABASE",), str),
    "rate_limit": (("AHEADLESS_RATE_LIMIT",), _rate_limit),
    "trusted_proxies": (("AHEADLESS_TRUSTED_PROXIES",), _whole),
    "cors_origins": (("AHEADLESS_CORS_ORIGINS",), _origins),
    "production": (("AHEADLESS_PRODUCTION",), _flag),
    "answers_folder": (("AHEADLESS_ANSWERS_FOLDER",), str),
    "openai_base_url": (("AHEADLESS_OPENAI_BASE_URL", "OPENAI_BASE_URL"), str),
    "openai_api_key": (("AHEADLESS_OPENAI_API_KEY", "OPENAI_API_KEY"), str),
    "openai_model": (("AHEADLESS_OPENAI_MODEL", "OPENAI_MODEL"), str),
    "system_prompt": (("AHEADLESS_SYSTEM_PROMPT",), str),
}


def settings_from_env(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that the environment gives; ConfigurationError names the variable that cannot be read."""
    settings: dict[str, Any] = {}
    for setting, (variables, read) in _VARIABLES.items():
        variable = next((name for name in variables if environ.get(name)), None)
        if variable is not None:
            try:
                settings[setting] = read(environ[variable])
            except (ValueError, KeyError):
                raise ConfigurationError(f"the environment's {variable} cannot be read as {setting}") from None
    return settings
