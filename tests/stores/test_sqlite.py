"""The SQLite store: the contract, and what happens when the file is full, locked, broken or somebody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aheadless._session import SessionStore
from aheadless.stores import SQLiteStore
from tests.stores.contract import Open, StoreContract


class TestSQLiteStore(StoreContract):
    @pytest.fixture
    async def open_store(self, tmp_path: Path) -> AsyncIterator[Open]:
        stores: list[SQLiteStore] = []

        async def open_store(**options: Any) -> SessionStore:
            stores.append(SQLiteStore(tmp_path / "sessions.db", **options))
            return stores[-1]

        yield open_store
        for store in stores:
            await store.aclose()

    async def waits(self, store: SessionStore, count: int) -> None:
        assert isinstance(store, SQLiteStore)
        await waiting(store, count)


async def waiting(store: SQLiteStore, count: int) -> None:
    """Return when so many have a ticket for the session `s`."""
    query = "SELECT count(*) FROM tickets WHERE session_id = 's'"
    while (await store._run("BEGIN", lambda database: database.execute(query).fetchone()[0])) < count:
        pass
