"""Nothing is left behind by turns, however they end.

`python -m tests.test_leaks 10000` runs so many turns and prints what was in use meanwhile; pytest runs a few hundred.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import attrs
import pytest

from aheadless import AheadlessError, ChatClient, ReplyStream, Retry, Timeouts, Token
from aheadless.testing import Script, ScriptedServer, events, json_answer, stream_answer
from tests.support import KEY

ANSWER = stream_answer(events("Hello", " big", " world"))
CUT = len(ANSWER) // 2
FAULTS = (
    Script(ANSWER).cut(CUT),
    Script(ANSWER).cut(CUT, "rst"),
    Script(end="fin"),
    Script(end="rst"),
    Script(b"HELLO\r\n\r\n", end="fin"),
    Script(json_answer({"error": "no"}, status=500)),
    Script(json_answer("<h1>Oops</h1>", status=502)),
    Script(stream_answer([b"oops\n"])),
    Script(ANSWER).cut(CUT, "stall"),
)
IMPATIENT = Timeouts(first_token=0.05, idle=0.05)
SESSIONS = 5
SAMPLES = 20
LINUX = Path("/proc/self/fd").exists()


class LeftEarlyError(Exception):
    """What the user's own code raises in the middle of a stream."""


@attrs.frozen
class Sample:
    """What is in use between two turns."""

    turns: int
    faults: int
    tasks: int
    sockets: int
    responses: int
    ours: int
    """Objects of aheadless and of aiohttp. Those of asyncio go up and down with the timers that it has yet to forget."""
    megabytes: float

    def __str__(self) -> str:
        return (
            f"{self.turns:>7} {self.faults:>7} {self.tasks:>6} {self.sockets:>8} {self.responses:>10} "
            f"{self.ours:>6} {self.megabytes:>9.1f}"
        )


HEADER = "  turns  faults  tasks  sockets  responses   ours  RSS (MB)"


def take_sample(turns: int, faults: int) -> Sample:
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    return Sample(
        turns,
        faults,
        tasks=len(asyncio.all_tasks()) - 1,
        sockets=count_sockets() if LINUX else 0,
        responses=kinds[aiohttp.ClientResponse],
        ours=sum(count for kind, count in kinds.items() if str(kind.__module__).startswith(("aheadless", "aiohttp"))),
        megabytes=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        if LINUX
        else 0.0,
    )


def count_sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            pass  # it was that of the listing itself
    return count


# --- the ways in which turns are driven and left ----------------------------------------------------------------------


async def wait(stream: ReplyStream, _chance: random.Random) -> None:
    await stream


async def iterate(stream: ReplyStream, _chance: random.Random) -> None:
    async for _ in stream:
        pass


async def leave_a_block(stream: ReplyStream, _chance: random.Random) -> None:
    async with stream:
        async for _ in stream.text():
            break


async def leave_a_loop(stream: ReplyStream, _chance: random.Random) -> None:
    async for event in stream:
        if isinstance(event, Token):
            break


async def fail_in_a_loop(stream: ReplyStream, _chance: random.Random) -> None:
    async for event in stream:
        if isinstance(event, Token):
            raise LeftEarlyError


async def be_cancelled(stream: ReplyStream, chance: random.Random) -> None:
    task = asyncio.create_task(stream.reply())
    for _ in range(chance.randrange(40)):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def stop_it(stream: ReplyStream, _chance: random.Random) -> None:
    async for _ in stream:
        stream.stop()


# Waiting is what most do.
WAYS = (wait, wait, iterate, leave_a_block, leave_a_loop, fail_in_a_loop, be_cancelled, stop_it)


async def use(
    turns: int, *, fault_rate: float = 0.01, report: Callable[[object], None] = lambda _: None
) -> list[Sample]:
    """Have so many turns with one client, and return what was in use now and then."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60  # a busy machine is no leak
    chance = random.Random(1)
    samples: list[Sample] = []
    faults = 0
    report(HEADER)
    async with ScriptedServer() as server:
        async with ChatClient(server.url, api_key=KEY, retry=Retry(attempts=1), history_limit=4) as client:
            for number in range(1, turns + 1):
                bad = chance.random() < fault_rate
                faults += bad
                server.add(chance.choice(FAULTS) if bad else Script(ANSWER))
                try:
                    chat = client.chat(f"session-{number % SESSIONS}")
                    # A good answer may take its time on a busy machine; a server that stalls is not waited for.
                    stream = chat.stream("Hi", timeouts=IMPATIENT if bad else None)
                    await WAYS[number % len(WAYS)](stream, chance)
                except (AheadlessError, LeftEarlyError):
                    pass
                if number % (turns // SAMPLES) == 0:
                    # The log of the server is no leak of the client.
                    server.requests.clear()
                    await settle(client, server)
                    samples.append(take_sample(number, faults))
                    report(samples[-1])
    return samples


async def settle(client: ChatClient, server: ScriptedServer) -> None:
    """Take away the scripts that nobody came for, and let what was closed on one side be closed on the other."""
    server._scripts.clear()
    await client.chat("last").stream("Hi")
    while client._core.transport._lingering or server.open_connections > 1:
        await asyncio.sleep(0)


@contextmanager
def watch_finalizers() -> Iterator[list[str]]:
    """Collect what Python could only print: the warning of an object that was dropped while it was open."""
    found: list[str] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda left: found.append(f"{left.exc_value!r} in {left.object!r}")
    try:
        yield found
        gc.collect()
    finally:
        sys.unraisablehook = before


def check(samples: list[Sample], *, megabytes: float) -> None:
    """After the first fifth, in which caches and pools fill, nothing grows."""
    flat = samples[SAMPLES // 5 :]
    assert {sample.tasks for sample in flat} == {flat[0].tasks}
    assert {sample.sockets for sample in flat} == {flat[0].sockets}
    assert max(sample.responses for sample in flat) <= 1  # of the connection that is kept
    assert max(sample.ours for sample in flat[1:]) - flat[0].ours < 20
    assert flat[-1].megabytes - flat[0].megabytes < megabytes


@pytest.mark.slow
async def test_nothing_is_left() -> None:
    """Hundreds of turns, one in ten with a fault: no task, socket, response or object more than before."""
    with watch_finalizers() as left:
        samples = await use(320, fault_rate=0.1)

    check(samples, megabytes=8)
    assert left == []


@pytest.mark.parametrize("name", ["tasks", "sockets", "ours", "megabytes"])
def test_the_check_sees_a_leak(name: str) -> None:
    """Of each kind: a slow growth is found."""
    steady = [Sample(number, 0, 3, 10, 1, 1000, 50.0) for number in range(SAMPLES)]
    growing = [attrs.evolve(item, **{name: getattr(item, name) * (1 + 0.1 * item.turns)}) for item in steady]

    check(steady, megabytes=8)
    with pytest.raises(AssertionError):
        check(growing, megabytes=8)


if __name__ == "__main__":
    started = time.monotonic()
    with watch_finalizers() as dropped:
        taken = asyncio.run(use(int(sys.argv[1]), report=print))
    assert dropped == [], dropped
    check(taken, megabytes=8)
    sys.stdout.write(f"flat over {sys.argv[1]} turns, {time.monotonic() - started:.0f} s\n")
