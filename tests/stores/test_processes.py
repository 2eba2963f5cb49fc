"""One turn at a time over real processes, which are killed (SIGKILL) and paused (SIGSTOP) in the middle of turns.

`nox -s crashes` runs the long form: as many turns as CRASH_TURNS says.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from aheadless import ChatClient, Message
from aheadless.server import RunningServer, ServerSettings, run_server
from tests.conftest import MakeClient
from tests.stores.history import answer_to, problems
from tests.stores.worker import Orders, open_store
from tests.support import ADMIN_KEY, KEY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor SIGSTOP")

ROOT = Path(__file__).parent.parent.parent
TURNS = int(os.environ.get("CRASH_TURNS", "300"))
LONG = "CRASH_TURNS" in os.environ

# A worker that is killed leaves a reply that the server is still writing. The next turn must not begin before it is
# stored, so a lease outlasts a reply (some milliseconds, below) by far.
LEASE_SECONDS = 1.0


class Engine:
    """Answer so that one sees which question it was; slowly enough for a turn to have a middle."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[str] = []

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        question = history[-1].text
        self.asked.append(question)
        answer = answer_to(question)
        yield answer[:3]
        await self.gate.wait()
        await asyncio.sleep(0.002)
        yield answer[3:]


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def server(engine: Engine) -> AsyncIterator[RunningServer]:
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=engine, rate_limit=None)
    async with run_server(settings) as server:
        yield server


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The store that all processes open, as `open_store` takes it."""
    if request.param == "redis":
        place = {"url": request.getfixturevalue("redis_server").url}
    else:
        place = {"path": str(tmp_path / "sessions.db")}
    return {"kind": request.param, "lease_seconds": LEASE_SECONDS, **place}


class Process:
    """A worker, and the lines that it told."""

    def __init__(self, process: asyncio.subprocess.Process, name: str) -> None:
        assert process.stdout is not None
        assert process.stdin is not None
        self.process = process
        self.name = name
        self.stdin = process.stdin
        self.stdout = process.stdout

    async def next(self) -> dict[str, Any] | None:
        """Return the next line; None when there are no more."""
        try:
            line: dict[str, Any] = json.loads(await self.stdout.readline())
        except json.JSONDecodeError:  # it has ended, maybe in the middle of a line
            return None
        return line

    async def until(self, event: str) -> dict[str, Any]:
        while (line := await self.next()) is not None:
            if line["event"] == event:
                return line
        raise AssertionError(f"{self.name} ended without {event}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def pause(self) -> None:
        """Let it stop itself in the middle of its next reply."""
        self.stdin.write(b"pause\n")

    def end(self) -> None:
        """Let it end after the turns that are under way."""
        self.stdin.close()

    async def ended(self) -> int:
        self.stdin.close()
        await self.stdout.read()
        return await self.process.wait()


@asynccontextmanager
async def started(server: RunningServer, store: dict[str, Any], **orders: Any) -> AsyncIterator[Process]:
    """Run a worker; it is dead when the block is left."""
    process = Process(await start(server, store, **orders), orders["name"])
    try:
        yield process
    finally:
        if process.process.returncode is None:
            process.signal(signal.SIGKILL)
        await process.ended()


async def start(server: RunningServer, store: dict[str, Any], **orders: Any) -> asyncio.subprocess.Process:
    told = attrs.asdict(Orders(url=server.url, key=KEY, store=store, **orders))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.stores.worker",
        json.dumps(told),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def thread_of(client: ChatClient, session_id: str) -> list[tuple[str, str]]:
    """Return the server's messages of a session."""
    page = await client.admin.conversations(limit=200)
    ids = [conversation.id for conversation in page.conversations if conversation.session_id == session_id]
    assert len(ids) == 1
    return [(message.role, message.content) for message in (await client.admin.conversation(ids[0])).messages]


def messages_of(client: ChatClient, session_id: str) -> list[tuple[str, str, str]]:
    return [(message.role, message.text, message.status) for message in client.chat(session_id).messages]


async def test_killed_in_mid_turn(
    server: RunningServer, engine: Engine, store: dict[str, Any], make_client: MakeClient
) -> None:
    """The next process shows the turn as unknown and does not send it again; the session goes on after the lease."""
    engine.gate.clear()
    async with started(server, store, name="victim", sessions=["s"]) as victim:
        await victim.until("begun")
        victim.signal(signal.SIGKILL)
        assert await victim.ended() == -signal.SIGKILL
    engine.gate.set()

    client = make_client(server.url, admin_key=ADMIN_KEY, store=open_store(store))
    await client.sessions.get("s")
    assert messages_of(client, "s") == [("user", "victim-1", "pending")], "its holder may still be alive"
    await client.chat("s").stream("next")

    assert messages_of(client, "s") == [
        ("user", "victim-1", "unknown"),
        ("user", "next", "complete"),
        ("assistant", "re next", "complete"),
    ]
    assert engine.asked == ["victim-1", "next"]
    assert await thread_of(client, "s") == [
        ("user", "victim-1"),
        ("assistant", "re victim-1"),
        ("user", "next"),
        ("assistant", "re next"),
    ]


async def test_paused_for_longer_than_its_lease(
    server: RunningServer, store: dict[str, Any], make_client: MakeClient
) -> None:
    """Another process gets the session; the paused one cannot commit and is told so, with its reply."""
    client = make_client(server.url, store=open_store(store))
    async with started(server, store, name="sleeper", sessions=["s"], turns=1) as sleeper:
        sleeper.pause()
        await sleeper.until("paused")
        await client.chat("s").stream("next")

        sleeper.signal(signal.SIGCONT)
        told = await sleeper.until("told")

        assert (told["outcome"], told["reply"]) == ("lost", "re sleeper-1")
        assert await sleeper.ended() == 0
    await client.sessions.get("s")
    assert messages_of(client, "s") == [
        ("user", "sleeper-1", "unknown"),
        ("user", "next", "complete"),
        ("assistant", "re next", "complete"),
    ]


class Crowd:
    """Workers that talk in the same few sessions, and the one who kills, pauses and replaces them."""

    def __init__(self, server: RunningServer, store: dict[str, Any], *, workers: int, sessions: Sequence[str]) -> None:
        self.server = server
        self.store = store
        self.size = workers
        self.sessions = sessions
        self.told: list[dict[str, Any]] = []
        self.complete = 0
        self.killed = 0
        self._paused: dict[Process, str] = {}  # and the session in whose turn it stopped
        self._lines: asyncio.Queue[tuple[Process, dict[str, Any] | None]] = asyncio.Queue()
        self._group = asyncio.TaskGroup()
        self._alive: set[Process] = set()
        self._names = 0

    async def talk(self, turns: int, *, kill_every: int, pause_every: int) -> None:
        """Return when so many turns were complete and all workers have ended."""
        next_kill, next_pause = kill_every, pause_every
        async with self._group:
            for _ in range(self.size):
                self._start()
            while self.complete < turns:
                process, line = await self._next()
                assert line is not None or process not in self._alive, f"{process.name} ended by itself"
                if line is None or line["event"] != "begun" or process not in self._alive or process in self._paused:
                    continue
                if self.complete >= next_kill:
                    next_kill += kill_every
                    self._alive.discard(process)
                    process.signal(signal.SIGKILL)  # in mid-turn: it has just begun
                    self.killed += 1
                    self._start()
                elif self.complete >= next_pause:
                    next_pause += pause_every
                    process.pause()
            for process in self._alive:
                process.end()
                process.signal(signal.SIGCONT)
            while self._alive:
                process, line = await self._next()
                if line is None:
                    self._alive.discard(process)
                elif line["event"] == "paused":
                    process.signal(signal.SIGCONT)

    async def _next(self) -> tuple[Process, dict[str, Any] | None]:
        process, line = await self._lines.get()
        match line:
            case {"event": "paused", "session": session}:
                self._paused[process] = session
            case {"event": "told", "session": session, "outcome": outcome}:
                assert line is not None
                self.told.append(line)
                self.complete += outcome == "complete"
                if LONG and self.complete % 500 == 0 and outcome == "complete":
                    sys.stderr.write(f"{self.complete} turns, {self.killed} workers killed\n")
                # Only when another has had the session does the pause become interesting.
                for paused in [paused for paused, its in self._paused.items() if its == session]:
                    del self._paused[paused]
                    paused.signal(signal.SIGCONT)
        return process, line

    def _start(self) -> None:
        self._names += 1
        self._group.create_task(self._run(f"w{self._names}"))

    async def _run(self, name: str) -> None:
        async with started(self.server, self.store, name=name, sessions=self.sessions, tasks=2) as process:
            self._alive.add(process)
            while (line := await process.next()) is not None:
                self._lines.put_nowait((process, line))
            await process.ended()
            self._lines.put_nowait((process, None))


@pytest.mark.slow
async def test_crowd(server: RunningServer, store: dict[str, Any], make_client: MakeClient) -> None:
    """However they are killed and paused: no turns interleave, none is lost or doubled, the order is kept."""
    sessions = ["s1", "s2", "s3", "s4"]
    crowd = Crowd(server, store, workers=3, sessions=sessions)

    await crowd.talk(TURNS, kill_every=60, pause_every=110)

    client = make_client(server.url, admin_key=ADMIN_KEY)
    records = open_store(store)
    threads = {session_id: await thread_of(client, session_id) for session_id in sessions}
    kept = {session_id: await records.load(session_id, limit=1_000_000) for session_id in sessions}
    await records.aclose()
    assert problems(threads, {key: record for key, record in kept.items() if record is not None}, crowd.told) == []
    assert crowd.killed >= 4
    assert any(report["outcome"] == "lost" for report in crowd.told)
