"""The pytest plugin, in runs of pytest of its own, as users have them."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from tests.test_docs import DOCS, code_blocks

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

BOT = """
import asyncio
from aheadless import ChatClient

async def answer(server):
    async with ChatClient(server.url, api_key=server.api_key) as client:
        return (await client.chat("s").stream("Hi")).text
"""


# What pytest-asyncio wants to be told; without it there is no such option.
ASYNCIO = ("-o", "asyncio_mode=strict", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.fixture(autouse=True)
def _warnings_are_errors(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(bot=BOT)


def test_entry_point() -> None:
    """What pyproject.toml declares is installed: without it pytest would not find the fixture."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["pytest11"]
    installed = importlib.metadata.entry_points(group="pytest11", name="aheadless")

    assert {point.value for point in installed} == {declared["aheadless"]}


def test_without_plugins_for_coroutines(pytester: pytest.Pytester) -> None:
    """Plain functions use it, with an event loop of their own; each has its server, which is gone after the test."""
    pytester.makepyfile(
        test_bot="""
        import sys
        LOADED = {name for name in ("aheadless", "aiohttp", "asyncio") if name in sys.modules}
        import asyncio, threading
        from bot import answer

        def test_start_is_light():
            assert not LOADED & {"aheadless", "aiohttp"}

        def test_reply(aheadless_server):
            aheadless_server.reply("Hel", "lo")
            assert asyncio.run(answer(aheadless_server)) == "Hello"
            assert aheadless_server.messages == ["Hi"]

        def test_another(aheadless_server):
            assert aheadless_server.messages == []
            assert asyncio.run(answer(aheadless_server)) == "Hello world"

        def test_thread_is_gone():
            assert not [thread for thread in threading.enumerate() if "aheadless" in thread.name]
        """
    )

    ran = pytester.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio", "-p", "no:randomly")

    ran.assert_outcomes(passed=4)


@pytest.mark.slow
def test_with_plugins_for_coroutines(pytester: pytest.Pytester) -> None:
    """It serves tests on the event loops of pytest-asyncio and of anyio."""
    pytester.makepyfile(
        test_bot="""
        import pytest
        from bot import answer

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.mark.asyncio
        async def test_asyncio(aheadless_server):
            assert await answer(aheadless_server) == "Hello world"

        @pytest.mark.anyio
        async def test_anyio(aheadless_server):
            assert await answer(aheadless_server) == "Hello world"
        """
    )

    ran = pytester.runpytest_subprocess("-n", "1", *ASYNCIO)

    ran.assert_outcomes(passed=2)


@pytest.mark.slow
def test_fixture_of_the_users(pytester: pytest.Pytester) -> None:
    """One of that name in a conftest.py wins, and can build on this one."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def aheadless_server(aheadless_server):
            aheadless_server.reply("as always")
            return aheadless_server
        """
    )
    pytester.makepyfile(
        """
        import asyncio
        from bot import answer

        def test_reply(aheadless_server):
            assert asyncio.run(answer(aheadless_server)) == "as always"
        """
    )

    pytester.runpytest_subprocess(*ASYNCIO).assert_outcomes(passed=1)


@pytest.mark.slow
def test_example_of_the_docs(pytester: pytest.Pytester) -> None:
    """The page begins with a test of a bot, which passes as it stands."""
    _, code = next(code_blocks(DOCS / "howto" / "testing.md"))
    pytester.makepyfile(test_bot=code.lstrip())

    ran = pytester.runpytest_subprocess(*ASYNCIO)

    ran.assert_outcomes(passed=2)
