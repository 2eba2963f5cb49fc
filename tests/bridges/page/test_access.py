"""Who reads the page, and how: by keyboard, by ear, on a phone, in the dark; and what its policy keeps out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from aheadless.protocol.events import Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.ai_sdk import packages
from tests.bridges.page.support import Held, answer, ask, note, open_page, ready, visitor

# "slow", as what is tested here is no Python: once is enough.
pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.sockets, pytest.mark.slow]

RICH = (Path(__file__).parent / "rich.md").read_text("utf-8")
PHONE = {"viewport": {"width": 320, "height": 568}, "has_touch": True, "is_mobile": True}


# --- rules ------------------------------------------------------------------------------------------------------------


async def violations(page: Page) -> list[str]:
    """Return what axe finds wrong; the order of headings is the model's."""
    if not await page.evaluate("'axe' in globalThis"):
        await page.evaluate((packages() / "axe-core" / "axe.min.js").read_text("utf-8"))
    found: dict[str, Any] = await page.evaluate("axe.run({ rules: { 'heading-order': { enabled: false } } })")
    return [
        f"{rule['id']}: {node['html']} {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "size"), [("light", {}), ("dark", PHONE)], ids=["light", "dark phone"])
async def test_the_rules_for_accessibility(browser: Browser, url: str, api: ScriptedServer, scheme: str, size: Any):
    """axe finds nothing in any state of the page: names, roles, contrast, what can be reached."""
    held = Held("Some words", "more")
    api.add(
        Script(stream_answer(events(RICH))),
        Script(stream_answer([Start(CONVERSATION_ID), Token("Half"), Failure("x")])),
        held.script,
        Script(json_answer({}, status=429, headers={"Retry-After": "300"})),
    )
    async with visitor(browser, color_scheme=scheme, **size) as context:
        page = await open_page(context, url)
        found = {"welcome": await violations(page)}
        await ask(page, "Everything")
        await ready(page)
        await ask(page, "Fail")
        await expect(note(page)).to_contain_text("Ask again")
        found["failed"] = await violations(page)
        await ask(page, "Write")
        held.let_go()
        await expect(answer(page)).to_have_text("Some words")
        found["writing"] = await violations(page)
        await page.keyboard.press("Escape")
        await ask(page, "Too much")
        await expect(note(page)).to_contain_text("Try again in")
        await context.set_offline(True)
        await expect(page.locator("#state")).to_have_text("Offline")
        found["refused, offline"] = await violations(page)

    assert found == {state: [] for state in found}


async def test_a_narrow_phone(browser: Browser, url: str, api: ScriptedServer):
    """At 320 pixels nothing is cut off or scrolls sideways but code and tables, and what is pressed is large enough."""
    api.add(Script(stream_answer(events(RICH, "\n\n" + "unbreakable" * 50))))
    async with visitor(browser, **PHONE) as context:
        page = await open_page(context, url)
        await ask(page, "W" * 200)
        await ready(page)

        assert await page.evaluate("document.documentElement.scrollWidth") == 320
        assert await page.evaluate("document.getElementById('log').scrollWidth") <= 320
        box = await page.get_by_role("button", name="Send").bounding_box()
        assert box is not None
        assert box["height"] >= 40


async def test_less_motion(browser: Browser, url: str, api: ScriptedServer):
    """Who wants no motion gets none."""
    held = Held("x")
    api.add(held.script)
    async with visitor(browser, reduced_motion="reduce") as context:
        page = await open_page(context, url)
        await ask(page, "?")
        await expect(page.locator(".waiting")).to_be_visible()
        assert await page.evaluate("document.getAnimations().length") == 0


# --- ears and keys ----------------------------------------------------------------------------------------------------


async def test_what_is_read_out(page: Page, api: ScriptedServer):
    """An answer is read out once, when it is whole: not every token, and not the page's other changes."""
    await page.evaluate("""() => {
        globalThis.spoken = [];
        const live = [...document.querySelectorAll("[aria-live], [role=status], [role=alert], [role=log]")];
        globalThis.regions = live.map((region) => region.id);
        for (const region of live) {
            new MutationObserver(() => region.textContent && spoken.push(region.textContent))
                .observe(region, { childList: true, subtree: true, characterData: true });
        }
    }""")
    api.add(Script(stream_answer(events(*["word "] * 300))))

    await ask(page, "?")

    await ready(page)
    assert await page.evaluate("regions") == ["spoken"]
    assert await page.evaluate("spoken") == ["The answer is being written.", "Answer: " + "word " * 299 + "word"]


async def test_by_keyboard_alone(page: Page, api: ScriptedServer):
    """The order is that of the page, and what scrolls can be reached."""
    api.add(Script(stream_answer(events("[link](https://example.org/)\n\n```\ncode\n```"))))
    await ask(page, "?")
    await ready(page)
    await page.locator("#log").focus()

    reached = []
    for _ in range(5):
        await page.keyboard.press("Tab")
        reached.append(await page.evaluate("document.activeElement.id || document.activeElement.tagName"))

    assert reached == ["A", "BUTTON", "PRE", "message", "send"]


async def test_copying_code(context: BrowserContext, page: Page, api: ScriptedServer):
    """The button copies what was written, not how it is drawn."""
    await context.grant_permissions(["clipboard-read", "clipboard-write"])
    api.add(Script(stream_answer(events("```js\nif (a < b) {\n}\n```"))))
    await ask(page, "?")
    await ready(page)

    await page.get_by_role("button", name="Copy").click()

    await expect(page.locator(".copy")).to_have_text("Copied")
    assert await page.evaluate("navigator.clipboard.readText()") == "if (a < b) {\n}"


async def test_a_language_that_is_written_from_right_to_left(page: Page, api: ScriptedServer):
    """Its full stops and its lists are where they belong, and code and what is in another language are as they were."""
    api.add(Script(stream_answer(events("مرحبا.\n\n- واحد\n\nIn English.\n\n```\nx = 1\n```"))))

    await ask(page, "ما هو Python؟")

    await ready(page)
    assert await page.evaluate("""() => {
        const direction = (name) => getComputedStyle(document.querySelector(name)).direction;
        return [".question", ".answer p", ".answer ul", ".answer pre"].map(direction);
    }""") == ["rtl", "rtl", "rtl", "ltr"]
    # Where the first letter of the English sentence is: at its left, before the rest of it.
    assert await page.evaluate("""() => {
        const text = [...document.querySelectorAll(".answer > p")].at(-1).firstChild;
        const place = (index) => {
            const range = document.createRange();
            range.setStart(text, index);
            range.setEnd(text, index + 1);
            return range.getBoundingClientRect().left;
        };
        return place(0) < place(text.length - 1);
    }""")


# --- scrolling --------------------------------------------------------------------------------------------------------


async def at_the_end(page: Page) -> bool:
    at_end: bool = await page.evaluate(
        "() => { const log = document.getElementById('log');"
        " return log.scrollHeight - log.scrollTop - log.clientHeight < 2; }"
    )
    return at_end


async def test_a_reader_at_the_end(page: Page, api: ScriptedServer):
    """The page follows the answer."""
    api.add(Script(stream_answer(events(*["A paragraph.\n\n"] * 100))))

    await ask(page, "?")

    await ready(page)
    assert await at_the_end(page)
    await expect(page.locator("#newest")).to_be_hidden()


async def test_a_reader_further_up(page: Page, api: ScriptedServer):
    """The page stays where it is, and a button leads to the end."""
    held = Held("A paragraph.\n\n" * 100, "More.\n\n" * 20)
    api.add(held.script)
    await ask(page, "?")
    held.let_go()
    await expect(answer(page).locator("p")).to_have_count(100)
    await page.locator("#log").evaluate("log => { log.scrollTop = 200; }")
    await expect(page.locator("#newest")).to_be_visible()

    held.finish()

    await ready(page)
    assert await page.locator("#log").evaluate("log => log.scrollTop") == 200
    await page.locator("#newest").click()
    assert await at_the_end(page)


# --- the page's policy -------------------------------------------------------------------------------------------------


REFUSED = {
    "style-src-elem": "document.head.append(Object.assign(document.createElement('style'), {textContent: 'p{}'}))",
    "require-trusted-types-for": "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
    "img-src": "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/'}))",
    "connect-src": "fetch('http://127.0.0.1:9/')",
}


async def test_what_the_browser_is_to_refuse(browser: Browser, url: str):
    """Even if a script of an answer ran it could add nothing to the page and send nothing away."""
    async with await browser.new_context() as context:  # not a visitor(): what is refused is in the console
        page = await open_page(context, url)
        refused = [
            await page.evaluate(f"""async () => {{
                const refused = new Promise((resolve) => addEventListener(
                    "securitypolicyviolation", (event) => resolve(event.effectiveDirective), {{ once: true }}));
                try {{ await ({attempt}); }} catch {{ }}
                return refused;
            }}""")
            for attempt in REFUSED.values()
        ]

    assert refused == [*REFUSED]
