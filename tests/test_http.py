"""From what aiohttp says to what we say, with a verdict on the delivery."""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import socket
import ssl
import traceback
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import aiohttp
import aioresponses.core as aioresponses_core
import pytest
import trustme
from aioresponses import aioresponses

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    ConnectError,
    ConnectionLostError,
    Delivery,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    StreamInterruptedError,
    Timeouts,
)
from aheadless.testing import (
    CONVERSATION_ID,
    Script,
    ScriptedServer,
    events,
    gzipped,
    head,
    json_answer,
    lines,
    stream_answer,
)
from tests.conftest import MakeClient
from tests.support import KEY, recorded
from tests.test_stream import FIRST, HELLO, REST

URL = "http://127.0.0.1:4000"
NS, RJ, UN, AC = Delivery.NOT_SENT, Delivery.REJECTED, Delivery.UNKNOWN, Delivery.ACCEPTED


async def failure(client: ChatClient, *, json: bool = False) -> AheadlessError:
    """Ask, and return what is raised."""
    chat = client.chat("s")
    with pytest.raises(AheadlessError) as caught:
        await (chat.send("Hi") if json else chat.stream("Hi"))
    assert not chat.busy
    assert caught.value.session_id == "s"
    return caught.value


# --- status and error mapping: no socket is needed for these ----------------------------------------------------------


@pytest.fixture
def mocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    # aioresponses 0.7.9 does not know the newest argument of aiohttp's response.
    real: Any = vars(aioresponses_core)["ClientResponse"]

    def make(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **{"stream_writer": Mock(output_size=0), **kwargs})

    monkeypatch.setattr(aioresponses_core, "ClientResponse", make)
    with aioresponses() as mock:
        yield mock


@pytest.mark.parametrize(
    ("status", "kind", "delivery"),
    [
        (300, RedirectError, RJ),
        (301, RedirectError, RJ),
        (302, RedirectError, RJ),
        (303, RedirectError, RJ),
        (304, RedirectError, RJ),
        (307, RedirectError, RJ),
        (308, RedirectError, RJ),
        (400, RejectedError, RJ),
        (401, AuthenticationError, RJ),
        (402, RejectedError, UN),
        (403, AuthenticationError, RJ),
        (404, NotFoundError, RJ),
        (405, NotFoundError, RJ),
        (408, RejectedError, UN),
        (413, RejectedError, RJ),
        (415, RejectedError, RJ),
        (422, RejectedError, RJ),
        (429, RateLimitError, RJ),
        (500, ServerError, UN),
        (502, ServerError, UN),
        (503, ServerError, UN),
        (504, ServerError, UN),
        (599, ServerError, UN),
    ],
)
@pytest.mark.parametrize("json", [False, True])
async def test_status(
    mocked: aioresponses, make_client: MakeClient, status: int, kind: type[StatusError], delivery: Delivery, json: bool
) -> None:
    """Each status has its class and its verdict; the server's words are on it."""
    mocked.post(f"{URL}/v1/chat" + "/stream" * (not json), status=status, payload={"error": "no \x1b way"})

    error = await failure(make_client(URL), json=json)

    assert type(error) is kind
    assert isinstance(error, StatusError)
    assert (error.status, error.detail, error.delivery) == (status, "no \\x1b way", delivery)
    assert str(status) in str(error)


@pytest.mark.parametrize("status", [201, 206, 999])
async def test_status_of_no_meaning(mocked: aioresponses, make_client: MakeClient, status: int) -> None:
    """A status that this API does not have is a broken protocol."""
    mocked.post(f"{URL}/v1/chat/stream", status=status, body="x")

    error = await failure(make_client(URL))

    assert type(error) is ProtocolError
    assert error.delivery is UN


@pytest.mark.parametrize(
    ("exception", "kind"),
    [
        (aiohttp.ServerDisconnectedError(), ConnectionLostError),
        (aiohttp.ClientOSError(104, "reset"), ConnectionLostError),
        (aiohttp.ClientPayloadError("x"), ConnectionLostError),
        (ConnectionResetError(), ConnectionLostError),
        (aiohttp.ClientError("x"), ConnectionLostError),
        (TimeoutError(), RequestTimeoutError),
    ],
)
async def test_without_evidence_nothing_is_known(
    mocked: aioresponses, make_client: MakeClient, exception: Exception, kind: type[AheadlessError]
) -> None:
    """An error that comes without a trace of the connection tells nothing of the message."""
    mocked.post(f"{URL}/v1/chat/stream", exception=exception)

    error = await failure(make_client(URL))

    assert type(error) is kind
    assert error.delivery is UN


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "no detail"),
        (b'{"error":5}', '{"error":5}'),
        (b"<pre>Oops</pre>", "<pre>Oops</pre>"),
        (b"\xff\x00", "\ufffd\\x00"),
        (b"[" * 100_000, "[" * 199 + "…"),
        (b'{"error":"' + b"x" * 500 + b'"}', "x" * 199 + "…"),
    ],
)
async def test_error_bodies(scripted: ScriptedServer, client: ChatClient, body: bytes, detail: str) -> None:
    """Whatever an error's body is, it is escaped and cut to 200 characters."""
    scripted.add(Script(json_answer(body, status=500)))

    assert str(await failure(client)) == f"500: {detail}"


async def test_endless_error_body(scripted: ScriptedServer, client: ChatClient) -> None:
    """64 KiB of an error are enough; the connection is not kept."""
    scripted.add(Script(head(500, {"Content-Length": "100000000"}), drip=b"x" * 65536, interval=0))

    error = await failure(client)

    assert isinstance(error, ServerError)
    await scripted.requests[0].left.wait()


async def test_web_page(scripted: ScriptedServer, client: ChatClient) -> None:
    """A captive portal's 200 is no answer."""
    scripted.add(Script(json_answer("<html>\n<h1>Log in</h1>")))

    error = await failure(client)

    assert type(error) is ProtocolError
    assert str(error) == "expected a chat answer, got a web page: <html>\\n<h1>Log in</h1>"
    assert error.delivery is UN


async def test_redirect_is_not_followed(scripted: ScriptedServer, client: ChatClient) -> None:
    """The key goes to one origin only."""
    async with ScriptedServer() as other:
        scripted.add(Script(json_answer("", status=307, headers={"Location": other.url + "/v1/chat/stream"})))

        error = await failure(client)

    assert isinstance(error, RedirectError)
    assert "is not followed" in str(error)
    assert other.connections == 0


# --- connections ------------------------------------------------------------------------------------------------------


async def test_refused(make_client: MakeClient) -> None:
    """Nobody listens: not sent, with the system's own error as the cause."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

    error = await failure(make_client(f"http://127.0.0.1:{port}"))

    assert type(error) is ConnectError
    assert error.delivery is NS
    assert isinstance(error.__cause__, OSError)
    assert f"cannot connect to http://127.0.0.1:{port}" in str(error)


async def test_unknown_host(make_client: MakeClient) -> None:
    """A name that nobody knows: not sent."""

    class Nowhere(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
            raise OSError(None, "no such name")

        async def close(self) -> None: ...

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Nowhere())) as session:
        error = await failure(make_client("http://nowhere.internal", session=session))

    assert type(error) is ConnectError
    assert error.delivery is NS
    assert "the host of http://nowhere.internal is not known" in str(error)


async def test_connect_timeout_in_a_full_pool(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiting for a free connection is waiting for a connection; it is not silent, and both say what to change."""
    scripted.add(Script(FIRST, end="stall"))
    client = make_client(scripted.url, max_connections=1, timeouts=Timeouts(connect=0.05))

    async with client.chat("other").stream("Hi"):
        error = await failure(client)
        again = await failure(client)

    assert isinstance(error, RequestTimeoutError)
    assert (error.phase, error.delivery) == ("connect", NS)
    assert str(error) == str(again) == "all 1 connections were busy until the time-out (max_connections)"
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warning.getMessage() == "all 1 connections are busy; streams wait for one, or raise max_connections"


@pytest.mark.parametrize("data", [b"", FIRST[:30]])
@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_closed_without_an_answer(scripted: ScriptedServer, client: ChatClient, data: bytes, end: Any) -> None:
    """The request was read, and then nothing or half a head: it may have been stored."""
    scripted.add(Script(data, end=end))

    error = await failure(client)

    assert type(error) is ConnectionLostError
    assert error.delivery is UN
    assert len(scripted.requests) == 1


async def test_reset_before_reading(scripted: ScriptedServer, client: ChatClient) -> None:
    """Our side cannot know how much the server had read: unknown."""
    scripted.add(Script(end="rst", read=0))

    error = await failure(client)

    assert error.delivery in {NS, UN}
    assert len(scripted.stored) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"HELLO\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000 + b"\r\n\r\n",
        b"HTTP/1.1 twohundred OK\r\n\r\n",
        FIRST + b"zz\r\noops\r\n",
    ],
)
async def test_what_is_not_http(scripted: ScriptedServer, client: ChatClient, data: bytes) -> None:
    """It is the server that broke the protocol, not a bad request of ours."""
    scripted.add(Script(data, end="fin"))

    error = await failure(client)

    assert type(error) is ProtocolError


async def test_json_answer_cut(scripted: ScriptedServer, client: ChatClient) -> None:
    """Half a JSON answer: the message may have been stored, and was."""
    whole = json_answer({"conversationId": CONVERSATION_ID, "message": "m"})
    scripted.add(Script(whole).cut(len(whole) - 3))

    error = await failure(client, json=True)

    assert type(error) is ConnectionLostError
    assert error.delivery is UN


async def test_json_answer_of_another_shape(scripted: ScriptedServer, client: ChatClient) -> None:
    """A 200 whose body is no reply."""
    scripted.add(Script(json_answer({"message": None})))

    assert type(await failure(client, json=True)) is ProtocolError


async def test_json_answer_without_end(scripted: ScriptedServer, client: ChatClient, monkeypatch: Any) -> None:
    """A JSON answer has a bound."""
    monkeypatch.setattr("aheadless._http.MAX_JSON_BODY", 1000)
    scripted.add(Script(head(200, {"Content-Type": "application/json"}), drip=b" " * 400, interval=0))

    error = await failure(client, json=True)

    assert str(error) == "the answer is longer than 1000 bytes"


@pytest.mark.parametrize("answer", [head(204), head(200, {"Content-Length": "0"})])
async def test_empty_answers(scripted: ScriptedServer, client: ChatClient, answer: bytes) -> None:
    """A success without a stream is a stream that broke off."""
    scripted.add(Script(answer))

    error = await failure(client)

    assert type(error) is StreamInterruptedError
    assert error.delivery is UN


@pytest.mark.parametrize("status", [101, 103])
async def test_informational(scripted: ScriptedServer, client: ChatClient, status: int) -> None:
    """Early hints are passed over, an upgrade that nobody asked for is not."""
    fields = {"Upgrade": "x", "Connection": "upgrade"} if status == 101 else {}
    scripted.add(Script(head(status, fields) + FIRST + REST))

    if status == 103:
        assert (await client.chat("s").stream("Hi")).text == "Hello"
    else:
        assert type(await failure(client)) is ProtocolError


async def test_gzip(scripted: ScriptedServer, client: ChatClient) -> None:
    """A proxy's gzip is read; cut it is an interruption, broken a protocol error, a bomb is bounded."""
    encoding = {"Content-Encoding": "gzip"}
    packed = gzipped(b"".join(lines(HELLO)))
    bomb = gzipped(b" " * 20_000_000)
    for body in ([packed], [packed[:-30]], [b"no gzip"], [bomb]):
        scripted.add(Script(stream_answer(body, headers=encoding)))

    assert (await client.chat("s").stream("Hi")).text == "Hello"
    assert type(await failure(client)) is StreamInterruptedError
    assert type(await failure(client)) is ProtocolError
    assert str(await failure(client)) == "line 1: a line is longer than 8388608 bytes"
    assert scripted.requests[0].header("accept-encoding") == "identity"


@pytest.mark.parametrize("ended", [False, True])
async def test_events_after_done(scripted: ScriptedServer, client: ChatClient, ended: bool) -> None:
    """They are ignored. The connection is not used again, unless the body had ended in order and it was given back."""
    answer = stream_answer([*HELLO, *events("late")])
    scripted.add(Script(answer if ended else answer.removesuffix(b"0\r\n\r\n"), end="keep"))
    chat = client.chat("s")

    assert (await chat.stream("Hi")).text == "Hello"
    await chat.stream("Hi")

    assert scripted.connections == (1 if ended else 2)


async def test_cookies_are_dropped(scripted: ScriptedServer, client: ChatClient) -> None:
    """A cookie that the server sets is not sent back."""
    scripted.add(Script(stream_answer(HELLO, headers={"Set-Cookie": "a=b; Path=/"})))

    await client.chat("s").stream("Hi")
    await client.chat("s").stream("Hi")

    assert scripted.requests[1].header("cookie") is None


async def test_proxy_of_the_environment_is_ignored(
    scripted: ScriptedServer, client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a proxy that is given is used."""
    async with ScriptedServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        await client.chat("s").stream("Hi")
        assert proxy.connections == 0


async def test_given_proxy_is_used(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """`proxy` sends every request there."""
    client = make_client("http://service.internal", proxy=scripted.url)

    await client.chat("s").stream("Hi")

    assert scripted.requests[0].path == "http://service.internal/v1/chat/stream"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls(authority: trustme.CA, make_client: MakeClient) -> None:
    """A context of the user's is used."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with ScriptedServer(ssl=server_context(authority)) as server:
        client = make_client(server.url, ssl=context)
        assert (await client.chat("s").stream("Hi")).text == "Hello world"
        await client.aclose()


@pytest.mark.parametrize("trusted", [False, True])
async def test_bad_certificate(authority: trustme.CA, make_client: MakeClient, trusted: bool) -> None:
    """An unknown authority, or another host's certificate: not sent."""
    context = ssl.create_default_context()
    if trusted:
        authority.configure_trust(context)
    async with ScriptedServer(ssl=server_context(authority, "other.example")) as server:
        error = await failure(make_client(server.url, ssl=context))

    assert type(error) is ConnectError
    assert error.delivery is NS
    assert "certificate" in str(error)


async def test_https_to_a_plain_port(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The error says what is the matter."""
    scripted.add(Script(b"HTTP/1.1 400 Bad Request\r\n\r\n", end="fin", read=1))

    error = await failure(make_client(scripted.url.replace("http://", "https://")))

    assert type(error) is ConnectError
    assert error.delivery is NS
    assert "TLS" in str(error)


# --- the key ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        Script(end="fin"),
        Script(end="rst"),
        Script(b"HELLO\r\n\r\n", end="fin"),
        Script(json_answer({"error": "no"}, status=401)),
        Script(json_answer("", status=302, headers={"Location": "http://evil.example/"})),
        Script(FIRST, end="fin"),
        Script(FIRST + b"zz\r\n", end="fin"),
        Script(stream_answer([b"oops\n"])),
        Script(end="stall"),
    ],
)
async def test_key_is_in_no_error(
    scripted: ScriptedServer, make_client: MakeClient, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the error's chain, with the locals of all frames, nor in a log line, nor in a repr."""
    caplog.set_level(logging.DEBUG)
    scripted.add(script)
    client = make_client(scripted.url, timeouts=Timeouts(first_token=0.05))
    error = await failure(client)

    told = io.StringIO()
    for item in chain(error):
        told.write(repr(item) + str(item.__dict__) + repr(item.args))
        told.writelines(traceback.TracebackException.from_exception(item, capture_locals=True).format())
    told.write(caplog.text + repr(client) + repr(client.__dict__) + repr(client._core))

    assert KEY not in told.getvalue()
    assert scripted.requests[0].header("x-api-key") == KEY


def chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


async def test_key_is_not_in_the_frames_of_a_cancel(scripted: ScriptedServer, client: ChatClient) -> None:
    """A CancelledError comes through aiohttp's own frames: there, too, the header shows itself as stars."""
    scripted.add(Script(end="stall"))
    task = asyncio.create_task(client.chat("s").stream("Hi").reply())
    await scripted.arrived(1)
    task.cancel()

    try:
        await task
    except asyncio.CancelledError as exc:
        told = "".join(traceback.TracebackException.from_exception(exc, capture_locals=True).format())

    assert "x-api-key" in told
    assert KEY not in told


async def test_client_with_a_key_is_not_pickled(client: ChatClient) -> None:
    """A secret refuses to travel."""
    with pytest.raises(TypeError):
        pickle.dumps(client)


@pytest.mark.parametrize("name", [name for name, exchange in recorded().items() if exchange["status"] >= 400])
async def test_recorded_refusals(scripted: ScriptedServer, client: ChatClient, name: str) -> None:
    """The reference's own refusals become the right errors."""
    exchange = recorded()[name]
    answer = head(exchange["status"], dict(exchange["headers"])) + exchange["body"].encode()
    scripted.add(Script(answer))

    error = await failure(client, json=True)

    assert isinstance(error, StatusError)
    assert error.status == exchange["status"]
