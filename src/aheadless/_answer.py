"""An answer of the server: its body as chunks, and its connection's end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from aheadless._failures import body_failure, parse_date

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["Answer", "read_up_to"]

# The chunked body's end follows `done` within one segment or two; if it does not, the connection is not worth keeping.
LINGER: Final = 1.0


class Answer:
    """An answer whose headers have come, and its body as chunks.

    One reader at a time. All but :meth:`read` are plain calls that may come at any time and do not wait.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        lingering: set[Answer],
        *,
        first_token_at: float | None,
        total_at: float | None,
    ) -> None:
        self.first_token_at = first_token_at
        """The loop time by which the first token must have come; None: no limit."""
        self.total_at = total_at
        """The loop time by which everything must have come; None: no limit."""
        self._response = response
        self._lingering = lingering
        self._content = response.content
        self._loop = asyncio.get_running_loop()
        self._deadline: float | None = None  # of the read that is waiting now
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0
        self._protocol = None if response.connection is None else response.connection.protocol
        self._watch()

    @property
    def date(self) -> datetime | None:
        """The server's time when it answered, if it says so."""
        return parse_date(self._response.headers.get("Date", ""))

    async def read(self, deadline: float | None, /) -> bytes:
        """Return the bytes that are there, or wait for some; `b""` at the end of the body.

        Raises TimeoutError when nothing came until `deadline` (loop time), ConnectionLostError when the body was cut,
        ProtocolError when its framing or coding is broken, and what :meth:`wake` was given. What had arrived before a
        failure is returned first. If cancelled, no byte is lost.
        """
        self._arm(deadline)
        failure: BaseException | None = None
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, HttpProcessingError, OSError) as exc:
            chunk = self._salvage()
            if not chunk:
                failure = exc if isinstance(exc, TimeoutError) else body_failure(exc)
        finally:
            self._deadline = None
        if failure is not None:
            raise failure
        self._taken += len(chunk)
        return chunk

    def wake(self, error: Exception) -> None:
        """Make the waiting reader raise `error`; without one, the next read does."""
        self._content.set_exception(error)

    def close(self) -> None:
        """Close the connection at once, unless the whole body was read, which gave it back to the pool."""
        self._disarm()
        self._lingering.discard(self)
        self._response.close()

    def finish(self) -> None:
        """Let the connection go back to the pool: the reply is read, only the body's end may be missing.

        `release()` would drop the connection, as the end comes a moment after `done` (faults.md). It is given a
        second, and a body that goes on after `done` costs the connection.
        """
        self._disarm()
        if self._response.closed:
            return
        if self._content.total_bytes > self._taken or self._loop.is_closed():
            self._response.close()
            return
        timer = self._timer = self._loop.call_later(LINGER, self.close)
        self._lingering.add(self)
        transport = None if self._response.connection is None else self._response.connection.transport

        def ended() -> None:
            timer.cancel()
            self._lingering.discard(self)
            if transport is not None and self._content.total_bytes > self._taken:
                transport.close()  # it went on after `done`; the pool, which has it by now, passes it over

        self._content.on_eof(ended)

    def _watch(self) -> None:
        """See to it that a reader does not wait for a connection that is gone.

        aiohttp leaves it waiting when the framing breaks after the head: it closes the connection and tells nobody
        (seen on 3.14.5).
        """
        if self._protocol is None or self._content.is_eof():
            return
        if (closed := self._protocol.closed) is None:
            self._gone()
            return
        closed.remove_done_callback(_retrieve)  # once for all answers of a connection
        closed.add_done_callback(_retrieve)
        closed.add_done_callback(self._gone)
        self._content.on_eof(self._unwatch)

    def _gone(self, _closed: asyncio.Future[None] | None = None) -> None:
        assert self._protocol is not None  # noqa: S101 - it is what was watched
        if not self._content.is_eof() and self._content.exception() is None:
            self._content.set_exception(self._protocol.exception() or aiohttp.ServerDisconnectedError())

    def _unwatch(self) -> None:
        if self._protocol is not None and self._protocol.closed is not None:
            self._protocol.closed.remove_done_callback(self._gone)

    def _arm(self, deadline: float | None) -> None:
        # One timer, moved when it rings: a new one for each read would cost more than the read.
        self._deadline = deadline
        if deadline is None:
            return
        if self._timer is not None and self._timer.when() > deadline:
            self._disarm()
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._deadline is None:
            return  # nobody waits: the next read arms it again
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
        else:
            self._content.set_exception(TimeoutError())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _salvage(self) -> bytes:
        """Return what aiohttp had received and would throw away, now that the connection is broken."""
        content = self._content
        error = content.exception()
        # Typed as an error only, yet None is what the attribute holds before one (aiohttp 3.14.5).
        content.set_exception(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        rest = content.read_nowait()
        if error is not None and not isinstance(error, TimeoutError):
            content.set_exception(error)
        return rest


async def read_up_to(answer: Answer, size: int, deadline: float | None) -> bytes:
    """Return so many bytes of the body at the most; errors and cancel as for :meth:`Answer.read`."""
    chunks: list[bytes] = []
    while size > 0 and (chunk := await answer.read(deadline)):
        chunks.append(chunk[:size])
        size -= len(chunk)
    return b"".join(chunks)


def _retrieve(closed: asyncio.Future[None]) -> None:
    """Look at how a connection ended, or asyncio would log that nobody did: an idle one may be reset as well."""
    if not closed.cancelled():
        closed.exception()
