"""Replies in Discord, with discord.py: :func:`reply_stream` answers a message, :class:`ChatCog` is a whole bot."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

import attrs

from aheadless._extras import needs
from aheadless.bridges._discord_page import NOBODY, ChannelPage, StopView, answer_to
from aheadless.bridges._ids import platform_id
from aheadless.bridges._writer import Words, write_reply
from aheadless.exceptions import AheadlessError, StreamStoppedError, snippet

with needs("aheadless[discord]"):
    import discord
    from discord.ext import commands

if TYPE_CHECKING:
    from aheadless._client import ChatClient
    from aheadless._session import Reply
    from aheadless._stream import ReplyStream
    from aheadless.bridges._delivery import Pace

__all__ = ["ChatCog", "DiscordWords", "reply_stream", "session_id"]

logger: logging.Logger = logging.getLogger("aheadless.discord")

# From the bot's closing to the texts of stopped replies being there, before they are cut off.
UNLOAD_WITHIN: Final = 5.0
# For opening a thread, or saying a line: discord.py sleeps on rate limits for minutes, and people wait meanwhile.
ASIDE_WITHIN: Final = 5.0


@attrs.frozen(kw_only=True)
class DiscordWords(Words):
    """What people read in Discord besides the replies."""

    no_question: str = "Yes? Ask me something. I can only read text."
    """To a message for the bot that has no text."""
    stop: str = "⏹ Stop"
    """On the button."""
    not_yours: str = "Only the person who asked can stop this reply."
    """To somebody else who pressed it."""


async def reply_stream(
    message: discord.Message,
    stream: ReplyStream,
    *,
    channel: discord.abc.Messageable | None = None,
    stop_button: bool = True,
    pace: Pace | None = None,
    placeholder: str = "…",
    words: DiscordWords | None = None,
) -> Reply:
    """Answer a message with a reply while it is written, and return the reply when all of its text is there.

    A placeholder comes at once, as an answer to the message or, without that, in another `channel`; it is edited at the
    given pace (`Pace()`: at most every 1.2 s), and a long reply goes on in further messages, code blocks whole. Nobody
    is ever pinged by what is written. The newest message has a Stop button until the reply is over, for the author of
    the message and for who may manage messages.

    Rate limits and failures of Discord delay no token and lose no text: the last edit is tried for up to 90 s.

    Raises what ended the turn, after the text so far and a kind word about it were shown: StreamStoppedError for the
    button; NotShownError, with the reply, if Discord did not take the text. If cancelled, the turn is interrupted and
    the text so far is shown, within 3 s in all.
    """
    words = words or DiscordWords()
    button = StopView(stream, message.author, label=words.stop, not_yours=words.not_yours) if stop_button else None
    page = ChannelPage(message, stream, channel, button)
    try:
        return await write_reply(page, stream, pace=pace, placeholder=placeholder, words=words, conclude=True)
    finally:
        await page.tidy()


def session_id(
    message: discord.Message, *, channel: discord.abc.Snowflake | None = None, per_user: bool = False
) -> str:
    """Return the session of a channel or thread: all who write in it share one, or `per_user` each has their own in it.

    It is the message's, unless there is another `channel`.
    """
    guild = None if message.guild is None else message.guild.id
    place = message.channel.id if channel is None else channel.id
    return platform_id("discord", guild, place, message.author.id if per_user else None)


class ChatCog(commands.Cog, name="Chat"):
    """Answers who mentions the bot, replies to it, writes to it directly, or writes in a thread that it is in.

    ::

        await bot.add_cog(ChatCog(client))

    Each channel, thread and direct conversation is a session of its own; with `per_user` each person in it is.
    `open_threads` answers a mention in a channel in a new thread, and so in a new session; where the bot may not open
    one it answers in the channel. In threads that it is in, which are those that it opened or once answered in, it
    needs no mention, and keeps out of messages that mention others; that takes the message content intent. The other
    options are those of :func:`reply_stream`.

    It answers no bot and no command of this bot, and says kindly why there is no answer if there is none. A second
    question in a session is answered after the first, as the client's `on_busy` says. The client stays open when the
    bot closes; live replies are stopped then and show what they have, for which they have five seconds. What fails is
    logged to `aheadless.discord`.
    """

    def __init__(
        self,
        client: ChatClient,
        *,
        per_user: bool = False,
        open_threads: bool = False,
        stop_button: bool = True,
        pace: Pace | None = None,
        placeholder: str = "…",
        words: DiscordWords | None = None,
    ) -> None:
        self._client = client
        self._per_user, self._open_threads = per_user, open_threads
        self._stop_button, self._pace, self._placeholder = stop_button, pace, placeholder
        self._words = words or DiscordWords()
        self._live: dict[asyncio.Task[object], ReplyStream] = {}
        self._loaded = False

    def __repr__(self) -> str:
        return f"<ChatCog, {f'{len(self._live)} live replies' if self._loaded else 'not loaded'}>"

    @commands.Cog.listener()
    async def on_message(self, message: discord.Message) -> None:
        """Answer a message, if it is for the bot."""
        if not await _is_asked(message):
            return
        try:
            await self._answer(message)
        except StreamStoppedError:
            pass
        except AheadlessError as exc:
            why = snippet(str(exc.__cause__ or exc))
            logger.warning("a message was not answered: %s", why, extra={"session_id": exc.session_id})

    async def cog_load(self) -> None:
        """Begin to answer."""
        self._loaded = True

    async def cog_unload(self) -> None:
        """Answer nothing more, stop the live replies, and wait until they have shown what they have: 5 s at most."""
        self._loaded = False
        live = tuple(self._live)
        if not live:
            return
        for stream in self._live.values():
            stream.stop()
        _, late = await asyncio.wait(live, timeout=UNLOAD_WITHIN)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _answer(self, message: discord.Message) -> None:
        question = _question(message)
        if not question:
            await _say(message, self._words.no_question)
            return
        channel = await self._place(message, question)
        if not self._loaded:
            return  # while the thread was opened
        try:
            session = session_id(message, channel=channel, per_user=self._per_user)
            stream = self._client.chat(session).stream(question)
        except AheadlessError as exc:
            await _say(message, self._words.about(exc))
            raise
        task: asyncio.Task[object] | None = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in one
        self._live[task] = stream
        try:
            await reply_stream(
                message,
                stream,
                channel=channel,
                stop_button=self._stop_button,
                pace=self._pace,
                placeholder=self._placeholder,
                words=self._words,
            )
        finally:
            del self._live[task]

    async def _place(self, message: discord.Message, question: str) -> discord.Thread | None:
        """Return the thread that is opened for a question; None if it is answered where it was asked."""
        if not self._open_threads or not isinstance(message.channel, discord.TextChannel):
            return None
        try:
            async with asyncio.timeout(ASIDE_WITHIN):
                opening = message.create_thread(name=question.splitlines()[0][:90])
                return await answer_to(opening, message._state.http)  # noqa: SLF001 - as reply_stream() does
        except Exception as exc:  # noqa: BLE001 - discord.py passes on what its own library raises
            logger.info("no thread was opened: %s", exc)
            return None


async def _is_asked(message: discord.Message) -> bool:
    """Whether somebody wants an answer of the bot's."""
    bot = message._state._get_client()  # noqa: SLF001 - a message has no public way to who got it
    if bot.user is None or message.author.bot or message.type not in _SPOKEN:
        return False
    if isinstance(bot, commands.Bot | commands.AutoShardedBot) and (await bot.get_context(message)).valid:
        return False
    if isinstance(message.channel, discord.DMChannel) or bot.user in message.mentions:
        return True
    if not (_names_role(message) or _is_reply_to(bot.user, message) or _goes_on(message)):
        return False
    if not message.content and not bot.intents.message_content:
        logger.warning("what does not mention the bot cannot be read: it needs the message content intent")
    return bool(message.content)


def _names_role(message: discord.Message) -> bool:
    """Whether a message mentions the role that the bot alone has, which Discord's app offers by the same name."""
    role = None if message.guild is None else message.guild.self_role
    return role is not None and role in message.role_mentions


def _is_reply_to(user: discord.ClientUser, message: discord.Message) -> bool:
    """Whether a message replies to one of the user's; who does so need not mention them."""
    replied = None if message.reference is None else message.reference.resolved
    return isinstance(replied, discord.Message) and replied.author == user


def _goes_on(message: discord.Message) -> bool:
    """Whether a message belongs to a thread that the bot is in, and is for nobody in particular."""
    return isinstance(message.channel, discord.Thread) and message.channel.me is not None and not message.mentions


_SPOKEN: Final = (discord.MessageType.default, discord.MessageType.reply)


def _question(message: discord.Message) -> str:
    """Return what is asked: the text without the mention of the bot."""
    names = [f"<@!?{message._state.self_id}>"]  # noqa: SLF001 - as above
    if message.guild is not None and message.guild.self_role is not None:
        names.append(f"<@&{message.guild.self_role.id}>")
    return re.sub("|".join(names), "", message.content).strip()


async def _say(message: discord.Message, text: str) -> None:
    """Answer with a line of the bot's own, if Discord lets it."""
    line = message.channel.send(text, reference=message.to_reference(fail_if_not_exists=False), allowed_mentions=NOBODY)
    try:
        async with asyncio.timeout(ASIDE_WITHIN):
            await answer_to(line, message._state.http)  # noqa: SLF001 - as reply_stream() does
    except Exception as exc:  # noqa: BLE001 - as above
        logger.info("a line was not shown: %s", exc)
