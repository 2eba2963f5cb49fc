"""`aheadless conversations` and `aheadless sessions`."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from aheadless import ChatClient, cli
from aheadless.server import EchoEngine, RunningServer, ServerSettings, run_server
from aheadless.stores import SQLiteStore
from aheadless.testing import Script, ScriptedServer, json_answer
from tests.cli.support import KEY, aheadless, posix_only, terminal
from tests.support import ADMIN_KEY

pytestmark = pytest.mark.slow  # a process each time


@pytest.fixture
async def server():
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=EchoEngine(), rate_limit=None)
    async with run_server(settings) as running:
        async with ChatClient(running.url, api_key=KEY) as client:
            await client.chat("anna").stream("Hello [b]you[/b] \x1b[31m")
            await client.chat("bert").stream("two\nlines")
        yield running


def where(server: RunningServer | ScriptedServer) -> dict[str, Any]:
    return {"AHEADLESS_BASE_URL": server.url, "AHEADLESS_ADMIN_KEY": ADMIN_KEY}


async def listed(server: RunningServer) -> list[dict[str, str]]:
    ended = await aheadless("conversations", "--json", **where(server))
    found = json.loads(ended.out)
    assert (ended.code, ended.err, found["total"]) == (0, "", len(found["conversations"]))
    conversations: list[dict[str, str]] = found["conversations"]
    return conversations


async def test_list(server):
    """The newest first, a line for each, and nothing in it that commands a terminal."""
    ended = await aheadless("conversations", **where(server))

    assert (ended.code, ended.err) == (0, "")
    head, bert, anna = ended.out.splitlines()
    assert head.split() == ["Conversation", "Session", "Updated", "Last", "message"]
    assert "  bert  " in bert
    assert bert.endswith("Z  two lines")
    assert anna.endswith("Z  Hello [b]you[/b] ␛[31m")


async def test_list_as_json(server):
    """Whole times, and ids to go on with."""
    bert, anna = await listed(server)

    assert [bert["sessionId"], anna["sessionId"]] == ["bert", "anna"]
    assert bert["updatedAt"].endswith("+00:00")
    assert anna["lastMessage"] == "Hello [b]you[/b] \x1b[31m"


async def test_limit(server):
    """What is left out is told."""
    ended = await aheadless("conversations", "--limit", "1", **where(server))

    assert len(ended.out.splitlines()) == 2
    assert (ended.code, ended.err) == (0, "aheadless: these are 1 of 2\n")
    refused = await aheadless("conversations", "--limit", "201", **where(server))
    assert (refused.code, refused.out) == (2, "")
    assert "from 1 to 200" in refused.err


async def test_thread(server):
    """Each message with its role and time, its lines as they are."""
    conversation_id = (await listed(server))[0]["conversationId"]

    shown = await aheadless("conversations", conversation_id, **where(server))
    told = await aheadless("conversations", conversation_id, "--json", **where(server))

    assert shown.code == told.code == 0
    assert [block.partition("\n")[2] for block in shown.out.split("\n\n")[:-1]] == ["two\nlines"] * 2
    assert shown.out.startswith("user, 2")
    assert [(message["role"], message["content"]) for message in json.loads(told.out)["messages"]] == [
        ("user", "two\nlines"),
        ("assistant", "two\nlines"),
    ]


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (json_answer({"error": "Unauthorized"}, status=401), 4, "the admin key is refused; set AHEADLESS_ADMIN_KEY"),
        (json_answer({"error": "Conversation\nnot found"}, status=404), 5, "check the conversation's id"),
        (json_answer({"error": "ADMIN_API_KEY is not configured"}, status=503), 7, "ADMIN_API_KEY is not configured"),
        (json_answer({"conversation": None}), 7, "conversation"),
        (b"", 8, "without an answer"),
    ],
)
async def test_failures(scripted, answer, code, said):
    """One line, the usual exit codes, and nothing about a message that nobody has sent."""
    scripted.add(*[Script(answer, end="fin")] * 2)

    ended = await aheadless("conversations", "x", **where(scripted))

    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1)
    assert said in ended.err
    assert "stored" not in ended.err
    assert ADMIN_KEY not in ended.err


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["aheadless", *arguments])
    return cli.main()


def test_without_a_key(monkeypatch, capsys, tmp_path):
    """The option is named, a file with something else in it is not shown, and a URL is needed."""
    assert run(monkeypatch, "conversations", "--url", "http://127.0.0.1:1") == 2
    assert "pass --admin-key-file or set AHEADLESS_ADMIN_KEY" in capsys.readouterr().err
    (tmp_path / "key").write_text(f"{ADMIN_KEY} x\n", "ascii")
    (tmp_path / "wrong").write_bytes(b"\xff")
    for name in ("key", "wrong"):
        arguments = ["conversations", "--url", "http://127.0.0.1:1", "--admin-key-file", str(tmp_path / name)]
        run(monkeypatch, *arguments)
        assert ADMIN_KEY not in capsys.readouterr().err
    assert run(monkeypatch, "conversations") == 2
    assert "--url or set AHEADLESS_BASE_URL" in capsys.readouterr().err


async def test_key_from_a_file(server, tmp_path):
    """As it stands there, without its newline."""
    (tmp_path / "key").write_text(f"{ADMIN_KEY}\n", "ascii")

    ended = await aheadless("conversations", "--url", server.url, "--admin-key-file", str(tmp_path / "key"))

    assert ended.code == 0
    assert "anna" in ended.out


@posix_only
async def test_on_a_terminal(server):
    """The table is as wide as the screen; what does not fit is cut."""
    async with ChatClient(server.url, api_key=KEY) as client:
        await client.chat("carl").stream("long " * 100)

    async with terminal("conversations", **where(server)) as screen:
        assert await screen.ended() == 0
        await screen.until("…")

    assert all(name in screen.text for name in ("anna", "bert", "carl", "Last message"))
    assert max(map(len, screen.lines)) <= 100
    assert len(screen.lines) == 5


async def test_sessions(server, tmp_path):
    """What a file of sessions has, the last saved first; a turn that did not end says so."""
    file = tmp_path / "sessions.db"
    async with ChatClient(server.url, api_key=KEY, store=SQLiteStore(file)) as client:
        await client.chat("first").stream("Hello")
        async for _event in client.chat("second").stream("one two three"):
            break

    table = await aheadless("sessions", "--store", str(file))
    told = await aheadless("sessions", "--store", str(file), "--json")

    assert (table.code, table.err) == (0, "")
    head, second, first = table.out.splitlines()
    assert head.split() == ["Session", "Messages", "Last", "at", "Status", "Last", "message"]
    assert first.split()[:2] == ["first", "2"]
    assert first.split()[-2:] == ["complete", "Hello"]
    assert second.split()[0] == "second"
    assert "interrupted" in second
    found = json.loads(told.out)["sessions"]
    assert [session["sessionId"] for session in found] == ["second", "first"]
    assert found[1]["lastMessage"]["status"] == "complete"
    assert found[1]["conversationId"]


async def test_sessions_that_are_not_there(tmp_path):
    """Looking makes no file; a file of another kind is refused."""
    missing = await aheadless("sessions", "--store", str(tmp_path / "none.db"))
    (tmp_path / "text").write_text("no database, but long enough to be looked at\n" * 100)
    other = await aheadless("sessions", "--store", str(tmp_path / "text"))

    assert (missing.code, missing.out) == (2, "")
    assert "does not exist" in missing.err
    assert not (tmp_path / "none.db").exists()
    assert (other.code, other.out, other.err.count("\n")) == (7, "", 1)
