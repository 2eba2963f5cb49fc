"""How long a turn took, part by part."""

from __future__ import annotations

import asyncio

import pytest

from aheadless import ChatClient, RateLimit, ReplyFailedError, Retry, Retrying, StreamStoppedError, Timings
from aheadless.protocol.events import Failure
from aheadless.server import ScriptedEngine, ServerSettings, run_server
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.support import ADMIN_KEY, KEY

JSON_REPLY = Script(json_answer({"conversationId": CONVERSATION_ID, "message": "whole"}))
HELLO = stream_answer(events("Hel", "lo"))


@pytest.mark.parametrize("stream", [True, False])
async def test_connection(scripted: ScriptedServer, client: ChatClient, stream: bool) -> None:
    """A new one takes its time, which is part of the whole; one that is used again took none."""
    chat = client.chat("s")
    if not stream:
        scripted.add(JSON_REPLY, JSON_REPLY)

    first, second = [await (chat.stream("Hi") if stream else chat.send("Hi")) for _ in range(2)]

    assert scripted.connections == 1
    assert first.timings.connect is not None
    assert 0 < first.timings.connect < first.timings.total
    assert second.timings.connect is None
    for timings in (first.timings, second.timings):
        assert 0 <= timings.queued
        assert (timings.first_token is not None) == stream


async def test_parts_are_the_whole(client: ChatClient) -> None:
    """What comes before the request and what comes after it is all the time that there was."""
    clock = asyncio.get_running_loop().time
    begun = clock()

    reply = await client.chat("s").stream("Hi")

    assert 0 < reply.timings.queued + reply.timings.total <= clock() - begun


async def test_waiting_for_the_session(scripted: ScriptedServer, client: ChatClient) -> None:
    """It counts as queued, and the first token from the request."""
    clock, release = asyncio.get_running_loop().time, asyncio.Event()
    scripted.add(Script(HELLO, gates={len(HELLO) // 2: release}))
    chat = client.chat("s")
    live = asyncio.ensure_future(chat.stream("Hi").reply())
    await scripted.arrived(1)
    queued = chat.stream("Hi again")
    waiting = asyncio.ensure_future(queued.reply())
    while not queued.timings.queued:
        await asyncio.sleep(0)
    begun = clock() - queued.timings.queued
    waited = clock() - begun

    release.set()
    reply = await waiting

    assert waited <= reply.timings.queued
    assert reply.timings.first_token is not None
    assert reply.timings.first_token <= reply.timings.total
    await live


async def test_waiting_for_the_rate_limit(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """It counts as queued."""
    client = make_client(scripted.url, rate_limit=RateLimit(1, per=0.1), max_wait=20)
    await client.chat("a").stream("Hi")
    clock = asyncio.get_running_loop().time
    begun = clock()

    reply = await client.chat("b").stream("Hi")

    assert reply.timings.queued > 0
    assert reply.timings.queued + reply.timings.total <= clock() - begun


async def test_attempts_that_failed(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """They count as queued, with the pause after them; their connection is not that of the reply."""
    scripted.add(Script(json_answer({}, status=503, headers={"Retry-After": "0.02"})))
    pauses: list[float] = []

    def note(retrying: Retrying) -> None:
        pauses.append(retrying.delay)

    client = make_client(scripted.url, retry=Retry(attempts=2, base=0.001), max_wait=20, on_retry=note)

    reply = await client.chat("s").stream("Hi")

    assert pauses[0] >= 0.02
    assert reply.timings.queued >= pauses[0]
    assert reply.timings.connect is None


async def test_stopped_in_the_queue(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream tells it of every end; once it is over nothing is added."""
    release = asyncio.Event()
    scripted.add(Script(HELLO, gates={len(HELLO) // 2: release}))
    chat = client.chat("s")
    live = asyncio.ensure_future(chat.stream("Hi").reply())
    await scripted.arrived(1)
    stream = chat.stream("Hi again")
    assert stream.timings == Timings(None, 0.0)
    waiting = asyncio.ensure_future(stream.reply())
    while not stream.timings.queued:
        await asyncio.sleep(0)

    stream.stop()
    with pytest.raises(StreamStoppedError):
        await waiting

    timings = stream.timings
    assert timings.queued > 0
    assert timings == Timings(None, 0.0, queued=timings.queued)
    release.set()
    await live
    assert stream.timings == timings


async def test_reply_that_failed(scripted: ScriptedServer, client: ChatClient) -> None:
    """Its stream tells when the first token came, and when it ended."""
    scripted.add(Script(stream_answer([*events("Hel")[:2], Failure("no model")])))
    stream = client.chat("s").stream("Hi")

    with pytest.raises(ReplyFailedError):
        await stream

    assert stream.timings.first_token is not None
    assert 0 < stream.timings.first_token <= stream.timings.total


async def test_recovered_later() -> None:
    """The search took its time, and the wait for the session before it."""
    settings = ServerSettings(
        port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=ScriptedEngine(["The whole", " answer"]), rate_limit=None
    )
    async with (
        run_server(settings) as server,
        ChatClient(server.url, api_key=KEY, admin_key=ADMIN_KEY) as client,
    ):
        chat = client.chat("s")
        async for _ in chat.stream("Hi").text():
            break

        reply = await chat.recover()

    assert reply is not None
    assert (reply.timings.first_token, reply.timings.connect) == (None, None)
    assert 0 <= reply.timings.queued < 20
    assert 0 < reply.timings.total < 20
