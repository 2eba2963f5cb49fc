"""Sessions in an SQLite file, for the processes of one machine.

One worker thread owns the connection, so the event loop never waits for the disk, and each call is one short
transaction. Who waits for a lease has a ticket in the file; between two looks at it the thread is free for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import random
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import attrs

from aheadless._exchange import Lease, SessionRecord
from aheadless._options import parse_count, parse_seconds
from aheadless.exceptions import ConfigurationError, StoreError
from aheadless.stores._base import LEASE_SECONDS, BaseStore, lost
from aheadless.stores._records import decode_message, encode_message

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from aheadless._exchange import SessionChange

__all__ = ["SQLiteStore"]

T = TypeVar("T")
Begin: TypeAlias = Literal["BEGIN", "BEGIN IMMEDIATE"]

BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process's write

# How long a waiter sleeps between two looks at the file: at first as long as a short turn's last save takes, then up to
# what a person does not notice. However many wait, the looks take the thread no more than a thousand times a second.
FIRST_PAUSE: Final = 0.005
LONGEST_PAUSE: Final = 0.05
PAUSE_PER_WAITER: Final = 0.001

# A ticket survives two renewals that fail, as a lease does.
TICKET_RENEWALS: Final = 3

# Tells this file from others, among them the server's own database: "ahSt".
APPLICATION_ID: Final = 0x61685374

# What leads from each schema version to the next one; a version that was released never changes. AUTOINCREMENT gives
# no number twice, even if its row is gone: that makes a lease's token a fencing token, and orders tickets and saves.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        f"PRAGMA application_id = {APPLICATION_ID}",
        """CREATE TABLE sessions (
            saved INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL UNIQUE, revision INTEGER NOT NULL,
            conversation_id TEXT, count INTEGER NOT NULL
        )""",
        """CREATE TABLE messages (
            session_id TEXT NOT NULL, number INTEGER NOT NULL, message BLOB NOT NULL, PRIMARY KEY (session_id, number)
        ) WITHOUT ROWID""",
        """CREATE TABLE leases (
            token INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL UNIQUE, holder TEXT NOT NULL,
            expires_at REAL NOT NULL
        )""",
        """CREATE TABLE tickets (
            number INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, expires_at REAL NOT NULL
        )""",
        "CREATE INDEX tickets_by_session ON tickets (session_id, number)",
    ),
)


@attrs.define(eq=False)
class _Place:
    """Somebody who asks for the lease of a session. Changed by the worker alone."""

    session_id: str
    ticket: int | None = None
    renew_at: float = 0.0
    lease: Lease | None = None


class SQLiteStore(BaseStore):
    """Keep sessions in an SQLite file, for clients in one process or in many on the same machine.

    - `path`: the file; it is made, with its folders, when the store is first used. Not on a network drive, whose
      locks cannot be relied on.
    - `history_limit`: how many messages of a session are kept; None: all.
    - `lease_seconds`: after how many seconds a holder that does not renew its lease loses it, by the machine's clock.
      A process that dies makes its session wait for as long.
    - `busy_timeout`: how many seconds to wait for another process's write before a StoreError.

    A call that is cancelled is carried out all the same once the worker thread has begun it. Raises
    ConfigurationError for values that cannot work.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        history_limit: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
        busy_timeout: float = BUSY_TIMEOUT,
    ) -> None:
        super().__init__(lease_seconds=lease_seconds)
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise ConfigurationError("path must be that of a file")
        self._path = os.fspath(path)
        self._history_limit = None if history_limit is None else parse_count(history_limit, "history_limit", least=0)
        self._busy_timeout = parse_seconds(busy_timeout, "busy_timeout")
        self._clock: Callable[[], float] = time.time  # all processes of a machine have the same
        self._connection: sqlite3.Connection | None = None  # the worker's
        self._worker = ThreadPoolExecutor(1, "aheadless-sqlite")  # starts its thread when it gets work
        self._waiting: set[_Place] = set()
        self._closing: Future[None] | None = None

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}{', closed' * (self._closing is not None)}>"

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        """Return the lease, as :class:`SessionStore` says."""
        place = _Place(session_id)
        self._waiting.add(place)
        try:
            while True:
                await self._run("BEGIN IMMEDIATE", lambda database: self._ask(database, place, wait=wait))
                if place.lease is not None or not wait:
                    return place.lease
                pause = FIRST_PAUSE
                while not await self._run("BEGIN", lambda database: self._is_due(database, place)):
                    # The jitter is no secret.
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                    pause = max(min(2 * pause, LONGEST_PAUSE), PAUSE_PER_WAITER * len(self._waiting))
        except BaseException:
            self._leave(place)  # maybe the lease was given in the very moment of being cancelled
            raise
        finally:
            self._waiting.discard(place)

    async def renew(self, lease: Lease) -> bool:
        """Let a lease last, as :class:`SessionStore` says."""
        return await self._run("BEGIN IMMEDIATE", lambda database: self._renew(database, lease))

    async def release(self, lease: Lease) -> None:
        """Give a lease back, as :class:`SessionStore` says."""
        await self._run("BEGIN IMMEDIATE", lambda database: _release(database, lease))

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        """Return what is kept, as :class:`SessionStore` says. Raises StoreError for a message that is damaged."""
        return await self._run("BEGIN", lambda database: _load(database, session_id, limit))

    async def save(self, change: SessionChange, lease: Lease) -> None:
        """Carry out a change, as :class:`SessionStore` says."""
        await self._run("BEGIN IMMEDIATE", lambda database: self._save(database, change, lease))

    async def forget(self, session_id: str, lease: Lease) -> None:
        """Drop what is kept, as :class:`SessionStore` says."""
        await self._run("BEGIN IMMEDIATE", lambda database: self._forget(database, session_id, lease))

    async def list(self) -> list[str]:
        """Return the ids, as :class:`SessionStore` says."""
        return await self._run("BEGIN", _list)

    async def aclose(self) -> None:
        """Close the file after what is under way, and end the thread; whoever waits for a lease gets a StoreError.

        If cancelled, that happens all the same.
        """
        if self._closing is None:
            self._closing = self._worker.submit(self._disconnect, tuple(self._waiting))
            self._worker.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(self._closing))

    # --- on the worker's thread ---------------------------------------------------------------------------------------

    async def _run(self, begin: Begin, work: Callable[[sqlite3.Connection], T]) -> T:
        """Carry out some work as one transaction. What is cancelled while it is queued is not begun."""
        if self._closing is not None:
            raise StoreError("the store is closed")
        return await asyncio.wrap_future(self._worker.submit(self._guard, begin, work))

    def _guard(self, begin: Begin, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._connection = _connect(self._path, self._busy_timeout)
            with self._connection:  # commits, or rolls back
                self._connection.execute(begin)
                return work(self._connection)
        except (sqlite3.Error, OSError) as exc:
            raise StoreError(f"the database {self._path} failed: {exc}") from exc

    def _disconnect(self, waiting: tuple[_Place, ...]) -> None:
        if self._connection is None:
            return
        for place in waiting:
            self._give_up(place)
        self._connection.close()
        self._connection = None

    def _ask(self, database: sqlite3.Connection, place: _Place, *, wait: bool) -> None:
        """Give the lease to its asker if it is free and no earlier one waits; give a ticket, or renew it, otherwise."""
        now = self._clock()
        database.execute("DELETE FROM tickets WHERE session_id = ? AND expires_at <= ?", (place.session_id, now))
        if self._is_next(database, place, now):
            database.execute("DELETE FROM tickets WHERE number = ?", (place.ticket,))
            token = database.execute(
                "INSERT OR REPLACE INTO leases (session_id, holder, expires_at) VALUES (?, ?, ?)",
                (place.session_id, f"{platform.node()}:{os.getpid()}", now + self.lease_seconds),
            ).lastrowid
            assert token is not None  # noqa: S101 - there is one after an INSERT
            place.lease = Lease(place.session_id, token)
        elif wait:
            # A ticket that ran out, because this process was paused, is put back to its old place.
            place.ticket = database.execute(
                "INSERT OR REPLACE INTO tickets (number, session_id, expires_at) VALUES (?, ?, ?)",
                (place.ticket, place.session_id, now + self.lease_seconds),
            ).lastrowid
            place.renew_at = now + self.lease_seconds / TICKET_RENEWALS

    def _is_due(self, database: sqlite3.Connection, place: _Place) -> bool:
        """Whether there is a reason to ask again. Only reads, so that those who wait are in nobody's way."""
        now = self._clock()
        return now >= place.renew_at or self._is_next(database, place, now)

    @staticmethod
    def _is_next(database: sqlite3.Connection, place: _Place, now: float) -> bool:
        held = database.execute(
            "SELECT 1 FROM leases WHERE session_id = ? AND expires_at > ?", (place.session_id, now)
        ).fetchone()
        earlier = database.execute(
            "SELECT 1 FROM tickets WHERE session_id = ? AND expires_at > ? AND number < coalesce(?, number + 1)",
            (place.session_id, now, place.ticket),
        ).fetchone()
        return held is None and earlier is None

    def _leave(self, place: _Place) -> None:
        with contextlib.suppress(RuntimeError):  # closed meanwhile, which gives up all places
            self._worker.submit(self._give_up, place)

    def _give_up(self, place: _Place) -> None:
        """Take back a ticket and a lease; what cannot be taken back runs out by itself."""
        if self._connection is None:
            return
        with contextlib.suppress(sqlite3.Error), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM tickets WHERE number = ?", (place.ticket,))
            if place.lease is not None:
                _release(self._connection, place.lease)

    def _renew(self, database: sqlite3.Connection, lease: Lease) -> bool:
        return bool(
            database.execute(
                "UPDATE leases SET expires_at = ? WHERE token = ?", (self._clock() + self.lease_seconds, lease.token)
            ).rowcount
        )

    def _save(self, database: sqlite3.Connection, change: SessionChange, lease: Lease) -> None:
        session_id = change.session_id
        if not self._renew(database, lease):
            raise lost(session_id)
        row = database.execute("SELECT revision, count FROM sessions WHERE session_id = ?", (session_id,)).fetchone()
        revision, count = row or (0, 0)
        if revision != change.revision:
            raise lost(session_id)
        count = max([count, *(number + 1 for number, _ in change.messages)])
        database.execute(
            "INSERT OR REPLACE INTO sessions (session_id, revision, conversation_id, count) VALUES (?, ?, ?, ?)",
            (session_id, revision + 1, change.conversation_id, count),
        )
        database.executemany(
            "INSERT OR REPLACE INTO messages (session_id, number, message) VALUES (?, ?, ?)",
            [(session_id, number, encode_message(message)) for number, message in change.messages],
        )
        if self._history_limit is not None:
            database.execute(
                "DELETE FROM messages WHERE session_id = ? AND number < ?", (session_id, count - self._history_limit)
            )

    def _forget(self, database: sqlite3.Connection, session_id: str, lease: Lease) -> None:
        if not self._renew(database, lease):
            raise lost(session_id)
        database.execute("DELETE FROM sessions WHERE session_id = ?", (session_id,))
        database.execute("DELETE FROM messages WHERE session_id = ?", (session_id,))


def _release(database: sqlite3.Connection, lease: Lease) -> None:
    database.execute("DELETE FROM leases WHERE token = ?", (lease.token,))


def _load(database: sqlite3.Connection, session_id: str, limit: int) -> SessionRecord | None:
    row = database.execute(
        "SELECT revision, conversation_id, count FROM sessions WHERE session_id = ?", (session_id,)
    ).fetchone()
    if row is None:
        return None
    newest = database.execute(
        "SELECT message FROM messages WHERE session_id = ? ORDER BY number DESC LIMIT ?", (session_id, limit)
    ).fetchall()
    revision, conversation_id, count = row
    messages = tuple(decode_message(message) for (message,) in reversed(newest))
    return SessionRecord(session_id, revision, conversation_id, messages, count)


def _list(database: sqlite3.Connection) -> list[str]:
    return [session_id for (session_id,) in database.execute("SELECT session_id FROM sessions ORDER BY saved")]


def _connect(path: str, busy_timeout: float) -> sqlite3.Connection:
    if path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Transactions are begun by us: the module's own begin only at the first write, too late to read in them.
    database = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)
    try:
        _prepare(database, busy_timeout)
    except BaseException:
        database.close()
        raise
    return database


def use_wal(database: sqlite3.Connection, patience: float) -> None:
    """Switch to write-ahead logging, for which SQLite itself does not wait when others open a new file just now."""
    give_up_at = time.monotonic() + patience
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _prepare(database: sqlite3.Connection, busy_timeout: float) -> None:
    _check_ours(database)
    use_wal(database, busy_timeout)
    # A crash of the machine may cost the last moments, never the file; a crash of the process costs nothing.
    database.execute("PRAGMA synchronous = NORMAL")
    if _pragma(database, "user_version") < len(MIGRATIONS):
        _migrate(database)


def _check_ours(database: sqlite3.Connection) -> None:
    """Raise StoreError, nothing written, for a database of a newer version and for one that is not ours."""
    # One transaction, or another process could make its tables between our looking at the one and at the other.
    with database:
        database.execute("BEGIN")
        version = _pragma(database, "user_version")
        ours = _pragma(database, "application_id") == APPLICATION_ID
        used = version or database.execute("SELECT 1 FROM sqlite_master").fetchone()
    if used and not ours:
        raise StoreError("the database belongs to something else: it is no store of sessions")
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the database was written by a newer version of aheadless ({version}, this one knows {len(MIGRATIONS)})"
        )


def _migrate(database: sqlite3.Connection) -> None:
    # One transaction, so that a process that dies here leaves the old version. Another process may have been faster,
    # so the version is read in it.
    with database:
        database.execute("BEGIN IMMEDIATE")
        for statements in MIGRATIONS[_pragma(database, "user_version") :]:
            for statement in statements:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    value: Any = database.execute(f"PRAGMA {name}").fetchone()[0]
    return int(value)
