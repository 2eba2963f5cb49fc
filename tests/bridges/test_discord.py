"""The real discord.py, a Discord on loopback, and a Headless server: what people see, whatever Discord does."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import discord
import pytest
from discord.ext import commands

from aheadless import (
    AheadlessError,
    AuthenticationError,
    Chat,
    ChatClient,
    ConnectError,
    RateLimitError,
    ReplyFailedError,
    ReplyStream,
    StreamInterruptedError,
    StreamStoppedError,
)
from aheadless.bridges import NotShownError, Pace
from aheadless.bridges import discord as discord_bridge
from aheadless.bridges.discord import ChatCog, DiscordWords, reply_stream, session_id
from aheadless.server import ScriptedEngine, ServerSettings, run_server
from aheadless.testing import Script, ScriptedServer, events, json_answer, stream_answer
from tests.bridges.discord_platform import (
    ASKER,
    BOT,
    BOT_ROLE,
    CHANNEL,
    DM,
    GUILD,
    MANAGE_MESSAGES,
    MODERATOR,
    OTHER,
    DiscordPlatform,
    Fault,
    intents,
)
from tests.conftest import MakeClient
from tests.support import KEY

QUICK = Pace(first=0.0, every=0.01)
WORDS = DiscordWords()

PROSE = "The quick brown fox jumps over the lazy dog. " * 20 + "\n\n"
Records: TypeAlias = "asyncio.Queue[logging.LogRecord]"
CODE = "```python\n" + "".join(f"line_{number} = {number}  # a line of code\n" for number in range(60)) + "```\n\n"
LONG = (PROSE + CODE) * 2  # some 6000 characters

Hear = Callable[..., Awaitable[discord.Message]]
Ask = Callable[..., Awaitable[Chat]]


@pytest.fixture
async def platform() -> AsyncIterator[DiscordPlatform]:
    async with DiscordPlatform() as platform:
        yield platform


@pytest.fixture
async def bot(platform: DiscordPlatform) -> AsyncIterator[commands.Bot]:
    """A bot that is connected, and does nothing by itself."""
    async with commands.Bot("!", intents=intents(), help_command=None, guild_ready_timeout=0) as bot:
        running = asyncio.create_task(bot.start("token"))
        async with asyncio.timeout(30):
            await platform.connected.wait()
        yield bot
        await bot.close()
        await running


@pytest.fixture
def hear(platform: DiscordPlatform, bot: commands.Bot) -> Hear:
    """Have somebody write a message, and return it as the bot gets it."""

    async def hear(text: str = "Hello", **options: Any) -> discord.Message:
        heard = bot.wait_for("message", check=lambda message: not message.author.bot, timeout=30)
        platform.say(text, **options)
        message: discord.Message = await heard
        return message

    return hear


@pytest.fixture
async def ask(make_client: MakeClient) -> AsyncIterator[Ask]:
    """Return a chat with a server that says these things."""
    async with AsyncExitStack() as stack:

        async def ask(*steps: Any, session: str = "discord") -> Chat:
            server = await stack.enter_async_context(run_server(settings(ScriptedEngine(steps))))
            return make_client(server.url).chat(session)

        yield ask


def settings(engine: ScriptedEngine) -> ServerSettings:
    # Some of the replies never end.
    return ServerSettings(port=0, api_key=KEY, engine=engine, rate_limit=None, shutdown_timeout=0.01)


def tokens(text: str, size: int = 7) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def read_together(shown: list[str]) -> str:
    """Return the text of messages as people read it: without the fences that a cut put in, and without blanks."""
    joined = ""
    for text in shown:
        if joined.count("```") % 2:
            raise AssertionError("a message ends within a code block")
        joined += text.replace("```python\n", "").replace("```", "")
    return "".join(joined.split())


# --- a reply ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def records() -> Iterator[Records]:
    """What the bridge logs, as it does."""
    logged: Records = asyncio.Queue()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.put_nowait(record)

    handler = Handler()
    logger = logging.getLogger("aheadless.discord")
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


async def the_only(records: Records) -> logging.LogRecord:
    """Return the one record that was logged, or is about to be."""
    async with asyncio.timeout(30):
        record = await records.get()
    assert records.empty()
    return record


async def test_short_reply(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """A placeholder at once, then the words as they come, then the whole text, in answer to the message."""
    first, rest = asyncio.Event(), asyncio.Event()
    chat = await ask(first, "Hel", rest, "lo")
    message = await hear("Hi")

    answering = asyncio.create_task(reply_stream(message, chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["…"])
    first.set()
    await platform.until(lambda: platform.shown() == ["Hel"])
    rest.set()
    reply = await answering

    [posted] = platform.written()
    assert (reply.text, posted.states) == ("Hello", ["…", "Hel", "Hello"])
    assert posted.reply_to == message.id
    assert platform.count("typing", 204) == 1
    assert posted.buttons == ()


async def test_long_reply_with_code(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """It goes on in further messages, each with whole code blocks, and nothing is lost."""
    chat = await ask(*tokens(LONG))
    reply = await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    shown = platform.shown()
    assert len(LONG) > 5000
    assert len(shown) >= 3
    assert all(len(text) <= 2000 and text.count("```") % 2 == 0 for text in shown)
    assert read_together(shown) == read_together([reply.text])
    assert [posted.reply_to is None for posted in platform.written()] == [False] + [True] * (len(shown) - 1)
    assert all(posted.buttons == () for posted in platform.written())


async def test_astral_characters(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """Emoji count twice, as they do in Discord's own app."""
    chat = await ask("🦊 " * 1200)
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert all(len(text.encode("utf-16-le")) // 2 <= 2000 for text in platform.shown())
    assert "".join(platform.shown()).count("🦊") == 1200


async def test_nobody_is_pinged(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """Not by what the model writes, nor by the answer itself, in any state of it."""
    text = f"@everyone <@{OTHER}> look"
    chat = await ask(*tokens(text))
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    [posted] = platform.written()
    assert (posted.content, posted.pings) == (text, False)


async def test_no_button(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """Without it there is none."""
    more = asyncio.Event()
    chat = await ask("One", more)
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK, stop_button=False))
    await platform.until(lambda: platform.shown() == ["One"])

    assert platform.written()[0].buttons == ()
    more.set()
    await answering


# --- Discord has its limits -------------------------------------------------------------------------------------------


async def test_rate_limits(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """However slow Discord wants it, tokens are read as they come, and the last text is there."""
    chat = await ask(*tokens("word " * 300, 5))
    read: list[str] = []
    reply = await reply_stream(await hear(), chat.stream("Hi", on_token=read.append), pace=Pace(first=0, every=0))

    assert len(read) == 300
    assert platform.shown() == [reply.text]
    assert platform.count("edit") < 30  # and not one for each token


@pytest.mark.parametrize("call", ["typing", "post", "edit"])
@pytest.mark.parametrize("everywhere", [False, True], ids=["route", "global"])
async def test_429(platform: DiscordPlatform, hear: Hear, ask: Ask, call: Any, everywhere: bool):
    """Several in a row, on any call, only take their time."""
    platform.faults.append(Fault(call, 429, retry_after=0.05, times=3, everywhere=everywhere))
    chat = await ask("Hel", "lo")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]
    assert platform.count(call, 429) >= 3


async def test_limit_beyond_what_the_bot_waits_for(platform: DiscordPlatform, hear: Hear, ask: Ask, bot: commands.Bot):
    """discord.py then raises instead of sleeping; the text comes when it may."""
    bot.http.max_ratelimit_timeout = 0.05  # from 30 on for users
    platform.faults.append(Fault("edit", 429, retry_after=0.2, times=2))
    chat = await ask("Hel", "lo")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]


async def test_cancel_during_a_global_limit(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The bot is not dumb afterwards, as discord.py would leave it."""
    platform.faults.append(Fault("edit", 429, retry_after=600, everywhere=True))
    more = asyncio.Event()
    chat = await ask("One", more)
    message = await hear()
    answering = asyncio.create_task(reply_stream(message, chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.count("edit", 429))

    answering.cancel()
    platform.lift_limit()
    with pytest.raises(asyncio.CancelledError):
        await answering
    more.set()
    async with asyncio.timeout(10):
        await message.channel.send("I am here")

    assert "I am here" in platform.shown()


async def test_slow_edit(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """What was written meanwhile is shown in one edit after it, and an old text never comes after a new one."""
    slow, more = asyncio.Event(), asyncio.Event()
    platform.faults.append(Fault("edit", 0, gate=slow))
    chat = await ask("One", more, *tokens(" two three four five", 2))
    stream = chat.stream("Hi")
    answering = asyncio.create_task(reply_stream(await hear(), stream, pace=QUICK))
    await platform.until(lambda: platform.count("edit", 0))

    more.set()
    reply = await chat_done(stream)
    slow.set()
    await answering

    [posted] = platform.written()
    assert posted.states == ["…", "One", reply]


async def chat_done(stream: ReplyStream) -> str:
    """Wait until a stream that somebody else reads is done; return its text."""
    async for _ in stream.subscribe():
        pass
    return stream.snapshot


# --- Discord fails ----------------------------------------------------------------------------------------------------


async def test_typing_is_forbidden(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """It does not matter."""
    platform.faults.append(Fault("typing", 403, code=50013))
    chat = await ask("Hello")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]


async def test_typing_hangs(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The placeholder does not wait for it."""
    platform.faults.append(Fault("typing", 0, gate=asyncio.Event()))
    chat = await ask("Hello")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]


async def test_writing_is_forbidden(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The reply is read to its end, and is on the error."""
    platform.faults.append(Fault("post", 403, code=50013, times=99))
    chat = await ask("Hel", "lo")
    with pytest.raises(NotShownError) as caught:
        await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert caught.value.reply.text == "Hello"
    assert isinstance(caught.value.__cause__, Exception)
    assert platform.count("post") == 1


async def test_edits_become_forbidden(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """Nothing is tried again that was refused for good."""
    platform.faults.append(Fault("edit", 403, code=50001, times=99))
    chat = await ask("Hel", "lo")
    with pytest.raises(NotShownError) as caught:
        await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert caught.value.reply.text == "Hello"


@pytest.mark.parametrize(("call", "status"), [("post", 503), ("edit", 503), ("edit", 500)])
async def test_discord_fails(platform: DiscordPlatform, hear: Hear, ask: Ask, call: Any, status: int):
    """The next attempt makes good for it."""
    platform.faults.append(Fault(call, status))
    chat = await ask("Hel", "lo")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]


async def test_answer_to_a_post_is_lost(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The message is there once, although it was sent twice, and with the latest text."""
    platform.faults.append(Fault("post", 503, carry_out=True))
    chat = await ask("Hel", "lo")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]
    assert platform.count("post") == 2


async def test_post_is_lost_and_deleted(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """What arrived unnoticed and was deleted is written anew."""
    platform.faults.append(Fault("post", 503, carry_out=True))
    chat = await ask("Hello")
    message = await hear()
    answering = asyncio.create_task(reply_stream(message, chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.count("post"))
    platform.remove(platform.written()[0])
    await answering

    assert platform.shown() == ["Hello"]


async def test_message_is_deleted_in_mid_reply(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The text goes on in a new one, whole."""
    more = asyncio.Event()
    chat = await ask("One", more, " two")
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["One"])

    platform.remove(platform.written()[0])
    more.set()
    await answering

    assert platform.shown() == ["One two"]
    assert platform.written()[0].buttons == ()


async def test_question_is_deleted(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """It is answered all the same."""
    chat = await ask("Hello")
    message = await hear()
    platform.remove(platform.messages[message.id])
    await reply_stream(message, chat.stream("Hi"), pace=QUICK)

    [posted] = platform.written()
    assert (posted.content, posted.reply_to) == ("Hello", None)


async def test_ban_by_a_proxy(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """A 429 that is not Discord's own says in its header when to come back."""
    platform.faults.append(Fault("edit", 429, retry_after=0.1, by_proxy=True))
    chat = await ask("Hello")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert platform.shown() == ["Hello"]


async def test_history_may_not_be_read(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """Then no message can be answered as such, but one can be written."""
    platform.faults.append(Fault("post", 400, code=160002))
    chat = await ask("Hello")
    await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    [posted] = platform.written()
    assert (posted.content, posted.reply_to) == ("Hello", None)


@pytest.mark.parametrize("seed", range(6))
async def test_everything_at_once(platform: DiscordPlatform, hear: Hear, ask: Ask, seed: int):
    """Whatever fails, and in whichever order, the whole text is there at the end, once, and no button."""
    chance = random.Random(seed)
    for _ in range(6):
        call: Any = chance.choice(["typing", "post", "edit"])
        fault = Fault(call, chance.choice([429, 503]), retry_after=chance.random() * 0.1, skip=chance.randrange(4))
        fault.everywhere, fault.carry_out = chance.random() < 0.3, chance.random() < 0.5
        platform.faults.append(fault)
    chat = await ask(*tokens(LONG, chance.choice([5, 50, 500])))
    reply = await reply_stream(await hear(), chat.stream("Hi"), pace=QUICK)

    assert read_together(platform.shown()) == read_together([reply.text])
    assert all(posted.buttons == () for posted in platform.written())


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "permissions"), [(ASKER, 0), (MODERATOR, MANAGE_MESSAGES)], ids=["asker", "moderator"]
)
async def test_stop(platform: DiscordPlatform, hear: Hear, ask: Ask, user: int, permissions: int):
    """The text so far stays, with a word about it, and without the button."""
    chat = await ask("Once upon", asyncio.Event())
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["Once upon"])

    await platform.click(platform.written()[0], user=user, permissions=permissions)
    with pytest.raises(StreamStoppedError) as caught:
        await answering

    [posted] = platform.written()
    assert caught.value.partial == "Once upon"
    assert (posted.content, posted.buttons) == (f"Once upon\n\n{WORDS.stopped}", ())
    assert platform.responses == [{"type": 6}]


async def test_stop_by_somebody_else(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """They are told, alone, and the reply goes on."""
    more = asyncio.Event()
    chat = await ask("Once upon", more, " a time")
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["Once upon"])

    await platform.click(platform.written()[0], user=OTHER)
    more.set()
    reply = await answering

    [response] = platform.responses
    assert (response["data"]["content"], response["data"]["flags"]) == (WORDS.not_yours, 64)
    assert platform.shown() == [reply.text] == ["Once upon a time"]


async def test_stop_before_the_first_word(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The placeholder has the button as well."""
    chat = await ask(asyncio.Event())
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["…"])

    await platform.click(platform.written()[0])
    with pytest.raises(StreamStoppedError):
        await answering

    assert platform.shown() == [WORDS.stopped]
    assert platform.written()[0].buttons == ()


@pytest.mark.parametrize("user", [ASKER, OTHER], ids=["asker", "other"])
async def test_click_is_answered_too_late(
    platform: DiscordPlatform, hear: Hear, ask: Ask, user: int, caplog: pytest.LogCaptureFixture
):
    """Discord waits three seconds for the bot's answer to a click; that it came late is no error of the bot's."""
    more = asyncio.Event()
    chat = await ask("Once upon", more)
    platform.faults.append(Fault("callback", 404, code=10062))
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["Once upon"])

    await platform.click(platform.written()[0], user=user)
    more.set()
    await asyncio.wait([answering])

    assert isinstance(answering.exception(), StreamStoppedError) == (user == ASKER)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_button_is_on_the_newest_message(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """It goes down with the text."""
    more, end = asyncio.Event(), asyncio.Event()
    chat = await ask("word " * 600, more, "word", end)
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: buttons(platform) == [1, 1])
    more.set()
    await platform.until(lambda: buttons(platform) == [0, 1])
    end.set()
    await answering

    assert buttons(platform) == [0, 0]


async def test_button_cannot_be_taken_away_at_once(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """It is tried again for a moment, although the text needs no more edits."""
    end = asyncio.Event()
    chat = await ask("One", end)
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["One"])
    platform.faults.append(Fault("edit", 503))
    end.set()
    await answering

    assert platform.count("edit", 503) == 1
    assert buttons(platform) == [0]


async def test_message_is_deleted_after_its_last_word(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """As long as the reply is not over, it is written anew."""
    end = asyncio.Event()
    chat = await ask("One", end)
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["One"])
    platform.remove(platform.written()[0])
    end.set()
    await answering

    assert platform.shown() == ["One"]
    assert buttons(platform) == [0]


def buttons(platform: DiscordPlatform) -> list[int]:
    return [len(posted.buttons) for posted in platform.written()]


# --- the other side fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (Script(json_answer({"error": "no"}, status=401)), AuthenticationError, WORDS.failed),
        (Script(json_answer({"error": "slow"}, status=429)), RateLimitError, WORDS.rate_limited),
        (Script(stream_answer([*events("Half")[:-1], b'{"type":"error","error":"secret"}\n'])), ReplyFailedError, f"Half\n\n{WORDS.failed}"),
        (Script(stream_answer(events("Half", " a word")[:-2])), StreamInterruptedError, f"Half\n\n{WORDS.interrupted}"),
    ],
    ids=["401", "429", "error event", "cut"],
)  # fmt: skip
async def test_no_reply(
    platform: DiscordPlatform,
    hear: Hear,
    client: ChatClient,
    scripted: ScriptedServer,
    script: Script,
    error: type[AheadlessError],
    words: str,
):
    """What had come stays, and a kind word says what is wrong; nothing of the machinery is to be seen."""
    scripted.add(script)
    with pytest.raises(error):
        await reply_stream(await hear(), client.chat("discord").stream("Hi"), pace=QUICK)

    assert platform.shown() == [words]
    assert platform.written()[0].buttons == ()


async def test_no_server(platform: DiscordPlatform, hear: Hear, make_client: MakeClient):
    """The URL that cannot be reached is nobody's business in the channel."""
    client = make_client("http://127.0.0.1:1")
    with pytest.raises(ConnectError):
        await reply_stream(await hear(), client.chat("discord").stream("Hi"), pace=QUICK)

    assert platform.shown() == [WORDS.unreachable]


async def test_cancel(platform: DiscordPlatform, hear: Hear, ask: Ask):
    """The text so far is shown, and nothing goes on."""
    chat = await ask("One", asyncio.Event())
    answering = asyncio.create_task(reply_stream(await hear(), chat.stream("Hi"), pace=QUICK))
    await platform.until(lambda: platform.shown() == ["One"])

    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering

    assert platform.shown() == [f"One\n\n{WORDS.stopped}"]
    assert platform.written()[0].buttons == ()
    assert not chat.busy


# --- a whole bot ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cog(bot: commands.Bot, platform: DiscordPlatform, make_client: MakeClient) -> AsyncIterator[Any]:
    """Give the bot a ChatCog, and return the engine that it talks to."""
    async with AsyncExitStack() as stack:

        async def cog(*scripts: Any, **options: Any) -> ScriptedEngine:
            engine = ScriptedEngine(*scripts)
            server = await stack.enter_async_context(run_server(settings(engine)))
            await bot.add_cog(ChatCog(make_client(server.url), pace=QUICK, **options))
            return engine

        yield cog


def asked(engine: ScriptedEngine) -> list[list[str]]:
    """Return the questions of each reply's conversation."""
    return [[message.text for message in history if message.role == "user"] for history in engine.asked]


async def settled(platform: DiscordPlatform, channel: int = CHANNEL, *, texts: list[str]) -> None:
    """Wait until a channel has these texts of the bot's, and no button."""
    await platform.until(
        lambda: platform.shown(channel) == texts and all(not posted.buttons for posted in platform.written(channel))
    )


async def test_mention(platform: DiscordPlatform, cog: Any):
    """Who mentions the bot is answered, and the model does not read the mention."""
    engine = await cog(["Hello"])
    platform.say("Hi there", mention=True)
    await settled(platform, texts=["Hello"])

    assert asked(engine) == [["Hi there"]]


async def test_direct_message(platform: DiscordPlatform, cog: Any):
    """It needs no mention."""
    engine = await cog(["Hello"])
    platform.say("Hi there", channel=DM)
    await settled(platform, DM, texts=["Hello"])

    assert asked(engine) == [["Hi there"]]


async def test_not_for_the_bot(platform: DiscordPlatform, bot: commands.Bot, cog: Any):
    """Not without a mention, nor to bots or to itself, nor to what the system says, nor to commands."""
    engine = await cog(["Hello"])
    ran: list[str] = []

    @bot.command()
    async def ping(context: Any) -> None:
        ran.append("ping")

    thread = platform.open_thread("not the bot's")
    platform.say("Not to you")
    platform.say("Nor here", channel=thread)
    platform.say("I am a bot", mention=True, is_bot=True, author=OTHER)
    platform.say("I am you", channel=DM, is_bot=True, author=BOT)
    platform.say("pinned a message", mention=True, kind=6)
    platform.say("!ping", channel=DM)
    platform.say("To you", mention=True)
    await settled(platform, texts=["Hello"])

    assert asked(engine) == [["To you"]]
    assert ran == ["ping"]


async def test_reply_that_mentions_nobody(platform: DiscordPlatform, cog: Any):
    """Who replies to the bot is answered, also with the mention switched off; who replies to others is not."""
    engine = await cog(["Hello"])
    platform.say("Hi", mention=True)
    await settled(platform, texts=["Hello"])
    of_ada = platform.messages[platform.say("I like foxes", author=OTHER)]
    platform.say("Me too", reply_to=of_ada)
    platform.say("And you?", reply_to=platform.written()[0])
    await settled(platform, texts=["Hello", "Hello"])

    assert asked(engine) == [["Hi"], ["Hi", "And you?"]]


async def test_mention_of_the_role_of_the_bot(platform: DiscordPlatform, cog: Any):
    """It has the bot's name, and people take the one for the other."""
    engine = await cog(["Hello"])
    platform.say(f"<@&{GUILD}> who are you?", roles=[GUILD])
    platform.say(f"<@&{BOT_ROLE}> who are you?", roles=[BOT_ROLE])
    await settled(platform, texts=["Hello"])

    assert asked(engine) == [["who are you?"]]


async def test_sessions(platform: DiscordPlatform, cog: Any):
    """Each channel is a conversation of its own, whoever speaks."""
    engine = await cog(["Hello"])
    for number, (channel, author) in enumerate([(CHANNEL, ASKER), (DM, ASKER), (CHANNEL, OTHER)]):
        before = platform.shown(channel)
        platform.say(str(number), mention=True, channel=channel, author=author)
        await settled(platform, channel, texts=[*before, "Hello"])

    assert asked(engine) == [["0"], ["1"], ["0", "2"]]


async def test_session_id(hear: Hear):
    """It names the server, the channel, and the person if that is wanted."""
    message = await hear()

    assert session_id(message) == f"discord:{GUILD}:{CHANNEL}:-"
    assert session_id(message, per_user=True) == f"discord:{GUILD}:{CHANNEL}:{ASKER}"
    assert session_id(message, channel=discord.Object(7)) == f"discord:{GUILD}:7:-"


async def test_sessions_per_user(platform: DiscordPlatform, cog: Any):
    """With the option, each person has their own in it."""
    engine = await cog(["Hello"], per_user=True)
    for number, author in enumerate([ASKER, OTHER, ASKER]):
        platform.say(str(number), mention=True, author=author)
        await settled(platform, texts=["Hello"] * (number + 1))

    assert asked(engine) == [["0"], ["1"], ["0", "2"]]


async def test_questions_queue(platform: DiscordPlatform, cog: Any):
    """A second question in a session is answered after the first, and shows at once that it was heard."""
    go = asyncio.Event()
    await cog([go, "first"], ["second"])
    platform.say("One", mention=True)
    await platform.until(lambda: platform.shown() == ["…"])
    platform.say("Two", mention=True)
    await platform.until(lambda: platform.shown() == ["…", "…"])
    go.set()

    await settled(platform, texts=["first", "second"])


async def test_thread_that_the_bot_is_in(platform: DiscordPlatform, cog: Any):
    """Once it was mentioned there it goes on without, in a session of the thread's, but does not meddle."""
    engine = await cog(["Hello"])
    thread = platform.open_thread("a thread")
    platform.say("Come here", channel=thread, mention=True)
    await settled(platform, thread, texts=["Hello"])
    platform.say(f"<@{OTHER}> not the bot", channel=thread, mentions=OTHER)
    platform.say("And now?", channel=thread)
    await settled(platform, thread, texts=["Hello", "Hello"])

    assert asked(engine) == [["Come here"], ["Come here", "And now?"]]


async def test_thread_that_cannot_be_read(
    platform: DiscordPlatform, bot: commands.Bot, cog: Any, caplog: pytest.LogCaptureFixture, records: Records
):
    """Discord empties the messages for a bot without the intent; the log says why nothing is answered."""
    bot._connection._intents.message_content = False
    engine = await cog(["Hello"])
    thread = platform.open_thread("a thread")
    platform.say("Come here", channel=thread, mention=True)
    await settled(platform, thread, texts=["Hello"])
    platform.say("", channel=thread)
    record = await the_only(records)

    assert "message content intent" in record.getMessage()
    assert len(engine.asked) == 1


async def test_open_threads(platform: DiscordPlatform, cog: Any):
    """A mention in a channel opens a thread, in which the conversation goes on."""
    engine = await cog(["Hello"], open_threads=True)
    question = platform.say("Tell me\nmore", mention=True)
    await settled(platform, question, texts=["Hello"])
    platform.say("And then?", channel=question)
    await settled(platform, question, texts=["Hello", "Hello"])

    assert platform.threads == {question: "Tell me"}
    assert asked(engine) == [["Tell me\nmore"], ["Tell me\nmore", "And then?"]]
    assert platform.shown() == []


async def test_threads_are_forbidden(platform: DiscordPlatform, cog: Any):
    """Then the answer is where the question is."""
    platform.faults.append(Fault("thread", 403, code=50013))
    await cog(["Hello"], open_threads=True)
    platform.say("Hi", mention=True)

    await settled(platform, texts=["Hello"])


async def test_threads_too_often(platform: DiscordPlatform, cog: Any, monkeypatch: pytest.MonkeyPatch):
    """Nobody waits for their answer as long as Discord wants the bot to wait with the next thread."""
    monkeypatch.setattr(discord_bridge, "ASIDE_WITHIN", 0.1)
    platform.faults.append(Fault("thread", 429, retry_after=600))
    await cog(["Hello"], open_threads=True)
    platform.say("Hi", mention=True)

    await settled(platform, texts=["Hello"])


async def test_bot_closes_while_a_thread_is_opened(platform: DiscordPlatform, bot: commands.Bot, cog: Any):
    """Nothing is asked any more: nobody would hear the answer."""
    opened = asyncio.Event()
    platform.faults.append(Fault("thread", status=0, gate=opened))
    engine = await cog(["Hello"], open_threads=True)
    platform.say("Hi", mention=True)
    await platform.until(lambda: platform.count("thread") == 1)
    [answering] = [task for task in asyncio.all_tasks() if "on_message" in task.get_name()]

    await bot.remove_cog("Chat")
    opened.set()
    await answering

    assert (engine.asked, platform.written()) == ([], [])


async def test_no_question(platform: DiscordPlatform, cog: Any):
    """A mention and nothing else is answered with a line, without the model."""
    engine = await cog(["Hello"])
    platform.say("", mention=True)
    await settled(platform, texts=[WORDS.no_question])

    assert engine.asked == []


async def test_line_that_discord_does_not_take_now(
    platform: DiscordPlatform,
    cog: Any,
    caplog: pytest.LogCaptureFixture,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
):
    """It is left out."""
    caplog.set_level(logging.INFO, "aheadless.discord")
    monkeypatch.setattr(discord_bridge, "ASIDE_WITHIN", 0.1)
    platform.faults.append(Fault("post", 429, retry_after=600))
    await cog()
    platform.say("", mention=True)
    record = await the_only(records)

    assert "a line was not shown" in record.getMessage()


async def test_question_that_the_api_would_not_take(platform: DiscordPlatform, cog: Any):
    """People with Discord's paid plan can write more than the API takes."""
    engine = await cog(["Hello"])
    platform.say("x" * 4001, mention=True)
    await settled(platform, texts=[WORDS.refused])

    assert engine.asked == []


async def test_own_words(platform: DiscordPlatform, cog: Any):
    """A bot speaks the language of its people."""
    await cog(["Hello"], words=DiscordWords(no_question="Ja?"), placeholder="Moment …")
    platform.say("", mention=True)
    await settled(platform, texts=["Ja?"])
    platform.say("Hallo", mention=True)
    await settled(platform, texts=["Ja?", "Hello"])

    assert platform.written()[1].states[0] == "Moment …"


async def test_failure_is_logged(
    platform: DiscordPlatform, cog: Any, caplog: pytest.LogCaptureFixture, records: Records
):
    """People read a kind line, and the bot's owner what it was; no traceback."""
    caplog.set_level(logging.WARNING, "aheadless.discord")
    await cog([ValueError("the model is ill")])
    platform.say("Hi", mention=True)
    await settled(platform, texts=[WORDS.failed])
    record = await the_only(records)

    assert record.exc_info is None
    assert f"discord:{GUILD}:{CHANNEL}" in record.__dict__["session_id"]


async def test_refusal_is_logged(
    platform: DiscordPlatform, cog: Any, caplog: pytest.LogCaptureFixture, records: Records
):
    """The bot's owner reads why nothing was shown."""
    caplog.set_level(logging.WARNING, "aheadless.discord")
    platform.faults.append(Fault("post", 403, code=50013, times=99))
    await cog(["Hello"])
    platform.say("Hi", mention=True)
    record = await the_only(records)

    assert "50013" in record.getMessage()
    assert record.exc_info is None


async def test_bot_closes_in_mid_reply(platform: DiscordPlatform, bot: commands.Bot, cog: Any):
    """What had come is shown before the connection is closed."""
    await cog(["Once upon", asyncio.Event()])
    platform.say("Hi", mention=True)
    await platform.until(lambda: platform.shown() == ["Once upon"])

    await bot.close()

    [posted] = platform.written()
    assert (posted.content, posted.buttons) == (f"Once upon\n\n{WORDS.stopped}", ())


# --- the example ------------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "discord_bot.py"
# The program knows nothing of a platform but Discord, so somebody else has to lead discord.py to this one.
RUNNER = """
import runpy, sys
from tests.bridges.discord_platform import use_platform
use_platform(sys.argv[1])
runpy.run_path(sys.argv[2], run_name="__main__")
"""


async def test_example(platform: DiscordPlatform):
    """A mention opens a thread and is answered there, and Ctrl-C in the middle of a reply leaves what there is."""
    engine = ScriptedEngine(["Hello"], ["Once upon", asyncio.Event()])
    async with run_server(settings(engine)) as server:
        keys = {"AHEADLESS_BASE_URL": server.url, "AHEADLESS_API_KEY": KEY, "DISCORD_TOKEN": "token"}
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", RUNNER, platform.url, EXAMPLE, cwd=EXAMPLE.parents[2], env={**os.environ, **keys}
        )
        try:
            question = platform.say("Hi", mention=True)
            await settled(platform, question, texts=["Hello"])
            platform.say("A story, please", channel=question)
            await platform.until(lambda: platform.shown(question) == ["Hello", "Once upon"])
        finally:
            program.send_signal(signal.SIGINT)
            try:
                async with asyncio.timeout(30):
                    exit_code = await program.wait()
            finally:
                if program.returncode is None:
                    program.kill()
                    await program.wait()

    assert exit_code == 0
    assert platform.shown(question) == ["Hello", f"Once upon\n\n{WORDS.stopped}"]
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 40
