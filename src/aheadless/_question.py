"""One message on its way: the session is entered, the message sent, what comes of it recorded."""

from __future__ import annotations

import asyncio
import logging
import random
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

import attrs
import msgspec

from aheadless._options import (
    OnBusy,
    Timeouts,
    hide,
)
from aheadless._pacing import Pacing, Pass, Waiting
from aheadless._retry import Retrying
from aheadless._session import Message, MessageStatus, Reply, Session
from aheadless._stream import ReplyStream, call
from aheadless.exceptions import (
    AheadlessError,
    ClientClosedError,
    ConnectionLostError,
    Delivery,
    ProtocolError,
    RateLimitError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    SessionBusyError,
    StatusError,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
)
from aheadless.protocol.codec import (
    decode_reply,
    encode_event,
)
from aheadless.protocol.events import Done, Start, Token
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    from collections.abc import Callable

    from aheadless._gate import Gate
    from aheadless._http import Key
    from aheadless._readback import Found
    from aheadless._recovery import Preceding
    from aheadless._search import Search
    from aheadless._stream import Source
    from aheadless._subscription import Outcome
    from aheadless._telemetry import Watch
    from aheadless.protocol.events import Event


from aheadless._core import Core, utc_now

__all__ = ["Question", "search"]

# Nobody waits for longer for the turns before; one that waits for itself, by way of a task that it made, ends here.
LONGEST_QUEUE = 600.0

# The reference ends a model that hangs after about 300 s (protocol.md §3.6): no reply comes later than that.
LONGEST_REPLY = 300.0


class Question(msgspec.Struct, eq=False):
    """One message on its way: the wiring of its stream."""

    core: Core
    session: Session
    gate: Gate
    body: bytes
    message: str
    key: Key
    timeouts: Timeouts
    on_busy: OnBusy
    json: bool
    watch: Watch
    give_up_at: float | None = None
    unsure: bool = False  # whether an earlier attempt may have arrived
    asked: Message | None = None
    asked_at: float = 0.0  # by the loop's clock
    remembered: Preceding | None = None
    unanswered: bool = False  # the history shows the question, and no reply
    saved: bool = False

    @property
    def session_id(self) -> str:
        return self.session.session_id

    @property
    def idle_timeout(self) -> float | None:
        return self.timeouts.idle

    @property
    def log(self) -> Callable[[Event], None] | None:
        return None if self.core.log is None else partial(self.core.log.append, self.session_id)

    async def enter(self, stream: ReplyStream) -> None:
        self.watch.begin(self.core.transport.base_url, stream=not self.json, message=self.message)
        self.core.bind()
        self.core.live.add(stream)
        if not self.gate.busy and self.core.keeper is None:
            await self.gate.enter(stream, self.on_busy)  # at once
            return
        try:
            async with asyncio.timeout(LONGEST_QUEUE):
                await self.gate.enter(stream, self.on_busy)
                if self.core.keeper is not None:
                    await self.core.keeper.take(self.session, wait=self.on_busy != "reject")
        except TimeoutError:
            raise SessionBusyError(f"the session's turn did not end within {LONGEST_QUEUE:.0f} s") from None

    async def send(self, stream: ReplyStream) -> Source:
        self.core.touch(self.session)
        if self.core.readback is not None:
            if self.core.recovery == "auto":
                await self.core.readback.take_baseline(self.session)
            from aheadless._recovery import preceding  # noqa: PLC0415 - the read-back has loaded it

            self.remembered = preceding(self.session)
        self.asked = self.session.begin(self.message, at=utc_now())
        self.asked_at = asyncio.get_running_loop().time()
        if self.core.keeper is not None:
            await self.core.keeper.save_question(self.session)
        if self.core.log is not None:
            self.core.log.begin(self.session_id)
        core, attempt = self.core, 1
        while True:
            try:
                source = await self._send_paced(stream)
            except AheadlessError as exc:
                asked = (exc.retry_after or 0.0) if isinstance(exc, StatusError) else 0.0
                again = core.retry.allows(exc, attempt)
                exc.delivery = self._verdict(exc.delivery)
                if (stored := await self._read_back_whole(stream, exc)) is not None:
                    return stored
                again = asked <= core.max_wait and (again or core.retry.allows(exc, attempt))
                if self.unanswered or not again or not core.budget.spend():
                    raise
                error = exc
            else:
                core.budget.earn()
                return source
            delay = max(core.retry.pause(attempt, random.random), asked)
            self.unsure = error.delivery is Delivery.UNKNOWN
            stream.note_delivery(error.delivery)
            self.watch.retries(attempt, error, delay)
            await call(core.on_retry, Retrying(self.session_id, attempt, delay, error))
            await asyncio.sleep(delay)
            attempt += 1

    async def _send_paced(self, stream: ReplyStream) -> Source:
        """Send when the pace allows it, again and again as long as the server says 429 and time is left."""
        pacer = self.core.pacing()
        refusal: RateLimitError | None = None
        while True:
            leave = await self._wait_for_leave(pacer, refusal)
            counted = True
            stream.note_request()
            try:
                source = await self._post(stream)
            except RateLimitError as exc:
                counted = False
                refusal = exc
                self.watch.log(
                    logging.WARNING, "the server refuses %s for now (429)", self.session_id, status=exc.status
                )
                pacer.refused(leave, exc.retry_after)
                stream.note_delivery(self._verdict(Delivery.REJECTED))
            except AheadlessError as exc:
                counted = exc.delivery is not Delivery.NOT_SENT
                if isinstance(exc, StatusError):
                    pacer.accepted(leave)  # the rate limit is looked at before anything else that refuses
                raise
            else:
                pacer.accepted(leave)
                return source
            finally:
                pacer.leave(leave, counted=counted)

    async def _wait_for_leave(self, pacer: Pacing, refusal: RateLimitError | None) -> Pass:
        core = self.core
        leave = await pacer.try_enter(core.rate_limit)
        if isinstance(leave, Pass):
            return leave
        now = asyncio.get_running_loop().time()
        if self.give_up_at is None and core.max_wait:
            self.give_up_at = now + core.max_wait
            self.watch.waits(leave, core.max_wait)
            await call(core.on_wait, Waiting(self.session_id, leave, core.max_wait))
        pause = refusal.retry_after if refusal is not None else None
        if self.give_up_at is not None and now + (pause or 0.0) < self.give_up_at:
            try:
                async with asyncio.timeout_at(self.give_up_at):
                    return await pacer.enter(core.rate_limit, again=refusal is not None)
            except TimeoutError:
                pass
        if refusal is not None:
            raise refusal
        raise RateLimitError(f"the rate limit left no room within {core.max_wait:.0f} s", delivery=Delivery.NOT_SENT)

    async def _post(self, stream: ReplyStream) -> Source:
        keeper, session = self.core.keeper, self.session

        def on_news(delivery: Delivery, connect: float | None) -> None:
            if stream.state is not TurnState.WAITING:
                # It was ended from outside as not sent, and this comes before anything is.
                raise TimeoutError
            if keeper is not None:
                keeper.check(session)
            stream.note_connection(connect)
            stream.note_delivery(self._verdict(delivery))

        transport, timeouts, headers = self.core.transport, self.timeouts, self.watch.request_headers()
        if not self.json:
            return await transport.open_stream(
                self.core.endpoint, self.body, self.key, timeouts=timeouts, on_news=on_news, headers=headers
            )
        reply = decode_reply(
            await transport.post("/v1/chat", self.body, self.key, timeouts=timeouts, on_news=on_news, headers=headers)
        )
        return _Whole(
            encode_event(Start(reply.conversation_id)) + encode_event(Done(reply.text, reply.conversation_id))
        )

    def _verdict(self, delivery: Delivery) -> Delivery:
        """Return what is known of all attempts, from what is known of the last."""
        return Delivery.UNKNOWN if self.unsure and delivery is not Delivery.ACCEPTED else delivery

    # --- reading back -------------------------------------------------------------------------------------------------

    async def read_back(self, stream: ReplyStream, error: AheadlessError) -> tuple[str, str] | None:
        found = await self._search(stream, error) if self._is_cut(error) else None
        if found is None or found.reply is None or found.conversation_id is None:
            return None
        return found.reply, found.conversation_id

    async def _read_back_whole(self, stream: ReplyStream, error: AheadlessError) -> Source | None:
        """Return the stored reply as the answer to a message of which nobody knows whether it was stored."""
        stored = await self.read_back(stream, error) if error.delivery is Delivery.UNKNOWN else None
        if stored is None:
            return None
        text, conversation_id = stored
        stream.note_recovered()
        token = b"" if self.json else encode_event(Token(text))
        return _Whole(encode_event(Start(conversation_id)) + token + encode_event(Done(text, conversation_id)))

    def _is_cut(self, error: AheadlessError) -> bool:
        """Whether it is an end of the connection, and not one that this side wanted, that kept the reply away."""
        match error:
            case StreamInterruptedError() | ConnectionLostError() | RequestTimeoutError(phase="first_token" | "idle"):
                return True
            case ServerError() | ProtocolError():
                return error.delivery is Delivery.UNKNOWN
            case _:
                return False

    async def _search(self, stream: ReplyStream, error: AheadlessError) -> Found | None:
        """Find out what became of the question, and correct the error's verdict; None if that is not wanted."""
        readback = self.core.readback
        if readback is None or self.core.recovery != "auto" or self.asked is None:
            return None
        from aheadless._recovery import lost_turn  # noqa: PLC0415 - the read-back has loaded it

        turn = lost_turn(self.session, self.asked, remembered=self.remembered)
        self.watch.log(logging.INFO, "%s broke off (%s); reading back", self.session_id, error)
        try:
            found = await readback.search(
                self.session,
                attrs.evolve(turn, partial=stream.snapshot),
                delivery=error.delivery,
                wait=self._patience(),
                conversation_id=stream.conversation_id,
                ended=is_final(error),
                age=self._age,
            )
        except AheadlessError as exc:
            self.watch.log(logging.WARNING, "the history of %s cannot be read: %s", self.session_id, exc)
            return None
        error.delivery = found.delivery
        if found.delivery is not Delivery.UNKNOWN:
            self.unsure = False  # the history tells of all attempts
        self.unanswered = found.unanswered
        return found

    def _patience(self) -> float:
        """Return for how long a reply is waited for: as for one that comes in one piece."""
        seconds = LONGEST_REPLY if self.timeouts.send is None else min(self.timeouts.send, LONGEST_REPLY)
        if self.timeouts.total is not None:
            seconds = min(seconds, self.timeouts.total - (asyncio.get_running_loop().time() - self.asked_at))
        return max(seconds, 0.0)

    def _age(self) -> float:
        """Return how long ago the message was sent. Of the two clocks one may have been set and one may have slept."""
        assert self.asked is not None  # noqa: S101 - it was sent
        slept = (utc_now() - self.asked.created_at).total_seconds()
        return max(slept, asyncio.get_running_loop().time() - self.asked_at)

    async def _recover(self, error: AheadlessError, wait: float) -> tuple[Reply | None, Delivery]:
        """Be the error's way back."""
        return await search(self.core, self.session, self.gate).run(
            lambda: self.asked,
            wait=wait,
            delivery=error.delivery,
            ended=is_final(error),
            age=self._age,
            remembered=self.remembered,
        )

    def settle(self, stream: ReplyStream, outcome: Outcome) -> None:
        if isinstance(outcome, AheadlessError):
            hide(self.key.secret, outcome)
        if self.core.readback is not None and self.asked is not None and isinstance(outcome, AheadlessError):
            outcome.way_back = partial(self._recover, outcome)
        status: MessageStatus = "cancelled" if stream.cancelled else "failed" if self.unanswered else _status(outcome)
        if self.asked is not None:
            if isinstance(outcome, Reply):
                text, delivery = outcome.text, Delivery.ACCEPTED
            else:
                text, delivery = outcome.partial, outcome.delivery
            self.session.settle(
                text,
                status=status,
                delivery=delivery,
                conversation_id=stream.conversation_id,
                at=utc_now(),
            )
        if self.core.log is not None:
            self.core.log.end(self.session_id)
        if self.core.keeper is not None:
            self.core.keeper.end(self.session)
        self.gate.leave(stream)
        self.core.live.discard(stream)
        timings = outcome.timings if isinstance(outcome, Reply) else stream.timings
        self.watch.end(outcome, status=status, timings=timings, conversation_id=self.session.conversation_id)

    async def record(self) -> None:
        if self.core.keeper is not None and not self.saved:
            await self.core.keeper.bring_back(self.session)
            self.saved = True  # what becomes of a later turn is told to that one


class _Whole(msgspec.Struct, eq=False):
    """A JSON answer told as the stream that it might have been: a reply comes from `done` and from nowhere else."""

    events: bytes
    first_token_at: None = None
    total_at: None = None

    async def read(self, _deadline: float | None, /) -> bytes:
        events, self.events = self.events, b""
        return events

    def wake(self, error: Exception) -> None: ...

    def close(self) -> None: ...

    def finish(self) -> None: ...


def _status(outcome: Outcome) -> MessageStatus:
    match outcome:
        case Reply():
            return "complete"
        case StreamStoppedError() | ClientClosedError():
            return "interrupted"
        case AheadlessError(delivery=Delivery.UNKNOWN):
            return "unknown"
        case ReplyFailedError() | StoreError():
            return "failed"
        case AheadlessError(delivery=Delivery.NOT_SENT | Delivery.REJECTED):
            return "failed"
        case _:
            return "interrupted"


def is_final(error: AheadlessError) -> bool:
    """Whether the server itself has said that no reply comes. A 502 or 504 is a proxy's, which does not know."""
    own = isinstance(error, ServerError) and error.status == HTTPStatus.INTERNAL_SERVER_ERROR
    return own or isinstance(error, ReplyFailedError)


def search(core: Core, session: Session, gate: Gate) -> Search:
    """Return a search for the end of a turn. Most programs never see one, so that it is loaded here."""
    from aheadless._search import Search  # noqa: PLC0415

    return Search(core, session, gate)
