"""A channel of Discord's as the place where a reply is written, and the button that stops it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from aheadless._extras import needs
from aheadless.bridges._writer import MessageGone, PageRefused, RetryLater
from aheadless.protocol.turn import TurnState

with needs("aheadless[discord]"):
    import discord

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from discord.http import HTTPClient

    from aheadless._stream import ReplyStream

__all__ = ["NOBODY", "ChannelPage", "StopView", "answer_to"]

T = TypeVar("T")

logger = logging.getLogger("aheadless.discord")

NOBODY: Final = discord.AllowedMentions.none()
"""Who is pinged by what is written."""

# Of 2000. Discord counts code points, its own app UTF-16 units; the rest is room for what Discord makes of mentions.
MESSAGE_LIMIT: Final = 1900
# The typing indicator is nice to have: what it may delay the placeholder, in seconds.
TYPING_WITHIN: Final = 0.5
# After an hour Discord hardly lets a message be edited any more, so nothing waits for a click longer than that.
STOP_WITHIN: Final = 3600.0
# For taking the button away, if the last edit could not: Discord's windows are of 5 s, and whoever cancels waits.
TIDY_WITHIN: Final = 10.0
TIDY_CANCELLED_WITHIN: Final = 1.0
TIDY_PAUSE: Final = 0.3
# What a 429 means that does not say how long.
UNTOLD: Final = 5.0
# discord.com/developers/docs/topics/opcodes-and-status-codes
UNKNOWN_MESSAGE: Final = 10008
NO_HISTORY: Final = 160002


class StopView(discord.ui.View):
    """A row with one button, which stops a reply."""

    def __init__(self, stream: ReplyStream, asker: discord.abc.User, *, label: str, not_yours: str) -> None:
        super().__init__(timeout=STOP_WITHIN)
        self._asker, self._not_yours = asker, not_yours
        self.add_item(_StopButton(stream, label=label))

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        """Whether somebody may stop the reply; who may not is told so, and nobody else sees it."""
        if interaction.user == self._asker or interaction.permissions.manage_messages:
            return True
        with suppress(discord.HTTPException):  # Discord waits three seconds for it, and no longer
            await interaction.response.send_message(self._not_yours, ephemeral=True)
        return False


class _StopButton(discord.ui.Button[StopView]):
    def __init__(self, stream: ReplyStream, *, label: str) -> None:
        super().__init__(label=label, style=discord.ButtonStyle.secondary)
        self._stream = stream

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        self._stream.stop()
        with suppress(discord.HTTPException):  # as above
            await interaction.response.defer()


@attrs.frozen
class _Post:
    """A message as it is sent, once or again."""

    text: str
    has_button: bool = attrs.field(kw_only=True)
    nonce: int = attrs.field(factory=lambda: secrets.randbits(63), kw_only=True)


class ChannelPage:
    """A channel of Discord's as the place where a reply is written."""

    def __init__(
        self,
        message: discord.Message,
        stream: ReplyStream,
        channel: discord.abc.Messageable | None,
        view: StopView | None,
    ) -> None:
        self.limit = MESSAGE_LIMIT
        self._channel = message.channel if channel is None else channel
        # Whoever deletes their question shall not lose the answer.
        self._reference = message.to_reference(fail_if_not_exists=False) if channel is None else None
        self._http = message._state.http  # noqa: SLF001 - see answer_to()
        self._stream, self._view = stream, view
        self._newest: discord.Message | None = None
        self._buttons: dict[int, discord.Message] = {}  # the messages that have one, by their ids
        self._unanswered: _Post | None = None  # it may have arrived all the same

    def length(self, text: str) -> int:
        """Return the UTF-16 units of a text."""
        return len(text) + sum(char > "\uffff" for char in text)

    async def post(self, text: str) -> discord.Message:
        """Write a message, once: a post whose answer was lost is not written twice."""
        if self._newest is None and self._unanswered is None:
            await self._type()
        # Of a nonce that Discord knows it returns the message that there is, which is as it was sent the first time.
        post = self._unanswered = self._unanswered or _Post(text, has_button=self._stoppable)
        try:
            message = await self._ask(self._send(post))
            if post.has_button:
                self._buttons[message.id] = message
            self._newest, self._reference = message, None  # what follows stands below it
            if post.text != text:
                await self.edit(message, text)
        except MessageGone as exc:
            self._unanswered = None  # it had arrived, and was deleted
            raise RetryLater(0) from exc
        self._unanswered = None
        return message

    async def edit(self, message: discord.Message, text: str) -> None:
        """Change a message's text; whichever messages should have no button lose it."""
        if message.id in self._buttons and not (self._stoppable and message is self._newest):
            await self._ask(message.edit(content=text, allowed_mentions=NOBODY, view=None))
            del self._buttons[message.id]
        else:
            await self._ask(message.edit(content=text, allowed_mentions=NOBODY))
        if self._stoppable:
            await self._bare(but=self._newest)

    async def tidy(self) -> None:
        """Have the button do nothing more, and take it from what still has it: within 10 s, 1 s if cancelled."""
        if self._view is None:
            return
        self._view.stop()
        task = asyncio.current_task()
        cancelled = task is not None and task.cancelling() > 0
        try:
            async with asyncio.timeout(TIDY_CANCELLED_WITHIN if cancelled else TIDY_WITHIN):
                await self._bare()
                while self._buttons:
                    await asyncio.sleep(TIDY_PAUSE)
                    await self._bare()
        except TimeoutError:
            pass

    @property
    def _stoppable(self) -> bool:
        """Whether the newest message should have a button."""
        return self._view is not None and self._stream.state in {TurnState.WAITING, TurnState.STREAMING}

    async def _bare(self, but: discord.Message | None = None) -> None:
        for message in [message for message in self._buttons.values() if message is not but]:
            try:
                await self._ask(message.edit(view=None))
            except (MessageGone, PageRefused):
                pass
            except Exception as exc:  # noqa: BLE001 - discord.py passes on what its own library raises
                logger.info("a button stays for now: %s", exc)
                continue
            del self._buttons[message.id]

    async def _send(self, post: _Post) -> discord.Message:
        view: Any = self._view if post.has_button else None
        reference: Any = self._reference  # discord.py takes None, and types neither so
        try:
            return await self._channel.send(
                post.text, nonce=post.nonce, reference=reference, view=view, allowed_mentions=NOBODY
            )
        except discord.HTTPException as exc:
            if exc.code != NO_HISTORY or reference is None:
                raise
            self._reference = None  # who may not read what was asked may still answer
            return await self._send(post)

    async def _type(self) -> None:
        try:
            async with asyncio.timeout(TYPING_WITHIN):
                await self._ask(self._channel.typing())
        except Exception as exc:  # noqa: BLE001 - as above
            logger.debug("not seen typing: %s", exc)

    async def _ask(self, request: Awaitable[T]) -> T:
        """Return what Discord answers to a request, or raise what its refusal means for the writer."""
        try:
            return await answer_to(request, self._http)
        except discord.RateLimited as exc:
            raise RetryLater(exc.retry_after) from exc
        except discord.HTTPException as exc:
            raise _meaning(exc) from exc


async def answer_to(request: Awaitable[T], http: HTTPClient) -> T:
    """Return what Discord answers to a request, which may be cancelled."""
    try:
        return await request
    except asyncio.CancelledError:
        # discord.py closes this gate for everybody while a request sleeps on a global limit, and if that request is
        # cancelled, never opens it again: the bot would be dumb for good. Who comes too early is told to wait.
        http._global_over.set()  # noqa: SLF001
        raise


def _meaning(error: discord.HTTPException) -> Exception:
    """Return what a writer makes of an error that is not worth another attempt within discord.py."""
    if error.code == UNKNOWN_MESSAGE:
        return MessageGone(str(error))
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        return RetryLater(_retry_after(error))
    # Whatever else Discord does not take now, as a text that its moderation blocks, it will not take later.
    return PageRefused(str(error)) if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else error


def _retry_after(error: discord.HTTPException) -> float:
    """Return the seconds of the header, which the answer of a proxy in front of Discord has as well."""
    try:
        return float(error.response.headers["Retry-After"])
    except (KeyError, ValueError):
        return UNTOLD
