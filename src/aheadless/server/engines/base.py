"""The one small protocol of all engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aheadless._session import Message

__all__ = ["ReplyEngine"]


@runtime_checkable
class ReplyEngine(Protocol):
    """History in, text out.

    An engine that has an `aclose()` coroutine method is closed with its server.
    """

    def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the pieces of the reply to the last of the messages (at most 30, the oldest first).

        Whatever it raises fails the reply. It is closed, if it can be, when nobody wants more of it.
        """
        ...
