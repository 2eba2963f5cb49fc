"""What a client and its store hand each other.

Loaded with the first store: each class that is made costs `from aheadless import ChatClient` a quarter of a percent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from aheadless._session import Message

__all__ = ["Lease", "SessionChange", "SessionRecord", "Slot"]


@attrs.frozen
class Lease:
    """The right to the one turn that a session can have, over all processes that share a store."""

    session_id: str

    token: int
    """Grows with each lease of the session, so that a holder who was believed dead can be told from the next one."""


@attrs.frozen
class SessionRecord:
    """A session as a store keeps it."""

    session_id: str
    revision: int
    """Grows by one with each change that was saved."""
    conversation_id: str | None
    messages: tuple[Message, ...]
    """The newest ones, oldest first, without a gap."""
    count: int
    """How many there have ever been: the number that the next one gets. The first one has number 0."""


@attrs.frozen
class SessionChange:
    """What is new in a session."""

    session_id: str
    revision: int
    """Of the record that this changes; 0 for a session that was never saved."""
    conversation_id: str | None
    messages: tuple[tuple[int, Message], ...]
    """Those that are new or replaced, with their numbers, in order."""


@attrs.frozen(eq=False)
class Slot:
    """The leave to send one request to an origin, from the processes that share a pace."""

    origin: str
    name: str
