"""One turn as users drive it: chunks become events, callbacks are called, and the end is settled exactly once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Generic, NoReturn, Protocol, TypeAlias, TypeVar

import msgspec

from aheadless._session import Reply, Timings
from aheadless._subscription import Mailbox, Outcome, Overflow, Subscription, call_on
from aheadless.exceptions import (
    AheadlessError,
    ConfigurationError,
    ConnectionLostError,
    Delivery,
    ReplyFailedError,
    RequestTimeoutError,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
    UsageError,
    snippet,
)
from aheadless.protocol.events import Done, Event, Failure, Start, Token
from aheadless.protocol.turn import Turn, TurnState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from aheadless.exceptions import Phase

__all__ = [
    "NO_CALLBACKS",
    "Callbacks",
    "EventCursor",
    "OnDone",
    "OnError",
    "OnStart",
    "OnToken",
    "ReplyStream",
    "Source",
    "TextCursor",
    "Wiring",
    "call",
]

T = TypeVar("T")

OnStart: TypeAlias = "Callable[[Start], Awaitable[object] | None]"
OnToken: TypeAlias = "Callable[[str], Awaitable[object] | None]"
OnDone: TypeAlias = "Callable[[Reply], Awaitable[object] | None]"
OnError: TypeAlias = "Callable[[AheadlessError], Awaitable[object] | None]"


class Callbacks(msgspec.Struct, frozen=True):
    """Who is told of a turn, in the order of being called."""

    on_start: tuple[OnStart, ...] = ()
    on_token: tuple[OnToken, ...] = ()
    on_done: tuple[OnDone, ...] = ()
    on_error: tuple[OnError, ...] = ()

    @classmethod
    def of(
        cls,
        on_start: OnStart | None = None,
        on_token: OnToken | None = None,
        on_done: OnDone | None = None,
        on_error: OnError | None = None,
    ) -> Callbacks:
        """Return those that are given; ConfigurationError for what cannot be called."""
        if on_start is None and on_token is None and on_done is None and on_error is None:
            return NO_CALLBACKS
        for callback in (on_start, on_token, on_done, on_error):
            if callback is not None and not callable(callback):
                raise ConfigurationError(f"a callback must be a function, not {type(callback).__name__}")
        return cls(
            () if on_start is None else (on_start,),
            () if on_token is None else (on_token,),
            () if on_done is None else (on_done,),
            () if on_error is None else (on_error,),
        )

    def __add__(self, other: Callbacks) -> Callbacks:
        if self is NO_CALLBACKS or other is NO_CALLBACKS:
            return other if self is NO_CALLBACKS else self
        return Callbacks(
            self.on_start + other.on_start,
            self.on_token + other.on_token,
            self.on_done + other.on_done,
            self.on_error + other.on_error,
        )


NO_CALLBACKS: Final = Callbacks()
"""One for all: most sessions have none of their own."""


async def call(callbacks: tuple[Callable[[T], Awaitable[object] | None], ...], value: T) -> None:
    """Call each in order, waiting for those that are asynchronous; what one raises comes out."""
    for callback in callbacks:
        if (waiting := callback(value)) is not None:
            await waiting


class Source(Protocol):
    """An open answer: the chunks of a stream. `_http.Answer` tells what each of these does."""

    @property
    def first_token_at(self) -> float | None: ...
    @property
    def total_at(self) -> float | None: ...
    async def read(self, deadline: float | None, /) -> bytes: ...
    def wake(self, error: Exception) -> None: ...
    def close(self) -> None: ...
    def finish(self) -> None: ...


class Wiring(Protocol):
    """What a stream needs from the client that made it."""

    @property
    def session_id(self) -> str: ...

    @property
    def idle_timeout(self) -> float | None: ...

    @property
    def log(self) -> Callable[[Event], None] | None:
        """Who is to have each event in the moment in which it is read, for readers in other processes; or None."""

    async def enter(self, stream: ReplyStream) -> None:
        """Wait for the session."""

    async def send(self, stream: ReplyStream) -> Source:
        """Record the question and send it, telling the stream what becomes of it meanwhile."""
        ...

    def settle(self, stream: ReplyStream, outcome: Outcome) -> None:
        """Record the end of the turn and free the session. Called once, whatever was reached, and it does not wait."""

    async def read_back(self, stream: ReplyStream, error: AheadlessError) -> tuple[str, str] | None:
        """Return the stored reply, and its conversation's id, of a stream that broke off; None if the error stands.

        The error's verdict is corrected by what was found out.
        """
        ...

    async def record(self) -> None:
        """Save what :meth:`settle` recorded, if it is to outlive the process. Raises StoreError."""


class ReplyStream:
    """The answer to one message, while it is written.

    Nothing is sent until it is driven, in one of three ways:

    - ``async for event in stream``: the loop owns it. Leaving the loop early, however, closes the connection at once.
    - ``async with stream``: the block owns it. Entering sends the message and waits for the answer's headers; within
      the block it can be read in pieces; leaving the block closes the connection.
    - ``await stream``: reads to the end and gives the :class:`Reply`.

    A loop that ends by itself, and every reply, mean that `done` was read. What else ended the turn is raised as an
    AheadlessError whose `delivery` and `partial` tell where it stood. One task reads at a time; a second one gets a
    UsageError. If the reader is cancelled, the connection is closed and the turn settled as interrupted before the
    CancelledError goes on: the text so far stays in :attr:`snapshot`, and the server, if it had the message, finishes
    and stores its reply by itself.
    """

    def __init__(self, wiring: Wiring, callbacks: Callbacks) -> None:
        self._wiring = wiring
        self._callbacks = callbacks
        self._log = wiring.log
        self._turn = Turn()
        self._source: Source | None = None
        self._scope: asyncio.Timeout | None = None  # around the opening, to end it from outside
        self._outcome: Outcome | None = None
        self._raised = False  # whether a reader was told of the outcome, if it is an error
        self._owned = False  # by an `async with` block
        self._reading = False
        self._cancelled = False
        self._recovered = False
        self._delivery = Delivery.NOT_SENT  # as long as there is no source
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[object] | None = None
        self._driven_at: float | None = None
        self._sent_at: float | None = None
        self._ended_at: float | None = None
        self._connect: float | None = None
        self._first_token_at: float | None = None
        self._idle: float | None = None  # seconds between two events
        self._held = 0.0  # seconds for which the reader, before the first token, did not wait for it
        self._given_at: float | None = None
        self._mailboxes: tuple[Mailbox, ...] = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream belongs to its client, and is neither pickled nor copied; its reply can be")

    def __repr__(self) -> str:
        return f"<ReplyStream {self.session_id} {self.state.value}, {len(self.snapshot)} characters>"

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The session that asked."""
        return self._wiring.session_id

    @property
    def conversation_id(self) -> str | None:
        """The server's id of the conversation; None until `start` came."""
        return self._turn.conversation_id

    @property
    def state(self) -> TurnState:
        """Where the turn is; WAITING too while nothing has been sent."""
        return self._turn.state

    @property
    def snapshot(self) -> str:
        """The text so far: the joined tokens that were given out."""
        return self._turn.text

    @property
    def timings(self) -> Timings:
        """How long the turn took, or has taken until now."""
        now = self._ended_at
        if now is None:
            now = 0.0 if self._loop is None else self._loop.time()
        driven_at = now if self._driven_at is None else self._driven_at
        sent_at = now if self._sent_at is None else self._sent_at
        first = None if self._first_token_at is None else self._first_token_at - sent_at
        return Timings(first, now - sent_at, queued=sent_at - driven_at, connect=self._connect)

    @property
    def task(self) -> asyncio.Task[object] | None:
        """The task that drives the turn, or did so last; None before and after."""
        return self._task

    @property
    def cancelled(self) -> bool:
        """Whether the turn ended because its reader was cancelled."""
        return self._cancelled

    # --- driving ------------------------------------------------------------------------------------------------------

    def __aiter__(self) -> EventCursor:
        return EventCursor(self)

    def text(self) -> TextCursor:
        """Return an async iterator over the tokens' texts; a loop over it owns the stream just as one over events."""
        return TextCursor(self)

    def __await__(self) -> Generator[object, None, Reply]:
        return self.reply().__await__()

    async def reply(self) -> Reply:
        """Read to the end and return the reply. A second call returns, or raises, the same.

        If cancelled, the turn is over as told above; cancelled in `on_done`, it is complete all the same.
        """
        while await self.advance() is not None:
            if self._turn.ready:
                await self._finish_ready()
        if isinstance(self._outcome, Reply):
            return self._outcome
        assert self._outcome is not None  # noqa: S101 - advance() returns None for this reason only
        raise await self._told(self._outcome)

    async def __aenter__(self) -> ReplyStream:
        with _Reading(self):
            self._owned = True
            if self._outcome is None and self._source is None:
                await self._open()
            if isinstance(self._outcome, AheadlessError):
                raise await self._told(self._outcome)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        await self._record()

    async def advance(self) -> Event | None:
        """Return the next event after the callbacks were called for it; None when the turn is over.

        Raises what ended the turn, as often as it is asked; a turn that was stopped is over without an error. If
        cancelled, the turn is over as well: an event whose callbacks were not all called is in the snapshot, but is
        given to nobody.
        """
        # As `with _Reading(self)`, which costs more: this is gone through for each token that comes alone.
        self.begin_reading()
        try:
            if self._outcome is None:
                if self._source is None:
                    await self._open()
                if self._outcome is None and (event := await self._read()) is not None:
                    if type(event) is Done:
                        await self._record()
                    if self._mailboxes or self._callbacks is not NO_CALLBACKS:
                        await self._tell(event)
                    if self._outcome is None or type(event) is Done:
                        return event
                await self._record()
            if isinstance(self._outcome, AheadlessError) and not isinstance(self._outcome, StreamStoppedError):
                raise await self._told(self._outcome)
            return None
        except BaseException as exc:
            self.end_reading(exc)
            raise
        finally:
            self._reading = False

    async def take_text(self) -> str | None:
        """Return the text of the next token; None when the turn is over. Errors and cancel: as :meth:`advance`."""
        while (event := await self.advance()) is not None:
            if type(event) is Token:
                return event.text
        return None

    @property
    def ready(self) -> list[Token]:
        """Tokens that a cursor may give without asking, the next one last: those that nobody else has to be told of.

        An iteration costs a tenth this way. The list is empty whenever there is anything else to be done first.
        """
        return _NONE_READY if self._callbacks.on_token or self._told_elsewhere else self._turn.ready

    @property
    def _told_elsewhere(self) -> bool:
        return self._log is not None or bool(self._mailboxes)

    async def _finish_ready(self) -> None:
        """Take the tokens that are ready, calling the callbacks. If cancelled: as :meth:`advance`."""
        if self._told_elsewhere:
            return  # advance() does it
        with _Reading(self):
            ready, on_token = self._turn.ready, self._callbacks.on_token
            if not on_token:
                ready.clear()
            while ready:
                await call(on_token, ready.pop().text)

    async def _open(self) -> None:
        """Get the source, or an outcome that says why not."""
        self._driven_at = self._now()
        self._idle = self._wiring.idle_timeout
        try:
            async with asyncio.timeout(None) as self._scope:
                await self._wiring.enter(self)
                if self._outcome is not None:
                    return  # ended from outside in the very moment in which its turn came
                source = await self._wiring.send(self)
        except AheadlessError as exc:
            self._end(exc)
        except TimeoutError:
            if self._outcome is None:
                raise
            # The scope's: fail() ended the turn from outside.
        else:
            if self._outcome is None:
                self._source = source
            else:
                source.close()  # ended from outside just as the answer came
        finally:
            self._scope = None

    async def _read(self) -> Event | None:
        """Return the next event, or None and an outcome."""
        turn, source = self._turn, self._source
        assert source is not None  # noqa: S101 - only called on an open stream
        if self._given_at is not None:
            self._held += self._now() - self._given_at
            self._given_at = None
        # Events count, bytes do not: however many come, the deadline of this wait stays.
        deadline: float | None = None
        waits = False
        lost: ConnectionLostError | None = None
        try:
            while (event := turn.next_event()) is None:
                if not waits:
                    deadline, waits = self._deadline(), True
                try:
                    chunk = await source.read(deadline)
                except ConnectionLostError as exc:
                    lost, chunk = exc, b""
                if chunk:
                    turn.receive_data(chunk)
                else:
                    turn.receive_eof()
        except _EndedElsewhereError:
            return None
        except (AheadlessError, TimeoutError) as exc:
            error = self._explain(exc, lost, deadline)
            if not await self._complete(error):
                return None
            event = turn.next_event()  # the first of those that were read back
            assert event is not None  # noqa: S101 - there is `done` at least
        if self._log is None and type(event) is Token and self._first_token_at is not None:
            return event  # as nearly all are
        return self._note(event)

    def _note(self, event: Event) -> Event | None:
        """Take note of an event that is not one token of many; None: it is an outcome, and nothing that is given."""
        if self._log is not None:
            self._log(event)
        if type(event) is Done:
            self._end(self._make_reply(event))
        elif type(event) is Failure:
            self._end(ReplyFailedError(f"the server gave up: {snippet(event.reason)}", reason=event.reason))
            return None
        elif self._first_token_at is None:
            self._given_at = self._now()
            if type(event) is Token:
                self._first_token_at = self._given_at
        return event

    async def _complete(self, error: AheadlessError) -> bool:
        """Get the rest of a stream that broke off from the server's history, or an outcome."""
        assert self._source is not None  # noqa: S101 - only called on an open stream
        self._source.close()
        stored: tuple[str, str] | None = None
        try:
            async with asyncio.timeout(None) as self._scope:
                stored = await self._wiring.read_back(self, error)
        except TimeoutError:
            if self._outcome is None:
                raise
            # The scope's, as in _open().
        finally:
            self._scope = None
        if self._outcome is not None:
            return False
        if stored is None:
            self._end(error)
            return False
        self._turn.complete(*stored)
        self._recovered = True
        return True

    def _deadline(self) -> float | None:
        """Return until when the next event must have come, by the loop's clock."""
        source = self._source
        assert source is not None  # noqa: S101 - only called on an open stream
        if self._first_token_at is None:
            at = source.first_token_at
            at = None if at is None else at + self._held  # only the time in which we wait counts
        else:
            at = None if self._idle is None else self._now() + self._idle
        total_at = source.total_at
        return total_at if at is None or (total_at is not None and total_at < at) else at

    def _explain(
        self, exc: AheadlessError | TimeoutError, lost: ConnectionLostError | None, deadline: float | None
    ) -> AheadlessError:
        """Return what goes out for an error of reading."""
        if isinstance(exc, StreamInterruptedError):
            exc.__cause__ = lost
        elif not isinstance(exc, AheadlessError):
            assert self._source is not None  # noqa: S101 - it was read from
            phase: Phase = "first_token" if self._first_token_at is None else "idle"
            if deadline is not None and deadline == self._source.total_at:
                phase = "total"
            exc = RequestTimeoutError(phase=phase)
        exc.delivery = self._turn.delivery
        return exc

    async def _record(self) -> None:
        """Have the settled turn saved. That a reply was not saved is what its reader gets, with the reply on it."""
        try:
            await self._wiring.record()
        except StoreError as exc:
            if not isinstance(self._outcome, Reply):
                return  # why there is no reply matters more; the saving is tried again later, or was logged
            exc.reply = self._outcome
            exc.session_id = self.session_id
            self._outcome = exc
            self._end_subscriptions(exc)
            raise await self._told(exc) from None

    async def _tell(self, event: Event) -> None:
        if self._mailboxes:
            await self._publish(event)
        callbacks = self._callbacks
        if type(event) is Token:
            await call(callbacks.on_token, event.text)
        elif type(event) is Start:
            await call(callbacks.on_start, event)
        elif isinstance(self._outcome, Reply):
            await call(callbacks.on_done, self._outcome)

    async def _publish(self, event: Event) -> None:
        total_at = None if self._source is None else self._source.total_at
        try:
            async with asyncio.timeout_at(total_at):
                for mailbox in self._mailboxes:
                    await mailbox.put(event)
        except TimeoutError:
            if self._outcome is None:
                self.fail(RequestTimeoutError(phase="total"))
        finally:
            if isinstance(self._outcome, Reply):  # the event is `done`
                self._end_subscriptions(self._outcome)

    async def _told(self, error: AheadlessError) -> AheadlessError:
        """Return an error that is to be raised, after the callbacks heard of it."""
        if not self._raised:
            self._raised = True
            await call(self._callbacks.on_error, error)
        return error

    def _make_reply(self, done: Done) -> Reply:
        self._ended_at = self._now()
        return Reply(
            done.text,
            session_id=self.session_id,
            conversation_id=done.conversation_id,
            streamed_text=self._turn.text,
            timings=self.timings,
            recovered=self._recovered,
        )

    def _now(self) -> float:
        assert self._loop is not None  # noqa: S101 - only asked while somebody reads
        return self._loop.time()

    # --- ending -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the turn now, from any task of the same event loop; if it is over nothing happens.

        A loop over the stream just ends; awaiting the reply raises StreamStoppedError with the partial text, and
        `on_done` is not called. The server still writes and stores its reply.
        """
        self.fail(StreamStoppedError("the reply was stopped"))

    async def aclose(self) -> None:
        """End the turn as :meth:`stop` does, and wait until that is saved, if there is a store. May be called again.

        Raises StoreError. If cancelled, the turn is over all the same.
        """
        self.stop()
        await self._record()

    def fail(self, error: AheadlessError) -> None:
        """End the turn with an error of this side; its reader, if there is one, wakes up and raises it."""
        if self._outcome is not None:
            return
        error.delivery = self._delivery if self._source is None else self._turn.delivery
        self._end(error)
        if self._scope is not None:
            self._scope.reschedule(0)

    def note_delivery(self, delivery: Delivery) -> None:
        """Take note of what has become of the message so far, for an end that comes from outside.

        Raises that end if it has come: its verdict is given, so nothing may be sent any more.
        """
        if isinstance(self._outcome, AheadlessError):
            raise self._outcome
        self._delivery = delivery

    def note_request(self) -> None:
        """Take note that a request is about to be made; whether it arrives is not known until told otherwise."""
        self._delivery = Delivery.UNKNOWN
        self._sent_at = self._now()
        self._connect = None

    def note_connection(self, seconds: float | None) -> None:
        """Take note of how long it took until there was a new connection; None: an open one is used again."""
        self._connect = seconds

    def note_recovered(self) -> None:
        """Take note that the answer that comes was read back from the server's history."""
        self._recovered = True

    def abandon(self) -> None:
        """End the turn because its loop was left; from a finaliser, so on whatever thread and even without a loop."""
        if self._outcome is None and not self._owned and self._loop is not None:
            call_on(self._loop, self.stop)

    def _end(self, outcome: Outcome) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        if self._ended_at is None and self._loop is not None:
            self._ended_at = self._loop.time()
        self._turn.interrupt()
        if isinstance(outcome, AheadlessError):
            outcome.session_id = self.session_id
            outcome.partial = self._turn.text
        if self._source is not None:
            if isinstance(outcome, Reply | ReplyFailedError) and not self._turn.surplus:
                self._source.finish()
            else:
                self._source.wake(_EndedElsewhereError())
                self._source.close()
        self._wiring.settle(self, outcome)
        self._task = None
        if isinstance(outcome, AheadlessError):
            self._end_subscriptions(outcome)  # after a reply they end when they have `done`

    # --- more readers -------------------------------------------------------------------------------------------------

    def subscribe(self, maxsize: int = 1000, *, overflow: Overflow = "block") -> Subscription:
        """Return an async iterator over the events from now on, for a reader beside the one that drives the stream.

        It holds at most `maxsize` events that were not read. When it is full, `overflow` decides: "block" makes the
        stream wait (no longer than `timeouts.total`), "drop_oldest" loses the oldest event, "raise" ends the
        subscription with a UsageError. It ends with the stream, and raises what the stream's reader gets. What came
        before is in :attr:`snapshot`. Dropping it, as by leaving a loop over it, ends it.
        """
        mailbox = Mailbox(maxsize, overflow, self._unsubscribe)
        if self._outcome is not None:
            mailbox.end(self._outcome)
        else:
            self._mailboxes += (mailbox,)
            self._turn.withdraw()
        return Subscription(mailbox)

    def _end_subscriptions(self, outcome: Outcome) -> None:
        for mailbox in self._mailboxes:
            mailbox.end(outcome)

    def _unsubscribe(self, mailbox: Mailbox) -> None:
        self._mailboxes = tuple(other for other in self._mailboxes if other is not mailbox)

    # --- for _Reading and _Cursor -------------------------------------------------------------------------------------

    def check_reader(self) -> None:
        """Raise a UsageError unless the running task may read now."""
        if self._loop is not None and self._outcome is None and self._loop is not asyncio.get_running_loop():
            raise UsageError("this stream belongs to another event loop")
        if self._reading:
            raise UsageError("another task reads this stream; for a second reader use stream.subscribe()")

    def begin_reading(self) -> None:
        """Let one task in."""
        loop = asyncio.get_running_loop()
        if self._reading or self._loop is not loop:
            self.check_reader()
        self._reading = True
        if self._outcome is None:
            self._task = asyncio.current_task()
            self._loop = loop

    def end_reading(self, error: BaseException | None) -> None:
        """Let it out. An error that is not the turn's own, a cancel or one of the user's, ends the turn."""
        self._reading = False
        if error is not None and self._outcome is None:
            self._cancelled = isinstance(error, asyncio.CancelledError)
            self.fail(StreamInterruptedError("its reader left the stream"))


class _EndedElsewhereError(Exception):
    """Wakes up a reader whose turn was ended by another task."""


class _Reading:
    """The stretch in which a task reads; a plain context manager, as it is entered for every event."""

    __slots__ = ("_stream",)

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        self._stream.begin_reading()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.end_reading(error)


_NONE_READY: Final[list[Token]] = []


class _Cursor(Generic[T]):
    """An iteration over a stream. When it goes away, as it does when its loop is left, so does the stream's connection.

    This is an object and not an async generator because only an object is finalised at once and without waiting.
    """

    __slots__ = ("_drives", "_ready", "_stream")

    def __init__(self, stream: ReplyStream) -> None:
        self._stream = stream
        self._ready = _NONE_READY
        self._drives = False  # one that was never used, or was refused, has no say in the end of the stream

    async def aclose(self) -> None:
        """End the turn, unless a block owns the stream or this iteration has not begun. Does not wait for anything."""
        self._leave()

    def __del__(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._drives:
            self._stream.abandon()

    def _drive(self) -> ReplyStream:
        if not self._drives:
            self._stream.check_reader()
            self._drives = True
            self._ready = self._stream.ready
        return self._stream


class EventCursor(_Cursor[Event]):
    """The events of a stream, as an async iterator."""

    __slots__ = ()

    def __aiter__(self) -> EventCursor:
        return self

    async def __anext__(self) -> Event:
        if self._ready:
            return self._ready.pop()
        try:
            if (event := await self._drive().advance()) is None:
                raise StopAsyncIteration
            return event
        finally:
            # Somebody may hold this frame, as the traceback of an error that was caught on the way does: without it.
            del self


class TextCursor(_Cursor[str]):
    """The texts of a stream's tokens, as an async iterator."""

    __slots__ = ()

    def __aiter__(self) -> TextCursor:
        return self

    async def __anext__(self) -> str:
        if self._ready:
            return self._ready.pop().text
        try:
            if (text := await self._drive().take_text()) is None:
                raise StopAsyncIteration
            return text
        finally:
            del self  # as above
