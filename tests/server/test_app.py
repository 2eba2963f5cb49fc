"""The life of a server: how it starts, on what it refuses to, and what is left when it has ended."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from aheadless import ChatClient, ConfigurationError, Message, Secret, StoreError
from aheadless.server import (
    AnswersEngine,
    EchoEngine,
    OpenAIEngine,
    ScriptedEngine,
    ServerSettings,
    app,
    create_app,
    run_server,
)
from aheadless.server.app import make_engine
from aheadless.server.connection import ServerLog
from tests.server.wire import GOOD, ask, connect, post, request
from tests.support import ADMIN_KEY, KEY


async def test_what_a_running_server_tells() -> None:
    """Where it is and which keys open it; never in its repr."""
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine="echo")
    async with run_server(settings) as server:
        assert server.settings is settings
        assert (server.api_key, server.admin_key) == (Secret(KEY), Secret(ADMIN_KEY))
        assert server.url.startswith("http://127.0.0.1:")
        assert KEY not in repr(server)
        assert ADMIN_KEY not in repr(server)
        async with ChatClient(server.url, api_key=server.api_key) as client:
            assert (await client.chat("s").send("hello")).text == "hello"

    with pytest.raises(OSError, match=r"[Cc]onnect"):
        await ask(server.url, post())


async def test_a_made_key_opens() -> None:
    """Out of the box: no key, no admin key."""
    async with run_server(ServerSettings(port=0)) as server, ChatClient(server.url, api_key=server.api_key) as client:
        assert (await client.chat("s").send("What is aheadless?")).text
        assert server.admin_key is None
        assert (await ask(server.url, post())).status == 401


async def test_ipv6() -> None:
    """Its address stands in brackets."""
    try:
        async with run_server(ServerSettings(host="::1", port=0, api_key=KEY, engine="echo")) as server:
            assert server.url.startswith("http://[::1]:")
            assert (await ask(server.url, post())).status == 200
    except OSError:
        pytest.skip("this machine has no IPv6")


async def test_an_address_in_use(tmp_path: Path) -> None:
    """Is an OSError, and nothing is left of the server that could not start."""
    async with run_server(ServerSettings(port=0, engine="echo")) as first:
        port = int(first.url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match=r"in use|address"):
            async with run_server(ServerSettings(port=port, engine="echo", database=tmp_path / "chat.db")):
                pass
        assert not (tmp_path / "chat.db-wal").exists(), "the database is closed"


async def test_a_database_that_is_refused(tmp_path: Path) -> None:
    """Before a socket opens; the next server on this port can start."""
    (tmp_path / "chat.db").write_bytes(b"nonsense " * 1000)

    with pytest.raises(StoreError, match="cannot be opened"):
        async with run_server(ServerSettings(port=0, engine="echo", database=tmp_path / "chat.db")):
            pass


async def test_nothing_is_left(tmp_path: Path) -> None:
    """No thread, no lock, no file of a database in use; the engine is closed with its server."""
    before = {*threading.enumerate()}
    async with run_server(ServerSettings(port=0, api_key=KEY, database=tmp_path / "chat.db")) as server:
        assert (await ask(server.url, post())).status == 200
        threads = [thread for thread in threading.enumerate() if thread not in before]
    for thread in threads:
        thread.join(5)

    assert [thread.name.split("_")[0] for thread in threads] == ["aheadless-storage", "aheadless-answers"]
    assert not any(thread.is_alive() for thread in threads)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.db"]


async def test_the_database_is_closed_although_the_engine_fails_to(tmp_path: Path) -> None:
    """One failure does not hide behind another."""

    class Engine(ScriptedEngine):
        async def aclose(self) -> None:
            raise RuntimeError("stuck")

    with pytest.raises(RuntimeError, match="stuck"):
        async with run_server(
            ServerSettings(port=0, api_key=KEY, engine=Engine(["a"]), database=tmp_path / "chat.db")
        ) as server:
            assert (await ask(server.url, post())).status == 200

    assert not (tmp_path / "chat.db-wal").exists()


async def test_a_server_that_ends_while_clients_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections, half requests and streams that nobody reads hold up nothing; a reply in time is stored."""
    monkeypatch.setattr(app, "LAST_WORDS", 0.05)
    gate, path = asyncio.Event(), tmp_path / "chat.db"
    settings = ServerSettings(port=0, api_key=KEY, engine=ScriptedEngine(["x" * 900_000, gate, "end"]), database=path)
    server = run_server(settings)
    running = await server.__aenter__()
    async with connect(running.url) as idle, connect(running.url) as half, connect(running.url) as deaf:
        assert await idle.is_open()
        half.writer.write(post()[:-3])
        deaf.writer.write(post("/v1/chat/stream"))
        await deaf.reader.readuntil(b"start")
        ending = asyncio.create_task(server.__aexit__(None, None, None))
        assert await idle.reader.read() == b""
        gate.set()
        async with asyncio.timeout(5):
            await ending

    with sqlite3.connect(path) as database:
        assert database.execute("SELECT role, length(content) FROM messages").fetchall() == [
            ("user", 2),
            ("assistant", 900_003),
        ]
    database.close()


async def test_a_request_that_is_still_being_sent_when_the_server_ends(tmp_path: Path) -> None:
    """Its connection is closed at once and nothing of it is stored; a reply that is being written is finished."""
    gate, path = asyncio.Event(), tmp_path / "chat.db"
    settings = ServerSettings(port=0, api_key=KEY, engine=ScriptedEngine(["a", gate]), database=path)
    server = run_server(settings)
    running = await server.__aenter__()
    async with connect(running.url) as late, connect(running.url) as busy:
        late.writer.write(post()[:-5])
        busy.writer.write(post("/v1/chat/stream"))
        await busy.reader.readuntil(b"token")
        ending = asyncio.create_task(server.__aexit__(None, None, None))
        assert await late.reader.read() == b""
        gate.set()
        await busy.reader.readuntil(b"done")
    await ending

    with sqlite3.connect(path) as database:
        assert database.execute("SELECT role, content FROM messages").fetchall() == [("user", "Hi"), ("assistant", "a")]
    database.close()


def test_engines() -> None:
    """By name, or one's own; a name that cannot work is said when the application is made."""

    class Own:
        def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
            raise NotImplementedError

    own = Own()

    assert isinstance(make_engine(ServerSettings()), AnswersEngine)
    assert isinstance(make_engine(ServerSettings(engine="echo")), EchoEngine)
    assert isinstance(make_engine(ServerSettings(engine="openai", openai_model="m")), OpenAIEngine)
    assert make_engine(ServerSettings(engine=own)) is own
    with pytest.raises(ConfigurationError, match="does not exist"):
        create_app(ServerSettings(answers_folder="/nowhere/at/all"))


@asynccontextmanager
async def run_app(settings: ServerSettings) -> AsyncIterator[str]:
    """Run the application by aiohttp's own means, with its defaults."""
    runner = web.AppRunner(create_app(settings))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_the_application_by_itself() -> None:
    """In a runner of one's own it answers alike; aiohttp inflates the bodies then."""
    async with run_app(ServerSettings(api_key=KEY, engine="echo", rate_limit=None)) as url:
        statuses = [
            (await ask(url, asked)).status
            for asked in (
                post(),
                post("/v1/chat/stream"),
                post("/v1/chat", gzip.compress(GOOD), "Content-Encoding: gzip"),
                post("/v1/chat", gzip.compress(b" " * 3_000_000), "Content-Encoding: gzip"),
                post("/v1/chat", b"nope", "Content-Encoding: gzip"),
                request("GET", "/nowhere"),
                request("GET", "/health"),
            )
        ]

    assert statuses == [200, 200, 200, 413, 400, 404, 200]


async def test_what_is_no_http_in_a_runner_of_ones_own(caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp answers it; its log holds neither the key nor a traceback."""
    caplog.set_level("DEBUG", "aheadless.server")
    async with run_app(ServerSettings(api_key=KEY, engine="echo")) as url:
        assert (await ask(url, request("POST", "/v1/chat", b"", f"x-api-key: {KEY}\x7f"))).status == 400

    assert [record.getMessage() for record in caplog.records if record.name != "aiohttp.access"] == [
        "Error handling request from 127.0.0.1: BadHttpMessage"
    ]
    assert "Traceback" not in caplog.text
    assert KEY not in caplog.text


def test_other_errors_are_logged_in_full(caplog: pytest.LogCaptureFixture) -> None:
    """Only what strangers can cause is cut short."""
    try:
        raise RuntimeError("ours")
    except RuntimeError as exc:
        ServerLog().exception("Unhandled exception", exc_info=exc)

    assert "Traceback" in caplog.text
    assert caplog.records[0].levelname == "ERROR"
