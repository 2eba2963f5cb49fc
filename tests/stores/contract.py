"""What every store must do: the same tests for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any, TypeAlias

import attrs
import pytest

from aheadless import Delivery, Message, StoreError
from aheadless._exchange import Lease, SessionChange, SessionRecord
from aheadless._store import SessionStore

Open: TypeAlias = Callable[..., Awaitable[SessionStore]]
"""Opens the same store again and again, as other processes would; takes the store's own options."""

AT = datetime(2026, 11, 26, 12, 0, 0, 123456, tzinfo=timezone.utc)
QUESTION = Message("user", "Hé \U0001f600\u2028", status="pending", created_at=AT, delivery=Delivery.UNKNOWN)
ANSWER = Message("assistant", "half", status="interrupted", created_at=AT, delivery=Delivery.ACCEPTED)


def change(*messages: tuple[int, Message], revision: int = 0, conversation_id: str | None = None) -> SessionChange:
    return SessionChange("s", revision, conversation_id, messages)


async def lease_of(store: SessionStore, session_id: str = "s") -> Lease:
    lease = await store.acquire(session_id)
    assert lease is not None
    return lease


class StoreContract:
    """To be inherited by the tests of a store, which give the fixture `open_store`."""

    async def test_unknown_session(self, open_store: Open) -> None:
        """Nothing is known of it, and asking leaves nothing."""
        store = await open_store()

        assert await store.load("s", limit=10) is None
        assert await store.list() == []

    async def test_save_and_load(self, open_store: Open) -> None:
        """What was saved comes back as it was, in this store object and in another one."""
        store, other = await open_store(), await open_store()
        lease = await lease_of(store)

        await store.save(change((0, QUESTION)), lease)
        settled = attrs.evolve(QUESTION, status="complete", delivery=Delivery.ACCEPTED)
        await store.save(change((0, settled), (1, ANSWER), revision=1, conversation_id="c"), lease)

        expected = SessionRecord("s", 2, "c", (settled, ANSWER), 2)
        assert await store.load("s", limit=10) == expected
        assert await other.load("s", limit=10) == expected
        assert await other.load("s", limit=1) == attrs.evolve(expected, messages=(ANSWER,))
        assert await other.load("s", limit=0) == attrs.evolve(expected, messages=())

    async def test_list(self, open_store: Open) -> None:
        """The sessions that were saved, the least recently saved first."""
        store = await open_store()
        leases = {session_id: await lease_of(store, session_id) for session_id in ("b", "a", "c")}
        for session_id, lease in leases.items():
            await store.save(SessionChange(session_id, 0, None, ((0, QUESTION),)), lease)
        await store.save(SessionChange("b", 1, None, ()), leases["b"])

        assert await store.list() == ["a", "c", "b"]

    async def test_history_limit(self, open_store: Open) -> None:
        """The store keeps as many messages as its owner wants; the numbers go on."""
        store = await open_store(history_limit=2)
        lease = await lease_of(store)
        for number in range(5):
            await store.save(change((number, attrs.evolve(ANSWER, text=str(number))), revision=number), lease)

        record = await store.load("s", limit=10)

        assert record is not None
        assert ([message.text for message in record.messages], record.count) == (["3", "4"], 5)

    async def test_forget(self, open_store: Open) -> None:
        """It is gone, and can begin anew."""
        store = await open_store()
        lease = await lease_of(store)
        await store.save(change((0, QUESTION)), lease)

        await store.forget("s", lease)

        assert await store.load("s", limit=10) is None
        assert await store.list() == []
        await store.save(change((0, QUESTION)), lease)
        assert await store.list() == ["s"]

    async def test_one_holder(self, open_store: Open) -> None:
        """Who does not wait is told at once; a session has nothing to do with another one."""
        store, other = await open_store(), await open_store()
        await lease_of(store)

        assert await other.acquire("s", wait=False) is None
        assert await store.acquire("s", wait=False) is None
        assert await other.acquire("t", wait=False) is not None

    async def test_waiters_in_order(self, open_store: Open) -> None:
        """First come, first served, whichever process they are in; a lease's token grows."""
        stores = [await open_store(), await open_store()]
        first = await lease_of(stores[0])
        got: list[int] = []
        tokens = [first.token]

        async def turn(number: int) -> None:
            store = stores[number % 2]
            lease = await lease_of(store)
            got.append(number)
            tokens.append(lease.token)
            await store.release(lease)

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(turn(number))
                await self.waits(stores[number % 2], number + 1)
            await stores[0].release(first)

        assert got == [0, 1, 2, 3, 4, 5]
        assert tokens == sorted({*tokens})

    async def waits(self, store: SessionStore, count: int) -> None:
        """Return when so many wait for the session `s`; each store knows how to tell."""
        raise NotImplementedError

    async def test_place_in_the_queue_is_given_up(self, open_store: Open) -> None:
        """Cancelled while waiting; the next one gets the session."""
        store, other = await open_store(), await open_store()
        lease = await lease_of(store)
        leaving = asyncio.create_task(store.acquire("s"))
        await self.waits(store, 1)
        staying = asyncio.create_task(other.acquire("s"))
        await self.waits(store, 2)

        leaving.cancel()
        await asyncio.wait([leaving])
        await store.release(lease)

        assert leaving.cancelled()
        assert (await staying) is not None

    async def test_lease_of_the_dead_ends(self, open_store: Open) -> None:
        """Who does not renew loses the session to whoever waits, and can then neither renew, save, forget nor release."""
        dead, other = await open_store(lease_seconds=0.1), await open_store(lease_seconds=60)
        lease = await lease_of(dead)
        await dead.save(change((0, QUESTION)), lease)

        new = await lease_of(other)

        assert new.token > lease.token
        assert await dead.renew(lease) is False
        for failing in (dead.save(change((1, ANSWER), revision=1), lease), dead.forget("s", lease)):
            with pytest.raises(StoreError) as caught:
                await failing
            assert caught.value.lost
            assert caught.value.session_id == "s"
        await dead.release(lease)
        assert await dead.acquire("s", wait=False) is None, "the new holder still has it"
        record = await other.load("s", limit=10)
        assert record is not None
        assert record.messages == (QUESTION,)
        await other.save(change((1, ANSWER), revision=1), new)

    async def test_late_but_not_taken_over(self, open_store: Open) -> None:
        """A lease that ran out is still good as long as nobody else has had the session."""
        store = await open_store(lease_seconds=0.05)
        lease = await lease_of(store)
        other = await lease_of(store, "t")
        assert (await lease_of(store, "t")).token > other.token  # so this much time has passed

        await store.save(change((0, QUESTION)), lease)
        assert await store.renew(lease) is True

    async def test_renewing(self, open_store: Open) -> None:
        """A renewed lease outlasts its first term: who waits gets it only when it is released."""
        store, clock = await open_store(lease_seconds=0.5), await open_store(lease_seconds=0.1)
        lease = await lease_of(store)
        waiting = asyncio.create_task(store.acquire("s"))
        for _ in range(8):
            await lease_of(clock, "tick")  # waits until the one before has run out
            assert await store.renew(lease) is True
        assert not waiting.done()

        await store.release(lease)

        assert (await waiting) is not None

    async def test_stale_revision(self, open_store: Open) -> None:
        """What was changed since it was read is not overwritten."""
        store = await open_store()
        lease = await lease_of(store)
        await store.save(change((0, QUESTION)), lease)

        for revision in (0, 2):
            with pytest.raises(StoreError) as caught:
                await store.save(change((0, ANSWER), revision=revision), lease)
            assert caught.value.lost

        record = await store.load("s", limit=10)
        assert record is not None
        assert (record.revision, record.messages) == (1, (QUESTION,))

    async def test_closing(self, open_store: Open) -> None:
        """Twice is as good as once; a closed store says so."""
        store = await open_store()
        await store.aclose()
        await store.aclose()

        with pytest.raises(StoreError, match="closed"):
            await store.load("s", limit=1)
        with pytest.raises(StoreError, match="closed"):
            await store.acquire("s")

    async def test_owner(self, open_store: Open) -> None:
        """A store that was entered as a block is closed by the block and not by a client."""
        store: Any = await open_store()
        assert store.shared is False
        async with store:
            assert store.shared is True
        with pytest.raises(StoreError, match="closed"):
            await store.list()
