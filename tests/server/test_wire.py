"""What only shows on the socket: connections that stay usable, HTTP/1.0, checks in their order, clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from aheadless import Message, RateLimit
from aheadless.protocol.codec import ChatRequest, parse_request
from aheadless.server import ScriptedEngine, api, app, body
from aheadless.server.answers import SECURITY_HEADERS, STRICT_TRANSPORT, error_page
from tests.server.conftest import Serve
from tests.server.wire import GOOD, Answer, ask, connect, post, request
from tests.support import ADMIN_KEY, KEY

LIMIT = 2_097_152
JSON_TYPE = "Content-Type: application/json"


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return request("POST", "/v1/chat", b"", f"x-api-key: {KEY}", JSON_TYPE, "Transfer-Encoding: chunked") + framed


# --- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (post(), 200),
        (post("/v1/chat/stream"), 200),
        (chunked(GOOD[:9], GOOD[9:]) + b"0\r\n\r\n", 200),
        (chunked() + b"0\r\n\r\n", 400),
        (post(body=b"{oops"), 400),
        (post(body=b"x" * (LIMIT + 1)), 413),
        (post("/v1/chat", b"x" * 9, "Content-Type: text/plain"), 400),
        (post("/v1/chat", b"x" * (LIMIT + 1), "Content-Type: text/plain"), 400),
        (post("/v1/chat", GOOD, "Content-Encoding: br"), 415),
        (post("/v1/chat", GOOD, "Content-Encoding: gzip"), 400),
        (post("/v1/chat", gzip.compress(b" " * 100_000_000), "Content-Encoding: gzip"), 413),
        (request("GET", "/nowhere"), 404),
        (request("HEAD", "/health"), 200),
        (request("OPTIONS", "/v1/chat"), 204),
        (request("OPTIONS", "*"), 204),
        (request("OPTIONS", "/v1/chat", b"x" * LIMIT), 204),
        (post("/v1/chat", b"x" * LIMIT, "Origin: https://evil.example"), 500),
    ],
)
async def test_connection_stays_usable(serve: Serve, asked: bytes, status: int) -> None:
    """Whatever the answer is, another request on the same connection gets its own."""
    server = await serve()

    async with connect(server.url) as connection:
        assert (await connection.ask(asked)).status == status
        assert await connection.is_open()


async def test_stream_keeps_its_connection_although_asked_to_close_it(serve: Serve) -> None:
    """A client that reads to the end of the connection waits for the idle time (protocol.md §3.9)."""
    server = await serve()

    async with connect(server.url) as connection:
        answer = await connection.ask(post("/v1/chat/stream", GOOD, "Connection: close"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connection.reader.read(), 0.05)

    assert answer.header("Connection") == "keep-alive"


async def test_json_connection_is_closed_when_asked(serve: Serve) -> None:
    """Unlike a stream's."""
    server = await serve()

    async with connect(server.url) as connection:
        answer = await connection.ask(post("/v1/chat", GOOD, "Connection: close"))
        assert await connection.reader.read() == b""

    assert (answer.header("Connection"), answer.header("Keep-Alive")) == ("close", None)


async def test_idle_connection_is_closed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second after the announced time; here the announced time is almost a second ago."""
    monkeypatch.setattr("aheadless.server.connection.KEEP_ALIVE_SECONDS", -0.95)
    server = await serve()

    async with connect(server.url) as connection:
        assert (await connection.ask(post())).status == 200
        assert await connection.reader.read() == b""


async def test_a_flood_of_connections(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit they are closed at once; those before it go on, and one that ends makes room."""
    monkeypatch.setattr(app, "SPARE_CONNECTIONS", 0)
    server = await serve(max_replies=1)

    async with connect(server.url) as first:
        async with connect(server.url) as second, connect(server.url) as third:
            assert await second.is_open()
            assert not await third.is_open()
            assert await first.is_open()
        while not await is_accepted(server.url):
            pass  # the server has not noticed yet that they have gone


async def is_accepted(url: str) -> bool:
    async with connect(url) as connection:
        return await connection.is_open()


async def test_stream_for_http_1_0(serve: Serve) -> None:
    """Many proxies speak it: no chunks, and the end of the connection is the end of the stream."""
    server = await serve()

    async with connect(server.url) as connection:
        answer = await connection.ask(post("/v1/chat/stream", GOOD, "Connection: keep-alive", version="1.0"))

    assert answer.header("Transfer-Encoding") is None
    assert answer.header("Connection") == "close"
    assert [event["type"] for event in answer.events] == ["start", "token", "token", "token", "done"]


async def test_pipelined_requests(serve: Serve) -> None:
    """Answered in order, each by itself."""
    server = await serve()

    async with connect(server.url) as connection:
        connection.writer.write(post("/v1/chat/stream") + post() + request("GET", "/health"))
        answers = [await connection.answer() for _ in range(3)]

    assert answers[0].events[-1]["type"] == "done"
    assert json.loads(answers[1].body)["message"] == "hello big world"
    assert answers[2].text == '{"status":"ok"}'


async def test_expect_continue(serve: Serve) -> None:
    """The client is told to go on before it sends the body."""
    server = await serve()
    head, _, rest = post("/v1/chat", GOOD, "Expect: 100-continue").partition(b"\r\n\r\n")

    async with connect(server.url) as connection:
        assert (await connection.ask(head + b"\r\n\r\n")).status == 100
        assert (await connection.ask(rest)).status == 200


async def test_upload_that_never_ends(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stops sending does not hold its connection for ever."""
    monkeypatch.setattr(body, "UPLOAD_TIMEOUT", 0.01)
    server = await serve()

    async with connect(server.url) as connection:
        assert (await connection.ask(chunked(GOOD[:9]))).status == 408


async def test_upload_without_a_bound(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draining has an end, too: the answer comes before the upload's end."""
    monkeypatch.setattr(body, "MAX_DRAIN", LIMIT + 10)
    server = await serve()
    long = chunked(b"x" * (LIMIT + 11)).removesuffix(b"\r\n")

    async with connect(server.url) as connection:
        assert (await connection.ask(long)).status == 413
    async with connect(server.url) as connection:
        assert (await connection.ask(long.replace(b"application/json", b"text/plain"))).status == 400


@pytest.mark.parametrize("coding", ["identity", "gzip"])
async def test_a_flood_of_large_uploads(serve: Serve, monkeypatch: pytest.MonkeyPatch, coding: str) -> None:
    """Beyond the room for them they are refused, messages are not; what an upload held is free when it has ended."""
    monkeypatch.setattr(body.Room.__init__, "__defaults__", (100_000,))
    server = await serve()
    large = GOOD.replace(b"{", b'{"x":"%b",' % (b"y" * 80_000))
    large = gzip.compress(large) if coding == "gzip" else large
    asked = post("/v1/chat", large, f"Content-Encoding: {coding}")

    async with connect(server.url) as slow, connect(server.url) as other:
        slow.writer.write(chunked(b'{"x":"' + b"y" * 90_000))
        while (refused := await other.ask(asked)).status == 200:
            pass  # the slow one's bytes are not there yet
        assert await other.is_open()
        assert (await ask(server.url, post())).status == 200
        assert (await slow.ask(b'2\r\n"}\r\n0\r\n\r\n')).status == 400
        accepted = await other.ask(asked)

    assert (refused.status, refused.body) == (503, error_page(503).body)
    assert accepted.status == 200


async def test_what_is_kept_of_a_request(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its two fields: others, of which 2 MiB become much more in memory, are gone before the reply is written."""
    payloads: list[object] = []

    def parse(payload: object) -> ChatRequest:
        payloads.append(payload)
        return parse_request(payload)

    monkeypatch.setattr(api, "parse_request", parse)
    server = await serve()

    assert (await ask(server.url, post(body=GOOD.replace(b"{", b'{"x":[[],[]],')))).status == 200
    assert payloads == [{"sessionId": "s", "message": "Hi"}]


async def test_broken_chunks(serve: Serve) -> None:
    """A body that breaks HTTP itself is a 400, and the server goes on."""
    server = await serve()

    async with connect(server.url) as connection:
        assert (await connection.ask(chunked(GOOD) + b"oops\r\n")).status == 400
    assert (await ask(server.url, post())).status == 200


# --- what is no HTTP --------------------------------------------------------------------------------------------------

HEADER = f"x-api-key: {KEY}"
NO_HTTP = {
    "a control character in the key": request("POST", "/v1/chat", b"", f"{HEADER}\x7f"),
    "a header without a colon": request("GET", "/health", b"", KEY),
    "a method that does not exist": request(KEY, "/health"),
    "a raw byte in the path": request("GET", "/\xff", b"", HEADER),
    "a URL that is none": request("GET", f"http://[{KEY}", b"", HEADER),
    "POST *": request("POST", "*", b"", HEADER),
    "two content types": post("/v1/chat", GOOD, JSON_TYPE, JSON_TYPE),
    "no Host": f"GET /health HTTP/1.1\r\n{HEADER}\r\n\r\n".encode(),
    "two Hosts": request("GET", "/health", b"", "Host: y", HEADER),
    "a header that is too long": request("GET", "/health", b"", f"x-api-key: {KEY * 300}"),
    "too many headers": request("GET", "/health", b"", *[HEADER] * 200),
    "a wrong length": request("POST", "/v1/chat", b"", HEADER, f"Content-Length: {KEY}"),
    "another version": request("GET", "/health", b"", HEADER, version="3.7"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + KEY.encode() * 10,
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_no_http(serve: Serve, caplog: pytest.LogCaptureFixture, sent: bytes) -> None:
    """A 400 like every other, which quotes nothing; one line in the log, which a server does not even write."""
    caplog.set_level("DEBUG")
    server = await serve(production=True)

    async with connect(server.url) as connection:
        answer = await connection.ask(sent)
        assert await connection.reader.read() == b"", "the connection is closed"

    assert (answer.version, answer.status) == ("HTTP/1.1", 400)
    assert answer.body == error_page(400).body
    assert {name: value for name, value in answer.headers if name != "Date"} == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "default-src 'none'",
        "Content-Length": str(len(answer.body)),
        "Server": "aheadless",
        "Vary": "Origin",
        **SECURITY_HEADERS,
        "Strict-Transport-Security": STRICT_TRANSPORT,
        "Connection": "close",
    }
    [record] = [record for record in caplog.records if record.name != "asyncio"]
    assert record.name == "aheadless.server"
    assert record.levelname == "INFO"
    assert re.fullmatch(r"Error handling request from 127\.0\.0\.1: [A-Za-z]+", record.getMessage())
    assert record.exc_info is None
    assert KEY not in caplog.text


async def test_no_http_after_a_good_request(serve: Serve) -> None:
    """It is refused like that which comes first on a connection."""
    server = await serve()

    async with connect(server.url) as connection:
        assert (await connection.ask(post())).status == 200
        assert (await connection.ask(b"\xff\r\n\r\n")).body == error_page(400).body
        assert await connection.reader.read() == b""


# --- the order of the checks ------------------------------------------------------------------------------------------


async def test_each_check_hides_the_next(serve: Serve) -> None:
    """CORS, body, route, rate limit, key, payload: with everything wrong, the first one speaks."""
    server = await serve(rate_limit=RateLimit(2, per=60))
    wrong_key = ["x-api-key: wrong", JSON_TYPE]

    async def status(path: str, content: bytes, *headers: str) -> int:
        return (await ask(server.url, request("POST", path, content, *headers))).status

    assert await status("/nowhere", b"{", *wrong_key, "Origin: https://evil.example") == 500
    assert await status("/nowhere", b"{", *wrong_key) == 400
    assert await status("/nowhere", b"{}", *wrong_key) == 404
    assert await status("/chat", b"{}", *wrong_key) == 401
    assert await status("/chat", b"{}", f"x-api-key: {KEY}", JSON_TYPE) == 400
    assert await status("/chat", b"{}", *wrong_key) == 429
    assert await status("/chat", b"{", *wrong_key) == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/chat", 200),
        ("/V1/CHAT", 200),
        ("/v1/chat/", 200),
        ("/v1/chat?x=1", 200),
        ("/v1/chat/?x=/nowhere", 200),
        ("http://elsewhere.example/v1/chat", 200),
        ("//v1/chat", 404),
        ("/v1//chat", 404),
        ("/v1/chat//", 404),
        ("/v1/ch%61t", 404),
        ("/v1/./chat", 404),
        ("/v1/chat/stream/x", 404),
        ("/", 404),
    ],
)
async def test_paths(serve: Serve, path: str, status: int) -> None:
    """A trailing slash, upper case and a query are accepted, nothing else is."""
    server = await serve()

    assert (await ask(server.url, post(path))).status == status


@pytest.mark.parametrize("path", ["", "/", "?limit=1", "/?limit=1", "?LIMIT=0"])
async def test_paths_of_the_list(serve: Serve, path: str) -> None:
    """An empty id is the list; an unknown parameter counts for nothing."""
    server = await serve()

    answer = await admin(server.url, path)

    assert answer.text == '{"conversations":[],"total":0}'


@pytest.mark.parametrize("path", ["//", "/a/b", "/a//"])
async def test_paths_below_the_list(serve: Serve, path: str) -> None:
    """One segment is an id, more are nothing."""
    server = await serve()

    assert (await admin(server.url, path)).header("Content-Type") == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "query", ["?limit=1&limit=2", "?limit=%2B5", "?limit=0x10", "?limit=1e2", "?limit=9999", "?limit= 5"]
)
async def test_limit_is_a_plain_number(serve: Serve, query: str) -> None:
    """From 1 to 200, once."""
    server = await serve()

    assert (await admin(server.url, query.replace(" ", "%20"))).text == '{"error":"Invalid query parameters"}'


async def admin(url: str, path: str) -> Answer:
    return await ask(url, request("GET", f"/v1/admin/conversations{path}", b"", f"x-admin-api-key: {ADMIN_KEY}"))


async def test_every_answer_carries_the_headers(serve: Serve) -> None:
    """Refusals and unknown methods, too; and none tells what runs here."""
    server = await serve(production=True)

    for asked in (
        post(),
        post(body=b"{"),
        request("OPTIONS", "*"),
        request("PROPFIND", "/"),
        request("GET", "/health"),
    ):
        answer = await ask(server.url, asked)
        assert answer.header("Vary") == "Origin"
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert answer.header("X-Frame-Options") == "DENY"
        assert answer.header("Referrer-Policy") == "no-referrer"
        assert answer.header("Permissions-Policy") == "camera=(), microphone=(), geolocation=()"
        assert answer.header("Strict-Transport-Security") == "max-age=31536000; includeSubDomains"
        assert answer.header("Server") == "aheadless"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "GZIP", "identity"])
async def test_codings(serve: Serve, coding: str) -> None:
    """Read by any spelling, and in several members."""
    server = await serve()
    packed = {"gzip": gzip.compress(GOOD[:5]) + gzip.compress(GOOD[5:]), "deflate": zlib.compress(GOOD)}

    content = packed.get(coding.lower(), GOOD)

    assert (await ask(server.url, post("/v1/chat", content, f"Content-Encoding: {coding}"))).status == 200


# --- clients that leave -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_client_leaves_before_the_first_token(serve: Serve, tmp_path: Path, path: str) -> None:
    """The reply is written and stored all the same."""
    asked, gate = asyncio.Event(), asyncio.Event()

    class Engine(ScriptedEngine):
        def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
            asked.set()
            return super().reply(history)

    database = tmp_path / "chat.db"
    server = await serve(engine=Engine(["a", gate, "b", " c"]), database=database)
    async with connect(server.url) as connection:
        connection.writer.write(post(path))
        await asked.wait()
    gate.set()

    assert await stored(server.url) == [("user", "Hi"), ("assistant", "ab c")]


async def stored(url: str) -> list[tuple[str, str]]:
    """Return the messages of the one conversation as soon as the reply is among them."""
    while True:
        conversation = json.loads((await admin(url, "")).body)["conversations"][0]
        messages = json.loads((await admin(url, f"/{conversation['_id']}")).body)["messages"]
        if messages[-1]["role"] == "assistant":
            return [(message["role"], message["content"]) for message in messages]


async def test_client_leaves_in_its_upload(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is stored, and the server goes on; there is nothing to warn of."""
    server = await serve()

    async with connect(server.url) as connection:
        connection.writer.write(post()[:-5])
        await connection.writer.drain()

    assert (await admin(server.url, "")).text == '{"conversations":[],"total":0}'
    assert caplog.records == []


async def test_a_client_that_does_not_read(serve: Serve) -> None:
    """It holds up neither its own reply nor another client."""
    large = ["x" * 100_000] * 10
    server = await serve(engine=ScriptedEngine(large, ["hello"]))

    async with connect(server.url) as idle:
        idle.writer.write(post("/v1/chat/stream"))
        await idle.reader.readuntil(b"start")
        assert [role for role, _ in await stored(server.url)] == ["user", "assistant"]
        assert json.loads((await ask(server.url, post())).body)["message"] == "hello"


async def test_a_client_that_reads_late(serve: Serve) -> None:
    """It gets all, each event in a chunk of its own although they were sent together, and can ask again."""
    server = await serve(engine=ScriptedEngine(["é" * 2000] * 250, ["hello"]))

    async with connect(server.url) as late:
        late.writer.write(post("/v1/chat/stream"))
        assert [role for role, _ in await stored(server.url)] == ["user", "assistant"]
        answer = await late.answer()
        assert await late.is_open()

    lines = answer.body.splitlines(keepends=True)
    assert [event["type"] for event in answer.events] == ["start", *["token"] * 250, "done"]
    assert answer.chunk_sizes == [len(line) for line in lines]


async def test_tokens_arrive_one_by_one(serve: Serve) -> None:
    """Each is sent when the model gives it: here none is given before the one before it was read."""
    gates = [asyncio.Event() for _ in range(3)]
    server = await serve(engine=ScriptedEngine([gates[0], "a", gates[1], "b", gates[2]]))
    kinds = []

    async with connect(server.url) as connection:
        connection.writer.write(post("/v1/chat/stream"))
        await connection.reader.readuntil(b"\r\n\r\n")
        async for chunk in connection.chunks():
            kinds.append(json.loads(chunk)["type"])
            gates[min(len(kinds), 3) - 1].set()

    assert kinds == ["start", "token", "token", "done"]
