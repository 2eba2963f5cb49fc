"""`aheadless doctor` against servers, proxies and certificates on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from importlib import metadata
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import pytest
import trustme

from aheadless import RateLimit, Start, __version__, cli
from aheadless.cli import doctor, verdicts
from aheadless.cli.verdicts import TURN, WAY
from aheadless.protocol.events import Failure, Token
from aheadless.server import RunningServer, ScriptedEngine, ServerSettings, run_server
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from aheadless.testing.server import Request
from tests.cli.support import KEY, aheadless, posix_only, running
from tests.proxy import CuttingProxy

T = TypeVar("T")

NAMES = ["url", *WAY, *TURN, "proxies", "versions"]

# Thirteen words in 0.4 s: slow enough to tell a stream from a lump.
WORDS = [step for word in range(13) for step in (f"word{word} ", 0.03)]


# --- servers on a thread of their own, as the command needs the main one ----------------------------------------------


@pytest.fixture
def enter() -> Iterator[Callable[[AbstractAsyncContextManager[T]], T]]:
    """Enter what runs on a loop of another thread, until the test is over."""
    loop, stack = asyncio.new_event_loop(), AsyncExitStack()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(step: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(step, loop).result(20)

    yield lambda manager: call(stack.enter_async_context(manager))
    call(stack.aclose())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)
    loop.close()


@pytest.fixture
def serve(enter: Callable[..., RunningServer]) -> Callable[..., RunningServer]:
    """Run the API's own server that says these steps."""

    def start(*steps: Any, **settings: Any) -> RunningServer:
        options: dict[str, Any] = {
            "port": 0,
            "api_key": KEY,
            "engine": ScriptedEngine(steps or ("Hello", " world")),
            "rate_limit": None,
            "shutdown_timeout": 0.1,
        }
        return enter(run_server(ServerSettings(**{**options, **settings})))

    return start


@pytest.fixture
def script(enter: Callable[..., ScriptedServer]) -> Callable[..., ScriptedServer]:
    """Run a server that is well, and answers questions by a script."""

    def start(answer: Script | None = None, *, health: Script | None = None, **options: Any) -> ScriptedServer:
        def otherwise(request: Request) -> Script:
            if request.method == "GET":
                return health or Script(json_answer({"status": "ok"}))
            return answer or Script(stream_answer(events("Hello", " world")))

        return enter(ScriptedServer(otherwise=otherwise, **options))

    return start


@asynccontextmanager
async def buffering_proxy(url: str) -> AsyncIterator[str]:
    """Pass on each answer when it is whole, and not before."""
    address = urlsplit(url)
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(address.hostname, address.port)
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                to_upstream.write(head + await reader.readexactly(_length(head) or 0))
                answer = await upstream.readuntil(b"\r\n\r\n")
                size = _length(answer)
                rest = upstream.readuntil(b"0\r\n\r\n") if size is None else upstream.readexactly(size)
                writer.write(answer + await rest)
        writer.close()
        to_upstream.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.create_task(handle(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers)


def _length(head: bytes) -> int | None:
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    return None if found is None else int(found[1])


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# --- what it says -----------------------------------------------------------------------------------------------------


@attrs.frozen
class Told:
    """What the command said."""

    code: int
    marks: dict[str, str]
    facts: dict[str, str]
    advice: dict[str, str]

    def with_mark(self, mark: str) -> list[str]:
        return [name for name in self.marks if self.marks[name] == mark]


Consult = Callable[..., Told]


@pytest.fixture
def consult(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Consult:
    """Run the command in this process, with a key; whatever it finds, it makes all checks and tells no key."""
    monkeypatch.setenv("AHEADLESS_API_KEY", KEY)
    for name in doctor.PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(url: str, *arguments: str) -> Told:
        monkeypatch.setattr(sys, "argv", ["aheadless", "doctor", "--url", url, *arguments, "--json"])
        code = cli.main()
        out, err = capsys.readouterr()
        assert KEY not in out + err
        assert (err, out.count("\n")) == ("", 1)
        told = json.loads(out)
        assert told["exitCode"] == code
        checks = told["checks"]
        assert [check["name"] for check in checks] == NAMES
        assert all(bool(check["advice"]) == (check["mark"] in {"warn", "fail"}) for check in checks)
        return Told(
            code,
            *({check["name"]: check[part] for check in checks} for part in ("mark", "fact", "advice")),
        )

    return run


def test_all_is_well(serve, monkeypatch, capsys):
    """A line for each check, and nothing to do."""
    server = serve(*WORDS)
    monkeypatch.setenv("AHEADLESS_API_KEY", KEY)
    monkeypatch.setenv("AHEADLESS_BASE_URL", server.url)
    monkeypatch.setattr(sys, "argv", ["aheadless", "doctor"])

    assert cli.main() == 0

    out, err = capsys.readouterr()
    for pattern, stars in [(r"[\d.]+ m?s\b", "* ms"), (r":\d+", ":*"), (r"in \d+ pieces", "in * pieces")]:
        out = re.sub(pattern, stars, out)
    *lines, proxies, versions = out.splitlines()
    assert lines == [
        "ok       url          http://127.0.0.1:*",
        "ok       connection   127.0.0.1:* after * ms",
        "skipped  tls          the URL is http://",
        "ok       health       ok after * ms, Server: aheadless",
        "ok       keep-alive   the connection is used again, answer after * ms",
        "ok       clock        less than * ms off the server's",
        "ok       key          accepted",
        "ok       rate limit   not reached; the server does not say how much is left",
        "ok       first token  after * ms, start after * ms",
        "ok       streaming    13 tokens in * pieces over * ms",
        "ok       reply        complete after * ms",
    ]
    assert proxies.startswith("ok       proxies      ")
    assert versions.startswith(f"ok       versions     aheadless {__version__}, Python ")
    assert err == ""


def test_it_asks_once_and_says_who_it_is(serve, consult):
    """One message, in a session of its own; the server counts one request."""
    server = serve(rate_limit=RateLimit(1, per=3600))

    assert consult(server.url).code == 0

    [[asked]] = server.settings.engine.asked
    assert asked.text == doctor.MESSAGE
    assert "aheadless doctor" in asked.text
    assert consult(server.url).marks["rate limit"] == "fail"


def test_each_time_another_session(script, consult):
    """Nothing of an earlier run gets in, and the id tells whose it is."""
    server = script()
    for _ in range(2):
        consult(server.url)

    ids = {json.loads(request.body)["sessionId"] for request in server.requests if request.method == "POST"}
    assert len(ids) == 2
    assert all(name.startswith("aheadless-doctor:") for name in ids)


def test_without_a_message(serve, consult):
    """The key is tried all the same, by a request that is refused for its form; nobody is asked anything."""
    server = serve()

    told = consult(server.url, "--no-message")

    assert (told.code, told.marks["key"], told.marks["rate limit"]) == (0, "ok", "ok")
    assert told.with_mark("skipped") == ["tls", "first token", "streaming", "reply"]
    assert server.settings.engine.asked == []


def test_versions_for_a_bug_report(script, consult):
    """Those of what is installed, extras by their names."""
    fact = consult(script().url, "--no-message").facts["versions"]

    assert f"aiohttp {metadata.version('aiohttp')}; extras: cli, " in fact
    assert "docs" not in fact


# --- the way ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--no-message"]])
def test_nobody_listens(options, free_port, consult):
    """What depends on a connection is skipped, and said to be."""
    told = consult(f"http://127.0.0.1:{free_port}", *options)

    assert told.code == 3
    assert (told.with_mark("fail"), told.with_mark("ok")) == (["connection"], ["url", "proxies", "versions"])
    assert {told.facts[name] for name in told.with_mark("skipped")} == {"connection failed"}


def test_a_host_that_nobody_knows(consult, monkeypatch):
    """Here a proxy in the environment may be the way that this network wants; its URL, which may hold a password, is
    not shown."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{KEY}@proxy:3128")

    told = consult("https://nowhere.invalid")

    assert (told.code, told.with_mark("fail"), told.with_mark("warn")) == (3, ["connection"], ["proxies"])
    assert "the host of https://nowhere.invalid is not known" in told.facts["connection"]
    assert told.facts["proxies"] == "HTTPS_PROXY set, which aheadless does not use"


@pytest.mark.parametrize("url", ["", "ftp://127.0.0.1", "https://me:secret@example.org"])
def test_a_url_that_is_none(url, consult):
    """Nothing is tried."""
    told = consult(url)

    assert (told.code, told.with_mark("fail")) == (2, ["url"])
    assert told.with_mark("skipped") == [*WAY, *TURN]
    assert "secret" not in json.dumps(told.facts)


def test_https_to_a_plain_port(serve, consult):
    """Somebody is there, who speaks no TLS."""
    told = consult(serve().url.replace("http:", "https:"))

    assert (told.code, told.marks["connection"], told.with_mark("fail")) == (3, "ok", ["tls"])
    assert "write http:// in the URL" in told.advice["tls"]


def server_side(authority: trustme.CA, **certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", **certificate).configure_cert(context)
    return context


def test_http_to_a_tls_port(script, consult):
    """The handshake fails on the server's side, and this side sees that it is no HTTP."""
    told = consult(script(ssl=server_side(trustme.CA())).url.replace("https:", "http:"))

    assert (told.marks["connection"], told.with_mark("fail")) == ("ok", ["health"])
    assert "https://" in told.advice["health"]


def test_a_certificate_that_nobody_vouches_for(script, consult):
    """The reason is OpenSSL's own."""
    told = consult(script(ssl=server_side(trustme.CA())).url)

    assert (told.code, told.with_mark("fail")) == (3, ["tls"])
    assert "certificate" in told.facts["tls"]
    assert "SSL_CERT_FILE" in told.advice["tls"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "code", "mark", "fact"),
    [
        (timedelta(days=3, hours=1), 0, "warn", "TLSv1.3, certificate valid for 3 days more"),
        (timedelta(days=-1), 3, "fail", "certificate has expired"),
    ],
    ids=["not for long", "no longer"],
)
async def test_how_long_a_certificate_is_valid(left, code, mark, fact, tmp_path):
    """With an authority that the environment names, as a process."""
    authority, until = trustme.CA(), datetime.now(timezone.utc) + left
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = server_side(authority, not_before=until - timedelta(days=200), not_after=until)
    well, reply = Script(json_answer({"status": "ok"})), Script(stream_answer(events("Hello")))
    async with ScriptedServer(well, well, reply, ssl=context) as server:
        ended = await aheadless("doctor", "--url", server.url, SSL_CERT_FILE=str(tmp_path / "ca.pem"))

    [line] = [line for line in ended.out.splitlines() if line.split()[1] == "tls"]
    assert (ended.code, ended.err) == (code, "")
    assert line.startswith(f"{mark:<8} tls ")
    assert fact in line


@pytest.mark.parametrize(
    ("health", "code", "said"),
    [
        (Script(json_answer("<html>Welcome to nginx!", status=200)), 7, "a web page"),
        (Script(json_answer({"hello": "world"})), 7, "no status"),
        (Script(json_answer("", status=301, headers={"Location": "https://x/health"})), 5, "to https://x/health"),
        (Script(b"SSH-2.0-OpenSSH_9.2\r\n", end="fin"), 7, "not HTTP"),
        (Script(end="fin"), 8, "ended the connection without an answer"),
    ],
    ids=["web page", "another API", "redirect", "no HTTP", "nothing"],
)
def test_a_server_that_is_no_such_api(health, code, said, script, consult):
    """It gets no key and no message."""
    server = script(health=health)

    told = consult(server.url)

    assert (told.code, told.with_mark("fail")) == (code, ["health"])
    assert said in told.facts["health"]
    assert told.with_mark("skipped") == ["tls", "keep-alive", "clock", *TURN]
    assert {request.method for request in server.requests} == {"GET"}
    assert {request.header("x-api-key") for request in server.requests} == {None}


def test_a_proxy_that_keeps_health_to_itself(script, consult):
    """The chat may work all the same, and is tried."""
    told = consult(script(health=Script(json_answer("<html>Forbidden", status=403))).url)

    assert (told.code, told.with_mark("fail")) == (4, ["health"])
    assert told.facts["health"] == "403: a web page"
    assert told.marks["reply"] == "ok"


def test_a_server_that_is_not_well(script, consult):
    """Its own word for it is told."""
    told = consult(script(health=Script(json_answer({"status": "degraded"}))).url)

    assert (told.code, told.with_mark("fail")) == (7, ["health"])
    assert told.facts["health"].startswith("degraded after ")


def test_a_server_that_says_nothing(script, consult, monkeypatch):
    """The wait has an end."""
    monkeypatch.setattr(doctor, "HEALTH_TIMEOUT", 0.1)

    told = consult(script(health=Script(end="stall")).url)

    assert (told.code, told.with_mark("fail")) == (9, ["health"])


def test_a_server_that_answers_once(enter, consult):
    """A second request is what a bot makes, too."""
    server = enter(ScriptedServer(Script(json_answer({"status": "ok"})), otherwise=lambda _: Script(end="fin")))

    told = consult(server.url)

    assert (told.code, told.with_mark("fail")) == (8, ["keep-alive"])
    assert told.with_mark("skipped") == ["tls", "clock", *TURN]


def test_connections_that_do_not_last(script, consult):
    """Each request pays for a connection of its own."""
    closing = {"Connection": "close"}

    told = consult(script(health=Script(json_answer({"status": "ok"}, headers=closing), end="fin")).url)

    assert (told.code, told.with_mark("warn")) == (0, ["keep-alive"])


@pytest.mark.parametrize(("off", "said"), [(-3600, "ahead of the server"), (3600, "behind the server")])
def test_a_clock_that_is_off(off, said, script, consult):
    """By the `Date` of the answer."""
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=off), usegmt=True)

    told = consult(script(health=Script(json_answer({"status": "ok"}, headers={"Date": date}))).url)

    assert (told.code, told.with_mark("warn")) == (0, ["clock"])
    assert told.facts["clock"].endswith(said)


# --- the turn ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--no-message"], ["--legacy-auth"]])
def test_a_wrong_key(options, serve, consult):
    """One failure, and what it means for the rest; the model is not asked."""
    server = serve(api_key="another-key-of-24-characters")

    told = consult(server.url, *options)

    assert (told.code, told.with_mark("fail")) == (4, ["key"])
    assert told.with_mark("skipped") == ["tls", *TURN[1:]]
    assert told.facts["key"] == "401: Unauthorized"
    assert server.settings.engine.asked == []


@pytest.mark.parametrize("options", [[], ["--no-message"]])
def test_a_server_that_repeats_the_key(options, script, consult):
    """Even that is not shown."""
    told = consult(script(Script(json_answer({"error": f"{KEY} is wrong"}, status=401))).url, *options)

    assert told.facts["key"] == "401: *** is wrong"


def test_no_key(serve, consult, monkeypatch):
    """What needs none is checked."""
    monkeypatch.delenv("AHEADLESS_API_KEY")

    told = consult(serve().url)

    assert (told.code, told.with_mark("fail"), told.facts["key"]) == (2, ["key"], "none is given")
    assert told.with_mark("skipped") == ["tls", *TURN[1:]]


@pytest.mark.parametrize("options", [["--api-key-file", "nowhere"], []])
def test_a_key_that_cannot_be_one(options, serve, consult, monkeypatch, tmp_path):
    """It is not sent, and not shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AHEADLESS_API_KEY", f"{KEY} ")

    told = consult(serve().url, *options)

    assert (told.code, told.with_mark("fail")) == (2, ["key"])
    assert told.with_mark("skipped") == [*WAY, *TURN[1:]]


@pytest.mark.parametrize("options", [[], ["--no-message"]])
def test_too_many_requests(options, script, consult):
    """It does not wait, and the key is not blamed."""
    server = script(Script(json_answer({"error": "Too many requests"}, status=429, headers={"Retry-After": "20"})))

    told = consult(server.url, *options)

    assert (told.code, told.with_mark("fail"), told.marks["key"]) == (6, ["rate limit"], "skipped")
    assert told.advice["rate limit"].startswith("wait 20.0 s")
    assert len(server.stored) == 0


def test_a_proxy_that_buffers(serve, enter, consult):
    """The same reply in pieces directly, and in one lump through it."""
    server = serve(*WORDS)

    direct, through = consult(server.url), consult(enter(buffering_proxy(server.url)))

    assert (direct.code, direct.with_mark("warn")) == (0, [])
    assert (through.code, through.with_mark("warn")) == (0, ["streaming"])
    assert through.facts["streaming"].endswith("the reply was held back")
    assert "proxy_buffering off" in through.advice["streaming"]


@pytest.mark.parametrize(
    ("steps", "fact"),
    [(["Hello", " world"], "too few to tell"), ([f"word{n} " for n in range(50)], "too quick to tell")],
    ids=["short", "cached"],
)
def test_a_quick_reply_through_a_proxy_that_buffers(steps, fact, serve, enter, consult, monkeypatch):
    """There is no verdict, and no false alarm."""
    monkeypatch.setattr(verdicts, "LEAST_WAIT", 20.0)  # quick, however busy this machine is
    told = consult(enter(buffering_proxy(serve(*steps).url)))

    assert (told.code, told.with_mark("warn"), told.marks["streaming"]) == (0, [], "skipped")
    assert told.facts["streaming"].endswith(fact)


def test_a_model_that_does_not_stream(serve, consult):
    """`start` came at once, so nobody holds anything back."""
    told = consult(serve(0.4, *(f"word{n} " for n in range(50))).url)

    assert (told.code, told.with_mark("warn")) == (0, ["streaming"])
    assert told.facts["streaming"].endswith("the reply was made in one piece")


@pytest.mark.parametrize(
    ("steps", "failed", "code"),
    [([asyncio.Event()], "first token", 9), (["Hello", asyncio.Event()], "reply", 9), ([OSError("no")], "reply", 7)],
    ids=["no token", "no second token", "an error"],
)
def test_a_model_that_hangs_or_fails(steps, failed, code, serve, consult):
    """The key was taken, and the wait has an end."""
    told = consult(serve(*steps).url, "--timeout", "0.5")

    assert (told.code, told.with_mark("fail"), told.marks["key"]) == (code, [failed], "ok")


def test_a_reply_without_end(serve, consult):
    """It is read for twice the time-out, which is no failure of anybody's."""
    told = consult(serve(*WORDS * 3).url, "--timeout", "0.4")

    assert (told.code, told.with_mark("warn")) == (0, ["reply"])
    assert "still being written" in told.facts["reply"]


def test_a_server_that_takes_a_question_and_says_nothing(script, consult):
    """Not even `start`: of the key nothing is known."""
    told = consult(script(Script(end="stall")).url, "--timeout", "0.2")

    assert (told.code, told.with_mark("fail"), told.marks["key"]) == (9, ["first token"], "skipped")


def test_a_connection_that_is_cut(serve, enter, consult):
    """In the middle of the reply: a proxy's time-out looks like this."""
    proxy = enter(CuttingProxy(serve(*WORDS).url))
    proxy.cut("response", 900, "fin")

    told = consult(proxy.url)

    assert (told.code, told.with_mark("fail")) == (8, ["reply"])
    assert (told.marks["key"], told.marks["first token"], told.marks["streaming"]) == ("ok", "ok", "ok")
    assert "time-outs of the proxy" in told.advice["reply"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (json_answer("<html>Bad Gateway", status=502), 7),
        (json_answer("Cannot POST", status=404), 5),
        (json_answer("<html>Sign in", status=200), 7),
        (json_answer("", status=308, headers={"Location": "/x"}), 5),
        (stream_answer([Start(CONVERSATION_ID), Token("Hel"), Failure(f"\x1b[2J {KEY}")]), 7),
    ],
    ids=["bad gateway", "not found", "web page", "redirect", "error event"],
)
@pytest.mark.parametrize("options", [[], ["--no-message"]])
def test_an_answer_that_is_no_reply(answer, code, options, script, consult):
    """Whatever it is: one failure with its exit code, on one line."""
    told = consult(script(Script(answer)).url, *options)

    if options and b'"start"' in answer:
        assert told.code == 0  # the key was not refused, and nobody has asked for more
    else:
        assert (told.code, told.with_mark("fail")) == (code, ["key" if options else "reply"])
    assert all(text.isprintable() for text in told.facts.values())


def test_no_token_at_all(script, consult):
    """A reply without one is complete, and worth a look."""
    told = consult(script(Script(stream_answer(events(text="I could not generate a response right now.")))).url)

    assert (told.code, told.with_mark("warn")) == (0, ["first token"])
    assert told.marks["streaming"] == "skipped"


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf"])
def test_a_timeout_that_is_none(seconds, monkeypatch, capsys):
    """It is named as it was given, and nothing is tried."""
    monkeypatch.setattr(sys, "argv", ["aheadless", "doctor", "--timeout", seconds])

    assert cli.main() == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("aheadless: --timeout must be a positive number of seconds, not ")


# --- as a process -----------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.slow
async def test_ctrl_c_ends_it(scripted):
    """At once, whatever it waits for; what was found before is there."""
    well = Script(json_answer({"status": "ok"}))
    scripted.add(well, well, Script(end="stall"))

    async with running("doctor", "--url", scripted.url) as process:
        await scripted.arrived(3)
        process.process.send_signal(signal.SIGINT)
        ended = await process.ended()

    assert ended.code == 130
    assert ended.err == "aheadless: ended by SIGINT; what was asked for is not complete\n"
    assert ended.out.splitlines()[-1].split()[1] == "clock"


@posix_only
@pytest.mark.slow
async def test_nobody_reads_on(scripted):
    """Quiet, and with the code that all commands have for it."""
    async with running("doctor", "--url", scripted.url) as process:
        process.close_stdout()
        ended = await process.ended()

    assert (ended.code, ended.err) == (141, "")
