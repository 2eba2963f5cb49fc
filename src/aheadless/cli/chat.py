"""The interactive chat."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from aheadless.cli.output import ExitCode, error_line, visible
from aheadless.cli.terminal import complain, show, write
from aheadless.exceptions import AheadlessError, ClientClosedError

if TYPE_CHECKING:
    from aheadless import Chat

__all__ = ["converse"]

HELP: Final = """\
/help      this list
/history   the messages of this session
/session   its id
/quit      leave, as Ctrl-D does
Ctrl-C     stop the reply that is being written"""


def converse(chat: Chat, runner: asyncio.Runner) -> int:
    """Ask and answer until the person leaves.

    The event loop stands still while the person types, so Ctrl-C belongs to the prompt then, and to the reply else.
    """
    _enable_line_editing()
    write("Ask something; /help lists the commands.\n")
    warned = False
    while True:
        try:
            line = input("\nyou: " if sys.stdin.isatty() else "").strip()
        except EOFError:
            write("\n")
            return ExitCode.OK
        except KeyboardInterrupt:
            if warned:
                write("\n")
                return ExitCode.SIGINT
            warned = True
            write("\nCtrl-C once more, Ctrl-D or /quit leaves.\n")
            continue
        warned = False
        if line in {"/quit", "/exit"}:
            return ExitCode.OK
        if line.startswith("/"):
            write(_command(chat, line) + "\n")
        elif line:
            _ask(chat, line, runner)


def _ask(chat: Chat, line: str, runner: asyncio.Runner) -> None:
    try:
        runner.run(show(chat.stream(line)))
    except KeyboardInterrupt:
        write("[stopped]\n")
    except ClientClosedError:
        raise
    except AheadlessError as exc:
        complain(error_line(exc))


def _command(chat: Chat, line: str) -> str:
    match line:
        case "/help":
            return HELP
        case "/session":
            return chat.session_id
        case "/history":
            said = (f"{message.role}: {visible(message.text)}{_mark(message.status)}" for message in chat.messages)
            return "\n".join(said) or "nothing was said yet"
        case _:
            return f"{visible(line)} is not a command; /help lists them"


def _mark(status: str) -> str:
    return "" if status == "complete" else f" [{status}]"


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401, PLC0415 - its import gives input() history and editing; Windows has none
    except ImportError:
        pass
