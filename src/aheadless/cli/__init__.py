"""The command `aheadless`; needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> int:
    """Run the command with the process's arguments and return its exit code."""
    # Loading the command's parts takes a moment: a Ctrl-C in it is an end like any other.
    try:
        from aheadless.cli.process import guard, prepare_streams  # noqa: PLC0415

        prepare_streams()
        return guard(lambda: _run(sys.argv[1:]))
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("aheadless: ended by SIGINT\n")
        return 130


def _run(arguments: list[str]) -> int:
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
            from aheadless.cli.app import run_app  # noqa: PLC0415 - see above

            return run_app(arguments)
    return ExitCode.OK


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False
