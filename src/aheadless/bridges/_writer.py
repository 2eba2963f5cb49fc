"""The loop between a reply that is being written and a platform on which it is shown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

import attrs

from aheadless.bridges._delivery import Pace, Schedule
from aheadless.bridges._split import closed, cut
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    InvalidRequestError,
    RateLimitError,
    RejectedError,
    RequestTimeoutError,
    SessionBusyError,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
)
from aheadless.protocol.codec import trim
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    from aheadless._session import Reply
    from aheadless._stream import ReplyStream

__all__ = ["MessageGone", "NotShownError", "Page", "PageRefused", "RetryLater", "Words", "write_reply"]

M = TypeVar("M")

# A call that takes longer hangs, or sleeps in the platform's library because of a rate limit; the text is old by then.
CALL_WITHIN: Final = 20.0
# From the end of the reply to its text being there, however often the platform fails.
FINAL_WITHIN: Final = 90.0
# What a bot that is being shut down still has to show the text so far.
CANCEL_WITHIN: Final = 2.0
# Somebody, or a moderator's bot, deletes the messages as they come.
MAX_GONE: Final = 3


class RetryLater(Exception):  # noqa: N818 - it says what to do, as what it stands for does
    """Raised by a page: the platform wants no call for so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds

    def __str__(self) -> str:
        return f"not before {self.seconds:g} s have passed"


class MessageGone(Exception):  # noqa: N818 - as above
    """Raised by a page: the message that was to be edited has been deleted."""


class PageRefused(Exception):  # noqa: N818 - as above
    """Raised by a page: nothing can be written here, and trying again is of no use."""


class NotShownError(AheadlessError):
    """The reply is complete, but the platform did not take all of its text; the error's cause says why."""

    default_delivery = Delivery.ACCEPTED

    reply: Reply
    """What was to be shown."""

    def __init__(self, message: str, *, reply: Reply) -> None:
        super().__init__(message, session_id=reply.session_id)
        self.reply = reply

    def __reduce__(self) -> tuple[object, ...]:
        return (_unpickled, (self.args[0], self.reply), {"delivery": self.delivery})

    async def recover(self, *, wait: float = 30.0) -> Reply | None:  # noqa: ARG002 - nothing is waited for
        """Return the reply that travels along."""
        return self.reply


def _unpickled(message: str, reply: Reply) -> NotShownError:
    return NotShownError(message, reply=reply)


class Page(Protocol[M]):
    """One place of a platform where a reply is written; `M` is the platform's kind of message.

    Calls are made one at a time; one that takes longer than 20 s is cancelled. Whatever else they raise counts as a
    failure of the way to the platform: the next edit makes good for it, and the final one is tried again.
    """

    @property
    def limit(self) -> int:
        """How long a message may be."""
        ...

    def length(self, text: str) -> int:
        """Return how long a text is, as the platform counts."""
        ...

    async def post(self, text: str) -> M:
        """Write a new message below the last one. Raises RetryLater or PageRefused where the platform says so."""
        ...

    async def edit(self, message: M, text: str) -> None:
        """Replace the text of a message. Raises RetryLater, MessageGone or PageRefused."""
        ...


@attrs.frozen(kw_only=True)
class Words:
    """What people read when there is no reply, or not a whole one: short, kind, and nothing of the machinery."""

    stopped: str = "⏹ Stopped."
    """Below the text so far, when somebody stopped the reply or the bot is shut down."""
    empty: str = "I have no answer to that."
    """In the place of a reply without a character that shows."""
    busy: str = "One moment, please: I am still busy with your last message."
    """After a SessionBusyError."""
    rate_limited: str = "I am asked a lot right now. Please try again in a minute."
    """After a RateLimitError."""
    unreachable: str = "I cannot be reached right now. Please try again later."
    """After a ConnectError."""
    timed_out: str = "That took too long. Please try again."
    """After a RequestTimeoutError."""
    interrupted: str = "My answer broke off here. Please ask again."
    """Below the text so far, when the stream ended early or the connection was lost."""
    refused: str = "I cannot answer that message. It may be too long."
    """For a message that the API does not take."""
    failed: str = "Something went wrong. Please try again later."
    """After every other error, of the callbacks' as well."""
    surplus: str = "(This part is no longer in the answer.)"
    """In a message that was posted while the reply was longer than it is in the end."""

    def about(self, error: BaseException) -> str:
        """Return what to say of an error."""
        for kinds, words in (
            ((StreamStoppedError, ClientClosedError, asyncio.CancelledError), self.stopped),
            ((SessionBusyError,), self.busy),
            ((RateLimitError,), self.rate_limited),
            ((ConnectError,), self.unreachable),
            ((RequestTimeoutError,), self.timed_out),
            ((StreamInterruptedError, ConnectionLostError), self.interrupted),
            ((InvalidRequestError, RejectedError), self.refused),
        ):
            if isinstance(error, kinds):
                return words
        return self.failed


async def write_reply(
    page: Page[M],
    stream: ReplyStream,
    *,
    pace: Pace | None = None,
    placeholder: str = "…",
    words: Words | None = None,
    conclude: bool = False,
) -> Reply:
    """Show a reply on a page while it is being written, and return it when its whole text is there.

    A placeholder is posted at once and edited as the text comes, at the given pace and always to the latest text, so
    that a slow platform delays no token. Text over the page's limit goes on in new messages, as :func:`split_text` cuts
    it; a message that was deleted is written anew. The final text is tried again for up to 90 s. To `conclude`, the
    last message is written once more when the reply is over, even if its text is there already: a page can then take
    away what was there for the time of writing.

    Raises what ended the turn, after the text so far and a kind word about it were shown; NotShownError, with the
    reply, if the platform did not take the final text. The stream is read to its end even if the platform refuses to
    show it. If cancelled, the turn is interrupted, one last edit of at most 2 s shows the text so far, and nothing
    goes on after that.
    """
    writer = _Writer(page, stream, Schedule(pace or Pace()), words or Words(), placeholder, conclude=conclude)
    writing = asyncio.create_task(writer.run(), name="aheadless write_reply")
    try:
        reply = await _read(stream, writer, writing)
    except asyncio.CancelledError as exc:
        writer.end_with(exc, within=CANCEL_WITHIN)
        if writing.cancelling():
            # The event loop shuts down, and has cancelled all tasks.
            await asyncio.wait([writing])
            writing = asyncio.create_task(writer.run(), name="aheadless write_reply")
        await asyncio.wait([writing], timeout=CANCEL_WITHIN)
        raise
    finally:
        writing.cancel()
        await asyncio.wait([writing])
    if not writer.complete:
        raise NotShownError("the platform did not take the whole reply", reply=reply) from writer.failure
    return reply


async def _read(stream: ReplyStream, writer: _Writer[M], writing: asyncio.Task[None]) -> Reply:
    """Return the reply, or raise what ended the turn, once it was shown."""
    try:
        async for _ in stream.text():
            writer.touch()
        reply = await stream.reply()
    except Exception as exc:
        if isinstance(exc, StoreError) and exc.reply is not None:
            writer.end(exc.reply.text)  # it is complete, whatever became of its record
        else:
            writer.end_with(exc)
        await asyncio.wait([writing])
        raise
    writer.end(reply.text)
    await asyncio.wait([writing])
    return reply


@attrs.define
class _Shown(Generic[M]):
    """A message of the reply, as far as this side knows it."""

    message: M | None
    """None once it has been deleted."""
    text: str
    final: bool = False
    """Whether this was written when the text was final."""


class _Writer(Generic[M]):
    """Brings a page up to date, call by call: decides with :class:`Schedule` and :func:`cut`, and waits."""

    def __init__(
        self,
        page: Page[M],
        stream: ReplyStream,
        schedule: Schedule,
        words: Words,
        placeholder: str,
        *,
        conclude: bool,
    ) -> None:
        self.complete = False
        """Whether all that is to be shown is there."""
        self.failure: Exception | None = None
        """Why it is not, and will not be."""
        self._page, self._stream, self._schedule, self._words = page, stream, schedule, words
        self._placeholder, self._conclude = placeholder, conclude
        self._final: str | None = None
        self._messages: list[_Shown[M]] = []
        self._gone = 0
        self._last_error: Exception | None = None
        self._idle = False
        self._woken = asyncio.Event()
        self._now = asyncio.get_running_loop().time

    # --- called by the reader: plain methods --------------------------------------------------------------------------

    def touch(self) -> None:
        """Take note that there is more text."""
        self._schedule.written(self._now())
        if self._idle:
            self._woken.set()

    def end(self, text: str, *, within: float = FINAL_WITHIN) -> None:
        """Set the final text, unless there is one, and until when it is to be there."""
        if self._final is None:
            self._final = text or self._words.empty
        self._schedule.finish(self._now(), within)
        self._woken.set()

    def end_with(self, error: BaseException, *, within: float = FINAL_WITHIN) -> None:
        """End with the text so far and a word about what ended it."""
        partial = trim(self._stream.snapshot)
        if self._stream.state is TurnState.DONE:
            self.end(partial, within=within)
        else:
            word = self._words.about(error)
            self.end(f"{closed(partial)}\n\n{word}" if partial else word, within=within)

    # --- the task -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring the page up to date until the final text is there, or :attr:`failure` says why it is not."""
        try:
            while self.failure is None and await self._advance():
                pass
        except Exception as exc:  # noqa: BLE001 - the reply must reach the caller whatever the page does
            self.failure = exc

    async def _advance(self) -> bool:
        """Make one call, or wait for a reason to make one; False if there will be none."""
        schedule = self._schedule
        if schedule.exhausted and self._next() is not None:
            self.failure = self._last_error or TimeoutError("the platform did not take the text in time")
        elif (due := schedule.due) > self._now():
            await self._wait(due)
        elif (step := self._next()) is not None:
            await self._take(*step)
        elif schedule.final:
            self.complete = True
            return False
        else:
            self._idle = True
            await self._wait(None)
            self._idle = False
        return True

    async def _wait(self, until: float | None) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()

    def _next(self) -> tuple[int, str] | None:
        """Return the first message that is not as it should be, by its number, and its text."""
        wanted, messages = self._wanted(), self._messages
        for number, text in enumerate(wanted):
            if number == len(messages) or messages[number].text != text:
                return number, text
        for number, shown in enumerate(messages[len(wanted) :], len(wanted)):
            # What was shown and then is not part of the reply cannot be taken away, only replaced.
            if shown.message is not None and shown.text != self._words.surplus:
                return number, self._words.surplus
        if self._conclude and self._final is not None and wanted and not messages[len(wanted) - 1].final:
            return len(wanted) - 1, wanted[-1]
        return None

    def _wanted(self) -> list[str]:
        text = trim(self._stream.snapshot) if self._final is None else self._final
        parts = cut(text or self._placeholder, self._page.limit, length=self._page.length)
        return [part.text for part in parts if part.text.strip()]  # no platform takes a blank message

    async def _take(self, number: int, text: str) -> None:
        schedule = self._schedule
        try:
            async with asyncio.timeout(CALL_WITHIN):
                await self._write(number, text)
        except RetryLater as exc:
            self._last_error = exc
            schedule.postponed(self._now(), exc.seconds)
        except PageRefused as exc:
            self.failure = exc
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task was cancelled, but something inside of the platform's library.
            schedule.failed(self._now())
        except Exception as exc:  # noqa: BLE001 - whatever the platform's library raises
            self._last_error = exc
            schedule.failed(self._now())
        else:
            schedule.shown(self._now())

    async def _write(self, number: int, text: str) -> None:
        final = self._final is not None
        if number == len(self._messages):
            self._messages.append(_Shown(await self._page.post(text), text, final))
            return
        shown = self._messages[number]
        if shown.message is None:
            shown.message = await self._page.post(text)
        else:
            try:
                await self._page.edit(shown.message, text)
            except MessageGone as exc:
                self._gone += 1
                if self._gone > MAX_GONE:
                    raise PageRefused("messages are deleted as they come") from exc
                self._messages[number] = _Shown(None, "")
                return
        shown.text, shown.final = text, final
