"""Rows 83 and 85 of docs/explanation/guarantees.md in programs that use the library. Those of the command line are in
tests/cli."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from aheadless.testing import Script, ScriptedServer
from tests.support import KEY
from tests.test_stream import FIRST, STALLED

PATIENCE = 20
"""Seconds after which what did not happen will not happen."""


@asynccontextmanager
async def program(code: str, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program as long as the block lasts, at most; it begins with its imports and a `client`."""
    begin = (
        "import asyncio, os, signal, sys\n"
        "from aheadless import *\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell ignores it for what runs behind
        f"client = ChatClient({url!r}, api_key={KEY!r})\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", begin + code), stdout=-1, stderr=-1, stdin=-3
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


SIGINT = """
chat = client.chat("s")

async def main():
    async with client:
        {drive}

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print([(m.text, m.status) for m in chat.messages], chat.busy, client.closed)
    raise
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(
    "drive",
    [
        "async for _ in chat.stream('Hi', on_token=lambda _: print('seen', flush=True)): pass",
        "await chat.stream('Hi', on_token=lambda _: print('seen', flush=True))",
    ],
)
async def test_sigint_in_a_program(scripted: ScriptedServer, drive: str) -> None:
    """asyncio.run() cancels its main task: the stream is closed, what had come is in the messages."""
    scripted.add(STALLED)

    async with program(SIGINT.format(drive=drive), scripted.url) as process:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"seen\n"
            process.send_signal(signal.SIGINT)
            await scripted.requests[0].left.wait()
            out, errors = await process.communicate()

    assert out.decode() == "[('Hi', 'cancelled'), ('Hel', 'cancelled')] False True\n"
    assert errors.decode().endswith("KeyboardInterrupt\n")
    assert "never retrieved" not in errors.decode()
    assert process.returncode == -signal.SIGINT
    assert len(scripted.requests) == 1


FORK = """
async def use():
    await client.chat("s").stream("Hi")

async def child():
    for work in (use, lambda: client.chat("s").send("Hi"), client.health, client.aclose):
        try:
            await work()
        except AheadlessError as exc:
            print(type(exc).__name__, exc, isinstance(exc, RuntimeError))

def fork():
    if os.fork():
        return os.wait()
    code = 1
    try:
        asyncio.run(child())
        sys.stdout.flush()
        code = 0
    finally:
        os._exit(code)  # as multiprocessing leaves a child

async def while_streaming():
    async for event in client.chat("live").stream("Hi"):
        if isinstance(event, Token):
            print(fork()[1], flush=True)
            break
    await use()
    await client.aclose()

async def with_a_kept_connection():
    await use()
    print(fork()[1], flush=True)
    await use()
    await client.aclose()

"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
@pytest.mark.parametrize("main", ["while_streaming", "with_a_kept_connection"])
async def test_fork(scripted: ScriptedServer, main: str) -> None:
    """A child can do nothing with its parent's client, not even close it, and takes nothing away from the parent."""
    if main == "while_streaming":
        scripted.add(Script(FIRST, end="stall"))

    async with program(f"{FORK}asyncio.run({main}())", scripted.url) as process:
        async with asyncio.timeout(PATIENCE):
            out, errors = await process.communicate()

    line = "UsageError this client was used before the process forked; make a new one in each process True"
    assert errors.decode() == ""
    assert out.decode().splitlines() == [*[line] * 4, "0"]
    assert process.returncode == 0
    assert len(scripted.requests) == 2  # the parent's
    assert scripted.connections == (2 if main == "while_streaming" else 1)
