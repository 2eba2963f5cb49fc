"""The chat page in a real Chromium: what a reader sees, hears and can do, and what an answer cannot."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, expect

from aheadless.protocol.events import Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.bridges.page.support import (
    Held,
    answer,
    ask,
    environment,
    free_port,
    killed,
    note,
    open_page,
    ready,
    serve,
    visitor,
)

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.sockets, pytest.mark.slow]

# --- asking -----------------------------------------------------------------------------------------------------------


async def test_an_answer_word_by_word(page: Page, api: ScriptedServer):
    """Each token is there as soon as it was sent, while the next one has not been."""
    held = Held("Streams ", "are ", "**read** ", "to `done`.")
    api.add(held.script)

    await ask(page, "How?")

    await expect(page.locator(".question")).to_have_text("How?")
    await expect(page.locator("#state")).to_have_text("Writing…")
    for shown in ["Streams", "Streams are", "Streams are read", "Streams are read to done."]:
        held.let_go()
        await expect(answer(page)).to_have_text(shown)
    held.finish()
    await ready(page)
    assert await answer(page).inner_html() == "<p>Streams are <strong>read</strong> to <code>done</code>.</p>"
    assert [json.loads(request.body)["message"] for request in api.stored] == ["How?"]


async def test_the_api_corrects_the_end(page: Page, api: ScriptedServer):
    """What is shown at the end is what the API has stored, whatever the tokens were."""
    api.add(Script(stream_answer(events("Something ", "else", text="This counts."))))

    await ask(page, "?")

    await ready(page)
    await expect(answer(page)).to_have_text("This counts.")


async def test_enter_and_shift_enter(page: Page, api: ScriptedServer):
    """Shift+Enter begins a new line, Enter sends, and an empty message is not sent."""
    await page.keyboard.press("Enter")
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")

    await ready(page)
    await expect(answer(page)).to_have_text("Hello world")
    assert [json.loads(request.body)["message"] for request in api.stored] == ["one\ntwo"]
    await expect(page.get_by_label("Your message")).to_be_empty()


async def test_choosing_a_character(page: Page, api: ScriptedServer):
    """Enter in the middle of an input method's composition sends nothing."""
    await page.get_by_label("Your message").fill("に")
    await page.get_by_label("Your message").dispatch_event("keydown", {"key": "Enter", "isComposing": True})

    await expect(page.get_by_label("Your message")).to_have_value("に")
    assert api.requests == []


async def test_a_suggestion(page: Page, api: ScriptedServer):
    """One press asks it, and the suggestions are gone."""
    await page.get_by_role("button", name="How do I stop a reply?").click()

    await expect(answer(page)).to_have_text("Hello world")
    await expect(page.locator("#welcome")).to_be_hidden()
    await expect(page.get_by_label("Your message")).to_be_focused()


async def test_the_longest_message(page: Page, api: ScriptedServer):
    """No more can be typed than the API takes, and the page says so in time."""
    message = page.get_by_label("Your message")
    await message.fill("x" * 3990)
    await message.press_sequentially("y" * 12)

    await expect(page.locator("#left")).to_have_text("0 characters left")
    await page.keyboard.press("Enter")
    await ready(page)
    assert json.loads(api.stored[0].body)["message"] == "x" * 3990 + "y" * 10


async def test_a_line_that_comes_in_crumbs(page: Page, api: ScriptedServer):
    """Characters that are cut, and ends of lines that are none, arrive whole."""
    text = "é 日本 🎉 \u2028 \u0085 \v end"
    api.add(Script(stream_answer(events(*text)), pieces=7))

    await ask(page, "?")

    await ready(page)
    assert await answer(page).text_content() == text


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["button", "key"])
async def test_stop(page: Page, api: ScriptedServer, how: str):
    """What had come stays, the API's connection is closed, and the next question goes through."""
    held = Held("Once upon ", "a time")
    api.add(held.script)
    await ask(page, "Tell me a story")
    held.let_go()
    await expect(answer(page)).to_have_text("Once upon")

    if how == "key":
        await page.keyboard.press("Escape")
    else:
        await page.get_by_role("button", name="Stop").click()

    await expect(note(page)).to_contain_text("Stopped.")
    await ready(page)
    async with asyncio.timeout(20):
        await api.requests[0].left.wait()
    await expect(answer(page)).to_have_text("Once upon")
    await expect(page.get_by_label("Your message")).to_be_focused()
    await ask(page, "Another one")
    await expect(answer(page)).to_have_text("Hello world")


async def test_a_question_while_an_answer_is_written(page: Page, api: ScriptedServer):
    """Enter sends nothing, and what was typed stays."""
    held = Held("Wait")
    api.add(held.script)
    await ask(page, "First")
    held.let_go()
    await expect(answer(page)).to_have_text("Wait")

    await ask(page, "Second")
    held.finish()

    await ready(page)
    await expect(page.get_by_label("Your message")).to_have_value("Second")
    assert len(api.requests) == 1


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_an_answer_that_fails(page: Page, api: ScriptedServer):
    """The reader is told that the message did arrive; asking again is a decision, and a second question."""
    api.add(Script(stream_answer([Start(CONVERSATION_ID), Token("Half of it"), Failure("internal: key=abc")])))

    await ask(page, "Why?")

    await expect(note(page)).to_contain_text("Sorry, no answer could be given. Your message did arrive.")
    await expect(answer(page)).to_have_text("Half of it")
    assert len(api.requests) == 1
    await page.get_by_role("button", name="Ask again").click()
    await ready(page)
    await expect(page.locator(".question")).to_have_text(["Why?", "Why?"])
    await expect(answer(page)).to_have_text("Hello world")


async def test_a_refusal(page: Page, api: ScriptedServer):
    """A message that was not taken is tried again in its own place."""
    api.add(Script(json_answer({"error": "Unauthorized"}, status=401)))

    await ask(page, "Why?")

    await expect(note(page)).to_contain_text("Your message was not taken.")
    await page.get_by_role("button", name="Try again").click()
    await ready(page)
    await expect(page.locator(".question")).to_have_text(["Why?"])
    await expect(answer(page)).to_have_text("Hello world")


@pytest.mark.parametrize(
    "body",
    [
        "<!DOCTYPE html>\n<p>Please sign in.</p>\n",
        "null\n",
        '{"type":"token","token":{"text":"x"}}\n',
        '{"type":"start"}\n{"type":"token","token":"x"}\n{"type":"done"}\n',
    ],
    ids=["a page", "nothing", "no text", "no end"],
)
async def test_an_answer_of_another_kind(browser: Browser, url: str, body: str):
    """Whatever answers in place of the back end: the page says so and goes on."""
    async with await browser.new_context() as context:  # not a visitor(): what it was is in the console
        page = await open_page(context, url)
        await page.route("**/chat", lambda route: route.fulfill(body=body))
        await ask(page, "Why?")
        await expect(note(page)).to_contain_text("The page does not understand the answer.")
        await page.unroute("**/chat")

        await page.get_by_role("button", name="Ask again").click()

        await expect(answer(page)).to_have_text("Hello world")


async def test_a_failure_that_means_harm(page: Page):
    """What the back end says of it is text, whatever it is."""
    harm = "<img src=x onerror='globalThis.harmed = true'>"
    line = json.dumps({"type": "error", "error": harm, "delivery": "constructor"})
    await page.route("**/chat", lambda route: route.fulfill(body=f"{line}\n"))

    await ask(page, harm)

    await expect(note(page)).to_contain_text(f"{harm} Your message may have arrived all the same.")
    assert await page.locator(".turn img").count() == 0


async def test_nobody_knows_whether_it_arrived(page: Page, api: ScriptedServer):
    """A connection that ends without an answer: the page says so, and sends nothing by itself."""
    api.add(Script(b"", end="rst"))

    await ask(page, "Why?")

    await expect(note(page)).to_contain_text("Your message may have arrived all the same. Asking again may ask twice.")
    assert len(api.requests) == 1


async def test_too_many_questions(browser: Browser, url: str, api: ScriptedServer):
    """The button counts down and works again when the time has come."""
    api.add(Script(json_answer({"error": "Too many requests"}, status=429, headers={"Retry-After": "30"})))
    async with visitor(browser) as context:
        await context.clock.install()
        page = await open_page(context, url)

        await ask(page, "Now?")

        again = page.get_by_role("button", name="Try again")
        await expect(again).to_have_text(re.compile(r"Try again in (30|2\d) s"))
        await expect(again).to_be_disabled()
        await page.clock.fast_forward(31_000)
        await expect(again).to_have_text("Try again")
        await expect(again).to_be_enabled()


async def test_offline(page: Page, context: BrowserContext, api: ScriptedServer):
    """Nothing is sent; once the network is back the question can be."""
    await context.set_offline(True)
    await expect(page.locator("#state")).to_have_text("Offline")

    await ask(page, "Anybody?")

    await expect(note(page)).to_contain_text("You are offline. Your message was not sent.")
    await context.set_offline(False)
    await ready(page)
    await page.get_by_role("button", name="Try again").click()
    await expect(answer(page)).to_have_text("Hello world")
    await expect(page.locator(".question")).to_have_text(["Anybody?"])
    assert len(api.requests) == 1


# --- keeping the conversation -----------------------------------------------------------------------------------------


async def test_reload(page: Page, api: ScriptedServer):
    """The conversation is there again, drawn as before."""
    api.add(Script(stream_answer(events("# Title\n\n- one\n- two"))))
    await ask(page, "First <b>")
    await ready(page)
    await ask(page, "Second")
    await ready(page)
    before = await page.locator("#turns").inner_html()

    await page.reload()

    await ready(page)
    assert await page.locator("#turns").inner_html() == before


async def test_reload_in_the_middle(page: Page, api: ScriptedServer):
    """What had come is there, and that it is not all."""
    held = Held("Once upon ", "a time")
    api.add(held.script)
    await ask(page, "Tell me a story")
    held.let_go()
    await expect(answer(page)).to_have_text("Once upon")

    await page.reload()

    await expect(note(page)).to_contain_text("Stopped.")
    await expect(answer(page)).to_have_text("Once upon")
    await ready(page)


async def test_asking_before_the_page_is_ready(context: BrowserContext, url: str, api: ScriptedServer):
    """The question waits for the conversation so far, and is in it."""
    page = await open_page(context, url)
    await ask(page, "First")
    await ready(page)
    held_back = asyncio.Event()

    async def hold_back(route: Route) -> None:
        await held_back.wait()
        await route.continue_()

    await page.route("**/messages", hold_back)
    await page.reload()
    await ask(page, "Second")
    await expect(page.get_by_label("Your message")).to_be_empty()
    assert len(api.requests) == 1

    held_back.set()

    await expect(page.locator(".question")).to_have_text(["First", "Second"])
    await expect(page.locator(".answer")).to_have_text(["Hello world", "Hello world"])


async def test_a_refusal_stays_when_the_network_comes_back(page: Page, context: BrowserContext, api: ScriptedServer):
    """What the back end took no note of is not forgotten by the page."""
    for _ in range(20):
        await page.evaluate(
            "fetch('chat', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
        )
    await ask(page, "One too many")
    await expect(note(page)).to_contain_text("Try again in")

    await context.set_offline(True)
    await context.set_offline(False)

    await ready(page)
    await expect(page.locator(".question")).to_have_text(["One too many"])
    await expect(note(page)).to_contain_text("Too many questions right now.")
    assert api.requests == []


async def test_a_second_tab(page: Page, context: BrowserContext, url: str, api: ScriptedServer):
    """It sees that an answer is being written, and then the answer."""
    held = Held("Once upon ", "a time")
    api.add(held.script)
    await ask(page, "Tell me a story")
    held.let_go()
    await expect(answer(page)).to_have_text("Once upon")
    other = await context.new_page()
    await other.goto(url)
    await expect(other.locator("#state")).to_have_text("Writing…")

    held.finish()

    await ready(other)
    await expect(answer(other)).to_have_text("Once upon a time")


async def test_asking_in_a_second_tab(page: Page, context: BrowserContext, url: str, api: ScriptedServer):
    """The question waits for the first tab's answer, and then both answers are there."""
    held = Held("Once upon ", "a time")
    api.add(held.script)
    await ask(page, "Tell me a story")
    held.let_go()
    await expect(answer(page)).to_have_text("Once upon")
    other = await context.new_page()
    await other.goto(url)
    await expect(other.locator("#state")).to_have_text("Writing…")

    await ask(other, "And then?")
    await expect(other.locator(".question")).to_have_text(["Tell me a story", "And then?"])
    held.finish()

    await expect(other.locator(".answer")).to_have_text(["Once upon a time", "Hello world"])


async def test_another_visitor(page: Page, browser: Browser, url: str):
    """Nobody sees anybody else's conversation, and no script sees the cookie that keeps them apart."""
    await ask(page, "My secret")
    await ready(page)

    async with visitor(browser) as other:
        theirs = await open_page(other, url)
        await expect(theirs.locator(".turn")).to_have_count(0)
    assert await page.evaluate("document.cookie") == ""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("end", "Stopped."),
        # The new process cannot know at once that the old one is dead: it waits for its lease to end, 5 s.
        ("kill", "The answer broke off. Your message may have arrived all the same."),
    ],
)
async def test_the_back_end_restarts(
    context: BrowserContext, api: ScriptedServer, tmp_path: Path, how: Literal["end", "kill"], said: str
):
    """In the middle of an answer: the page finds back, with the conversation, and goes on in it."""
    port = free_port()
    held = Held("Once upon ", "a time")
    api.add(Script(stream_answer(events("Good morning"))), held.script)
    # What is killed has to be a process of its own.
    variables = environment(api.url, tmp_path)
    async with killed(variables, port) if how == "kill" else serve(variables, port):
        page = await open_page(context, f"http://127.0.0.1:{port}")
        await ask(page, "Hello")
        await ready(page)
        await ask(page, "Tell me a story")
        held.let_go()
        await expect(answer(page)).to_have_text("Once upon")

    await expect(note(page)).to_contain_text("The connection broke off.")
    await expect(page.locator("#state")).to_have_text("Reconnecting…")
    async with serve(variables, port):
        await ready(page)
        await expect(page.locator(".question")).to_have_text(["Hello", "Tell me a story"])
        await expect(page.locator(".answer").first).to_have_text("Good morning")
        await expect(note(page)).to_contain_text(said)
        await page.get_by_role("button", name="Ask again").click()
        await expect(answer(page)).to_have_text("Hello world")


async def test_a_question_that_nobody_took(context: BrowserContext, api: ScriptedServer, tmp_path: Path):
    """Asked while the back end was away: it stays on the page, and once the back end is there it can be sent."""
    port = free_port()
    async with serve(environment(api.url, tmp_path), port):
        page = await open_page(context, f"http://127.0.0.1:{port}")
        await ask(page, "Same")
        await ready(page)
    await ask(page, "Same")
    await expect(note(page)).to_contain_text("The chat cannot be reached.")
    await expect(page.locator("#state")).to_have_text("Reconnecting…")

    async with serve(environment(api.url, tmp_path), port):
        await expect(note(page)).to_contain_text("Your message was not sent.")
        await page.get_by_role("button", name="Try again").click()
        await ready(page)
        await expect(page.locator(".question")).to_have_text(["Same", "Same"])
        await expect(page.locator(".answer")).to_have_text(["Hello world", "Hello world"])
