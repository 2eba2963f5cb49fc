"""The database: what it keeps, and what happens when it is somebody else's, locked, broken or gone."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import Message, StoreError
from aheadless.exceptions import Delivery
from aheadless.server import storage as module
from aheadless.server.storage import Storage, _first_units


@contextmanager
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


async def test_ids_and_times() -> None:
    """Ids are 32 small letters and digits; times are milliseconds, whole but for the creation's."""
    storage = await Storage.open(":memory:")
    conversation_id, _ = await storage.add_question("s", "Hi")
    await storage.add_reply(conversation_id, "ho")
    thread: Any = await storage.conversation(conversation_id)
    await storage.aclose()

    objects = [thread["conversation"], *thread["messages"]]
    assert all(re.fullmatch(r"[a-z0-9]{32}", item["_id"]) for item in objects)
    assert len({item["_id"] for item in objects}) == 3
    for item in objects:
        assert isinstance(item["_creationTime"], float)
        assert isinstance(item["createdAt"], int)
        assert 0 <= item["_creationTime"] - item["createdAt"] < 1
    assert thread["conversation"]["updatedAt"] >= thread["messages"][1]["createdAt"]


async def test_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the last message, not by the first; `total` counts all."""
    seconds = count(1_000_000_000)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(seconds)))
    storage = await Storage.open(":memory:")
    for number in [*range(5), 1]:
        await storage.add_question(f"s{number}", "Hi")
    page: Any = await storage.conversations(3)
    await storage.aclose()

    assert [conversation["sessionId"] for conversation in page["conversations"]] == ["s1", "s4", "s3"]
    assert page["total"] == 5


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20), st.integers(0, 30))
def test_first_units(text: str, units: int) -> None:
    """At most so many UTF-16 units of the text; what cannot be stored does not come out."""
    cut = _first_units(text, units)

    assert len(cut.encode("utf-16-le")) <= 2 * units
    assert text.startswith(cut) or cut.endswith("\ufffd")
    assert len(text.encode("utf-16-le")) > 2 * units or cut == text


@pytest.mark.parametrize("text", ["a\x00b", "\x00", "\ufffe\uffff", "\u2028", "\U0010ffff", "é" * 100_000])
async def test_any_text_comes_back(text: str) -> None:
    """As it was."""
    storage = await Storage.open(":memory:")
    _, history = await storage.add_question("s", text)
    await storage.aclose()

    assert [message.text for message in history] == [text]


async def test_lone_halves_are_storable() -> None:
    """Half a surrogate pair becomes U+FFFD, also where the last message is cut."""
    storage = await Storage.open(":memory:")
    _, history = await storage.add_question("s", "\ud83d" * 600)
    await storage.aclose()

    assert history[0].text == "\ufffd" * 600


@pytest.mark.parametrize(
    "conversation_id", ["", "x", "\ud83d", "\x00" * 32, "A" * 32, "a" * 33, "' OR 1=1 --" + "a" * 21]
)
async def test_ids_that_we_never_made(conversation_id: str) -> None:
    """Are unknown; some of them SQLite could not even be asked for."""
    storage = await Storage.open(":memory:")
    assert await storage.conversation(conversation_id) is None
    await storage.aclose()


async def test_two_servers_on_one_file(tmp_path: Path) -> None:
    """Each waits for the other; a session has one conversation, whoever makes it."""
    servers = await asyncio.gather(*(Storage.open(tmp_path / "chat.db") for _ in range(4)))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(server.add_question(f"s{n % 5}", "Hi")) for n in range(10) for server in servers]
    page: Any = await servers[0].conversations(200)
    for server in servers:
        await server.aclose()

    assert page["total"] == 5
    assert len({task.result()[0] for task in tasks}) == 5


async def test_many_servers_open_a_new_file_at_once(tmp_path: Path) -> None:
    """One makes the tables, none fails. Several times, as it takes bad luck to get in each other's way."""
    for number in range(20):
        servers = await asyncio.gather(*(Storage.open(tmp_path / f"{number}.db") for _ in range(8)))
        for server in servers:
            await server.aclose()


async def test_locked_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits, and then gives up with nothing stored."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.01)
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreError, match="locked") as caught:
        await storage.add_question("s", "Hi")
    with pytest.raises(StoreError, match="cannot be opened"):
        await Storage.open(path)

    other.close()
    assert caught.value.delivery is Delivery.UNKNOWN
    assert (await storage.conversations(1))["total"] == 0
    await storage.aclose()


async def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """The conversation, its message and its date come together or not at all."""
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)
    with database(path) as other:
        other.execute("CREATE TRIGGER full BEFORE INSERT ON messages BEGIN SELECT RAISE(FAIL, 'disk full'); END")

    with pytest.raises(StoreError, match="disk full"):
        await storage.add_question("s", "Hi")
    with database(path) as other:
        other.execute("DROP TRIGGER full")

    assert (await storage.conversations(1))["total"] == 0
    assert len((await storage.add_question("s", "Hi"))[1]) == 1
    await storage.aclose()


def statements(storage: Storage) -> list[str]:
    """Return a list that grows by what the worker asks the database to do."""
    said: list[str] = []
    storage._worker.submit(storage._connection.set_trace_callback, said.append).result()
    return said


async def questions(storage: Storage, *texts: str) -> list[tuple[str, list[Message]] | BaseException]:
    """Ask all at once, each in a session of its own."""
    asked = [storage.add_question(f"s{number}", text) for number, text in enumerate(texts)]
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_calls_that_come_together() -> None:
    """Are carried out in one transaction, in their order."""
    storage = await Storage.open(":memory:")
    said = statements(storage)

    histories = await asyncio.gather(*(storage.add_question("s", str(number)) for number in range(5)))
    await storage.aclose()

    assert [[message.text for message in history] for _, history in histories] == [
        [str(number) for number in range(newest + 1)] for newest in range(5)
    ]
    assert [text for text in said if text.startswith(("BEGIN", "COMMIT"))] == ["BEGIN IMMEDIATE", "COMMIT"]


async def test_more_calls_than_fit_in_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the next one; those that only read take no lock."""
    monkeypatch.setattr(module, "MAX_BATCH", 3)
    storage = await Storage.open(":memory:")
    said = statements(storage)

    writing = [storage.add_question("s", text) for text in "abcd"]
    reading = [storage.conversations(1) for _ in range(4)]
    await asyncio.gather(*writing, *reading)
    await storage.aclose()

    assert [text for text in said if text.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN"]


async def test_what_is_answered_is_committed(tmp_path: Path) -> None:
    """Another process sees a message as soon as the call that stored it returns, whatever else is under way."""
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)

    with database(path) as other:
        for asked in asyncio.as_completed([storage.add_question(f"s{number}", "Hi") for number in range(20)]):
            conversation_id, _ = await asked
            found = other.execute("SELECT count(*) FROM messages WHERE conversation_id = ?", (conversation_id,))
            assert found.fetchone() == (1,)
    await storage.aclose()


async def test_one_of_many_that_fails(tmp_path: Path) -> None:
    """Fails alone, also for a reason that is not the database's; the others are stored, once."""
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)
    with database(path) as other:
        other.execute(
            "CREATE TRIGGER bad BEFORE INSERT ON messages WHEN NEW.content = 'bad'"
            " BEGIN SELECT RAISE(FAIL, 'a bad one'); END"
        )

    results, odd = await asyncio.gather(
        questions(storage, "good", "bad", "better"),
        asyncio.gather(storage.add_question("\ud83d", "a session that cannot be encoded"), return_exceptions=True),
    )

    assert [type(result) for result in results] == [tuple, StoreError, tuple]
    assert isinstance(odd[0], UnicodeEncodeError)
    with database(path) as other:
        assert other.execute("SELECT content FROM messages ORDER BY number").fetchall() == [("good",), ("better",)]
        assert other.execute("SELECT session_id FROM conversations").fetchall() == [("s0",), ("s2",)]
    await storage.aclose()


async def test_a_full_disk(tmp_path: Path) -> None:
    """What still fits is stored."""
    storage = await Storage.open(tmp_path / "chat.db")
    storage._worker.submit(storage._connection.execute, "PRAGMA max_page_count = 20").result()

    results = await questions(storage, "Hi", "long" * 50_000, "ho")

    assert [type(result) for result in results] == [tuple, StoreError, tuple]
    assert "full" in str(results[1])
    assert (await storage.conversations(10))["total"] == 2
    await storage.aclose()


async def test_many_while_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait together, not one after the other, and each is told."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.01)
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)
    said = statements(storage)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    results = await questions(storage, *"abc")
    other.close()

    assert [str(result) for result in results] == ["the database failed: database is locked"] * 3
    assert len({id(result) for result in results}) == 3
    assert said == ["BEGIN IMMEDIATE"]
    await storage.add_question("s", "Hi")
    await storage.aclose()


async def test_closed_while_calls_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came before is stored; what comes later is refused."""
    monkeypatch.setattr(module, "MAX_BATCH", 2)
    path = tmp_path / "chat.db"
    storage = await Storage.open(path)
    tasks = [asyncio.create_task(storage.add_question(f"s{number}", "Hi")) for number in range(5)]
    await asyncio.sleep(0)

    await storage.aclose()

    with database(path) as other:
        assert other.execute("SELECT count(*) FROM messages").fetchone() == (5,)
    assert len([await task for task in tasks]) == 5
    with pytest.raises(StoreError, match="closed") as caught:
        await storage.conversations(1)
    assert caught.value.delivery is Delivery.NOT_SENT


async def test_calls_that_are_cancelled(tmp_path: Path) -> None:
    """The worker finishes what it has begun, and begins nothing that nobody wants any more."""
    path, begun, loop = tmp_path / "chat.db", asyncio.Event(), asyncio.get_running_loop()
    storage = await Storage.open(path)
    storage._worker.submit(
        storage._connection.set_trace_callback, lambda _: loop.call_soon_threadsafe(begun.set)
    ).result()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    tasks = [asyncio.create_task(storage.add_question("first", "Hi"))]
    await begun.wait()
    tasks.append(asyncio.create_task(storage.add_question("second", "Hi")))
    await asyncio.sleep(0)

    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    other.close()

    page: Any = await storage.conversations(10)
    assert [conversation["sessionId"] for conversation in page["conversations"]] == ["first"]
    await storage.aclose()


async def test_somebody_elses_database(tmp_path: Path) -> None:
    """Is left as it is."""
    path = tmp_path / "other.db"
    with database(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()

    with pytest.raises(StoreError, match="belongs to something else") as caught:
        await Storage.open(path)

    assert path.read_bytes() == before
    assert caught.value.delivery is Delivery.NOT_SENT


async def test_places_where_no_database_can_be(tmp_path: Path) -> None:
    """A folder, a path through a file."""
    (tmp_path / "file").write_text("", "utf-8")

    for path in (tmp_path, tmp_path / "file" / "chat.db"):
        with pytest.raises(StoreError, match="cannot be opened"):
            await Storage.open(path)


async def test_settings_of_the_connection(tmp_path: Path) -> None:
    """Readers do not wait for writers, and the version is in the file."""
    path = tmp_path / "chat.db"
    await (await Storage.open(path)).aclose()

    with database(path) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert other.execute("PRAGMA user_version").fetchone() == (1,)
    assert stat.S_ISREG(path.stat().st_mode)
