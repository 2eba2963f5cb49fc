"""Measure what an idle session costs: `python benchmarks/session_memory.py [--sessions 100000]`.

Each row is measured in a process of its own, once by tracemalloc, which counts what Python allocates, and once by the
memory that the process has from the system (RSS), without tracemalloc, which needs memory itself.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tracemalloc
from datetime import datetime, timezone
from pathlib import Path

from aheadless import ChatClient, Delivery

TEXT = "What is it like to be {}?"  # short, and not the same for two sessions
MIB = 1024 * 1024


def resident() -> int:
    """Return how much memory this process has from the system, in bytes."""
    if Path("/proc/self/statm").exists():
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], check=True, capture_output=True)
    return int(said.stdout) * 1024


async def fill(sessions: int, messages: int) -> tuple[int, float]:
    """Return the bytes that so many idle sessions with so many messages cost, and those of the texts among them."""
    texts = 0
    async with ChatClient("http://localhost", api_key="none", max_sessions=sessions) as client:
        client.chat("the-first").session_id  # noqa: B018 - loads what is loaded once
        gc.collect()
        before = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else resident()
        for number in range(sessions):
            session = client.chat(f"user-{number}")._session  # noqa: SLF001 - as a turn does, without a server
            for turn in range(messages // 2):
                question, reply = TEXT.format(number + turn), TEXT.format(-number - turn)
                at = datetime.now(timezone.utc)
                session.begin(question, at=at)
                session.settle(
                    reply, status="complete", delivery=Delivery.ACCEPTED, conversation_id=f"j{number:031}", at=at
                )
                texts += sys.getsizeof(question) + sys.getsizeof(reply)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else resident()
        assert len(client.sessions) == sessions
    return after - before, texts


def measured(sessions: int, messages: int, *, traced: bool) -> tuple[int, int]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--row", str(messages), "--sessions", str(sessions)]
    said = subprocess.run([*command, *(["--traced"] if traced else [])], check=True, capture_output=True)
    cost, texts = json.loads(said.stdout)
    return cost, texts


def report(sessions: int) -> list[dict[str, object]]:
    """Measure all rows, for programs."""
    return [
        {
            "messages": messages,
            "by": "tracemalloc" if traced else "RSS",
            "bytes": (found := measured(sessions, messages, traced=traced))[0] / sessions,
            "without_texts": (found[0] - found[1]) / sessions,
        }
        for messages in (0, 2)
        for traced in (True, False)
    ]


def main(sessions: int) -> None:
    print(f"{sessions:,} idle sessions in one client; CPython {platform.python_version()}, {platform.platform()}")
    print(f"{'messages':>8}  {'measured by':<11}  {'all':>8}  {'a session':>9}  {'without its texts':>17}")
    for messages in (0, 2):
        for traced in (True, False):
            print(f"measuring {messages} messages …", end="\r", file=sys.stderr, flush=True)
            cost, texts = measured(sessions, messages, traced=traced)
            print(
                f"{messages:8}  {'tracemalloc' if traced else 'RSS':<11}  {cost / MIB:4.0f} MiB"
                f"  {cost / sessions:7.0f} B  {(cost - texts) / sessions:15.0f} B",
                flush=True,
            )


parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
parser.add_argument("--sessions", type=int, default=100_000)
parser.add_argument("--json", action="store_true", help="print the figures as JSON")
parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
parser.add_argument("--traced", action="store_true", help=argparse.SUPPRESS)
arguments = parser.parse_args()
if arguments.json:
    print(json.dumps(report(arguments.sessions)))
elif arguments.row is None:
    main(arguments.sessions)
else:
    if arguments.traced:
        tracemalloc.start()
    print(json.dumps(asyncio.run(fill(arguments.sessions, arguments.row))))
