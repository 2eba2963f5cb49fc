"""What the doctor has seen, and what that means: one line for each check, with what to do. No I/O, no clock."""

from __future__ import annotations

import enum
import ipaddress
from datetime import timedelta
from http import HTTPStatus
from itertools import pairwise
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from aheadless._failures import parse_date
from aheadless._options import parse_base_url
from aheadless.cli.output import ExitCode, exit_code, in_options, one_line
from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    snippet,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

__all__ = [
    "TURN",
    "WAY",
    "Check",
    "Heard",
    "Mark",
    "Security",
    "Visit",
    "failure",
    "judge_clock",
    "judge_connection",
    "judge_health",
    "judge_keep_alive",
    "judge_missing_key",
    "judge_proxies",
    "judge_refusal",
    "judge_reply",
    "judge_security",
    "judge_url",
    "may_ask",
    "skipped",
]

WAY: Final = ("connection", "tls", "health", "keep-alive", "clock")
"""The checks of the way to the server, in the order in which they are told."""

TURN: Final = ("key", "rate limit", "first token", "streaming", "reply")
"""Those of a question and its answer."""

# Who renews by hand wants to hear of it two weeks before; automatic renewal comes a month before.
CERTIFICATE_LEFT: Final = timedelta(days=14)

# A `Date` has whole seconds. What is off by less than two hurts nobody.
CLOCK_OFF: Final = timedelta(seconds=2)

# A person who sees nothing for so long thinks that the bot is broken (platforms.md: silence for 20 s).
SLOW_TOKEN: Final = 10.0

# What one read gives comes within microseconds; the fastest models send a token every two milliseconds.
PIECE_GAP: Final = 0.001

# A reply that was held back arrives within this, even where the machine is busy; forty tokens of a fast model do not.
LUMP: Final = 0.02

# Before that, a reply that comes at once is simply quick: cached, or by an engine without a model.
LEAST_WAIT: Final = 0.3

# Of fewer tokens that come together nobody can say that they were held back.
LEAST_TOKENS: Final = 5

# A proxy that fills a buffer before it passes it on: so many tokens at once, and so long nothing in between.
BLOCK_TOKENS: Final = 16
BLOCK_PAUSE: Final = 0.2

NO_ANSWER: Final = "check host and port; a firewall may drop what is sent there, or no name server may answer"
SET_KEY: Final = "set AHEADLESS_API_KEY to the server's key, or pass --api-key-file"
UNBUFFER: Final = "switch off buffering and compression in the proxy (nginx: proxy_buffering off; gzip off;)"

# The API itself answers with 500, and with 503 where it has no room.
_FROM_A_PROXY: Final = frozenset([HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT])

# The first class that fits counts.
_HEALTH_CURES: Final[tuple[tuple[type[AheadlessError], str], ...]] = (
    (NotFoundError, "check the URL's path: the API begins right below it, and so does /health"),
    (RedirectError, "set the URL to where it redirects to"),
    (ServerError, "look at the log of the server, or of the proxy in front of it"),
    (StatusError, "the API lets everybody ask for its health; a proxy in front of it does not"),
    (RequestTimeoutError, "it takes connections and does not answer: look at the server's log"),
    (ProtocolError, "something else than the API answers there: check the URL"),
    (AheadlessError, "look at the log of the server, or of the proxy in front of it"),
)
_TURN_CURES: Final[tuple[tuple[type[AheadlessError], str], ...]] = (
    (NotFoundError, "check the URL's path: the API begins right below it"),
    (RedirectError, "set the URL to where it redirects to"),
    (RejectedError, "something in between refuses what the API takes: look at its log"),
    (ReplyFailedError, "look at the server's log: its model or its database failed"),
    (ProtocolError, "is this the URL of a Headless chat API, and does nothing in between change its answers?"),
    (RequestTimeoutError, "it fell silent: look at the server's log, and at that of the proxy in front of it"),
    (AheadlessError, "look at the log of the server, and at the time-outs of the proxy in front of it"),
)


class Mark(enum.Enum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@attrs.frozen
class Check:
    """One line of the doctor's."""

    name: str
    mark: Mark
    fact: str
    """What was found, with units."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    code: ExitCode = ExitCode.OK
    """What the command ends with if this is the first failure."""


@attrs.frozen
class Security:
    """What TLS a connection has."""

    version: str
    expires_at: datetime | None
    """When the server's certificate does; aware."""


@attrs.frozen
class Visit:
    """What was seen of one `GET /health`. Durations are seconds."""

    asked_at: datetime
    """By this machine's clock, as `answered_at`; aware."""
    answered_at: datetime
    status: str = ""
    """What the server says of itself."""
    error: AheadlessError | None = None
    address: str | None = None
    """Where the connection leads; None if there was none."""
    reused: bool = False
    connect: float = 0.0
    """Until there was a connection: DNS, TCP, TLS."""
    answer: float = 0.0
    """From the connection to the answer."""
    security: Security | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Of the answer; empty if there was none."""


@attrs.frozen
class Heard:
    """When what of a reply came: seconds from the question on."""

    ended: float
    start: float | None = None
    tokens: tuple[float, ...] = ()
    error: AheadlessError | None = None
    """Why there is no `done`."""
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])

    @property
    def accepted(self) -> bool:
        """Whether the server took the question, and so the key."""
        return self.error is None or self.start is not None or isinstance(self.error, ReplyFailedError)


def failure(name: str, error: AheadlessError, advice: str) -> Check:
    """Return what an error means for a check."""
    fact = in_options(error)
    if isinstance(error, StatusError) and not isinstance(error, RedirectError):
        # Not the whole of a web page, and not its hint: what to do is said here.
        detail = "a web page" if error.detail.startswith("<") else error.detail
        fact = f"{error.status}: {detail}" if detail else f"{error.status}"
    return Check(name, Mark.FAIL, one_line(fact), advice, exit_code(error))


def skipped(names: Iterable[str], why: str) -> list[Check]:
    """Return the checks that cannot be made."""
    return [Check(name, Mark.SKIPPED, why) for name in names]


def _first_fit(cures: tuple[tuple[type[AheadlessError], str], ...], error: AheadlessError) -> str:
    if isinstance(error, ServerError) and error.status in _FROM_A_PROXY:
        return "a proxy answers for a server that does not: see whether that is running, and at the proxy's log"
    return next(advice for kind, advice in cures if isinstance(error, kind))


def duration(seconds: float) -> str:
    """Return a duration as people read it."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


# --- the way to the server --------------------------------------------------------------------------------------------


def judge_url(url: str | None, *, allow_insecure_http: bool) -> Check:
    """Say whether the base URL can be one."""
    if not url:
        return Check("url", Mark.FAIL, "none is given", "pass --url or set AHEADLESS_BASE_URL", ExitCode.USAGE)
    try:
        base = parse_base_url(url, allow_insecure_http=allow_insecure_http)
    except ConfigurationError as exc:
        return failure("url", exc, "correct --url or AHEADLESS_BASE_URL")
    try:
        parse_base_url(url)
    except ConfigurationError:
        return Check("url", Mark.WARN, f"{base}: the key crosses the network in the clear", "use https://")
    path = urlsplit(base).path
    if path.endswith(("/v1", "/chat", "/stream", "/health")):
        return Check("url", Mark.WARN, f"{base} ends with a path of the API", "leave it out: the client adds its own")
    return Check("url", Mark.OK, base)


def judge_connection(visit: Visit, url: str) -> Check:
    """Say whether there is a connection, and where to."""
    match visit.error:
        case ConnectError(permanent=True):  # it came as far as TLS
            return Check("connection", Mark.OK, "there is somebody at this host and port")
        case RequestTimeoutError(phase="connect") as error:
            return failure("connection", error, NO_ANSWER)
        case AheadlessError() as error if visit.address is None:
            return failure("connection", error, _way_in(url))
        case _:
            return Check("connection", Mark.OK, f"{visit.address} after {duration(visit.connect)}")


def _way_in(url: str) -> str:
    advice = "check host and port, that the server runs, and that a firewall lets this machine through"
    if _is_loopback(urlsplit(url).hostname or ""):
        advice = "start the server, or correct the URL; in a container this host is the container itself"
    return advice


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def judge_security(visit: Visit, url: str) -> Check:
    """Say how good the TLS is, for a visit that had a connection."""
    error, security = visit.error, visit.security
    if isinstance(error, ConnectError) and error.permanent:
        advice = "renew the server's certificate, or name its authority in SSL_CERT_FILE or by ChatClient(ssl=...)"
        if "does not speak TLS" in str(error):
            advice = "write http:// in the URL, or switch TLS on in the server"
        return failure("tls", error, advice)
    if security is None:
        return Check("tls", Mark.SKIPPED, f"the URL is {urlsplit(url).scheme}://")
    if security.expires_at is None:
        return Check("tls", Mark.OK, security.version)
    left = security.expires_at - visit.answered_at
    fact = f"{security.version}, certificate valid for {left.days} days more"
    if left < CERTIFICATE_LEFT:
        return Check("tls", Mark.WARN, fact, "renew the server's certificate")
    return Check("tls", Mark.OK, fact)


def judge_health(visit: Visit, url: str) -> Check:
    """Say whether the server is well, for a visit that had a connection."""
    if visit.error is not None:
        return failure("health", visit.error, _cure(visit.error, url))
    fact = f"{one_line(snippet(visit.status))} after {duration(visit.answer)}{_answered_by(visit.headers)}"
    if visit.status != "ok":
        return Check("health", Mark.FAIL, fact, "look at the server's log", ExitCode.SERVER)
    return Check("health", Mark.OK, fact)


def _cure(error: AheadlessError, url: str) -> str:
    advice = _first_fit(_HEALTH_CURES, error)
    if url.startswith("http://") and isinstance(error, ProtocolError | ConnectionLostError):
        return f"is it an https:// address? Otherwise {advice}"
    return advice


def _answered_by(headers: Mapping[str, str]) -> str:
    named = [f"{name}: {one_line(snippet(headers[name], 60))}" for name in ("Server", "Via") if headers.get(name)]
    return "".join(f", {each}" for each in named)


def may_ask(visit: Visit) -> bool:
    """Whether a question has a chance after such a visit. A proxy may let the chat through and nothing else."""
    return visit.error is None or (isinstance(visit.error, StatusError) and not isinstance(visit.error, RedirectError))


def judge_keep_alive(visit: Visit) -> Check:
    """Say whether a second request can use the first one's connection."""
    if not may_ask(visit):
        assert visit.error is not None  # noqa: S101 - what may_ask() says
        return failure("keep-alive", visit.error, "a second request failed after a first one: look at the server's log")
    if visit.reused:
        return Check("keep-alive", Mark.OK, f"the connection is used again, answer after {duration(visit.answer)}")
    fact = f"each request makes a connection of its own ({duration(visit.connect)})"
    return Check("keep-alive", Mark.WARN, fact, "let the server, and the proxy in front of it, keep connections open")


def judge_clock(visit: Visit) -> Check:
    """Say whether this machine and the server have the same time, as far as a `Date` tells."""
    date = parse_date(visit.headers.get("Date", ""))
    if date is None:
        return Check("clock", Mark.SKIPPED, "the answer has no Date")
    if "Age" in visit.headers:
        return Check("clock", Mark.SKIPPED, "the answer comes from a cache, and its Date is an old one")
    # It was written at some moment of that second, between the question and the answer.
    ahead = visit.asked_at - (date + timedelta(seconds=1))
    behind = date - visit.answered_at
    off = max(ahead, behind)
    if off < CLOCK_OFF:
        return Check("clock", Mark.OK, "less than 2 s off the server's")
    fact = f"this machine is {off.total_seconds():.0f} s {'ahead of' if off == ahead else 'behind'} the server"
    return Check("clock", Mark.WARN, fact, "set the clock by NTP; times of the history and of Retry-After are off")


# --- a question and its answer ----------------------------------------------------------------------------------------


def judge_missing_key() -> list[Check]:
    """Say that there is no key to ask with."""
    key = Check("key", Mark.FAIL, "none is given", SET_KEY, ExitCode.USAGE)
    return [key, *skipped(TURN[1:], "key failed")]


def judge_refusal(error: AheadlessError | None, headers: Mapping[str, str]) -> list[Check]:
    """Say what the answer to an empty question tells; None: it was not refused. It is looked at after the key is."""
    rest = skipped(("first token", "streaming", "reply"), "left out by --no-message")
    match error:
        case None | RejectedError(status=400 | 422):
            return [Check("key", Mark.OK, "accepted"), _judge_limit(headers), *rest]
        case AuthenticationError() | RateLimitError():
            return [*_judge_refused(error), *rest]
        case _:
            return [
                failure("key", error, _first_fit(_TURN_CURES, error)),
                *skipped(["rate limit"], "key failed"),
                *rest,
            ]


def judge_reply(heard: Heard) -> list[Check]:
    """Say what a question and what was heard of its answer tell."""
    error = heard.error
    if heard.accepted:
        before = [Check("key", Mark.OK, "accepted"), _judge_limit(heard.headers)]
        return [*before, _judge_first_token(heard), _judge_streaming(heard), _judge_end(heard)]
    match error:
        case AuthenticationError() | RateLimitError():
            return [*_judge_refused(error), *skipped(TURN[2:], "the question was refused")]
        case RequestTimeoutError():
            first = failure("first token", error, "look at the server's log; a slow model needs a longer --timeout")
            return [*skipped(TURN[:2], "no answer tells"), first, *skipped(TURN[3:], "first token failed")]
        case _:
            assert error is not None  # noqa: S101 - what `accepted` says
            return [*skipped(TURN[:4], "the question failed"), failure("reply", error, _first_fit(_TURN_CURES, error))]


def _judge_refused(error: AuthenticationError | RateLimitError) -> list[Check]:
    if isinstance(error, RateLimitError):
        wait = "a minute" if error.retry_after is None else duration(error.retry_after)
        limit = failure("rate limit", error, f"wait {wait}; all programs at this address share the limit")
        return [*skipped(["key"], "the rate limit comes first"), limit]
    by_proxy = error.detail.startswith("<")
    advice = "the API refuses in JSON, so a proxy in front of it did: look at its rules" if by_proxy else SET_KEY
    return [failure("key", error, advice), *skipped(["rate limit"], "key failed")]


def _judge_limit(headers: Mapping[str, str]) -> Check:
    said = {name.lower(): value for name, value in headers.items() if "ratelimit" in name.lower()}
    if not said:
        return Check("rate limit", Mark.OK, "not reached; the server does not say how much is left")
    fact = ", ".join(f"{name}: {one_line(snippet(value, 60))}" for name, value in sorted(said.items())[:5])
    if any(name.endswith("-remaining") and value.strip() == "0" for name, value in said.items()):
        return Check("rate limit", Mark.WARN, fact, "nothing is left in this window: wait until the next")
    return Check("rate limit", Mark.OK, fact)


def _judge_first_token(heard: Heard) -> Check:
    if heard.tokens:
        begun = "" if heard.start is None else f", start after {duration(heard.start)}"
        fact = f"after {duration(heard.tokens[0])}{begun}"
        if heard.tokens[0] > SLOW_TOKEN:
            return Check("first token", Mark.WARN, fact, "the model is slow to begin: show a placeholder meanwhile")
        return Check("first token", Mark.OK, fact)
    if isinstance(heard.error, RequestTimeoutError):
        return failure("first token", heard.error, "the server waits for its model: look at both, or raise --timeout")
    if heard.error is not None:
        return Check("first token", Mark.SKIPPED, "the reply failed before it")
    return Check("first token", Mark.WARN, "none came: the model said nothing", "look at the server's log")


def _judge_streaming(heard: Heard) -> Check:
    """Say whether tokens come as they are made, or together because somebody holds them back."""
    if not heard.tokens:
        return Check("streaming", Mark.SKIPPED, "there are no tokens")
    count, spread = len(heard.tokens), heard.tokens[-1] - heard.tokens[0]
    pauses = [gap for earlier, later in pairwise(heard.tokens) if (gap := later - earlier) > PIECE_GAP]
    pieces = len(pauses) + 1
    fact = f"{_counted(count, 'token')} in {_counted(pieces, 'piece')} over {duration(spread)}"
    if spread <= LUMP:
        return _judge_lump(heard, fact)
    if count >= pieces * BLOCK_TOKENS and sum(pauses) >= len(pauses) * BLOCK_PAUSE:
        return Check("streaming", Mark.WARN, f"{fact}: in blocks, as from a buffer", UNBUFFER + _packed(heard))
    return Check("streaming", Mark.OK, fact)


def _judge_lump(heard: Heard, fact: str) -> Check:
    first = heard.tokens[0]
    if len(heard.tokens) < LEAST_TOKENS:
        return Check("streaming", Mark.SKIPPED, f"{fact}: too few to tell")
    if first < LEAST_WAIT:
        return Check("streaming", Mark.SKIPPED, f"{fact}: too quick to tell")
    # The server says `start` before it asks the model (protocol.md §1): what holds back the tokens holds it back, too.
    since_start = 0.0 if heard.start is None else first - heard.start
    if since_start > LUMP:
        fact = f"{fact}, {duration(since_start)} after start: the reply was made in one piece"
        return Check("streaming", Mark.WARN, fact, "let the server's model stream, and what is between those two")
    fact = f"{fact}, and start with them, after {duration(first)}: the reply was held back"
    return Check("streaming", Mark.WARN, fact, UNBUFFER + _packed(heard))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _packed(heard: Heard) -> str:
    coding = heard.headers.get("Content-Encoding", "identity")
    return "" if coding == "identity" else f"; it is compressed ({one_line(snippet(coding, 20))}), though nobody asked"


def _judge_end(heard: Heard) -> Check:
    match heard.error:
        case None:
            return Check("reply", Mark.OK, f"complete after {duration(heard.ended)}")
        case RequestTimeoutError() if not heard.tokens:
            return Check("reply", Mark.SKIPPED, "first token failed")
        case RequestTimeoutError(phase="total"):
            fact = f"still being written after {duration(heard.ended)}, and not waited for"
            return Check("reply", Mark.WARN, fact, "a longer --timeout waits for it")
        case error:
            return failure("reply", error, _first_fit(_TURN_CURES, error))


# --- this machine -----------------------------------------------------------------------------------------------------


def judge_proxies(variables: Iterable[str], *, connected: bool) -> Check:
    """Say what the environment's proxies mean, of which the names of the variables come in."""
    names = ", ".join(sorted(variables))
    if not names:
        return Check("proxies", Mark.OK, "none in the environment")
    fact = f"{names} set, which aheadless does not use"
    if connected:
        return Check("proxies", Mark.OK, fact)
    return Check("proxies", Mark.WARN, fact, "if this network needs a proxy, pass it: ChatClient(proxy=...)")
