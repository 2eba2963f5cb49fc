"""One turn at a time over all processes: takes a session's lease and state from the store, and brings both back.

A turn can end where nothing can be awaited: in a finaliser, or in a task that is being cancelled. What is left to be
saved then is brought back by the next turn of the session, by the keeper's own task, which also renews the leases of
live turns, or by :meth:`Keeper.aclose`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.exceptions import Delivery, SessionBusyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Generator

    from aheadless._exchange import Lease
    from aheadless._session import Session
    from aheadless._store import SessionStore

__all__ = ["Keeper"]

logger = logging.getLogger("aheadless")

# A lease survives two renewals that fail.
RENEWALS: Final = 3

# What was not saved in the last moment of a client is given this long, however the store is.
LAST_SAVE: Final = 5.0


@attrs.define(eq=False)
class _Held:
    """A session whose lease this process has."""

    session: Session
    lease: Lease
    valid_until: float
    """By the loop's time; nobody else can have it before."""
    ended: bool = False
    """Whether its turn is settled, so that it is only kept to be brought back."""
    doubtful: bool = False
    """Whether a save may have been carried out though it failed or was cancelled."""
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock, init=False)


class Keeper:
    """Lease, load and save the sessions of one client."""

    def __init__(self, store: SessionStore, *, history_limit: int) -> None:
        self._store = store
        self._history_limit = history_limit
        self._held: dict[str, _Held] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    async def take(self, session: Session, *, wait: bool) -> None:
        """Make the session this process's own, its state that of the store.

        Raises SessionBusyError when another process has it and it is not to be waited for, and StoreError with verdict
        NOT_SENT. If cancelled, it is given back.
        """
        with self._before_sending(session):
            try:
                await self._bring_back(session)  # an earlier turn may have ended where nothing could be awaited
            except StoreError as exc:
                if not exc.lost:
                    raise
                _warn(session, "the end of the last turn of %s was not saved: %s", exc)
            lease = await self._store.acquire(session.session_id, wait=wait)
            if lease is None:
                raise SessionBusyError("the session has a live turn in another process")
            held = _Held(session, lease, self._now() + self._store.lease_seconds)
            self._held[session.session_id] = held
            self._start()
            try:
                session.adopt(await self._store.load(session.session_id, limit=self._history_limit), held=True)
            except BaseException:
                self.end(session)
                raise

    async def save_question(self, session: Session) -> None:
        """Save a question before it is sent. Raises StoreError with verdict NOT_SENT."""
        held = self._held.get(session.session_id)
        if held is None:
            return
        with self._before_sending(session):
            async with held.lock:
                await self._save(held)

    def check(self, session: Session) -> None:
        """Raise StoreError with verdict NOT_SENT if the lease may have run out: this process was paused."""
        held = self._held.get(session.session_id)
        if held is not None and self._now() >= held.valid_until:
            raise StoreError("the session's lease ran out before the message was sent", delivery=Delivery.NOT_SENT)

    def end(self, session: Session) -> None:
        """Take note that the turn is settled; does not wait. Its state is brought back soon."""
        if (held := self._held.get(session.session_id)) is not None:
            held.ended = True
            self._wake.set()

    async def bring_back(self, session: Session) -> None:
        """Save what is new in a session whose turn is settled, and release its lease; not that of a later, live turn.

        Raises StoreError when that cannot be done; if the lease is lost what was not saved is given up. If cancelled,
        the keeper goes on with it.
        """
        try:
            await self._bring_back(session)
        except StoreError as exc:
            if not self._goes_on(exc):
                raise

    async def _bring_back(self, session: Session) -> None:
        held = self._held.get(session.session_id)
        if held is None or not held.ended:
            return
        async with held.lock:
            if self._held.get(session.session_id) is not held:
                return  # done by somebody else meanwhile
            try:
                await self._save(held)
            except StoreError as exc:
                if exc.lost:
                    del self._held[session.session_id]
                    session.give_up()
                raise
            with contextlib.suppress(StoreError):  # it runs out by itself
                await self._store.release(held.lease)
            del self._held[session.session_id]

    async def aclose(self) -> None:
        """Bring back what is left, for at most 5 s, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        try:
            async with asyncio.timeout(LAST_SAVE):
                for held in tuple(self._held.values()):
                    held.ended = True  # its task may not have noticed yet
                    await self._bring_back_or_log(held)
        except TimeoutError:
            logger.warning("%d sessions were not saved: the store does not answer", len(self._held))

    async def _save(self, held: _Held) -> None:
        session = held.session
        while session.change() is not None:
            if held.doubtful:
                # Nobody else saves under our lease, and if it is lost the store refuses us whatever the revision.
                record = await self._store.load(session.session_id, limit=0)
                session.revision = 0 if record is None else record.revision
            change = session.change()
            assert change is not None  # noqa: S101 - nothing takes changes away
            asked_at = self._now()
            held.doubtful = True
            try:
                await self._store.save(change, held.lease)
            except StoreError as exc:
                held.doubtful = not exc.lost
                raise
            held.doubtful = False
            held.valid_until = asked_at + self._store.lease_seconds
            session.saved(change)

    # --- the task -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._keep(), name="aheadless-keeper")

    async def _keep(self) -> None:
        """Renew the leases of live turns and bring back what has ended, as long as there is anything to keep."""
        pause = self._store.lease_seconds / RENEWALS
        while self._held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            for held in tuple(self._held.values()):
                if held.ended:
                    await self._bring_back_or_log(held)
                elif held.valid_until - self._now() < pause * (RENEWALS - 0.5):
                    await self._renew(held)

    async def _renew(self, held: _Held) -> None:
        asked_at = self._now()
        try:
            if await self._store.renew(held.lease):
                held.valid_until = asked_at + self._store.lease_seconds
            else:
                held.valid_until = asked_at
                _warn(held.session, "the lease of %s was lost")
        except StoreError as exc:
            _warn(held.session, "the lease of %s was not renewed: %s", exc)

    async def _bring_back_or_log(self, held: _Held) -> None:
        try:
            await self._bring_back(held.session)
        except StoreError as exc:
            _warn(held.session, "%s was not saved: %s", exc)

    @contextlib.contextmanager
    def _before_sending(self, session: Session) -> Generator[None]:
        """Whatever the store does in this block, the message was not sent."""
        try:
            yield
        except StoreError as exc:
            if not self._goes_on(exc):
                exc.delivery = Delivery.NOT_SENT
                raise
            if session.session_id not in self._held:
                session.give_up()

    def _goes_on(self, error: StoreError) -> bool:
        if error.lost or self._store.on_outage == "raise":
            return False
        logger.warning("going on without the store: %s", error)
        return True

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _warn(session: Session, message: str, *values: object) -> None:
    """Write a warning that names the session, in its text and as a field."""
    extra = {"session_id": session.session_id}
    logger.warning(message, session.session_id, *values, extra=extra, stacklevel=2)
