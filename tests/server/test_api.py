"""The API on a real socket, point by point as protocol.md and the recorded exchanges have it."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import re
import zlib
from typing import Any

import aiohttp
import pytest
from openapi_spec_validator import validate

from aheadless import ChatClient, Done, RateLimit, ServerError, Start, Token
from aheadless.server import ScriptedEngine
from aheadless.server.replies import MAX_REPLY
from tests.server.conftest import Serve
from tests.support import ADMIN_KEY, KEY, recorded

GOOD = {"sessionId": "s", "message": "Hi"}
HEADERS = {"x-api-key": KEY, "Content-Type": "application/json"}
CHAT = ["/v1/chat", "/v1/chat/stream", "/chat"]


async def post(
    http: aiohttp.ClientSession, url: str, body: object = GOOD, headers: Any = HEADERS
) -> tuple[int, str, Any]:
    """Post, and return the status, the content type and the body."""
    # A file, because aiohttp warns of large bodies that are bytes.
    data = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with http.post(url, data=data, headers=headers, skip_auto_headers=["Content-Type"]) as response:
        text = await response.text()
        kind = response.headers.get("Content-Type", "")
        return response.status, kind, json.loads(text) if kind.startswith("application/json") else text


async def raw(url: str, request: bytes, *, until: bytes = b"") -> bytes:
    """Send bytes, and return what comes until the connection closes or `until` is seen."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = b""
    while not (until and until in answer):
        if not (piece := await reader.read(65536)):
            break
        answer += piece
    writer.close()
    await writer.wait_closed()
    return answer


def raw_post(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    fields = ["Host: x", "Connection: close", f"Content-Length: {len(body)}", *headers]
    return (
        f"{method} {path} HTTP/1.1\r\n".encode()
        + "".join(f"{f}\r\n" for f in fields).encode("latin-1")
        + b"\r\n"
        + body
    )


RAW = json.dumps(GOOD).encode()
JSON_TYPE = "Content-Type: application/json"


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/stream", "/chat", "/V1/Chat/Stream/", "/v1/chat/stream?x=1"])
async def test_stream_byte_for_byte(serve: Serve, path: str) -> None:
    """Headers, events and chunks are those that were recorded; only the ids differ."""
    server = await serve()

    answer = await raw(server.url, raw_post(path, RAW, JSON_TYPE, f"x-api-key: {KEY}"), until=b"0\r\n\r\n")

    header, _, body = answer.partition(b"\r\n\r\n")
    exchange = recorded()["chat_alias_ok"]
    status, *fields = header.decode().split("\r\n")
    found = {tuple(field.split(": ", 1)) for field in fields}
    assert status == "HTTP/1.1 200 OK"
    assert {(name, value) for name, value in exchange["headers"] if name != "Connection"} <= found
    sizes = [int(size, 16) for size in re.findall(rb"(?:^|\r\n)([0-9a-f]+)\r\n\{", body)]
    assert sizes == exchange["chunk_sizes"]
    ids = {*re.findall(r'"conversationId":"([a-z0-9]{32})"', body.decode())}
    assert len(ids) == 1
    text = "".join(re.findall(r"\{.*\}\n", body.decode())).replace(ids.pop(), "j5705jz09wdrkwnzzqhnbgtx6c5qwgc5")
    assert text == exchange["body"]


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("model_stream_fail", [RuntimeError("no")]),
        ("model_stream_cut", ["tok0", " tok1", " tok2", RuntimeError("no")]),
        ("model_stream_eof_2", ["tok0", " tok1"]),
        ("frame_empty", []),
        ("frame_surrogate", ["x", "\ud83d", "\ude00", "y"]),
        ("frame_trim", ["\ufeff\xa0\u3000 \x85\x1c", "core", "\x1f\x85 \u2029\ufeff"]),
        ("frame_ws", ["\n\n  ", "Hello", "  ", "\n", "world", " \t", "\n\n", "  \n"]),
    ],
)
async def test_recorded_streams(serve: Serve, http: aiohttp.ClientSession, name: str, script: Any) -> None:
    """Our server answers in kind."""
    server = await serve(engine=ScriptedEngine(script))

    _, _, body = await post(http, server.url + "/v1/chat/stream")

    def anonymous(text: str) -> str:
        return re.sub(r'"conversationId":"[a-z0-9]{32}"', '"conversationId":"…"', text)

    assert anonymous(body)[-200:] == anonymous(recorded()[name]["body"])[-200:]


async def test_start_comes_before_the_model_is_asked(serve: Serve) -> None:
    """And each token as soon as the model gives it."""
    gates = [asyncio.Event() for _ in range(3)]
    engine = ScriptedEngine([gates[0], "a", gates[1], "b", gates[2]])
    server = await serve(engine=engine)
    found = []

    async with ChatClient(server.url, api_key=KEY) as client:
        async for event in client.chat("s").stream("Hi"):
            found.append(type(event))
            gates[min(len(found) - 1, 2)].set()

    assert found == [Start, Token, Token, Done]


async def test_json_reply(serve: Serve, http: aiohttp.ClientSession) -> None:
    """POST /v1/chat answers as recorded."""
    server = await serve()

    async with http.post(server.url + "/v1/chat", json=GOOD, headers=HEADERS) as response:
        body = await response.json()

    assert response.status == 200
    expected = dict(recorded()["chat_json_ok"]["headers"])
    assert {name: response.headers.get(name) for name in expected} == {**expected, "Content-Length": "81"}
    assert body["message"] == "hello big world"
    assert re.fullmatch(r"[a-z0-9]{32}", body["conversationId"])


async def test_json_failure(serve: Serve, http: aiohttp.ClientSession) -> None:
    """The model failed: 500, and only the question is stored."""
    server = await serve(engine=ScriptedEngine([ValueError("secret text")]))

    assert await post(http, server.url + "/v1/chat") == (
        500,
        "application/json; charset=utf-8",
        {"error": "Internal server error"},
    )
    assert [message["role"] for message in await _messages(http, server.url)] == ["user"]


async def _messages(http: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    headers = {"x-admin-api-key": ADMIN_KEY}
    async with http.get(url + "/v1/admin/conversations", headers=headers) as response:
        conversations = (await response.json())["conversations"]
    async with http.get(f"{url}/v1/admin/conversations/{conversations[0]['_id']}", headers=headers) as response:
        messages: list[dict[str, Any]] = (await response.json())["messages"]
        return messages


async def test_history_window(serve: Serve) -> None:
    """The model gets the last 30 messages, the question last; the texts as they are stored."""
    engine = ScriptedEngine([" ok "])
    server = await serve(engine=engine)
    async with ChatClient(server.url, api_key=KEY) as client:
        for number in range(20):
            await client.chat("s").send(f" {number} ")

    assert [len(history) for history in engine.asked] == [*range(1, 30, 2), *[30] * 5]
    assert [(message.role, message.text) for message in engine.asked[-1][-3:]] == [
        ("user", " 18 "),
        ("assistant", "ok"),
        ("user", " 19 "),
    ]


async def test_reply_is_stored_though_the_client_has_gone(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Cancelling does not cancel the server."""
    gate = asyncio.Event()
    server = await serve(engine=ScriptedEngine(["a", gate, "b"]))
    async with ChatClient(server.url, api_key=KEY, admin_key=ADMIN_KEY) as client:
        chat = client.chat("s")
        async for event in chat.stream("Hi"):
            if isinstance(event, Token):
                break
        gate.set()
        while True:
            messages = await _messages(http, server.url)
            if len(messages) == 2:
                break

    assert [(m["role"], m["content"]) for m in messages] == [("user", "Hi"), ("assistant", "ab")]


async def test_shutdown_lets_replies_finish(tmp_path: Any) -> None:
    """A server that stops stores the replies that are being written first, and hangs for none."""
    from aheadless.server import ServerSettings, run_server

    gate = asyncio.Event()
    engine = ScriptedEngine(["a", gate, "b"], ["x", asyncio.Event()])
    settings = ServerSettings(
        port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=engine, database=tmp_path / "chat.db", shutdown_timeout=0.2
    )
    async with ChatClient("http://127.0.0.1:1", api_key=KEY) as _:
        async with run_server(settings) as server:
            client = ChatClient(server.url, api_key=KEY)
            seen = asyncio.Event()
            task = asyncio.create_task(client.chat("s").stream("Hi", on_token=lambda _: seen.set()).reply())
            await seen.wait()
            hanging = asyncio.create_task(client.chat("t").stream("Hi").reply())
            while len(engine.asked) < 2:
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(gate.set)
        assert (await task).text == "ab"
        with pytest.raises(Exception, match=r"gave up|ended"):
            await hanging
        await client.aclose()

    async with run_server(settings) as server, ChatClient(server.url, api_key=KEY, admin_key=ADMIN_KEY) as client:
        page = await client.admin.conversations()
        stored = {c.session_id: len((await client.admin.conversation(c.id)).messages) for c in page.conversations}
    assert stored == {"s": 2, "t": 1}


async def test_hanging_model(serve: Serve, http: aiohttp.ClientSession) -> None:
    """A model that never ends becomes an `error`."""
    server = await serve(engine=ScriptedEngine(["a", asyncio.Event()]), reply_timeout=0.05)

    _, _, body = await post(http, server.url + "/v1/chat/stream")

    assert body.endswith('{"type":"error","error":"Internal server error"}\n')


async def test_endless_model(serve: Serve) -> None:
    """What a model writes is bounded; beyond the bound it counts as ended."""
    server = await serve(engine=ScriptedEngine(["x" * 1000] * 2000))
    async with ChatClient(server.url, api_key=KEY) as client:
        reply = await client.chat("s").stream("Hi")

    assert MAX_REPLY - 1000 <= len(reply.text) <= MAX_REPLY


async def test_too_many_replies(serve: Serve) -> None:
    """The bound of replies is a 503 before anything is stored."""
    server = await serve(engine=ScriptedEngine(["a", asyncio.Event()]), max_replies=1, shutdown_timeout=0.01)
    async with ChatClient(server.url, api_key=KEY) as client:
        async with client.chat("a").stream("Hi") as stream:
            await anext(aiter(stream))
            with pytest.raises(ServerError) as caught:
                await client.chat("b").stream("Hi")

    assert caught.value.status == 503


# --- the checks, in their order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"null", 400),
        (b'"text"', 400),
        (b"5", 400),
        (b" ", 400),
        (b'{"a": NaN}', 400),
        (b'{"sessionId":"s","message":"a\nb"}', 400),
        (b"[" * 100_000, 400),
    ],
)
@pytest.mark.parametrize("path", [*CHAT, "/nowhere"])
async def test_malformed_json(serve: Serve, http: aiohttp.ClientSession, body: bytes, status: int, path: str) -> None:
    """An error page, before route, rate limit and key are looked at."""
    server = await serve(rate_limit=RateLimit(1, per=60))
    for _ in range(3):
        found, kind, text = await post(http, server.url + path, body, {"Content-Type": "application/json"})
        assert (found, kind) == (status, "text/html; charset=utf-8")
        assert text == recorded()["prod_400_malformed"]["body"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        b"",
        {"sessionId": "s"},
        {"message": "m"},
        {"sessionId": "s", "message": ""},
        {"sessionId": "s\n", "message": "m"},
        {"sessionId": "é", "message": "m"},
        {"sessionId": "s", "message": 5},
        {"sessionId": "s", "message": "x" * 4001},
        {"sessionId": "s", "message": "😀" * 2001},
    ],
)
async def test_invalid_payload(serve: Serve, http: aiohttp.ClientSession, body: object) -> None:
    """JSON that is no request: details in development, none in production."""
    server = await serve()
    production = await serve(production=True)

    for path in CHAT:
        status, _, answer = await post(http, server.url + path, body)
        assert (status, answer["error"]) == (400, "Invalid request payload")
        assert set(answer) == {"error", "details"}
    assert (await post(http, production.url + "/v1/chat", body))[2] == {"error": "Invalid request payload"}


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
async def test_other_content_types(serve: Serve, http: aiohttp.ClientSession, kind: str) -> None:
    """Not application/json: the body does not count."""
    server = await serve()

    assert (await post(http, server.url + "/v1/chat", headers={**HEADERS, "Content-Type": kind}))[0] == 400
    assert (await post(http, server.url + "/v1/chat", b"", {"x-api-key": KEY}))[0] == 400


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"sessionId":"s","message":"m"}',
        b'{"sessionId":"x y","sessionId":"s","message":"m","other":[1e999]}',
        b'{"sessionId":"s","message":"\xff"}',
        b'{"sessionId":"s","message":"m","n":' + b"1" * 5000 + b"}",
        b'{"sessionId":"s","message":" "}',
        b'{"sessionId":"s","message":"\\ud83d"}',
    ],
)
async def test_lenient_reading(serve: Serve, http: aiohttp.ClientSession, body: bytes) -> None:
    """A BOM, repeated keys, bytes that are no UTF-8, unknown fields."""
    server = await serve()

    assert (await post(http, server.url + "/v1/chat", body))[0] == 200


async def test_codings(serve: Serve, http: aiohttp.ClientSession) -> None:
    """gzip and deflate are read, a broken one is 400, others 415; a bomb is too large."""
    server = await serve()

    async def status(body: bytes, **headers: str) -> int:
        return (await post(http, server.url + "/v1/chat", body, {**HEADERS, **headers}))[0]

    assert await status(gzip.compress(RAW), **{"Content-Encoding": "gzip"}) == 200
    assert await status(zlib.compress(RAW), **{"Content-Encoding": "deflate"}) == 200
    assert await status(b"no gzip", **{"Content-Encoding": "gzip"}) == 400
    assert await status(RAW, **{"Content-Encoding": "br"}) == 415
    assert await status(RAW, **{"Content-Type": "application/json; charset=latin-1"}) == 415
    assert await status(RAW.decode().encode("utf-16"), **{"Content-Type": "application/json; charset=utf-16"}) == 200
    assert await status(gzip.compress(b" " * 3_000_000), **{"Content-Encoding": "gzip"}) == 413


async def test_too_large(serve: Serve) -> None:
    """413 after the upload, and the connection stays usable; one byte less is fine."""
    server = await serve()
    padding = 2_097_152 - len(b'{"sessionId":"s","message":"m","x":""}')
    largest = b'{"sessionId":"s","message":"m","x":"' + b"x" * padding + b'"}'

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as http:
        status, kind, body = await post(http, server.url + "/v1/chat", largest + b" ")
        assert (status, kind) == (413, "text/html; charset=utf-8")
        assert "Request Entity Too Large" in body or "Payload Too Large" in body or "Content Too Large" in body
        assert (await post(http, server.url + "/v1/chat", largest))[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/chat"),
        ("POST", "/health"),
        ("POST", "//v1/chat"),
        ("PUT", "/v1/chat"),
        ("GET", "/<b>"),
        ("GET", "/"),
    ],
)
async def test_unknown_routes(serve: Serve, method: str, path: str) -> None:
    """404 with a page, whatever the method; never 405."""
    server = await serve()

    answer = await raw(server.url, raw_post(path, b"", method=method))

    assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
    escaped = path.replace("<", "&lt;").replace(">", "&gt;")
    assert f"<pre>Cannot {method} {escaped}</pre>".encode() in answer
    assert b"Content-Security-Policy: default-src 'none'" in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([f"x-api-key: {KEY}"], 200),
        ([f"X-API-KEY: \t {KEY} \t"], 200),
        ([f"x-widget-api-key: {KEY}"], 200),
        ([f"x-api-key: {KEY}", "x-widget-api-key: wrong"], 200),
        (["x-api-key: wrong", f"x-widget-api-key: {KEY}"], 401),
        (["x-api-key:", f"x-widget-api-key: {KEY}"], 401),
        ([f"x-api-key: {KEY}", f"x-api-key: {KEY}"], 401),
        ([f"x-admin-api-key: {ADMIN_KEY}"], 401),
        (["x-api-key: \xe9"], 401),
        (["x-api-key: " + "x" * 8000], 401),
        ([], 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_keys(serve: Serve, headers: list[str], status: int, path: str) -> None:
    """Two headers, one rule: the new one alone counts if it is there, and it must be there once."""
    server = await serve()

    # A stream's connection stays open although the request asks to close it (protocol.md §3.9).
    answer = await raw(server.url, raw_post(path, RAW, JSON_TYPE, *headers), until=b"0\r\n\r\n")

    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    if status == 401:
        assert answer.endswith(b'\r\n\r\n{"error":"Unauthorized"}')


async def test_rate_limit(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Shared by the three routes, before the key; what is refused earlier does not count."""
    server = await serve(rate_limit=RateLimit(4, per=60), cors_origins=["https://a.example"])
    for _ in range(3):
        await post(http, server.url + "/v1/chat", b"{")
        await post(http, server.url + "/v1/chat", headers={**HEADERS, "Origin": "https://evil.example"})
        async with http.options(server.url + "/v1/chat") as response:
            assert response.status == 204
        async with http.get(server.url + "/health") as response:
            assert response.status == 200

    statuses = [
        (await post(http, server.url + "/v1/chat"))[0],
        (await post(http, server.url + "/v1/chat/stream", headers={"Content-Type": "application/json"}))[0],
        (await post(http, server.url + "/chat", {}))[0],
        (await post(http, server.url + "/v1/chat"))[0],
        (await post(http, server.url + "/v1/chat"))[0],
    ]

    assert statuses == [200, 401, 400, 200, 429]
    assert await post(http, server.url + "/chat", headers={"Content-Type": "application/json"}) == (
        429,
        "application/json; charset=utf-8",
        {"error": "Too many requests"},
    )


@pytest.mark.parametrize(
    ("proxies", "forwarded", "shared"),
    [
        (0, ["1.1.1.1", "2.2.2.2"], True),
        (1, ["1.1.1.1", "2.2.2.2"], False),
        (1, ["6.6.6.6, 1.1.1.1", "7.7.7.7, 1.1.1.1"], True),
        (2, ["1.1.1.1, 9.9.9.9", "2.2.2.2, 9.9.9.9"], False),
        (1, ["junk", "rubbish"], True),
        (2, ["1.1.1.1", "2.2.2.2"], True),
    ],
)
async def test_forwarded_for(
    serve: Serve, http: aiohttp.ClientSession, proxies: int, forwarded: list[str], shared: bool
) -> None:
    """Believed only behind as many proxies as were configured; what the client wrote itself never counts."""
    server = await serve(rate_limit=RateLimit(1, per=60), trusted_proxies=proxies)

    statuses = [
        (await post(http, server.url + "/v1/chat", headers={**HEADERS, "X-Forwarded-For": value}))[0]
        for value in forwarded
    ]

    assert statuses == [200, 429 if shared else 200]


async def test_cors(serve: Serve, http: aiohttp.ClientSession) -> None:
    """An allowed origin is echoed, another is a 500 page on every path."""
    server = await serve(cors_origins=["https://a.example"])

    async with http.post(
        server.url + "/v1/chat", json=GOOD, headers={**HEADERS, "Origin": "https://a.example"}
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "https://a.example"
    async with http.options(server.url + "/v1/chat", headers={"Origin": "https://a.example"}) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Methods"] == "GET,POST,OPTIONS"
        assert response.headers["Access-Control-Allow-Headers"] == (
            "Content-Type, x-api-key, x-widget-api-key, x-admin-api-key"
        )
    for path in ("/v1/chat", "/health", "/nowhere"):
        status, _, body = await post(http, server.url + path, headers={**HEADERS, "Origin": "https://evil.example"})
        assert (status, body) == (500, recorded()["prod_cors_bad"]["body"])


# --- the rest ---------------------------------------------------------------------------------------------------------


async def test_health(serve: Serve, http: aiohttp.ClientSession) -> None:
    """No key; HEAD too."""
    server = await serve(production=True)

    async with http.get(server.url + "/health") as response:
        assert await response.json() == {"status": "ok"}
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Keep-Alive"] == "timeout=5"
        assert response.headers["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
        assert response.headers["Server"] == "aheadless"
    async with http.head(server.url + "/HEALTH/") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_openapi(serve: Serve, http: aiohttp.ClientSession) -> None:
    """The document is valid and describes every route."""
    server = await serve()

    async with http.get(server.url + "/v1/openapi.json") as response:
        document = await response.json()

    validate(document)
    assert set(document["paths"]) == {
        *CHAT,
        "/health",
        "/v1/openapi.json",
        "/v1/admin/conversations",
        "/v1/admin/conversations/{conversationId}",
    }


async def test_admin(serve: Serve, http: aiohttp.ClientSession) -> None:
    """The newest conversation first; objects with the recorded keys."""
    server = await serve()
    async with ChatClient(server.url, api_key=KEY, admin_key=ADMIN_KEY) as client:
        for number in range(3):
            await client.chat(f"s{number}").send("Hi")
        await client.chat("s0").send("😀" * 600)
        page = await client.admin.conversations(limit=2)
        thread = await client.admin.conversation(page.conversations[0].id)

    assert page.total == 3
    assert [conversation.session_id for conversation in page.conversations] == ["s0", "s2"]
    assert [message.role for message in thread.messages] == ["user", "assistant"] * 2
    assert thread.conversation.last_message == "hello big world"
    headers = {"x-admin-api-key": ADMIN_KEY}
    async with http.get(server.url + "/v1/admin/conversations", headers=headers) as response:
        found = (await response.json())["conversations"][0]
    assert set(found) == set(json.loads(recorded()["admin_list"]["body"])["conversations"][0])
    async with http.get(f"{server.url}/v1/admin/conversations/{found['_id']}", headers=headers) as response:
        messages = (await response.json())["messages"]
    assert set(messages[0]) == set(json.loads(recorded()["admin_thread"]["body"])["messages"][0])


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("?limit=0", 400, "Invalid query parameters"),
        ("?limit=201", 400, "Invalid query parameters"),
        ("?limit=1.5", 400, "Invalid query parameters"),
        ("?limit=", 400, "Invalid query parameters"),
        ("/" + "a" * 32, 404, "Conversation not found"),
        ("/" + "a" * 129, 400, "Invalid conversationId"),
        ("/%00%ff", 404, "Conversation not found"),
    ],
)
async def test_admin_refusals(serve: Serve, http: aiohttp.ClientSession, path: str, status: int, error: str) -> None:
    """Each with its status."""
    server = await serve()

    async with http.get(
        server.url + "/v1/admin/conversations" + path, headers={"x-admin-api-key": ADMIN_KEY}
    ) as response:
        assert (response.status, await response.json()) == (status, {"error": error})


async def test_admin_keys(serve: Serve, http: aiohttp.ClientSession) -> None:
    """Only the admin key opens; without one the routes are not there to be opened."""
    server, without = await serve(), await serve(admin_key=None)

    async with http.get(server.url + "/v1/admin/conversations", headers={"x-api-key": KEY}) as response:
        assert response.status == 401
    async with http.get(without.url + "/v1/admin/conversations/x", headers={"x-api-key": KEY}) as response:
        assert (response.status, await response.text()) == (503, recorded()["admin_503_list"]["body"])


async def test_an_unexpected_failure_is_a_500(serve: Serve, http: aiohttp.ClientSession, tmp_path: Any) -> None:
    """A database that fails is told to nobody but the log."""
    server = await serve(database=tmp_path / "chat.db")
    import sqlite3

    with sqlite3.connect(tmp_path / "chat.db") as other:
        other.execute("DROP TABLE messages")
    other.close()

    for path in CHAT:
        status, _, body = await post(http, server.url + path)
        assert (status, body) == (500, {"error": "Internal server error"})


async def test_storing_the_reply_fails(serve: Serve, http: aiohttp.ClientSession, tmp_path: Any) -> None:
    """All tokens were sent, and then comes `error`."""
    import sqlite3

    gate = asyncio.Event()
    server = await serve(database=tmp_path / "chat.db", engine=ScriptedEngine(["tok0", " tok1", " tok2", gate]))
    async with ChatClient(server.url, api_key=KEY) as client:
        found = []
        with pytest.raises(Exception, match="gave up") as caught:
            async for event in client.chat("s").stream("Hi"):
                found.append(event)
                if isinstance(event, Token) and event.text == " tok2":
                    with sqlite3.connect(tmp_path / "chat.db") as other:
                        other.execute("ALTER TABLE messages RENAME TO lost")
                    other.close()
                    gate.set()

    assert len(found) == 4
    assert getattr(caught.value, "partial", None) == "tok0 tok1 tok2"
