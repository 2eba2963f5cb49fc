"""The search for the end of a turn that was not seen: it holds the session as a turn does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import attrs

from aheadless._options import (
    parse_seconds,
)
from aheadless._recovery import LostTurn, Preceding, lost_turn
from aheadless._session import Message, MessageStatus, Reply, Session, Timings
from aheadless.exceptions import (
    AheadlessError,
    Delivery,
    StoreError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aheadless._gate import Gate
    from aheadless._readback import Found


from aheadless._core import Core, utc_now

__all__ = ["Search"]


@attrs.define(eq=False)
class Search:
    """A search for the end of a turn; it holds the session as a turn does."""

    core: Core
    session: Session
    gate: Gate
    task: asyncio.Task[object] | None = attrs.field(default=None, init=False)
    _scope: asyncio.Timeout | None = attrs.field(default=None, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    _error: AheadlessError | None = attrs.field(default=None, init=False)

    async def run(
        self,
        choose: Callable[[], Message | None],
        *,
        wait: float,
        delivery: Delivery | None = None,
        ended: bool = False,
        age: Callable[[], float] | None = None,
        remembered: Preceding | None = None,
    ) -> tuple[Reply | None, Delivery]:
        """Return the reply to a question of the session, if it is there, and what has become of the question."""
        readback = self.core.readback
        if readback is None:
            raise UsageError("a reply is recovered with an admin key: pass admin_key or set AHEADLESS_ADMIN_KEY")
        wait = 0.0 if wait == 0 else parse_seconds(wait, "wait")
        asked_at = readback.now()
        result: tuple[Reply | None, Delivery] = None, delivery or Delivery.UNKNOWN

        async def work() -> None:
            nonlocal result
            question = choose()
            if question is None:
                return
            turn = lost_turn(self.session, question, remembered=remembered)
            result = None, delivery or turn.question.delivery
            begun_at = readback.now()
            queued = begun_at - asked_at
            if (known := self.session.reply_to(question)) is not None:
                result = self._reply(known.text, turn, Timings(None, 0.0, queued=queued)), Delivery.ACCEPTED
                return
            found = await readback.search(self.session, turn, delivery=result[1], wait=wait, ended=ended, age=age)
            self._correct(question, found)
            result = None, found.delivery
            if found.reply is not None:
                timings = Timings(None, readback.now() - begun_at, queued=queued)
                result = self._reply(found.reply, turn, timings), found.delivery

        try:
            await self._hold(work, wait=True)
        except AheadlessError as exc:
            # Of the admin API or the store; what it says of a message is not about this one.
            exc.delivery = result[1]
            if isinstance(exc, StoreError):
                exc.reply = result[0]
            raise
        return result

    async def look(self) -> None:
        """Take over what the store has; SessionBusyError if another process has the session."""

        async def work() -> None: ...

        await self._hold(work, wait=False)

    async def discard(self, question: Message) -> None:
        """Let a question be pending no more."""

        async def work() -> None:
            index = self.session.index(question)
            if index is not None and self.session.messages[index].status == "unknown":
                self._record(question, "interrupted", self.session.messages[index].delivery, None, None)

        await self._hold(work, wait=True)

    def stop(self) -> None:
        """End the search; it leaves the gate as soon as its task runs."""
        self._ended = True
        if self._scope is not None:
            self._scope.reschedule(0)

    def fail(self, error: AheadlessError) -> None:
        """End the search with an error."""
        self._error = error
        self.stop()

    async def _hold(self, work: Callable[[], Awaitable[None]], *, wait: bool) -> None:
        core = self.core
        core.bind()
        core.live.add(self)
        self.task = asyncio.current_task()
        try:
            async with asyncio.timeout(None) as self._scope:
                await self.gate.enter(self, "queue")
                await self._with_store(work, wait=wait)
        except TimeoutError:
            if not self._ended:
                raise
            # The scope's: it was stopped, or the client was closed.
        except AheadlessError as exc:
            exc.session_id = self.session.session_id
            raise
        finally:
            self._scope = None
            self.gate.leave(self)
            core.live.discard(self)
        if self._error is not None:
            self._error.session_id = self.session.session_id
            raise self._error

    async def _with_store(self, work: Callable[[], Awaitable[None]], *, wait: bool) -> None:
        keeper = self.core.keeper
        if keeper is None:
            await work()
            return
        await keeper.take(self.session, wait=wait)
        try:
            self.core.touch(self.session)
            await work()
        finally:
            keeper.end(self.session)
        await keeper.bring_back(self.session)

    def _correct(self, question: Message, found: Found) -> None:
        if found.reply is not None:
            self._record(question, "complete", found.delivery, found.conversation_id, found.reply)
        elif found.unanswered or found.delivery is Delivery.REJECTED:
            self._record(question, "failed", found.delivery, found.conversation_id, None)
        else:
            return
        if self.core.readback is not None:
            self.core.readback.remember(self.session, found.thread)

    def _record(
        self,
        question: Message,
        status: MessageStatus,
        delivery: Delivery,
        conversation_id: str | None,
        reply: str | None,
    ) -> None:
        self.session.correct(
            question, status=status, delivery=delivery, conversation_id=conversation_id, reply=reply, at=utc_now()
        )

    def _reply(self, text: str, turn: LostTurn, timings: Timings) -> Reply:
        return Reply(
            text,
            session_id=self.session.session_id,
            conversation_id=self.session.conversation_id or "",
            streamed_text=turn.partial,
            timings=timings,
            recovered=True,
        )
