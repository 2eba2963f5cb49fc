"""What was recorded on the reference server, asked again of ours."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aheadless import RateLimit
from aheadless.server import RunningServer, ScriptedEngine
from aheadless.server.engines.simple import Step
from tests.server.conftest import Serve
from tests.server.wire import GOOD, Answer, ask, connect, post, request
from tests.support import ADMIN_KEY, recorded

EXCHANGES = recorded()
ID = "x" * 32

# What the model did in each recorded stream can be read in its tokens; these did something else besides.
ENDINGS: dict[str, Sequence[Step]] = {
    "model_stream_fail": [RuntimeError("refused")],
    "model_stream_cut": [RuntimeError("broken")],
    "model_stalls": [asyncio.Event()],
}
STREAMS = [
    name
    for name, exchange in EXCHANGES.items()
    if exchange["chunk_sizes"] and name not in {"server_killed", "store_reply_fails"}
]


def script(name: str) -> list[Step]:
    events = [json.loads(line) for line in EXCHANGES[name]["body"].split("\n") if line]
    return [*(event["token"] for event in events if event["type"] == "token"), *ENDINGS.get(name, [])]


def assert_in_kind(answer: Answer, name: str) -> None:
    """The answer is the recorded one, but for ids, the date and the words of an error page."""
    exchange = EXCHANGES[name]
    page = "text/html" in dict(exchange["headers"])["Content-Type"]
    dropped = {"Date", "Server", *(["Content-Length"] if page else [])}
    expected = {(key, value) for key, value in exchange["headers"] if key not in dropped}
    found = {(key, value) for key, value in answer.headers if key not in dropped}

    assert answer.status == exchange["status"]
    assert expected <= found
    # A refused Origin gets fewer headers on the reference; protocol.md gives them to every answer.
    assert found == expected or name == "prod_cors_bad"
    assert answer.chunk_sizes == exchange["chunk_sizes"]
    if page:
        assert answer.text.startswith("<!DOCTYPE html>")
    else:
        assert anonymous(answer.text) == anonymous(exchange["body"])


def anonymous(text: str) -> str:
    text = re.sub(r'"[jk][a-z0-9]{31}"', f'"{ID}"', text)
    return re.sub(r'("(?:_creationTime|createdAt|updatedAt)":)[0-9.]+', r"\g<1>0", text)


@pytest.mark.parametrize("name", STREAMS)
async def test_stream(serve: Serve, name: str) -> None:
    """Headers, body and chunks."""
    server = await serve(engine=ScriptedEngine(script(name)), reply_timeout=0.05 if name == "model_stalls" else 300)

    answer = await ask(server.url, post("/chat" if "alias" in name else "/v1/chat/stream"))

    assert_in_kind(answer, name)


async def test_store_reply_fails(serve: Serve, tmp_path: Path) -> None:
    """All tokens, then `error`."""
    path, gate = tmp_path / "chat.db", asyncio.Event()
    server = await serve(database=path, engine=ScriptedEngine([*script("store_reply_fails"), gate]))

    async with connect(server.url) as connection:
        connection.writer.write(post("/v1/chat/stream"))
        await connection.reader.readuntil(b"tok0")
        with sqlite3.connect(path) as other:
            other.execute("DROP TABLE messages")
        other.close()
        gate.set()
        rest = await connection.reader.readuntil(b"0\r\n\r\n")

    lines = EXCHANGES["store_reply_fails"]["body"].split("\n")
    assert [line for line in rest.decode().split("\r\n") if line.startswith("{")] == [
        f"{line}\n" for line in lines[2:-1]
    ]


async def test_json(serve: Serve) -> None:
    """One object, or a failure."""
    server = await serve()
    failing = await serve(engine=ScriptedEngine([RuntimeError("refused")]))

    assert_in_kind(await ask(server.url, post()), "chat_json_ok")
    assert_in_kind(await ask(failing.url, post()), "model_json_fail")


async def test_refusals(serve: Serve) -> None:
    """Before anything is stored."""
    server = await serve(rate_limit=RateLimit(1, per=60))

    without_key = request("POST", "/v1/chat/stream", GOOD, "Content-Type: application/json")
    assert_in_kind(await ask(server.url, without_key), "401_missing_stream")
    assert_in_kind(await ask(server.url, post("/v1/chat/stream")), "429_stream")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("prod_400_payload", post(body=b"{}")),
        ("prod_400_malformed", post(body=b"{oops")),
        ("prod_413", post(body=b"x" * 2_097_153)),
        ("prod_404", request("GET", "/v1/chat")),
        ("prod_cors_bad", post("/v1/chat", GOOD, "Origin: https://evil.example")),
    ],
)
async def test_production(serve: Serve, name: str, asked: bytes) -> None:
    """Pages and refusals as production sends them."""
    server = await serve(production=True)

    assert_in_kind(await ask(server.url, asked), name)


async def admin_get(server: RunningServer, path: str = "") -> Answer:
    return await ask(server.url, request("GET", f"/v1/admin/conversations{path}", b"", f"x-admin-api-key: {ADMIN_KEY}"))


async def test_admin(serve: Serve) -> None:
    """The objects have the recorded fields, in the recorded order, of the recorded types."""
    expected = json.loads(EXCHANGES["admin_list"]["body"])
    tokens = [f"tok{number} " for number in range(200)]
    server = await serve(engine=ScriptedEngine(["hello number 1"], ["hello number 2"], tokens))
    for number in (1, 2, 0):
        body = b'{"sessionId":"adm-%d","message":"hello number %d"}' % (number, number)
        await ask(server.url, post(body=body))

    page = await admin_get(server)
    found: Any = json.loads(page.body)
    thread = await admin_get(server, f"/{found['conversations'][-1]['_id']}")

    shape = [[(key, type(value)) for key, value in conversation.items()] for conversation in expected["conversations"]]
    assert [[(key, type(value)) for key, value in c.items()] for c in found["conversations"]] == shape
    assert found["total"] == 3
    assert found["conversations"][0]["sessionId"] == "adm-0"
    assert found["conversations"][0]["lastMessage"] == expected["conversations"][0]["lastMessage"]
    # The lengths differ: a time may have fewer digits.
    assert anonymous(thread.text) == anonymous(EXCHANGES["admin_thread"]["body"])


async def test_admin_refusals(serve: Serve) -> None:
    """An id of nothing, and a deployment without an admin key."""
    server, keyless = await serve(), await serve(admin_key=None)

    assert_in_kind(await admin_get(server, f"/{ID}"), "admin_404")
    assert_in_kind(await admin_get(keyless), "admin_503_list")
