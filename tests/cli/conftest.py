"""Fixtures for the command."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from aheadless.server import RunningServer, ScriptedEngine, ServerSettings, run_server
from tests.cli.support import KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aheadless.server.engines.simple import Step


class Serve(Protocol):
    """Runs a server that says these tokens."""

    async def __call__(self, *script: Step) -> RunningServer: ...


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(*script: Step) -> RunningServer:
            settings = ServerSettings(
                port=0, api_key=KEY, engine=ScriptedEngine(script), rate_limit=None, shutdown_timeout=0.5
            )
            return await stack.enter_async_context(run_server(settings))

        yield start
