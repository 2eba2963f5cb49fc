"""An event loop whose clock jumps: a minute passes as soon as nobody has anything to do before."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: it moves the clock on by what it was asked to wait, unless something comes first."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self.now = 0.0
        self._patience = patience  # real seconds

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        ready = super().select(self._patience)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits, and for nothing")
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that uses the loop's time, and no sockets but those between two ends in this process.

    What one end of those sends is there for the other at once, or within the `patience`.
    """

    def __init__(self, patience: float = 0) -> None:
        self._jumping = _JumpingSelector(patience)
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time."""
        return self._jumping.now


def run_virtually(main: Coroutine[Any, Any, T], *, patience: float = 0) -> T:
    """Run a coroutine on a loop with a virtual clock."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(patience)) as runner:
        return runner.run(main)
