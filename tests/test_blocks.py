"""The docs' blocks that are no Python: each is run, or read by the tool that it is for. tests/test_docs.py has the rest."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from aheadless.protocol.codec import decode_event, parse_request
from aheadless.protocol.events import Unknown
from aheadless.server import ServerSettings, run_server
from aheadless.stores import SQLiteStore
from tests.ai_sdk import node
from tests.stand_ins import SERVER, make_folder
from tests.support import ADMIN_KEY
from tests.test_docs import PAGES, ROOT, code_blocks, name_of

BLOCKS: Final = [
    pytest.param(page, code.lstrip("\n"), id=f"{name_of(page)}:{len(code) - len(code.lstrip(chr(10))) + 1}-{language}")
    for page in PAGES
    for language, code in code_blocks(page)
]


def blocks(*languages: str) -> list[Any]:
    """Return the blocks in a language, with the line at which each stands."""
    return [block for block in BLOCKS if str(block.id).rpartition("-")[2] in languages]


def test_every_language_is_known():
    """A block of another kind is decided about before it is in the docs."""
    known = {
        "",  # drawings and what programs print: see below
        "bash",
        "ini",
        "js",
        "json",
        "nginx",  # runs in tests/test_nginx.py
        "python",  # runs in tests/test_docs.py
        "text",  # what a program has printed
        "yaml",
    }
    kinds = {language for page in PAGES for language, _ in code_blocks(page)}

    assert {kind for kind in kinds if not kind.startswith("{")} <= known
    assert {kind for kind in kinds if kind.startswith("{")} <= {"{eval-rst}", "{include}", "{toctree}"} | {
        kind for kind in kinds if kind.startswith("{include} ")
    }


@pytest.mark.parametrize(("page", "code"), blocks(""))
def test_what_has_no_language_is_no_program(page: Path, code: str):
    """Nobody is to copy what no test runs."""
    assert not re.search(r"^ *(?:\$ |import |from \w+ import |(?:pip|aheadless|curl|sudo|export) )", code, re.MULTILINE)


# --- bash -------------------------------------------------------------------------------------------------------------

# The tutorial's own, which is then the one of the server that the blocks talk to.
DOCS_KEY: Final = "please-make-a-better-key-0123"


def commands(code: str) -> set[str]:
    """Return the commands of a block, without comments, the folder that they are in, and `-q`."""
    lines = re.sub(r"(?:^|(?<=\s))#.*$|\.venv/bin/| -q\b", "", code.replace("\\\n", " "), flags=re.MULTILINE)
    return {" ".join(command.split()) for command in re.split(r"\n|&&", lines)} - {""}


def bash_blocks() -> list[Any]:
    """Return the blocks that have a command which none before them has."""
    seen: set[str] = set()
    fresh = []
    for block in blocks("bash"):
        found = commands(str(block.values[1]))
        # curl is for a host that is not there; tests/test_nginx.py puts it there, and runs the block.
        if not found <= seen and not any(command.startswith("curl ") for command in found):
            fresh.append(block)
        seen |= found
    return fresh


@pytest.mark.slow
@pytest.mark.sockets
@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize(("page", "code"), bash_blocks())
async def test_bash(page: Path, code: str, tmp_path: Path):
    """It runs to its end, line by line, in a folder that has what the page speaks of."""
    await furnish(tmp_path, page)
    async with run_server(ServerSettings(port=0, api_key=DOCS_KEY, admin_key=ADMIN_KEY, rate_limit=None)) as server:
        bash = await asyncio.create_subprocess_exec(
            *("/bin/bash", "-euo", "pipefail", "-c", code),
            cwd=tmp_path,
            env={
                "PATH": str(tmp_path / ".venv" / "bin"),
                "HOME": str(tmp_path),
                "TERM": "dumb",
                "AHEADLESS_BASE_URL": SERVER,
                "AHEADLESS_API_KEY": DOCS_KEY,
                "AHEADLESS_ADMIN_KEY": ADMIN_KEY,
                "TEST_SERVER": server.url,
                **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
            },
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(50):  # pytest gives up after 60
                said, _ = await bash.communicate()
        finally:
            with suppress(ProcessLookupError):  # what it started may live on, if it was not waited for
                os.killpg(bash.pid, signal.SIGKILL)

    assert bash.returncode == 0, said.decode()


async def furnish(folder: Path, page: Path) -> None:
    """Put into a folder what readers have by the time that they come to a block of a page."""
    for file, program in re.findall(
        r"`(\w+\.py)`:\n\n```python\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        (folder / file).write_text(program, "utf-8")
    make_folder(folder / ".venv" / "bin")
    (folder / "docs").symlink_to(ROOT / "docs")
    for file in ("chat.db", "bot.db", "bot/sessions.db"):
        async with SQLiteStore(folder / file) as store:
            await store.list()
    (folder / "handbook").mkdir()
    (folder / "handbook" / "page.md").write_text("# When do you open?\n\nAt nine.\n", "utf-8")


# --- what is read by its own tool -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "code"), blocks("json"))
def test_json(page: Path, code: str):
    """Each line is a request or an event of the protocol."""
    for line in code.splitlines():
        if "sessionId" in line:
            parse_request(json.loads(line))
        else:
            assert not isinstance(decode_event(line.encode()), Unknown)


@pytest.mark.parametrize(("page", "code"), blocks("yaml"))
def test_yaml(page: Path, code: str):
    """It can be read, and repeats no key."""
    assert isinstance(yaml.safe_load(code), dict)


@pytest.mark.parametrize(("page", "code"), blocks("js"))
def test_js(page: Path, code: str, tmp_path: Path):
    """It is a module."""
    module = tmp_path / "block.mjs"
    module.write_text(code, "utf-8")

    subprocess.run([node(), "--check", module], check=True)


@pytest.mark.parametrize(("page", "code"), blocks("ini"))
def test_ini(page: Path, code: str, tmp_path: Path):
    """It is a unit that systemd takes, or, on a machine without systemd, that has the form of one."""
    parser = ConfigParser(interpolation=None)
    parser.read_string(code)
    assert {"Unit", "Service", "Install"} == {*parser.sections()}

    if (verify := shutil.which("systemd-analyze")) is not None:
        unit = tmp_path / "block.service"
        unit.write_text(re.sub(r"(?<=ExecStart=)\S+", sys.executable, code), "utf-8")
        ran = subprocess.run([verify, "verify", unit], check=False, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "")
