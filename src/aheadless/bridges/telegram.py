"""Replies on Telegram, with aiogram: as drafts where they work, elsewhere in messages that are edited.

::

    dispatcher = Dispatcher()
    dispatcher.include_router(chat_router(client))
    await dispatcher.start_polling(Bot(token))

Needs the extra `telegram`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs

from aheadless._extras import needs
from aheadless.bridges._delivery import Pace
from aheadless.bridges._ids import platform_id
from aheadless.bridges._telegram_page import Place, StopButton, TelegramPage
from aheadless.bridges._writer import Words, write_reply
from aheadless.exceptions import AheadlessError, StreamStoppedError, UsageError, snippet

with needs("aheadless[telegram]"):
    from aiogram import F, Router
    from aiogram.enums import ChatMemberStatus, ChatType, ContentType
    from aiogram.exceptions import AiogramError
    from aiogram.filters import Command, CommandStart

if TYPE_CHECKING:
    from collections.abc import Generator

    from aiogram import Bot
    from aiogram.types import CallbackQuery, Message, MessageGenerationStopped

    from aheadless import ChatClient, Reply, ReplyStream

__all__ = ["TelegramWords", "chat_router", "reply_stream", "session_id"]

logger: logging.Logger = logging.getLogger("aheadless.telegram")

PRIVATE_PACE: Final = Pace(every=1.0)
# A bot may send 20 messages a minute to a group, and edits count:
# https://core.telegram.org/bots/faq#my-bot-is-hitting-limits-how-do-i-avoid-this
GROUP_PACE: Final = Pace(every=3.0)
# When the bot ends, so long may replies take to say that they were stopped.
FAREWELL_SECONDS: Final = 5.0

# What people send to a bot besides text; not what Telegram itself reports in a chat.
NO_TEXT: Final = {
    ContentType.ANIMATION,
    ContentType.AUDIO,
    ContentType.DOCUMENT,
    ContentType.PHOTO,
    ContentType.STICKER,
    ContentType.VIDEO,
    ContentType.VIDEO_NOTE,
    ContentType.VOICE,
}


@attrs.frozen(kw_only=True)
class TelegramWords(Words):
    """What people read on Telegram besides the replies."""

    hello: str = "Hello! What would you like to know?"
    """To `/start`."""
    no_question: str = "Yes? Ask me something. I can only read text."
    """To a message for the bot that has no text."""
    stop: str = "⏹ Stop"
    """On the button."""
    stopping: str = "Stopped."
    """To who pressed it."""
    not_running: str = "There is nothing to stop."
    """To who pressed it, or sent `/stop`, when no reply is being written any more."""
    not_yours: str = "Only the person who asked can stop this reply."
    """To somebody else who pressed it, or sent `/stop`."""


async def reply_stream(
    message: Message,
    stream: ReplyStream,
    *,
    drafts: bool = True,
    pace: Pace | None = None,
    placeholder: str = "…",
    words: Words | None = None,
) -> Reply:
    """Show a reply to a message, in its chat and topic, while it is being written; return it when it is there.

    In a private chat it is a draft until it is complete, if Telegram has `drafts` for the bot. Otherwise it is a
    message that is edited: about every second, in a group, where it quotes the question, every three; or at another
    `pace`. What is longer than 4096 UTF-16 units goes on in further messages. Markdown is shown as Telegram's own
    formatting, links have no preview, and a name in an answer notifies nobody in a group.

    Raises what ended the turn, after the text so far and some kind `words` about it were shown; NotShownError, with
    the reply, if Telegram did not take the whole text; UsageError for a message that no bot received. If cancelled,
    the turn is interrupted, and one last edit of at most 2 s shows the text so far. As the Bot API has no way to tell
    that a message is the same as one before, a text whose sending timed out may be there twice.
    """
    page = _page(message, stream, drafts=drafts, button=None)
    return await _write(page, message, stream, pace=pace, placeholder=placeholder, words=words)


def _page(message: Message, stream: ReplyStream, *, drafts: bool, button: StopButton | None) -> TelegramPage:
    private = message.chat.type == ChatType.PRIVATE
    return TelegramPage(
        _bot_of(message),
        _place_of(message),
        stream,
        drafts=drafts and private,
        question=None if private else message.message_id,
        mentions=private,
        button=button,
    )


async def _write(
    page: TelegramPage,
    message: Message,
    stream: ReplyStream,
    *,
    pace: Pace | None,
    placeholder: str,
    words: Words | None,
) -> Reply:
    pace = pace or (PRIVATE_PACE if message.chat.type == ChatType.PRIVATE else GROUP_PACE)
    async with page.attended():
        # To conclude, as a draft, or a button, must go.
        return await write_reply(page, stream, pace=pace, placeholder=placeholder, words=words, conclude=True)


def _bot_of(message: Message) -> Bot:
    if message.bot is None:
        raise UsageError("a reply is sent by the bot that received the message; this message has none")
    return message.bot


def _place_of(message: Message) -> Place:
    # Where there are no topics, the id of a thread is that of a message that was answered.
    topic = message.message_thread_id if message.is_topic_message else None
    return Place(_bot_of(message).id, message.chat.id, topic)


def session_id(message: Message, *, per_user: bool = False) -> str:
    """Return the session of a chat or topic: all who write in it share one, or `per_user` each has their own in it."""
    place = _place_of(message)
    parts = (place.chat_id, place.topic)
    return platform_id("tg", *parts, _sender(message)) if per_user else platform_id("tg", *parts)


def chat_router(
    client: ChatClient,
    *,
    per_user: bool = False,
    drafts: bool = True,
    pace: Pace | None = None,
    placeholder: str = "…",
    words: TelegramWords | None = None,
) -> Router:
    """Return a router that answers in private chats every text, in groups what mentions the bot or replies to it.

    ::

        dispatcher.include_router(chat_router(client))

    Each chat and each topic is a session of its own; with `per_user` each person in it is. The other options are those
    of :func:`reply_stream`. A reply can be stopped by who asked, and in a group by administrators: with the button
    below it or with /stop. /start says hello; other commands are left to other routers.

    It answers no bot, and says kindly why there is no answer if there is none. A second question in a session is
    answered after the first, as the client's `on_busy` says. The client stays open when the dispatcher ends; live
    replies are stopped then and show what they have, for which they have five seconds. What fails is logged to
    `aheadless.telegram`.
    """
    bot = _ChatBot(
        client, per_user=per_user, drafts=drafts, pace=pace, placeholder=placeholder, words=words or TelegramWords()
    )
    router = Router(name="aheadless")
    private = F.chat.type == ChatType.PRIVATE
    router.message.register(bot.hello, CommandStart(), private)
    router.message.register(bot.stop, Command("stop"))
    router.message.register(bot.answer, asked)
    router.message.register(bot.no_question, private, F.content_type.in_(NO_TEXT))
    router.callback_query.register(bot.press, F.data.startswith(StopButton.PREFIX))
    router.stopped_message_generation.register(bot.stop_draft)
    router.shutdown.register(bot.close)
    return router


async def asked(message: Message, bot: Bot) -> bool | dict[str, str]:
    """Tell aiogram whether a message is a question to the bot, and hand on its text without the bot's name."""
    text, sender = message.text, message.from_user
    entities = message.entities or []
    if (
        not text
        or message.is_automatic_forward
        or any(each.type == "bot_command" and not each.offset for each in entities)
    ):
        return False
    if sender is not None and sender.is_bot and message.sender_chat is None:  # not an anonymous administrator
        return False
    if message.chat.type == ChatType.PRIVATE:
        return {"question": text}
    me = await bot.me()
    answered = message.reply_to_message
    # The first message of a topic is what all others in it answer.
    meant = (
        answered is not None
        and answered.forum_topic_created is None
        and answered.from_user is not None
        and answered.from_user.id == me.id
    )
    for entity in entities:
        name = entity.extract_from(message.text or "")
        if entity.type == "mention" and name.lower() == f"@{me.username}".lower():
            meant, text = True, text.replace(name, "")
    question = text.strip()
    return {"question": question} if meant else False


@attrs.frozen(eq=False)
class _Live:
    """A reply that is being written."""

    stream: ReplyStream
    place: Place
    asker: int
    task: asyncio.Task[object]


class _ChatBot:
    """The handlers of a router, and the replies that are being written, by the numbers of their buttons."""

    def __init__(
        self,
        client: ChatClient,
        *,
        per_user: bool,
        drafts: bool,
        pace: Pace | None,
        placeholder: str,
        words: TelegramWords,
    ) -> None:
        self._client = client
        self._per_user, self._drafts = per_user, drafts
        self._pace, self._placeholder, self._words = pace, placeholder, words
        self._live: dict[int, _Live] = {}

    async def answer(self, message: Message, question: str) -> None:
        """Answer a question."""
        if not question:
            await self.no_question(message)
            return
        session = session_id(message, per_user=self._per_user)
        try:
            stream = self._client.chat(session).stream(question)
        except AheadlessError as exc:
            logger.warning("a message was not answered: %s", exc, extra={"session_id": session})
            await self._say(message, self._words.about(exc))
            return
        with self._stoppable(message, stream) as button:
            page = _page(message, stream, drafts=self._drafts, button=button)
            try:
                await _write(page, message, stream, pace=self._pace, placeholder=self._placeholder, words=self._words)
            except StreamStoppedError:
                pass
            except AheadlessError as exc:
                why = str(exc.__cause__ or exc).replace(_bot_of(message).token, "…")
                logger.warning("a message was not answered: %s", snippet(why), extra={"session_id": session})

    @contextmanager
    def _stoppable(self, message: Message, stream: ReplyStream) -> Generator[StopButton]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in one
        number = secrets.randbelow(2**31 - 1) + 1  # the id of a draft too: not 0, and nobody guesses it
        self._live[number] = _Live(stream, _place_of(message), _sender(message), task)
        try:
            yield StopButton(number, self._words.stop)
        finally:
            del self._live[number]

    async def hello(self, message: Message) -> None:
        """Greet."""
        await self._say(message, self._words.hello)

    async def no_question(self, message: Message) -> None:
        """Say that there is no text to be read."""
        await self._say(message, self._words.no_question)

    async def stop(self, message: Message) -> None:
        """Stop what is being written where /stop was said."""
        place = _place_of(message)
        here = [live for live in self._live.values() if live.place == place]
        if not here:
            if message.chat.type == ChatType.PRIVATE:  # in a group it may have been another bot that was meant
                await self._say(message, self._words.not_running)
            return
        allowed = [live for live in here if await self._may_stop(_bot_of(message), _sender(message), live)]
        for live in allowed:
            live.stream.stop()
        if not allowed:
            await self._say(message, self._words.not_yours)

    async def press(self, query: CallbackQuery, bot: Bot) -> None:
        """Stop the reply whose button was pressed."""
        live = self._live.get(StopButton.number_in(query.data or ""))
        if live is None:
            text = self._words.not_running
        elif await self._may_stop(bot, query.from_user.id, live):
            live.stream.stop()
            text = self._words.stopping
        else:
            text = self._words.not_yours
        with suppress(AiogramError):  # who pressed does not wait for ever
            await query.answer(text)

    async def stop_draft(self, event: MessageGenerationStopped) -> None:
        """Stop the reply whose draft was stopped."""
        # Found by its id alone, as the chat may be the bot's own: github.com/tdlib/telegram-bot-api/issues/891
        if (live := self._live.get(event.draft_id)) is not None:
            live.stream.stop()

    async def close(self) -> None:
        """Stop all replies, and wait a little for their last words."""
        tasks = {live.task for live in self._live.values()}
        for live in self._live.values():
            live.stream.stop()
        if tasks:
            await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)

    async def _may_stop(self, bot: Bot, person: int, live: _Live) -> bool:
        if person in {live.asker, live.place.chat_id}:  # as themselves, or as the group, as anonymous administrators do
            return True
        try:
            member = await bot.get_chat_member(live.place.chat_id, person)
        except AiogramError:
            return False
        return member.status in {ChatMemberStatus.CREATOR, ChatMemberStatus.ADMINISTRATOR}

    async def _say(self, message: Message, text: str) -> None:
        with suppress(AiogramError):  # nothing is lost by it
            await message.answer(text, parse_mode=None)


def _sender(message: Message) -> int:
    """Return the id of who wrote a message; of the chat for who writes in its name."""
    if message.sender_chat is not None:
        return message.sender_chat.id
    return message.chat.id if message.from_user is None else message.from_user.id
