"""The SQLite store: the contract, and what happens when the file is full, locked, broken or somebody else's."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aheadless import ConfigurationError, Delivery, StoreError
from aheadless._store import SessionStore
from aheadless.server.storage import Storage
from aheadless.stores import SQLiteStore, sqlite
from aheadless.testing import Script, ScriptedServer
from aheadless.testing.scripts import events, stream_answer
from tests.conftest import MakeClient
from tests.stores.contract import ANSWER, QUESTION, Open, StoreContract, change, lease_of

ROOT = Path(__file__).parent.parent.parent


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
        await tickets(store, count)


async def tickets(store: SQLiteStore, count: int) -> list[int]:
    """Return the tickets for the session `s` when there are so many."""
    query = "SELECT number FROM tickets WHERE session_id = 's' ORDER BY number"
    while len(found := await store._run("BEGIN", lambda database: database.execute(query).fetchall())) < count:
        pass
    return [number for (number,) in found]


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SQLiteStore]:
    async with SQLiteStore(path, lease_seconds=60) as store:
        yield store


async def filled(path: Path) -> None:
    """Make a store with a session in it."""
    async with SQLiteStore(path) as store:
        lease = await lease_of(store)
        await store.save(change((0, QUESTION), (1, ANSWER)), lease)
        await store.release(lease)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- the file ---------------------------------------------------------------------------------------------------------


async def test_nothing_is_opened_before_it_is_used(tmp_path: Path) -> None:
    """Neither the file nor a thread; then folders are made, too."""
    path = tmp_path / "a" / "b" / "sessions.db"
    store = SQLiteStore(path)
    assert not path.parent.exists()
    assert not store._worker._threads

    await store.list()
    assert path.exists()
    [thread] = store._worker._threads
    await store.aclose()
    thread.join()
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"]
    await SQLiteStore(path).aclose()


async def test_settings_of_the_connection(store: SQLiteStore, path: Path) -> None:
    """Readers do not wait for writers; version and kind are in the file."""
    await store.list()

    with database(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
        assert other.execute("PRAGMA application_id").fetchone() == (sqlite.APPLICATION_ID,)


async def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    """One makes the tables, none fails. Several times, as it takes bad luck to get in each other's way."""
    for number in range(20):
        stores = [SQLiteStore(tmp_path / f"{number}.db") for _ in range(8)]

        assert await asyncio.gather(*(store.list() for store in stores)) == [[]] * 8

        for store in stores:
            await store.aclose()


async def test_newer_version(path: Path) -> None:
    """It is refused, and nothing is written."""
    await filled(path)
    with database(path) as other:
        other.execute("PRAGMA user_version = 2")
    before = files(path.parent)

    store = SQLiteStore(path)
    with pytest.raises(StoreError, match=r"newer version of aheadless \(2, this one knows 1\)"):
        await store.acquire("s")
    await store.aclose()

    assert files(path.parent) == before


@pytest.mark.parametrize("kind", ["server", "other"])
async def test_database_of_something_else(path: Path, kind: str) -> None:
    """The server's own database, for one. Nothing is written into it."""
    if kind == "server":
        await (await Storage.open(path)).aclose()
    else:
        with database(path) as other:
            other.execute("CREATE TABLE cats (name TEXT)")
    before = files(path.parent)

    store = SQLiteStore(path)
    with pytest.raises(StoreError, match="belongs to something else"):
        await store.list()
    await store.aclose()

    assert files(path.parent) == before


LATER = ("ALTER TABLE sessions ADD COLUMN mood TEXT NOT NULL DEFAULT 'good'",)


async def test_older_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is brought up to date, with all that is in it."""
    await filled(path)
    monkeypatch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, LATER, ()))

    async with SQLiteStore(path) as store:
        record = await store.load("s", limit=10)

    assert record is not None
    assert record.messages == (QUESTION, ANSWER)
    with database(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (3,)
        assert other.execute("SELECT mood FROM sessions").fetchone() == ("good",)


async def test_migration_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old version stays, whole."""
    await filled(path)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "MIGRATIONS", (*sqlite.MIGRATIONS, LATER, ("ALTER TABLE cats ADD COLUMN name",)))
        async with SQLiteStore(path) as store:
            with pytest.raises(StoreError, match="no such table: cats"):
                await store.list()

    with database(path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
    async with SQLiteStore(path) as store:
        assert await store.list() == ["s"]


def _garbage(data: bytes) -> bytes:
    return b"this is no database" * 100


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _overwritten(data: bytes) -> bytes:
    return data[:100] + b"\xff" * (len(data) - 100)


@pytest.mark.parametrize("damage", [_garbage, _cut, _overwritten])
async def test_corrupt_file(
    path: Path, damage: Callable[[bytes], bytes], scripted: ScriptedServer, make_client: MakeClient
) -> None:
    """A StoreError before anything is sent; the file is kept as it is, for whoever can repair it."""
    await filled(path)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    client = make_client(scripted.url, store=SQLiteStore(path))

    with pytest.raises(StoreError, match=r"not a database|malformed") as caught:
        await client.chat("s").stream("Hi")
    await client.aclose()

    assert caught.value.delivery is Delivery.NOT_SENT
    assert not scripted.requests
    assert path.read_bytes() == before


async def test_damaged_message(store: SQLiteStore, path: Path) -> None:
    """It is not left out, nor taken for another."""
    await filled(path)
    with database(path) as other:
        other.execute("UPDATE messages SET message = ? WHERE number = 1", (b'{"role":"user"}',))

    with pytest.raises(StoreError, match="a stored message cannot be read"):
        await store.load("s", limit=10)


# --- the disk ---------------------------------------------------------------------------------------------------------


@contextmanager
def no_more_pages(store: SQLiteStore) -> Iterator[None]:
    """SQLite's own limit: to it the disk is full."""

    def limit(pages: int) -> None:
        assert store._connection is not None
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    store._worker.submit(limit, 1).result()  # as small as the file is
    yield
    store._worker.submit(limit, 1_000_000).result()


@contextmanager
def no_more_bytes(_store: SQLiteStore) -> Iterator[None]:
    """The system's limit: it refuses to write."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", [no_more_pages, no_more_bytes])
async def test_disk_full(
    path: Path,
    full: Callable[[SQLiteStore], Any],
    scripted: ScriptedServer,
    make_client: MakeClient,
) -> None:
    """The reply is on the StoreError; it is saved when there is room again."""
    text = "long, " * 10_000 + "and done"
    scripted.add(Script(stream_answer(events(text))))
    async with SQLiteStore(path) as store:
        client = make_client(scripted.url, store=store)
        stream = client.chat("s").stream("Hi")
        async with stream:
            await stream.advance()  # the question is saved, and the server answers
            with full(store), pytest.raises(StoreError, match=r"full|I/O") as caught:
                await stream.reply()
        assert caught.value.reply is not None
        assert caught.value.reply.text == text
        assert caught.value.lost is False

        await client.aclose()

        record = await store.load("s", limit=10)
        assert record is not None
        assert [message.text for message in record.messages] == ["Hi", text]


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user who may not write where others do not let him; root may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps permissions in another way")
async def test_read_only(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Nothing can be saved: a StoreError before anything is sent."""
    # Not in pytest's own folder, into which no other user may look.
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sessions.db"
        await filled(path)
        before = path.read_bytes()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        client = make_client(scripted.url, store=SQLiteStore(path))
        with nobody():
            with pytest.raises(StoreError, match=r"readonly|unable to open") as caught:
                await client.chat("s").stream("Hi")
            await client.aclose()
        path.parent.chmod(0o755)
        assert path.read_bytes() == before

    assert caught.value.delivery is Delivery.NOT_SENT
    assert not scripted.requests


LOCKING = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process writes, and does not come to an end."""
    with subprocess.Popen(
        [sys.executable, "-c", LOCKING, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"locked"
        yield process
        process.stdin.close()


async def test_locked_by_another_process(path: Path) -> None:
    """It waits, then gives up with a StoreError; readers do not even wait, and it works again afterwards."""
    async with SQLiteStore(path, busy_timeout=0.2) as store:
        lease = await lease_of(store)
        with locked(path):
            begun = time.monotonic()
            with pytest.raises(StoreError, match="locked") as caught:
                await store.save(change((0, QUESTION)), lease)
            assert time.monotonic() - begun >= 0.2
            assert caught.value.lost is False
            assert await store.list() == []

        await store.save(change((0, QUESTION)), lease)


async def test_unlocked_in_time(path: Path) -> None:
    """Who waits for another process's write gets in after it."""
    async with SQLiteStore(path, busy_timeout=60) as store:
        lease = await lease_of(store)
        with locked(path):
            saving = asyncio.create_task(store.save(change((0, QUESTION)), lease))
            await asyncio.sleep(0)  # now the worker has it
        await saving

        assert await store.list() == ["s"]


# --- leases -----------------------------------------------------------------------------------------------------------


async def test_ticket_of_the_dead_ends(store: SQLiteStore, path: Path) -> None:
    """A waiter that died is in the way for no longer than a holder."""
    await store.list()
    now = time.time()
    with database(path) as other:
        other.execute("INSERT INTO tickets (session_id, expires_at) VALUES ('s', ?)", (now + 60,))
    store._clock = lambda: now
    assert await store.acquire("s", wait=False) is None
    waiting = asyncio.create_task(store.acquire("s"))
    await tickets(store, 2)

    store._clock = lambda: now + 61

    assert await waiting is not None


async def test_ticket_that_ran_out_keeps_its_place(store: SQLiteStore, path: Path) -> None:
    """Who was paused while waiting has not lost his place: the order is that of asking."""
    now = time.time()
    store._clock = lambda: now
    lease = await lease_of(store)
    first = asyncio.create_task(store.acquire("s"))
    before = await tickets(store, 1)
    second = asyncio.create_task(store.acquire("s"))
    before = await tickets(store, 2)
    with database(path) as other:
        other.execute("DELETE FROM tickets WHERE number = ?", (before[0],))

    store._clock = lambda: now + 20  # a third of the lease: tickets are renewed

    assert await tickets(store, 2) == before
    await store.release(lease)
    await store.release((await first) or lease)
    assert not second.done()
    await second


class Held:
    """Holds the worker up in the middle of a transaction: at its next look at the clock."""

    def __init__(self, store: SQLiteStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.there = asyncio.Event()
        self.go = threading.Event()
        store._clock = self

    def __call__(self) -> float:
        self._store._clock = time.time
        self._loop.call_soon_threadsafe(self.there.set)
        self.go.wait()
        return time.time()


async def test_cancelled_when_the_lease_is_given(store: SQLiteStore) -> None:
    """The lease goes back at once."""
    held = Held(store)
    asking = asyncio.create_task(store.acquire("s"))
    await held.there.wait()

    asking.cancel()
    await asyncio.wait([asking])
    held.go.set()

    assert asking.cancelled()
    assert await store.acquire("s", wait=False) is not None


async def test_cancelled_while_saving(store: SQLiteStore) -> None:
    """What the worker has begun is carried out; what was queued behind it is not."""
    lease = await lease_of(store)
    held = Held(store)
    saving = asyncio.create_task(store.save(change((0, QUESTION)), lease))
    await held.there.wait()
    queued = asyncio.create_task(store.save(change((1, ANSWER), revision=1), lease))
    await asyncio.sleep(0)

    for task in (saving, queued):
        task.cancel()
    await asyncio.wait([saving, queued])
    held.go.set()

    record = await store.load("s", limit=10)
    assert record is not None
    assert record.messages == (QUESTION,)


async def test_closed_in_the_middle(store: SQLiteStore, path: Path) -> None:
    """What is under way is finished, who waits is told, and its ticket is gone. The thread ends."""
    lease = await lease_of(store)
    waiting = asyncio.create_task(store.acquire("s"))
    await tickets(store, 1)
    [thread] = store._worker._threads
    held = Held(store)
    saving = asyncio.create_task(store.save(change((0, QUESTION)), lease))
    await held.there.wait()

    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    held.go.set()
    await store.aclose()
    await saving
    with pytest.raises(StoreError, match="closed"):
        await waiting
    thread.join()

    with database(path) as other:
        assert other.execute("SELECT count(*) FROM tickets").fetchone() == (0,)
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (1,)


NEVER_CLOSED = """
import asyncio, sys
from aheadless.stores import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.acquire("s")
    waiting = asyncio.create_task(store.acquire("s"))
    await asyncio.sleep(0)
    return store

store = asyncio.run(main())
"""


def test_never_closed(path: Path) -> None:
    """A program that forgets to close its store ends all the same."""
    subprocess.run([sys.executable, "-c", NEVER_CLOSED, str(path)], check=True, timeout=60, cwd=ROOT)


async def test_nothing_is_left_of_a_session_that_was_never_saved(store: SQLiteStore, path: Path) -> None:
    """Leases alone fill no file."""
    for number in range(10):
        await store.release(await lease_of(store, str(number)))

    with database(path) as other:
        assert other.execute("SELECT count(*) FROM leases").fetchone() == (0,)


async def test_long_history(store: SQLiteStore) -> None:
    """Of a session with many messages, the newest."""
    lease = await lease_of(store)
    messages = [(number, attrs.evolve(ANSWER, text=str(number))) for number in range(1000)]
    await store.save(change(*messages), lease)

    record = await store.load("s", limit=3)

    assert record is not None
    assert ([message.text for message in record.messages], record.count) == (["997", "998", "999"], 1000)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("", {}),
        (None, {}),
        (3, {}),
        ("x", {"history_limit": -1}),
        ("x", {"lease_seconds": 0}),
        ("x", {"busy_timeout": 0}),
        ("x", {"busy_timeout": True}),
    ],
)
def test_wrong_options(path: Any, options: dict[str, Any]) -> None:
    """Refused at once."""
    with pytest.raises(ConfigurationError):
        SQLiteStore(path, **options)
