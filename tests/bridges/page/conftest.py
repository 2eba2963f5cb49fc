"""One Chromium for all tests of the page; cookies, a back end and an API of its own for each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from aheadless.testing import ScriptedServer
from tests.bridges.page.support import chromium, environment, open_page, serve, watch

# Chromium belongs to one event loop, so all of these share one.


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    expect.set_options(timeout=20_000)
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="package")
async def api() -> AsyncIterator[ScriptedServer]:
    """The API behind the back end."""
    async with ScriptedServer() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="package")
async def url(api: ScriptedServer, tmp_path: Path) -> AsyncIterator[str]:
    """The back end."""
    async with serve(environment(api.url, tmp_path)) as url:
        yield url


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared(browser: Browser) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context() as context:
        await context.new_page()
        yield context


@pytest_asyncio.fixture(loop_scope="package")
async def context(shared: BrowserContext) -> AsyncIterator[BrowserContext]:
    """A browser with one empty tab, whose visitor has never been here; whatever goes wrong in its pages is a failure.

    It is the same one each time: a test that changes more than its network and its permissions takes a `visitor()`.
    """
    problems = watch(shared)
    yield shared
    first, *others = shared.pages
    for page in others:
        await page.close()
    await first.unroute_all()
    await first.goto("about:blank")
    await shared.set_offline(False)
    await shared.clear_permissions()
    await shared.clear_cookies()
    assert problems == []


@pytest_asyncio.fixture(loop_scope="package")
async def page(context: BrowserContext, url: str) -> Page:
    """The page, which is ready."""
    return await open_page(context, url)
