"""The README's programs do what it says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from aheadless.server import RunningServer, ServerSettings, run_server
from tests.support import ADMIN_KEY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# It wants a platform, which the tests of the examples have.
BOT = (ROOT / "docs" / "examples" / "discord_bot.py").read_text("utf-8")
PROGRAMS = [block for block in BLOCKS if block != BOT]
# A word of what each prints, in their order.
PRINTED = [
    "aheadless",
    "messages so far",
    "saved ",
    "10 replies; ['user-0'",
    "kept: 2 messages",
    "it can be sent again",
]


async def run(program: str, server: RunningServer) -> tuple[int | None, str]:
    keys = {"AHEADLESS_API_KEY": server.api_key.reveal()}
    if server.admin_key is not None:
        keys["AHEADLESS_ADMIN_KEY"] = server.admin_key.reveal()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-W",
        "error",
        "-c",
        program,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **keys, "AHEADLESS_BASE_URL": server.url},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode()


@pytest.mark.parametrize(("program", "printed"), [*zip(PROGRAMS, PRINTED, strict=True)])
async def test_program(program: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runs as it stands, against a server as `aheadless serve` runs it."""
    monkeypatch.chdir(tmp_path)
    async with run_server(ServerSettings(port=0, admin_key=ADMIN_KEY)) as server:
        code, out = await run(program, server)

    assert code == 0, out
    assert printed in out


def test_bot_is_the_one_to_copy() -> None:
    """The README shows the example as it is, which has a test that runs it."""
    assert BOT in BLOCKS


def test_links_lead_somewhere() -> None:
    """Each file that the README names is there."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
