"""Reads the server's history through the admin API: again and again, while it may still be writing there."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import attrs

from aheadless._recovery import NotStored, Stored, find
from aheadless._session import Baseline
from aheadless.exceptions import (
    AheadlessError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    NotFoundError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
    StreamInterruptedError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from aheadless._recovery import Finding, LostTurn, StoredMessage
    from aheadless._session import Session
    from aheadless.admin import AdminClient, Thread

__all__ = ["Found", "ReadBack"]

logger = logging.getLogger("aheadless")

# There is no paging, so older conversations cannot be found by their session (protocol.md §4).
LISTED: Final = 200

# A request whose connection broke may lie in the server's socket, or wait there for its store, while we look. A server
# that takes longer for a write than this is one whose answers to us come no sooner, and they come after it.
SETTLING: Final = 5.0

FIRST_PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 4.0

# For one look, however patient the client is otherwise.
LOOK_TIMEOUT: Final = 10.0

# The clocks of the web server, which dates its answers, and of its database are not the same.
CLOCK_TOLERANCE: Final = timedelta(minutes=5)

# Enough to recognise where the history ended, even if a few of them are deleted later.
BASELINE_IDS: Final = 50


class _OutOfReachError(Exception):
    """The conversation may be among those that cannot be listed."""


@attrs.frozen
class Found:
    """What became of a turn."""

    delivery: Delivery
    """REJECTED if the server does not have the question; as before if nobody can tell."""
    reply: str | None = None
    conversation_id: str | None = None
    thread: Thread | None = attrs.field(default=None, repr=False)
    """The conversation as it was seen last; None, too, if it told nothing."""

    @property
    def unanswered(self) -> bool:
        """Whether the server has the question, but no reply."""
        return self.delivery is Delivery.ACCEPTED and self.thread is not None and self.reply is None


class ReadBack:
    """Find out what became of turns.

    `now` and `pause` can be replaced, so that all of it can be tested without waiting.
    """

    def __init__(self, admin: Callable[[], AdminClient]) -> None:
        self._admin = admin
        self.now: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        self.pause: Callable[[float], Awaitable[object]] = asyncio.sleep

    async def take_baseline(self, session: Session) -> None:
        """Remember what the server has now, unless that is known; if it cannot be had the session goes without.

        One GET, and one more as long as the conversation's id is not known. It is taken again when the messages that
        came since are more than are kept.
        """
        baseline = session.baseline
        if baseline is not None and session.count - baseline.count < max(session.history_limit, 1):
            return
        session.baseline, name = None, session.session_id
        try:
            async with asyncio.timeout(LOOK_TIMEOUT):
                self.remember(session, await self._look(session.session_id, session.conversation_id))
        except _OutOfReachError:
            logger.info("the conversation of %s is not among the newest %d", name, LISTED, extra={"session_id": name})
        except (AheadlessError, TimeoutError) as exc:
            logger.warning("the history of %s was not read before its turn: %s", name, exc, extra={"session_id": name})

    def remember(self, session: Session, thread: Thread | None) -> None:
        """Take note that no message that is sent from now on is among these."""
        newest = () if thread is None else thread.messages[-BASELINE_IDS:]
        session.baseline = Baseline(frozenset(message.id for message in newest), session.count)

    async def search(
        self,
        session: Session,
        turn: LostTurn,
        *,
        delivery: Delivery,
        wait: float,
        conversation_id: str | None = None,
        ended: bool = False,
        age: Callable[[], float] | None = None,
    ) -> Found:
        """Return what became of a turn, as soon as it is certain, or what is known after `wait` seconds.

        `conversation_id`: as the turn's own `start` told it, if that is newer than what the session knows. `ended`: no
        reply can come any more, the server has said so. `age`: how long ago the question was sent, if this process
        knows. Raises what the admin API failed with, if it has not answered once.
        """
        begun_at = self.now()
        conversation_id = conversation_id or session.conversation_id
        answer: tuple[Thread | None, Finding] | None = None
        failure: AheadlessError | None = None
        pause = FIRST_PAUSE
        while True:
            waited = self.now() - begun_at
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    thread = await self._look(session.session_id, conversation_id)
            except _OutOfReachError:
                return Found(delivery)
            except (AheadlessError, TimeoutError) as exc:
                failure = _passing(exc)
            else:
                conversation_id = None if thread is None else thread.conversation.id
                answer = thread, find(_messages(thread), turn, not_before=_not_before(thread, age))
                if (found := _conclude(*answer, delivery, settled=waited >= SETTLING, ended=ended)) is not None:
                    return found
            if waited >= wait:
                break
            until = SETTLING if waited < SETTLING else wait
            await self.pause(min(pause, until - waited, wait - waited))
            pause = min(2 * pause, LONGEST_PAUSE)
        if answer is None:
            assert failure is not None  # noqa: S101 - one of the two there is
            failure.delivery = delivery
            raise failure
        found = _conclude(*answer, delivery, settled=False, ended=True)
        return Found(delivery) if found is None else found

    async def _look(self, session_id: str, conversation_id: str | None) -> Thread | None:
        """Return the session's conversation, or None if there is none."""
        admin = self._admin()
        if conversation_id is not None:
            try:
                return await admin.conversation(conversation_id)
            except NotFoundError:
                pass  # deleted, or another database; the session may have a new one
        page = await admin.conversations(limit=LISTED)
        for conversation in page.conversations:
            if conversation.session_id == session_id:
                return await admin.conversation(conversation.id)
        if page.total > len(page.conversations):
            raise _OutOfReachError
        return None


def _messages(thread: Thread | None) -> Sequence[StoredMessage]:
    return () if thread is None else thread.messages


def _not_before(thread: Thread | None, age: Callable[[], float] | None) -> datetime | None:
    if thread is None or thread.answered_at is None or age is None:
        return None
    return thread.answered_at - timedelta(seconds=age()) - CLOCK_TOLERANCE


def _conclude(
    thread: Thread | None, finding: Finding, delivery: Delivery, *, settled: bool, ended: bool
) -> Found | None:
    """Return what a look tells for certain, or, if it is the last one (`ended`), what it makes probable."""
    conversation_id = None if thread is None else thread.conversation.id
    match finding:
        case NotStored():
            # A `start` was seen, so it was stored: then this history is not to be trusted.
            certain = settled and delivery is Delivery.UNKNOWN
            return Found(Delivery.REJECTED, None, conversation_id, thread) if certain else None
        case Stored(reply, certain) if (reply is not None and certain) or ended:
            return Found(Delivery.ACCEPTED, reply, conversation_id, thread)
        case _:
            return None


def _passing(error: AheadlessError | TimeoutError) -> AheadlessError:
    """Return an error of the kind that may be over at the next look; raise any other."""
    match error:
        case ConnectError(permanent=False) | ConnectionLostError() | StreamInterruptedError():
            return error
        case RequestTimeoutError() | ServerError() | RateLimitError():
            return error
        case AheadlessError():
            raise error
        case _:
            return RequestTimeoutError(phase="total")
