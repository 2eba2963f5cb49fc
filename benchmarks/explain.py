"""Where the time and the memory go, beside what a careful person writes on plain aiohttp.

`python -m benchmarks.explain` counts the instructions of Python for a token that comes alone and for a turn, and the
bytes of an open stream, by the package that they are of, times an import and the steps of a token that comes with
others, and writes the tables into the page. What is counted is the same on each run.
"""

from __future__ import annotations

import asyncio
import compileall
import gc
import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import patch

import aheadless
from aheadless import Token
from aheadless.protocol.codec import decode_tokens
from benchmarks import servers
from benchmarks.__main__ import OURS, PAGE, PLAIN, put_into, responder
from benchmarks.clients import CLIENTS
from benchmarks.measure import pin, raise_file_limit

HOME = str(Path(aheadless.__path__[0]))
LINE = b'{"type":"token","token":"token "}\n'
TOKENS = 480  # what 16 KiB hold

# --- what is counted --------------------------------------------------------------------------------------------------


def owner(filename: str) -> str:
    """Return whose code or memory it is."""
    if filename.startswith(HOME) or "generated methods aheadless" in filename:
        return "aheadless"
    if "/benchmarks/" in filename:
        return "the program itself"
    _, _, inside = filename.partition("site-packages/")
    if inside:
        return "aiohttp and what it needs"
    return "asyncio" if "/asyncio/" in filename or filename.endswith("selectors.py") else "the rest of Python"


def traced(steps: Counter[str]) -> Callable[..., Any]:
    """Return a trace function that counts instructions by owner."""

    def each(frame: FrameType, event: str, _argument: object) -> Any:
        if event == "opcode":
            steps[owner(frame.f_code.co_filename)] += 1
        return each

    def begin(frame: FrameType, _event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return each

    return begin


async def instructions(base: str, client: str, path: Callable[[int], list[str]]) -> Counter[str]:
    """Return the instructions for one more, from a run of 5 and one of 25."""
    found: list[Counter[str]] = []
    async with CLIENTS[client](base) as ask:
        await ask("burst/1/0")
        for number in (5, 25):
            steps: Counter[str] = Counter()
            sys.settrace(traced(steps))
            for one in path(number):
                await asyncio.create_task(ask(one))
            sys.settrace(None)
            found.append(steps)
    few, many = found
    return Counter({name: round((many[name] - few[name]) / 20) for name in many})


async def memory(base: str, client: str, streams: int = 400) -> Counter[str]:
    """Return the bytes of an open stream by the owner of the line that asked for them."""
    came = asyncio.Semaphore(0)
    async with CLIENTS[client](base, lambda _text: came.release()) as ask:
        tasks: list[asyncio.Future[int]] = []

        async def open_more(number: int) -> tracemalloc.Snapshot:
            for _ in range(number // 50):
                tasks.extend(asyncio.ensure_future(ask("stalled/1/0")) for _ in range(50))
                for _ in range(50):
                    await came.acquire()
            gc.collect()
            return tracemalloc.take_snapshot()

        tracemalloc.start()
        before = await open_more(200)
        after = await open_more(streams)
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    found: Counter[str] = Counter()
    for difference in after.compare_to(before, "lineno"):
        found[owner(difference.traceback[0].filename)] += difference.size_diff
    return Counter({name: round(size / streams) for name, size in found.items()})


async def server_instructions(kind: str) -> Counter[str]:
    """Return the instructions for one more JSON reply of twenty tokens, in the event loop's thread of a server."""
    found: list[Counter[str]] = []

    async def ask(port: int) -> None:
        program = "import asyncio, sys; from benchmarks.servers import ask_all; port, turns = map(int, sys.argv[1:]); "
        program += "asyncio.run(ask_all(port, '/v1/chat', turns=turns, connections=8))"
        for turns in (8, 40, 240):
            steps: Counter[str] = Counter()
            asking = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(port), str(turns))
            sys.settrace(traced(steps))
            await asyncio.create_task(asking.wait())
            sys.settrace(None)
            found.append(steps)

    with patch.object(servers, "announce", ask):
        await servers.serve(kind)
    _, few, many = found
    return Counter({name: round((many[name] - few[name]) / 200) for name in many})


def imports() -> Counter[str]:
    """Return the milliseconds that modules take to load, by owner; Python says so itself."""
    compileall.compile_dir(HOME, quiet=2)  # as pip does on installing
    command = [sys.executable, "-X", "importtime", "-c", "from aheadless import ChatClient"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stderr.splitlines()
    found: Counter[str] = Counter()
    for line in lines[1:]:
        microseconds, _, name = line.removeprefix("import time:").split("|")
        package = name.strip().partition(".")[0]
        found[package if package in {"aheadless", "msgspec"} else "aiohttp and what it needs"] += int(microseconds)
    return Counter({name: round(spent / 1000) for name, spent in found.items()})


# --- what is timed ----------------------------------------------------------------------------------------------------


class Ready:
    """Gives what is there, as the iterator over a stream does."""

    __slots__ = ("_ready",)

    def __init__(self, ready: list[Token]) -> None:
        self._ready = ready

    def __aiter__(self) -> Ready:
        return self

    async def __anext__(self) -> Token:
        if self._ready:
            return self._ready.pop()
        raise StopAsyncIteration


def nanoseconds(work: Callable[[], object]) -> float:
    """Return what one of the tokens that `work` goes through takes: the least of many times."""
    best = float("inf")
    for _ in range(300):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return 1e9 * best / TOKENS


def joined_token() -> dict[str, float]:
    """Return the steps that a token that comes in a chunk of 16 KiB cannot do without."""
    import msgspec

    block, lines = LINE * TOKENS, [LINE] * TOKENS
    decode_lines = msgspec.json.Decoder(Token).decode_lines
    tokens = decode_lines(block)
    loop = asyncio.new_event_loop()

    async def iterate() -> None:
        async for _ in Ready(tokens.copy()):
            pass

    try:
        whole = nanoseconds(lambda: decode_tokens(block))
        bare = nanoseconds(lambda: decode_lines(block))
        return {
            "`msgspec.json.decode` of each line, the measure": nanoseconds(lambda: [*map(msgspec.json.decode, lines)]),
            "msgspec makes the events of a block": bare,
            "proving that each line is one token": whole - bare,
            "a step of `async for` over what is there": nanoseconds(lambda: loop.run_until_complete(iterate())),
        }
    finally:
        loop.close()


# --- the page ---------------------------------------------------------------------------------------------------------


def table(title: str, columns: dict[str, Counter[str]]) -> Iterator[str]:
    """Give the lines of a table of counts, the largest first, with their sums."""
    yield f"| {title} | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    total: Counter[str] = sum(columns.values(), Counter())
    for name, _ in total.most_common():
        yield f"| {name} | {' | '.join(f'{column[name]:,}' for column in columns.values())} |"
    yield f"| together | {' | '.join(f'{column.total():,}' for column in columns.values())} |"
    yield ""


def measured(what: str, whose: str, base: str) -> Counter[str]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.explain", what, whose, base]
    return Counter(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def explained(base: str) -> Iterator[str]:
    for what, title in TITLES.items():
        yield from table(title, {client: measured(what, client, base) for client in (PLAIN, OURS)})
    reply = "instructions for a JSON reply of twenty tokens, in the server's event loop"
    yield from table(reply, {kind: measured("server", kind, base) for kind in servers.KINDS})
    yield from table("milliseconds of an import, while Python keeps time", {"found": imports()})
    yield "| a token that comes with others | nanoseconds |"
    yield "|---|---|"
    for name, found in joined_token().items():
        yield f"| {name} | {found:.0f} |"


TITLES = {
    "alone": "instructions for a token that comes alone",
    "turn": "instructions for a turn of one token",
    "memory": "bytes of an open stream",
}


def main() -> None:
    pin(0)
    raise_file_limit()
    if len(sys.argv) > 1:
        what, whose, base = sys.argv[1:]
        work = {
            "alone": lambda: instructions(base, whose, lambda number: [f"paced/{number}/50"]),
            "turn": lambda: instructions(base, whose, lambda number: ["burst/1/0"] * number),
            "memory": lambda: memory(base, whose),
            "server": lambda: server_instructions(whose),
        }[what]
        print(json.dumps(asyncio.run(work())))
        return
    os.environ["PYTHONHASHSEED"] = "0"
    with responder() as base:
        lines = [*explained(base)]
    print("\n".join(lines))
    put_into(PAGE, "explained", lines)


if __name__ == "__main__":
    main()
