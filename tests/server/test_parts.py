"""The server's parts on their own: settings, limiter, storage, engines."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from aheadless import (
    AheadlessError,
    ConfigurationError,
    Message,
    ProtocolError,
    RateLimit,
    Secret,
    ServerError,
    StoreError,
)
from aheadless.protocol.codec import ChatRequest
from aheadless.protocol.events import Token
from aheadless.server import (
    AnswersEngine,
    EchoEngine,
    OpenAIEngine,
    ReplyEngine,
    ScriptedEngine,
    ServerSettings,
    create_app,
)
from aheadless.server.body import parse_body
from aheadless.server.engines.answers import MAX_PASSAGE, default_folder, split_passages
from aheadless.server.engines.simple import words
from aheadless.server.limiter import WindowLimiter
from aheadless.server.settings import settings_from_env
from aheadless.server.storage import Storage
from tests.support import ADMIN_KEY, KEY


def asked(text: str) -> list[Message]:
    return [Message("user", text, created_at=datetime.now(timezone.utc))]


async def collect(tokens: AsyncIterator[str]) -> list[str]:
    return [token async for token in tokens]


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_key_is_made_on_loopback_only() -> None:
    """Two servers never share one; another address needs its own."""
    first, second = ServerSettings(), ServerSettings(host="::1")

    assert first.key_was_made
    assert len(first.api_key.reveal()) >= 24
    assert first.api_key != second.api_key
    assert not ServerSettings(api_key=KEY).key_was_made
    for host in ("0.0.0.0", "192.168.1.1", "example.org", "::"):
        with pytest.raises(ConfigurationError, match="needs an api_key"):
            ServerSettings(host=host)
        assert ServerSettings(host=host, api_key=KEY).api_key == Secret(KEY)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": "short"},
        {"api_key": "x" * 23},
        {"api_key": "é" * 30},
        {"api_key": ""},
        {"admin_key": "short"},
        {"api_key": KEY, "admin_key": KEY},
        {"port": -1},
        {"port": 65536},
        {"port": "4000"},
        {"host": ""},
        {"engine": "magic"},
        {"rate_limit": 30},
        {"trusted_proxies": -1},
        {"cors_origins": ["example.org"]},
        {"cors_origins": ["https://example.org/"]},
        {"max_replies": 0},
        {"reply_timeout": 0},
        {"shutdown_timeout": float("nan")},
        {"answers_delay": -1},
        {"production": "no"},
        {"system_prompt": None},
        {"answers_folder": 5},
        {"openai_base_url": 5},
        {"openai_model": 5},
        {"database": None},
    ],
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    """Refused before a socket opens, and no key is shown."""
    with pytest.raises(ConfigurationError) as caught:
        ServerSettings(**settings)

    assert KEY not in str(caught.value)
    assert "short" not in str(caught.value)


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its variable; what is given counts more."""
    for name, value in {
        "AHEADLESS_HOST": "localhost",
        "AHEADLESS_PORT": "4001",
        "WIDGET_API_KEY": KEY,
        "ADMIN_API_KEY": ADMIN_KEY,
        "AHEADLESS_RATE_LIMIT": "5/10",
        "AHEADLESS_CORS_ORIGINS": "https://a.example, https://b.example",
        "AHEADLESS_PRODUCTION": "yes",
        "OPENAI_MODEL": "m",
    }.items():
        monkeypatch.setenv(name, value)

    settings = ServerSettings.from_env(port=0, engine=None)

    assert (settings.host, settings.port, settings.engine) == ("localhost", 0, "answers")
    assert (settings.api_key, settings.admin_key) == (Secret(KEY), Secret(ADMIN_KEY))
    assert settings.rate_limit == RateLimit(5, per=10)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.production
    assert settings.openai_model == "m"
    assert KEY not in repr(settings)
    monkeypatch.setenv("AHEADLESS_RATE_LIMIT", "off")
    assert ServerSettings.from_env().rate_limit is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AHEADLESS_PORT", "x"),
        ("AHEADLESS_RATE_LIMIT", "many"),
        ("AHEADLESS_PRODUCTION", "maybe"),
        ("AHEADLESS_RATE_LIMIT", "0"),
    ],
)
def test_wrong_variables(variable: str, value: str) -> None:
    """The error names the variable."""
    with pytest.raises(ConfigurationError, match=variable):
        settings_from_env({variable: value})


# --- the rate limiter -------------------------------------------------------------------------------------------------


def test_window() -> None:
    """It opens with the first request; refused ones do not extend it."""
    limiter = WindowLimiter(RateLimit(2, per=10))

    assert [limiter.allow("a", now) for now in (0, 9, 9.5, 9.9)] == [True, True, False, False]
    assert limiter.allow("b", 9.9)
    assert [limiter.allow("a", now) for now in (10, 10.1, 10.2)] == [True, True, False]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5)), max_size=60), st.integers(1, 4))
def test_never_more_than_the_limit_in_a_window(requests: list[tuple[str, float]], limit: int) -> None:
    """Between the opening of a window and its end, at most so many pass; the first of a window always does."""
    limiter = WindowLimiter(RateLimit(limit, per=10))
    now, opened, used = 0.0, dict[str, float](), dict[str, int]()
    for client, gap in requests:
        now += gap
        if client not in opened or now - opened[client] >= 10:
            opened[client], used[client] = now, 0
        expected = used[client] < limit
        assert limiter.allow(client, now) is expected
        used[client] += expected


def test_a_flood_of_clients_is_bounded() -> None:
    """The oldest windows are forgotten, and closed ones cost nothing."""
    limiter = WindowLimiter(RateLimit(1, per=10), max_clients=100)
    for number in range(1000):
        assert limiter.allow(str(number), 0)
    assert len(limiter) == 100
    assert not limiter.allow("999", 1)

    limiter.allow("x", 11)
    assert len(limiter) == 1


# --- the body ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=50))
def test_no_body_raises_anything_else(data: bytes) -> None:
    """Whatever comes is read or is a ValueError."""
    try:
        assert isinstance(parse_body(data), dict | list)
    except ValueError:
        pass


# --- storage ----------------------------------------------------------------------------------------------------------


async def test_storage_survives_a_restart(tmp_path: Path) -> None:
    """One conversation for a session, also after the process has ended; the folder is made."""
    path = tmp_path / "new" / "chat.db"
    storage = await Storage.open(path)
    first, history = await storage.add_question("s", "one")
    await storage.add_reply(first, "two")
    await storage.aclose()
    storage = await Storage.open(path)
    second, history = await storage.add_question("s", "three")
    await storage.aclose()

    assert first == second
    assert [(message.role, message.text) for message in history] == [
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
    ]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_newer_schema(tmp_path: Path) -> None:
    """Refused, and nothing is written."""
    path = tmp_path / "chat.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match="newer version"):
        await Storage.open(path)

    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database at all, but long enough to be looked at" * 20])
async def test_corrupt_database(tmp_path: Path, content: bytes) -> None:
    """A clear error, and the file is kept."""
    path = tmp_path / "chat.db"
    path.write_bytes(content)

    with pytest.raises(StoreError, match="cannot be opened"):
        await Storage.open(path)

    assert path.read_bytes() == content


async def test_last_message_is_cut_as_javascript_cuts(tmp_path: Path) -> None:
    """500 UTF-16 units; half an emoji becomes U+FFFD."""
    storage = await Storage.open(":memory:")
    await storage.add_question("s", "x" + "😀" * 300)
    page: Any = await storage.conversations(1)
    await storage.aclose()

    assert page["conversations"][0]["lastMessage"] == "x" + "😀" * 249 + "\ufffd"


# --- engines ----------------------------------------------------------------------------------------------------------


async def test_echo() -> None:
    """Word by word, every blank kept."""
    assert await collect(EchoEngine().reply(asked(" a  b\nc "))) == [" a  ", "b\n", "c "]
    assert isinstance(EchoEngine(), ReplyEngine)


@given(st.text())
def test_words_lose_nothing(text: str) -> None:
    """The pieces are the text."""
    assert "".join(words(text)) == text


async def test_scripted_repeats_its_last_script() -> None:
    """And takes pauses."""
    engine = ScriptedEngine(["a"], ["b", 0.0, "c"])

    replies = [await collect(engine.reply(asked("x"))) for _ in range(3)]

    assert replies == [["a"], ["b", "c"], ["b", "c"]]
    assert await collect(ScriptedEngine().reply(asked("x"))) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "cats.md").write_text(
        "# Cats\n\nCats sleep.\n\n## What do cats eat?\n\nMice and fish.\n\n```\n# no heading\n```\n", "utf-8"
    )
    (tmp_path / "sub" / "dogs.md").write_text("Dogs bark.\n\n# Walking dogs\n\n" + "Walk. " * 400 + "\n\nEnd.", "utf-8")
    (tmp_path / "notes.txt").write_text("Birds fly.", "utf-8")
    return tmp_path


async def test_answers(folder: Path) -> None:
    """The best passages, with their headings and file names; and plain words when there is none."""
    engine = AnswersEngine(folder, delay=0.0001)

    answer = "".join(await collect(engine.reply(asked("what do cats eat?"))))
    assert answer.startswith("**What do cats eat?** (cats.md)\n\nMice and fish.\n\n```\n# no heading\n```")
    assert "**Walking dogs** (sub/dogs.md)" in "".join(await collect(engine.reply(asked("walk"))))
    for nothing in ("birds", "the", "?!", "zebra"):
        assert "found nothing" in "".join(await collect(engine.reply(asked(nothing))))
    await engine.aclose()
    await engine.aclose()


@pytest.mark.parametrize(
    "question", ['"', "AND OR NOT", "cats*", "heading:cats", "NEAR(a b)", "'; --", "😀" * 2000, "x " * 2000, "\x00"]
)
async def test_answers_take_any_question(folder: Path, question: str) -> None:
    """No text is taken for the query language."""
    engine = AnswersEngine(folder)

    assert await collect(engine.reply(asked(question)))
    await engine.aclose()


def test_passages() -> None:
    """A text without a heading has the file's name, long ones are cut at a paragraph, empty ones are left out."""
    passages = [*split_passages("f.md", "intro\n# A\n# B\n\n" + ("x" * 100 + "\n\n") * 30)]

    assert [passage.heading for passage in passages] == ["f.md", "B"]
    assert len(passages[1].text) <= MAX_PASSAGE + 5
    assert passages[1].text.endswith("x\n\n…")
    assert next(iter(split_passages("f.md", "y" * 5000))).text == "y" * MAX_PASSAGE + "\n\n…"


def test_default_folder_is_there(tmp_path: Path) -> None:
    """The documentation of aheadless; a folder that is not there is an error at once."""
    assert (default_folder() / "tutorial.md").is_file()
    with pytest.raises(ConfigurationError, match="does not exist"):
        AnswersEngine(tmp_path / "nowhere")


# --- the openai engine, against the protocol on a real socket ---------------------------------------------------------


class FakeModel:
    """Speaks `/chat/completions`, and says what it is told."""

    def __init__(self) -> None:
        self.said = b""
        self.status = 200
        self.requests: list[tuple[dict[str, Any], str | None]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((await request.json(), request.headers.get("Authorization")))
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for start in range(0, len(self.said), 7):
            await response.write(self.said[start : start + 7])
        return response


@pytest.fixture
async def model() -> AsyncIterator[tuple[FakeModel, str]]:
    fake = FakeModel()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", fake.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield fake, f"http://127.0.0.1:{runner.addresses[0][1]}/v1/"
    await runner.cleanup()


async def ask(url: str, history: Sequence[Message], **options: Any) -> list[str]:
    engine = OpenAIEngine(model="m", base_url=url, **options)
    try:
        return await collect(engine.reply(history))
    finally:
        await engine.aclose()


async def test_openai(model: tuple[FakeModel, str]) -> None:
    """Comments, blank lines, CRLF, empty deltas and choices are passed over; the text comes as it is."""
    fake, url = model
    fake.said = (
        ": ping\n\n"
        'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\r\n\r\n'
        'data:{"choices":[{"delta":{"content":"Hé"}}]}\n\n'
        'event: x\ndata: {"choices":[{"delta":{"content":null}}]}\n\n'
        'data: {"choices":[{"delta":{"content":" \\ud83d\\ude00"},"finish_reason":"stop"}]}\n\n'
        'data: {"choices":[],"usage":{}}\n\n'
        "data: [DONE]\n\nignored"
    ).encode()

    assert await ask(url, asked("Hi"), api_key=Secret("k"), system_prompt="Be kind.") == ["Hé", " 😀"]
    body, authorization = fake.requests[0]
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "stream": True,
    }
    assert authorization == "Bearer k"


@pytest.mark.parametrize(
    ("status", "said", "kind", "message"),
    [
        (401, b'{"error":"bad key"}', ServerError, "answered 401"),
        (200, b'data: {"error":{"message":"overloaded"}}\n\n', AheadlessError, "overloaded"),
        (200, b'data: {"choices":[{"delta":{"content":"cut"}}]}\n\n', ProtocolError, "without"),
        (200, b"data: oops\n\n", ProtocolError, "not JSON"),
    ],
)
async def test_openai_failures(
    model: tuple[FakeModel, str], status: int, said: bytes, kind: type[AheadlessError], message: str
) -> None:
    """A refusal, an error in the stream, a stream that breaks off: each fails the reply."""
    fake, url = model
    fake.status, fake.said = status, said

    with pytest.raises(kind, match=message):
        await ask(url, asked("Hi"))
    assert fake.requests[0][1] is None


def test_openai_needs_a_model() -> None:
    """Said when the application is made, not at the first question."""
    with pytest.raises(ConfigurationError, match="needs a model"):
        create_app(ServerSettings(engine="openai"))
    with pytest.raises(ConfigurationError, match="openai_base_url"):
        create_app(ServerSettings(engine="openai", openai_model="m", openai_base_url="ftp://x"))
    create_app(ServerSettings(engine="openai", openai_model="m"))
    create_app(ServerSettings(engine="echo"))


async def test_cancelled_engine_is_closed() -> None:
    """An engine whose reply nobody waits for any more is told so."""
    closed = asyncio.Event()

    class Engine:
        async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                closed.set()

    from aheadless.server.replies import Replies

    storage = await Storage.open(":memory:")
    replies = Replies(storage, Engine(), limit=1, reply_timeout=10)
    reply = replies.begin(ChatRequest("s", "Hi"))
    assert replies.full
    assert await reply.event(1) == Token("a")
    await replies.drain(0.01)
    await replies.drain(0.01)
    assert closed.is_set()
    await storage.aclose()
