"""The conversations, in SQLite: one worker thread owns the connection, so the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import re
import secrets
import sqlite3
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

import attrs

from aheadless._session import Message
from aheadless.exceptions import Delivery, StoreError
from aheadless.protocol.codec import join_surrogates
from aheadless.stores.sqlite import use_wal

if TYPE_CHECKING:
    from collections.abc import Callable

    from aheadless._session import Role

__all__ = ["HISTORY_WINDOW", "Storage"]

T = TypeVar("T")

HISTORY_WINDOW: Final = 30  # messages that the model gets, protocol.md §5
LAST_MESSAGE_UNITS: Final = 500  # protocol.md §4
BUSY_TIMEOUT: Final = 5.0  # seconds to wait for another process's write
VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, session_id TEXT NOT NULL UNIQUE, creation_time REAL NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, last_message TEXT NOT NULL
);
CREATE INDEX conversations_by_update ON conversations (updated_at DESC, creation_time DESC);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, conversation_id TEXT NOT NULL REFERENCES conversations (id),
    role TEXT NOT NULL, content TEXT NOT NULL, creation_time REAL NOT NULL, created_at INTEGER NOT NULL
);
CREATE INDEX messages_by_conversation ON messages (conversation_id, number);
"""

# The columns stand in the order in which the reference writes the fields (protocol.md §4).
_CONVERSATION_FIELDS: Final = ("_creationTime", "_id", "createdAt", "lastMessage", "sessionId", "updatedAt")
_MESSAGE_FIELDS: Final = ("_creationTime", "_id", "content", "conversationId", "createdAt", "role")

_ID: Final = re.compile(r"[a-z0-9]{32}")

# What waits while a transaction is made goes into the next one together. With more, the first would wait too long.
MAX_BATCH: Final = 200

Begin: TypeAlias = Literal["BEGIN", "BEGIN IMMEDIATE"]


@attrs.frozen(eq=False)
class _Job:
    """What one call wants done in a transaction, and who waits for it."""

    begin: Begin
    work: Callable[[], object]
    done: asyncio.Future[Any]


class Storage:
    """Open with :meth:`open`, end with :meth:`aclose`. Every failure of the database is a StoreError.

    Each call is in a transaction, whole or not at all, and returns when that is committed. Calls that come together, or
    while a transaction is made, share the next one; if one of them cannot be done, it fails alone. A call that is
    cancelled is still carried out if the worker has begun it.
    """

    def __init__(self, connection: sqlite3.Connection, worker: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._worker = worker
        self._waiting: deque[_Job] = deque()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @classmethod
    async def open(cls, path: str | Path) -> Storage:
        """Open or create the database.

        Raises StoreError, nothing written, for one of a newer version and for one that is not ours.
        """
        worker = ThreadPoolExecutor(1, "aheadless-storage")
        try:
            connection = await asyncio.get_running_loop().run_in_executor(worker, _connect, path)
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(connection, worker)

    async def add_question(self, session_id: str, text: str) -> tuple[str, list[Message]]:
        """Store a user's message; return the conversation's id and its newest messages, this one last."""
        return await self._run("BEGIN IMMEDIATE", lambda: self._add_question(session_id, text))

    async def add_reply(self, conversation_id: str, text: str) -> None:
        """Store the assistant's message."""
        await self._run("BEGIN IMMEDIATE", lambda: self._add(conversation_id, "assistant", text))

    async def conversations(self, limit: int) -> dict[str, object]:
        """Return the newest conversations as the admin route sends them."""
        return await self._run("BEGIN", lambda: self._conversations(limit))

    async def conversation(self, conversation_id: str) -> dict[str, object] | None:
        """Return a conversation with its messages as the admin route sends it, or None."""
        if not _ID.fullmatch(conversation_id):
            return None  # no id that we made; some of these texts SQLite cannot even take
        return await self._run("BEGIN", lambda: self._conversation(conversation_id))

    async def aclose(self) -> None:
        """Close the database after what is under way and what waits; calls that come later are refused."""
        self._closed = True
        try:
            await self._idle.wait()
            await asyncio.get_running_loop().run_in_executor(self._worker, self._connection.close)
        finally:
            self._worker.shutdown(wait=False)

    async def _run(self, begin: Begin, work: Callable[[], T]) -> T:
        if self._closed:
            raise StoreError("the database is closed", delivery=Delivery.NOT_SENT)
        loop = asyncio.get_running_loop()
        job = _Job(begin, work, loop.create_future())
        self._waiting.append(job)
        if self._idle.is_set():
            self._idle.clear()
            # Not at once: others that are ready now come into the same transaction. To wake the worker, and to be woken
            # by it, costs as much as what it does for one call.
            loop.call_soon(self._start)
        result: T = await job.done
        return result

    def _start(self) -> None:
        """Give the worker what waits."""
        jobs: list[_Job] = []
        while self._waiting and len(jobs) < MAX_BATCH:
            job = self._waiting.popleft()
            if not job.done.cancelled():
                jobs.append(job)
        if jobs:
            transaction = asyncio.get_running_loop().run_in_executor(self._worker, self._transact, jobs)
            transaction.add_done_callback(partial(self._settle, jobs))
        else:
            self._idle.set()

    def _settle(self, jobs: list[_Job], transaction: asyncio.Future[list[object]]) -> None:
        """Tell those who wait, and go on with what has come meanwhile."""
        for job, result in zip(jobs, transaction.result(), strict=True):
            if job.done.cancelled():
                continue
            if isinstance(result, Exception):
                job.done.set_exception(result)
            else:
                job.done.set_result(result)
        # Those who were told now go first: what they want next is in the next transaction.
        asyncio.get_running_loop().call_soon(self._start)

    def _transact(self, jobs: list[_Job]) -> list[object]:
        """Do the jobs in one transaction, and return what each gives, or why it failed; never raises.

        If one fails, each is done in a transaction of its own, so that only what is to blame fails.
        """
        begin: Begin = "BEGIN" if all(job.begin == "BEGIN" for job in jobs) else "BEGIN IMMEDIATE"
        try:
            self._connection.execute(begin)
        except sqlite3.Error as exc:
            # No job is to blame. Most likely another process holds the lock, for which each alone would wait anew.
            return [_failure(exc) for _ in jobs]
        try:
            with self._connection:  # commits, or rolls back
                return [job.work() for job in jobs]
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is for who waits for this job
            if len(jobs) == 1:
                return [_failure(exc) if isinstance(exc, sqlite3.Error) else exc]
        return [result for job in jobs for result in self._transact([job])]

    def _add_question(self, session_id: str, text: str) -> tuple[str, list[Message]]:
        row = self._connection.execute("SELECT id FROM conversations WHERE session_id = ?", (session_id,)).fetchone()
        if row is None:
            return self._add_conversation(session_id, text)
        conversation_id = row[0]
        self._add(conversation_id, "user", text)
        rows = self._connection.execute(
            "SELECT role, content, created_at FROM messages WHERE conversation_id = ? ORDER BY number DESC LIMIT ?",
            (conversation_id, HISTORY_WINDOW),
        ).fetchall()
        return conversation_id, [_message(*row) for row in reversed(rows)]

    def _add_conversation(self, session_id: str, text: str) -> tuple[str, list[Message]]:
        text = join_surrogates(text)  # SQLite stores no halves
        now = time.time() * 1000
        conversation_id = _new_id("j")
        self._connection.execute(
            "INSERT INTO conversations (creation_time, id, created_at, last_message, session_id, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (now, conversation_id, int(now), _first_units(text, LAST_MESSAGE_UNITS), session_id, int(now)),
        )
        self._add_message(conversation_id, "user", text, now)
        return conversation_id, [_message("user", text, int(now))]

    def _add(self, conversation_id: str, role: Role, text: str) -> None:
        text = join_surrogates(text)
        now = time.time() * 1000
        self._add_message(conversation_id, role, text, now)
        self._connection.execute(
            "UPDATE conversations SET updated_at = ?, last_message = ? WHERE id = ?",
            (int(now), _first_units(text, LAST_MESSAGE_UNITS), conversation_id),
        )

    def _add_message(self, conversation_id: str, role: Role, text: str, now: float) -> None:
        self._connection.execute(
            "INSERT INTO messages (id, conversation_id, role, content, creation_time, created_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (_new_id("k"), conversation_id, role, text, now, int(now)),
        )

    def _conversations(self, limit: int) -> dict[str, object]:
        rows = self._connection.execute(
            "SELECT creation_time, id, created_at, last_message, session_id, updated_at FROM conversations"
            " ORDER BY updated_at DESC, creation_time DESC LIMIT ?",
            (limit,),
        ).fetchall()
        total = self._connection.execute("SELECT count(*) FROM conversations").fetchone()[0]
        return {"conversations": [_named(_CONVERSATION_FIELDS, row) for row in rows], "total": total}

    def _conversation(self, conversation_id: str) -> dict[str, object] | None:
        row = self._connection.execute(
            "SELECT creation_time, id, created_at, last_message, session_id, updated_at FROM conversations"
            " WHERE id = ?",
            (conversation_id,),
        ).fetchone()
        if row is None:
            return None
        rows = self._connection.execute(
            "SELECT creation_time, id, content, conversation_id, created_at, role FROM messages"
            " WHERE conversation_id = ? ORDER BY number",
            (conversation_id,),
        ).fetchall()
        return {
            "conversation": _named(_CONVERSATION_FIELDS, row),
            "messages": [_named(_MESSAGE_FIELDS, message) for message in rows],
        }


def _failure(cause: sqlite3.Error) -> StoreError:
    failure = StoreError(f"the database failed: {cause}", delivery=Delivery.UNKNOWN)
    failure.__cause__ = cause
    return failure


def _connect(path: str | Path) -> sqlite3.Connection:
    try:
        if str(path) != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        # Transactions are begun by us: the module's own begin only at the first write, too late to read in them.
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as exc:
        raise StoreError(f"the database {path} cannot be opened: {exc}", delivery=Delivery.NOT_SENT) from exc
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    _check_ours(connection)
    use_wal(connection, BUSY_TIMEOUT)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    # One transaction, so that a process that dies here leaves an empty database and not half a schema. Another process
    # may have been faster, so the version is read in it.
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        if _version(connection) == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _check_ours(connection: sqlite3.Connection) -> None:
    # One transaction, or another process could make its tables between our looking at the one and at the other.
    with connection:
        connection.execute("BEGIN")
        version = _version(connection)
        used = connection.execute("SELECT 1 FROM sqlite_master").fetchone()
    if version > VERSION:
        raise StoreError(
            f"the database was written by a newer version of aheadless ({version}, this one knows {VERSION})",
            delivery=Delivery.NOT_SENT,
        )
    if version == 0 and used:
        raise StoreError("the database belongs to something else: it has tables of its own", delivery=Delivery.NOT_SENT)


def _version(connection: sqlite3.Connection) -> int:
    version: Any = connection.execute("PRAGMA user_version").fetchone()[0]
    return int(version)


def _named(fields: tuple[str, ...], row: tuple[object, ...]) -> dict[str, object]:
    return dict(zip(fields, row, strict=True))


def _message(role: str, text: str, created_at: int) -> Message:
    at = datetime.fromtimestamp(created_at / 1000, timezone.utc)
    return Message("user" if role == "user" else "assistant", text, created_at=at)


def _first_units(text: str, units: int) -> str:
    if text.isascii():
        return text[:units]
    # Cut as JavaScript cuts; half of an emoji becomes U+FFFD.
    return text.encode("utf-16-le")[: 2 * units].decode("utf-16-le", "replace")


def _new_id(first: str) -> str:
    return first + secrets.token_hex(16)[1:]  # 32 small letters and digits, protocol.md §4
