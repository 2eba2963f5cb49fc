"""The API's description of itself: valid, and true of every kind of answer."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from aheadless import RateLimit
from aheadless.protocol.codec import MAX_MESSAGE_UNITS
from aheadless.server import ScriptedEngine, body
from aheadless.server.openapi import openapi_document
from tests.server.conftest import Serve
from tests.server.wire import GOOD, Answer, ask, connect, post, request
from tests.support import ADMIN_KEY

DOCUMENT = openapi_document()
LIST = "/v1/admin/conversations"
ONE = f"{LIST}/{{conversationId}}"


def assert_described(answer: Answer, method: str, path: str, document: dict[str, Any] = DOCUMENT) -> None:
    """The document knows this status here, this type of body, these headers; and the body fits its schema."""
    described = document["paths"][path][method]["responses"][str(answer.status)]
    media_type = (answer.header("Content-Type") or "").partition(";")[0]
    schema = described["content"][media_type]["schema"]
    for name in described["headers"]:
        header = document["components"]["headers"][name]
        if (value := answer.header(name)) is None:
            assert not header.get("required"), name
        else:
            check(int(value) if header["schema"].get("type") == "integer" else value, header["schema"])
    match media_type:
        case "application/json":
            check(json.loads(answer.body), schema)
        case "application/x-ndjson":
            for event in answer.events:
                check(event, schema)
        case _:
            check(answer.text, schema)


def check(value: object, schema: dict[str, Any]) -> None:
    OAS31Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def admin(path: str, *headers: str) -> bytes:
    return request("GET", path, b"", f"x-admin-api-key: {ADMIN_KEY}", *headers)


def test_valid() -> None:
    """By the standard's own schema; made anew each time, so that nobody can change it."""
    validate(DOCUMENT)
    assert openapi_document() is not openapi_document()


async def test_as_it_is_served(serve: Serve) -> None:
    """The same document, described by itself."""
    answer = await ask((await serve()).url, request("GET", "/v1/openapi.json"))

    assert json.loads(answer.body) == DOCUMENT
    assert_described(answer, "get", "/v1/openapi.json")


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream", "/chat"])
async def test_chat(serve: Serve, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every status that a chat request can get."""
    monkeypatch.setattr(body, "UPLOAD_TIMEOUT", 0.05)
    server = await serve(engine=ScriptedEngine(["a"]), rate_limit=RateLimit(4, per=60), production=True)
    gate = asyncio.Event()
    busy = await serve(engine=ScriptedEngine(["a", gate]), max_replies=1)
    failing = await serve(engine=ScriptedEngine([RuntimeError("no")]))
    answers = [
        await ask(server.url, asked)
        for asked in (
            post(path),
            post(path, b"{"),
            post(path, b"{}"),
            post(path, GOOD, "x-api-key: twice"),
            post(path, GOOD)[:-1],
            post(path, gzip.compress(b" " * 3_000_000), "Content-Encoding: gzip"),
            post(path, GOOD, "Content-Encoding: br"),
            post(path, GOOD, "Origin: https://evil.example"),
            post(path),
            post(path),
        )
    ]
    async with connect(busy.url) as connection:
        connection.writer.write(post("/v1/chat/stream"))
        await connection.reader.readuntil(b"token")
        answers.append(await ask(busy.url, post(path)))
        gate.set()
    answers.append(await ask(failing.url, post(path)))

    assert [answer.status for answer in answers[:-1]] == [200, 400, 400, 401, 408, 413, 415, 500, 200, 429, 503]
    for answer in answers:
        assert_described(answer, "post", path)


async def test_the_rest(serve: Serve) -> None:
    """Health and the admin routes."""
    server, keyless = await serve(), await serve(admin_key=None)
    await ask(server.url, post())
    conversation = json.loads((await ask(server.url, admin(LIST))).body)["conversations"][0]["_id"]
    stories = [
        (request("GET", "/health"), "/health", 200),
        (request("GET", "/health", b"", "Origin: https://evil.example"), "/health", 500),
        (admin(LIST), LIST, 200),
        (admin(f"{LIST}?limit=0"), LIST, 400),
        (request("GET", LIST), LIST, 401),
        (admin(LIST, "Origin: https://evil.example"), LIST, 500),
        (admin(f"{LIST}/{conversation}"), ONE, 200),
        (admin(f"{LIST}/{'x' * 129}"), ONE, 400),
        (request("GET", f"{LIST}/x"), ONE, 401),
        (admin(f"{LIST}/x"), ONE, 404),
    ]

    for asked, path, status in stories:
        answer = await ask(server.url, asked)
        assert answer.status == status
        assert_described(answer, "get", path)
    for path in (LIST, ONE):
        assert_described(await ask(keyless.url, admin(path)), "get", path)


def test_requests() -> None:
    """The schema of a request takes what the server takes."""
    schema = {"$ref": "#/components/schemas/ChatRequest"}

    check({"sessionId": "a.b_c:d-E9", "message": "x" * MAX_MESSAGE_UNITS, "more": None}, schema)
    refused: list[object] = [
        {},
        {"sessionId": "é", "message": "x"},
        {"sessionId": "s", "message": ""},
        {"sessionId": "s"},
        [],
    ]
    for wrong in refused:
        assert not OAS31Validator({**schema, "components": DOCUMENT["components"]}).is_valid(wrong)
