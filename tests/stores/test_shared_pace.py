"""One rate limit and one cool-down over several processes: stores of their own, pacers of their own."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aheadless import Delivery, RateLimit, RateLimitError, StoreError, Waiting
from aheadless._exchange import Slot
from aheadless._pacing import Pacer, Pacing, Pass
from aheadless.server import ServerSettings, run_server
from aheadless.server.limiter import WindowLimiter
from aheadless.stores import RedisStore
from aheadless.testing import Script, ScriptedServer, json_answer
from tests.conftest import MakeClient
from tests.stores.conftest import RedisServer
from tests.support import KEY

ORIGIN = "http://api:4000"
LIMIT = RateLimit(5, per=0.4)


def now() -> float:
    return asyncio.get_running_loop().time()


def process(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> Pacing:
    """The pace of a process of its own: nothing of what another one knows but by its store."""
    with monkeypatch.context() as patch:
        patch.setattr("aheadless._pacing.pacer_for", lambda _: Pacer())
        return Pacing(ORIGIN, store.pace)


@pytest.fixture
async def paces(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Pacing]]:
    """Those of four processes."""
    stores = [RedisStore(redis_server.url) for _ in range(4)]
    yield [process(store, monkeypatch) for store in stores]
    for store in stores:
        await store.aclose()


@pytest.mark.slow
async def test_nothing_is_refused(paces: list[Pacing]) -> None:
    """Four processes against one fixed window: together they stay within it, and use it."""
    server, chance = WindowLimiter(LIMIT), random.Random(1)
    refused = sent = 0
    begun = now()

    async def worker(pace: Pacing) -> None:
        nonlocal refused, sent
        while sent < 40:
            sent += 1
            leave = await pace.enter(LIMIT, again=False)
            await asyncio.sleep(chance.uniform(0, 0.02))
            refused += not server.allow("us", now())
            await asyncio.sleep(chance.uniform(0, 0.02))
            pace.leave(leave, counted=True)

    await asyncio.gather(*(worker(pace) for pace in paces * 3))

    assert refused == 0
    assert now() - begun < 40 / LIMIT.limit * LIMIT.per * 2


async def test_cool_down_over_all(paces: list[Pacing], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a 429 in one process all wait; then one probe goes, whose answer lets the others go."""
    refused = await enter(paces[0])
    paces[0].refused(refused, 0.3)
    paces[0].leave(refused, counted=False)
    begun = now()
    await written(paces)
    assert [await pace.try_enter(None) for pace in paces] == ["cool_down"] * 4

    waiting = [asyncio.create_task(pace.enter(None, again=False)) for pace in paces]
    done, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert now() - begun >= 0.299
    assert len(done) == 1
    for pace in paces:
        assert await pace.try_enter(None) == "cool_down", "there is one probe at a time"
    probe = done.pop()
    of = paces[waiting.index(probe)]
    of.accepted(probe.result())
    of.leave(probe.result(), counted=True)

    await asyncio.gather(*(let_through(pace, task) for pace, task in zip(paces, waiting, strict=True) if task in rest))


async def let_through(pace: Pacing, task: asyncio.Task[Pass]) -> None:
    leave = await task
    pace.accepted(leave)
    pace.leave(leave, counted=True)


async def test_refused_probe_and_late_answers(paces: list[Pacing]) -> None:
    """A probe that is refused makes the pause longer; what was sent before the 429 neither opens nor prolongs it."""
    old = [await enter(pace) for pace in paces]
    for pace, leave in zip(paces[:2], old[:2], strict=True):
        pace.refused(leave, 0.05)
        pace.leave(leave, counted=False)
    await written(paces)
    paces[2].accepted(old[2])
    paces[2].leave(old[2], counted=True)
    await written(paces)
    probe = await paces[3].enter(None, again=False)
    paces[3].refused(probe, None)
    paces[3].leave(probe, counted=False)
    await written(paces)

    state = await command(paces[0], "HMGET", "state", "refusals", "allowance")

    assert state == [b"2", b"1"]
    assert await paces[2].try_enter(None) == "cool_down"


async def test_process_that_died(redis_server: RedisServer) -> None:
    """What it had sent counts, first as under way and then as answered in its last moment."""
    async with RedisStore(redis_server.url, lease_seconds=0.2) as dead, RedisStore(redis_server.url) as store:
        limit = RateLimit(1, per=0.3)
        begun = now()
        assert isinstance(await dead.pace.enter(ORIGIN, limit, wait=False), Slot)
        dead.pace.close()
        assert await store.pace.enter(ORIGIN, limit, wait=False) == "rate_limit"

        assert isinstance(await store.pace.enter(ORIGIN, limit, wait=True), Slot)

        assert now() - begun >= 0.499


async def test_heartbeat(redis_server: RedisServer) -> None:
    """A request that takes long stays under way as long as its process lives."""
    async with RedisStore(redis_server.url, lease_seconds=0.1) as slow, RedisStore(redis_server.url) as store:
        limit = RateLimit(1, per=0.01)
        slot = await slow.pace.enter(ORIGIN, limit, wait=False)
        assert isinstance(slot, Slot)
        waiting = asyncio.create_task(store.pace.enter(ORIGIN, limit, wait=True))
        clock = RateLimit(1, per=0.1)
        for _ in range(4):
            tick = await store.pace.enter("clock", clock, wait=True)
            assert isinstance(tick, Slot)
            store.pace.leave(tick, counted=True, answer=None, retry_after=None)
        assert not waiting.done()

        slow.pace.leave(slot, counted=True, answer=None, retry_after=None)

        assert isinstance(await waiting, Slot)


async def test_many_at_once(scripted: ScriptedServer, make_client: MakeClient, redis_server: RedisServer) -> None:
    """Turns that ask in the same moment do not take each other for those who wait."""
    client = make_client(scripted.url, store=RedisStore(redis_server.url), rate_limit=RateLimit(50, per=60))

    await asyncio.gather(*(client.chat(str(number)).stream("Hi").reply() for number in range(50)))

    with pytest.raises(RateLimitError, match="left no room"):
        await client.chat("s").stream("Hi")


async def test_cancelled_while_waiting(paces: list[Pacing]) -> None:
    """No place is lost, here nor in Redis, and those behind go on."""
    limit = RateLimit(1, per=0.2)
    leave = await paces[0].enter(limit, again=False)
    tasks = [asyncio.create_task(paces[1].enter(limit, again=False)) for _ in range(2)]
    shared: Any = paces[1]._shared
    while ORIGIN not in shared._heads or not shared._heads[ORIGIN].locked():
        await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    paces[0].leave(leave, counted=False)

    assert isinstance(await tasks[1], Pass)

    assert paces[1]._pacer._in_flight == 1
    assert await command(paces[0], "ZCARD", "flight") == 1


async def test_other_addresses_and_origins(redis_server: RedisServer) -> None:
    """The limit is that of an address at an origin."""
    async with RedisStore(redis_server.url, address="a") as one, RedisStore(redis_server.url, address="b") as other:
        limit = RateLimit(1, per=60)
        assert isinstance(await one.pace.enter(ORIGIN, limit, wait=False), Slot)
        assert await one.pace.enter(ORIGIN, limit, wait=False) == "rate_limit"
        assert isinstance(await one.pace.enter("http://other", limit, wait=False), Slot)
        assert isinstance(await other.pace.enter(ORIGIN, limit, wait=False), Slot)


# --- clients ----------------------------------------------------------------------------------------------------------


async def test_429_of_another_process(
    scripted: ScriptedServer, make_client: MakeClient, redis_server: RedisServer
) -> None:
    """A turn is told that it waits, and gets through; what has no time to wait is not sent."""
    scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "0.2"})))
    async with RedisStore(redis_server.url) as other, RedisStore(redis_server.url) as store:
        slot = await other.pace.enter(scripted.url, None, wait=False)
        assert isinstance(slot, Slot)
        other.pace.leave(slot, counted=False, answer="refused", retry_after=0.2)
        await other._link.written(other.pace._posted)
        hurried = make_client(scripted.url, store=store)
        with pytest.raises(RateLimitError, match="left no room") as caught:
            await hurried.chat("s").stream("Hi")
        assert (caught.value.delivery, scripted.requests) == (Delivery.NOT_SENT, [])
        told: list[Waiting] = []
        client = make_client(scripted.url, store=store, max_wait=30, on_wait=told.append)

        assert (await client.chat("s").stream("Hi")).text == "Hello world"

        assert told == [Waiting("s", "cool_down", 30)]
        assert len(scripted.requests) == 2


@pytest.mark.parametrize("outage", ["raise", "local"])
async def test_outage(
    scripted: ScriptedServer,
    make_client: MakeClient,
    own_redis: RedisServer,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    outage: Any,
) -> None:
    """When Redis goes just before a message is sent: nothing is sent, or it is with the pace of this process alone."""
    store = RedisStore(own_redis.url, on_outage=outage)
    client = make_client(scripted.url, store=store, rate_limit=RateLimit(1, per=60))
    enter = store.pace.enter

    async def gone(*args: Any, **options: Any) -> Any:
        own_redis.kill()
        return await enter(*args, **options)

    monkeypatch.setattr(store.pace, "enter", gone)
    with caplog.at_level(logging.WARNING, "aheadless"):
        if outage == "raise":
            with pytest.raises(StoreError) as caught:
                await client.chat("s").stream("Hi")
            assert (caught.value.delivery, scripted.requests) == (Delivery.NOT_SENT, [])
        else:
            await client.chat("s").stream("Hi")
            assert "the rate limit is not shared" in caplog.text
            with pytest.raises(RateLimitError, match="left no room"):
                await client.chat("s").stream("Hi")
    await client.aclose()


WORKER = """
import asyncio, json, sys
from aheadless import ChatClient, RateLimit
from aheadless.stores import RedisStore

async def main(url, redis, key, name, turns):
    client = ChatClient(url, api_key=key, store=RedisStore(redis, lease_seconds=1), rate_limit=RateLimit(5, per=1))
    async with client:
        print(json.dumps([(await client.chat(f"{name}-{n % 3}").stream("Hi")).text for n in range(turns)]))

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@pytest.mark.slow
async def test_real_processes(redis_server: RedisServer) -> None:
    """Three workers, one of them killed, against the server with its limit: nobody meets a 429."""
    settings = ServerSettings(port=0, api_key=KEY, engine="echo", rate_limit=RateLimit(5, per=1))
    async with run_server(settings) as server:
        workers = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", WORKER, json.dumps([server.url, redis_server.url, KEY, name, turns])),
                cwd=Path(__file__).parent.parent.parent,
                stdout=asyncio.subprocess.PIPE,
            )
            for name, turns in (("a", 6), ("b", 6), ("c", 1000))
        ]
        *living, doomed = workers
        outputs = [asyncio.create_task(worker.communicate()) for worker in living]
        await asyncio.wait(outputs, return_when=asyncio.FIRST_COMPLETED)
        doomed.kill()
        await doomed.communicate()
        for output in outputs:
            told, _ = await output
            assert len(json.loads(told)) == 6
    assert b"allowance" not in cool_downs(redis_server), "it is there from a 429 on, until 16 got through"


def cool_downs(server: RedisServer) -> bytes:
    """Return what Redis knows of the cool-downs."""
    keys = [key for key in server.ask("KEYS", "*:state").split(b"\r\n") if key.startswith(b"{")]
    assert keys
    return b"".join(server.ask("HGETALL", key.decode()) for key in keys)


# --- helpers ----------------------------------------------------------------------------------------------------------


async def enter(pace: Pacing) -> Pass:
    leave = await pace.try_enter(None)
    assert isinstance(leave, Pass)
    return leave


async def written(paces: list[Pacing]) -> None:
    """Return when Redis has heard all that these said."""
    for pace in paces:
        shared: Any = pace._shared
        await shared._link.written(shared._posted)


async def command(pace: Pacing, name: str, key: str, *words: str) -> Any:
    shared: Any = pace._shared
    [found] = [full for full in shared._keys(ORIGIN) if full.endswith(f":{key}")]
    return await shared._link.command(name, found, *words)
