"""Clients that may send three times, so that a test sees whether they do."""

from __future__ import annotations

import pytest

from aheadless import ChatClient, Retrying
from aheadless.testing import ScriptedServer
from tests.conftest import MakeClient
from tests.faults.support import FAST


@pytest.fixture
def retries() -> list[Retrying]:
    """What the clients of this test sent again."""
    return []


@pytest.fixture
def make(make_client: MakeClient, retries: list[Retrying]) -> MakeClient:
    def make(url: str, **options: object) -> ChatClient:
        return make_client(url, **{"retry": FAST, "on_retry": retries.append, **options})

    return make


@pytest.fixture
def client(scripted: ScriptedServer, make: MakeClient) -> ChatClient:
    """A client of the scripted server."""
    return make(scripted.url)
