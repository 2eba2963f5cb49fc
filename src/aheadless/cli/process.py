"""The command's end of the process: its streams, and from an error to an exit code. Loads nothing that is slow."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING, Final, Literal

from aheadless.cli.output import ExitCode, error_line, exit_code, one_line
from aheadless.exceptions import AheadlessError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

__all__ = ["complain", "guard", "is_terminal", "prepare_streams", "silence", "write"]

# Windows knows no EPIPE: a pipe without a reader is EINVAL there.
_PIPE_CLOSED: Final = frozenset([errno.EPIPE, errno.ESHUTDOWN, *([errno.EINVAL] if sys.platform == "win32" else [])])


def prepare_streams() -> None:
    """Make stdin, stdout and stderr usable whatever the locale is, and even if they are closed."""
    # A name that the locale's encoding does not have must not end a reply in a UnicodeEncodeError.
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    # One descriptor after the other: each takes the lowest free number, which is the one that is missing.
    if sys.stdin is None:
        sys.stdin = _nothing("r")
    if sys.stdout is None:
        sys.stdout = _nothing("w")
    if sys.stderr is None:
        sys.stderr = _nothing("w")


def _nothing(mode: Literal["r", "w"]) -> TextIO:
    number = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
    return open(number, mode, encoding="utf-8", closefd=False)  # for the life of the process


def is_terminal(*streams: TextIO) -> bool:
    """Whether all of these are terminals."""
    return all(stream.isatty() for stream in streams)


def write(text: str) -> None:
    """Write to stdout at once; BrokenPipeError when nobody reads any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        if exc.errno in _PIPE_CLOSED:
            raise BrokenPipeError(exc.errno, "stdout was closed") from None
        raise


def complain(line: str) -> None:
    """Write a line to stderr, if that is possible."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def guard(work: Callable[[], int]) -> int:
    """Call a command and turn what it raises into one line and an exit code."""
    try:
        return work()
    except AheadlessError as exc:
        complain(error_line(exc))
        return exit_code(exc)
    except BrokenPipeError:
        silence(sys.stdout)
        return ExitCode.SIGPIPE
    except KeyboardInterrupt:
        complain("aheadless: ended by SIGINT")
        return ExitCode.SIGINT
    except OSError as exc:
        complain(f"aheadless: {one_line(str(exc))}")
        silence(sys.stdout)
        return ExitCode.FAILED


def silence(*streams: TextIO) -> None:
    """Let the rest go nowhere, and nothing come: Python would write it once more at exit, and complain."""
    for stream in streams:
        try:
            number = stream.fileno()
        except OSError:
            continue  # a stream of a test, not of the process
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, number)
        os.close(null)
