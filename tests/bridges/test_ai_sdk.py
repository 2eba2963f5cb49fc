"""The web back end by the Vercel AI SDK's own client, as it comes from npm, versions 6 and 7."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aheadless.protocol.events import Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests import ai_sdk
from tests.bridges.page.support import Held, environment, serve

pytestmark = [pytest.mark.sockets, pytest.mark.slow]  # it starts Node each time, and tests no Python


class Client:
    """The SDK's chat in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def tell(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def hear(self, **wanted: object) -> list[dict[str, Any]]:
        """Return all that it says up to and with this."""
        assert self._process.stdout is not None
        heard: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while wanted not in heard:
                line = await self._process.stdout.readline()
                assert line, f"it ended after {heard}"
                heard.append(json.loads(line))
        return heard


@pytest.fixture
async def api() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as server:
        yield server


@pytest.fixture(params=["ai6", "ai7"])
async def client(request: pytest.FixtureRequest, api: ScriptedServer, tmp_path: Path) -> AsyncIterator[Client]:
    """A chat of this version against the example's back end."""
    async with serve(environment(api.url, tmp_path)) as url, running(request.param, f"{url}/chat") as client:
        yield client


@asynccontextmanager
async def running(version: str, url: str) -> AsyncIterator[Client]:
    assert (ai_sdk.packages() / version).is_dir()
    process = await asyncio.create_subprocess_exec(
        *(ai_sdk.node(), ai_sdk.FOLDER / "client.js", version, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        await process.communicate()


def texts(heard: list[dict[str, Any]]) -> list[str]:
    """Return how the text grew, each state once."""
    found = [said["text"] for said in heard if "text" in said]
    return list(dict.fromkeys(found))


async def test_a_conversation(client: Client, api: ScriptedServer):
    """Each text arrives in its pieces and whole; of the history that the SDK posts only the last question goes on."""
    held = Held("Hel", "lo ", "there")
    api.add(held.script, Script(stream_answer(events("Good", "bye"))))
    client.tell(send="Hi")
    for shown in ["Hel", "Hello ", "Hello there"]:
        held.let_go()
        await client.hear(text=shown)
    held.finish()
    heard = await client.hear(idle=True)
    assert {"status": "ready"} in heard

    client.tell(send="Bye")
    heard = await client.hear(idle=True)

    assert texts(heard) == ["Good", "Goodbye"]
    assert [json.loads(request.body)["message"] for request in api.stored] == ["Hi", "Bye"]
    assert len({json.loads(request.body)["sessionId"] for request in api.stored}) == 1


async def test_a_reply_that_fails(client: Client, api: ScriptedServer):
    """What had come stays, and the error is one that people can read."""
    api.add(Script(stream_answer([Start(CONVERSATION_ID), Token("Half"), Failure("at 10.0.0.1: key=abc")])))

    client.tell(send="Hi")
    heard = await client.hear(idle=True)

    assert texts(heard) == ["Half"]
    assert [said for said in heard if "error" in said or "status" in said][-2:] == [
        {"status": "error"},
        {"error": "Sorry, no answer could be given."},
    ]


async def test_a_reply_that_breaks_off(client: Client, api: ScriptedServer):
    """It does not pass for a whole one."""
    script = Script(stream_answer(events("Half", " and half")))
    api.add(script.cut(len(script.data) - 120, "rst"))

    client.tell(send="Hi")
    heard = await client.hear(idle=True)

    assert {"status": "error"} in heard
    assert {"status": "ready"} not in heard


async def test_stop(client: Client, api: ScriptedServer):
    """The API's connection is closed, and the next question goes through."""
    held = Held("Once", " upon")
    api.add(held.script)
    client.tell(send="Tell me a story")
    held.let_go()
    await client.hear(text="Once")

    client.tell(stop=True)

    await client.hear(idle=True)
    async with asyncio.timeout(30):
        await api.requests[0].left.wait()
    client.tell(send="Hi")
    assert texts(await client.hear(idle=True)) == ["Hello", "Hello world"]


@pytest.mark.parametrize(
    ("status", "text"), [(401, "The chat does not work right now."), (429, "Too many questions right now.")]
)
async def test_a_refused_turn(client: Client, api: ScriptedServer, status: int, text: str):
    """The status stays what it is, so that the SDK reports an error with what the back end says."""
    api.add(Script(json_answer({"error": "no"}, status=status, headers={"Retry-After": "300"})))

    client.tell(send="Hi")
    heard = await client.hear(idle=True)

    [error] = [said["error"] for said in heard if "error" in said]
    assert text in error
    assert texts(heard) == []
