"""Make web-light.png, web-dark.png and web-phone.png: the page of docs/examples/web in a real Chromium.

Run it with `python docs/pictures/make_web.py` in an environment that has the tests' packages.
"""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from playwright.async_api import Browser, Page, expect

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bridges.page.support import Held, answer, ask, chromium, environment, note, open_page, ready, serve

from aheadless.protocol.events import Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, stream_answer

HERE: Final = Path(__file__).parent
RICH: Final = HERE.parents[1].joinpath("tests", "bridges", "page", "rich.md").read_text("utf-8")
FAILS: Final = Script(stream_answer([Start(CONVERSATION_ID), Token("It keeps what had come, and"), Failure("away")]))

TALL: Final = {"viewport": {"width": 880, "height": 960}}
DESK: Final = {"viewport": {"width": 880, "height": 640}}
PHONE: Final = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


@asynccontextmanager
async def visit(browser: Browser, url: str, **options: Any) -> AsyncIterator[Page]:  # noqa: ANN401 - Playwright's
    context = await browser.new_context(**options)
    yield await open_page(context, url)
    await context.close()


async def light(browser: Browser, url: str, api: ScriptedServer) -> None:
    """A whole answer."""
    api.add(Script(stream_answer(events(RICH))))
    async with visit(browser, url, color_scheme="light", **TALL) as page:
        await ask(page, "What happens when a stream breaks?")
        await ready(page)
        await page.screenshot(path=HERE / "web-light.png")


async def dark(browser: Browser, url: str, api: ScriptedServer) -> None:
    """An answer that is being written."""
    held = Held(RICH[: RICH.index("except")], "…")
    api.add(held.script)
    async with visit(browser, url, color_scheme="dark", **DESK) as page:
        await ask(page, "What happens when a stream breaks?")
        held.let_go()
        await expect(answer(page).locator(".code")).to_be_visible()
        await page.screenshot(path=HERE / "web-dark.png")


async def phone(browser: Browser, url: str, api: ScriptedServer) -> None:
    """An answer that failed."""
    api.add(FAILS)
    async with visit(browser, url, color_scheme="light", device_scale_factor=1.5, **PHONE) as page:
        await ask(page, "And what if the model fails?")
        await expect(note(page)).to_contain_text("Ask again")
        await page.screenshot(path=HERE / "web-phone.png")


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with ScriptedServer() as api, serve(environment(api.url, Path(folder))) as url, chromium() as browser:
            for picture in (light, dark, phone):
                await picture(browser, url, api)


asyncio.run(main())
