"""One measurement in this process: `python -m benchmarks.measure <what> <arguments as JSON>` prints what it found."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from benchmarks.clients import CLIENTS


def pin(core: int) -> None:
    """Keep to one core, where there are several and the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def raise_file_limit() -> None:
    """Allow as many open connections as the system does."""
    try:
        import resource
    except ImportError:
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def resident() -> int:
    """Return how much memory this process has from the system, in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def cpu(base: str, client: str, mode: str, tokens: int, rounds: int) -> list[float]:
    """Return microseconds of this process's CPU for each token, one figure a turn."""
    figures = []
    async with CLIENTS[client](base) as ask:
        await ask(f"{mode}/200/0")
        for _ in range(rounds):
            gc.collect()
            begun = time.process_time()
            count = await ask(f"{mode}/{tokens}/0")
            figures.append(1e6 * (time.process_time() - begun) / tokens)
            assert count in {0, tokens}, (client, count)  # the floor parses nothing
    return figures


async def paced(base: str, client: str, streams: int, tokens: int, rate: float) -> dict[str, float]:
    """Return CPU for each token, and how late tokens were, while so many streams are open.

    That is from when each has had its first token until the first one ends: what turns cost at their beginning and
    their end is not in it.
    """
    delays: list[float] = []
    begun: set[object] = set()
    marks: list[tuple[float, float, int, int]] = []

    def mark() -> None:
        marks.append((time.monotonic(), time.process_time(), len(delays), resident()))

    def on_text(text: str) -> None:
        delays.append(time.monotonic() - float(text))
        if len(begun) < streams:
            begun.add(asyncio.current_task())
            if len(begun) == streams:
                mark()

    async with CLIENTS[client](base, on_text) as ask:

        async def read() -> int:
            count = await ask(f"paced/{tokens}/{rate}")
            if len(begun) == streams and len(marks) == 1:
                mark()
            return count

        await ask(f"paced/1/{rate}")  # what is made once, as the connector, is made by now
        delays.clear()
        begun.clear()
        marks.clear()
        before = resident()
        tasks = [asyncio.ensure_future(read()) for _ in range(streams)]
        counts = await asyncio.gather(*tasks)
    assert counts == [tokens] * streams, "tokens were lost"
    (opened_at, cpu_before, first, held), (ended_at, cpu_after, last, _) = marks
    assert last > first, "the first stream ended before the last one had begun"
    late = sorted(delays[first:last])
    return {
        "cpu_us": 1e6 * (cpu_after - cpu_before) / len(late),
        "busy": (cpu_after - cpu_before) / (ended_at - opened_at),
        "p50_ms": 1e3 * late[len(late) // 2],
        "p99_ms": 1e3 * late[len(late) * 99 // 100],
        "kib": (held - before) / streams / 1024,
    }


async def open_streams(base: str, client: str, streams: int) -> float:
    """Return the KiB of memory that an open stream takes, after its first token."""
    came = asyncio.Semaphore(0)
    async with CLIENTS[client](base, lambda _text: came.release()) as ask:
        tasks: list[asyncio.Future[int]] = []

        async def open_more(number: int) -> None:
            # Not all at once, which nobody does: what opening them takes would count, and it is given back.
            for _ in range(number // 50):
                tasks.extend(asyncio.ensure_future(ask("stalled/1/0")) for _ in range(50))
                await arrived(came, 50)
            gc.collect()

        await open_more(200)  # what is made once, and what grows by doubling, is there by now
        before = resident()
        await open_more(streams)
        grown = resident() - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return grown / streams / 1024


async def arrived(came: asyncio.Semaphore, number: int) -> None:
    for _ in range(number):
        await came.acquire()


class FirstError(Exception):
    """Ends a turn at its first token."""


async def first_token(base: str, clients: list[str], turns: int) -> dict[str, list[float]]:
    """Return microseconds to the first token, for clients in turn, each on a warm connection."""
    from contextlib import AsyncExitStack

    came = 0.0

    def on_text(_text: str) -> None:
        nonlocal came
        came = came or time.perf_counter()

    figures: dict[str, list[float]] = {client: [] for client in clients}
    async with AsyncExitStack() as stack:
        asks = {client: await stack.enter_async_context(CLIENTS[client](base, on_text)) for client in clients}
        for number in range(turns + 20):
            for client, ask in asks.items():
                came = 0.0
                begun = time.perf_counter()
                await ask("burst/1/0")
                if number >= 20:
                    figures[client].append(1e6 * (came - begun))
    return figures


async def lines(base: str, sizes: list[int]) -> list[float]:
    """Return seconds of CPU for one line of each size, through the decoder, in pieces of 16 KiB."""
    from aheadless.protocol.turn import Turn

    took = []
    for size in sizes:
        piece = b"x" * (16 * 1024)
        begun = time.process_time()
        turn = Turn(max_line=2 * size, max_stream=4 * size)
        turn.receive_data(b'{"type":"start","conversationId":"c"}\n')
        turn.next_event()
        turn.receive_data(b'{"type":"token","token":"')
        for _ in range(size // len(piece)):
            turn.receive_data(piece)
            turn.next_event()
        turn.receive_data(b'"}\n')
        assert turn.next_event() is not None
        took.append(time.process_time() - begun)
    return took


def decoding(tokens: int, rounds: int) -> list[float]:
    """Return microseconds for each line of `msgspec.json.decode`, line by line, as plain objects."""
    import msgspec

    raw = [b'{"type":"token","token":"token "}'] * tokens
    figures = []
    for _ in range(rounds):
        begun = time.process_time()
        for line in raw:
            msgspec.json.decode(line)
        figures.append(1e6 * (time.process_time() - begun) / tokens)
    return figures


def process(command: list[str]) -> float:
    """Return the seconds of CPU that a whole process takes, itself and what it waits for."""
    before = os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


async def run(what: str, arguments: dict[str, Any]) -> Any:
    if what == "decoding":
        return decoding(**arguments)
    if what == "process":
        return process(**arguments)
    measurements: dict[str, Callable[..., Awaitable[Any]]] = {
        "cpu": cpu,
        "paced": paced,
        "open_streams": open_streams,
        "first_token": first_token,
        "lines": lines,
    }
    return await measurements[what](**arguments)


if __name__ == "__main__":
    pin(0)
    raise_file_limit()
    what, arguments, *loop = sys.argv[1:]
    runner: Callable[[Any], Any] = asyncio.run
    if loop == ["uvloop"]:
        import uvloop

        runner = uvloop.run
    print(json.dumps(runner(run(what, json.loads(arguments)))))
