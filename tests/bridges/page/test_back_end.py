"""The page's back end, asked by what is no page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from aheadless.testing import ScriptedServer
from tests.bridges.page.support import environment, serve

pytestmark = pytest.mark.sockets


@pytest.fixture
async def url(scripted: ScriptedServer, tmp_path: Path) -> AsyncIterator[str]:
    async with serve(environment(scripted.url, tmp_path)) as url:
        yield url


JSON = {"Content-Type": "application/json"}
BODIES = {
    "cut": b"{",
    "not UTF-8": b'{"message":"\xff"}',
    "half a character": rb'{"message":"\ud83d"}',
    "half a character in a list": rb'["\ud83d"]',
    "no number": b"[NaN]",
    "too large a number": b'{"message":' + b"9" * 5000 + b"}",
    "deep": b"[" * 100_000,
    "nothing": b"null",
    "a number": b"5",
    "no message": b"{}",
    "a message that is an object": b'{"message":{"parts":[]}}',
    "a history that is none": b'{"messages":{"0":1}}',
    "too long": b'{"message":"' + b"x" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("name", BODIES)
async def test_body_that_is_no_question(url: str, scripted: ScriptedServer, name: str):
    """It is refused as the browser's mistake, and nothing of it goes upstream or comes back."""
    async with (
        aiohttp.ClientSession(headers=JSON) as session,
        session.post(f"{url}/chat", data=BODIES[name]) as answer,
    ):
        assert answer.status in {400, 422}
        assert len(await answer.read()) < 300
    assert scripted.requests == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [({**JSON, "Sec-Fetch-Site": "cross-site"}, 403), ({"Content-Type": "text/plain"}, 415)],
    ids=["script", "form"],
)
async def test_other_site(url: str, scripted: ScriptedServer, headers: dict[str, str], status: int):
    """It can make a browser ask nothing."""
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/chat", data=b'{"message":"Hi"}') as answer,
    ):
        assert answer.status == status
    assert scripted.requests == []
