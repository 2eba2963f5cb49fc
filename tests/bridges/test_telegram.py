"""Replies on Telegram: the real aiogram, polling a Bot API on loopback, on a clock that jumps."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
from aiogram import Bot, Dispatcher, Router
from aiogram.client.default import DefaultBotProperties
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message

from aheadless import ChatClient, ReplyFailedError, Retry
from aheadless.bridges import NotShownError, Pace, Words
from aheadless.bridges._entities import utf16_length
from aheadless.bridges.telegram import TelegramWords, chat_router, reply_stream
from aheadless.exceptions import UsageError
from aheadless.protocol.events import Event, Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, lines, stream_answer
from tests.bridges.telegram_platform import ADA, BEN, GROUP, PRIVATE, TOKEN, Fault, Shown, TelegramPlatform
from tests.support import KEY
from tests.virtual import run_virtually

WORDS = TelegramWords()
PATIENCE = 0.005


def story(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on a loop whose clock jumps as soon as everybody waits."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtually(asyncio.wait_for(test(*args, **kwargs), 3600), patience=PATIENCE)

    return run


@attrs.frozen
class Stage:
    """Telegram, a bot on it, and the chat server behind the bot."""

    platform: TelegramPlatform
    server: ScriptedServer
    client: ChatClient
    bot: Bot
    dispatcher: Dispatcher

    def session_ids(self) -> list[str]:
        """Return the sessions that asked, in order."""
        return [request.body.decode().split('"sessionId":"')[1].split('"')[0] for request in self.server.requests]


@asynccontextmanager
async def stage(
    *scripts: Script,
    router: Callable[[ChatClient], Router] = chat_router,
    edit_interval: float = 1.0,
    drafts: bool = True,
    **bot_options: Any,
) -> AsyncGenerator[Stage]:
    async with (
        TelegramPlatform(edit_interval=edit_interval, drafts=drafts) as platform,
        ScriptedServer(*scripts) as server,
        ChatClient(server.url, api_key=KEY, retry=Retry(attempts=1), max_wait=0) as client,
    ):
        bot = Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(platform.url)), **bot_options)
        dispatcher = Dispatcher()
        dispatcher.include_router(router(client))
        polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=False, polling_timeout=5))
        try:
            await platform.until(lambda: platform.made("getMe"))
            yield Stage(platform, server, client, bot, dispatcher)
        finally:
            with suppress(RuntimeError):  # a test may have ended it
                await dispatcher.stop_polling()
            await polling


class Writing:
    """A reply that the server writes at the pace of a test."""

    def __init__(self, *tokens: str, end: Sequence[Event | bytes] | None = None) -> None:
        items = events(*tokens) if end is None else [Start(CONVERSATION_ID), *map(Token, tokens), *end]
        data = stream_answer(items, framing="close")
        sizes = [len(line) for line in lines(items)]
        offsets = [len(data) - sum(sizes[index:]) for index in range(1, len(sizes))]
        self._gates = [asyncio.Event() for _ in offsets]
        self.script = Script(data, end="fin", gates=dict(zip(offsets, self._gates, strict=True)))

    def go_on(self, count: int = 1) -> None:
        """Let so many events more be sent: a token each, and then the end."""
        for gate in [gate for gate in self._gates if not gate.is_set()][:count]:
            gate.set()

    async def finish(self, *, every: float = 0.0) -> None:
        """Let all that is left be sent, one event every so many seconds."""
        for gate in self._gates:
            if not gate.is_set():
                await asyncio.sleep(every)
                gate.set()


def answer(*tokens: str) -> Script:
    return Script(stream_answer(events(*tokens)))


def group(text: str = "@loopback_bot Hello?") -> dict[str, Any]:
    return {"text": text, "chat": GROUP}


# --- drafts -----------------------------------------------------------------------------------------------------------


@story
async def test_private_chat():
    """The reply is a draft while it is written, in Telegram's own words at first, and a message in the end."""
    writing = Writing("Hello ", "**Ada**", "!")
    async with stage(writing.script) as at:
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.draft() == "")
        writing.go_on()
        await at.platform.until(lambda: at.platform.draft() == "Hello")
        assert at.platform.said() == []

        await writing.finish()
        await at.platform.until(at.platform.said)

        [shown] = at.platform.said()
        assert (shown.text, shown.pieces("bold"), shown.buttons) == ("Hello Ada!", ["Ada"], [])
        assert (shown.preview, shown.silent, shown.reply_to) == (False, False, None)
        assert at.platform.draft() is None
        assert at.session_ids() == ["tg:1001:-"]


@story
async def test_draft_while_nothing_comes():
    """It is shown again before it fades, however long the silence; until there are words, somebody types."""
    writing = Writing("One", " two")
    async with stage(writing.script) as at:
        await at.platform.say("Hello?")
        await asyncio.sleep(50)
        assert at.platform.draft() == ""
        assert len(at.platform.made("sendChatAction")) >= 10

        writing.go_on()
        await at.platform.until(lambda: at.platform.draft() == "One")
        typed = len(at.platform.made("sendChatAction"))
        await asyncio.sleep(50)
        assert at.platform.draft() == "One"
        assert len(at.platform.made("sendChatAction")) == typed

        await writing.finish()
        await at.platform.until(at.platform.said)
        await asyncio.sleep(50)
        assert (at.platform.texts(), at.platform.draft()) == (["One two"], None)


@story
async def test_private_chat_without_drafts():
    """A placeholder comes at once and is edited about once a second, which is never too often for Telegram."""
    writing = Writing(*(f"word{number} " for number in range(60)))
    async with stage(writing.script, drafts=False) as at:
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.texts() == ["…"])
        await writing.finish(every=0.1)
        await at.platform.until(lambda: at.platform.texts()[0].endswith("word59"))

        [shown] = at.platform.said()
        assert 6 <= len(shown.versions) <= 10
        assert shown.versions[1] in {"word0 word1 word2", "word0 word1 word2 word3"}
        assert len(at.platform.made("sendMessageDraft")) == 1  # refused, and not tried again
        refused = [call.status for call in at.platform.made("editMessageText")].count(429)
        assert refused <= 1  # the last one does not wait for the pace


@story
async def test_draft_in_a_topic():
    """A private chat with topics has a draft and a session in each."""
    async with stage(answer("Hello")) as at:
        await at.platform.say("Hello?", topic=7)
        await at.platform.until(at.platform.said)

        assert at.platform.said()[0].topic == 7
        assert {call.fields["message_thread_id"] for call in at.platform.made("sendMessageDraft")} <= {"7"}
        assert at.session_ids() == ["tg:1001:7"]


@story
async def test_two_questions_at_once():
    """There is one draft in a chat: the second answer is a message from the beginning. Both are whole."""
    first, second = Writing("One"), Writing("Two")
    async with stage(first.script, second.script) as at:
        await at.platform.say("First?")
        await at.platform.until(lambda: at.platform.draft() == "")
        await at.platform.say("Second?")
        await at.platform.until(at.platform.said)
        await first.finish()
        await second.finish()
        await at.platform.until(lambda: {*at.platform.texts()} == {"One", "Two"})

        assert len({draft.draft_id for draft in at.platform.drafts_seen}) == 1


# --- groups -----------------------------------------------------------------------------------------------------------


@story
async def test_group():
    """A mention is answered below the question, quoting it, at the slower pace of groups; names notify nobody."""
    writing = Writing("Hello ", "@ada_lovelace ", "and ", "@loopback_bot.")
    async with stage(writing.script) as at:
        question = await at.platform.say("Hello, @Loopback_Bot!", chat=GROUP, topic=3)
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["…"])
        await writing.finish(every=2.0)
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["Hello @ada_lovelace and @loopback_bot."])

        [shown] = at.platform.said(GROUP)
        assert (shown.reply_to, shown.topic) == (question.message_id, 3)
        assert shown.pieces("code") == ["@ada_lovelace", "@loopback_bot"]
        times = [call.at for call in at.platform.made("editMessageText")]
        assert all(later - earlier >= 2.9 for earlier, later in pairwise(times[:-1]))
        assert at.platform.made("sendMessageDraft") == []
        assert at.session_ids() == ["tg:-100200300:3"]
        assert b'"message":"Hello, !"' in at.server.requests[0].body


@story
async def test_who_is_answered_in_a_group():
    """A reply to the bot is; what is said to others, by a bot, or first in a topic that the bot opened, is not."""
    async with stage(answer("Hello"), answer("Again")) as at:
        await at.platform.say("Nobody in particular", chat=GROUP)
        await at.platform.say("@loopback_bot Hello?", chat=GROUP, sender={**ADA, "is_bot": True})
        await at.platform.say("Forwarded @loopback_bot", chat=GROUP, is_automatic_forward=True)
        await at.platform.say("@loopback_bot Hello?", chat=GROUP)
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["Hello"])
        await at.platform.say("And now?", chat=GROUP, sender=BEN, reply_to=at.platform.said(GROUP)[0])
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["Hello", "Again"])

        assert at.session_ids() == ["tg:-100200300:-"] * 2


@story
async def test_sessions_of_users():
    """Each user of a group can have a session."""
    async with stage(answer("A"), answer("B"), router=functools.partial(chat_router, per_user=True)) as at:
        await at.platform.say("@loopback_bot Hello?", chat=GROUP)
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["A"])
        await at.platform.say("@loopback_bot Hello?", chat=GROUP, sender=BEN)
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["A", "B"])

        assert at.session_ids() == ["tg:-100200300:-:1001", "tg:-100200300:-:1002"]


@story
async def test_no_question():
    """The bot's name and nothing else is answered with a line, without the model."""
    async with stage() as at:
        await at.platform.say("@loopback_bot", chat=GROUP)
        await at.platform.until(lambda: at.platform.texts(GROUP) == [WORDS.no_question])

        assert at.server.requests == []


# --- long replies, and replies that Telegram does not like ------------------------------------------------------------

CODE = "\n".join(f"print('line {number} \N{GRINNING FACE}')" for number in range(400))
LONG = f"First **bold** words.\n\n```python\n{CODE}\n```\n\nLast words."


@pytest.mark.parametrize("chat", [PRIVATE, GROUP], ids=["draft", "edits"])
@story
async def test_long_reply_with_code(chat):
    """It is whole, in messages that Telegram takes, with the code as code in each; only the first makes a sound."""
    writing = Writing(*(LONG[at : at + 97] for at in range(0, len(LONG), 97)))
    async with stage(writing.script) as at:
        await at.platform.say("@loopback_bot Code?", chat=chat)
        await writing.finish(every=0.05)
        await at.platform.until(lambda: at.platform.texts(chat) and at.platform.texts(chat)[-1].endswith("Last words."))
        await asyncio.sleep(30)

        shown = at.platform.said(chat)
        assert [message.silent for message in shown] == [False] + [True] * (len(shown) - 1)
        assert all(utf16_length(message.text) <= 4096 for message in shown)
        assert "\n".join(piece for message in shown for piece in message.pieces("pre")) == CODE
        assert shown[0].pieces("bold") == ["bold"]
        languages = {entity.get("language") for message in shown for entity in message.entities}
        assert languages == {None, "python"}
        assert [message.buttons for message in shown] == [[]] * len(shown)


FAULTS = {
    "rate limit": [Fault(429, "Too Many Requests: retry after 3", retry_after=3)] * 2,
    "server errors": [Fault(), Fault(502, raw="<html>Bad Gateway</html>")],
    "lost": [Fault(lost=True)],
    "a new reason": [Fault(400, "Bad Request: some new reason")] * 3,
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize(
    ("chat", "method"),
    [(PRIVATE, "sendMessageDraft"), (PRIVATE, "sendMessage"), (GROUP, "sendMessage"), (GROUP, "editMessageText")],
    ids=["draft", "sent draft", "message", "edit"],
)
@story
async def test_faults(chat, method, faults):
    """Whatever fails, and for as long as it does, the final text is there in the end."""
    writing = Writing("Hello ", "**there**", ", Ada!")
    async with stage(writing.script) as at:
        at.platform.fail(method, *faults)
        await at.platform.say("@loopback_bot Hello?", chat=chat)
        await writing.finish(every=1.0)
        # As the model wrote it if it is the formatting that Telegram does not like, as it may be.
        whole = ["Hello there, Ada!"], ["Hello **there**, Ada!"]
        await at.platform.until(
            lambda: at.platform.texts(chat)[-1:] in whole and not at.platform.said(chat)[-1].buttons
        )


@story
async def test_fault_at_the_very_end():
    """The final text waits as long as Telegram demands, and no longer."""
    writing = Writing("Hello")
    async with stage(writing.script) as at:
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.draft() == "")
        at.platform.fail("sendMessage", Fault(429, "Too Many Requests", retry_after=20))
        await writing.finish()
        await at.platform.until(at.platform.said)

        refused, sent = at.platform.made("sendMessage")
        assert (refused.status, sent.status) == (429, 200)
        assert 20.0 <= sent.at - refused.at < 21.0


@story
async def test_drafts_too_often():
    """There are none for as long as Telegram says, but the message does not wait for that."""
    writing = Writing("One ", "two ", "three")
    async with stage(writing.script) as at:
        at.platform.fail("sendMessageDraft", Fault(429, "Too Many Requests", retry_after=300))
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.made("sendMessageDraft"))
        asked = asyncio.get_running_loop().time()
        await writing.finish(every=2.0)
        await at.platform.until(lambda: at.platform.texts() == ["One two three"])

        assert asyncio.get_running_loop().time() - asked < 12.0
        assert len(at.platform.made("sendMessageDraft")) == 1


@story
async def test_drafts_too_often_in_a_long_reply():
    """The messages that would have been drafts are sent all the same."""
    writing = Writing(*(f"{number:04} {'word ' * 19}\n" for number in range(150)))
    async with stage(writing.script) as at:
        at.platform.fail("sendMessageDraft", Fault(429, "Too Many Requests", retry_after=300))
        await at.platform.say("Hello?")
        await writing.finish(every=0.05)
        await at.platform.until(lambda: any("0149" in text for text in at.platform.texts()))

        assert re.findall(r"\d{4}", "".join(at.platform.texts())) == [f"{number:04}" for number in range(150)]


@story
async def test_message_deleted_in_mid_reply():
    """The reply goes on in a new message."""
    writing = Writing("One ", "two ", "three")
    async with stage(writing.script) as at:
        await at.platform.say(**group())
        writing.go_on()
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["One"])
        at.platform.delete(at.platform.said(GROUP)[0])
        await writing.finish()
        await at.platform.until(lambda: at.platform.texts(GROUP) == ["One two three"])


@pytest.mark.parametrize("method", ["sendMessageDraft", "sendMessage", "editMessageText"])
@story
async def test_formatting_that_is_refused(method):
    """The text comes as the model wrote it."""
    chat = GROUP if method == "editMessageText" else PRIVATE
    writing = Writing("Hello ", "**Ada**")
    async with stage(writing.script) as at:
        await at.platform.say("@loopback_bot Hello?", chat=chat)
        await at.platform.until(lambda: at.platform.texts(chat) == ["…"] or at.platform.draft() == "")
        at.platform.fail(method, *[Fault(400, "Bad Request: ENTITY_BOUNDS_INVALID")] * 2)
        await writing.finish(every=4.0)
        await at.platform.until(lambda: at.platform.texts(chat) in (["Hello **Ada**"], ["Hello Ada"]))


@story
async def test_bot_is_blocked(caplog):
    """Nothing is shown, but the reply is read to its end, and kept."""
    writing = Writing("One ", "two")
    async with stage(writing.script) as at:
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.draft() == "")
        at.platform.block()
        await writing.finish(every=2.0)
        while at.client.chat("tg:1001:-").busy:
            await asyncio.sleep(1)

        assert at.client.chat("tg:1001:-").messages[-1].text == "One two"
    assert "blocked by the user" in caplog.text
    assert KEY not in caplog.text
    assert TOKEN not in caplog.text


@story
async def test_parse_mode_of_the_bot():
    """A bot that formats by itself does not break replies."""
    async with stage(answer("1 < 2"), default=DefaultBotProperties(parse_mode="HTML")) as at:
        await at.platform.say("Hello?")
        await at.platform.until(at.platform.said)

        assert at.platform.texts() == ["1 < 2"]


# --- stopping ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def half_a_reply(chat: dict[str, Any] = PRIVATE, **options: Any) -> AsyncGenerator[tuple[Stage, Shown]]:
    """A stage on which Ada has asked, and half a reply is shown."""
    writing = Writing("Half of ", "a reply")
    async with stage(writing.script, **options) as at:
        question = await at.platform.say("@loopback_bot Hello?", chat=chat)
        writing.go_on()
        await at.platform.until(lambda: at.platform.draft(chat) == "Half of" or at.platform.texts(chat) == ["Half of"])
        yield at, question


STOPPED = f"Half of\n\n{WORDS.stopped}"


@story
async def test_stop_button():
    """Who asked presses it: the text so far stays, with a word that it was stopped, and without the button."""
    async with half_a_reply(GROUP) as (at, _):
        await at.platform.press(at.platform.said(GROUP)[0])
        await at.platform.until(lambda: at.platform.texts(GROUP) == [STOPPED] and at.platform.answers)

        assert (at.platform.answers, at.platform.said(GROUP)[0].buttons) == ([WORDS.stopping], [])
        assert at.client.chat("tg:-100200300:-").messages[-1].status == "interrupted"


@pytest.mark.parametrize(
    "fault", [Fault(), Fault(429, "Too Many Requests", retry_after=3), Fault(lost=True)], ids=["down", "429", "lost"]
)
@story
async def test_stop_button_that_cannot_be_taken_away_at_once(fault):
    """It is tried again: in the end no message has one."""
    long = "word " * 1500
    writing = Writing(*(long[at : at + 500] for at in range(0, len(long), 500)))
    async with stage(writing.script) as at:
        at.platform.fail("editMessageReplyMarkup", fault, fault, fault)
        await at.platform.say(**group())
        await writing.finish(every=2.0)
        await at.platform.until(
            lambda: len(at.platform.said(GROUP)) > 1 and not any(s.buttons for s in at.platform.said(GROUP))
        )

        assert [shown.buttons for shown in at.platform.said(GROUP)] == [[], []]


@pytest.mark.parametrize("how", ["deleted", "blocked"])
@story
async def test_stop_button_that_cannot_be_taken_away(how):
    """Nothing waits for that."""
    long = "word " * 1500
    writing = Writing(*(long[at : at + 500] for at in range(0, len(long), 500)))
    async with stage(writing.script) as at:
        await at.platform.say(**group())
        writing.go_on(5)
        await at.platform.until(lambda: at.platform.texts(GROUP) and len(at.platform.texts(GROUP)[0]) > 2000)
        if how == "deleted":
            at.platform.delete(at.platform.said(GROUP)[0])
        else:
            at.platform.block(GROUP)
        started = asyncio.get_running_loop().time()
        await writing.finish()
        while at.client.chat("tg:-100200300:-").busy:
            await asyncio.sleep(0.1)
        await at.dispatcher.stop_polling()

        assert asyncio.get_running_loop().time() - started < 10


@story
async def test_stop_button_of_a_draft():
    """Telegram's own: the draft becomes a message."""
    async with half_a_reply() as (at, _):
        await at.platform.press_stop(at.platform.drafts_seen[-1])
        await at.platform.until(lambda: at.platform.texts() == [STOPPED])

        assert at.platform.draft() is None


@pytest.mark.parametrize("chat", [PRIVATE, GROUP], ids=["private", "group"])
@story
async def test_stop_command(chat):
    """It stops what is being written in this chat."""
    async with half_a_reply(chat) as (at, _):
        await at.platform.say("/stop", chat=chat)
        await at.platform.until(lambda: at.platform.texts(chat) == [STOPPED])


@story
async def test_stop_in_another_topic():
    """It stops nothing here."""
    async with half_a_reply(GROUP) as (at, _):
        await at.platform.say("/stop", chat=GROUP, topic=9)
        await at.platform.say("/stop@loopback_bot", chat=GROUP)
        await at.platform.until(lambda: at.platform.texts(GROUP) == [STOPPED])

        assert [call.fields.get("message_thread_id") for call in at.platform.made("sendMessage")] == [None]


@pytest.mark.parametrize("how", ["button", "command"])
@story
async def test_others_stop(how):
    """Nobody but who asked can, and the group's administrators."""

    async def stop(at: Stage) -> None:
        if how == "button":
            await at.platform.press(at.platform.said(GROUP)[0], sender=BEN)
        else:
            await at.platform.say("/stop", chat=GROUP, sender=BEN)

    async with half_a_reply(GROUP) as (at, _):
        await stop(at)
        await at.platform.until(lambda: WORDS.not_yours in at.platform.answers + at.platform.texts(GROUP))
        assert at.platform.texts(GROUP)[0] == "Half of"

        at.platform.administrators.append(BEN)
        await stop(at)
        await at.platform.until(lambda: at.platform.texts(GROUP)[0] == STOPPED)


@story
async def test_anonymous_administrator_stops():
    """They write as the group."""
    async with half_a_reply(GROUP) as (at, _):
        await at.platform.say("/stop", chat=GROUP, sender={**BEN, "is_bot": True}, sender_chat=GROUP)
        await at.platform.until(lambda: at.platform.texts(GROUP) == [STOPPED])


@story
async def test_nothing_to_stop():
    """A button that a bot before left behind says so, as does /stop."""
    async with stage() as at:
        await at.platform.update(
            callback_query={
                "id": "1",
                "from": ADA,
                "chat_instance": "1",
                "data": "aheadless:stop:12345",
            }
        )
        await at.platform.until(lambda: at.platform.answers == [WORDS.not_running])
        await at.platform.say("/stop")
        await at.platform.until(lambda: at.platform.texts() == [WORDS.not_running])


@story
async def test_bot_ends_in_mid_reply():
    """The reply is stopped, and says so before the bot is gone."""
    async with half_a_reply() as (at, _):
        await at.dispatcher.stop_polling()

        assert at.platform.texts() == [STOPPED]


# --- other messages, and failures -------------------------------------------------------------------------------------


@story
async def test_start():
    """The first word of each private chat is greeted, and not asked. Other commands are others' business."""
    async with stage() as at:
        await at.platform.say("/settings now")
        await at.platform.say("/start")
        await at.platform.until(lambda: at.platform.texts() == [WORDS.hello])

        assert at.server.requests == []


@story
async def test_question_that_begins_with_a_slash():
    """What is no command is a question."""
    async with stage(answer("A file.")) as at:
        await at.platform.say("/etc/hosts: what is it?")
        await at.platform.until(lambda: at.platform.texts() == ["A file."])


@story
async def test_photo():
    """The bot says that it cannot see it."""
    photo = [{"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}]
    async with stage() as at:
        await at.platform.update(
            message={
                "message_id": 1,
                "date": 1,
                "chat": PRIVATE,
                "from": ADA,
                "photo": photo,
                "caption": "What is this?",
            }
        )
        await at.platform.until(lambda: at.platform.texts() == [WORDS.no_question])


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [([], WORDS.failed), (["Half"], f"Half\n\n{WORDS.failed}"), (["```py\nx"], f"x\n\n{WORDS.failed}")],
    ids=["at once", "in the middle", "in a block of code"],
)
@pytest.mark.parametrize("chat", [PRIVATE, GROUP], ids=["draft", "edits"])
@story
async def test_reply_fails(chat, tokens, shown, caplog):
    """The text so far stays, with a kind word; the reason is for the log alone."""
    writing = Writing(*tokens, end=[Failure("model exploded at 10.0.0.7")])
    async with stage(writing.script) as at:
        await at.platform.say("@loopback_bot Hello?", chat=chat)
        await writing.finish(every=1.0)
        await at.platform.until(lambda: at.platform.texts(chat) == [shown])

    assert "model exploded" in caplog.text
    assert KEY not in caplog.text


@story
async def test_question_that_is_too_long():
    """It is not sent, and a word says so: Telegram's messages may be a little longer than the API's."""
    async with stage() as at:
        await at.platform.say("x" * 4096)
        await at.platform.until(lambda: at.platform.texts() == [WORDS.refused])

        assert at.server.requests == []


@story
async def test_own_words():
    """Each can be another."""
    words = TelegramWords(hello="Salut !", failed="Oh.")
    async with stage(router=functools.partial(chat_router, words=words)) as at:
        at.server.add(Script(stream_answer([Start(CONVERSATION_ID), Failure("no")])))
        await at.platform.say("/start")
        await at.platform.until(lambda: at.platform.texts() == ["Salut !"])
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.texts() == ["Salut !", "Oh."])


# --- in a bot of one's own --------------------------------------------------------------------------------------------


class OwnBot:
    """A bot whose handler is the test's."""

    def __init__(self, **options: Any) -> None:
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[Any] | None = None
        self._options = options

    def router(self, client: ChatClient) -> Router:
        router = Router()

        @router.message()
        async def handle(message: Message) -> None:
            self.task = asyncio.current_task()
            try:
                reply = await reply_stream(message, client.chat("own").stream(message.text or ""), **self._options)
            except BaseException as exc:
                self.outcome.set_result(exc)
                raise
            self.outcome.set_result(reply)

        return router


@story
async def test_reply_stream():
    """It returns the reply when its text is there; its draft has no button, as nobody would hear it."""
    own = OwnBot()
    async with stage(answer("Hello"), router=own.router) as at:
        await at.platform.say("Hello?")
        reply = await own.outcome

        assert (reply.text, at.platform.texts()) == ("Hello", ["Hello"])
        assert not any(draft.can_stop for draft in at.platform.drafts_seen)


@story
async def test_reply_stream_without_drafts():
    """Who does not want them has messages that are edited, at a pace of one's own."""
    own = OwnBot(drafts=False, placeholder="Well …", pace=Pace(first=0.0, every=5.0))
    writing = Writing(*"abcdefghijkl")
    async with stage(writing.script, router=own.router) as at:
        await at.platform.say("Hello?")
        await at.platform.until(lambda: at.platform.texts() == ["Well …"])
        await writing.finish(every=1.0)
        await own.outcome

        assert at.platform.drafts_seen == []
        assert len(at.platform.said()[0].versions) in {4, 5}


@story
async def test_reply_stream_raises():
    """What ended the turn reaches the handler, after people were told in its words."""
    own = OwnBot(words=Words(failed="Sorry."))
    async with stage(Script(stream_answer([Start(CONVERSATION_ID), Failure("no")])), router=own.router) as at:
        await at.platform.say("Hello?")

        assert isinstance(await own.outcome, ReplyFailedError)
        assert at.platform.texts() == ["Sorry."]


@story
async def test_reply_that_is_not_shown():
    """The handler gets the whole reply with the error."""
    own = OwnBot()
    async with stage(answer("Hello"), router=own.router) as at:
        at.platform.block()
        await at.platform.say("Hello?")
        error = await own.outcome

        assert isinstance(error, NotShownError)
        assert error.reply.text == "Hello"


@pytest.mark.parametrize("chat", [PRIVATE, GROUP], ids=["draft", "edits"])
@story
async def test_handler_is_cancelled(chat):
    """The text so far stays, the turn is over, and nothing of the bridge runs on."""
    own = OwnBot()
    writing = Writing("Half of ", "a reply")
    async with stage(writing.script, router=own.router) as at:
        await at.platform.say("Hello?", chat=chat)
        await at.platform.until(lambda: at.platform.draft(chat) == "" or at.platform.texts(chat) == ["…"])
        writing.go_on()
        await at.platform.until(lambda: at.platform.draft(chat) == "Half of" or at.platform.texts(chat) == ["Half of"])
        assert own.task is not None
        own.task.cancel()

        assert isinstance(await own.outcome, asyncio.CancelledError)
        assert at.platform.texts(chat)[0].startswith("Half of")
        assert at.client.chat("own").messages[-1].status == "cancelled"


async def test_message_of_no_bot():
    """It cannot be answered, and the question is not sent."""
    message = Message.model_validate({"message_id": 1, "date": 1, "chat": PRIVATE, "text": "Hello?"})
    async with ChatClient("http://127.0.0.1:1", api_key=KEY) as client:
        with pytest.raises(UsageError, match="this message has none"):
            await reply_stream(message, client.chat("own").stream("Hello?"))


# --- the example ------------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "telegram_bot.py"
# aiogram's default server is a frozen value that its sessions hold: so a whole program can be led elsewhere.
RUN = """
import runpy, sys
from aiogram.client import telegram
object.__setattr__(telegram.PRODUCTION, "base", sys.argv[1] + "/bot{token}/{method}")
runpy.run_path(sys.argv[2], run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process there without a word")
async def test_example():
    """The bot as a process of its own: it answers, and when it is ended in mid-reply, it says so."""
    half = Writing("Half of ", "a reply")
    async with TelegramPlatform() as platform, ScriptedServer(answer("Hello **Ada**"), half.script) as server:
        keys = {"AHEADLESS_BASE_URL": server.url, "AHEADLESS_API_KEY": KEY, "TELEGRAM_TOKEN": TOKEN}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUN, platform.url, EXAMPLE),
            env={**os.environ, **keys},
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(50):
                await platform.say("Hello?")
                await platform.until(lambda: platform.texts() == ["Hello Ada"])
                await platform.say("And now?")
                half.go_on()
                # It is a draft unless the one before is still being put away.
                await platform.until(lambda: "Half of" in {platform.draft(), platform.texts()[-1]})
                process.terminate()
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            _, errors = await process.communicate()

        assert platform.texts() == ["Hello Ada", STOPPED]
        assert (process.returncode, b"Traceback" in errors) == (0, False), errors.decode()
