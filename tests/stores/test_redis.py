"""The Redis store against a real server: the contract, and what is its own."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from aheadless import ConfigurationError, Delivery, RateLimit, StoreError
from aheadless._exchange import SessionChange
from aheadless._store import SessionStore
from aheadless.stores import RedisStore
from aheadless.stores.redis import ACQUIRE, GIVE_UP, RELEASE
from aheadless.testing import ScriptedServer
from tests.conftest import MakeClient
from tests.stores.conftest import RedisServer
from tests.stores.contract import ANSWER, QUESTION, Open, StoreContract, change, lease_of
from tests.test_keeper import WHOLE, told


class TestRedisStore(StoreContract):
    @pytest.fixture
    async def open_store(self, redis_server: RedisServer) -> AsyncIterator[Open]:
        async with AsyncExitStack() as stack:

            async def open_store(**options: Any) -> SessionStore:
                store = RedisStore(redis_server.url, **options)
                stack.push_async_callback(store.aclose)
                return store

            yield open_store

    async def waits(self, store: SessionStore, count: int) -> None:
        assert isinstance(store, RedisStore)
        while await store._link.command("ZCARD", store._key("s", "queue")) < count:
            await asyncio.sleep(0)


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    async with RedisStore(redis_server.url) as store:
        yield store


# --- Redis is gone ----------------------------------------------------------------------------------------------------


async def test_outage_that_ends_the_turn(
    scripted: ScriptedServer, make_client: MakeClient, own_redis: RedisServer
) -> None:
    """By default nothing is sent without the store; when it is back, turns go on."""
    client = make_client(scripted.url, store=RedisStore(own_redis.url))
    await client.chat("s").stream("Hi")
    own_redis.kill()

    with pytest.raises(StoreError, match=f"Redis at 127.0.0.1:{own_redis.port}/0: ") as caught:
        await client.chat("s").stream("Hi")

    assert (caught.value.delivery, caught.value.session_id) == (Delivery.NOT_SENT, "s")
    assert len(scripted.requests) == 1
    assert not client.chat("s").busy
    own_redis.start()
    await client.chat("s").stream("Hi")
    assert told(client.chat("s").messages) == WHOLE, "it has forgotten what it had"


async def test_outage_with_local_state(
    scripted: ScriptedServer, make_client: MakeClient, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """By choice turns go on with what this process knows, and a warning says so; when it is back it is used again."""
    store = RedisStore(own_redis.url, on_outage="local")
    client = make_client(scripted.url, store=store)
    await client.chat("s").stream("Hi")
    own_redis.kill()

    with caplog.at_level(logging.WARNING, "aheadless"):
        await client.chat("s").stream("Hi")

    assert told(client.chat("s").messages) == WHOLE * 2
    assert "going on without the store: Redis at 127.0.0.1" in caplog.text
    own_redis.start()
    await client.chat("t").stream("Hi")
    assert await store.list() == ["t"]


async def test_outage_in_mid_turn(scripted: ScriptedServer, make_client: MakeClient, own_redis: RedisServer) -> None:
    """The reply is not lost with it: it travels on the error."""
    client = make_client(scripted.url, store=RedisStore(own_redis.url))

    with pytest.raises(StoreError) as caught:
        async for _event in client.chat("s").stream("Hi"):
            if not client.chat("s").conversation_id:
                own_redis.kill()

    assert caught.value.reply is not None
    assert caught.value.reply.text == "Hello world"
    own_redis.start()
    await client.chat("s").stream("Hi")
    assert told(client.chat("s").messages) == WHOLE


async def test_server_that_does_not_answer(own_redis: RedisServer) -> None:
    """An answer is waited for only so long."""
    store = RedisStore(own_redis.url, timeout=0.2)
    lease = await lease_of(store)
    own_redis.pause()

    for failing in (store.renew(lease), store.load("s", limit=1), store.acquire("t")):
        with pytest.raises(StoreError, match="Timeout"):
            await failing

    own_redis.go_on()
    await store.aclose()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), "used memory > 'maxmemory'"),
        (("REPLICAOF", "127.0.0.1", "1"), "read only replica"),
    ],
)
async def test_server_that_refuses(own_redis: RedisServer, words: tuple[str, ...], said: str) -> None:
    """It is full, or no longer the one to write to: an error of ours, and the lease is not lost."""
    async with RedisStore(own_redis.url) as store:
        lease = await lease_of(store)
        await store.save(change((0, QUESTION)), lease)
        assert own_redis.ask(*words) == b"+OK\r\n"

        with pytest.raises(StoreError, match=said) as caught:
            await store.save(change((1, ANSWER), revision=1), lease)

        assert not caught.value.lost


@pytest.mark.parametrize("url", ["redis://:hunter2@{}/0", "redis://{}/0?password=hunter2", "redis://u:hunter2@{}/0"])
async def test_password_is_shown_nowhere(own_redis: RedisServer, url: str) -> None:
    """Not in the store's looks, and not in an error, its cause and the frames behind it."""
    store = RedisStore(url.format(f"127.0.0.1:{own_redis.port}"))
    own_redis.ask("CONFIG", "SET", "requirepass", "another")

    with pytest.raises(StoreError) as caught:
        await store.list()

    assert "hunter2" not in f"{store!r} {caught.value!r}"
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    await store.aclose()


# --- what may have been carried out -----------------------------------------------------------------------------------


async def carried_out(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the answer of the next script be lost, and its caller cancelled."""
    run = store._link.run

    async def lost_answer(*args: Any) -> Any:
        monkeypatch.undo()
        await run(*args)
        raise asyncio.CancelledError

    monkeypatch.setattr(store._link, "run", lost_answer)


async def test_saved_without_hearing_of_it(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who saves again, with more, is not taken for somebody else; a stale writer still is."""
    lease = await lease_of(store)
    await carried_out(store, monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        await store.save(change((0, QUESTION)), lease)

    await store.save(change((0, attrs.evolve(QUESTION, status="failed")), (1, ANSWER)), lease)

    record = await store.load("s", limit=10)
    assert record is not None
    assert (record.revision, [message.status for message in record.messages]) == (1, ["failed", "interrupted"])
    with pytest.raises(StoreError) as caught:
        await store.save(change((0, QUESTION)), lease)
    assert caught.value.lost


async def test_granted_without_hearing_of_it(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that nobody knows of is given back."""
    await carried_out(store, monkeypatch)
    with pytest.raises(asyncio.CancelledError):
        await store.acquire("s")

    assert await store.acquire("s") is not None


async def test_scripts_that_the_server_forgot(store: RedisStore, redis_server: RedisServer) -> None:
    """They are sent again, those that run later too."""
    lease = await lease_of(store)
    await store.save(change((0, QUESTION)), lease)
    redis_server.ask("SCRIPT", "FLUSH")

    await store.save(change((1, ANSWER), revision=1), lease)
    redis_server.ask("SCRIPT", "FLUSH")
    await store._link.written(store._link.post(GIVE_UP, store._lease_keys("s"), "nobody"))

    assert await store.list() == ["s"]


# --- the queue --------------------------------------------------------------------------------------------------------


async def poll(store: RedisStore, ticket: str, *, order: bytes = b"", alive: int = 2000) -> tuple[bool, bytes]:
    """Ask for the session `s` once, as a process does that waits for it."""
    token, order = await store._link.run(ACQUIRE, store._lease_keys("s"), ticket, order, 1, 60_000, alive, 60_000)
    return token is not None, order


async def test_dead_waiter_is_passed_over(store: RedisStore) -> None:
    """Who has not asked for too long does not keep those behind from the session."""
    lease = await lease_of(store)
    await poll(store, "dead", alive=1)
    waiting = asyncio.create_task(store.acquire("s"))
    await store.release(lease)

    assert (await waiting) is not None


async def test_paused_waiter_keeps_its_place(store: RedisStore) -> None:
    """It was passed over as dead, and is before those who came later when it asks again."""
    lease = await lease_of(store)
    _, order = await poll(store, "paused", alive=0)
    await poll(store, "later")
    await poll(store, "paused", order=order)
    await store.release(lease)

    assert not (await poll(store, "later"))[0]
    assert (await poll(store, "paused", order=order))[0]


async def test_tokens_grow_over_what_is_forgotten(store: RedisStore, redis_server: RedisServer) -> None:
    """Even a server that lost everything gives no token twice."""
    first = await lease_of(store)
    await store.release(first)
    second = await lease_of(store)
    assert second.token > first.token
    redis_server.ask("FLUSHALL")

    third = await lease_of(store)

    assert third.token > first.token
    assert not await store.renew(first)


async def test_closing_ends_the_waiting(redis_server: RedisServer) -> None:
    """Who waits for a session is told that it will not come, and leaves no ticket behind."""
    store, other = RedisStore(redis_server.url), RedisStore(redis_server.url)
    await lease_of(store)
    waiting = asyncio.create_task(store.acquire("s"))
    while not await other._link.command("ZCARD", other._key("s", "queue")):
        pass

    await store.aclose()

    with pytest.raises(StoreError, match="closed"):
        await waiting
    assert await other._link.command("ZCARD", other._key("s", "queue")) == 0
    await other.aclose()


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_cluster(scripted: ScriptedServer, make_client: MakeClient, tmp_path: Path) -> None:
    """On a server that takes no command over two slots of a cluster everything works."""
    server = RedisServer(tmp_path, "--cluster-enabled", "yes")  # its other port is 10000 further on
    server.start()
    server.ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    while b"cluster_state:ok" not in server.ask("CLUSTER", "INFO"):
        await asyncio.sleep(0)
    try:
        store = RedisStore(server.url, follow=True, prefix="chat")
        client = make_client(scripted.url, store=store, rate_limit=RateLimit(5, per=60))
        await client.chat("s").stream("Hi")
        await client.chat("t").stream("Hi")
        assert await client.sessions.list() == ["s", "t"]
        await client.sessions.forget("s")
        assert await store.list() == ["t"]
        await client.aclose()
    finally:
        server.kill()


async def test_idle_sessions_leave_nothing_but_their_record(store: RedisStore) -> None:
    """All else goes by itself after a while."""
    lease = await lease_of(store)
    await store.save(change((0, QUESTION)), lease)
    await store.release(lease)

    kept = [key.decode() for key in await store._link.command("KEYS", "*")]
    lasting = [key for key in kept if await store._link.command("TTL", key) == -1]

    assert sorted(lasting) == ["aheadless:sessions", "{aheadless:s}:messages", "{aheadless:s}:record"]


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://127.0.0.1", {}),
        ("redis://:hunter2@host:port", {}),
        ("redis://127.0.0.1?colour=blue", {}),
        (None, {}),
        ("redis://", {"prefix": ""}),
        ("redis://", {"prefix": "{a}"}),
        ("redis://", {"address": "a b"}),
        ("redis://", {"history_limit": -1}),
        ("redis://", {"lease_seconds": 0}),
        ("redis://", {"timeout": None}),
        ("redis://", {"max_connections": 0}),
        ("redis://", {"follow_limit": 0}),
        ("redis://", {"on_outage": "ignore"}),
    ],
)
def test_wrong_options(url: Any, options: dict[str, Any]) -> None:
    """Refused at once, and without the password."""
    with pytest.raises(ConfigurationError) as caught:
        RedisStore(url, **options)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:p@h:1/2", "h:1/2"),
        ("rediss://[::1]", "[::1]:6379/0"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
    ],
)
def test_looks(url: str, shown: str) -> None:
    """Where it is, and no more."""
    assert repr(RedisStore(url)) == f"<RedisStore {shown}, prefix aheadless>"


# --- later ------------------------------------------------------------------------------------------------------------


async def test_calls_that_wait_are_bounded(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What there is no room for is dropped, and told once."""
    await store.list()
    await lease_of(store, "t")
    monkeypatch.setattr("aheadless.stores._redis_link.MAX_POSTED", 3)

    numbers = [store._link.post(GIVE_UP, store._lease_keys("s"), "nobody") for _ in range(5)]

    assert numbers == [1, 2, 3, 0, 0]
    assert caplog.text.count("3 calls wait for an answer") == 1
    await store._link.written(3)
    await store.aclose()
    assert store._link.post(GIVE_UP, store._lease_keys("s"), "nobody") == 3


async def test_call_that_fails_among_others(
    store: RedisStore, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are carried out; one warning for all that fails until something works again."""
    lease = await lease_of(store)
    redis_server.ask("SET", "{aheadless:broken}:queue", "not a sorted set")
    for _ in range(2):
        store._link.post(GIVE_UP, store._lease_keys("broken"), "nobody")
        await store._link.written(store._link.post(RELEASE, [store._key("s", "lease")], lease.token))

    assert caplog.text.count("were not told to other processes") == 1
    assert await store.acquire("s", wait=False) is not None


async def test_long_list(store: RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sessions are listed in several round trips."""
    monkeypatch.setattr("aheadless.stores._redis_link.BATCH", 2)
    for name in "edcba":
        lease = await lease_of(store, name)
        await store.save(SessionChange(name, 0, None, ()), lease)

    assert await store.list() == ["e", "d", "c", "b", "a"]


@pytest.mark.slow
async def test_closed_at_any_moment(redis_server: RedisServer) -> None:
    """Whatever is under way, connecting included, ends with an answer or an error, and no connection stays open."""
    for steps in range(40):
        store = RedisStore(redis_server.url)
        task = asyncio.create_task(store.list())
        for _ in range(steps):
            await asyncio.sleep(0)

        await store.aclose()

        [found] = await asyncio.gather(task, return_exceptions=True)
        assert found == [] or (isinstance(found, StoreError) and "closed" in str(found))
        del store, task, found
    gc.collect()  # what was left open warns now
