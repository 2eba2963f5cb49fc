"""The command `aheadless`; needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["loading", "main"]


def main() -> int:
    """Run the command with the process's arguments and return its exit code."""
    with loading():
        # Not at the top, as it would be loaded before a Ctrl-C can be answered.
        from aheadless.cli.process import guard, prepare_streams  # noqa: PLC0415

    prepare_streams()
    return guard(lambda: _run(sys.argv[1:]))


@contextmanager
def loading() -> Generator[None]:
    """Let a Ctrl-C end the process on the spot while modules are loaded, which can take a second.

    Nothing is begun by then. A KeyboardInterrupt would not do: where it meets C code that is being loaded, it comes out
    as another error.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _end(number: int, _frame: object) -> None:
    try:
        os.write(2, b"aheadless: ended by SIGINT\n")
    finally:
        os._exit(128 + number)


def _run(arguments: list[str]) -> int:
    with loading():
        from aheadless._version import __version__  # noqa: PLC0415
        from aheadless.cli.output import OVERVIEW, ExitCode  # noqa: PLC0415
        from aheadless.cli.process import complain, write  # noqa: PLC0415

    if missing := [name for name in ("cyclopts", "rich") if not _is_installed(name)]:
        complain(f'aheadless: {" and ".join(missing)} not installed; run: pip install "aheadless[cli]"')
        return ExitCode.USAGE
    # These need no argument parser, whose import alone takes longer than all the rest.
    match arguments:
        case [] | ["--help"] | ["-h"]:
            write(OVERVIEW)
        case ["--version"]:
            write(f"{__version__}\n")
        case _:
            with loading():
                from aheadless.cli.app import run_app  # noqa: PLC0415 - see above

            return run_app(arguments)
    return ExitCode.OK


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
