"""The memory store: the contract, and what closing it means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aheadless import ConfigurationError, StoreError
from aheadless._store import SessionStore
from aheadless.stores import MemoryStore
from tests.stores.contract import Open, StoreContract, lease_of


class _View(MemoryStore):
    """Another process's view of a memory store: the same entries, its own options."""

    def __init__(self, base: MemoryStore, **options: Any) -> None:
        super().__init__(**options)
        self._entries, self._tokens = base._entries, base._tokens


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def open_store(self) -> AsyncIterator[Open]:
        base = MemoryStore()

        async def open_store(**options: Any) -> SessionStore:
            return _View(base, **options)

        yield open_store
        await base.aclose()

    async def waits(self, store: SessionStore, count: int) -> None:
        assert isinstance(store, MemoryStore)
        while len([place for place in store._entry("s").waiting if not place.done()]) < count:
            await asyncio.sleep(0)


async def test_closing_ends_the_waiting() -> None:
    """Who waits for a session is told that it will not come."""
    store = MemoryStore()
    await lease_of(store)
    waiting = asyncio.create_task(store.acquire("s"))
    await asyncio.sleep(0)

    await store.aclose()

    with pytest.raises(StoreError, match="closed"):
        await waiting


async def test_nothing_is_left_of_a_session_that_was_never_saved() -> None:
    """Leases alone fill no memory."""
    store = MemoryStore()
    for number in range(100):
        await store.release(await lease_of(store, str(number)))

    assert not store._entries
    await store.aclose()


@pytest.mark.parametrize("options", [{"history_limit": -1}, {"lease_seconds": 0}, {"lease_seconds": None}])
def test_wrong_options(options: dict[str, Any]) -> None:
    """Refused at once."""
    with pytest.raises(ConfigurationError):
        MemoryStore(**options)
