"""The interactive chat."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from aheadless.cli.output import ExitCode, error_line, exit_code, visible
from aheadless.cli.process import complain, is_terminal, write
from aheadless.cli.terminal import show, signals
from aheadless.exceptions import AheadlessError
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    import asyncio

    from aheadless import Chat, Message, ReplyStream

__all__ = ["converse"]

HELP: Final = """\
/help      this list
/history   the messages of this session
/session   its id, for --session the next time
/quit      leave, as Ctrl-D does
Ctrl-C     stop the reply that is being written"""


def converse(chat: Chat, runner: asyncio.Runner, *, greeting: str) -> int:
    """Ask and answer until the person leaves; return the exit code.

    The event loop stands still while the person types: what is typed goes to `input()` on the main thread, where
    Ctrl-C works as people know it, and there is no second thread that would have to be woken up to leave.
    """
    conversation = _Conversation(chat, runner)
    with signals(conversation.on_signal):
        return conversation.run(greeting)


class _Conversation:
    """A chat and what a signal means in it at the moment."""

    def __init__(self, chat: Chat, runner: asyncio.Runner) -> None:
        self._chat = chat
        self._runner = runner
        self._live: ReplyStream | None = None
        self._typing = False
        self._terminated = False
        self._pending = False
        self._failure: ExitCode = ExitCode.OK

    def on_signal(self, number: int) -> None:
        """Stop the live reply, or end the prompt; SIGTERM ends the program after that.

        One that falls between the two counts for what comes next.
        """
        self._terminated |= number == signal.SIGTERM
        if self._live is not None:
            self._stop(self._live)
        elif self._typing:
            self._typing = False
            raise KeyboardInterrupt
        else:
            self._pending = True

    def _stop(self, stream: ReplyStream) -> None:
        self._runner.get_loop().call_soon_threadsafe(stream.stop)

    def _take_pending(self) -> bool:
        pending, self._pending = self._pending, False
        return pending

    def run(self, greeting: str) -> int:
        prompt = _prompt()
        write(f"{greeting}\n")
        warned = False
        while not self._terminated:
            try:
                line = self._read(prompt)
            except EOFError:
                write("\n" if prompt else "")
                return self._left()
            except KeyboardInterrupt:
                write("\n")
                if warned and not self._terminated:
                    return ExitCode.SIGINT
                warned = not self._terminated
                write("Ctrl-C once more leaves, as Ctrl-D and /quit do.\n" * warned)
                continue
            warned = False
            match line.strip():
                case "":
                    pass
                case "/quit" | "/exit":
                    return self._left()
                case command if command.startswith("/"):
                    write(self._answer(command) + "\n")
                case _:
                    self._ask(line)
        return ExitCode.SIGTERM

    def _left(self) -> ExitCode:
        # A person has seen each failure; a script has only the code to go by.
        return ExitCode.OK if is_terminal(sys.stdin) else self._failure

    def _read(self, prompt: str) -> str:
        write("\n" if prompt else "")
        try:
            self._typing = True
            if self._take_pending():
                raise KeyboardInterrupt
            return input(prompt)
        finally:
            self._typing = False

    def _ask(self, message: str) -> None:
        try:
            self._live = self._chat.stream(message)
            if self._take_pending():
                self._stop(self._live)
            self._runner.run(show(self._live))
            if self._live.state is not TurnState.DONE:
                write("[stopped]\n")
        except AheadlessError as exc:
            self._failure = exit_code(exc)
            complain(error_line(exc))
        finally:
            self._live = None

    def _answer(self, command: str) -> str:
        match command:
            case "/help":
                return HELP
            case "/session":
                return self._chat.session_id
            case "/history":
                return "\n".join(map(_as_line, self._chat.messages)) or "nothing was said yet"
            case _:
                return f"{visible(command)} is no command; /help lists them"


def _as_line(message: Message) -> str:
    mark = "" if message.status == "complete" else f" [{message.status}]"
    return f"{message.role}: {visible(message.text)}{mark}"


def _prompt() -> str:
    """Return the prompt, or nothing where nobody would see it."""
    if not is_terminal(sys.stdin, sys.stdout):
        return ""
    # Loading it gives input() a history and editing keys; Windows has none, and a prompt in bytes of its own.
    try:
        importlib.import_module("readline")
    except ImportError:  # pragma: no cover - there is one where this is measured
        return "you: "
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") in {None, "", "dumb"}:
        return "you: "
    # What is between \x01 and \x02 does not count for the width of the line that is edited.
    return "\x01\x1b[1;36m\x02you:\x01\x1b[0m\x02 "
