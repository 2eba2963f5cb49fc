"""Signals, and a reply on a terminal or a pipe while it is written."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack, aclosing, contextmanager
from typing import TYPE_CHECKING, Final

from aheadless.cli.output import visible
from aheadless.cli.process import complain, is_terminal, write
from aheadless.protocol.codec import trim
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from rich.status import Status

    from aheadless import ReplyStream

__all__ = ["on_first_signal", "run", "show", "signals", "thinking"]

# A quick answer needs no sign that it is coming, which would only flicker.
THINKING_AFTER: Final = 0.2


@contextmanager
def signals(handle: Callable[[int], None], *more: signal.Signals) -> Generator[None]:
    """Have SIGINT, SIGTERM, and more, call `handle`, between two steps of the main thread, as long as the block lasts.

    One that is ignored stays so: a shell ignores SIGINT for what it runs in the background.
    """
    # Not add_signal_handler(), which Windows does not have, and whose callback waits while a write to stdout does.
    heeded = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *more)}
    heeded = {number: previous for number, previous in heeded.items() if previous is not signal.SIG_IGN}
    for number in heeded:
        signal.signal(number, lambda number, _frame: handle(number))
    try:
        yield
    finally:
        for number, previous in heeded.items():
            signal.signal(number, previous)


@contextmanager
def on_first_signal(act: Callable[[int], None]) -> Generator[None]:
    """Have the running loop call `act` at the first SIGINT or SIGTERM; a second one is for who listened before."""
    loop = asyncio.get_running_loop()
    with ExitStack() as listening:

        def handle(number: int) -> None:
            listening.close()
            loop.call_soon_threadsafe(act, number)

        listening.enter_context(signals(handle))
        yield


def run(work: Coroutine[object, object, int]) -> int:
    """Run a command to its exit code. SIGINT and SIGTERM cancel it, which closes its stream, and are the exit code."""

    async def supervised() -> int:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        received: list[int] = []

        def end(number: int) -> None:
            received.append(number)
            task.cancel()

        with on_first_signal(end):
            try:
                return await work
            except asyncio.CancelledError:
                if not received:
                    raise
                complain(f"aheadless: ended by {signal.Signals(received[0]).name}; what was asked for is not complete")
                return 128 + received[0]

    return asyncio.run(supervised())


async def show(stream: ReplyStream, *, raw: bool = False) -> None:
    """Write a reply as its tokens come, ended by a newline even if it breaks off.

    On a terminal something moves until the first token is there. If the stream was stopped, this just returns.
    """
    ends_line = True
    async with aclosing(stream.text()) as texts:
        with thinking():
            text = await anext(texts, None)
        try:
            while text is not None:
                write(text if raw else visible(text))
                ends_line = text.endswith("\n") if text else ends_line
                text = await anext(texts, None)
        finally:
            if not ends_line:
                write("\n")
    if stream.state is not TurnState.DONE:
        return
    reply = await stream
    if not trim(reply.streamed_text):
        write((reply.text if raw else visible(reply.text)) + "\n")
    elif reply.text != trim(reply.streamed_text):
        complain("aheadless: the server stored another text than it streamed; --json shows both")


@contextmanager
def thinking() -> Generator[None]:
    """Show on a terminal that the answer is awaited; nothing of it stays."""
    if not is_terminal(sys.stdout, sys.stderr):
        yield
        return
    shown: list[Status] = []

    def begin() -> None:
        # Loaded only now: the request is on its way, and what is loaded meanwhile costs nobody time.
        from rich.console import Console  # noqa: PLC0415

        shown.append(Console(stderr=True).status("thinking"))
        shown[0].start()

    timer = asyncio.get_running_loop().call_later(THINKING_AFTER, begin)
    try:
        yield
    finally:
        timer.cancel()
        for status in shown:
            status.stop()
