"""A real server for each test, with an engine that plays scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import aiohttp
import pytest

from aheadless.server import RunningServer, ScriptedEngine, ServerSettings, run_server
from tests.support import ADMIN_KEY, KEY


class Serve(Protocol):
    """Runs a server until the test ends."""

    async def __call__(self, **settings: Any) -> RunningServer: ...


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def run(**settings: Any) -> RunningServer:
            defaults: dict[str, Any] = {
                "port": 0,
                "api_key": KEY,
                "admin_key": ADMIN_KEY,
                "engine": ScriptedEngine(["hello", " big", " world"]),
                "rate_limit": None,
            }
            return await stack.enter_async_context(run_server(ServerSettings(**{**defaults, **settings})))

        yield run


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session
