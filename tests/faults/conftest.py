"""Clients that may send three times, so that a test sees whether they do."""

from __future__ import annotations

import pytest

from aheadless import ChatClient, Retrying
from tests.conftest import MakeClient
from tests.faults.asking import FAST


@pytest.fixture
def retries() -> list[Retrying]:
    """What the clients of this test sent again."""
    return []


@pytest.fixture
def make(make_client: MakeClient, retries: list[Retrying]) -> MakeClient:
    def make(url: str, **options: object) -> ChatClient:
        return make_client(url, **{"retry": FAST, "on_retry": retries.append, **options})

    return make
