"""The fixed window of protocol.md §2, for each client; pure, the time comes in."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from aheadless._options import RateLimit

__all__ = ["WindowLimiter"]

# An entry is some 300 bytes: a flood of new addresses costs 30 MB at the most.
MAX_CLIENTS: Final = 100_000


@attrs.define
class _Window:
    opened_at: float
    used: int = 0


class WindowLimiter:
    """Count the requests of each client in a window that opens with the first one.

    Refused requests do not count. Beyond `max_clients` the oldest window is forgotten, so that client starts anew.
    """

    def __init__(self, limit: RateLimit, *, max_clients: int = MAX_CLIENTS) -> None:
        self._limit = limit
        self._max_clients = max_clients
        self._windows: OrderedDict[str, _Window] = OrderedDict()  # in the order of opening

    def __len__(self) -> int:
        return len(self._windows)

    def allow(self, client: str, now: float) -> bool:
        """Return whether a request of `client` is within the limit, and count it if it is."""
        self._forget_closed(now)
        window = self._windows.get(client)
        if window is None:
            if len(self._windows) >= self._max_clients:
                self._windows.popitem(last=False)
            window = self._windows[client] = _Window(now)
        if window.used >= self._limit.limit:
            return False
        window.used += 1
        return True

    def _forget_closed(self, now: float) -> None:
        while self._windows:
            oldest = next(iter(self._windows.values()))
            if now - oldest.opened_at < self._limit.per:
                return
            self._windows.popitem(last=False)
