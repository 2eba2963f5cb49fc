"""The libraries that not everybody has: who lacks one is told what to install, and nobody loads one for nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from aheadless._extras import needs

OPTIONAL = {
    "aheadless.bridges.discord": ("discord", "aheadless[discord]"),
    "aheadless.bridges.django": ("asgiref", "django"),
    "aheadless.bridges.litestar": ("litestar", "litestar"),
    "aheadless.bridges.quart": ("quart", "quart"),
    "aheadless.bridges.slack": ("slack_bolt", "aheadless[slack]"),
    "aheadless.bridges.starlette": ("starlette", "aheadless[starlette]"),
    "aheadless.bridges.telegram": ("aiogram", "aheadless[telegram]"),
    "aheadless.bridges._visitors": ("itsdangerous", "aheadless[web]"),
    "aheadless.cli.full": ("textual", "aheadless[tui]"),
    "aheadless.stores.redis": ("redis", "aheadless[redis]"),
}
"""What needs a library: its name, and what brings it along."""

BASE = ["aheadless", "aheadless.admin", "aheadless.bridges", "aheadless.bridges.aiohttp", "aheadless.bridges.web"]
BASE += ["aheadless.server", "aheadless.stores", "aheadless.stores.sqlite", "aheadless.testing", "aheadless_pytest"]

WITHOUT = """
import importlib, json, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in LIBRARIES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

LIBRARIES = json.loads(sys.argv[1])
sys.meta_path.insert(0, Missing())
said = {}
for module in json.loads(sys.argv[2]):
    try:
        importlib.import_module(module)
    except ImportError as error:
        said[module] = [error.name, str(error)]
print(json.dumps(said))
"""

LOADED = """
import importlib, json, sys

for module in json.loads(sys.argv[2]):
    importlib.import_module(module)
print(json.dumps(sorted({*json.loads(sys.argv[1])} & {*sys.modules})))
"""


def run(code: str, libraries: list[str], modules: list[str]) -> object:
    """Run a program without what tests load by themselves, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    command = [sys.executable, "-c", code, json.dumps(libraries), json.dumps(modules)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=environment)
    return json.loads(ran.stdout)


def test_library_is_missing() -> None:
    """The import fails as ever, and says what to install; all the rest works."""
    libraries = [library for library, _ in OPTIONAL.values()]

    said = run(WITHOUT, libraries, [*BASE, *OPTIONAL])

    assert said == {
        module: [library, f"No module named '{library}'; run: pip install \"{brings}\""]
        for module, (library, brings) in OPTIONAL.items()
    }


def test_library_is_there_and_not_used() -> None:
    """What does without the optional libraries loads none of them."""
    libraries = [library for library, _ in OPTIONAL.values()]

    assert run(LOADED, [*libraries, "cyclopts", "django", "opentelemetry", "rich", "uvloop"], BASE) == []


def test_the_command_without_the_full_screen() -> None:
    """Its start does not wait for textual."""
    assert run(LOADED, ["textual", "markdown_it"], ["aheadless.cli.app", "aheadless.cli.commands"]) == []


def test_release_is_too_old() -> None:
    """What it lacks is named, and what to install."""
    with pytest.raises(ImportError) as caught, needs("aheadless[discord]"):
        from json import no_such_name  # type: ignore[attr-defined] # noqa: F401

    assert caught.value.name == "json"
    assert caught.value.msg.startswith("cannot import name 'no_such_name' from 'json'")
    assert caught.value.msg.endswith('; run: pip install "aheadless[discord]"')
