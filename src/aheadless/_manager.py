"""The sessions that a client knows: found, listed, forgotten, and let go when there are too many."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from aheadless.exceptions import SessionBusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from aheadless._store import SessionStore


from aheadless._session import Session

__all__ = ["MAX_SESSIONS", "SessionManager"]

# A busy bot's users of a day; an idle session without messages is a few hundred bytes.
MAX_SESSIONS: Final = 10_000


class SessionManager:
    """The sessions that a client knows, as many as its `max_sessions` and `session_idle` allow, and those in its store.

    Without a store nothing here waits. With one, every call raises StoreError where the store fails, and a call that is
    cancelled may have been carried out.
    """

    def __init__(
        self,
        *,
        history_limit: int,
        max_sessions: int = MAX_SESSIONS,
        idle_limit: float | None = None,
        store: SessionStore | None = None,
        bring_back: Callable[[Session], Awaitable[None]] | None = None,
    ) -> None:
        self._history_limit = history_limit
        self._max_sessions = max_sessions
        self._idle_limit = idle_limit
        self._store = store
        self._bring_back = bring_back  # saves the end of a turn and releases its lease, if that is still to be done
        self._sessions: OrderedDict[str, Session] = OrderedDict()  # the least recently used first
        # Who still holds the chat of a session that is known no more gets the same one again.
        self._left: WeakValueDictionary[str, Session] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<SessionManager, {len(self)} sessions>"

    def __len__(self) -> int:
        return len(self._sessions)

    async def get(self, session_id: str) -> Session | None:
        """Return the state of a session; None if neither this client nor its store knows it.

        With a store, what it has is read first, so that `chat.messages` is what all processes have said.
        """
        if self._store is not None and self._is_idle(session_id):
            record = await self._store.load(session_id, limit=self._history_limit)
            if record is not None and self._is_idle(session_id):  # no turn has begun meanwhile
                session = self.known(session_id) or self.new(session_id)
                session.adopt(record, held=False)
                self._sessions.setdefault(session_id, session)
        return self._sessions.get(session_id)

    async def list(self) -> list[str]:
        """Return the ids of the sessions, the least recently used first; those in the store come before the others."""
        stored = [] if self._store is None else await self._store.list()
        return [*dict.fromkeys([*(known for known in stored if known not in self._sessions), *self._sessions])]

    async def forget(self, session_id: str) -> None:
        """Drop what is known of a session, here and in the store, if anything is. The server keeps its own history.

        Raises SessionBusyError while a turn is live, in whatever process.
        """
        session = self._sessions.get(session_id)
        if session is not None and session.live:
            raise SessionBusyError("a session is not forgotten while a turn is live", session_id=session_id)
        if self._store is not None:
            if session is not None and self._bring_back is not None:
                await self._bring_back(session)
            lease = await self._store.acquire(session_id, wait=False)
            if lease is None:
                raise SessionBusyError("the session has a live turn in another process", session_id=session_id)
            try:
                await self._store.forget(session_id, lease)
            finally:
                await self._store.release(lease)
        if session is not None:
            if session_id in self._sessions:
                self._let_go(session_id)
            session.clear()

    def known(self, session_id: str) -> Session | None:
        """Return a session if it is known here."""
        return self._sessions.get(session_id)

    def new(self, session_id: str) -> Session:
        """Return a session that is not known, a new one unless somebody holds it; it is known from :meth:`touch` on."""
        return self._left.get(session_id) or Session(session_id, self._history_limit)

    def touch(self, session: Session, now: float) -> None:
        """Count a session as used at this time, and let those go that have been idle for too long or are too many."""
        session.used_at = now
        self._sessions[session.session_id] = session
        self._sessions.move_to_end(session.session_id)
        if len(self._sessions) > self._max_sessions:
            self._let_go(next(self._idle(), None))
        if self._idle_limit is not None:
            for session_id in [*self._expired(now - self._idle_limit)]:
                self._let_go(session_id)

    def _expired(self, before: float) -> Iterator[str]:
        for session_id, session in self._sessions.items():
            if session.used_at >= before:
                return
            if session.idle:
                yield session_id

    def _idle(self) -> Iterator[str]:
        return (session_id for session_id, session in self._sessions.items() if session.idle)

    def _is_idle(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is None or session.idle

    def _let_go(self, session_id: str | None) -> None:
        if session_id is not None:
            self._left[session_id] = self._sessions.pop(session_id)
