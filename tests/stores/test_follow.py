"""Following a turn from another process: every event once, in order, from wherever a reader was."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aheadless import (
    Chat,
    ClientClosedError,
    Done,
    Event,
    Failure,
    Following,
    ReplyFailedError,
    ReplyStream,
    Start,
    StoreError,
    StreamInterruptedError,
    Token,
    UsageError,
)
from aheadless.stores import MemoryStore, RedisStore
from aheadless.stores.redis import RELEASE
from aheadless.testing import (
    CONVERSATION_ID,
    Script,
    ScriptedServer,
    chunked,
    events,
    head,
    json_answer,
    lines,
    stream_answer,
)
from tests.conftest import MakeClient
from tests.stores.conftest import RedisServer
from tests.stores.contract import lease_of
from tests.support import KEY
from tests.test_stream import FIRST, HELLO, REST, STALLED

LONG = events(*(f"{number} \U0001f600 " for number in range(40)))


@pytest.fixture
async def stores(redis_server: RedisServer) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two, as of two processes."""
    async with RedisStore(redis_server.url, follow=True) as one, RedisStore(redis_server.url, follow=True) as other:
        yield one, other


@pytest.fixture
def chats(
    scripted: ScriptedServer, make_client: MakeClient, stores: tuple[RedisStore, RedisStore]
) -> tuple[Chat, Chat]:
    """One that drives, and one that follows."""
    driver, follower = (make_client(scripted.url, store=store) for store in stores)
    return driver.chat("s"), follower.chat("s")


async def collect(following: Following) -> list[tuple[str | None, Event]]:
    return [(following.event_id, event) async for event in following]


async def test_live_turn_from_its_beginning(scripted: ScriptedServer, chats: tuple[Chat, Chat]) -> None:
    """Who comes in the middle of a turn gets all of it, and then its end."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    driver, follower = chats
    async with driver.stream("Hi") as stream:
        cursor = aiter(stream)
        assert [await anext(cursor), await anext(cursor)] == HELLO[:2]
        following = follower.follow()

        assert [await anext(following), await anext(following)] == HELLO[:2]
        gate.set()
        await stream.reply()

        assert [event async for event in following] == HELLO[2:]
        with pytest.raises(StopAsyncIteration):
            await anext(following)


async def test_next_turn(scripted: ScriptedServer, chats: tuple[Chat, Chat]) -> None:
    """Without a live turn it waits for the next one, and what was before does not come."""
    driver, follower = chats
    await driver.stream("Hi")
    scripted.add(Script(json_answer({"message": "Hello", "conversationId": CONVERSATION_ID})))
    following = follower.follow()
    waiting = asyncio.create_task(collect(following))
    while not following._read_to:  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    await driver.send("Hi")

    assert [event for _, event in await waiting] == [Start(CONVERSATION_ID), Done("Hello", CONVERSATION_ID)]


async def test_going_on_after_any_event(scripted: ScriptedServer, chats: tuple[Chat, Chat]) -> None:
    """After whichever event a reader was cut off, the rest comes, all of it and nothing else; also much later."""
    scripted.add(Script(stream_answer(LONG), pieces=1))
    driver, follower = chats
    first = follower.follow()
    waiting = asyncio.create_task(collect(first))
    while not first._read_to:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    await driver.stream("Hi")
    whole = await waiting
    assert [event for _, event in whole] == LONG
    await driver.stream("another turn")

    for index, (event_id, _) in enumerate(whole):
        following = follower.follow(after=event_id)
        assert following.event_id == event_id
        assert await collect(following) == whole[index + 1 :]


@pytest.mark.parametrize("how", ["stop", "break", "cancel", "close", "cut"])
async def test_turn_that_ends_early(scripted: ScriptedServer, chats: tuple[Chat, Chat], how: str) -> None:
    """However it ends: what came is given, and then an error that says that it is not complete."""
    gate, leave = asyncio.Event(), asyncio.Event()
    scripted.add(Script(FIRST, end="fin", gates={len(FIRST): gate}))
    driver, follower = chats
    stream = driver.stream("Hi")
    following = follower.follow()

    async def drive() -> None:
        async for event in stream:
            if how == "break" and isinstance(event, Token):
                await leave.wait()
                break

    task = asyncio.create_task(drive())
    found = [await anext(following), await anext(following)]

    match how:
        case "stop":
            driver.stop()
        case "break":
            leave.set()
        case "cancel":
            task.cancel()
        case "close":
            stream.fail(ClientClosedError("the client was closed"))
        case _:
            gate.set()
    with pytest.raises(StreamInterruptedError, match="ended without `done`") as caught:
        await anext(following)

    assert found == HELLO[:2]
    assert (caught.value.partial, caught.value.session_id) == ("Hel", "s")
    assert [event async for event in following] == []
    await asyncio.gather(task, return_exceptions=True)


async def test_failure(scripted: ScriptedServer, chats: tuple[Chat, Chat]) -> None:
    """The server's error event is given, and then raised; who was cut off between the two gets the error."""
    scripted.add(Script(stream_answer([*HELLO[:2], Failure("no model")])))
    driver, follower = chats
    following = follower.follow()
    found: list[Event] = []

    async def follow() -> None:
        async for event in following:
            found.append(event)

    waiting = asyncio.create_task(follow())
    while not following._read_to:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    with pytest.raises(ReplyFailedError):
        await driver.stream("Hi")

    with pytest.raises(ReplyFailedError) as caught:
        await waiting
    assert found == [*HELLO[:2], Failure("no model")]
    assert (caught.value.reason, caught.value.partial) == ("no model", "Hel")
    with pytest.raises(ReplyFailedError, match="no model"):
        await anext(follower.follow(after=following.event_id))


async def test_driver_that_died(
    scripted: ScriptedServer, make_client: MakeClient, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any mark of an end it ends when the lease does, and also when the next turn has begun."""
    monkeypatch.setattr("aheadless.stores._redis_events.BLOCK", 0.05)
    scripted.add(STALLED)
    async with RedisStore(redis_server.url, follow=True, lease_seconds=0.3) as dead:
        async with RedisStore(redis_server.url, follow=True) as store:
            doomed, alive = make_client(scripted.url, store=dead), make_client(scripted.url, store=store)
            async with doomed.chat("s").stream("Hi") as stream:
                cursor = aiter(stream)
                assert [await anext(cursor), await anext(cursor)] == HELLO[:2]
                # It breathes its last: nothing is renewed, nothing is told.
                assert doomed._core.keeper is not None
                assert doomed._core.keeper._task is not None
                doomed._core.keeper._task.cancel()
                await asyncio.wait([doomed._core.keeper._task])
                await dead._link.written(dead._link._count)
                first = alive.chat("s").follow()
                assert [await anext(first), await anext(first)] == HELLO[:2]

                with pytest.raises(StreamInterruptedError, match="its process died"):
                    await anext(first)

                second = alive.chat("s").follow(after=first.event_id)
                await alive.chat("s").stream("Hi")
                with pytest.raises(StreamInterruptedError, match="its process died"):
                    await anext(second)


async def test_events_that_are_gone(
    scripted: ScriptedServer, make_client: MakeClient, redis_server: RedisServer
) -> None:
    """A gap is told, not jumped over."""
    scripted.add(Script(stream_answer(events(*["x"] * 1000))))
    async with RedisStore(redis_server.url, follow=True, follow_limit=1) as store:
        chat = make_client(scripted.url, store=store).chat("s")
        slow = chat.follow()
        waiting = asyncio.create_task(anext(slow))
        while not slow._read_to:  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        await chat.stream("Hi")
        await waiting
        gone = slow.event_id

        with pytest.raises(StreamInterruptedError, match="no longer kept"):
            await collect(slow)
        with pytest.raises(StreamInterruptedError, match="no longer kept"):
            await anext(chat.follow(after=gone))
        [length] = await store._link.commands([("XLEN", store._key("s", "events"))])
        assert length < 1003


async def test_outage_of_the_stream(
    scripted: ScriptedServer, make_client: MakeClient, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn whose events cannot be kept goes on; one warning is enough; its followers are told."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    store = RedisStore(own_redis.url, follow=True, on_outage="local")
    chat = make_client(scripted.url, store=store).chat("s")
    async with chat.stream("Hi") as stream:
        cursor = aiter(stream)
        await anext(cursor)
        await anext(cursor)
        following = chat.follow()
        await anext(following)
        await anext(following)
        own_redis.kill()
        gate.set()

        assert (await stream.reply()).text == "Hello"

        with pytest.raises(StoreError, match="Redis at"):
            await anext(following)
    assert caplog.text.count("were not told to other processes") == 1


async def test_gap_in_what_was_told(chats: tuple[Chat, Chat], stores: tuple[RedisStore, RedisStore]) -> None:
    """After an event that was lost on its way to the stream nothing follows: a reader never gets a text with a hole."""
    store, _ = stores
    assert store.events is not None
    log = store.events
    lease = await lease_of(store)
    log.begin("s")
    log.append("s", HELLO[0])
    log._turns["s"].number += 1
    log.append("s", HELLO[2])
    log.end("s")
    following = chats[1].follow()
    await store._link.written(log._turns["s"].posted)

    found: list[Event] = []
    with pytest.raises(StreamInterruptedError):
        async for event in following:
            found.append(event)

    assert found == HELLO[:1]
    await store.release(lease)


async def test_only_the_holder_tells(stores: tuple[RedisStore, RedisStore]) -> None:
    """What a turn says that has lost its session is not in the next one's stream."""
    stale, store = stores
    assert stale.events is not None
    old = await lease_of(stale)
    await store._link.run(RELEASE, [store._key("s", "lease")], old.token)
    await lease_of(store)
    stale.events.begin("s")
    stale.events.append("s", HELLO[0])

    await stale.events.closed(old)

    assert await store._link.command("XLEN", store._key("s", "events")) == 0


async def test_cancelled_reader_loses_nothing(scripted: ScriptedServer, chats: tuple[Chat, Chat]) -> None:
    """Waiting may be given up and taken up again; one task reads at a time."""
    driver, follower = chats
    following = follower.follow()
    waiting = asyncio.create_task(anext(following))
    while not following._read_to:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    with pytest.raises(UsageError, match="another task"):
        await anext(following)
    waiting.cancel()
    await asyncio.wait([waiting])

    await driver.stream("Hi")

    assert [event async for event in following] == events("Hello", " world")
    left = follower.follow()
    await left.aclose()
    assert [event async for event in left] == []


async def test_store_is_closed_under_a_follower(make_client: MakeClient, redis_server: RedisServer) -> None:
    """It ends with an error."""
    client = make_client("http://127.0.0.1:1", store=RedisStore(redis_server.url, follow=True))
    following = client.chat("s").follow()
    waiting = asyncio.create_task(anext(following))
    while not following._read_to:  # type: ignore[attr-defined]
        await asyncio.sleep(0)
    chat = client.chat("s")

    await client.aclose()

    with pytest.raises(StoreError, match="closed"):
        await waiting
    with pytest.raises(ClientClosedError):
        chat.follow()


@pytest.mark.parametrize("store", [None, MemoryStore(), RedisStore("redis://127.0.0.1:1")])
async def test_store_that_keeps_no_events(make_client: MakeClient, store: Any) -> None:
    """The error names the one that does."""
    client = make_client("http://127.0.0.1:1", store=store)

    with pytest.raises(UsageError, match="follow=True"):
        client.chat("s").follow()


async def test_wrong_id(chats: tuple[Chat, Chat]) -> None:
    """Refused at once; one that was never there, when it is looked for."""
    for wrong in ("", "1", "1-x", "$", 5):
        with pytest.raises(UsageError, match="no event id"):
            chats[0].follow(after=wrong)  # type: ignore[arg-type]
    with pytest.raises(StreamInterruptedError, match="no longer kept"):
        await anext(chats[0].follow(after="1-1"))


# --- a real process ---------------------------------------------------------------------------------------------------

FOLLOWER = """
import asyncio, json, sys
from aheadless import ChatClient
from aheadless.protocol.codec import encode_event
from aheadless.stores import RedisStore

async def main(url, redis, key, after):
    async with ChatClient(url, api_key=key, store=RedisStore(redis, follow=True)) as client:
        following = client.chat("s").follow(after=after)
        async for event in following:
            print(json.dumps([following.event_id, encode_event(event).decode()]), flush=True)

asyncio.run(main(*json.loads(sys.argv[1])))
"""


async def follower(*orders: str | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", FOLLOWER, json.dumps(orders)),
        cwd=Path(__file__).parent.parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_another_process(scripted: ScriptedServer, chats: tuple[Chat, Chat], redis_server: RedisServer) -> None:
    """A worker that is killed is replaced by another one, which goes on after the last event that the first gave."""
    gate = asyncio.Event()
    cut = head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}) + chunked(
        lines(LONG[:20]), last=False
    )
    scripted.add(Script(cut + chunked(lines(LONG[20:])), gates={len(cut): gate}))
    driver = asyncio.create_task(chats[0].stream("Hi").reply())
    while not any(isinstance(live, ReplyStream) and live.snapshot for live in chats[0]._core.live):
        await asyncio.sleep(0)
    first = await follower(scripted.url, redis_server.url, KEY, None)
    assert first.stdout is not None
    given = [json.loads(await first.stdout.readline()) for _ in range(10)]
    first.kill()
    await first.communicate()
    second = await follower(scripted.url, redis_server.url, KEY, given[-1][0])
    gate.set()

    rest, _ = await second.communicate()

    await driver
    assert second.returncode == 0
    given += map(json.loads, rest.splitlines())
    assert [line.encode() for _, line in given] == lines(LONG)
