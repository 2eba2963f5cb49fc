"""The full-screen chat as a program: from its options to its exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from aheadless.cli.full.app import FullChat
from aheadless.cli.full.desk import Desk, MakeClient
from aheadless.cli.output import ExitCode
from aheadless.cli.process import is_terminal, silence
from aheadless.cli.terminal import signals
from aheadless.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["full"]

# What comes when the terminal is closed, or the SSH connection ends; Windows has none.
_HANG_UP: Final = (signal.SIGHUP,) if sys.platform != "win32" else ()


def full(make_client: MakeClient, *, session_id: str | None, store: Path | None) -> int:
    """Chat until the person leaves or a signal comes, and return the exit code."""
    # textual draws on stderr.
    if not is_terminal(sys.stdin, sys.stdout, sys.stderr):
        raise ConfigurationError("--full needs a terminal; without one, chat does without --full")
    return asyncio.run(_chat(make_client, session_id, store))


async def _chat(make_client: MakeClient, session_id: str | None, path: Path | None) -> int:
    store = None
    if path is not None:
        from aheadless.stores import SQLiteStore  # noqa: PLC0415 - loads sqlite3

        store = SQLiteStore(path)
    async with Desk(make_client, store=store, session_id=session_id) as desk:
        app = FullChat(desk)
        ending = _Ending(app)
        with signals(ending.on_signal, *_HANG_UP):
            code = await app.run_async()
    return ExitCode.FAILED if code is None else code


class _Ending:
    """What signals do: they end the chat in order, with the screen or without it."""

    def __init__(self, app: FullChat) -> None:
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._settling: asyncio.Task[None] | None = None

    def on_signal(self, number: int) -> None:
        if number in _HANG_UP and not os.isatty(0):
            # Or a thread of textual's would fail to write, and the rest of it wait for that thread. These are the
            # process's own streams: sys.stdout is textual's now.
            silence(*filter(None, (sys.__stdin__, sys.__stdout__, sys.__stderr__)))
            self._loop.call_soon_threadsafe(self._end_unseen, 128 + number)
        else:
            self._loop.call_soon_threadsafe(self._app.call_later, self._app.leave, 128 + number)

    def _end_unseen(self, code: int) -> None:
        self._settling = self._loop.create_task(self._settle_and_end(code))

    async def _settle_and_end(self, code: int) -> None:
        self._app.stop_drawing()
        await self._app.desk.settle()
        os._exit(code)  # what is left is a screen that nobody has
