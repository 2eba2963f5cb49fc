"""The example's page under a real uvicorn, in a real Chromium, with a scripted API behind it."""

from __future__ import annotations

import asyncio
import os
import runpy
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import pytest
import uvicorn
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect

from aheadless.testing import Script, chunked, events, lines, stream_answer
from tests.support import KEY

FOLDER: Final = Path(__file__).parents[3] / "docs" / "examples" / "web"
SECRET: Final = "a-secret-of-the-page-0123456789-abcdefgh"

# No sandbox, as the tests may run as root in a container; and nothing that would reach for the network by itself.
ARGUMENTS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Held:
    """An answer whose tokens are let go one after the other, and its end after all of them."""

    def __init__(self, *tokens: str) -> None:
        items = events(*tokens)
        data = stream_answer(items)
        # The tokens and the end; `start` is sent at once.
        starts = [len(data) - len(chunked(lines(items[index:]))) for index in range(1, len(items))]
        self._gates = {start: asyncio.Event() for start in starts}
        self._shut = list(self._gates.values())
        self.script = Script(data, gates=self._gates)

    def let_go(self, count: int = 1) -> None:
        """Send so many more tokens; the end counts as one."""
        for gate in self._shut[:count]:
            gate.set()
        del self._shut[:count]

    def finish(self) -> None:
        """Send the rest."""
        self.let_go(len(self._shut))


def environment(upstream: str, folder: Path) -> dict[str, str]:
    """Return what the example's back end finds in its environment."""
    return {
        "AHEADLESS_BASE_URL": upstream,
        "AHEADLESS_API_KEY": KEY,
        "CHAT_SECRET": SECRET,
        "CHAT_DATABASE": str(folder / "chat.db"),
    }


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class _Uvicorn(uvicorn.Server):
    """Uvicorn that stops when it is told to instead of looking every 100 ms whether it should."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        self.begun.set()
        await self.stopping.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # Ctrl+C is pytest's


@asynccontextmanager
async def serve(variables: dict[str, str], port: int = 0) -> AsyncIterator[str]:
    """Run the example's back end in this process and give its URL. What still streams at the end is cut off."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        app = runpy.run_path(str(FOLDER / "app.py"))["app"]
        sock = socket.create_server(("127.0.0.1", port))
        config = uvicorn.Config(app, lifespan="on", log_level="critical", ws="none", timeout_graceful_shutdown=0)
        server = _Uvicorn(config)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve([sock]))
            await server.begun.wait()
            try:
                yield f"http://127.0.0.1:{sock.getsockname()[1]}"
            finally:
                server.stopping.set()


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run the Chromium of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("there is no Chromium: run scripts/install_services.sh, which installs it or says how")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visitor(browser: Browser, **options: object) -> AsyncIterator[BrowserContext]:
    """A browser that has never been here; whatever goes wrong in its pages is a failure."""
    context = await browser.new_context(**options)  # type: ignore[arg-type]
    problems = watch(context)
    try:
        yield context
    finally:
        await context.close()
    assert problems == []


def watch(context: BrowserContext) -> list[str]:
    """Return the list of all that goes wrong in its pages from now on."""
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    # Chromium itself reports every refused request.
    context.on(
        "console",
        lambda said: (
            problems.append(said.text) if said.type == "error" and "Failed to load resource" not in said.text else None
        ),
    )
    return problems


async def open_page(context: BrowserContext, url: str) -> Page:
    """Open the page in the first tab, and wait until it is ready."""
    # Another tab is another process, whose start takes longer than most of the tests.
    page = context.pages[0] if context.pages else await context.new_page()
    await page.goto(url)
    await ready(page)
    return page


async def ready(page: Page) -> None:
    await expect(page.locator("#state")).to_have_text("Ready")


async def ask(page: Page, question: str) -> None:
    """Type a question and press Enter."""
    await page.get_by_label("Your message").fill(question)
    await page.keyboard.press("Enter")


def answer(page: Page) -> Locator:
    """Return the last answer."""
    return page.locator(".turn").last.locator(".answer")


def note(page: Page) -> Locator:
    """Return what is said below it."""
    return page.locator(".turn").last.locator(".note")


@asynccontextmanager
async def killed(variables: dict[str, str], port: int) -> AsyncIterator[None]:
    """Run the back end as its page in the docs says, in a process of its own, and kill it at the end."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "--app-dir", FOLDER, "app:app", "--port", str(port), "--ws", "none"),
        env={**os.environ, **variables},
        stderr=asyncio.subprocess.PIPE,
    )
    assert running.stderr is not None
    try:
        async with asyncio.timeout(60):
            while b"running on" not in (line := await running.stderr.readline()):
                assert line, "uvicorn ended"
        yield
    finally:
        running.kill()
        await running.communicate()
