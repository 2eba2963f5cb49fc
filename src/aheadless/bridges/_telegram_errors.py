"""What the Bot API's errors mean for a reply. Pure."""

from __future__ import annotations

from typing import Final

from aheadless._extras import needs
from aheadless.bridges._writer import MessageGone, PageRefused, RetryLater

with needs("aheadless[telegram]"):
    from aiogram.exceptions import (
        TelegramAPIError,
        TelegramBadRequest,
        TelegramForbiddenError,
        TelegramRetryAfter,
        TelegramUnauthorizedError,
    )

__all__ = ["CLOSED", "GONE", "UNCHANGED", "meaning_of", "says"]

# How the Bot API says, within a 400, that there is nothing to do …
UNCHANGED: Final = ("message is not modified",)
# … that a message is not there any more …
GONE: Final = ("message to edit not found", "message can't be edited", "message_id_invalid")
# … and that the bot may not write here, whatever it writes.
CLOSED: Final = (
    "chat not found",
    "not enough rights",
    "have no rights",
    "need administrator rights",
    "chat_write_forbidden",
    "chat_restricted",
    "topic_closed",
    "topic_deleted",
    "message thread not found",
)


def says(error: TelegramAPIError, phrases: tuple[str, ...]) -> bool:
    """Return whether an error has one of these phrases."""
    return any(phrase in error.message.lower() for phrase in phrases)


def meaning_of(error: TelegramAPIError) -> Exception | None:
    """Return what an error tells a writer; None if it may pass."""
    match error:
        case TelegramRetryAfter():
            return RetryLater(error.retry_after)
        case TelegramForbiddenError() | TelegramUnauthorizedError():
            return PageRefused(error.message)
        case TelegramBadRequest() if says(error, GONE):
            return MessageGone(error.message)
        case TelegramBadRequest() if says(error, CLOSED):
            return PageRefused(error.message)
        case _:
            return None
