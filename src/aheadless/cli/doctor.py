"""What lies between this program and an API: each check is made as the client itself goes, and told in one line."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import secrets
import ssl
from datetime import datetime, timezone
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from aheadless import AheadlessError, ConfigurationError, Start, Timeouts, Token, __version__
from aheadless._options import parse_seconds
from aheadless.cli.output import ExitCode, visible_json
from aheadless.cli.process import write
from aheadless.cli.terminal import run, thinking
from aheadless.cli.verdicts import (
    TURN,
    WAY,
    Check,
    Heard,
    Mark,
    Security,
    Visit,
    failure,
    judge_clock,
    judge_connection,
    judge_health,
    judge_keep_alive,
    judge_missing_key,
    judge_proxies,
    judge_refusal,
    judge_reply,
    judge_security,
    judge_url,
    may_ask,
    skipped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from aheadless import ChatClient
    from aheadless._core import Core
    from aheadless._http import Key

__all__ = ["doctor"]

# Answers that need no model are there in no time; what takes longer than this is broken.
HEALTH_TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 5.0

# Long enough for an answer of several tokens, short enough to stay below a proxy's buffer of 4 KiB; an engine that only
# repeats it makes several tokens as well.
MESSAGE: Final = "This is aheadless doctor, which tries the connection. Please count from one to twenty, in words."

PROXY_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")

# The longest name, and a blank.
NAME_WIDTH: Final = 13


def doctor(
    url: str | None,
    open_client: Callable[[Timeouts], ChatClient],
    *,
    allow_insecure_http: bool,
    timeout: float,
    with_message: bool,
    as_json: bool,
) -> int:
    """Make all checks and write a line for each as it is made, or one JSON object; return the first failure's code.

    No step waits without a limit: 5 s for a connection, 10 s for an answer without a model, twice `timeout` for the
    reply. Raises ConfigurationError unless `timeout` is a positive number of seconds. If cancelled, the connection is
    closed; the server may have stored the message.
    """
    parse_seconds(timeout, "--timeout")
    timeouts = Timeouts(
        connect=CONNECT_TIMEOUT, first_token=timeout, idle=timeout, total=2 * timeout, send=HEALTH_TIMEOUT
    )

    async def work() -> int:
        report = _Report(as_json=as_json)
        address = judge_url(url, allow_insecure_http=allow_insecure_http)
        report.add(address)
        connected = True  # unless it was tried in vain
        if address.mark is Mark.FAIL:
            report.add(*skipped([*WAY, *TURN], "url failed"))
        else:
            connected = await _examine(lambda: open_client(timeouts), report, with_message=with_message)
        report.add(judge_proxies(filter(os.environ.get, PROXY_VARIABLES), connected=connected), _versions())
        report.end()
        return report.code

    return run(work())


class _Report:
    """The checks that were made, written as they come unless they are to be one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._checks: list[Check] = []

    @property
    def code(self) -> ExitCode:
        """What the first failure ends the command with."""
        return next((check.code for check in self._checks if check.mark is Mark.FAIL), ExitCode.OK)

    def add(self, *checks: Check) -> None:
        """Take the next checks."""
        self._checks += checks
        if not self._as_json:
            write("".join(map(_line, checks)))

    def end(self) -> None:
        """Write what is written at the end."""
        if self._as_json:
            told = {"exitCode": self.code, "checks": [_as_json(check) for check in self._checks]}
            write(visible_json(json.dumps(told, ensure_ascii=False)) + "\n")


def _line(check: Check) -> str:
    told = f"{check.fact} -> {check.advice}" if check.advice else check.fact
    return f"{check.mark.value:<8} {check.name:<{NAME_WIDTH}}{told}\n"


def _as_json(check: Check) -> dict[str, Any]:
    return {"name": check.name, "mark": check.mark.value, "fact": check.fact, "advice": check.advice}


async def _examine(open_client: Callable[[], ChatClient], report: _Report, *, with_message: bool) -> bool:
    """Make the checks that need a client; return whether a connection was not tried in vain."""
    try:
        client = open_client()
    except ConfigurationError as exc:
        # The URL is one, so it is a key that cannot be used.
        report.add(*skipped(WAY, "key failed"))
        report.add(failure("key", exc, "correct the key"), *skipped(TURN[1:], "key failed"))
        return True
    core = client._core  # noqa: SLF001 - what of it is needed here is of no use to users
    async with client:
        witness = core.transport.observer = _Witness()
        visit = await _ask_health(client, witness)
        failed = await _check_way(client, witness, visit, report)
        if failed is not None:
            report.add(*skipped(TURN, f"{failed} failed"))
        elif core.chat_key is None:
            report.add(*judge_missing_key())
        elif with_message:
            report.add(*judge_reply(await _ask(client, witness)))
        else:
            report.add(*judge_refusal(await _ask_nothing(core, core.chat_key), witness.headers))
    return visit.address is not None


async def _check_way(client: ChatClient, witness: _Witness, visit: Visit, report: _Report) -> str | None:
    """Make the checks of the way; return the name of the one after which nothing can be asked."""
    url = client.base_url
    checks = [judge_connection(visit, url)]
    for judge in (judge_security, judge_health):
        if checks[-1].mark is not Mark.FAIL:
            checks.append(judge(visit, url))
    report.add(*checks)
    if not may_ask(visit):
        report.add(*skipped(WAY[len(checks) :], f"{checks[-1].name} failed"))
        return checks[-1].name
    second = await _ask_health(client, witness)
    kept = judge_keep_alive(second)
    if not may_ask(second):
        report.add(kept, *skipped(["clock"], f"{kept.name} failed"))
        return kept.name
    report.add(kept, judge_clock(second))
    return None


async def _ask_health(client: ChatClient, witness: _Witness) -> Visit:
    asked_at, begun = _now(), witness.begin()
    status, error = "", None
    try:
        status = (await client.health()).status
    except AheadlessError as exc:
        error = exc
    connected, answered = witness.connected_at or begun, witness.answered_at or begun
    return Visit(
        asked_at=asked_at,
        answered_at=_now(),
        status=status,
        error=error,
        address=witness.address,
        reused=witness.reused,
        connect=connected - begun,
        answer=answered - connected,
        security=witness.security,
        headers=witness.headers,
    )


async def _ask(client: ChatClient, witness: _Witness) -> Heard:
    """Ask a question that says whose it is, in a session that nobody else has."""
    begun = witness.begin()
    start: float | None = None
    tokens: list[float] = []
    error: AheadlessError | None = None
    loop = asyncio.get_running_loop()
    with thinking():
        try:
            async for event in client.chat(f"aheadless-doctor:{secrets.token_hex(8)}").stream(MESSAGE):
                match event:
                    case Start():
                        start = loop.time() - begun
                    case Token():
                        tokens.append(loop.time() - begun)
                    case _:
                        pass
        except AheadlessError as exc:
            error = exc
    return Heard(loop.time() - begun, start, tuple(tokens), error, witness.headers)


async def _ask_nothing(core: Core, key: Key) -> AheadlessError | None:
    """Send a question that is none; return how it was refused. The server stores nothing and asks no model."""
    try:
        await core.transport.post(
            core.endpoint, b"{}", key, timeouts=core.timeouts, on_news=lambda _delivery, _connect: None
        )
    except AheadlessError as exc:
        return exc
    return None


class _Witness:
    """Sees of the last request what its answer does not tell."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> float:
        """Forget what was seen; return the loop's time."""
        self.connected_at: float | None = None
        self.answered_at: float | None = None
        self.address: str | None = None
        self.reused = False
        self.security: Security | None = None
        self.headers: Mapping[str, str] = {}
        return asyncio.get_running_loop().time()

    def connected(self, connection: asyncio.BaseTransport, *, reused: bool) -> None:
        """Note which connection the request gets."""
        self.connected_at = asyncio.get_running_loop().time()
        self.reused = reused
        self.address = _address(connection.get_extra_info("peername"))
        tls: ssl.SSLObject | None = connection.get_extra_info("ssl_object")
        self.security = None if tls is None else Security(tls.version() or "TLS", _expiry(tls))

    def answered(self, headers: Mapping[str, str]) -> None:
        """Note the answer's headers."""
        self.answered_at = asyncio.get_running_loop().time()
        self.headers = headers


def _address(peer: tuple[Any, ...] | None) -> str:
    if peer is None:
        return "somebody who has hung up"  # before the system could tell who
    host, port, *_ = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _expiry(tls: ssl.SSLObject) -> datetime | None:
    until = (tls.getpeercert() or {}).get("notAfter")
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(until), timezone.utc) if isinstance(until, str) else None


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _versions() -> Check:
    extras = ", ".join(_extras()) or "none"
    told = f"aheadless {__version__}, Python {platform.python_version()}, aiohttp {metadata.version('aiohttp')}"
    return Check("versions", Mark.OK, f"{told}; extras: {extras}")


def _extras() -> Iterable[str]:
    """Return the extras of which everything is installed, as far as this installation knows of its extras."""
    needed: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("aheadless") or []
    except metadata.PackageNotFoundError:  # run from its source
        return []
    for requirement in requirements:
        if found := re.match(r"([\w.-]+)[^;]*;.*\bextra == ['\"]([\w-]+)['\"]", requirement):
            needed.setdefault(found[2], []).append(found[1])
    return [extra for extra, names in sorted(needed.items()) if all(map(_is_installed, names))]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
