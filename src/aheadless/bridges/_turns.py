"""Turns that go on without their browser, which comes back and reads on where it was."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from aheadless.bridges._refusals import report
from aheadless.exceptions import AheadlessError, ClientClosedError, InvalidRequestError, StreamStoppedError, UsageError

if TYPE_CHECKING:
    from types import TracebackType

    from aheadless._chat import Chat
    from aheadless._store import Following
    from aheadless._stream import ReplyStream
    from aheadless.protocol.events import Event

__all__ = ["LiveTurns", "resume"]

# What the stores give out. What else a browser sends is its own mistake, not one in the back end.
_EVENT_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def resume(chat: Chat, last_event_id: str | None) -> Following:
    """Return the events of a session's turn after one of them, for :func:`to_sse`; nothing if that was the last.

    `last_event_id` is the header `Last-Event-ID`: raises InvalidRequestError if it is missing or no id. Whatever it is,
    only events of this session come. Raises UsageError unless the client's store keeps events, as for `chat.follow()`.
    """
    if not _EVENT_ID.fullmatch(last_event_id or ""):
        raise InvalidRequestError("there is no event with this id")
    return chat.follow(after=last_event_id)


class LiveTurns:
    """The turns of a back end that are driven to their end whether or not somebody reads along.

    Entered as a block, around the life of the application, within that of the client. Leaving it stops what is live.
    """

    def __init__(self) -> None:
        self._streams: dict[asyncio.Task[None], ReplyStream] = {}
        self._entered = False

    def __repr__(self) -> str:
        return f"<LiveTurns, {f'{len(self._streams)} turns' if self._entered else 'not entered'}>"

    async def __aenter__(self) -> LiveTurns:
        self._entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        for stream in self._streams.values():
            stream.stop()
        while self._streams:
            await asyncio.wait(self._streams)

    async def begin(self, chat: Chat, message: str) -> Following:
        """Ask, and return the events of the turn from its `start` on, for :func:`to_sse`, with ids to resume after.

        Raises what refuses the turn, and UsageError unless the client's store keeps events. If cancelled, the turn is
        stopped; once this has returned, it is `chat.stop()` that stops it.
        """
        if not self._entered:
            raise UsageError("live turns are begun within their block: async with LiveTurns() as turns")
        following = chat.follow()
        stream = chat.stream(message)
        try:
            # It is driven no further before its events are found: a short turn would be over by then.
            if await stream.advance() is None:
                raise StreamStoppedError("the reply was stopped")
            begun = _Begun(await anext(following), following)
            if not self._entered:
                raise ClientClosedError("the back end is closing")
        except BaseException:
            stream.stop()
            raise
        task = asyncio.create_task(_drive(stream))
        self._streams[task] = stream
        task.add_done_callback(self._streams.pop)
        return begun


async def _drive(stream: ReplyStream) -> None:
    try:
        await stream.reply()
    except AheadlessError as exc:
        report(exc)  # who reads along is told by the events


class _Begun:
    """The events of a turn whose first one was read already."""

    def __init__(self, first: Event, following: Following) -> None:
        self._first: Event | None = first
        self._following = following

    @property
    def event_id(self) -> str | None:
        return self._following.event_id

    def __aiter__(self) -> _Begun:
        return self

    async def __anext__(self) -> Event:
        first, self._first = self._first, None
        return await anext(self._following) if first is None else first

    async def aclose(self) -> None:
        await self._following.aclose()
