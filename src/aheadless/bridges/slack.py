"""Replies in Slack, by slack-bolt's asynchronous listeners: `reply_stream` in one's own, `add_chat` for all of it.

Needs the extra `slack`. A reply grows as a native stream where Slack lets it, and by edits where not.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import re
from collections import OrderedDict
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import attrs

from aheadless._extras import needs
from aheadless.bridges._ids import platform_id
from aheadless.bridges._slack_calls import problem_of
from aheadless.bridges._slack_plan import SlackPace, SlackPlan
from aheadless.bridges._slack_scribe import Scribe
from aheadless.bridges._split import closed
from aheadless.bridges._writer import CANCEL_WITHIN, NotShownError, Words
from aheadless.exceptions import AheadlessError, ConfigurationError, StreamStoppedError, UsageError
from aheadless.protocol.codec import trim
from aheadless.protocol.turn import TurnState

with needs("aheadless[slack]"):
    import_module("slack_bolt")  # only its objects are used, which the application makes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from slack_bolt.app.async_app import AsyncApp
    from slack_bolt.context.async_context import AsyncBoltContext
    from slack_bolt.context.say.async_say import AsyncSay
    from slack_bolt.context.say_stream.async_say_stream import AsyncSayStream

    from aheadless._client import ChatClient
    from aheadless._session import Reply
    from aheadless._stream import ReplyStream

__all__ = ["SlackPace", "SlackWords", "add_chat", "reply_stream", "session_id"]

logger: logging.Logger = logging.getLogger("aheadless.slack")

REMEMBERED: Final = 30_000
"""Events that are known to have come: as many as Slack delivers to an app in an hour. It gives up on one earlier."""


@attrs.frozen(kw_only=True)
class SlackWords(Words):
    """What people read in Slack besides the replies."""

    no_question: str = "Yes? Ask me something. I can only read text."
    """To a message for the bot that has no text."""
    not_running: str = "There is nothing to stop."
    """To a word that stops, where no reply is being written."""


async def reply_stream(
    say_stream: AsyncSayStream,
    stream: ReplyStream,
    *,
    status: str = "is thinking…",
    pace: SlackPace | None = None,
    words: Words | None = None,
) -> Reply:
    """Show a reply in Slack while it is written, and return it.

    `say_stream` is what slack-bolt gives a listener; it says where: in the thread of the event. Until the first words
    come, `status` stands there, or an empty message if the app may not set one. The final text is tried to be shown for
    90 s, whatever failed before. Mentions in it notify nobody.

    Raises what ended the turn, after the text so far and a kind word about it were shown; NotShownError, with the
    reply, if Slack did not take the final text. If cancelled, the turn is interrupted, the text so far is shown as
    such within 2 s, and nothing goes on after that. Raises UsageError for an event without a message to answer.
    """
    if say_stream is None or say_stream.channel is None or say_stream.thread_ts is None:
        raise UsageError(
            "this event has no thread to answer in; make an AsyncSayStream(client=…, channel=…, thread_ts=…)"
        )
    words = words or Words()
    scribe = Scribe(say_stream, SlackPlan(pace or SlackPace()), status)
    writing = asyncio.create_task(scribe.write())
    try:
        outcome = await _read(stream, scribe, words)
        await asyncio.wait({writing})
    except BaseException as exc:  # cancelled, or a callback of the stream's raised
        scribe.end(_last_text(stream, exc, words), within=CANCEL_WITHIN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_WITHIN):
                await asyncio.wait({writing})
                if writing.cancelled():  # asyncio.run() cancels all tasks at its end, that one too
                    await scribe.bring()
        raise
    finally:
        writing.cancel()
        await asyncio.wait({writing})
    why_not = writing.result()
    if isinstance(outcome, AheadlessError):
        raise outcome
    if why_not is not None:
        raise NotShownError(f"Slack did not take the whole reply: {why_not}", reply=outcome)
    return outcome


async def _read(stream: ReplyStream, scribe: Scribe, words: Words) -> Reply | AheadlessError:
    """Read a stream to its end, whichever it is, and hand on what is to be shown of it."""
    try:
        async for _ in stream:
            scribe.say(stream.snapshot)
        reply = await stream.reply()
    except AheadlessError as exc:
        scribe.end(_last_text(stream, exc, words))
        return exc
    scribe.end(reply.text or words.empty)
    return reply


def _last_text(stream: ReplyStream, error: BaseException, words: Words) -> str:
    """Return what had come when an error ended it, and below it what to say of that; nothing if all had come."""
    text = trim(stream.snapshot)
    if stream.state is TurnState.DONE:
        return text or words.empty
    return f"{closed(text)}\n\n{words.about(error)}" if text else words.about(error)


# --- a chat in an app -------------------------------------------------------------------------------------------------


def session_id(say_stream: AsyncSayStream, *, per_user: bool = False) -> str:
    """Return the session of a thread: all who write in it share one conversation, or `per_user` each has their own."""
    thread = say_stream.recipient_team_id, say_stream.channel, say_stream.thread_ts
    return platform_id("slack", *thread, say_stream.recipient_user_id) if per_user else platform_id("slack", *thread)


def add_chat(
    app: AsyncApp,
    client: ChatClient,
    *,
    per_user: bool = False,
    stop_words: Collection[str] = ("stop",),
    status: str = "is thinking…",
    pace: SlackPace | None = None,
    words: SlackWords | None = None,
) -> None:
    """Let an app answer where it is mentioned, and all direct messages, each in the thread of the message.

    Each thread is a session of its own; with `per_user` each person in it is. Who writes one of the `stop_words` in a
    thread ends the answer that is being written there. An event that Slack delivers again is answered once.

    It answers no bot, and says kindly why there is no answer if there is none. A second question in a session is
    answered after the first, as the client's `on_busy` says. The client stays open when the app ends; close it then,
    and live replies show what they have.

    It takes the events `app_mention`, `message` in direct messages, and those of assistant threads; listeners that were
    added before come first. What fails is logged to `aheadless.slack`. Raises ConfigurationError if `stop_words` is one
    text.
    """
    if isinstance(stop_words, str):
        raise ConfigurationError("stop_words must be several words, such as ('stop', 'halt'), not one text")
    chat = _Chat(
        client=client,
        per_user=per_user,
        stop_words={_bare(word) for word in stop_words},
        status=status,
        pace=pace,
        words=words or SlackWords(),
    )
    listen: Any = app  # slack-bolt's own types say half of it
    listen.event("app_mention")(chat.answer)
    listen.event("message", matchers=[_is_direct])(chat.answer)
    # What no listener takes is answered with a 404, and Slack counts that as a failure.
    listen.event(re.compile("assistant_thread_(started|context_changed)"))(_let_pass)


@attrs.frozen(kw_only=True)
class _Chat:
    """The listener for questions, with the options of :func:`add_chat`."""

    client: ChatClient
    per_user: bool
    stop_words: set[str]
    status: str
    pace: SlackPace | None
    words: SlackWords
    seen: _Seen = attrs.field(factory=lambda: _Seen(REMEMBERED))

    # slack-bolt passes its arguments by their names.
    async def answer(
        self,
        body: dict[str, Any],
        event: dict[str, Any],
        context: AsyncBoltContext,
        say: AsyncSay,
        say_stream: AsyncSayStream,
    ) -> None:
        """Answer an event, if somebody asks something in it that was not answered before."""
        question = _question(event, context.bot_user_id)
        if question is None or self.seen.before(body["event_id"]):
            return
        session = session_id(say_stream, per_user=self.per_user)
        try:
            line = await self._reply(session, question, say_stream)
        except AheadlessError as exc:  # before the turn began
            logger.warning("a message was not answered: %s", exc, extra={"session_id": session})
            line = self.words.about(exc)
        if line is not None:
            await _say(say, line, say_stream)

    async def _reply(self, session: str, question: str, say_stream: AsyncSayStream) -> str | None:
        """Show the reply to a question; return what to say if there is none."""
        chat = self.client.chat(session)
        if not question:
            return self.words.no_question
        if _bare(question) in self.stop_words:
            if not chat.busy:
                return self.words.not_running
            chat.stop()
            return None
        stream = chat.stream(question)
        try:
            await reply_stream(say_stream, stream, status=self.status, words=self.words, pace=self.pace)
        except StreamStoppedError:
            pass
        except AheadlessError as exc:
            logger.warning("a message was not answered: %s", exc, extra={"session_id": session})
        return None


async def _is_direct(event: dict[str, Any]) -> bool:
    return event.get("channel_type") == "im"


async def _let_pass() -> None:
    """Do nothing."""


async def _say(say: AsyncSay, text: str, say_stream: AsyncSayStream) -> None:
    """Answer with a line of the app's own, if Slack lets it."""
    try:
        await say(text, thread_ts=say_stream.thread_ts)
    except Exception as exc:  # noqa: BLE001 - slack_sdk passes on what its own library raises
        logger.info("a line was not shown: %s", problem_of(exc))


def _bare(word: str) -> str:
    """Return a word as it is compared: nobody should have to write it without the full stop."""
    return word.casefold().strip(" .!")


def _question(event: Mapping[str, Any], bot: str | None) -> str | None:
    """Return what a person asked in an event, without the mentions of the bot; None if it is not a person's."""
    if event.get("bot_id") or not event.get("user") or event.get("subtype") not in _SPOKEN:
        return None
    text = event.get("text") or ""
    if bot is not None:
        text = re.sub(rf"\A\s*<@{re.escape(bot)}(\|[^>]*)?>[,:]?|<@{re.escape(bot)}(\|[^>]*)?>", "", text)
    return html.unescape(text).strip()


_SPOKEN: Final = {None, "file_share", "thread_broadcast"}


class _Seen:
    """The last events, to know one that comes again."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: OrderedDict[str, None] = OrderedDict()

    def before(self, event_id: str) -> bool:
        """Return whether this event was asked for before, and remember it."""
        if event_id in self._ids:
            return True
        self._ids[event_id] = None
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
        return False
