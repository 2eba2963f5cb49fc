"""The command `aheadless`; needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys

from aheadless._version import __version__
from aheadless.cli.output import OVERVIEW, ExitCode
from aheadless.cli.process import complain, guard, prepare_streams, write

__all__ = ["main"]


def main() -> int:
    """Run the command with the process's arguments and return its exit code."""
    prepare_streams()
    return guard(lambda: _run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
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
            from aheadless.cli.app import run_app  # noqa: PLC0415 - see above

            return run_app(arguments)
    return ExitCode.OK


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
