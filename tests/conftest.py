"""Fixtures for all tests: a scripted server, a real one, clients that are closed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

from aheadless import ChatClient, Retry
from aheadless.testing import ScriptedServer
from tests.support import KEY

# No deadline: a shared machine stalls now and then, and what takes long is measured elsewhere.
settings.register_profile("all", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
# For `nox -s fuzz`: other examples each time, and many; a failure prints how to get it again.
settings.register_profile(
    "fuzz",
    parent=settings.get_profile("all"),
    derandomize=False,
    max_examples=1000,
    stateful_step_count=60,
    print_blob=True,
)
# For further Pythons: the examples would be those that another one has been through.
settings.register_profile("few", parent=settings.get_profile("all"), max_examples=20)
settings.load_profile("all")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks over sockets, so that it can be left out where many runs have to be quick."""
    for item in items:
        if not {"make_client", "scripted", "serve"}.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("sockets")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests gets in."""
    for name in [name for name in os.environ if name.startswith(("AHEADLESS_", "OPENAI_", "WIDGET_", "ADMIN_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _heed_sigint() -> Iterator[None]:
    """What is started here heeds SIGINT, even if the tests run in the background, where a shell ignores it."""
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
async def _no_leaks() -> AsyncIterator[None]:
    """No test leaves a task behind."""
    yield
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == [], "tasks were left"


class MakeClient(Protocol):
    """Makes a client that is closed after the test."""

    def __call__(self, url: str, **options: Any) -> ChatClient: ...


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    async with AsyncExitStack() as stack:

        def make(url: str, **options: Any) -> ChatClient:
            # One attempt, no waiting: what a test is about it asks for.
            client = ChatClient(url, **{"api_key": KEY, "retry": Retry(attempts=1), "max_wait": 0, **options})
            stack.push_async_callback(client.aclose)
            return client

        yield make


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


@pytest.fixture
def client(scripted: ScriptedServer, make_client: MakeClient) -> ChatClient:
    """A client of the scripted server."""
    return make_client(scripted.url)
