"""Replies in Slack, by slack-bolt's asynchronous listeners: `reply_stream` in one's own, `add_chat` for all of it.

Needs the extra `slack`. A reply grows as a native stream where Slack lets it, and by edits where not.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import html
import logging
import re
from collections import OrderedDict
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from aheadless._extras import needs
from aheadless.bridges._ids import platform_id
from aheadless.bridges._slack_calls import Problem, Step, Unclear, problem_of, request
from aheadless.bridges._slack_plan import SlackPace, SlackPlan
from aheadless.bridges._split import closed
from aheadless.bridges._writer import CALL_WITHIN, CANCEL_WITHIN, FINAL_WITHIN, NotShownError, Words
from aheadless.exceptions import AheadlessError, StreamStoppedError, UsageError
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
    from slack_sdk.http_retry.async_handler import AsyncRetryHandler

    from aheadless._client import ChatClient
    from aheadless._session import Reply
    from aheadless._stream import ReplyStream

__all__ = ["SlackPace", "add_chat", "reply_stream", "session_id"]

log = logging.getLogger(__name__)

STATUS_WITHIN: Final = 3.0
"""Seconds that Slack has for the status: the first words wait for it."""

REMEMBERED: Final = 30_000
"""Events that are known to have come: as many as Slack delivers to an app in an hour. It gives up on one earlier."""


async def reply_stream(
    say_stream: AsyncSayStream,
    stream: ReplyStream,
    *,
    status: str = "is thinking…",
    words: Words | None = None,
    pace: SlackPace | None = None,
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
    scribe = _Scribe(say_stream, SlackPlan(pace or SlackPace()), status)
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


async def _read(stream: ReplyStream, scribe: _Scribe, words: Words) -> Reply | AheadlessError:
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


class _Answer(Protocol):
    """An answer that says `ok`."""

    def __getitem__(self, key: str) -> object: ...


class _WebApi(Protocol):
    """What is needed of slack_sdk's AsyncWebClient, whose own types say half of it."""

    retry_handlers: list[AsyncRetryHandler]

    async def api_call(self, api_method: str, *, json: dict[str, object]) -> _Answer: ...


class _Scribe:
    """Brings a text to Slack while it grows, in a task of its own: what is read never waits for what is shown."""

    def __init__(self, say_stream: AsyncSayStream, plan: SlackPlan, status: str) -> None:
        self._to = say_stream
        # Without the SDK's retries, which append once more what arrived when only the answer to it was lost.
        self._client: _WebApi = copy.copy(say_stream.client)
        self._client.retry_handlers = []
        self._plan = plan
        self._status = status
        self._hurry = False
        self._text = ""
        self._problem: Problem | None = None  # the last one
        self._now = asyncio.get_running_loop().time
        self._ended = asyncio.Event()
        self._more = asyncio.Event()

    def say(self, text: str) -> None:
        """Take the text so far."""
        self._text = text
        self._more.set()

    def end(self, text: str, *, within: float = FINAL_WITHIN) -> None:
        """Take the whole text, unless there is one, and until when it is to be there."""
        if not self._ended.is_set():
            self.say(text)
        self._plan.finish(self._now(), within=within)
        self._ended.set()

    async def write(self) -> str | None:
        """Set the status, then do as :meth:`bring`."""
        where = {"channel_id": self._to.channel, "thread_ts": self._to.thread_ts}
        outcome = await self._call("assistant.threads.setStatus", {**where, "status": self._status}, STATUS_WITHIN)
        self._hurry = not isinstance(outcome, str)  # without a status people would see nothing before the first words
        return await self.bring()

    async def bring(self) -> str | None:
        """Return when the whole text is shown, or why it will not be. If cancelled, it can be called again."""
        plan = self._plan
        while True:
            self._more.clear()
            step = plan.step(self._text, self._now(), hurry=self._hurry)
            if plan.final and (step is None or plan.exhausted):
                return plan.refused if step is None else str(self._problem)
            if step is None:
                await _pause(self._more, until=plan.closes_at())
            elif (due := plan.due(step)) > self._now():
                await _pause(None if plan.final else self._ended, until=due)
            else:
                await self._make(step)

    async def _make(self, step: Step) -> None:
        began = self._now()
        outcome: str | Problem = Unclear()
        try:
            outcome = await self._call(*request(step, self._to), CALL_WITHIN)
        finally:
            if isinstance(outcome, str):
                self._plan.done(step, began, ts=outcome)
            else:
                self._plan.failed(step, outcome, self._now())
                self._problem = outcome

    async def _call(self, method: str, arguments: dict[str, object], within: float) -> str | Problem:
        """Return the name of the message that was made or changed, or why nobody can say so."""
        try:
            async with asyncio.timeout(within):
                answer = await self._client.api_call(method, json=arguments)
        except Exception as exc:  # noqa: BLE001 - whatever a transport raises: nobody knows whether the call arrived
            problem = problem_of(exc)
            log.debug("%s: %s", method, problem)
            return problem
        return str(answer["ts"])


async def _pause(event: asyncio.Event | None, *, until: float | None) -> None:
    """Wait until a time, or for an event if that comes first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await (event or asyncio.Event()).wait()


# --- a chat in an app -------------------------------------------------------------------------------------------------


def session_id(say_stream: AsyncSayStream, *, user: str | None = None) -> str:
    """Return the session of a thread: all who write in it share one conversation; with a user's id, only theirs."""
    thread = say_stream.recipient_team_id, say_stream.channel, say_stream.thread_ts
    return platform_id("slack", *thread) if user is None else platform_id("slack", *thread, user)


def add_chat(
    app: AsyncApp,
    client: ChatClient,
    *,
    per_user: bool = False,
    stop_words: Collection[str] = ("stop",),
    status: str = "is thinking…",
    words: Words | None = None,
    pace: SlackPace | None = None,
) -> None:
    """Let an app answer where it is mentioned, and all direct messages, each in the thread of the message.

    A thread is a session; `per_user`: each user has one of their own in it. Who writes one of the `stop_words` while an
    answer is written ends it. An event that Slack delivers again is answered once. What fails is said in a short line,
    and logged.

    It takes the events `app_mention`, `message` in direct messages, and those of assistant threads; listeners that were
    added before come first.
    """
    seen = _Seen(REMEMBERED)
    words = words or Words()

    async def answer(
        body: dict[str, Any],
        event: dict[str, Any],
        context: AsyncBoltContext,
        say: AsyncSay,
        say_stream: AsyncSayStream,
    ) -> None:
        if seen.before(body["event_id"]):
            return
        asked = _question(event, context.bot_user_id)
        if not asked:
            return
        chat = client.chat(session_id(say_stream, user=event.get("user") if per_user else None))
        if chat.busy and asked.casefold() in stop_words:
            chat.stop()
            return
        try:
            stream = chat.stream(asked)
        except AheadlessError as exc:
            log.warning("no question in session %s: %s", chat.session_id, exc)
            await say(words.about(exc), thread_ts=say_stream.thread_ts)
            return
        try:
            await reply_stream(say_stream, stream, status=status, words=words, pace=pace)
        except StreamStoppedError:
            log.info("the answer in session %s was stopped", chat.session_id)
        except AheadlessError as exc:
            log.warning("no answer in session %s: %s", chat.session_id, exc)

    async def is_direct(event: dict[str, Any]) -> bool:
        return event.get("channel_type") == "im"

    listen: Any = app  # slack-bolt's own types say half of it
    listen.event("app_mention")(answer)
    listen.event("message", matchers=[is_direct])(answer)
    # What no listener takes is answered with a 404, and Slack counts that as a failure.
    listen.event(re.compile("assistant_thread_(started|context_changed)"))(_let_pass)


async def _let_pass() -> None:
    """Do nothing."""


def _question(event: Mapping[str, Any], bot: str | None) -> str:
    """Return what a person asked in an event, without the mention of the bot before it; empty if nobody asked."""
    if event.get("bot_id") or event.get("subtype") not in {None, "file_share", "thread_broadcast"}:
        return ""
    text = event.get("text") or ""
    if bot is not None:
        text = re.sub(rf"\A\s*<@{re.escape(bot)}(\|[^>]*)?>[,:]?", "", text)
    return html.unescape(text).strip()


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
