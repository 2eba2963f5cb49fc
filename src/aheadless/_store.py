"""What a client asks of a store: leases, records, and, of those that can, events and a pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from aheadless._exchange import Lease, SessionChange, SessionRecord, Slot
    from aheadless._options import RateLimit
    from aheadless.protocol.events import Event


__all__ = ["EventLog", "Following", "HasEvents", "HasPace", "SessionStore", "SharedPace", "WaitReason"]

WaitReason: TypeAlias = Literal["rate_limit", "cool_down"]
"""Why a turn has to wait before it is sent: its own limit, or the server's 429."""


class SessionStore(Protocol):
    """Where sessions outlive a process.

    Every failure is a StoreError. A call that is cancelled may have been carried out. A store is used on one event
    loop; what it keeps can be shared by many processes.
    """

    @property
    def lease_seconds(self) -> float:
        """For how long a lease lasts that is not renewed."""
        ...

    @property
    def on_outage(self) -> Literal["raise", "local"]:
        """What a turn does when the store cannot be reached: it fails, or it goes on with what this process knows."""
        ...

    @property
    def shared(self) -> bool:
        """Whether its owner closes it (it was entered as a block), and not the client that uses it."""
        ...

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        """Return the lease of a session when it is free; waiters get it in the order of asking.

        A lease that was not renewed in time is free. If not `wait`, returns None for one that is held or waited for.
        If cancelled, the place in the queue is given up.
        """
        ...

    async def renew(self, lease: Lease) -> bool:
        """Let a lease last for another `lease_seconds`; False when somebody else has had the session meanwhile."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give a lease back; nothing happens if it is lost."""
        ...

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        """Return a session with its newest `limit` messages, or None if it is not known."""
        ...

    async def save(self, change: SessionChange, lease: Lease) -> None:
        """Carry out a change, all of it or nothing, and renew the lease.

        Raises StoreError with `lost` set, nothing changed, when somebody else has had the session since the lease was
        given, or when the record has another revision.
        """
        ...

    async def forget(self, session_id: str, lease: Lease) -> None:
        """Drop what is kept of a session. Raises StoreError as :meth:`save` does."""
        ...

    async def list(self) -> list[str]:
        """Return the ids of all sessions, the least recently saved first."""
        ...

    async def aclose(self) -> None:
        """Close files and connections; may be called again."""
        ...


class Following(Protocol):
    """The events of a turn that another process may drive: an async iterator, for one reader.

    It ends after `Done`. Raises ReplyFailedError after `Failure`, StreamInterruptedError when the turn ended otherwise,
    when its process died, or when events are no longer kept; and StoreError.
    """

    @property
    def event_id(self) -> str | None:
        """The id of the event that was given last, to go on after it; before the first, what was begun with."""
        ...

    def __aiter__(self) -> Following:
        """Return itself."""
        ...

    async def __anext__(self) -> Event:
        """Return the next event. If cancelled, none is lost."""
        ...

    async def aclose(self) -> None:
        """Stop following; the turn goes on."""
        ...


class EventLog(Protocol):
    """Where the events of live turns are kept for a while. All but :meth:`follow` wait for nothing and never fail."""

    def begin(self, session_id: str) -> None:
        """Take note that a turn begins, by the process that has the session's lease."""
        ...

    def append(self, session_id: str, event: Event) -> None:
        """Add an event of the live turn."""
        ...

    def end(self, session_id: str) -> None:
        """Take note that the turn is over; without `Done` or `Failure` it ended early."""
        ...

    def follow(self, session_id: str, after: str | None) -> Following:
        """Return the events after the one with this id, or those of the live turn, or of the next one."""
        ...


@runtime_checkable
class HasEvents(Protocol):
    """A store that can keep the events of live turns."""

    @property
    def events(self) -> EventLog | None:
        """Where; None if it does not."""
        ...


class SharedPace(Protocol):
    """A rate limit and a cool-down that hold over all processes which send from one address."""

    async def enter(self, origin: str, limit: RateLimit | None, *, wait: bool) -> Slot | WaitReason | None:
        """Return the leave to send when there is room, or, if not `wait`, why there is none now.

        None when nobody knows, as the store cannot be reached, and that is not to hinder anyone; otherwise raises
        StoreError with verdict NOT_SENT. If cancelled, the place is given up.
        """
        ...

    def leave(
        self, slot: Slot, *, counted: bool, answer: Literal["accepted", "refused"] | None, retry_after: float | None
    ) -> None:
        """Give a leave back, with what the server's rate limit said; waits for nothing and never fails."""
        ...


@runtime_checkable
class HasPace(Protocol):
    """A store that can share a pace."""

    @property
    def pace(self) -> SharedPace | None:
        """The pace; None if it does not."""
        ...
