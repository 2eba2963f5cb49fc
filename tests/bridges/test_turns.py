"""Turns that outlive their browser: it comes back with `Last-Event-ID`, and misses nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aheadless import (
    AheadlessError,
    AuthenticationError,
    Chat,
    ChatClient,
    ClientClosedError,
    Failure,
    InvalidRequestError,
    ReplyFailedError,
    StreamInterruptedError,
    StreamStoppedError,
    UsageError,
)
from aheadless.bridges.starlette import refuse, stream_response
from aheadless.bridges.web import ByteStream, LiveTurns, resume, to_sse
from aheadless.stores import RedisStore
from aheadless.testing import Script, ScriptedServer, events, json_answer, stream_answer
from tests.bridges.web_apps import listening, under_uvicorn
from tests.conftest import MakeClient
from tests.stores.conftest import RedisServer
from tests.test_stream import FIRST, HELLO, REST, STALLED


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder)
    server.start()
    yield server.url
    server.kill()


@pytest.fixture
async def chat(redis_url: str, scripted: ScriptedServer, make_client: MakeClient, request: Any) -> Chat:
    """A conversation of the test's own, whose events are kept."""
    client = make_client(scripted.url, store=RedisStore(redis_url, follow=True))
    return client.chat(request.node.originalname)


@pytest.fixture
async def turns(chat: Chat) -> AsyncIterator[LiveTurns]:
    async with LiveTurns() as turns:
        yield turns


async def read(body: ByteStream) -> str:
    async with asyncio.timeout(30):
        return (b"".join([piece async for piece in body])).decode()


def ids(text: str) -> list[str]:
    return re.findall(r"^id: (.*)$", text, re.MULTILINE)


def without_ids(text: str) -> str:
    return re.sub(r"^(id|retry): .*\n+", "", text, flags=re.MULTILINE)


async def test_browser_that_leaves_and_comes_back(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """The turn goes on meanwhile; both halves together are the whole, each event once."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    async with to_sse(await turns.begin(chat, "Hi")) as body:
        first = (await anext(body) + await anext(body)).decode()
    assert chat.busy

    gate.set()
    rest = await read(to_sse(resume(chat, ids(first)[-1])))

    whole = await read(to_sse(resume(chat, ids(first)[0])))
    assert without_ids(first).count("event:") == 2
    assert without_ids(rest).startswith('event: token\ndata: {"type":"token","token":"lo"}')
    assert without_ids(whole) == without_ids(first).partition("\n\n")[2] + without_ids(rest)
    assert len({*ids(first), *ids(rest)}) == 4
    assert not scripted.requests[0].left.is_set()


async def test_every_place_to_resume_at(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """After each event comes exactly the rest, and after the last one nothing."""
    scripted.add(Script(stream_answer(events("a", "b", "c"))))
    blocks = [block + "\n\n" for block in (await read(to_sse(await turns.begin(chat, "Hi")))).split("\n\n")[1:-1]]
    assert len(blocks) == 5

    for number, block in enumerate(blocks[:-1]):
        assert (await read(to_sse(resume(chat, ids(block)[0])))).partition("\n\n")[2] == "".join(blocks[number + 1 :])
    ended = to_sse(resume(chat, ids(blocks[-1])[0]))
    await ended.open()
    assert ended.empty


async def test_refused_turn(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """It is refused before anything is followed, and the session is free."""
    scripted.add(Script(json_answer({}, status=401)), Script(stream_answer([Failure("no model")])))

    with pytest.raises(AuthenticationError):
        await turns.begin(chat, "Hi")
    with pytest.raises(ReplyFailedError):
        await turns.begin(chat, "Hi")

    assert not chat.busy


async def test_turn_that_fails_with_nobody_there(
    scripted: ScriptedServer, chat: Chat, turns: LiveTurns, caplog: pytest.LogCaptureFixture
):
    """The log has it, and who comes back is told."""
    scripted.add(Script(stream_answer([*HELLO[:2], Failure("boom")])))
    body = to_sse(await turns.begin(chat, "Hi"))
    await body.open()
    first = (await anext(body)).decode()
    await body.aclose()
    while chat.busy:
        await asyncio.sleep(0.001)

    rest = await read(to_sse(resume(chat, ids(first)[0])))

    assert "Sorry, no answer could be given." in rest
    assert "boom" in caplog.text


async def test_stop_button(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """Stopping ends the turn for whoever reads along."""
    scripted.add(STALLED)
    body = to_sse(await turns.begin(chat, "Hi"))
    assert "start" in (await anext(body) + await anext(body)).decode()

    chat.stop()

    assert "event: error" in await read(body)
    assert not chat.busy


async def test_back_end_that_closes(scripted: ScriptedServer, chat: Chat):
    """Leaving the block stops what is live, and nothing can be begun after it."""
    scripted.add(STALLED)
    async with LiveTurns() as turns:
        following = await turns.begin(chat, "Hi")
        assert chat.busy

    assert not chat.busy
    await following.aclose()
    with pytest.raises(UsageError, match="within their block"):
        await turns.begin(chat, "Hi")


async def test_cancelled_before_it_began(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """Nobody waits for a turn that nobody has seen."""
    scripted.add(Script(end="stall"))
    beginning = asyncio.create_task(turns.begin(chat, "Hi"))
    request = await scripted.arrived(1)

    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning

    async with asyncio.timeout(30):
        await request.left.wait()
    assert not chat.busy


async def test_stopped_before_it_began(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """Whoever asked is told, as by any refusal."""
    scripted.add(Script(end="stall"))
    beginning = asyncio.create_task(turns.begin(chat, "Hi"))
    await scripted.arrived(1)

    chat.stop()

    with pytest.raises(StreamStoppedError):
        await beginning


async def test_back_end_that_closes_while_a_turn_begins(scripted: ScriptedServer, chat: Chat):
    """The turn is stopped, as nobody would be there to stop it later."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST, gates={FIRST.index(b"{"): gate}, end="stall"))
    async with LiveTurns() as turns:
        beginning = asyncio.create_task(turns.begin(chat, "Hi"))
        await scripted.arrived(1)

    gate.set()

    with pytest.raises(ClientClosedError):
        await beginning
    assert not chat.busy


@pytest.mark.parametrize("event_id", [None, "", "x", "1", "1-2-3", "1-2\n", "-", "9" * 30 + "-0", "1-1 ", "٣-٣"])
async def test_what_is_no_id(event_id: str | None, chat: Chat):
    """It is the browser's mistake."""
    with pytest.raises(InvalidRequestError):
        resume(chat, event_id)


async def test_event_of_another_session(
    scripted: ScriptedServer, chat: Chat, turns: LiveTurns, redis_url: str, make_client: MakeClient
):
    """Its id leads to nothing."""
    first = await read(to_sse(await turns.begin(chat, "Hi")))
    other = make_client(scripted.url, store=RedisStore(redis_url, follow=True)).chat("somebody-else")

    with pytest.raises(StreamInterruptedError, match="no longer kept"):
        await to_sse(resume(other, ids(first)[0])).open()


async def test_store_that_keeps_no_events(client: ChatClient):
    """It is the back end's mistake, and nothing was sent."""
    with pytest.raises(UsageError, match="follow=True"):
        resume(client.chat("s"), "1-1")
    async with LiveTurns() as turns:
        with pytest.raises(UsageError, match="follow=True"):
            await turns.begin(client.chat("s"), "Hi")


async def test_over_http(scripted: ScriptedServer, chat: Chat, turns: LiveTurns):
    """As a browser does it: a POST, a broken connection, a GET with the last id; and a 204 when there is no more."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))

    async def ask(request: Request) -> Response:
        return await stream_response(to_sse(await turns.begin(chat, (await request.json())["message"])))

    async def go_on(request: Request) -> Response:
        return await stream_response(to_sse(resume(chat, request.headers.get("last-event-id"))))

    app = Starlette(
        routes=[Route("/chat", ask, methods=["POST"]), Route("/chat", go_on)],
        exception_handlers={AheadlessError: refuse},
    )
    with listening() as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/chat"
        async with asyncio.timeout(30), under_uvicorn(app, sock), aiohttp.ClientSession() as session:
            async with session.post(url, json={"message": "Hi"}) as answer:
                first = (await answer.content.readuntil(b'"Hel"}\n\n')).decode()
            gate.set()
            async with session.get(url, headers={"Last-Event-ID": ids(first)[-1]}) as answer:
                rest = await answer.text()
            async with session.get(url, headers={"Last-Event-ID": ids(rest)[-1]}) as answer:
                assert (answer.status, await answer.text()) == (204, "")
            async with session.get(url) as answer:
                assert answer.status == 400

    assert "event: start" in first
    assert "event: done" in rest
    assert len(scripted.requests) == 1
