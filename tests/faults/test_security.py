"""Guarantees 87 to 95: the key, cookies, proxies, foreign text, and what a client may tell our server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import hmac
import io
import logging
import pickle
import ssl
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from aheadless import (
    AheadlessError,
    ChatClient,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    Message,
    RateLimit,
    RedirectError,
    Retry,
    Secret,
    StatusError,
    Timeouts,
)
from aheadless.exceptions import SNIPPET_LIMIT
from aheadless.protocol.events import Failure
from aheadless.server import EchoEngine, RunningServer, ServerSettings, checks, run_server
from aheadless.server.answers import error_page
from aheadless.server.api import API
from aheadless.server.app import _create_app
from aheadless.server.limiter import MAX_CLIENTS, WindowLimiter
from aheadless.testing import Script, ScriptedServer, events, gzipped, head, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.server import wire
from tests.support import ADMIN_KEY, KEY
from tests.test_stream import FIRST, HELLO

URL = "http://127.0.0.1:4000"
SHORT = Timeouts(first_token=0.05, idle=0.05, send=0.05)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and all that led to it, causes and contexts both."""
    found: dict[int, BaseException] = {}
    waiting = [error]
    while waiting:
        item = waiting.pop()
        if item is not None and id(item) not in found:
            found[id(item)] = item
            waiting += [item.__cause__, item.__context__, *getattr(item, "exceptions", ())]
    yield from found.values()


def told_by(error: BaseException) -> str:
    """Return all that an error shows to whoever prints it, logs it, pickles it, or sends it to a crash reporter."""
    told = io.StringIO()
    for item in chain(error):
        told.write(f"{item} {item!r} {item.args!r} {item.__dict__!r} {getattr(item, '__notes__', '')}\n")
        told.writelines(traceback.TracebackException.from_exception(item, capture_locals=True).format())
        if isinstance(item, AheadlessError):
            told.write(repr(pickle.dumps(item)))
            told.write(repr(copy.copy(item).__dict__))
    return told.getvalue()


def told_by_all_that_it_holds(thing: object) -> str:
    """Return the reprs of an object and of all objects of ours that can be reached from it, but for the secrets."""
    told, found, waiting = io.StringIO(), {0}, [thing]
    while waiting:
        item = waiting.pop()
        if id(item) in found or isinstance(item, type | Secret):
            continue
        found.add(id(item))
        if type(item).__module__.startswith("aheadless"):
            told.write(f"{item!r}\n")
            waiting += gc.get_referents(item)
        elif isinstance(item, dict | list | tuple | set):
            waiting += gc.get_referents(item)
    return told.getvalue()


# --- 87: the key ------------------------------------------------------------------------------------------------------

SILENT = {
    "closed": Script(end="fin"),
    "reset": Script(end="rst"),
    "silence": Script(end="stall"),
    "half a head": Script(FIRST[:30], end="fin"),
    "no HTTP": Script(b"HELLO\r\n\r\n", end="fin"),
    "401": Script(json_answer({"error": "no"}, status=401)),
    "404": Script(json_answer({"error": "no"}, status=404)),
    "429": Script(json_answer({"error": "no"}, status=429)),
    "500": Script(json_answer({"error": "no"}, status=500)),
    "redirect": Script(json_answer("", status=302, headers={"Location": "http://evil.example/"})),
    "web page": Script(json_answer("<h1>Log in</h1>")),
    "empty": Script(head(204)),
    "cut": Script(FIRST, end="fin"),
    "cut by a reset": Script(FIRST, end="rst"),
    "stalled": Script(FIRST, end="stall"),
    "no chunk": Script(FIRST + b"zz\r\n", end="fin"),
    "no gzip": Script(stream_answer([b"oops"], headers={"Content-Encoding": "gzip"})),
    "cut gzip": Script(stream_answer([gzipped(b"oops")[:-5]], headers={"Content-Encoding": "gzip"})),
    "no JSON": Script(stream_answer([b"oops\n"])),
    "error event": Script(stream_answer([*HELLO[:1], Failure("no")])),
}
# A server that prints what it was sent, as a page for developers does, or one that wants the key to be logged.
ECHO = f"POST /v1/chat/stream HTTP/1.1\r\nx-api-key: {KEY}\r\n\r\n"
QUOTING = {
    "401": Script(json_answer({"error": f"wrong key: {KEY}"}, status=401)),
    "401, cut within the key": Script(json_answer({"error": "x" * (SNIPPET_LIMIT - 10) + KEY}, status=401)),
    "401 with all that was sent": Script(json_answer({"headers": {"x-api-key": KEY}}, status=401)),
    "403 page": Script(json_answer(ECHO, status=403)),
    "429": Script(json_answer({"error": KEY}, status=429, headers={"Retry-After": KEY})),
    "redirect": Script(json_answer("", status=302, headers={"Location": f"http://evil.example/?key={KEY}"})),
    "web page": Script(json_answer(ECHO)),
    "999": Script(head(999, {"Content-Length": str(len(KEY))}) + KEY.encode()),
    "all that was sent": Script(ECHO.encode(), end="fin"),
    "status": Script(f"HTTP/1.1 {KEY} OK\r\n\r\n".encode(), end="fin"),
    "header": Script(f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n".encode(), end="fin"),
    "chunk": Script(FIRST + f"{KEY}\r\n".encode(), end="fin"),
    "line": Script(stream_answer([ECHO.encode()])),
    "type": Script(stream_answer([f'{{"type":["{KEY}"]}}\n'.encode()])),
    "error event": Script(stream_answer([*HELLO[:1], Failure(f"wrong key: {KEY}")])),
}


@pytest.mark.parametrize("fault", SILENT)
@pytest.mark.parametrize("how", ["stream", "send", "admin"])
async def test_key_is_in_no_failure(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture, fault: str, how: str
) -> None:
    """However a request fails: no error of its chain, no local of any frame, no log line and no repr shows the key."""
    watch_all_logs(caplog)
    scripted.add(SILENT[fault])
    stalls = SILENT[fault].end == "stall"
    timeouts = SHORT if stalls else None
    client = make_client(scripted.url, admin_key=KEY, headers={"Authorization": f"Bearer {KEY}"}, timeouts=timeouts)
    chat = client.chat("s")

    error = await failure(client, how)

    assert lines_with_key(told_by(error)) == []
    assert lines_with_key(caplog.text) == []
    assert lines_with_key(told_by_all_that_it_holds(client) + told_by_all_that_it_holds(chat)) == []
    assert scripted.requests or stalls  # on a busy machine our patience may end before the server has read anything
    for request in scripted.requests:
        assert request.header("x-admin-api-key" if how == "admin" else "x-api-key") == KEY
        assert request.header("authorization") == f"Bearer {KEY}"


@pytest.mark.parametrize("fault", QUOTING)
@pytest.mark.parametrize("how", ["stream", "send", "admin"])
async def test_key_that_the_server_quotes(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture, fault: str, how: str
) -> None:
    """Then the error's message and all that is on it, and the logs, have stars in its place."""
    watch_all_logs(caplog)
    scripted.add(QUOTING[fault])
    client = make_client(scripted.url, admin_key=KEY)

    error = await failure(client, how)

    assert lines_with_key("".join(traceback.format_exception(error))) == []
    assert lines_with_key(f"{error!r} {error.args} {error.__dict__} {pickle.dumps(error)!r}") == []
    assert lines_with_key(caplog.text) == []


async def failure(client: ChatClient, how: str) -> AheadlessError:
    with pytest.raises(AheadlessError) as caught:
        if how == "admin":
            await client.admin.conversations()
        else:
            await getattr(client.chat("s"), how)("Hi")
    return caught.value


def lines_with_key(text: str) -> list[str]:
    """Return where a text shows the key, or enough of it to be of use."""
    return [line for line in text.splitlines() if KEY[:8] in line]


def watch_all_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Log everything: each step of the event loop, and whatever aiohttp has to say."""
    caplog.set_level(logging.DEBUG)
    for name in ("asyncio", "aiohttp", "aiohttp.client", "aiohttp.internal", "aiohttp.server", "aheadless"):
        caplog.set_level(logging.DEBUG, name)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0


async def test_key_is_not_in_the_frames_of_a_cancel(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A CancelledError comes through aiohttp's own frames, before the answer and within it."""
    watch_all_logs(caplog)
    client = make_client(scripted.url, headers={"Authorization": f"Bearer {KEY}"})
    for number, script in enumerate([Script(end="stall"), Script(FIRST, end="stall")]):
        scripted.add(script)
        task = asyncio.create_task(client.chat(f"s{number}").stream("Hi").reply())
        await scripted.arrived(number + 1)
        while number and not client.chat("s1").conversation_id and not client._core.live:
            await asyncio.sleep(0)
        task.cancel()

        with pytest.raises(asyncio.CancelledError) as caught:
            await task

        assert lines_with_key(told_by(caught.value)) == []
    assert lines_with_key(caplog.text) == []


WRONG: dict[str, Callable[[], object]] = {
    "blank": lambda: ChatClient(URL, api_key=KEY + " "),
    "newline": lambda: ChatClient(URL, api_key=f"{KEY}\n"),
    "not ASCII": lambda: ChatClient(URL, api_key=f"{KEY}é"),
    "bytes": lambda: ChatClient(URL, api_key=KEY.encode()),  # type: ignore[arg-type]
    "admin key": lambda: ChatClient(URL, api_key=KEY, admin_key=f"{KEY}\n"),
    "another setting": lambda: ChatClient("ftp://example.org", api_key=KEY, admin_key=KEY),
    "key as an address": lambda: ChatClient(f"http://{KEY}@example.org", api_key=KEY),
    "weak": lambda: ServerSettings(api_key=KEY[:12]),
    "both the same": lambda: ServerSettings(api_key=KEY, admin_key=KEY),
    "another server setting": lambda: ServerSettings(api_key=KEY, port=-1),
    "openai key": lambda: ServerSettings(api_key=ADMIN_KEY, openai_api_key=f"{KEY}\n"),
    "given with the environment": lambda: ServerSettings.from_env(api_key=KEY, admin_key=KEY),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_key_in_a_wrong_setting(mistake: str) -> None:
    """Neither the error nor the frames of its traceback show a key, be it the one that is wrong or not."""
    with pytest.raises(ConfigurationError) as caught:
        WRONG[mistake]()

    assert lines_with_key(told_by(caught.value)) == []


@pytest.mark.parametrize(
    ("make", "variable"),
    [
        (lambda: ChatClient(URL), "AHEADLESS_API_KEY"),
        (lambda: ChatClient(URL), "ADMIN_API_KEY"),
        (ServerSettings.from_env, "WIDGET_API_KEY"),
        (ServerSettings.from_env, "AHEADLESS_ADMIN_KEY"),
        (ServerSettings.from_env, "AHEADLESS_PORT"),
        (ServerSettings.from_env, "AHEADLESS_PRODUCTION"),
    ],
)
def test_key_in_a_wrong_variable(monkeypatch: pytest.MonkeyPatch, make: Callable[[], object], variable: str) -> None:
    """The same for what the environment gives, also where a key stands in the wrong variable."""
    monkeypatch.setenv(variable, f"{KEY}\n")

    with pytest.raises(ConfigurationError, match=variable) as caught:
        make()

    assert lines_with_key(told_by(caught.value)) == []


async def test_key_does_not_travel(make_client: MakeClient) -> None:
    """What holds a key is not pickled and not copied deep; what shows it are stars."""
    settings = ServerSettings(api_key=KEY, admin_key=ADMIN_KEY, openai_api_key=KEY)
    client = make_client(URL, admin_key=KEY)
    for holder in (Secret(KEY), settings, client, client.chat("s"), client.admin):
        for travel in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                travel(holder)

        assert lines_with_key(told_by_all_that_it_holds(holder)) == []
    assert lines_with_key(f"{settings} {attrs.asdict(settings)} {vars(client)}") == []


def test_secret_takes_its_text_along_nowhere() -> None:
    """No way of copying or printing shows it; only reveal() does."""
    secret = Secret(KEY)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leak(secret)

    assert {repr(secret), str(secret), f"{secret}", f"{secret!s}", f"{[secret]}"} == {"***", "[***]"}
    assert secret.reveal() == KEY


@pytest.mark.parametrize("line", [f"x-api-key: {KEY}\x01", f"{KEY}", f"x-api-key : {KEY}", f"x-api-key: {KEY}" * 900])
async def test_key_in_a_request_that_is_no_http(caplog: pytest.LogCaptureFixture, line: str) -> None:
    """A client's own mistake does not bring its key into our server's log."""
    watch_all_logs(caplog)
    async with serve() as server:
        answer = await wire.ask(server.url, wire.post().replace(b"Host: x", line.encode()))

    assert answer.status == 400
    assert lines_with_key(caplog.text) == []
    [record] = [record for record in caplog.records if record.name == "aheadless.server"]
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert record.getMessage().startswith("Error handling request from 127.0.0.1: ")


def serve(**settings: Any) -> AbstractAsyncContextManager[RunningServer]:
    """Run a server in a block."""
    defaults: dict[str, Any] = {"port": 0, "api_key": KEY, "engine": "echo", "rate_limit": None}
    return run_server(ServerSettings(**{**defaults, **settings}))


# --- one origin, no cookies, no environment: 88, 89 -------------------------------------------------------------------

HOWS = ["stream", "send", "admin"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("how", HOWS)
async def test_redirect_leads_nowhere(scripted: ScriptedServer, make_client: MakeClient, status: int, how: str) -> None:
    """Neither the key nor the message goes to a second origin, nor to another path of the first."""
    client = make_client(scripted.url, admin_key=KEY)
    async with ScriptedServer() as other:
        for origin in (other.url, scripted.url):
            scripted.add(Script(json_answer("", status=status, headers={"Location": f"{origin}/v1/chat/stream"})))
            error = await failure(client, how)

            assert type(error) is RedirectError
            assert error.delivery is Delivery.REJECTED
        assert (other.connections, len(scripted.requests)) == (0, 2)


@pytest.mark.parametrize("status", [200, 302, 401, 500])
@pytest.mark.parametrize("how", HOWS)
async def test_cookies_never_come_back(
    scripted: ScriptedServer, make_client: MakeClient, status: int, how: str
) -> None:
    """Whatever answer sets a cookie, no later request carries one."""
    client = make_client(scripted.url, admin_key=KEY)
    cookies = {"Set-Cookie": "session=1; Path=/; Max-Age=1000", "Set-Cookie2": "a=b"}
    scripted.add(Script(json_answer({}, status=status, headers=cookies)))
    scripted.add(Script(stream_answer(HELLO, headers=cookies)))

    await failure(client, how)
    await client.chat("s").stream("Hi")
    await client.chat("s").stream("Hi")

    assert len(scripted.requests) == 3
    assert [request.header("cookie") for request in scripted.requests] == [None] * 3


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_environment_is_ignored(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: trustme.CA, scheme: str
) -> None:
    """No proxy and no login that the environment names is used, for plain and for encrypted requests."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login eve password secret\ndefault login eve password secret\n")
    netrc.chmod(0o600)
    server_side, trust = contexts(authority)
    encrypted = server_side if scheme == "https" else None
    async with ScriptedServer() as proxy, ScriptedServer(ssl=encrypted) as server:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(netrc))
        client = make_client(server.url, ssl=trust if encrypted else None)

        await client.chat("s").stream("Hi")
        await client.aclose()

        assert proxy.connections == 0
        assert server.requests[0].header("authorization") is None
        assert server.requests[0].path == "/v1/chat/stream"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def contexts(authority: trustme.CA, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's context with a certificate for a name, and a client's that trusts its authority."""
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert(name).configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_certificate_of_a_trusted_authority(make_client: MakeClient, authority: trustme.CA) -> None:
    """The context that was given decides whom to trust, for a stream and for a JSON reply."""
    server_side, trust = contexts(authority)
    async with ScriptedServer(ssl=server_side) as server:
        client = make_client(server.url, ssl=trust)

        assert (await client.chat("s").stream("Hi")).text == "Hello world"
        await client.aclose()


@pytest.mark.parametrize("context", ["default", "another authority"])
async def test_certificate_of_another_authority(make_client: MakeClient, authority: trustme.CA, context: str) -> None:
    """Nothing is sent to whom nobody vouches for; trying again is of no use and not done."""
    server_side, _ = contexts(authority)
    _, distrust = contexts(trustme.CA())
    async with ScriptedServer(ssl=server_side) as server:
        client = make_client(
            server.url, admin_key=KEY, ssl=None if context == "default" else distrust, retry=Retry(attempts=3)
        )
        error = await failure(client, "stream")

        assert type(error) is ConnectError
        assert (error.delivery, error.permanent) == (Delivery.NOT_SENT, True)
        assert "certificate" in str(error)
        assert server.requests == []


async def test_certificate_of_another_host(make_client: MakeClient, authority: trustme.CA) -> None:
    """A good certificate for another name is a bad one here."""
    server_side, trust = contexts(authority, "other.example")
    async with ScriptedServer(ssl=server_side) as server:
        error = await failure(make_client(server.url, ssl=trust), "stream")

        assert type(error) is ConnectError
        assert (error.delivery, error.permanent) == (Delivery.NOT_SENT, True)
        assert server.requests == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_client_certificate(make_client: MakeClient, authority: trustme.CA, version: ssl.TLSVersion) -> None:
    """A server that asks for one gets it from the context; without one no request reaches it, and none is repeated."""
    server_side, with_certificate = contexts(authority)
    _, without = contexts(authority)
    server_side.verify_mode = ssl.CERT_REQUIRED
    server_side.maximum_version = version
    authority.configure_trust(server_side)
    authority.issue_cert("bot@example.org").configure_cert(with_certificate)
    async with ScriptedServer(ssl=server_side) as server:
        client = make_client(server.url, ssl=with_certificate)
        assert (await client.chat("s").stream("Hi")).text == "Hello world"
        await client.aclose()

        connections = server.connections
        error = await failure(make_client(server.url, ssl=without), "stream")

        # With TLS 1.3 the client is done with its part before the server looks at the certificate.
        assert type(error) is (ConnectError if version is ssl.TLSVersion.TLSv1_2 else ConnectionLostError)
        assert (len(server.requests), server.connections) == (1, connections)


# --- foreign text: 90 -------------------------------------------------------------------------------------------------

EVIL = "x\r\nERROR root: owned\x1b[2J\u2028\u202e\x00\x85" + "y" * 100_000
FOREIGN = {
    "status": Script(json_answer({"error": EVIL}, status=400)),
    "page": Script(json_answer(EVIL, status=502)),
    "web page": Script(json_answer(EVIL)),
    "redirect": Script(json_answer("", status=302, headers={"Location": "/" + "x\x1b[2J" * 1000})),
    "reason": Script(head(500, {"Content-Length": "0"}, reason="\x1b[2J" + "x" * 1000)),
    "retry after": Script(json_answer({"error": EVIL}, status=503, headers={"Retry-After": "0"})),
    "no HTTP": Script(("\x1b[2J" + "x" * 1000 + "\r\n\r\n").encode(), end="fin"),
    "no chunk": Script(FIRST + b"\x1b[2J" + b"x" * 1000 + b"\r\n", end="fin"),
    "line": Script(stream_answer([EVIL.replace("\n", "").encode() + b"\n"])),
    "type": Script(stream_answer([b'{"type":["' + EVIL.replace("\n", "").encode() + b'"]}\n'])),
    "order": Script(stream_answer([events("a")[1], *HELLO])),
    "error event": Script(stream_answer([*HELLO[:1], Failure(EVIL)])),
    "admin": Script(json_answer({"total": EVIL, EVIL: 1, "conversations": [{EVIL: EVIL}] * 100})),
}


@pytest.mark.parametrize("fault", FOREIGN)
@pytest.mark.parametrize("how", HOWS)
async def test_foreign_text_is_escaped_and_cut(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture, fault: str, how: str
) -> None:
    """No error message and no log line of ours has a second line, a control character or the server's whole say."""
    caplog.set_level(logging.DEBUG, "aheadless")
    scripted.add(FOREIGN[fault], FOREIGN[fault])
    client = make_client(scripted.url, admin_key=KEY, retry=Retry(attempts=2, base=0.001))

    error = await failure(client, how)

    records = [record.getMessage() for record in caplog.records if record.name.startswith("aheadless")]
    for text in [str(error), *records, *([error.detail] if isinstance(error, StatusError) else [])]:
        assert text.isprintable()
        assert len(text) < SNIPPET_LIMIT + 150
    warned = any(record.levelno > logging.DEBUG for record in caplog.records if record.name.startswith("aheadless"))
    assert warned is (fault == "retry after" and how != "admin")


def test_our_server_escapes_a_path() -> None:
    """Asked for a path that is markup, the error page shows it as text."""
    page = error_page(404, "Cannot GET /<script>alert(1)</script>").body

    assert isinstance(page, bytes)
    assert b"<script>" not in page
    assert b"&lt;script&gt;" in page


# --- our server: 93, 94, 95 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "CF-Connecting-IP"])
async def test_a_client_cannot_name_its_own_address(name: str) -> None:
    """Without trusted proxies the connection's address counts, whatever the headers say."""
    async with serve(rate_limit=RateLimit(1, per=60)) as server:
        answers = [
            await wire.ask(server.url, wire.post("/v1/chat", wire.GOOD, f"{name}: {number}.1.1.1"))
            for number in range(1, 4)
        ]

    assert [answer.status for answer in answers] == [200, 429, 429]


ODD_KEYS = [
    b"",
    b"x",
    KEY[:-1].encode(),
    KEY.encode() + b"x",
    KEY.upper().encode(),
    "é".encode(),
    "é".encode("latin-1"),
    b"\xff\xfe" * 100,
    "\U0001f511".encode() * 50,
    b"x" * 8000,
    b"x" * 100_000,
]


@pytest.mark.parametrize("header", ["x-api-key", "x-widget-api-key", "x-admin-api-key"])
async def test_odd_keys_are_refused(header: str) -> None:
    """Overlong, empty, not ASCII, not even UTF-8: a refusal, never a 500."""
    admin = "admin" in header
    path, body = ("/v1/admin/conversations", b"") if admin else ("/v1/chat", wire.GOOD)
    async with serve(admin_key=ADMIN_KEY) as server:
        for key in ODD_KEYS:
            request = wire.request("GET" if admin else "POST", path, body, "Content-Type: application/json")
            answer = await wire.ask(
                server.url, request.replace(b"Host: x", b"Host: x\r\n%b: %b" % (header.encode(), key))
            )

            assert answer.status == (400 if len(key) > 8190 else 401), key[:50]


@given(st.text(max_size=50) | st.just("x" * 100_000))
def test_compared_in_constant_time(key: str) -> None:
    """What is compared are bytes of one length, whatever was sent, by the function that takes one time for all."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return hmac.compare_digest(left, right)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "hmac", SimpleNamespace(compare_digest=compare))
        held = checks.has_key(CIMultiDictProxy(CIMultiDict({"x-api-key": key})), Secret(KEY), "x-api-key")

    assert held is (key == KEY)
    assert [(type(left), len(left), len(right)) for left, right in compared] == [(bytes, 32, 32)]


def test_memory_of_the_limiter_is_bounded() -> None:
    """Twenty times as many addresses cost no more, and each no more than the module says."""
    limiter = WindowLimiter(RateLimit(30, per=60), max_clients=1000)
    tracemalloc.start()
    try:
        for number in range(1000):
            limiter.allow(f"2001:db8:1111:2222:3333:4444:{number >> 16:x}:{number & 0xFFFF:x}", 0.0)
        full = tracemalloc.get_traced_memory()[0]
        for number in range(1000, 20_000):
            limiter.allow(f"2001:db8:1111:2222:3333:4444:{number >> 16:x}:{number & 0xFFFF:x}", 0.0)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert len(limiter) == 1000
    assert after < full * 1.5  # a dict that things are taken out of holds some room
    assert full < 1000 * 300
    assert WindowLimiter(RateLimit(1, per=1))._max_clients == MAX_CLIENTS == 100_000


def test_an_address_of_a_proxy_is_short() -> None:
    """The scope of an IPv6 address, which may be of any length, is not kept."""
    assert checks.forwarded_address(["fe80::1%" + "x" * 8000], 1) == "fe80::1"


async def test_a_flood_of_addresses_is_bounded() -> None:
    """Through the whole server: a client behind a trusted proxy with ever new addresses fills no memory."""
    api = API(ServerSettings(api_key=KEY, engine="echo", trusted_proxies=1), EchoEngine(), inflated=False)
    limiter = api._limiter
    assert limiter is not None
    limiter._max_clients = 10
    app = _create_app(api)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with wire.connect(f"http://127.0.0.1:{runner.addresses[0][1]}") as connection:
            for number in range(50):
                request = wire.post("/v1/chat", wire.GOOD, f"X-Forwarded-For: 10.0.0.{number}")
                assert (await connection.ask(request)).status == 200
    finally:
        await runner.cleanup()

    assert len(limiter) == 10


# --- what people say: 91 ----------------------------------------------------------------------------------------------

SAID, ANSWERED = "the-question-that-nobody-else-reads", "an-answer-that-nobody-else-reads"


@pytest.mark.parametrize("engine", ["echo", "failing"])
async def test_messages_are_in_no_log(
    make_client: MakeClient, scripted: ScriptedServer, caplog: pytest.LogCaptureFixture, engine: str
) -> None:
    """Neither client nor server write down what is said, at whatever level, be it answered, cut off or failed."""
    caplog.set_level(logging.DEBUG)
    for name in ("aheadless", "aheadless.server"):
        caplog.set_level(logging.DEBUG, name)
    answer = stream_answer(events(ANSWERED, " and more"))
    scripted.add(Script(answer), Script(answer).cut(len(answer) // 2), Script(json_answer({}, status=503)))

    class Failing(EchoEngine):
        async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
            yield ANSWERED
            raise RuntimeError("the model is ill")

    async with serve(engine=Failing() if engine == "failing" else engine) as server:
        for url, turns in ((scripted.url, 3), (server.url, 2)):
            client = make_client(url, retry=Retry(attempts=2, base=0.001))
            for _ in range(turns):
                with contextlib.suppress(AheadlessError):
                    await client.chat("s").stream(SAID)

    assert len(scripted.stored) >= 3
    assert SAID not in caplog.text
    assert ANSWERED not in caplog.text
