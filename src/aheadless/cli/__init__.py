"""The command `aheadless`; needs the extra `cli`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command with the process's arguments and return its exit code."""
    try:
        import cyclopts  # noqa: F401, PLC0415 - only to see whether the extra is there
        import rich  # noqa: F401, PLC0415
    except ModuleNotFoundError as exc:
        print(f'aheadless: {exc.name} is missing; run: pip install "aheadless[cli]"', file=sys.stderr)
        return 2
    from aheadless.cli.app import run_app  # noqa: PLC0415

    return run_app(sys.argv[1:])
