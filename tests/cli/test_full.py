"""`aheadless chat --full`: the screen as a person sees it, on real servers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Markdown

from aheadless import ChatClient, ConnectError, Delivery, Message, Retry, Retrying, Waiting
from aheadless._exchange import SessionChange
from aheadless.cli.full.app import FullChat
from aheadless.cli.full.desk import Desk
from aheadless.cli.full.markdown import make_parser
from aheadless.cli.full.panes import Pane, Stage, Window, aside
from aheadless.cli.full.widgets import Prompt, Talk
from aheadless.protocol.events import Event, Failure, Start, Token
from aheadless.server import RunningServer, ScriptedEngine, ServerSettings, run_server
from aheadless.server.engines.simple import Step
from aheadless.stores import SQLiteStore
from aheadless.testing import CONVERSATION_ID, Script, events, json_answer, stream_answer
from tests.cli.support import CTRL_C, KEY, PATIENCE, aheadless, posix_only, terminal
from tests.proxy import CuttingProxy
from tests.support import ADMIN_KEY

# Each starts an application of textual's, which is the same on each Python.
pytestmark = pytest.mark.slow

HEAD: list[Event | bytes] = [Start(CONVERSATION_ID), Token("half "), Token("an answer")]
STALLED = Script(stream_answer(HEAD, framing="close"), end="stall")
SILENT = Script(stream_answer([Start(CONVERSATION_ID)], framing="close"), end="stall")


@pytest.fixture
async def answering() -> AsyncIterator[Callable[..., Any]]:
    """Runs a server that plays one script for each reply."""
    async with AsyncExitStack() as stack:

        async def start(*scripts: Sequence[Step]) -> RunningServer:
            engine = ScriptedEngine(*scripts)
            settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=engine, rate_limit=None)
            return await stack.enter_async_context(run_server(settings))

        yield start


class Screen:
    """A full-screen chat without a terminal."""

    def __init__(self, app: FullChat, pilot: Pilot[int]) -> None:
        self.app = app
        self.desk = app.desk
        self.press = pilot.press
        self.resize = pilot.resize_terminal
        self._pause = pilot.pause

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, line by line."""
        return [strip.text.rstrip() for strip in self.app.screen._compositor.render_strips()]

    @property
    def text(self) -> str:
        """What stands right of the list of sessions, however its lines are broken."""
        right = (line[28:] if line[27:28] == "│" else line.strip("│") for line in self.lines)
        return " ".join(" ".join(right).split())

    @property
    def prompt(self) -> Prompt:
        return self.app.query_one(Prompt)

    @property
    def talk(self) -> Talk:
        return self.app.query_one(Talk)

    @property
    def marks(self) -> str:
        """Those of the sessions, the newest first."""
        return "".join(pane.mark for pane in self.desk.panes)

    async def until(self, happened: str | Callable[[], object]) -> None:
        """Wait until a text is on the screen, or something else is true."""
        true = (lambda: happened in self.text) if isinstance(happened, str) else happened
        try:
            async with asyncio.timeout(PATIENCE):
                while not true():
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError("\n".join(["it did not happen; on the screen:", *self.lines])) from None

    async def ask(self, message: str) -> None:
        """Send a message."""
        self.prompt.put(message)
        await self.press("enter")

    async def paste(self, text: str) -> None:
        """Paste, as a terminal with bracketed paste does."""
        from textual.events import Paste

        self.app.post_message(Paste(text))
        await self._pause()


@asynccontextmanager
async def full(
    url: str,
    *,
    size: tuple[int, int] = (100, 30),
    store: Path | None = None,
    session_id: str | None = None,
    **options: Any,
) -> AsyncIterator[Screen]:
    """Run the chat as long as the block lasts, at most."""
    make = partial(ChatClient, url, **{"api_key": KEY, "retry": Retry(attempts=1), **options})
    kept = None if store is None else SQLiteStore(store)
    async with Desk(make, store=kept, session_id=session_id) as desk:
        app = FullChat(desk)
        async with app.run_test(size=size) as pilot:
            yield Screen(app, pilot)


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_an_answer_appears_as_it_is_made(serve):
    """What has come is on the screen while the rest is not made yet, and it is Markdown."""
    gate = asyncio.Event()
    server = await serve("**fir", "st** and", gate, " `second`")

    async with full(server.url) as screen:
        await screen.ask("Hi")
        await screen.until("first and")
        assert "replying … · Esc stops it" in screen.text
        gate.set()
        await screen.until("first and second")
        await screen.until(lambda: "replying" not in screen.text)

        assert screen.prompt.text == ""
        assert [message.text for message in screen.desk.messages(screen.desk.current)] == [
            "Hi",
            "**first** and `second`",
        ]


async def test_sessions_at_the_same_time(answering):
    """Each has a reply of its own, and a mark that says how it stands; who looks takes the mark away."""
    gate = asyncio.Event()
    server = await answering(["first ", gate, "answer"], ["second answer"])

    async with full(server.url) as screen:
        await screen.ask("One?")
        await screen.until("first")
        await screen.press("ctrl+n")
        assert "first" not in screen.text
        await screen.ask("Two?")
        await screen.until("second answer")
        await screen.until(lambda: screen.marks == " ●")
        assert [line[:9].strip() for line in screen.lines[:2]] == ["Two?", "● One?"]
        gate.set()
        await screen.until(lambda: screen.lines[1].startswith("* One?"))
        await screen.press("alt+down")
        await screen.until("first answer")
        assert screen.marks == "  "
        await screen.press("ctrl+g", "up", "enter")
        await screen.until("second answer")
        assert screen.app.focused is screen.prompt


# --- the prompt -------------------------------------------------------------------------------------------------------


async def test_a_message_of_several_lines(answering):
    """Ctrl-J and Shift-Enter begin a new one, pasted ones stay, and Enter sends them all."""
    server = await answering(["yes"])

    async with full(server.url) as screen:
        await screen.press("a", "ctrl+j", "b", "shift+enter")
        await screen.paste("c\r\nd\re\x1b[2J")
        await screen.press("enter")
        await screen.until("yes")

    assert server.settings.engine.asked[0][0].text == "a\nb\nc\nd\ne␛[2J"


async def test_an_empty_message(scripted):
    """It is not sent."""
    async with full(scripted.url) as screen:
        await screen.ask("")
        await screen.ask("  \n ")
        await screen.ask("Hi")
        await screen.until("Hello world")

    assert len(scripted.requests) == 1


async def test_a_message_that_is_too_long(scripted):
    """That is said before it is sent, and it stays to be made shorter."""
    async with full(scripted.url) as screen:
        screen.prompt.put("😀" * 1999)
        await screen.until("2 characters left")
        await screen.press("a", "b", "c")
        await screen.until("1 characters too long: a message has at most 4000")
        await screen.press("enter")
        await screen.until("message has 4001 UTF-16 units")
        await screen.press("backspace", "enter")
        await screen.until("Hello world")

    assert len(scripted.requests) == 1


async def test_what_is_pasted_is_no_message(scripted):
    """A whole file does not get in."""
    async with full(scripted.url) as screen:
        await screen.paste("x" * 16_001)
        await screen.until("much too long for a message")
        assert screen.prompt.text == ""


async def test_earlier_messages(scripted):
    """The arrow keys bring them back, and what was being typed after them; within a message they move the cursor."""
    async with full(scripted.url) as screen:
        for message in ("one", "two\nlines"):
            await screen.ask(message)
            await screen.until(lambda: not screen.desk.current.live)
        screen.prompt.put("half a li")
        seen = []
        for key in ("up", "up", "up", "up", "down", "down", "down", "down"):
            await screen.press(key)
            seen.append(screen.prompt.text)

    assert seen == ["two\nlines", "two\nlines", "one", "one", "two\nlines", "half a li", "half a li", "half a li"]


async def test_a_question_while_a_reply_is_written(scripted):
    """It stays in the prompt."""
    scripted.add(STALLED)

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("half an answer")
        await screen.ask("Two?")
        await screen.until("a reply is being written; Esc stops it")
        assert screen.prompt.text == "Two?"


async def test_what_was_typed_and_not_sent(scripted):
    """It waits in its session."""
    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("Hello world")
        screen.prompt.put("unsent")
        await screen.press("ctrl+n")
        assert screen.prompt.text == ""
        await screen.press("alt+up")
        assert screen.prompt.text == "unsent"


# --- stopping and leaving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "script"), [("escape", STALLED), ("ctrl+c", SILENT), ("escape", Script(b"", end="stall"))]
)
async def test_stop(key, script, scripted):
    """The stream is closed at once, what had come stays, and one can go on; also before the first token."""
    scripted.add(script)

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        request = await scripted.arrived(1)
        if script is STALLED:
            await screen.until("half an answer")
        await screen.press(key)
        await screen.until("stopped")
        async with asyncio.timeout(5):
            await request.left.wait()
        await screen.ask("Two?")
        await screen.until("Hello world")

        assert ("half an answer" in screen.text) == (script is STALLED)


@pytest.mark.parametrize("keys", [["ctrl+c", "ctrl+c"], ["ctrl+q"]])
async def test_leaving_in_the_middle_of_replies(keys, scripted, tmp_path):
    """They are stopped and saved, those that nobody looks at as well; then it ends, with 0."""
    scripted.add(STALLED, STALLED)

    async with full(scripted.url, store=tmp_path / "chats.db") as screen:
        await screen.ask("One?")
        await screen.until("half an answer")
        await screen.press("ctrl+n")
        await screen.ask("Two?")
        await screen.until("half an answer")
        ids = [pane.session_id for pane in screen.desk.panes]
        await screen.press(*keys)
        await screen.until(lambda: screen.app.return_code is not None or not screen.app.is_running)
    for request in scripted.requests:
        async with asyncio.timeout(5):
            await request.left.wait()

    assert screen.app.return_value == 0
    async with SQLiteStore(tmp_path / "chats.db") as store:
        for session_id in ids:
            record = await store.load(session_id, limit=10)
            assert record is not None
            assert [message.status for message in record.messages] == ["interrupted", "interrupted"]


async def test_ctrl_c_and_then_typing(scripted):
    """Who goes on typing has not said that they leave."""
    async with full(scripted.url) as screen:
        await screen.press("ctrl+c")
        await screen.until("Ctrl-C once more leaves")
        await screen.press("a", "ctrl+c")
        await screen.until("Ctrl-C once more leaves")
        assert screen.app.is_running


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_nothing_was_stored(scripted):
    """The line says so, and Ctrl-R sends the same message again."""
    scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("Ctrl-R sends it again")
        assert "set AHEADLESS_API_KEY" in screen.text
        assert "not stored" in screen.text
        assert screen.marks == "!"
        await screen.press("ctrl+r")
        await screen.until("Hello world")
        assert screen.marks == " "

    assert len(scripted.stored) == 1


async def test_the_message_was_stored(scripted):
    """It is not offered to send it twice; what had come stays, marked."""
    scripted.add(Script(stream_answer([*HEAD, Failure("no \x1b[2Jmodel")])))

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("it would be stored twice")
        assert "half an answer" in screen.text
        assert "the server gave up: no" in screen.text
        await screen.press("ctrl+r")
        await screen.ask("Two?")
        await screen.until("Hello world")

    assert len(scripted.requests) == 2


async def test_no_server():
    """The chat goes on without one."""
    async with full("http://127.0.0.1:9") as screen:
        await screen.ask("One?")
        await screen.until("is the server running, and is the URL right?")
        await screen.until("Ctrl-R sends it again")


async def test_too_many_requests(scripted):
    """The seconds are counted down, and Esc gives up."""
    scripted.add(Script(json_answer({"error": "Too many requests"}, status=429, headers={"Retry-After": "10"})))

    async with full(scripted.url, retry=Retry(attempts=3)) as screen:
        await screen.ask("One?")
        await screen.until("the server wants a pause: 10 s to go · Esc gives up")
        await screen.until("the server wants a pause: 9 s to go")
        await screen.press("escape")
        await screen.until("stopped")

    assert len(scripted.requests) == 1


async def test_another_text_was_stored_than_streamed(scripted):
    """What was stored is shown."""
    scripted.add(Script(stream_answer(events("streamed", text="stored"))))

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("the server stored another text than it streamed")
        assert [shown.source for shown in screen.app.query(Markdown)] == ["stored"]


# --- recovery ---------------------------------------------------------------------------------------------------------


async def test_the_connection_breaks(answering):
    """With the admin key the reply is read back from the server's history."""
    gate = asyncio.Event()
    server = await answering(["first ", gate, "second"])

    async with CuttingProxy(server.url) as proxy:
        proxy.cut("response", 420, "rst")
        async with full(proxy.url, admin_key=ADMIN_KEY) as screen:
            await screen.ask("One?")
            await screen.until("reading the reply back")
            gate.set()
            await screen.until("this reply was read back")
            await screen.until("first second")


async def test_a_question_that_a_crash_left_behind(answering, tmp_path):
    """It is found in the store, the line says what it is, and Ctrl-R looks for its reply."""
    server = await answering(["the ", "reply"])
    async with SQLiteStore(tmp_path / "chats.db") as store:
        async with ChatClient(server.url, api_key=KEY) as elsewhere:
            await elsewhere.chat("me").send("One?")
        asked = Message(
            "user", "One?", status="unknown", created_at=datetime.now(timezone.utc), delivery=Delivery.UNKNOWN
        )
        lease = await store.acquire("me")
        assert lease is not None
        await store.save(SessionChange("me", 0, None, ((0, asked),)), lease)
        await store.release(lease)

    async with full(server.url, admin_key=ADMIN_KEY, store=tmp_path / "chats.db", session_id="me") as screen:
        await screen.until("nobody knows whether the server has the last question")
        await screen.until("may have been stored")
        await screen.press("ctrl+r")
        await screen.until("this reply was read back")
        await screen.until("the reply")


# --- sessions ---------------------------------------------------------------------------------------------------------


async def test_sessions_of_an_earlier_run(answering, tmp_path):
    """They are listed, the last one first, and go on where they were."""
    server = await answering(["one answer"], ["two answer"], ["three answer"])
    async with full(server.url, store=tmp_path / "chats.db") as screen:
        await screen.ask("One?")
        await screen.until("one answer")
        await screen.press("ctrl+n")
        await screen.ask("Two?")
        await screen.until("two answer")

    async with full(server.url, store=tmp_path / "chats.db") as screen:
        assert [pane.title for pane in screen.desk.panes] == ["", "two answer", "one answer"]
        await screen.press("alt+up")
        await screen.until("One?")
        await screen.ask("Three?")
        await screen.until("three answer")

    assert [message.text for message in server.settings.engine.asked[2]] == ["One?", "one answer", "Three?"]


async def test_forget_a_session(scripted, tmp_path):
    """Only after a question, and not while its reply is being written; it is gone from the store then."""
    scripted.add(Script(stream_answer(events("Hello"))), STALLED)

    async with full(scripted.url, store=tmp_path / "chats.db", session_id="me") as screen:
        await screen.ask("One?")
        await screen.until("Hello")
        await screen.press("ctrl+g", "delete")
        await screen.until("Forget “One?”?")
        await screen.press("n", "escape")
        await screen.ask("Two?")
        await screen.until("half an answer")
        await screen.press("ctrl+g", "delete", "y")
        await screen.until("a session is not forgotten while a turn is live")
        await screen.press("escape", "escape")
        await screen.until("stopped")
        await screen.press("ctrl+g", "delete", "y")
        await screen.until(lambda: [pane.title for pane in screen.desk.panes] == [""])
        assert "Hello" not in screen.text
        assert await screen.desk.client.sessions.list() in ([], [screen.desk.current.session_id])

    async with SQLiteStore(tmp_path / "chats.db") as store:
        assert await store.load("me", limit=1) is None


async def test_a_new_session_twice(scripted):
    """One that nothing was said in is enough."""
    async with full(scripted.url) as screen:
        await screen.press("ctrl+n", "ctrl+n")
        assert len(screen.desk.panes) == 1


# --- the screen -------------------------------------------------------------------------------------------------------


async def test_a_narrow_terminal(answering):
    """The list is there when it is asked for; a resize in mid-stream breaks nothing."""
    gate = asyncio.Event()
    server = await answering(["first ", gate, "second " * 20])

    async with full(server.url, size=(60, 20)) as screen:
        await screen.ask("One?")
        await screen.until("first")
        assert "●" not in screen.text
        await screen.press("ctrl+g")
        await screen.until(lambda: screen.lines[0].startswith("● One?"))
        await screen.press("escape")
        await screen.until("first")
        await screen.press("ctrl+n")
        await screen.until("elsewhere ●")
        await screen.press("alt+down")
        await screen.resize(100, 30)
        await screen.until(lambda: screen.lines[1].startswith("● One?"))
        for size in [(1, 1), (69, 3), (3, 40), (71, 2)]:
            await screen.resize(*size)
        gate.set()
        await screen.resize(30, 10)
        await screen.until(lambda: "second second" in screen.text and not screen.desk.current.live)


async def test_who_has_scrolled_up_stays_there(answering):
    """What comes does not move the screen, until one is at the end again."""
    gates = [asyncio.Event(), asyncio.Event()]
    lines = [f"line {number}\n\n" for number in range(60)]
    server = await answering([*lines[:40], gates[0], *lines[40:50], gates[1], *lines[50:]])

    async with full(server.url) as screen:
        await screen.ask("One?")
        await screen.until("line 39")
        await screen.press("pageup")
        await screen.until(lambda: "line 39" not in screen.text)
        seen, at = screen.text, screen.talk.scroll_y
        gates[0].set()
        await screen.until(lambda: "line 49" in screen.app.query_one(Markdown).source)
        assert (screen.text, screen.talk.scroll_y) == (seen, at)
        await screen.press("ctrl+end")
        await screen.until("line 49")
        gates[1].set()
        await screen.until("line 59")


async def test_copy(scripted):
    """The last answer goes to the clipboard, harmless; of one that is being written what has come."""
    scripted.add(Script(stream_answer([*HEAD, Token("\x1b[2J")], framing="close"), end="stall"))

    async with full(scripted.url) as screen:
        await screen.press("ctrl+y")
        await screen.until("there is no answer yet")
        await screen.ask("One?")
        await screen.until("half an answer")
        await screen.press("ctrl+y")
        await screen.until("characters went to the clipboard")
        assert screen.app.clipboard == "half an answer␛[2J"


HOSTILE = """\
raw \x1b]0;title\x07 entity &#27;[2J &#x202e;turned \u202e [a](file:///etc/passwd) ![b](http://x/y) <script>c</script>

[d](javascript:alert) <http://e.f>

```
fence \x9b2J
```
"""


async def test_a_hostile_answer(scripted):
    """Nothing of it commands the terminal, nothing can be clicked, nothing is hidden."""
    scripted.add(Script(stream_answer(events(HOSTILE))))

    async with full(scripted.url) as screen:
        await screen.ask("\u202e?")
        await screen.until(lambda: not screen.desk.current.live)
        await screen.until("fence")

        text = screen.text
        styles = [segment.style for strip in screen.app.screen._compositor.render_strips() for segment in strip]
        head = screen.lines[1]

    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", text)
    for shown in (
        "raw ␛]0;title␇ entity �[2J \\u202eturned \\u202e [a](file:///etc/passwd) [b] (http://x/y) <script>c</script>",
        "[d](javascript:alert) http://e.f",
        "fence \\u009b2J",
    ):
        assert shown in text
    assert "\u202e" not in head
    assert not [style for style in styles if style is not None and (style.link or "@click" in style.meta)]


async def test_an_endless_answer(scripted):
    """As much as a screen bears is shown, and how much is not; it is there as a whole."""
    scripted.add(Script(stream_answer(events(*["a line\n"] * 3000, "the end"))))

    async with full(scripted.url) as screen:
        await screen.ask("One?")
        await screen.until("more characters; Ctrl-Y copies them all")
        assert len(screen.app.query_one(Markdown).source) <= 3500
        await screen.press("ctrl+y")
        assert screen.app.clipboard.endswith("the end")


async def test_help(scripted):
    """F1 shows the keys."""
    async with full(scripted.url) as screen:
        await screen.press("f1")
        await screen.until("the list of sessions")
        await screen.press("escape")
        await screen.until(lambda: "the list of sessions" not in screen.text)


# --- what the screen knows --------------------------------------------------------------------------------------------


def test_stages():
    """What happens in a turn leads from one stage to the next, and what cannot happen is a mistake."""
    pane = Pane("me")

    pane.ask("One?")
    pane.add("text")
    pane.read_back()
    assert (pane.live, pane.asking) == (True, True)
    with pytest.raises(KeyError):
        pane.add("more")
    pane.end(seen=False)

    assert (pane.stage, pane.mark, pane.pieces, pane.turn) == (Stage.IDLE, "*", ["text"], 1)
    with pytest.raises(KeyError):
        pane.end(seen=True)


def test_status_before_a_reply():
    """It says what the turn waits for."""
    pane = Pane("me")
    pane.ask("One?")
    assert pane.status(0) == "thinking … · Esc gives up"
    pane.hold = Waiting("me", "rate_limit", 75.0)
    assert pane.status(0) == "waiting its turn, as there are many · Esc gives up"
    assert pane.status(8.6) == "too many requests; the server wants a pause: 9 s to go · Esc gives up"
    pane.hold = Retrying("me", 1, 0.5, ConnectError("cannot\nconnect"))
    assert pane.status(0) == "attempt 2 follows: cannot connect · Esc gives up"


@pytest.mark.parametrize(
    ("pieces", "shown", "left_out"),
    [
        (["abc", "de"], ["abc", "de"], 0),
        (["abcdefghij", "k"], ["abcdefghi", ""], 2),
        (["a\n", "b\nc\nd"], ["a\n", "b"], 4),
    ],
)
def test_window(pieces, shown, left_out):
    """It takes what fits, in characters and in lines, and counts the rest."""
    window = Window(characters=9, lines=2)

    assert [window.take(piece) for piece in pieces] == shown
    assert window.left_out == left_out


@pytest.mark.parametrize(
    ("status", "delivery", "said"),
    [
        ("complete", Delivery.ACCEPTED, ""),
        ("failed", Delivery.NOT_SENT, "not stored"),
        ("failed", Delivery.REJECTED, "not stored"),
        ("unknown", Delivery.UNKNOWN, "may have been stored"),
        ("failed", Delivery.ACCEPTED, ""),
    ],
)
def test_what_became_of_a_question(status, delivery, said):
    """It stands beside it, unless the server simply has it."""
    question = Message("user", "One?", status=status, created_at=datetime.now(timezone.utc), delivery=delivery)

    assert aside(question) == said


# --- the program ------------------------------------------------------------------------------------------------------


async def test_without_a_terminal():
    """It says that it needs one."""
    ended = await aheadless("chat", "--full", "--url", "http://127.0.0.1:9")

    assert (ended.code, ended.out) == (2, "")
    assert "--full needs a terminal" in ended.err


async def test_a_store_without_the_full_screen():
    """The plain chat has none."""
    ended = await aheadless("chat", "--store", "chats.db", "--url", "http://127.0.0.1:9")

    assert (ended.code, ended.err) == (2, "aheadless: --store goes with --full; see aheadless --help\n")


async def test_the_extra_is_missing():
    """The line says what to install."""
    script = "import sys; sys.modules['textual'] = None; from aheadless.cli import main; sys.exit(main())"

    ended = await aheadless("chat", "--full", command=(sys.executable, "-c", script))

    assert ended.code == 2
    assert ended.err.endswith('; run: pip install "aheadless[tui]"\n')


@posix_only
async def test_on_a_terminal(answering):
    """As over SSH: letters and Enter come in one packet, 16 colours are enough, and the screen is given back."""
    server = await answering(["**first** answer"])

    async with terminal("chat", "--full", "--url", server.url, TERM="xterm", COLORTERM="") as screen:
        await screen.until("Enter sends it")
        screen.type("One?\r")
        await screen.until("first answer")
        screen.type(CTRL_C + CTRL_C)
        assert await screen.ended() == 0

    assert not re.search(rb"[34]8;[25];", screen.received)
    assert screen.received.rindex(b"\x1b[?1049l") > screen.received.rindex(b"\x1b[?1049h")


@pytest.fixture
def hang_ups_heeded() -> Iterator[None]:
    """As in a shell. Who runs the tests by `nohup` ignores them, and what is started there inherits that."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@posix_only
@pytest.mark.usefixtures("hang_ups_heeded")
@pytest.mark.parametrize(("end", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("gone", 129)])
async def test_the_end_comes_from_outside(end, code, scripted, tmp_path):
    """By a signal, or as the terminal is closed in mid-stream: the reply is settled and saved."""
    scripted.add(Script(stream_answer(HEAD, framing="close"), drip=b'{"type":"token","token":"a b.\\n\\n"}\n'))
    options = ("--store", str(tmp_path / "chats.db"), "--session", "me", "--url", scripted.url)

    async with terminal("chat", "--full", *options) as screen:
        await screen.until("Enter sends it")
        screen.type("One?\r")
        await screen.until("a b.")
        if end == "gone":
            asyncio.get_running_loop().remove_reader(screen._master)
            os.close(screen._master)
            screen.close = lambda: None  # type: ignore[method-assign]
        else:
            screen.process.send_signal(signal.Signals[end])
        assert await screen.ended() == code

    async with SQLiteStore(tmp_path / "chats.db") as store:
        record = await store.load("me", limit=10)
    assert record is not None
    assert [message.status for message in record.messages] == ["interrupted", "interrupted"]


@posix_only
async def test_a_terminal_that_takes_nothing(answering, tmp_path):
    """As with Ctrl-S: the replies go on, and are on the screen when it goes on."""
    gate = asyncio.Event()
    server = await answering(["first ", gate, *["word **bold** `code`\n\n"] * 2000, "last"])

    async with terminal("chat", "--full", "--store", str(tmp_path / "chats.db"), "--url", server.url) as screen:
        await screen.until("Enter sends it")
        screen.type("One?\r")
        await screen.until("first")
        asyncio.get_running_loop().remove_reader(screen._master)
        gate.set()
        async with SQLiteStore(tmp_path / "chats.db") as store, asyncio.timeout(PATIENCE):
            [session_id] = await store.list()
            while (record := await store.load(session_id, limit=1)) is None or record.messages[0].role == "user":
                await asyncio.sleep(0.05)
        asyncio.get_running_loop().add_reader(screen._master, screen._read)
        await screen.until("more characters; Ctrl-Y copies them all")


async def test_giants():
    """A list that is too long, or too deep, to be laid out is the text that it is; what is around it is not."""
    parse = make_parser().parse

    for giant in ("- \x1b\n" * 400, "> " * 9 + "\x1b\n"):
        tokens = parse(f"before\n\n{giant}\n# after\n")
        kinds = ["paragraph_open", "inline", "paragraph_close", "fence", "heading_open", "inline", "heading_close"]
        assert [token.type for token in tokens] == kinds
        assert tokens[3].content.rstrip() == giant.rstrip().replace("\x1b", "␛")
