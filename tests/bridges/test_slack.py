"""Replies in Slack: the real slack-bolt and slack_sdk against a loopback Slack. In each case people see the whole text."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_bolt.context.say_stream.async_say_stream import AsyncSayStream
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_sdk.web.async_client import AsyncWebClient

from aheadless import ChatClient, ConfigurationError, Reply, ReplyFailedError, StreamInterruptedError, UsageError
from aheadless.bridges import NotShownError, _delivery, _slack_scribe, slack
from aheadless.bridges.slack import SlackPace, SlackWords, add_chat, reply_stream, session_id
from aheadless.protocol.events import Done, Event, Failure, Start, Token
from aheadless.testing import Script, ScriptedServer
from aheadless.testing.scripts import CONVERSATION_ID, json_answer, stream_answer
from tests.bridges.slack_platform import (
    APP_TOKEN,
    BOT,
    BOT_TOKEN,
    CHANNEL,
    DM,
    LIMIT,
    SIGNING_SECRET,
    TEAM,
    USER,
    Fault,
    SlackPlatform,
    rate_limited,
)
from tests.support import KEY

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "slack_bot.py"
QUICK = SlackPace(append=0.01, edit=0.01)
THREAD = "1700000000.000001"
WORDS = SlackWords()

LOST = Fault(applied=True)
HANGING = Fault(applied=True, hangs=True)


class Told:
    """A reply that the server tells piece by piece: the first one at once, each other one after `next()`."""

    def __init__(self, *pieces: str, end: Event | None = None, cut: bool = False) -> None:
        whole = "".join(pieces).strip()
        last = end or Done(whole, CONVERSATION_ID)
        items: list[Event] = [Start(CONVERSATION_ID), *map(Token, pieces), last]
        # The end of a chunked body is five bytes, which each of these has.
        offsets = [len(stream_answer(items[:count])) - 5 for count in range(2, len(items))]
        self._gates = {offset: asyncio.Event() for offset in offsets}
        data = stream_answer(items)
        if cut:
            data = data[: offsets[-1]]
        self.script = Script(data, gates=self._gates, end="fin" if cut else "keep")
        self._waiting = [*self._gates.values()]

    def next(self) -> None:
        self._waiting.pop(0).set()

    def go_on(self) -> None:
        while self._waiting:
            self.next()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again sooner than people would."""
    monkeypatch.setattr(_delivery, "FIRST_PAUSE", 0.01)


@pytest.fixture
async def platform() -> AsyncIterator[SlackPlatform]:
    async with SlackPlatform() as platform:
        yield platform


@pytest.fixture
def web_client(platform: SlackPlatform) -> AsyncWebClient:
    return AsyncWebClient(BOT_TOKEN, base_url=platform.url)


@pytest.fixture
def say_stream(web_client: AsyncWebClient) -> AsyncSayStream:
    """What slack-bolt gives the listener of an event in a channel."""
    return AsyncSayStream(
        client=web_client, channel=CHANNEL, thread_ts=THREAD, recipient_team_id=TEAM, recipient_user_id=USER
    )


Ask = Callable[..., Awaitable[Reply]]


@pytest.fixture
def ask(client: ChatClient, scripted: ScriptedServer, say_stream: AsyncSayStream) -> Ask:
    """Ask, and have what the server tells shown in Slack."""

    def ask(told: Told, pace: SlackPace = QUICK, **callbacks: Any) -> Awaitable[Reply]:
        scripted.add(told.script)
        return reply_stream(say_stream, client.chat("user-1").stream("Hello", **callbacks), pace=pace)

    return ask


def words_of(text: str) -> list[str]:
    return [word for word in text.split() if not word.startswith("```")]


# --- a reply ----------------------------------------------------------------------------------------------------------


async def test_reply_that_is_being_written(platform: SlackPlatform, ask: Ask):
    """A status stands there, then the words appear as they come, as one stream in the thread."""
    told = Told("Hel", "lo", " you")
    asking = asyncio.ensure_future(ask(told))

    for seen in ("Hel", "Hello"):
        await platform.shows(seen)
        assert platform.streaming
        told.next()
    told.go_on()
    reply = await asking

    assert reply.text == "Hello you"
    assert platform.texts() == ["Hello you"]
    assert platform.messages[0].thread_ts == THREAD
    assert not platform.streaming
    assert platform.statuses == ["is thinking…"]
    assert platform.methods()[:2] == ["chat.startStream", "chat.appendStream"]
    assert platform.methods()[-1] == "chat.stopStream"


async def test_many_tokens(platform: SlackPlatform, ask: Ask):
    """Slack hears of them at the pace, not one by one, and no token waits for Slack."""
    told = Told(*(f"word{number} " for number in range(500)))
    told.go_on()

    reply = await ask(told, SlackPace(append=60))

    assert platform.texts() == [reply.text]
    assert len(platform.methods()) <= 2


async def test_no_status(platform: SlackPlatform, ask: Ask):
    """An app that may not set one begins an empty message at once, which the words fill."""
    platform.unsupported.add("assistant.threads.setStatus")
    told = Told("Hello", " you")
    told.script.gates[min(told.script.gates) - 20] = gate = asyncio.Event()  # type: ignore[index]
    asking = asyncio.ensure_future(ask(told))

    await platform.shows("")
    gate.set()
    told.go_on()
    await asking

    assert platform.texts() == ["Hello you"]


async def test_no_streams(platform: SlackPlatform, ask: Ask):
    """Where Slack has no streams a message is posted, and edited while the words come."""
    platform.unsupported.add("chat.startStream")
    told = Told("Hello", " you", " there")
    asking = asyncio.ensure_future(ask(told))

    for seen in ("Hello", "Hello you"):
        await platform.shows(seen)
        told.next()
    told.go_on()
    await asking

    assert platform.texts() == ["Hello you there"]
    assert platform.methods() == ["chat.startStream", "chat.postMessage", "chat.update", "chat.update"]


async def test_neither_streams_nor_status(platform: SlackPlatform, ask: Ask):
    """A placeholder is posted at once, and becomes the reply."""
    platform.unsupported |= {"chat.startStream", "assistant.threads.setStatus"}
    told = Told("Hello")
    told.go_on()

    await ask(told)

    assert platform.texts() == ["Hello"]


async def test_empty_reply(platform: SlackPlatform, ask: Ask):
    """A kind word stands for it, as Slack takes no empty message."""
    told = Told(" ")
    told.go_on()

    await ask(told)

    assert platform.texts() == [WORDS.empty]


# --- long replies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paced", [True, False], ids=["while it is written", "at once"])
async def test_thirty_thousand_characters(platform: SlackPlatform, ask: Ask, paced: bool):
    """They come in messages of at most 12,000, each word once, and code stays code in each of them."""
    lines = [f"    value_{number} = compute({number})" for number in range(820)]
    code = "```python\n" + "\n".join(lines) + "\n```"
    text = f"First some prose. {'Words and words. ' * 400}\n\n{code}\n\nAnd the end."
    assert len(text) > 30_000
    pieces = [text[start : start + 3000] for start in range(0, len(text), 3000)]

    async def shows_words(shown: list[str]) -> None:
        await platform.until(lambda: words_of("\n".join(platform.texts()))[: len(shown)] == shown)

    told = Told(*pieces)
    asking = asyncio.ensure_future(ask(told))

    for count in range(1, len(pieces)):
        if paced:
            await shows_words(words_of("".join(pieces[:count]))[:-1])
        told.next()
    told.go_on()
    await asking

    assert all(len(message) <= LIMIT for message in platform.texts())
    assert words_of("\n".join(platform.texts())) == words_of(text)
    assert all(message.count("```") % 2 == 0 for message in platform.texts())
    assert not platform.streaming


async def test_reply_that_takes_long(platform: SlackPlatform, ask: Ask):
    """Before Slack closes its stream, the next line begins a new message, as a new stream."""
    told = Told("One line", " is done.\n\nTwo", " lines", " are done.")
    asking = asyncio.ensure_future(ask(told, SlackPace(append=0.01, roll_over=0.0)))

    await platform.shows("One line")
    told.next()
    await platform.shows("One line is done.", "Two")
    assert [message.text for message in platform.streaming] == ["Two"]
    told.next()
    await platform.until(lambda: platform.texts()[1:] == ["Two lines"])
    told.go_on()
    await asking

    assert platform.texts() == ["One line is done.", "Two lines are done."]
    assert not platform.streaming


async def test_silence_that_takes_long(platform: SlackPlatform, ask: Ask):
    """A stream that nothing comes for is closed in time, and the message edited when words come again."""
    told = Told("One", " two")
    asking = asyncio.ensure_future(ask(told, SlackPace(append=0.01, edit=0.01, close=0.05)))

    await platform.until(lambda: platform.methods() == ["chat.startStream", "chat.stopStream"])
    told.go_on()
    await asking

    assert platform.texts() == ["One two"]


async def test_long_reply_in_another_script(platform: SlackPlatform, ask: Ask):
    """Slack counts bytes, of which these characters have three."""
    text = "。".join("這是一個很長的答案" for _ in range(1000))
    told = Told(text)
    told.go_on()

    await ask(told)

    assert "".join(platform.texts()) == text
    assert len(platform.texts()) > 2


# --- what Slack does to a reply ---------------------------------------------------------------------------------------


async def test_stream_that_slack_closed(platform: SlackPlatform, ask: Ask):
    """The message goes on as edits."""
    told = Told("One", " two", " three")
    asking = asyncio.ensure_future(ask(told))

    await platform.shows("One")
    platform.advance(301)
    told.next()
    await platform.shows("One two")
    told.go_on()
    await asking

    assert platform.texts() == ["One two three"]
    assert platform.calls[-1].method == "chat.update"


STREAMING = ["chat.startStream", "chat.appendStream", "chat.stopStream"]
EDITING = ["chat.postMessage", "chat.update"]
FAULTS = {
    "429": rate_limited(),
    "500": Fault(status=500),
    "nothing done": Fault("internal_error"),
    "answer lost": LOST,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("method", STREAMING + EDITING)
async def test_fault(platform: SlackPlatform, ask: Ask, method: str, fault: Fault):
    """One call of any kind goes wrong: in the end people see the whole text, and none of it twice."""
    if method in EDITING:
        platform.unsupported.add("chat.startStream")
    platform.fail(method, fault)
    told = Told("One", " two", " three")
    asking = asyncio.ensure_future(ask(told))

    await platform.until(platform.texts)
    told.next()
    await platform.until(lambda: platform.texts()[-1].startswith("One two"))
    told.go_on()
    await asking

    # Of a first call whose answer is lost nobody knows which message it made: it stays, and another one is made.
    lost = [] if fault is not LOST or method not in {"chat.startStream", "chat.postMessage"} else ["One"]
    assert platform.texts() == [*lost, "One two three"]


async def test_append_that_hangs(platform: SlackPlatform, ask: Ask, monkeypatch: pytest.MonkeyPatch):
    """Nobody knows whether it arrived: it did, and its text is there once."""
    monkeypatch.setattr(_slack_scribe, "CALL_WITHIN", 0.2)
    platform.fail("chat.appendStream", HANGING)
    told = Told("One", " two", " three")
    asking = asyncio.ensure_future(ask(told))

    await platform.shows("One")
    told.next()
    await platform.shows("One two")
    told.go_on()
    await asking

    assert platform.texts() == ["One two three"]
    assert not platform.streaming


async def test_slack_that_is_down_for_a_while(platform: SlackPlatform, ask: Ask):
    """The reply is read all the same, and shown when Slack is there again."""
    down = [Fault(status=503)] * 3
    platform.fail("chat.postMessage", *down)
    told = Told("One")
    told.go_on()

    reply = await ask(told)

    assert platform.texts() == [reply.text]


async def test_message_that_somebody_deletes(platform: SlackPlatform, ask: Ask):
    """What it said is said anew."""
    told = Told("One", " two")
    asking = asyncio.ensure_future(ask(told))

    await platform.shows("One")
    platform.messages[0].deleted = True
    told.go_on()
    await asking

    assert platform.texts() == ["One two"]


async def test_channel_that_takes_nothing(platform: SlackPlatform, ask: Ask):
    """The reply is read to its end, and travels along with the error that says so."""
    platform.fail("chat.startStream", Fault("is_archived"))
    platform.fail("chat.postMessage", Fault("is_archived"))
    told = Told("One", " two")
    asking = asyncio.ensure_future(ask(told))
    await platform.until(lambda: len(platform.methods()) == 2)

    told.go_on()
    with pytest.raises(NotShownError, match="is_archived") as caught:
        await asking

    assert caught.value.reply.text == "One two"


async def test_mentions_in_an_answer(platform: SlackPlatform, ask: Ask):
    """They are read, and notify nobody, not even for the moment in which they come in pieces."""
    told = Told("Hey <!chan", "nel>, <", "@U0", "123> and ", "<!here>")
    asking = asyncio.ensure_future(ask(told))
    await platform.shows("Hey")
    told.next()
    await platform.until(lambda: "nel>" in platform.texts()[0])
    told.next()
    told.go_on()

    reply = await asking

    assert platform.pings == []
    assert platform.texts()[0].replace("\u2060", "") == reply.text


# --- how a turn can end -----------------------------------------------------------------------------------------------


async def test_turn_that_fails(platform: SlackPlatform, ask: Ask, client: ChatClient):
    """What had come stays, with its code block closed, and a kind line below it says nothing of the machinery."""
    told = Told("See:\n```\ncode", end=Failure("model exploded at http://10.0.0.1"))
    asking = asyncio.ensure_future(ask(told))
    await platform.shows("See:\n```\ncode")
    told.go_on()

    with pytest.raises(ReplyFailedError):
        await asking

    assert platform.texts() == [f"See:\n```\ncode\n```\n\n{WORDS.failed}"]


async def test_stream_that_breaks_off(platform: SlackPlatform, ask: Ask):
    """It is not passed off as a reply."""
    told = Told("One", " two", cut=True)
    told.go_on()

    with pytest.raises(StreamInterruptedError):
        await ask(told)

    assert platform.texts() == [f"One two\n\n{WORDS.interrupted}"]


async def test_turn_that_is_refused(platform: SlackPlatform, scripted: ScriptedServer, client: ChatClient, say_stream):
    """A kind line is all that is shown."""
    scripted.add(Script(json_answer({"error": "bad key"}, status=401)))

    with pytest.raises(Exception, match="401"):
        await reply_stream(say_stream, client.chat("user-1").stream("Hello"), pace=QUICK)

    assert platform.texts() == [WORDS.failed]


async def test_cancelled_listener(platform: SlackPlatform, ask: Ask, scripted: ScriptedServer):
    """What had come is shown as such, the stream in Slack closed, and the connection to the server as well."""
    asking = asyncio.ensure_future(ask(Told("One", " two")))
    await platform.shows("One")

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert platform.texts() == [f"One\n\n{WORDS.stopped}"]
    assert not platform.streaming
    async with asyncio.timeout(5):
        await scripted.requests[0].left.wait()


async def test_cancelled_while_slack_hangs(platform: SlackPlatform, ask: Ask, monkeypatch: pytest.MonkeyPatch):
    """It is over after two seconds at most; here after less."""
    monkeypatch.setattr(slack, "CANCEL_WITHIN", 0.05)
    platform.fail("chat.startStream", HANGING)
    asking = asyncio.ensure_future(ask(Told("One", " two")))
    await platform.shows("One")

    asking.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_cancelled_after_the_reply(platform: SlackPlatform, ask: Ask, monkeypatch: pytest.MonkeyPatch):
    """What is whole is shown as whole."""
    platform.fail("chat.stopStream", rate_limited())
    told = Told("One", " two")
    asking = asyncio.ensure_future(ask(told))
    await platform.shows("One")
    told.go_on()
    await platform.until(lambda: "chat.stopStream" in platform.methods())

    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking

    assert platform.texts() == ["One two"]


async def test_callback_that_fails(platform: SlackPlatform, ask: Ask):
    """Its error comes out, and the message is ended."""

    def fail(text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(Told("One"), on_token=fail)

    assert platform.texts() == [f"One\n\n{WORDS.failed}"]
    assert not platform.streaming


async def test_event_without_a_message(client: ChatClient, web_client: AsyncWebClient):
    """There is no thread to answer in, and nothing is asked."""
    nowhere = AsyncSayStream(client=web_client, channel=CHANNEL)

    with pytest.raises(UsageError, match="no thread"):
        await reply_stream(nowhere, client.chat("user-1").stream("Hello"))


async def test_callback_that_fails_at_the_end(platform: SlackPlatform, ask: Ask):
    """The reply is whole, and shown so."""

    def fail(reply: Reply) -> None:
        raise ZeroDivisionError

    told = Told("One", " two")
    told.go_on()
    with pytest.raises(ZeroDivisionError):
        await ask(told, on_done=fail)

    assert platform.texts() == ["One two"]


# --- a chat in an app -------------------------------------------------------------------------------------------------


async def finished() -> None:
    """Wait until slack-bolt's listeners are through."""
    while running := [task for task in asyncio.all_tasks() if "run_ack_function" in repr(task.get_coro())]:
        await asyncio.wait(running)


@pytest.fixture
async def app(web_client: AsyncWebClient, client: ChatClient) -> AsyncIterator[AsyncApp]:
    app = AsyncApp(client=web_client, signing_secret=SIGNING_SECRET)
    add_chat(app, client, pace=QUICK)
    yield app
    await finished()


@pytest.fixture
def deliver(app: AsyncApp) -> Callable[[dict[str, Any]], Awaitable[int]]:
    """Hand an event to the app, as its adapters do; return the status of its answer."""

    async def deliver(body: dict[str, Any]) -> int:
        return (await app.async_dispatch(AsyncBoltRequest(mode="socket_mode", body=body))).status

    return deliver


def asked(scripted: ScriptedServer) -> list[tuple[str, str]]:
    """Return the session and the message of each question that the server got."""
    return [
        (found[1], found[2])
        for request in scripted.requests
        if (found := re.search(r'"sessionId":"(.*?)".*"message":"(.*?)"', request.body.decode()))
    ]


async def test_mention(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """It is answered in its thread; the server gets the question without the mention, as it was typed."""
    body = platform.event(f"<@{BOT}> is 1 &lt; 2?")

    assert await deliver(body) == 200
    await finished()

    assert platform.texts() == ["Hello world"]
    assert platform.messages[0].thread_ts == body["event"]["ts"]
    assert asked(scripted) == [(f"slack:{TEAM}:{CHANNEL}:{body['event']['ts']}", "is 1 < 2?")]


async def test_direct_message(platform: SlackPlatform, deliver):
    """It is answered as a mention is."""
    assert await deliver(platform.event("Hi", kind="message", channel=DM, channel_type="im")) == 200
    await finished()

    assert platform.texts(DM) == ["Hello world"]


NOT_ASKED = {
    "edited": {"subtype": "message_changed", "message": {"text": "Hi"}},
    "another bot's": {"bot_id": "B0OTHER"},
    "nobody's": {"user": None},
}


@pytest.mark.parametrize("event", NOT_ASKED.values(), ids=NOT_ASKED)
async def test_message_that_asks_nothing(platform: SlackPlatform, scripted: ScriptedServer, deliver, event):
    """It is acknowledged, and not answered."""
    body = platform.event(**{"text": "Hi", "kind": "message", "channel": DM, "channel_type": "im", **event})

    assert await deliver(body) == 200
    await finished()

    assert scripted.requests == []


@pytest.mark.parametrize("event", [{"text": f"<@{BOT}> "}, {"text": "", "subtype": "file_share"}], ids=["name", "file"])
async def test_no_question(platform: SlackPlatform, scripted: ScriptedServer, deliver, event):
    """The bot's name and nothing else, or a picture, is answered with a line, without the model."""
    await deliver(platform.event(**event))
    await finished()

    assert platform.texts() == [WORDS.no_question]
    assert scripted.requests == []


async def test_mention_within_a_question(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """The model does not read the bot's name, wherever it stands; it does read others'."""
    await deliver(platform.event(f"ask <@U0OTHER>, <@{BOT}>"))
    await finished()

    assert [question for _, question in asked(scripted)] == ["ask <@U0OTHER>,"]


async def test_assistant_thread_that_is_opened(platform: SlackPlatform, deliver):
    """The event is acknowledged."""
    body = platform.event("", kind="assistant_thread_started")
    body["event"] = {
        "type": "assistant_thread_started",
        "assistant_thread": {"user_id": USER, "channel_id": DM, "thread_ts": THREAD, "context": {}},
    }

    assert await deliver(body) == 200


async def test_threads(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """Each is a session, for all who write in it."""
    first = platform.event("One", thread_ts=THREAD)
    second = platform.event("Two", thread_ts=THREAD, user="U0OTHER")
    third = platform.event("Three")

    for body in (first, second, third):
        await deliver(body)
        await finished()

    assert [session for session, _ in asked(scripted)] == [
        f"slack:{TEAM}:{CHANNEL}:{THREAD}",
        f"slack:{TEAM}:{CHANNEL}:{THREAD}",
        f"slack:{TEAM}:{CHANNEL}:{third['event']['ts']}",
    ]


async def test_session_for_each_user(platform: SlackPlatform, scripted: ScriptedServer, web_client, client):
    """It is chosen by an option."""
    app = AsyncApp(client=web_client, signing_secret=SIGNING_SECRET)
    add_chat(app, client, per_user=True, pace=QUICK)

    for user in (USER, "U0OTHER"):
        body = platform.event("Hi", thread_ts=THREAD, user=user)
        await app.async_dispatch(AsyncBoltRequest(mode="socket_mode", body=body))
        await finished()

    assert [session for session, _ in asked(scripted)] == [
        f"slack:{TEAM}:{CHANNEL}:{THREAD}:{USER}",
        f"slack:{TEAM}:{CHANNEL}:{THREAD}:U0OTHER",
    ]


def test_session_of_a_thread(say_stream: AsyncSayStream):
    """It is named after team, channel and thread."""
    assert session_id(say_stream) == f"slack:{TEAM}:{CHANNEL}:{THREAD}"
    assert session_id(say_stream, per_user=True) == f"slack:{TEAM}:{CHANNEL}:{THREAD}:{USER}"


async def test_event_that_comes_twice(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """It is answered once, whether it comes again while it is answered or later; and acknowledged each time."""
    told = Told("Hel", "lo")
    scripted.add(told.script)
    body = platform.event("Hi")
    await deliver(body)
    await platform.shows("Hel")

    assert await deliver(body) == 200
    told.go_on()
    await finished()
    assert await deliver(body) == 200
    await finished()

    assert platform.texts() == ["Hello"]
    assert len(scripted.requests) == 1


async def test_word_that_stops(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """Written in the thread while the answer is, it ends it; what had come stays."""
    scripted.add(Told("One", " two").script)
    await deliver(platform.event("Hi", thread_ts=THREAD))
    await platform.shows("One")

    await deliver(platform.event(f"<@{BOT}> Stop", thread_ts=THREAD))
    await finished()

    assert platform.texts() == [f"One\n\n{WORDS.stopped}"]
    assert len(scripted.requests) == 1


async def test_word_of_ones_own_that_stops(platform: SlackPlatform, scripted: ScriptedServer, web_client, client):
    """However it is written, here and by people."""
    app = AsyncApp(client=web_client, signing_secret=SIGNING_SECRET)
    add_chat(app, client, stop_words=["Halt"], pace=QUICK)
    scripted.add(Told("One", " two").script)
    for text in ("Hi", "HALT!"):
        body = platform.event(text, thread_ts=THREAD)
        await app.async_dispatch(AsyncBoltRequest(mode="socket_mode", body=body))
        await platform.until(platform.texts)
    await finished()

    assert platform.texts() == [f"One\n\n{WORDS.stopped}"]


async def test_nothing_to_stop(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """That is said, and is no question."""
    await deliver(platform.event("stop", thread_ts=THREAD))
    await finished()

    assert platform.texts() == [WORDS.not_running]
    assert scripted.requests == []


def test_one_text_as_the_words_that_stop(app: AsyncApp, client: ChatClient):
    """It is refused, as each letter of it would stop."""
    with pytest.raises(ConfigurationError, match="stop_words must be several words"):
        add_chat(app, client, stop_words="stop")


async def test_questions_one_after_the_other(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """The second waits for the answer of the first."""
    first, second = Told("One", " two"), Told("Three")
    second.go_on()
    scripted.add(first.script, second.script)
    await deliver(platform.event("Hi", thread_ts=THREAD))
    await platform.shows("One")

    await deliver(platform.event("And?", thread_ts=THREAD))
    await platform.until(lambda: len(platform.statuses) == 2)
    first.go_on()
    await finished()

    assert platform.texts() == ["One two", "Three"]


async def test_question_that_is_too_long(platform: SlackPlatform, scripted: ScriptedServer, deliver):
    """A kind line says so in the thread."""
    await deliver(platform.event("x" * 5000, thread_ts=THREAD))
    await finished()

    assert platform.texts() == [WORDS.refused]
    assert platform.messages[0].thread_ts == THREAD
    assert scripted.requests == []


async def test_answer_that_fails(platform: SlackPlatform, scripted: ScriptedServer, deliver, caplog):
    """People read a kind line, the log why; neither has the key."""
    scripted.add(Script(json_answer({"error": f"no {KEY}"}, status=401)))

    await deliver(platform.event("Hi"))
    await finished()

    assert platform.texts() == [WORDS.failed]
    assert "401" in caplog.text
    assert KEY not in caplog.text
    assert "Traceback" not in caplog.text


async def test_closed_client(platform: SlackPlatform, client: ChatClient, deliver, caplog):
    """People read a kind line."""
    await client.aclose()

    await deliver(platform.event("Hi"))
    await finished()

    assert platform.texts() == [WORDS.stopped]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("fault", [Fault(error="channel_not_found"), LOST, Fault(status=429)], ids=str)
async def test_line_that_slack_does_not_take(platform: SlackPlatform, deliver, caplog, fault: Fault):
    """Nothing can be done about it, and the log has no traceback for that."""
    platform.fail("chat.postMessage", fault)

    await deliver(platform.event("x" * 5000))
    await finished()

    assert "Traceback" not in caplog.text


# --- over HTTP --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(app: AsyncApp) -> AsyncIterator[str]:
    """Serve an app as `app.start()` does; yield its URL."""
    runner = web.AppRunner(app.web_app(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/slack/events"
    finally:
        await runner.cleanup()


async def test_event_over_http(platform: SlackPlatform, scripted: ScriptedServer, app: AsyncApp):
    """It is acknowledged before there is an answer; delivered again with Slack's header, it is not answered again."""
    told = Told("Hel", "lo")
    scripted.add(told.script)
    body = platform.event("Hi")

    async with served(app) as url:
        assert await platform.deliver(url, body) == 200
        await platform.shows("Hel")
        assert await platform.deliver(url, body, retry=1) == 200
        told.go_on()
        await finished()

    assert platform.texts() == ["Hello"]
    assert len(scripted.requests) == 1


async def test_retry_of_an_event_that_never_came(platform: SlackPlatform, app: AsyncApp):
    """It is answered: that Slack calls it a retry says nothing."""
    async with served(app) as url:
        assert await platform.deliver(url, platform.event("Hi"), retry=2) == 200
        await finished()

    assert platform.texts() == ["Hello world"]


async def test_event_that_is_not_slacks(platform: SlackPlatform, scripted: ScriptedServer, app: AsyncApp):
    """A wrong signature is refused."""
    async with served(app) as url:
        assert await platform.deliver(url, platform.event("Hi"), secret="another") == 401

    assert scripted.requests == []


# --- by Socket Mode ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def linked(app: AsyncApp) -> AsyncIterator[None]:
    """Keep an app connected."""
    handler = AsyncSocketModeHandler(app, APP_TOKEN)
    await handler.connect_async()
    try:
        yield
    finally:
        await finished()
        await handler.close_async()
        # The SDK cancels its tasks and does not wait for them.
        sdk = handler.client
        tasks = (sdk.message_processor, sdk.current_session_monitor, sdk.message_receiver)
        await asyncio.gather(*filter(None, tasks), return_exceptions=True)


async def test_event_by_socket_mode(platform: SlackPlatform, scripted: ScriptedServer, app: AsyncApp):
    """It is acknowledged before there is an answer; the answer survives a new link, over which the event comes again."""
    told = Told("Hel", "lo")
    scripted.add(told.script)
    body = platform.event("Hi")

    async with linked(app):
        await platform.send(body)
        await platform.shows("Hel")
        await platform.refresh()
        await platform.send(body, retry=1)
        told.go_on()
        await finished()

    assert platform.texts() == ["Hello"]
    assert len(scripted.requests) == 1


# --- the example ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def example(platform: SlackPlatform, scripted: ScriptedServer) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run docs/examples/slack_bot.py as a program."""
    settings = {
        "AHEADLESS_BASE_URL": scripted.url,
        "AHEADLESS_API_KEY": KEY,
        "SLACK_API_URL": platform.url,
        "SLACK_BOT_TOKEN": BOT_TOKEN,
        "SLACK_APP_TOKEN": APP_TOKEN,
    }
    program = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLE, env={**os.environ, **settings}, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield program
    finally:
        if program.returncode is None:
            program.kill()
        await program.communicate()


async def test_example(platform: SlackPlatform, scripted: ScriptedServer):
    """In at most forty lines it connects, and answers."""
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 40
    async with example(platform, scripted):
        await platform.send(platform.event("Hi"))
        await platform.shows("Hello world")


async def test_example_that_is_interrupted(platform: SlackPlatform, scripted: ScriptedServer):
    """With Ctrl-C in the middle of an answer, what had come is shown as such, and no stream is left open."""
    scripted.add(Told("One", " two").script)
    async with example(platform, scripted) as program:
        await platform.send(platform.event("Hi"))
        await platform.shows("One")

        program.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            _, complaints = await program.communicate()

    assert platform.texts() == [f"One\n\n{WORDS.stopped}"]
    assert not platform.streaming
    assert (program.returncode, complaints) == (0, b"")
