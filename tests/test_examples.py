"""Every program in docs/examples runs, against a real server, and says what it is there to show."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from aheadless import Message
from aheadless.server import EchoEngine, RunningServer, ServerSettings, run_server
from tests.support import ADMIN_KEY, KEY

FOLDER = Path(__file__).parents[1] / "docs" / "examples"

# What each program writes, as a pattern for the whole of it. Those below have tests of their own.
SHOWN = {
    "quickstart.py": r"What happens when the stream breaks\?\n\[36 characters in \d+\.\d s, conversation [a-z0-9]{32}\]\n",
    "callbacks.py": r"\[conversation [a-z0-9]{32}\]\nHello there\n\[saved 11 characters\]\n\[the reply: 'Hello there'\]\n",
    "stop_button.py": r"Tell .*\n\[interrupted\]\n\[kept \d+ characters\]\n\[\['interrupted', 'interrupted'\]\]\n",
    "many_sessions.py": r"50 of 50 users were answered twice\n",
    "json_reply.py": r"Hello\nuser: Hello \[complete\]\nassistant: Hello \[complete\]\n",
    "errors.py": r"never sent: message is empty\nthe key is wrong: 401, rejected\n",
    "read_back.py": r"left after 'Tell '\nthe whole reply: 'Tell me a story that is longer than one word'\n",
    "own_engine.py": r"HELLO FROM THE OTHER SIDE\n",
    "own_session.py": r"Hello\nclosed: False\n",
}
TERMINAL = "terminal.py"
WEB_BACKENDS = ["fastapi_app.py", "web_backend_aiohttp.py"]
WORKERS = "workers_on_redis.py"  # it starts a server of its own: tests/stores/test_workers_demo.py
BRIDGES = {"discord_bot.py", "slack_bot.py", "telegram_bot.py"}  # they need a platform: tests/bridges


class UnhurriedEcho(EchoEngine):
    """An echo that lets other tasks have their say between two words: a reply that can be stopped in the middle."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        async for word in super().reply(history):
            await asyncio.sleep(0.005)
            yield word


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=UnhurriedEcho(), rate_limit=None)
    async with run_server(settings) as running:
        yield running


def environment(server: RunningServer, **more: str) -> dict[str, str]:
    """Return what a program finds in its environment."""
    keys = {"AHEADLESS_BASE_URL": server.url, "AHEADLESS_API_KEY": KEY, "AHEADLESS_ADMIN_KEY": ADMIN_KEY}
    return {**os.environ, **keys, **more}


def test_every_example_is_run():
    """A new program has a row here or a test of its own."""
    assert {*SHOWN, TERMINAL, *WEB_BACKENDS, WORKERS, *BRIDGES} == {path.name for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", SHOWN)
async def test_example(name: str, server: RunningServer):
    """It ends well, complains about nothing, and writes what it should."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        FOLDER / name,
        env=environment(server),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()

    assert (process.returncode, err.decode()) == (0, "")
    assert re.fullmatch(SHOWN[name], out.decode()), out.decode()


@pytest.fixture(params=WEB_BACKENDS)
async def web_backend(request: pytest.FixtureRequest, server: RunningServer) -> AsyncIterator[str]:
    """Run a web back end and give the URL of its questions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        FOLDER / request.param,
        env=environment(server, PORT=str(port), PYTHONUNBUFFERED="1", PYTHONWARNINGS="error"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while b"unning on" not in (line := await process.stdout.readline()):
                assert line, "it did not start"
        yield f"http://127.0.0.1:{port}/ask"
    finally:
        process.terminate()
        await process.communicate()


def browser() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))


async def test_web_backend_streams_replies(web_backend: str, server: RunningServer):
    """A visitor gets the reply, event by event, and stays in one conversation; another has another one."""
    conversations = []
    async with browser() as one, browser() as other:
        for visitor in (one, one, other):
            async with visitor.post(web_backend, json={"message": "Hello there"}) as answer:
                *_, last = [json.loads(line) async for line in answer.content]
                assert (answer.status, last["message"]) == (200, "Hello there")
                conversations.append(last["conversationId"])

    assert [conversation == conversations[0] for conversation in conversations] == [True, True, False]


async def test_web_backend_refuses(web_backend: str):
    """What the API would not take is the visitor's mistake, and other sites get nothing."""
    async with browser() as visitor:
        async with visitor.post(web_backend, json={"message": ""}) as answer:
            assert (answer.status, (await answer.json())["error"]) == (400, "The message is empty.")
        async with visitor.post(
            web_backend, json={"message": "Hi"}, headers={"Origin": "https://evil.example"}
        ) as answer:
            assert answer.status == 403


async def test_web_backend_does_not_pass_half_a_reply_as_a_whole(web_backend: str):
    """The visitor's second question stops the first, whose answer then says that it was stopped."""
    async with browser() as visitor:
        async with visitor.post(web_backend, json={"message": "Hi"}) as answer:
            await answer.read()
        async with visitor.post(web_backend, json={"message": "one " * 500}) as first:
            assert await first.content.readline()
            async with visitor.post(web_backend, json={"message": "two"}) as second:
                assert b'"done"' in await second.read()
            *_, last = [json.loads(line) async for line in first.content]

    assert (last["type"], last["error"]) == ("error", "The answer was stopped.")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
async def test_terminal_stops_an_answer_and_goes_on(server: RunningServer):
    """Ctrl-C ends the answer and not the program; the next question is answered, and the end of input is the end."""
    terminal = await asyncio.create_subprocess_exec(
        sys.executable,
        FOLDER / TERMINAL,
        env=environment(server),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert terminal.stdin is not None
    assert terminal.stdout is not None
    async with asyncio.timeout(30):
        terminal.stdin.write(b"one " * 200 + b"\n")
        shown = await terminal.stdout.readuntil(b"one one ")
        terminal.send_signal(signal.SIGINT)
        shown += await terminal.stdout.readuntil(b" [stopped]\n> ")
        terminal.stdin.write(b"two\n\xc2\x9b\x1b[2Jthree\n")
        terminal.stdin.close()
        out, err = await terminal.communicate()

    assert re.fullmatch(rb"> (one )+(one?|o)? ?\[stopped\]\n> ", shown)
    assert (out, err, terminal.returncode) == (b"two\n> [2Jthree\n> \n", b"", 0)
