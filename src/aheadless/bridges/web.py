"""Web back ends: a turn as bytes for a browser, for whatever framework; and who the visitor is.

::

    body = to_ndjson(client.chat(visitor.session_id).stream(text))
    await body.open()            # what is refused raises here, and can become a status: refusal(error)
    async for chunk in body: ... # never fails because of the turn: how it ended is its last line
    await body.aclose()          # the browser has left: closes the upstream at once, also while a read waits
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeAlias, runtime_checkable

from aheadless._options import parse_seconds
from aheadless._stream import ReplyStream
from aheadless._subscription import call_on
from aheadless.bridges._formats import AISDKFormat, NDJSONFormat, SSEFormat, ai_sdk_message
from aheadless.bridges._refusals import Refusal, refusal, report
from aheadless.bridges._turns import LiveTurns, resume
from aheadless.exceptions import AheadlessError, Delivery, StoreError, StreamStoppedError, UsageError
from aheadless.protocol.events import Done, Event, Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Mapping
    from types import TracebackType

    from aheadless.bridges._formats import Format
    from aheadless.bridges._visitors import Visitor, Visitors

__all__ = [
    "ByteStream",
    "Events",
    "LiveTurns",
    "Refusal",
    "Visitor",
    "Visitors",
    "ai_sdk_message",
    "refusal",
    "resume",
    "to_ai_sdk",
    "to_ndjson",
    "to_sse",
]


def __getattr__(name: str) -> object:
    # They need the extra `web`; all the rest needs nothing.
    if name in {"Visitor", "Visitors"}:
        from aheadless.bridges import _visitors  # noqa: PLC0415

        value: object = getattr(_visitors, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Events: TypeAlias = "ReplyStream | AsyncIterator[Event]"
"""A turn that is to be driven, or the events of one that somebody else drives, as `chat.follow()` gives them."""


def to_ndjson(stream: Events) -> ByteStream:
    """Return the turn as the API's own lines, one event each.

    The last line is `done`, with the whole text as it is stored, or `{"type":"error","error":…,"delivery":…}`, with a
    text for the visitor and the verdict on the message. A body without such a last line was cut.
    """
    return ByteStream(_upstream(stream), NDJSONFormat(), None)


def to_sse(stream: Events, *, heartbeat: float | None = 15) -> ByteStream:
    """Return the turn as server-sent events; `event` is the type, `data` what :func:`to_ndjson` has on its line.

    Events of `chat.follow()` have an `id`, after which :func:`resume` goes on. After `heartbeat` seconds without an
    event comes a comment, again and again, so that no proxy takes the connection for dead; None: none comes.
    """
    return ByteStream(_upstream(stream), SSEFormat(), heartbeat)


def to_ai_sdk(stream: Events, *, heartbeat: float | None = 15) -> ByteStream:
    """Return the turn as a UI message stream for the Vercel AI SDK; :func:`ai_sdk_message` finds the question.

    A failure is an `error` part with a text for the visitor. Heartbeats as in :func:`to_sse`.
    """
    return ByteStream(_upstream(stream), AISDKFormat(), heartbeat)


class ByteStream:
    """A turn as bytes: an async iterator for one reader, which never yields an empty piece.

    :meth:`open` raises what refuses the turn. Iterating opens by itself, and then a refusal is the only line. From
    there on a failure of the turn is not raised but written, as the last line, and logged unless it is the visitor's
    doing. What a callback of yours raises is raised.

    The upstream is closed at once by :meth:`aclose`, from whatever task; by leaving the `async with` block, which opens
    on entering; when the task that reads is cancelled; and when nobody holds this object any more.
    """

    def __init__(self, upstream: Upstream, form: Format, heartbeat: float | None) -> None:
        self._upstream = upstream
        self._step: asyncio.Task[Event | None] | None = None  # the read that waits for the next event
        self._format = form
        self._heartbeat = None if heartbeat is None else parse_seconds(heartbeat, "heartbeat")
        self._held = b""  # what was made of the first event, and not given out yet
        self._reading = False
        self._opened = False
        self._over = False  # nothing more is read

    def __reduce__(self) -> NoReturn:
        raise TypeError("a byte stream belongs to its turn, and is neither pickled nor copied")

    def __repr__(self) -> str:
        state = "over" if self._over else "open" if self._opened else "not opened"
        return f"<ByteStream {self.media_type}, {state}>"

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the answer."""
        return self._format.media_type

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers to send along with it: nothing on the way may store or hold back what comes."""
        return self._format.headers

    @property
    def empty(self) -> bool:
        """Whether nothing comes, as :meth:`open` found out: what was to be resumed had ended. Answer with 204 then."""
        return self._over and not self._held

    async def open(self) -> None:
        """Drive the turn to its first event; does nothing if that was done.

        Raises the AheadlessError of a turn that was refused, or failed at once. If cancelled, the upstream is closed.
        """
        if self._opened:
            return
        with self._exclusively():
            self._opened = True
            try:
                await self._wait(None)
                event = self._take()
            except AheadlessError as exc:
                report(exc)
                raise
            if event is not None:
                self._held = self._format.begin() + self._written(event)

    def __aiter__(self) -> ByteStream:
        return self

    async def __anext__(self) -> bytes:
        with self._exclusively():
            if not self._opened:
                self._opened = True
                self._held = self._format.begin()
            while not (piece := self._held):
                if self._over:
                    raise StopAsyncIteration
                self._held = await self._next_piece()
            self._held = b""
            return piece

    def stop(self) -> None:
        """Close the upstream without waiting. Whoever reads on gets a last line that says so.

        A turn that somebody else drives has nothing to close here, and goes on for whoever reads on.
        """
        self._upstream.stop()

    async def aclose(self) -> None:
        """Close the upstream, also while another task reads, whose loop then just ends. Never fails.

        The connection is closed before this waits for anything; then it waits for the turn to be saved, if there is a
        store, and may be cancelled in that.
        """
        self._opened = self._over = True
        self._held = b""
        self._upstream.stop()
        await self._end_step()
        try:
            await self._upstream.aclose()
        except AheadlessError as exc:
            report(exc)

    async def __aenter__(self) -> ByteStream:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._step is not None:  # its reader was dropped in mid-wait, which only a loop that was torn down does
            call_on(self._step.get_loop(), self._step.cancel)
        self._upstream.abandon()

    async def _next_piece(self) -> bytes:
        """Return what comes next; empty at the end, and for an event that the format leaves out."""
        if not await self._wait(self._heartbeat):
            return self._format.heartbeat
        try:
            event = self._take()
        except AheadlessError as exc:
            report(exc)
            if isinstance(exc, StoreError) and exc.reply is not None:
                # It is whole, and the API has it: that it was not saved here is nothing to the visitor.
                return self._format.event(Done(exc.reply.text, exc.reply.conversation_id), None)
            return self._format.failure(exc)
        return b"" if event is None else self._written(event)

    def _written(self, event: Event) -> bytes:
        self._over = isinstance(event, Done)
        return self._format.event(event, self._upstream.event_id)

    async def _wait(self, patience: float | None) -> bool:
        """Return whether the next event, or the end, is there; False after `patience` seconds in which it did not come.

        The read goes on meanwhile, in a task of its own, as cancelling it would end the turn.
        """
        if self._step is None:
            self._step = asyncio.get_running_loop().create_task(self._upstream.next_event())
        try:
            done, _ = await asyncio.wait([self._step], timeout=patience)
        except BaseException:
            self._over = True
            self._upstream.stop()
            await self._end_step()
            raise
        return bool(done)

    def _take(self) -> Event | None:
        """Return the event that is there; None at the end, and when this was closed meanwhile."""
        step, self._step = self._step, None
        if self._over or step is None:
            return None
        self._over = True  # unless there is an event
        event = step.result()
        self._over = event is None
        return event

    async def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is not None:
            step.cancel()
            await asyncio.wait([step])
            if not step.cancelled():
                step.exception()  # looked at, or asyncio would report it: nobody wants to know any more

    @contextmanager
    def _exclusively(self) -> Generator[None]:
        if self._reading:
            raise UsageError("another task reads these bytes")
        self._reading = True
        try:
            yield
        finally:
            self._reading = False


class Upstream(Protocol):
    """Where the events come from."""

    @property
    def event_id(self) -> str | None:
        """The store's id of the last event."""
        ...

    async def next_event(self) -> Event | None:
        """Return the next event; None at the end. Raises what ended the turn otherwise."""
        ...

    def stop(self) -> None:
        """Close the connection, if it is ours, without waiting."""
        ...

    async def aclose(self) -> None:
        """Close the rest. Nobody reads any more."""
        ...

    def abandon(self) -> None:
        """Close as far as a finaliser can, on whatever thread."""
        ...


class _Driven:
    """A turn of our own."""

    event_id = None

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream

    async def next_event(self) -> Event | None:
        if (event := await self._stream.advance()) is not None:
            return event
        # What a loop over a stream does not say: that somebody has stopped it, or had read it to the end before.
        reply = await self._stream.reply()
        return Done(reply.text, reply.conversation_id)

    def stop(self) -> None:
        self._stream.stop()

    async def aclose(self) -> None:
        await self._stream.aclose()

    def abandon(self) -> None:
        self._stream.abandon()


class _Followed:
    """The events of a turn that somebody else drives, and goes on driving when we leave."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self._begun = False

    @property
    def event_id(self) -> str | None:
        return getattr(self._events, "event_id", None)

    async def next_event(self) -> Event | None:
        async for event in self._events:
            self._begun = True
            if not isinstance(event, Failure):  # the error itself comes next
                return event
        if self._begun:
            raise StreamStoppedError("the events ended without `done`", delivery=Delivery.ACCEPTED)
        return None

    def stop(self) -> None:
        """Nothing is ours; the read that waits is cancelled by whoever calls this."""

    async def aclose(self) -> None:
        if isinstance(self._events, _Closable):
            await self._events.aclose()

    def abandon(self) -> None:
        """Nothing is ours."""


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...


def _upstream(stream: Events) -> Upstream:
    return _Driven(stream) if isinstance(stream, ReplyStream) else _Followed(stream)
