"""`aheadless chat` and `aheadless demo` on a terminal, as a person sees them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from functools import partial

import pytest

from aheadless.protocol.events import Event, Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, events, json_answer, stream_answer
from tests.cli.support import ARROW_UP, CTRL_C, CTRL_D, aheadless, posix_only, running, terminal

pytestmark = [posix_only, pytest.mark.slow]  # a process each time

HEAD: list[Event | bytes] = [Start(CONVERSATION_ID), Token("half "), Token("an answer")]
STALLED = Script(stream_answer(HEAD, framing="close"), end="stall")
SILENT = Script(stream_answer([Start(CONVERSATION_ID)], framing="close"), end="stall")


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_an_answer_appears_as_it_is_made(serve):
    """The first token is on the screen while the second is not made yet; then comes the next prompt."""
    gate = asyncio.Event()
    server = await serve("first", gate, " second")

    async with terminal("chat", "--url", server.url) as screen:
        await screen.prompt()
        screen.type("Hi\r")
        await screen.until("first")
        seen = screen.lines[-2:]
        gate.set()
        await screen.prompt()
        lines = screen.lines[-3:]
        screen.type(CTRL_D)
        code = await screen.ended()

    assert seen == ["you: Hi", "first"]
    assert lines == ["you: Hi", "first second", "you:"]
    assert code == 0


async def test_one_session(serve):
    """Each message goes on with the conversation."""
    server = await serve("yes")

    async with terminal("chat", "--session", "me", "--url", server.url) as screen:
        await screen.ask("again")
        await screen.ask("again")
        screen.type("/quit\r")
        assert await screen.ended() == 0

    assert [message.text for message in server.settings.engine.asked[1]] == ["again", "yes", "again"]


async def test_lines_have_a_history(serve):
    """Arrow up brings the last line back."""
    server = await serve("yes")

    async with terminal("chat", "--url", server.url) as screen:
        await screen.ask("my question")
        screen.type(ARROW_UP)
        await screen.until(lambda: screen.lines[-1] == "you: my question")


async def test_commands(serve):
    """A line that begins with a slash is for this program, and is not sent."""
    server = await serve("Hello [bold]you[/bold]\x1b[2J")

    async with terminal("chat", "--session", "me", "--url", server.url) as screen:
        for command, answer in [
            ("/help", "/history   the messages of this session"),
            ("/history", "nothing was said yet"),
            ("/session", "\nme\n"),
            ("/bogus", "/bogus is no command; /help lists them"),
            ("   ", "\nyou:\n"),
            ("Hi", "\nHello [bold]you[/bold]␛[2J\n"),
            ("/history", "user: Hi\nassistant: Hello [bold]you[/bold]␛[2J\n"),
        ]:
            await screen.ask(command)
            assert answer in screen.text
        screen.type("/exit\r")
        assert await screen.ended() == 0

    assert len(server.settings.engine.asked) == 1


async def test_an_error_does_not_end_the_chat(scripted):
    """It is one line, and the next question is asked as ever."""
    scripted.add(
        Script(json_answer({"error": "Unauthorized"}, status=401)),
        Script(stream_answer([*HEAD, Failure("no model")])),
        Script(stream_answer(events("well"))),
    )

    async with terminal("chat", "--url", scripted.url) as screen:
        for said in ("set AHEADLESS_API_KEY", "the answer is not complete", "\nwell\n"):
            await screen.ask("Hi")
            assert said in screen.text
        assert "\nhalf an answer\naheadless: the server gave up: no model;" in screen.text
        await screen.ask("x" * 4001)
        assert "4001 UTF-16 units" in screen.text
        screen.type(CTRL_D)
        assert await screen.ended() == 0


# --- Ctrl-C and other ends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [STALLED, SILENT, Script(b"", end="stall")])
async def test_ctrl_c_stops_the_reply_and_not_the_program(script, scripted):
    """The stream is closed at once, what had come stays, and one can go on; also before the first token."""
    scripted.add(script, Script(stream_answer(events("well"))))

    async with terminal("chat", "--url", scripted.url) as screen:
        await screen.prompt()
        screen.type("Hi\r")
        request = await scripted.arrived(1)
        if script is STALLED:
            await screen.until("half an answer")
        screen.type(CTRL_C)
        await screen.until("[stopped]")
        async with asyncio.timeout(5):
            await request.left.wait()
        await screen.ask("And now?")
        assert "\nwell\n" in screen.text
        await screen.ask("/history")
        assert "assistant: well" in screen.text
        screen.type(CTRL_D)
        assert await screen.ended() == 0

    assert ("assistant: half an answer [interrupted]" in screen.text) == (script is STALLED)


async def test_ctrl_c_many_times_during_a_reply(scripted):
    """An impatient person does not leave by accident."""
    scripted.add(STALLED, STALLED, STALLED)

    def shown(text: str, count: int) -> bool:
        return screen.text.count(text) == count

    async with terminal("chat", "--url", scripted.url) as screen:
        for count in (1, 2, 3):
            await screen.prompt()
            screen.type("Hi\r")
            await screen.until(partial(shown, "\nhalf an answer", count))
            screen.type(CTRL_C)
            await screen.until(partial(shown, "[stopped]", count))
        await screen.prompt()
        screen.type(CTRL_D)
        assert await screen.ended() == 0


async def test_ctrl_c_at_the_prompt(serve):
    """The first one drops the line and says how to leave, a second one leaves; typing in between counts anew."""
    server = await serve("yes")

    async with terminal("chat", "--url", server.url) as screen:
        await screen.prompt()
        screen.type("half a li")
        await screen.until("half a li")
        screen.type(CTRL_C)
        await screen.until("Ctrl-C once more leaves")
        await screen.ask("Hi")
        assert "\nyes\n" in screen.text
        screen.type(CTRL_C)
        await screen.until(lambda: screen.text.count("Ctrl-C once more leaves") == 2)
        await screen.prompt()
        screen.type(CTRL_C)
        assert await screen.ended() == 130

    assert [message.text for message in server.settings.engine.asked[0]] == ["Hi"]


@pytest.mark.parametrize("live", [False, True])
async def test_sigterm(live, scripted):
    """It ends the program, in a reply and at the prompt, and the stream with it."""
    scripted.add(STALLED)

    async with terminal("chat", "--url", scripted.url) as screen:
        await screen.prompt()
        if live:
            screen.type("Hi\r")
            await screen.until("half an answer")
        screen.process.send_signal(signal.SIGTERM)
        assert await screen.ended() == 143

    if live:
        async with asyncio.timeout(5):
            await scripted.requests[0].left.wait()


# Sends a signal when a line has been read or written, which is neither at the prompt nor in a reply.
SIGNAL_BETWEEN = """
import builtins, os, signal, sys
from aheadless.cli import chat, main
write, texts = chat.write, {at!r}
def signalling(text):
    write(text)
    if texts and texts[0] in text:
        texts.pop(0)
        signal.raise_signal({number})
chat.write = signalling
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("at", "number", "typed", "code"),
    [
        (["Ask something"], signal.SIGTERM, [], 143),
        (["Ctrl-C once more"], signal.SIGTERM, [CTRL_C], 143),
        (["Ctrl-C once more"], signal.SIGINT, [CTRL_C], 130),
        (["Ask something", "Ctrl-C once more"], signal.SIGINT, [], 130),
        (["the messages of this session"], signal.SIGTERM, ["/help\r"], 143),
    ],
)
async def test_a_signal_between_two_prompts(at, number, typed, code, scripted):
    """It is not lost: it counts at the next prompt."""
    script = SIGNAL_BETWEEN.replace("{at!r}", repr(at)).replace("{number}", str(int(number)))

    async with terminal("chat", "--url", scripted.url, command=(sys.executable, "-c", script)) as screen:
        for keys in typed:
            await screen.prompt()
            screen.type(keys)
        assert await screen.ended() == code


async def test_a_signal_between_the_prompt_and_the_reply(scripted):
    """It stops the reply, as it would a moment later."""
    scripted.add(STALLED)
    script = (
        "import signal, sys; from aheadless import Chat; from aheadless.cli import main; stream = Chat.stream\n"
        "def signalling(*args):\n signal.raise_signal(signal.SIGINT); return stream(*args)\n"
        "Chat.stream = signalling; sys.exit(main())"
    )

    async with terminal("chat", "--url", scripted.url, command=(sys.executable, "-c", script)) as screen:
        await screen.ask("Hi")
        assert "[stopped]" in screen.text
        screen.type(CTRL_D)
        assert await screen.ended() == 0


async def test_the_terminal_goes_away(scripted):
    """A reply is not written into nowhere."""
    scripted.add(Script(stream_answer(HEAD, framing="close"), drip=b'{"type":"token","token":"."}\n'))

    async with terminal("chat", "--url", scripted.url) as screen:
        await screen.prompt()
        screen.type("Hi\r")
        await screen.until("half an answer")
        asyncio.get_running_loop().remove_reader(screen._master)
        os.close(screen._master)
        async with asyncio.timeout(10):
            await screen.process.wait()
            await scripted.requests[0].left.wait()
        screen._master = os.open(os.devnull, os.O_RDONLY)


# --- looks ------------------------------------------------------------------------------------------------------------


async def test_a_sign_of_life_until_the_first_token(serve):
    """ "thinking" is there while nothing comes, and leaves nothing behind."""
    gate = asyncio.Event()
    server = await serve(gate, "yes")

    async with terminal("chat", "--url", server.url) as screen:
        await screen.prompt()
        screen.type("Hi\r")
        await screen.until("thinking")
        gate.set()
        await screen.until("\nyes")
        await screen.prompt()

        assert screen.lines[-3:] == ["you: Hi", "yes", "you:"]
        assert not screen.screen.cursor.hidden


async def test_no_sign_of_life_on_a_pipe(serve):
    """Scripts get the answer and nothing else."""
    gate = asyncio.Event()
    server = await serve("a", gate, "b")

    async with running("send", "Hi", "--url", server.url) as process:
        await process.until("a")
        gate.set()
        ended = await process.ended()

    assert (ended.out, ended.err) == ("ab\n", "")


@pytest.mark.parametrize("variables", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
async def test_colours(variables, serve):
    """The prompt has one, unless that is not wanted or not possible."""
    gate = asyncio.Event()
    server = await serve(gate, "yes")

    async with terminal("chat", "--url", server.url, **variables) as screen:
        await screen.prompt()
        screen.type("Hi\r")
        if variables.get("TERM") != "dumb":
            await screen.until("thinking")
        gate.set()
        await screen.until("\nyes")
        await screen.prompt()

    coloured = re.search(rb"\x1b\[[0-9;]*3[0-9][;m]", screen.received)
    assert bool(coloured) == (not variables)


async def test_send_on_a_terminal(serve):
    """Nothing that a model says commands the terminal."""
    server = await serve("\x1b[2J\x1b]0;owned\x07", "[red]x[/red]\n")

    async with terminal("send", "Hi", "--url", server.url) as screen:
        assert await screen.ended() == 0
        await screen.until("␛[2J␛]0;owned␇[red]x[/red]")

    assert b"\x1b[2J" not in screen.received
    assert screen.screen.title == ""


# --- without a terminal -----------------------------------------------------------------------------------------------


async def test_a_chat_on_pipes(serve):
    """Lines in, answers out, no prompt; a byte that is no UTF-8 does not end it."""
    server = await serve("yes")

    ended = await aheadless(
        "chat", "--url", server.url, stdin=b"one\n\xff\n/session\n", PYTHONIOENCODING="utf-8:strict"
    )

    assert ended.code == 0
    assert re.fullmatch(r"Ask something\..*\nyes\nyes\ncli:[0-9a-f]{16}\n", ended.out)
    assert [history[-1].text for history in server.settings.engine.asked] == ["one", "\ufffd"]


async def test_the_code_of_a_chat_on_pipes(scripted):
    """It is that of the last failure: a script does not read the errors."""
    unauthorized = Script(json_answer({"error": "Unauthorized"}, status=401))
    scripted.add(unauthorized, Script(json_answer("", status=404)), Script(stream_answer(events("well"))), unauthorized)

    ended = await aheadless("chat", "--url", scripted.url, stdin=b"one\ntwo\nthree\n")
    left = await aheadless("chat", "--url", scripted.url, stdin=b"one\n/quit\n")

    assert (ended.code, left.code) == (5, 4)


async def test_the_reader_of_a_chat_leaves(serve):
    """As for send: quiet."""
    server = await serve("yes")

    async with running("chat", "--url", server.url) as process:
        await process.until("Ask something")
        process.close_stdout()
        ended = await process.ended(b"one\ntwo\n")

    assert (ended.code, ended.err) == (141, "")


# --- demo -------------------------------------------------------------------------------------------------------------

DEMO = (sys.executable, "-W", "error", "-m", "aheadless", "demo")


@pytest.mark.slow
async def test_demo_once():
    """Three questions and their answers; neither a key nor a server is needed."""
    ended = await aheadless("--once", command=DEMO, AHEADLESS_API_KEY="", AHEADLESS_BASE_URL="http://127.0.0.1:1")

    assert (ended.code, ended.err) == (0, "")
    assert len(re.findall(r"^you: .*\n\n(?=\S)", ended.out, re.MULTILINE)) == 3


@pytest.mark.slow
async def test_demo_without_a_terminal_streams():
    """It asks by itself; the first word is there before the last is made."""
    async with running(command=DEMO) as process:
        await process.until("?\n\n")
        while not (begun := process.out.partition("?\n\n")[2]):
            assert await process.read()
        ended = await process.ended()

    answer = ended.out.partition("?\n\n")[2].partition("\nyou: ")[0]
    assert answer.startswith(begun)
    assert len(begun) < len(answer)
    assert (ended.code, ended.out.count("you: ")) == (0, 3)


@pytest.mark.slow
async def test_demo_on_a_terminal():
    """A chat with the server in the same process."""
    async with terminal(command=DEMO, AHEADLESS_API_KEY="") as screen:
        await screen.until("A server and a chat in one process")
        await screen.ask("What is aheadless?")
        await screen.ask("How do I stop a reply?")
        screen.type(CTRL_D)
        assert await screen.ended() == 0


async def test_sigint_during_the_demo():
    """The server ends with it."""
    async with running("--once", command=DEMO) as process:
        await process.until("you: ")
        process.process.send_signal(signal.SIGINT)
        ended = await process.ended()

    assert ended.code == 130
    assert ended.err.count("\n") == 1
