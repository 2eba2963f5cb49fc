"""The full-screen chat as a program: from its options to its exit code."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from aheadless.cli.full.app import FullChat
from aheadless.cli.full.desk import Desk, MakeClient
from aheadless.cli.output import ExitCode
from aheadless.cli.process import is_terminal
from aheadless.cli.terminal import signals
from aheadless.exceptions import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["full"]


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
        loop = asyncio.get_running_loop()

        def end(number: int) -> None:
            loop.call_soon_threadsafe(app.call_later, app.leave, 128 + number)

        with signals(end):
            code = await app.run_async()
    return ExitCode.FAILED if code is None else code
