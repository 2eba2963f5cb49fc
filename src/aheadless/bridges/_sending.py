"""A stream on its way to a browser, which may stop taking it."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING

from aheadless._options import parse_seconds

if TYPE_CHECKING:
    from aheadless.bridges.web import ByteStream

__all__ = ["Sending"]


class Sending:
    """The pieces of a stream, for a framework that asks for the next one when it has sent the last.

    When it does not ask for `send_timeout` seconds, the upstream is closed: a browser that keeps its connection and
    reads nothing would hold its session, and a connection to the API, for good. None: no limit.
    """

    def __init__(self, body: ByteStream, send_timeout: float | None) -> None:
        self._body = body
        self._send_timeout = None if send_timeout is None else parse_seconds(send_timeout, "send_timeout")
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> Sending:
        return self

    async def __anext__(self) -> bytes:
        self._disarm()
        piece = await self._body.__anext__()
        if self._send_timeout is not None:
            # Weakly, as a stream that nobody holds any more is closed at once, and not when the time is over.
            self._timer = asyncio.get_running_loop().call_later(self._send_timeout, _stop, weakref.ref(self._body))
        return piece

    async def aclose(self) -> None:
        """Close the stream."""
        self._disarm()
        await self._body.aclose()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _stop(body: weakref.ref[ByteStream]) -> None:
    if (found := body()) is not None:
        found.stop()
