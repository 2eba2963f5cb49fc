"""What holds for every public name: it promises something, takes few things by position, shows its state and no secret."""

from __future__ import annotations

import asyncio
import copy
import enum
import importlib
import inspect
import pickle
import pkgutil
import re
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
from rich.pretty import pretty_repr

import aheadless
from aheadless import (
    AheadlessError,
    ChatClient,
    ConfigurationError,
    ConnectError,
    Delivery,
    Done,
    Failure,
    Health,
    Message,
    PacingState,
    RateLimit,
    Reply,
    Retry,
    Retrying,
    Secret,
    Start,
    Timeouts,
    Timings,
    Token,
    Unknown,
    Waiting,
    admin,
)
from aheadless.bridges import MessageGone, Pace, PageRefused, RetryLater, Words
from aheadless.bridges.discord import ChatCog, DiscordWords
from aheadless.bridges.slack import SlackPace, SlackWords
from aheadless.bridges.telegram import TelegramWords, chat_router
from aheadless.bridges.web import LiveTurns, Visitors, refusal, to_sse
from aheadless.server import AnswersEngine, OpenAIEngine, ScriptedEngine, ServerSettings, create_app, run_server
from aheadless.stores import Lease, MemoryStore, RedisStore, SessionChange, SessionRecord, SQLiteStore
from aheadless.testing import (
    CONVERSATION_ID,
    BackgroundServer,
    ChatRequest,
    Script,
    ScriptedServer,
    events,
    json_answer,
    stream_answer,
)

REFERENCE = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text("utf-8")


class Entry(NamedTuple):
    """A name as the reference has it."""

    kind: str
    module: str
    name: str
    made: bool
    """Whether users make such objects themselves, and do not only get them."""
    hidden: frozenset[str]

    @property
    def value(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}".removeprefix("aheadless.")


def entries() -> Iterator[Entry]:
    pattern = r"^\.\. auto(\w+):: (aheadless[\w.]*)\.(\w+)(\(\))?\n((?:   :.*\n)*)"
    for kind, module, name, given, options in re.findall(pattern, REFERENCE, re.MULTILINE):
        hidden = re.search(r":exclude-members: (.*)", options)
        yield Entry(kind, module, name, not given, frozenset(hidden[1].split(", ") if hidden else ()))


ENTRIES = [*entries()]
CLASSES = [entry for entry in ENTRIES if entry.kind in {"class", "exception"}]
FUNCTIONS = [entry for entry in ENTRIES if entry.kind == "function"]


def members(entry: Entry) -> Iterator[tuple[str, Any]]:
    """Yield the methods and properties that users see of a class."""
    for name, member in vars(entry.value).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and name not in entry.hidden and inspect.isfunction(function):
            yield f"{entry}.{name}", function


CALLED = dict(
    [*((str(entry), entry.value) for entry in FUNCTIONS), *(it for entry in CLASSES for it in members(entry))]
)
"""All functions, methods and properties of the reference."""

MADE = {str(entry): entry.value for entry in CLASSES if entry.made and entry.kind == "class"}
"""The classes of which users make objects; it has no errors, which they make in tests of their own at most."""


def parameters(function: Any) -> list[inspect.Parameter]:
    return [it for it in inspect.signature(function).parameters.values() if it.name not in {"self", "cls"}]


# --- what is promised -------------------------------------------------------------------------------------------------


def test_reference_has_what_users_import():
    """Every module with a public name is described there, but for those that users have no need to import from."""
    packages = [aheadless, importlib.import_module("aheadless.bridges")]
    modules = {
        f"{package.__name__}.{module.name}"
        for package in packages
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_")
    }

    assert modules - {entry.module for entry in ENTRIES} == {
        "aheadless.cli",  # the command
        "aheadless.exceptions",  # names of `aheadless` as well
        "aheadless.protocol",  # as far as users need it, too
    }


def test_first_line_says_what_one_gets():
    """It is a sentence, on one line."""
    described = {str(entry): entry.value for entry in CLASSES} | CALLED
    firsts = {name: (inspect.getdoc(value) or "").split("\n\n")[0] for name, value in described.items()}

    assert len(firsts) > 200  # else it looks at too little
    assert {name: first for name, first in firsts.items() if not re.fullmatch(r"[^\n]+[.:]", first)} == {}


# What is no surprise, so that no docstring spends a line on it.
CANCELLED_WITHOUT_A_WORD = {
    # They wait for nothing, or for no longer than it takes to close something.
    "Following.aclose",
    "bridges.aiohttp.refusals",
    "bridges.quart.refuse",
    "bridges.starlette.refuse",
    "bridges.starlette.stream_response",
    "server.AnswersEngine.aclose",
    "server.OpenAIEngine.aclose",
    "stores.MemoryStore.aclose",
    "testing.ScriptedServer.aclose",
    # They only look.
    "testing.ScriptedServer.arrived",
    # They say whom they are like.
    "PendingTurn.recover",
    "StoreError.recover",
    "bridges.NotShownError.recover",
    "stores.MemoryStore.list",
    "stores.RedisStore.list",
}


def test_what_happens_on_cancel():
    """Whatever waits says so, if its class does not, but for a few that need not."""
    classes = {str(entry): entry.value for entry in CLASSES}
    without = {
        name
        for name, function in CALLED.items()
        if inspect.iscoroutinefunction(function)
        and "cancel" not in f"{inspect.getdoc(function)} {inspect.getdoc(classes.get(name.rpartition('.')[0]))}"
    }

    assert without == CANCELLED_WITHOUT_A_WORD


# --- what is taken by position ----------------------------------------------------------------------------------------


def test_at_most_two_by_position():
    """Beyond what is obvious an argument has its name; but a store's rows are made in the order of its columns."""
    many = {
        name
        for name, value in (MADE | CALLED).items()
        if not (inspect.isclass(value) and issubclass(value, enum.Enum))
        if sum(it.kind in {it.POSITIONAL_ONLY, it.POSITIONAL_OR_KEYWORD} for it in parameters(value)) > 2
    }

    assert many == {"stores.SessionRecord", "stores.SessionChange"}


def test_no_boolean_travels_without_its_name():
    """`follow(True)` says nothing; `follow=True` does."""
    nameless = {
        f"{name}({it.name})"
        for name, value in (MADE | CALLED).items()
        for it in parameters(value)
        if isinstance(it.default, bool) and it.kind is not it.KEYWORD_ONLY
    }

    assert nameless == set()


# --- secrets ----------------------------------------------------------------------------------------------------------

SECRET = "sentinel-which-nobody-may-see-0123456789"
"""It stands wherever a secret can: each is this one, with something at its end."""
API_KEY, ADMIN_KEY, MODEL_KEY = f"{SECRET}-api", f"{SECRET}-admin", f"{SECRET}-model"
PROXY = f"http://me:{SECRET}@127.0.0.1:9"
HEADERS = {"Authorization": f"Bearer {SECRET}"}
MODEL_URL = f"http://me:{SECRET}@127.0.0.1:9/v1"
REDIS_URLS = [f"redis://me:{SECRET}@127.0.0.1:9/1", f"redis://127.0.0.1:9?password={SECRET}"]


@pytest.fixture
async def holders(tmp_path: Path) -> AsyncIterator[dict[str, Any]]:
    """One of everything that holds a secret, or holds something that does."""
    settings = ServerSettings(
        port=0,
        api_key=API_KEY,
        admin_key=Secret(ADMIN_KEY),
        openai_base_url="http://127.0.0.1:9/v1",
        openai_api_key=MODEL_KEY,
        openai_model="m",
    )
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(run_server(settings))
        scripted = await stack.enter_async_context(ScriptedServer())
        keys: dict[str, Any] = {"api_key": API_KEY, "admin_key": ADMIN_KEY, "headers": HEADERS}
        client = await stack.enter_async_context(ChatClient(scripted.url, **keys))
        behind_a_proxy = await stack.enter_async_context(ChatClient("http://localhost:9", proxy=PROXY, **keys))
        stores = [await stack.enter_async_context(RedisStore(url)) for url in REDIS_URLS]
        with_store = await stack.enter_async_context(ChatClient(scripted.url, store=stores[0], **keys))
        chat = client.chat("s")
        stream = chat.stream("Hi")
        subscription = stream.subscribe()
        reply = await stream
        visitors = Visitors([SECRET, Secret(f"{SECRET}-old")])
        yield {
            "settings": settings,
            "server": server,
            "app": create_app(settings),
            "engine": OpenAIEngine(model="m", api_key=MODEL_KEY),
            "client": client,
            "behind_a_proxy": behind_a_proxy,
            "with_store": with_store,
            "admin": client.admin,
            "sessions": client.sessions,
            "session": await client.sessions.get("s"),
            "chat": chat,
            "stream": stream,
            "subscription": subscription,
            "reply": reply,
            "bytes": to_sse(stream),
            "stores": stores,
            "visitors": visitors,
            "visitor": visitors.of({}),
            "live_turns": LiveTurns(),
            "cog": ChatCog(client),
            "router": chat_router(client),
            "scripted": scripted,
            "request": scripted.requests[0],
            "secret": Secret(SECRET),
        }


def shown(item: Any) -> str:
    """Return all that printers, debuggers and log records make of an object."""
    texts = [repr(item), str(item), f"{item}", f"{[item]}", pretty_repr(item)]
    if attrs.has(type(item)):
        texts.append(repr(attrs.asdict(item)))
    if hasattr(item, "__dict__"):
        texts.append(repr(vars(item)))
    return "\n".join(texts)


async def test_nothing_shows_a_secret(holders):
    """No `repr`, be it of the object or of what it holds."""
    assert [name for name, item in holders.items() if SECRET in shown(item) and name != "request"] == []
    # It is what the test wants to look at: its headers are as they came, but printing it shows no key.
    assert SECRET not in repr(holders["request"])
    # No engine takes such an address, but until then it is a setting like others.
    assert SECRET not in repr(ServerSettings(openai_base_url=MODEL_URL))


async def test_nothing_that_holds_a_secret_is_pickled(holders):
    """It would be in a file, a queue or another process then."""
    for name, item in holders.items():
        if name == "request":
            continue  # as above
        try:
            pickled = pickle.dumps(item)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue
        assert SECRET.encode() not in pickled, name


@pytest.mark.parametrize("name", ["client", "chat", "stream", "subscription", "bytes", "visitors", "secret"])
async def test_refusal_to_be_pickled_says_why(holders, name):
    """Not that some lock or task inside cannot be."""
    with pytest.raises(TypeError, match=r"(is|are) (not|neither) pickled"):
        pickle.dumps(holders[name])


REFUSED: dict[str, Callable[[], object]] = {
    "url": lambda: ChatClient(f"http://me:{SECRET}@localhost", api_key=API_KEY),
    "broken url": lambda: ChatClient(f"http://me:{SECRET}@[", api_key=API_KEY),
    "key": lambda: ChatClient("http://localhost", api_key=f"{API_KEY}\n"),
    "admin key": lambda: ChatClient("http://localhost", admin_key=f" {ADMIN_KEY}"),
    "proxy": lambda: ChatClient("http://localhost", proxy=f"socks5://me:{SECRET}@localhost"),
    "header's name": lambda: ChatClient("http://localhost", headers={"x-api-key": SECRET}),
    "header's value": lambda: ChatClient("http://localhost", headers={"Authorization": f"{SECRET}\n"}),
    "server's key": lambda: ServerSettings(api_key=f"{API_KEY} "),
    "server's keys": lambda: ServerSettings(api_key=API_KEY, admin_key=API_KEY),
    "model's key": lambda: ServerSettings(openai_api_key=f"{MODEL_KEY}\n"),
    "model": lambda: OpenAIEngine(model=None, api_key=MODEL_KEY),
    "model's password": lambda: OpenAIEngine(model="m", base_url=MODEL_URL),
    "model's address": lambda: OpenAIEngine(model="m", base_url=SECRET, api_key=Secret(MODEL_KEY)),
    "cookie": lambda: Visitors(SECRET, cookie="a b"),
    "secrets": lambda: Visitors([SECRET, SECRET[:31]]),
    "redis": lambda: RedisStore(f"redis://me:{SECRET}@localhost:port"),
    "option": lambda: RedisStore(f"redis://me:{SECRET}@localhost?no_such_option=1"),
    "prefix": lambda: RedisStore(REDIS_URLS[0], prefix=""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_setting_shows_no_secret(what):
    """Not even in a traceback with the locals of each frame, as error trackers keep them."""
    with pytest.raises(ConfigurationError) as caught:
        REFUSED[what]()

    assert SECRET[:31] not in told(caught.value)


@pytest.mark.parametrize("name", ["client", "behind_a_proxy", "with_store"])
async def test_failed_turn_shows_no_secret(holders, name):
    """Neither a header of the user's nor what is in the addresses of a proxy and a store."""
    holders["scripted"].add(Script(json_answer({"error": "Unauthorized"}, status=401)))

    with pytest.raises(AheadlessError) as caught:
        await holders[name].chat("t").stream("Hi")

    assert SECRET not in told(caught.value)


def told(error: BaseException | None) -> str:
    """Return all that can be made of an error and of what led to it, with the locals of every frame but those here."""
    texts = []
    while error is not None:
        frames = [it for it in traceback.walk_tb(error.__traceback__) if it[0].f_code.co_filename != __file__]
        texts += [repr(error), str(error), repr(vars(error)), repr(error.args)]
        texts += traceback.StackSummary.extract(frames, capture_locals=True).format()
        error = error.__cause__ or error.__context__
    return "\n".join(texts)


# --- states -----------------------------------------------------------------------------------------------------------


def test_whatever_has_a_state_shows_it():
    """No class leaves it to Python to tell where in the memory an object is, unless there is nothing else to tell."""
    without = {str(entry) for entry in CLASSES if entry.value.__repr__ is object.__repr__}

    assert without == {
        # Protocols.
        "Following",
        "bridges.Page",
        "server.ReplyEngine",
        "stores.SessionStore",
        # They have no state.
        "admin.AdminClient",
        "bridges.django.RefusalMiddleware",
        "server.EchoEngine",
    }


async def test_client_shows_its_state():
    """Whether it is open, and what is going on."""
    gate = asyncio.Event()
    answer = stream_answer(events("Hel", "lo"))
    async with ScriptedServer(Script(answer, gates={len(answer) - 5: gate})) as server:
        client = ChatClient(server.url, api_key="none")
        chat = client.chat("s")
        assert repr(client) == f"<ChatClient {server.url}, 0 live turns>"
        assert repr(client.sessions) == "<SessionManager, 1 sessions>"
        assert repr(chat) == "<Chat s, 0 messages>"

        async with chat.stream("Hi") as stream:
            subscription = stream.subscribe()
            assert await anext(aiter(stream)) == Start(CONVERSATION_ID)
            assert repr(client) == f"<ChatClient {server.url}, 1 live turns>"
            assert repr(chat) == "<Chat s, 1 messages, busy>"
            assert repr(await client.sessions.get("s")) == "<Session s, 1 messages, live>"
            assert repr(stream) == "<ReplyStream s streaming, 0 characters>"
            assert repr(subscription) == "<Subscription, 1 events not read>"
            gate.set()
            await stream

        assert repr(chat) == "<Chat s, 2 messages>"
        assert repr(await client.sessions.get("s")) == "<Session s, 2 messages>"
        assert repr(subscription) == "<Subscription, 4 events not read, ended>"
        await client.aclose()
        assert repr(client) == f"<ChatClient {server.url}, closed>"
        assert repr(server) == f"<ScriptedServer {server.url}, 1 requests>"
    assert repr(server) == "<ScriptedServer not listening, 1 requests>"


async def test_stores_show_their_state(tmp_path):
    """What they are, where, and whether they are closed."""
    memory, sqlite, redis = MemoryStore(), SQLiteStore(tmp_path / "a.db"), RedisStore("redis://h:1/2", prefix="p")
    lease = await memory.acquire("s")
    assert lease is not None
    await memory.save(SessionChange("s", 0, None, ()), lease)
    reprs = ["<MemoryStore, 1 sessions>", f"<SQLiteStore {tmp_path / 'a.db'}>", "<RedisStore h:1/2, prefix p>"]

    assert [*map(repr, (memory, sqlite, redis))] == reprs
    assert repr(lease) == "Lease(session_id='s', token=1)"

    for store in (memory, sqlite, redis):
        await store.aclose()

    assert repr(memory) == "<MemoryStore, 0 sessions, closed>"
    assert [*map(repr, (sqlite, redis))] == [f"{text[:-1]}, closed>" for text in reprs[1:]]


async def test_bridges_and_engines_show_their_state(tmp_path):
    """What they are set up with, and what they are doing."""
    (tmp_path / "a.md").write_text("# A", "utf-8")
    engine = AnswersEngine(tmp_path)
    live_turns = LiveTurns()
    model = OpenAIEngine(model="m", base_url="http://localhost/v1/")

    assert repr(engine) == f"<AnswersEngine {tmp_path}>"
    assert repr(model) == "<OpenAIEngine m at http://localhost/v1/chat/completions>"
    assert repr(ScriptedEngine(["a"], ["b"])) == "<ScriptedEngine, 2 scripts, 0 replies>"
    assert repr(live_turns) == "<LiveTurns, not entered>"
    assert repr(Visitors(SECRET, secure=False)) == "<Visitors by the cookie visitor, 1 secrets>"
    async with ChatClient("http://localhost", api_key="none") as client:
        assert repr(ChatCog(client)) == "<ChatCog, not loaded>"
    async with live_turns:
        assert repr(live_turns) == "<LiveTurns, 0 turns>"
    await engine.aclose()
    assert repr(engine) == f"<AnswersEngine {tmp_path}, closed>"


def test_background_server_shows_its_state():
    """Where it listens, and how many questions came."""
    with BackgroundServer() as server:
        assert repr(server) == f"<BackgroundServer {server.url}, 0 requests>"


# --- values and errors that travel ------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
REPLY = Reply(
    "Hello", session_id="s", conversation_id="c", streamed_text="Hello ", timings=Timings(0.1, 0.2, queued=0.3)
)
QUESTION = Message("user", "Hi", created_at=NOW, delivery=Delivery.UNKNOWN, status="unknown")
CONVERSATION = admin.Conversation("c", "s", NOW, NOW, "Hi")

VALUES = [
    REPLY,
    QUESTION,
    Start("c"),
    Token("a"),
    Done("a", "c"),
    Failure("no"),
    Unknown("new", {"type": "new", "a": [1]}),
    Timeouts(idle=1.0),
    Retry(2, base=0.1),
    RateLimit(30, per=60),
    Health("ok"),
    PacingState("open", 0, 0.0),
    Waiting("s", "rate_limit", 1.0),
    Lease("s", 1),
    SessionRecord("s", 1, "c", (QUESTION,), 1),
    SessionChange("s", 1, "c", ((0, QUESTION),)),
    admin.Thread(CONVERSATION, (admin.Message("m", "c", "user", "Hi", NOW),), NOW),
    admin.ConversationPage((CONVERSATION,), 1),
    Pace(every=2.0),
    SlackPace(edit=2.0),
    Words(stopped="Stop."),
    DiscordWords(stop="Stop."),
    SlackWords(stopped="Stop."),
    TelegramWords(stopped="Stop."),
    refusal(ConnectError("no", delivery=Delivery.NOT_SENT)),
    Visitors(SECRET).of({}),
    ChatRequest("s", "Hi"),
    Delivery.ACCEPTED,
]


def travelled(item: Any) -> Iterator[Any]:
    """Yield what arrives of it by each pickle protocol, and by copying."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(item, protocol))
    yield copy.copy(item)
    yield copy.deepcopy(item)


def test_values_travel():
    """To another process or into a cache, and they are the same there."""
    for value in VALUES:
        for arrived in travelled(value):
            assert arrived == value
            assert type(arrived) is type(value)


def error_of(kind: type[AheadlessError]) -> AheadlessError:
    """Make an error with everything that its class takes."""
    given: dict[str, Any] = {
        "delivery": Delivery.ACCEPTED,
        "session_id": "s",
        "partial": "Hel",
        "permanent": True,
        "phase": "idle",
        "status": 418,
        "detail": "short and stout",
        "retry_after": 1.5,
        "line": 3,
        "reason": "no tea",
        "reply": REPLY,
        "lost": True,
    }
    taken = {it.name for it in parameters(kind)}
    return kind("it failed", **{name: value for name, value in given.items() if name in taken})


ERRORS = [entry.value for entry in ENTRIES if entry.kind == "exception" and issubclass(entry.value, AheadlessError)]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_travel(kind):
    """Through a process pool or a task queue: the verdict, the text so far and the rest arrive, the way back does not."""
    error = error_of(kind)
    error.way_back = lambda _wait: asyncio.sleep(0, (None, Delivery.UNKNOWN))
    known = {name: value for name, value in vars(error).items() if name != "way_back"}

    for arrived in travelled(error):
        assert type(arrived) is kind
        assert str(arrived) == str(error)
        assert vars(arrived) == known


def test_what_pages_raise_travels():
    """With the seconds that a platform demands."""
    for arrived in travelled(RetryLater(2.5)):
        assert (arrived.seconds, str(arrived)) == (2.5, "not before 2.5 s have passed")
    for kind in (MessageGone, PageRefused):
        assert all(type(arrived) is kind for arrived in travelled(kind("it is")))


def test_news_of_a_retry_travels():
    """With the error that it is about."""
    [arrived, *_] = travelled(Retrying("s", 1, 0.5, ConnectError("refused", session_id="s")))

    assert (arrived.attempt, arrived.error.session_id, str(arrived.error)) == (1, "s", "refused")


def test_pace_of_slack_is_checked():
    """As that of the other bridges is."""
    for kind, name in ((Pace, "every"), (SlackPace, "edit")):
        assert getattr(kind(**{name: 0}), name) == 0
        with pytest.raises(ConfigurationError, match=f"{name} must be a positive number of seconds"):
            kind(**{name: -1})
