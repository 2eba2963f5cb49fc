"""Clients with a store: sessions that outlive them, one turn at a time over all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

import aiohttp
import pytest

from aheadless import (
    ClientClosedError,
    Delivery,
    Message,
    Reply,
    SessionBusyError,
    StoreError,
    StreamInterruptedError,
)
from aheadless._exchange import Lease, SessionChange, SessionRecord
from aheadless._manager import SessionManager
from aheadless.stores import MemoryStore
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer
from tests.conftest import MakeClient
from tests.test_stream import FIRST, STALLED


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    async with MemoryStore() as store:
        yield store


class _Failing(MemoryStore):
    """Fails where it is told to."""

    failing: str = ""
    lost: bool = False
    outage: Any = "raise"

    @property
    def on_outage(self) -> Any:
        return self.outage

    def _fail(self, name: str) -> None:
        if name == self.failing:
            raise StoreError("the disk is full", lost=self.lost)

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        self._fail("acquire")
        return await super().acquire(session_id, wait=wait)

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        self._fail("load")
        return await super().load(session_id, limit=limit)

    async def save(self, change: SessionChange, lease: Lease) -> None:
        self._fail("save")
        await super().save(change, lease)

    async def release(self, lease: Lease) -> None:
        self._fail("release")
        await super().release(lease)


def told(messages: tuple[Message, ...]) -> list[tuple[str, str, str]]:
    return [(message.role, message.text, message.status) for message in messages]


WHOLE = [("user", "Hi", "complete"), ("assistant", "Hello world", "complete")]


async def test_a_session_outlives_its_client(
    scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore
) -> None:
    """The next client goes on with what the first one knew."""
    first = make_client(scripted.url, store=store)
    await first.chat("s").stream("Hi")
    await first.aclose()
    second = make_client(scripted.url, store=store)

    session = await second.sessions.get("s")

    assert session is not None
    assert second.chat("s").messages == session.messages
    assert told(second.chat("s").messages) == WHOLE
    assert second.chat("s").conversation_id == CONVERSATION_ID
    await second.chat("s").stream("Hi")
    assert told(second.chat("s").messages) == WHOLE * 2
    assert await second.sessions.list() == ["s"]


async def test_the_question_is_saved_before_it_is_sent(
    scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore
) -> None:
    """Whoever looks while the server has it sees it pending; nothing is pending after the turn."""
    scripted.add(STALLED)
    client = make_client(scripted.url, store=store)
    async with client.chat("s").stream("Hi"):
        record = await store.load("s", limit=10)
        assert record is not None
        assert told(record.messages) == [("user", "Hi", "pending")]

    record = await store.load("s", limit=10)
    assert record is not None
    assert told(record.messages) == [("user", "Hi", "interrupted")]


async def test_one_turn_over_two_clients(scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore) -> None:
    """The second waits for the first, or is refused, by policy."""
    scripted.add(STALLED)
    first, second = make_client(scripted.url, store=store), make_client(scripted.url, store=store)
    async with first.chat("s").stream("one"):
        with pytest.raises(SessionBusyError, match="another process") as caught:
            await second.chat("s").stream("two", on_busy="reject")
        assert (caught.value.delivery, caught.value.session_id) == (Delivery.NOT_SENT, "s")
        with pytest.raises(SessionBusyError, match="another process"):
            await second.sessions.forget("s")
        waiting = asyncio.create_task(second.chat("s").stream("three").reply())
        await asyncio.sleep(0)
        assert len(scripted.requests) == 1

    assert isinstance(await waiting, Reply)
    texts = [message.text for message in second.chat("s").messages]
    assert texts == ["one", "three", "Hello world"]


@pytest.mark.parametrize("whole", [True, False])
async def test_leaving_an_earlier_turn(
    scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore, *, whole: bool
) -> None:
    """The block of a turn that is over does not give away the lease of the next one."""
    if not whole:
        scripted.add(STALLED)
    client, other = make_client(scripted.url, store=store), make_client(scripted.url, store=store)
    chat = client.chat("s")
    async with chat.stream("one") as first:
        if whole:
            await first.reply()
        else:
            chat.stop()
        scripted.add(STALLED)
        second = chat.stream("two")
        await second.__aenter__()
        await first.aclose()

    with pytest.raises(SessionBusyError, match="another process"):
        await other.chat("s").stream("three", on_busy="reject")
    await second.aclose()


async def test_a_failure_is_told_to_its_own_turn(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Leaving the block of a turn that was saved says nothing of a later one that was not."""
    async with _Failing() as store:
        client = make_client(scripted.url, store=store)
        async with client.chat("s").stream("one") as first:
            await first.reply()
            with pytest.raises(StoreError) as caught:
                async for _event in client.chat("s").stream("two"):
                    store.failing = "save"
        store.failing = ""
        assert caught.value.reply is not None


@pytest.mark.parametrize("how", ["break", "cancel", "stop", "close"])
async def test_an_end_where_nothing_can_be_awaited(
    scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore, how: str
) -> None:
    """The keeper brings the session back: another client gets it without waiting for the lease to run out."""
    scripted.add(Script(FIRST, end="stall"))
    client = make_client(scripted.url, store=store)
    chat = client.chat("s")
    if how == "break":
        async for _event in chat.stream("Hi"):
            break
    else:
        task = asyncio.create_task(chat.stream("Hi").reply())
        await scripted.arrived(1)
        while not chat.busy or chat.conversation_id is not None:
            await asyncio.sleep(0)
        if how == "cancel":
            task.cancel()
        elif how == "stop":
            chat.stop()
        else:
            await client.aclose()
        await asyncio.wait([task])
        task.exception() if not task.cancelled() else None
    other = make_client(scripted.url, store=store)

    await other.chat("s").stream("again")

    status = other.chat("s").messages[0].status
    assert status == {"break": "interrupted", "cancel": "cancelled"}.get(how, status)
    assert status != "pending"


async def test_reply_that_cannot_be_saved(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The reply travels along on the error, and `on_done` is not called."""
    store = _Failing()
    client = make_client(scripted.url, store=store)
    done: list[Reply] = []
    async with store:
        stream = client.chat("s").stream("Hi", on_done=done.append)
        with pytest.raises(StoreError, match="disk is full") as caught:
            async for _event in stream:
                store.failing = "save"
        assert caught.value.reply is not None
        assert caught.value.reply.text == "Hello world"
        assert (caught.value.delivery, caught.value.session_id, done) == (Delivery.ACCEPTED, "s", [])
        with pytest.raises(StoreError):
            await stream

        store.failing = ""
        await client.chat("s").stream("Hi")
        assert told(client.chat("s").messages) == WHOLE * 2, "the first reply was saved after all"


@pytest.mark.parametrize("failing", ["acquire", "load", "save"])
async def test_store_that_fails_before_the_message_is_sent(
    scripted: ScriptedServer, make_client: MakeClient, failing: str
) -> None:
    """Nothing is sent, and the session is free."""
    store = _Failing()
    store.failing = failing
    client = make_client(scripted.url, store=store)

    with pytest.raises(StoreError) as caught:
        await client.chat("s").stream("Hi")

    assert (caught.value.delivery, caught.value.session_id) == (Delivery.NOT_SENT, "s")
    assert not scripted.requests
    assert not client.chat("s").busy
    store.failing = ""
    await client.chat("s").stream("Hi")


@pytest.mark.parametrize("failing", ["acquire", "load", "save", "release"])
async def test_going_on_without_the_store(
    scripted: ScriptedServer, make_client: MakeClient, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Who prefers answers to memory gets a warning."""
    store = _Failing()
    store.failing, store.outage = failing, "local"
    client = make_client(scripted.url, store=store)

    with caplog.at_level(logging.WARNING, "aheadless"):
        await client.chat("s").stream("Hi")

    assert told(client.chat("s").messages) == WHOLE
    assert ("going on without the store" in caplog.text) is (failing != "release")


async def test_lost_lease(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """A holder that was believed dead cannot commit, and is told so, with its reply."""
    async with MemoryStore(lease_seconds=60) as store:
        client = make_client(scripted.url, store=store)
        with pytest.raises(StoreError, match="another process has taken") as caught:
            async for _event in client.chat("s").stream("Hi"):
                entry = store._entry("s")
                entry.leased_until = 0.0
                await store.acquire("s")
        assert caught.value.lost
        assert caught.value.reply is not None

        record = await store.load("s", limit=10)
        assert record is not None
        assert told(record.messages) == [("user", "Hi", "pending")]


async def test_crashed_turn_is_unknown(scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore) -> None:
    """What a process left pending is unknown to the next one, and saved as that."""
    lease = await store.acquire("s")
    assert lease is not None
    client = make_client(scripted.url, store=store)
    scripted.add(STALLED)
    async with client.chat("t").stream("Hi"):
        pending = client.chat("t").messages
    await store.save(SessionChange("s", 0, None, ((0, pending[0]),)), lease)
    await store.release(lease)

    session = await client.sessions.get("s")
    assert session is not None
    assert told(session.messages) == [("user", "Hi", "pending")], "its holder may be alive: nobody has its lease"
    await client.chat("s").stream("Hi")

    assert told(client.chat("s").messages) == [("user", "Hi", "unknown"), *WHOLE]
    record = await store.load("s", limit=10)
    assert record is not None
    assert told(record.messages) == [("user", "Hi", "unknown"), *WHOLE]


async def test_store_is_closed_with_the_client(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Unless its owner entered it."""
    own = MemoryStore()
    await make_client(scripted.url, store=own).aclose()
    with pytest.raises(StoreError, match="closed"):
        await own.list()


async def test_forgetting(scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore) -> None:
    """Here and in the store."""
    client = make_client(scripted.url, store=store)
    await client.chat("s").stream("Hi")

    await client.sessions.forget("s")

    assert await store.load("s", limit=10) is None
    assert client.chat("s").messages == ()
    await client.chat("s").stream("Hi")
    assert told(client.chat("s").messages) == WHOLE


async def test_forgetting_after_an_early_end(
    scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore
) -> None:
    """A turn of this client that has just ended, and is still to be saved, is not taken for another process's."""
    scripted.add(Script(FIRST, end="stall"))
    client = make_client(scripted.url, store=store)
    async for _event in client.chat("s").stream("Hi"):
        break

    await client.sessions.forget("s")

    assert await store.load("s", limit=10) is None
    assert client.chat("s").messages == ()


async def test_leases_are_renewed(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """A turn that takes longer than a lease keeps its session."""
    scripted.add(STALLED)
    async with MemoryStore(lease_seconds=0.1) as store:
        client = make_client(scripted.url, store=store)
        async with client.chat("s").stream("Hi"):
            for _ in range(4):
                await store.acquire("clock")  # waits until the lease before has run out
            assert await store.acquire("s", wait=False) is None


async def test_too_late_to_send(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """A process that was paused for longer than its lease does not send: somebody else may have the session."""
    store = _Failing(lease_seconds=60)
    client = make_client(scripted.url, store=store)

    async def paused(change: SessionChange, lease: Lease) -> None:
        await MemoryStore.save(store, change, lease)
        assert client._core.keeper is not None
        client._core.keeper._held["s"].valid_until = -1e9
        store._lease_seconds = -1e9

    store.save = paused  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="ran out before") as caught:
        await client.chat("s").stream("Hi")
    assert (caught.value.delivery, caught.value.lost) == (Delivery.NOT_SENT, False)
    assert not scripted.requests


async def test_paused_while_connecting(scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore) -> None:
    """The lease is looked at once more when there is a connection, which may have taken its time."""
    trace = aiohttp.TraceConfig()
    keepers: list[Any] = []

    async def paused(*_: object) -> None:
        keepers[0]._held["s"].valid_until = -1e9

    trace.on_connection_create_end.append(paused)
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        client = make_client(scripted.url, store=store, session=session)
        keepers.append(client._core.keeper)
        for ask in (client.chat("s").stream, client.chat("s").send):
            with pytest.raises(StoreError, match="ran out before") as caught:
                await ask("Hi")
            assert (caught.value.delivery, caught.value.lost) == (Delivery.NOT_SENT, False)
            assert caught.value.__context__ is None

    assert not scripted.requests
    assert [message.status for message in client.chat("s").messages] == ["failed", "failed"]


class _Slow(MemoryStore):
    """Saves at once, and takes its time to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.saved = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()

    async def save(self, change: SessionChange, lease: Lease) -> None:
        await super().save(change, lease)
        self.saved.set()
        await self.answering.wait()


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_cancelled_while_saving(scripted: ScriptedServer, make_client: MakeClient, how: str) -> None:
    """What was saved all the same is not taken for somebody else's: the end of the turn is saved, too."""
    async with _Slow() as store:
        client = make_client(scripted.url, store=store)
        store.answering.clear()
        task = asyncio.create_task(client.chat("s").stream("Hi").reply())
        await store.saved.wait()

        if how == "cancel":
            task.cancel()
            store.answering.set()
            await asyncio.wait([task])
        closing = asyncio.create_task(client.aclose())
        while not client.closed:
            await asyncio.sleep(0)
        store.answering.set()
        await asyncio.wait([task, closing])

        assert task.cancelled() or isinstance(task.exception(), ClientClosedError)
        record = await store.load("s", limit=10)
        assert record is not None
        assert told(record.messages) == [("user", "Hi", "cancelled" if how == "cancel" else "interrupted")]
        assert not scripted.requests


async def test_save_that_was_carried_out_before_it_failed(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """As when the connection to the store breaks after the command: saving again is not a conflict with oneself."""
    store = _Failing()
    client = make_client(scripted.url, store=store)

    async def failing(change: SessionChange, lease: Lease) -> None:
        await MemoryStore.save(store, change, lease)
        del store.save
        raise StoreError("the connection broke")

    store.save = failing  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="the connection broke"):
        await client.chat("s").stream("Hi")

    await client.chat("s").stream("Hi")

    record = await store.load("s", limit=10)
    assert record is not None
    assert told(record.messages) == [("user", "Hi", "failed"), *WHOLE]


async def test_interrupted_turn_is_saved(scripted: ScriptedServer, make_client: MakeClient, store: MemoryStore) -> None:
    """With its partial text, before its reader gets the error."""
    scripted.add(Script(FIRST, end="fin"))
    client = make_client(scripted.url, store=store)
    with pytest.raises(StreamInterruptedError):
        await client.chat("s").stream("Hi")

    record = await store.load("s", limit=10)

    assert record is not None
    assert record.messages == client.chat("s").messages
    assert [message.status for message in record.messages] == ["interrupted"] * 2


def test_idle_sessions_expire() -> None:
    """Those that were not used for too long, and never one with a live turn."""
    sessions = SessionManager(history_limit=10, idle_limit=10.0)
    for number in range(3):
        sessions.touch(sessions.new(str(number)), number * 4.0)
    live = sessions.known("0")
    assert live is not None
    live.begin("Hi", at=datetime.now(timezone.utc))
    assert len(sessions) == 3

    sessions.touch(sessions.new("3"), 14.5)

    assert [sessions.known(str(number)) is not None for number in range(4)] == [True, False, True, True]
