"""The command as people run it: a process with pipes, or one on a terminal of its own."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pyte
import pytest

if sys.platform != "win32":
    import fcntl
    import pty
    import termios

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

SOURCE = Path(__file__).parents[2] / "src"
KEY = "chat-key-for-tests-0123456789"
PATIENCE = 20.0
"""Seconds after which what did not happen will not happen."""

AHEADLESS = (sys.executable, "-W", "error", "-m", "aheadless")

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and terminals")


@attrs.frozen
class Ended:
    """A process that is over."""

    code: int
    out: str
    err: str


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for a command, with a key and without what could change its looks."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS"}
    }
    paths = [str(SOURCE), *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        "TERM": "xterm-256color",
        "AHEADLESS_API_KEY": KEY,
        **variables,
    }


class Running:
    """A command with pipes, while it runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._out = b""

    @property
    def out(self) -> str:
        """What was read of its stdout."""
        return self._out.decode()

    async def until(self, text: str) -> None:
        """Read stdout until `text` was in it."""
        while text not in self.out:
            assert await self.read(), f"stdout ended without {text!r}: {self.out!r}"

    async def read(self) -> bytes:
        """Read what comes next from stdout."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            chunk = await self.process.stdout.read(1000)
        self._out += chunk
        return chunk

    def close_stdout(self) -> None:
        """Stop reading, as `head` does."""
        self.process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]

    async def ended(self, stdin: bytes | None = None) -> Ended:
        """Return how it ended."""
        async with asyncio.timeout(PATIENCE):
            rest, errors = await self.process.communicate(stdin)
        out = (self._out + (rest or b"")).decode()
        assert self.process.returncode is not None
        assert KEY not in out + errors.decode()
        assert "Traceback" not in errors.decode()
        return Ended(self.process.returncode, out, errors.decode())


@asynccontextmanager
async def running(*arguments: str, command: Sequence[str] = AHEADLESS, **variables: str) -> AsyncIterator[Running]:
    """Run the command as long as the block lasts, at most."""
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdin=-1, stdout=-1, stderr=-1, env=environment(**variables)
    )
    try:
        yield Running(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


async def aheadless(*arguments: str, stdin: bytes = b"", command: Sequence[str] = AHEADLESS, **variables: str) -> Ended:
    """Run the command to its end."""
    async with running(*arguments, command=command, **variables) as process:
        return await process.ended(stdin)


# --- terminals --------------------------------------------------------------------------------------------------------

# The terminal is to be the process's own, so that Ctrl-C sends it a SIGINT.
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)

CTRL_C, CTRL_D, ARROW_UP = b"\x03", b"\x04", b"\x1b[A"


class Terminal:
    """A screen of 100 columns and 40 lines, and its keyboard."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self.screen = pyte.Screen(100, 40)
        self.received = b""
        """Every byte that came, escape sequences among them."""
        self._feed = pyte.ByteStream(self.screen).feed
        self._master = master
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the process is gone
            data = b""
        if data:
            self.received += data
            self._feed(data)
        else:
            asyncio.get_running_loop().remove_reader(self._master)
        self._changed.set()

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def lines(self) -> list[str]:
        """Its lines that are not empty."""
        return [line for line in self.text.split("\n") if line]

    @property
    def prompting(self) -> bool:
        """Whether the last line is an empty prompt."""
        return self.lines[-1:] == ["you:"]

    def type(self, keys: str | bytes) -> None:
        """Press keys."""
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    async def until(self, happened: str | Callable[[], bool]) -> None:
        """Wait until a text is on the screen, or something else is true."""
        true = (lambda: happened in self.text) if isinstance(happened, str) else happened
        try:
            async with asyncio.timeout(PATIENCE):
                while not true():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"it did not happen; on the screen:\n{self.text}") from None

    async def prompt(self) -> None:
        """Wait for an empty prompt."""
        await self.until(lambda: self.prompting)

    async def ask(self, line: str) -> None:
        """Enter a line at the prompt and wait for the next one."""
        await self.prompt()
        begun = len(self.received)
        self.type(f"{line}\r")
        await self.until(lambda: b"you:" in self.received[begun:].partition(b"\n")[2] and self.prompting)

    async def ended(self) -> int:
        """Return the exit code."""
        async with asyncio.timeout(PATIENCE):
            code = await self.process.wait()
        assert KEY not in self.received.decode(errors="replace")
        assert b"Traceback" not in self.received
        return code

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def terminal(*arguments: str, command: Sequence[str] = AHEADLESS, **variables: str) -> AsyncIterator[Terminal]:
    """Run the command on a terminal as long as the block lasts, at most."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _OWN_TERMINAL),
        *(*command, *arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(**variables),
        start_new_session=True,
    )
    os.close(slave)
    screen = Terminal(process, master)
    try:
        yield screen
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        screen.close()
