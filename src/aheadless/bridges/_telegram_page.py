"""Where a reply is written on Telegram: as a draft where there are drafts, else in messages that are edited."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import attrs

from aheadless._extras import needs
from aheadless.bridges._entities import render, utf16_length
from aheadless.bridges._telegram_errors import CLOSED, GONE, UNCHANGED, meaning_of, says
from aheadless.bridges._writer import RetryLater
from aheadless.protocol.turn import NEXT

with needs("aheadless[telegram]"):
    from aiogram.enums import ChatAction
    from aiogram.exceptions import (
        AiogramError,
        TelegramAPIError,
        TelegramBadRequest,
        TelegramNotFound,
        TelegramRetryAfter,
    )
    from aiogram.methods import EditMessageReplyMarkup, EditMessageText, SendChatAction, SendMessage, SendMessageDraft
    from aiogram.types import (
        InlineKeyboardButton,
        InlineKeyboardMarkup,
        LinkPreviewOptions,
        MessageEntity,
        ReplyParameters,
    )

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aiogram import Bot
    from aiogram.methods import TelegramMethod

    from aheadless import ReplyStream

__all__ = ["Place", "StopButton", "TelegramPage"]

T = TypeVar("T")

# UTF-16 units, without the marks: https://core.telegram.org/bots/api#sendmessage
LIMIT: Final = 4096
# A draft fades after 30 seconds, "typing" after 5: https://core.telegram.org/bots/api#sendmessagedraft, #sendchataction
DRAFT_SECONDS: Final = 20.0
TYPING_SECONDS: Final = 4.5

# Seconds for what does not matter much.
PATIENCE: Final = 5
# For taking buttons away, if that could not be done at once; whoever cancels waits.
TIDY_WITHIN: Final = 10.0
TIDY_CANCELLED_WITHIN: Final = 1.0
TIDY_PAUSE: Final = 1.0

NO_PREVIEW: Final = LinkPreviewOptions(is_disabled=True)


@attrs.frozen
class Place:
    """Where in Telegram: a bot's chat, or a topic of it."""

    bot_id: int
    chat_id: int
    topic: int | None


@attrs.frozen
class StopButton:
    """What ends a reply: a button with a label, below a message or a draft, that tells this number."""

    PREFIX: ClassVar[str] = "aheadless:stop:"

    number: int
    label: str

    @property
    def keyboard(self) -> InlineKeyboardMarkup:
        """The button as Telegram wants it."""
        button = InlineKeyboardButton(text=self.label, callback_data=f"{self.PREFIX}{self.number}")
        return InlineKeyboardMarkup(inline_keyboard=[[button]])

    @classmethod
    def number_in(cls, data: str) -> int:
        """Return the number that a press tells; 0, which no button has, if there is none."""
        digits = data.removeprefix(cls.PREFIX)
        return int(digits) if digits.isdecimal() else 0


@attrs.define(eq=False)
class Written:
    """A message of a reply; a draft as long as it has no id."""

    text: str
    message_id: int | None = None


# A chat shows one draft. Who comes second writes messages.
_drafting: set[Place] = set()


class TelegramPage:
    """One reply in a chat, for :func:`write_reply`.

    What was posted is a draft until the reply is complete, or goes on in another message; then it is sent. A draft that
    is refused is a message from then on.
    """

    limit = LIMIT

    def __init__(
        self,
        bot: Bot,
        place: Place,
        stream: ReplyStream,
        *,
        drafts: bool,
        question: int | None,
        mentions: bool,
        button: StopButton | None,
    ) -> None:
        self._bot = bot
        self._place = place
        self._stream = stream
        self._drafts = drafts
        self._quote = None
        if question is not None:
            self._quote = ReplyParameters(message_id=question, allow_sending_without_reply=True)
        self._begun = False
        self._mentions = mentions  # whether a name may notify its owner
        self._button = button
        self._draft_id = secrets.randbelow(2**31 - 1) + 1 if button is None else button.number
        self._draft: Written | None = None
        self._drafted_at = 0.0
        self._no_drafts_before = 0.0
        self._buttoned: list[Written] = []  # the messages that show the button
        self._plain = False
        # A draft that is shown again must not come after the message that it became.
        self._lock = asyncio.Lock()

    def length(self, text: str) -> int:
        """Return a text's length as Telegram counts."""
        return utf16_length(text)

    async def post(self, text: str) -> Written:
        """Show a new message below the last. If cancelled, it may have been sent."""
        async with self._lock:
            if self._draft is not None:
                await self._send(self._draft, button=None)
            await self._remove_buttons()
            written = Written(text)
            await self._show(written)
            return written

    async def edit(self, message: Written, text: str) -> None:
        """Let a message say something else. If cancelled, it says the one or the other."""
        async with self._lock:
            message.text = text
            if message.message_id is None:
                await self._show(message)
            else:
                await self._change(message, message.message_id)

    @asynccontextmanager
    async def attended(self) -> AsyncGenerator[None]:
        """As long as the block lasts, show that somebody types until there are words, and let no draft fade.

        None of that matters: if it fails, nothing is raised.
        """
        claimed = self._drafts = self._drafts and self._place not in _drafting
        if claimed:
            _drafting.add(self._place)
        task = asyncio.create_task(self._attend())
        try:
            yield
        finally:
            if claimed:
                _drafting.discard(self._place)
            task.cancel()
            await asyncio.wait([task])
            await self._tidy()

    async def _attend(self) -> None:
        typing = SendChatAction(
            chat_id=self._place.chat_id, message_thread_id=self._place.topic, action=ChatAction.TYPING
        )
        while True:
            if not self._stream.snapshot and not self._over:
                with suppress(Exception):  # a sign of life, and no more than that
                    await self._bot(typing, request_timeout=PATIENCE)
            await asyncio.sleep(TYPING_SECONDS)
            async with self._lock:
                if self._draft is not None and self._now() - self._drafted_at >= DRAFT_SECONDS:
                    with suppress(Exception):  # the next one is due at once
                        await self._send_draft(self._draft)

    # --- drafts and messages ------------------------------------------------------------------------------------------

    @property
    def _over(self) -> bool:
        return self._stream.state not in NEXT

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _show(self, written: Written) -> None:
        if self._over or not self._drafts or not await self._send_draft(written):
            await self._send(written, button=None if self._over else self._button)

    async def _send_draft(self, written: Written) -> bool:
        """Show a draft, if that is possible just now; return False if there are none here."""
        self._draft = written
        if self._now() < self._no_drafts_before:
            return True
        self._drafted_at = self._now()
        # Of an empty draft Telegram says, in the user's language, that the bot is thinking.
        text = written.text if self._stream.snapshot else ""

        def make(shown: str, entities: list[MessageEntity] | None) -> SendMessageDraft:
            return SendMessageDraft(
                chat_id=self._place.chat_id,
                message_thread_id=self._place.topic,
                draft_id=self._draft_id,
                text=shown,
                entities=entities,
                parse_mode=None,
                can_stop=self._button is not None,
                keep_on_stop=self._button is not None,
            )

        try:
            await self._call(make, text, patience=PATIENCE)
        except (TelegramBadRequest, TelegramNotFound):
            self._drafts, self._draft = False, None
            return False
        except RetryLater as exc:
            # Of drafts alone: the message that is to be sent does not wait for that.
            self._no_drafts_before = self._now() + exc.seconds
        except AiogramError:
            pass  # a preview less, no more
        return True

    async def _send(self, written: Written, *, button: StopButton | None) -> None:
        def make(shown: str, entities: list[MessageEntity] | None) -> SendMessage:
            return SendMessage(
                chat_id=self._place.chat_id,
                message_thread_id=self._place.topic,
                text=shown,
                entities=entities,
                parse_mode=None,
                link_preview_options=NO_PREVIEW,
                disable_notification=self._begun,  # one sound for one reply
                reply_parameters=None if self._begun else self._quote,
                reply_markup=None if button is None else button.keyboard,
            )

        message = await self._call(make, written.text)
        self._begun = True
        written.message_id = message.message_id
        if button is not None:
            self._buttoned.append(written)
        if self._draft is written:
            self._draft = None

    async def _change(self, written: Written, message_id: int) -> None:
        keyboard = None if self._button is None or self._over else self._button.keyboard

        def make(shown: str, entities: list[MessageEntity] | None) -> EditMessageText:
            return EditMessageText(
                chat_id=self._place.chat_id,
                message_id=message_id,
                text=shown,
                entities=entities,
                parse_mode=None,
                link_preview_options=NO_PREVIEW,
                reply_markup=keyboard,
            )

        try:
            await self._call(make, written.text)
        except TelegramBadRequest as exc:
            if not says(exc, UNCHANGED):
                raise
        if keyboard is None and written in self._buttoned:
            self._buttoned.remove(written)

    async def _remove_buttons(self) -> float:
        """Take the button from the messages that show it; return after how many seconds to try again if some do."""
        pause = TIDY_PAUSE
        for written in self._buttoned.copy():
            remove = EditMessageReplyMarkup(chat_id=self._place.chat_id, message_id=written.message_id)
            try:
                await self._bot(remove, request_timeout=PATIENCE)
            except TelegramRetryAfter as exc:
                pause = max(pause, exc.retry_after)
                continue
            except AiogramError as exc:
                # What is gone has no button; one that stays for good says that there is nothing to stop.
                if not isinstance(exc, TelegramAPIError) or not (meaning_of(exc) or says(exc, UNCHANGED)):
                    continue
            self._buttoned.remove(written)
        return pause

    async def _tidy(self) -> None:
        """Take the button from what still has it: within 10 s, 1 s if cancelled."""
        task = asyncio.current_task()
        cancelled = task is not None and task.cancelling() > 0
        with suppress(TimeoutError):
            async with asyncio.timeout(TIDY_CANCELLED_WITHIN if cancelled else TIDY_WITHIN):
                while self._buttoned:
                    pause = await self._remove_buttons()
                    if self._buttoned:
                        await asyncio.sleep(pause)

    async def _call(
        self,
        make: Callable[[str, list[MessageEntity] | None], TelegramMethod[T]],
        text: str,
        *,
        patience: int | None = None,
    ) -> T:
        """Make a request with a text as Telegram shows it, or as it came if that is refused."""
        try:
            if not self._plain:
                shown, entities = render(text, mentions=self._mentions)
                if shown.strip() or not text:
                    try:
                        formatted = make(shown, [MessageEntity(**attrs.asdict(each)) for each in entities])
                        return await self._bot(formatted, request_timeout=patience)
                    except TelegramBadRequest as exc:
                        if not entities or says(exc, UNCHANGED + GONE + CLOSED):
                            raise
                        self._plain = True
            return await self._bot(make(text, None), request_timeout=patience)
        except TelegramAPIError as exc:
            if (meaning := meaning_of(exc)) is None:
                raise
            raise meaning from exc
