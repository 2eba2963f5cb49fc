"""The Redis store against a real server: the contract, and what is its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import attrs
import pytest

from aheadless import ChatClient, ConfigurationError, Delivery, StoreError
from aheadless._session import SessionStore
from aheadless.stores import RedisStore
from aheadless.testing import Script, ScriptedServer
from tests.conftest import MakeClient
from tests.stores.conftest import RedisServer
from tests.stores.contract import ANSWER, QUESTION, Open, StoreContract, change, lease_of
from tests.test_keeper import WHOLE, told
from tests.test_stream import FIRST


class TestRedisStore(StoreContract):
    @pytest.fixture
    async def open_store(self, redis_server: RedisServer) -> AsyncIterator[Open]:
        async with AsyncExitStack() as stack:

            async def open_store(**options: Any) -> SessionStore:
                store = RedisStore(redis_server.url, **options)
                stack.push_async_callback(store.aclose)
                return store

            yield open_store

    async def waits(self, store: SessionStore, count: int) -> None:
        assert isinstance(store, RedisStore)
        while await store._link.command("ZCARD", store._key("s", "queue")) < count:
            await asyncio.sleep(0)


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    async with RedisStore(redis_server.url) as store:
        yield store
