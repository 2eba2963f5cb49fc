"""The command's end of the process: writing, signals, and from an error to an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aheadless.cli.output import ExitCode, error_line, exit_code, visible
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from aheadless import ReplyStream

__all__ = ["complain", "guard", "run", "show", "thinking", "write"]


def write(text: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def complain(line: str) -> None:
    """Write a line to stderr."""
    print(line, file=sys.stderr, flush=True)


def run(work: Coroutine[object, object, int]) -> int:
    """Run a command to its exit code; SIGINT and SIGTERM cancel it, so that its stream is closed."""
    return guard(lambda: asyncio.run(_until_terminated(work)))


def guard(work: Callable[[], int]) -> int:
    """Call a command and turn what it raises into one line and an exit code."""
    try:
        return work()
    except AheadlessError as exc:
        complain(error_line(exc))
        return exit_code(exc)
    except BrokenPipeError:
        # Whoever read has enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.SIGPIPE
    except KeyboardInterrupt:
        return ExitCode.SIGINT
    except OSError as exc:
        complain(f"aheadless: {visible(str(exc))}")
        return ExitCode.FAILED


async def _until_terminated(work: Coroutine[object, object, int]) -> int:
    terminated = False
    task = asyncio.ensure_future(work)

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    try:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    except NotImplementedError:
        pass  # Windows ends a process without asking
    try:
        return await task
    except asyncio.CancelledError:
        if not terminated:
            raise
        return ExitCode.SIGTERM


async def show(stream: ReplyStream, *, raw: bool = False) -> None:
    """Write a reply as its tokens come, on a line of its own even if it breaks off.

    On a terminal something moves until the first token is there.
    """
    text = stream.text()
    with thinking():
        token = await anext(text, None)
    try:
        while token is not None:
            write(token if raw else visible(token))
            token = await anext(text, None)
    finally:
        write("\n")


@contextmanager
def thinking() -> Iterator[None]:
    """Show on a terminal that the answer is awaited."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console  # noqa: PLC0415 - not needed on a pipe

    with Console(stderr=True).status("thinking"):
        yield
