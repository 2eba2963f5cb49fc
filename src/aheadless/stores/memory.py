"""Sessions that outlive a client, but not the process."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from itertools import count
from typing import TYPE_CHECKING

import attrs

from aheadless._exchange import Lease, SessionRecord
from aheadless._options import parse_count
from aheadless._session import Message
from aheadless.exceptions import StoreError
from aheadless.stores._base import LEASE_SECONDS, BaseStore, lost

if TYPE_CHECKING:
    from aheadless._exchange import SessionChange

__all__ = ["MemoryStore"]


@attrs.define(eq=False)
class _Entry:
    """What is kept of a session, who has it, and who waits for it."""

    revision: int = 0
    conversation_id: str | None = None
    messages: dict[int, Message] = attrs.field(factory=dict[int, Message])
    count: int = 0
    token: int = 0
    leased_until: float = 0.0
    waiting: deque[asyncio.Future[Lease]] = attrs.field(factory=deque["asyncio.Future[Lease]"])
    timer: asyncio.TimerHandle | None = None


class MemoryStore(BaseStore):
    """Keep sessions in memory, for clients of one event loop that come and go while the sessions go on.

    `history_limit`: how many messages of a session are kept; None: all. `lease_seconds`: after how many seconds a
    holder that does not renew its lease loses it. Raises ConfigurationError for values that cannot work.
    """

    def __init__(self, *, history_limit: int | None = None, lease_seconds: float = LEASE_SECONDS) -> None:
        super().__init__(lease_seconds=lease_seconds)
        self._history_limit = None if history_limit is None else parse_count(history_limit, "history_limit", least=0)
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently saved first
        self._tokens = count(1)
        self._closed = False

    def __repr__(self) -> str:
        count = sum(entry.revision > 0 for entry in self._entries.values())
        return f"<MemoryStore, {count} sessions{', closed' * self._closed}>"

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        """Return the lease, as :class:`SessionStore` says."""
        entry = self._entry(session_id)
        if self._is_free(entry):
            return self._grant(session_id, entry)
        if not wait:
            return None
        place: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        entry.waiting.append(place)
        self._watch(session_id, entry)
        try:
            return await place
        except BaseException:
            if place.done() and not place.cancelled():
                await self.release(place.result())  # given in the very moment of being cancelled
            raise

    async def renew(self, lease: Lease) -> bool:
        """Let a lease last, as :class:`SessionStore` says."""
        entry = self._entry(lease.session_id)
        if entry.token != lease.token:
            return False
        entry.leased_until = self._now() + self.lease_seconds
        return True

    async def release(self, lease: Lease) -> None:
        """Give a lease back, as :class:`SessionStore` says."""
        entry = self._entries.get(lease.session_id)
        if entry is not None and entry.token == lease.token:
            entry.leased_until = 0.0
            self._pass_on(lease.session_id, entry)

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        """Return what is kept, as :class:`SessionStore` says."""
        self._check_open()
        entry = self._entries.get(session_id)
        if entry is None or not entry.revision:
            return None
        newest = sorted(entry.messages)[-limit:] if limit else []
        messages = tuple(entry.messages[number] for number in newest)
        return SessionRecord(session_id, entry.revision, entry.conversation_id, messages, entry.count)

    async def save(self, change: SessionChange, lease: Lease) -> None:
        """Carry out a change, as :class:`SessionStore` says."""
        entry = self._entry(change.session_id)
        if entry.token != lease.token or entry.revision != change.revision:
            raise lost(change.session_id)
        entry.revision += 1
        entry.conversation_id = change.conversation_id
        entry.messages.update(change.messages)
        entry.count = max([entry.count, *(number + 1 for number, _ in change.messages)])
        entry.leased_until = self._now() + self.lease_seconds
        if self._history_limit is not None:
            for number in sorted(entry.messages)[: max(len(entry.messages) - self._history_limit, 0)]:
                del entry.messages[number]
        self._entries.move_to_end(change.session_id)

    async def forget(self, session_id: str, lease: Lease) -> None:
        """Drop what is kept, as :class:`SessionStore` says."""
        entry = self._entry(session_id)
        if entry.token != lease.token:
            raise lost(session_id)
        entry.revision, entry.conversation_id, entry.count = 0, None, 0
        entry.messages.clear()

    async def list(self) -> list[str]:
        """Return the ids, as :class:`SessionStore` says."""
        self._check_open()
        return [session_id for session_id, entry in self._entries.items() if entry.revision]

    async def aclose(self) -> None:
        """Forget everything; whoever waits for a lease gets a StoreError. Waits for nothing; may be called again."""
        self._closed = True
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
            for place in entry.waiting:
                if not place.done():
                    place.set_exception(StoreError("the store is closed"))
        self._entries.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")

    def _entry(self, session_id: str) -> _Entry:
        self._check_open()
        return self._entries.setdefault(session_id, _Entry())

    def _is_free(self, entry: _Entry) -> bool:
        return entry.leased_until <= self._now() and not any(not place.done() for place in entry.waiting)

    def _grant(self, session_id: str, entry: _Entry) -> Lease:
        entry.token = next(self._tokens)
        entry.leased_until = self._now() + self.lease_seconds
        return Lease(session_id, entry.token)

    def _pass_on(self, session_id: str, entry: _Entry) -> None:
        """Give a free session to the first who waits, or forget the entry if there is nothing in it."""
        entry.timer = None
        if entry.leased_until > self._now():
            self._watch(session_id, entry)
            return
        while entry.waiting:
            place = entry.waiting.popleft()
            if not place.done():
                place.set_result(self._grant(session_id, entry))
                self._watch(session_id, entry)
                return
        if not entry.revision:
            self._entries.pop(session_id, None)

    def _watch(self, session_id: str, entry: _Entry) -> None:
        """Look again when the lease runs out, as long as somebody waits for that."""
        if entry.waiting and entry.timer is None:
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_at(entry.leased_until, self._pass_on, session_id, entry)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
