"""The example that kills workers at random, for some seconds and without much of a limit."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "docs" / "examples" / "workers_on_redis.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor unix sockets")

TABLE = re.compile(
    r"\nsession +asked stored  each once, in order, with its own answer\n"
    r"(?P<rows>(?:user-\d +\d+ +\d+  yes\n){8})"
    r"(?P<killed>\d+) workers killed, in whose hands were (?P<cut>\d+) questions: of these\n"
    r"  (?P<found>\d+) were on the server, and their answers were read back,\n"
    r"  (?P<again>\d+) had not got there, and were asked again\n"
    r"answers by status: 200: \d+, 429: 0\n$"
)


@pytest.mark.slow
async def test_workers_on_redis() -> None:
    """Every question is on the server once, in order, with its own answer, and the program says so and ends with 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, DEMO, "--seconds", "3", "--limit", "1000", "--workers", "2"),
        *("--kill-every", "1", "--seed", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(55):  # it has to start up to six processes, and waits for leases to run out
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)  # so that it ends what it has started
            await process.wait()

    assert (process.returncode, err.decode()) == (0, ""), out.decode()
    found = TABLE.search(out.decode())
    assert found, out.decode()
    assert int(found["cut"]) == int(found["found"]) + int(found["again"])
    assert int(found["killed"]) >= 1
    for row in found["rows"].splitlines():
        _, asked, stored, _ = row.split()
        assert asked == stored
