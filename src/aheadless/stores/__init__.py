"""Where sessions outlive a process: give one of these to a client as `store`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aheadless._exchange import Lease, SessionChange, SessionRecord
from aheadless._store import SessionStore
from aheadless.stores.memory import MemoryStore

if TYPE_CHECKING:
    from aheadless.stores.redis import RedisStore
    from aheadless.stores.sqlite import SQLiteStore

__all__ = [
    "Lease",
    "MemoryStore",
    "RedisStore",
    "SQLiteStore",
    "SessionChange",
    "SessionRecord",
    "SessionStore",
]


def __getattr__(name: str) -> object:
    # Each is loaded by whoever uses it: they need sqlite3, and redis from the extra of that name.
    if name == "SQLiteStore":
        from aheadless.stores.sqlite import SQLiteStore  # noqa: PLC0415

        return SQLiteStore
    if name == "RedisStore":
        from aheadless.stores.redis import RedisStore  # noqa: PLC0415

        return RedisStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
