"""What all stores have in common: who closes them, how long a lease lasts, what is said of a lost one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from aheadless._options import parse_seconds
from aheadless.exceptions import StoreError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["LEASE_SECONDS", "BaseStore", "lost"]

# A process that dies holds its session for this long; one that lives renews three times in it.
LEASE_SECONDS: Final = 15.0


def lost(session_id: str) -> StoreError:
    """Return the error of a holder whose session has gone to another one."""
    return StoreError("another process has taken the session over", lost=True, session_id=session_id)


class BaseStore:
    """The block that makes a store its owner's, and not the client's, to close."""

    def __init__(self, *, lease_seconds: float) -> None:
        self._lease_seconds = parse_seconds(lease_seconds, "lease_seconds")
        self._shared = False

    @property
    def lease_seconds(self) -> float:
        """For how long a lease lasts that is not renewed."""
        return self._lease_seconds

    @property
    def on_outage(self) -> Literal["raise", "local"]:
        """What a turn does when the store cannot be reached."""
        return "raise"

    @property
    def shared(self) -> bool:
        """Whether it was entered as a block, so that the block closes it."""
        return self._shared

    async def aclose(self) -> None:
        """Close files and connections; may be called again."""

    async def __aenter__(self) -> Self:
        self._shared = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
