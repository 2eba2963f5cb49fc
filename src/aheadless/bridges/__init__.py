"""Where replies are shown: chat platforms and web back ends, each in a module of its own that needs its own extra.

Here is what they are built of, for a bridge to a platform of one's own.
"""

from aheadless.bridges._delivery import Pace
from aheadless.bridges._ids import platform_id
from aheadless.bridges._split import split_text
from aheadless.bridges._writer import MessageGone, NotShownError, Page, PageRefused, RetryLater, Words, write_reply
from aheadless.protocol.codec import utf16_length

__all__ = [
    "MessageGone",
    "NotShownError",
    "Pace",
    "Page",
    "PageRefused",
    "RetryLater",
    "Words",
    "platform_id",
    "split_text",
    "utf16_length",
    "write_reply",
]
