"""The full-screen chat: keys in, frames out. What goes on in the sessions is the desk's."""

from __future__ import annotations

import select
import sys
import time
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Footer, Static

from aheadless import AheadlessError
from aheadless.cli.full.desk import Desk, unheard
from aheadless.cli.full.panes import Notice, counter
from aheadless.cli.full.widgets import Ask, Help, Prompt, Sessions, Talk
from aheadless.cli.output import ExitCode, explain, visible

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.timer import Timer
    from textual.types import AnimationLevel
    from textual.widgets import OptionList, TextArea

    from aheadless.cli.full.panes import Pane

__all__ = ["FullChat"]

# Seconds between two frames while something comes: faster than anybody reads, and little to send over SSH.
FRAME: Final = 0.05

# … and while only a number counts down.
TICK: Final = 0.5

# Below so many columns the list of sessions is shown only when it is asked for.
NARROW: Final = 70


class FullChat(App[int]):
    """The screen of a desk. It returns the exit code, once every reply is settled and saved."""

    ENABLE_COMMAND_PALETTE: ClassVar[bool] = False
    # Textual declares it so that one checker takes it for the class's and another for the instance's.
    HORIZONTAL_BREAKPOINTS: list[tuple[int, str]] | None = [(0, "-narrow"), (NARROW, "-wide")]  # noqa: RUF012
    CSS: ClassVar[str] = """
    Screen { layout: horizontal; }
    #sessions { width: 28; height: 1fr; padding: 0; border: none; border-right: solid $primary; background: $background;
        scrollbar-size-vertical: 1; text-wrap: nowrap; text-overflow: ellipsis; }
    .-narrow #sessions { display: none; }
    .-narrow.-listing #sessions { display: block; width: 1fr; border-right: none; }
    .-narrow.-listing #main { display: none; }
    #main { width: 1fr; height: 1fr; min-width: 20; min-height: 6; }  /* at none the placeholder cannot be wrapped */
    #head { height: 1; padding: 0 2; color: $primary; text-style: bold; text-wrap: nowrap; text-overflow: ellipsis; }
    #talk { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    .question { margin: 1 1 0 1; padding: 0 1; border-left: thick $secondary; text-style: bold; }
    .answer { margin: 1 0 0 0; padding: 0 1; }
    .aside { margin: 0 2; color: $warning; text-style: italic; }
    #notice { height: auto; max-height: 4; padding: 0 2; color: $warning; }
    #notice.-failed { color: $error; }
    #prompt { height: auto; max-height: 8; margin: 0 1; border: none; border-top: solid $primary; padding: 0 1; }
    ModalScreen { align: center middle; }
    #ask { width: auto; max-width: 100%; border: round $primary; padding: 1 2; background: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+n", "new", "New"),
        Binding("ctrl+g", "list", "Sessions"),
        Binding("alt+down", "step(1)", show=False),
        Binding("alt+up", "step(-1)", show=False),
        Binding("ctrl+r", "again", show=False),
        Binding("ctrl+y", "copy_answer", "Copy"),
        Binding("ctrl+end", "scroll_talk(0)", show=False),
        Binding("f1", "help", "Keys"),
        Binding("ctrl+q", "leave", "Leave", priority=True),
        Binding("ctrl+c", "interrupt", show=False),
    ]

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        # Where colours are few, the terminal's own are the ones that can be read.
        self.theme = "textual-dark" if self.console.color_system in {"truecolor", "256"} else "ansi-dark"
        self.desk = desk
        self._open: Pane | None = None  # whose messages are on the screen
        self._timer: Timer | None = None
        self._rest = FRAME  # seconds until the next frame
        self._aside = ""  # what is said until the next key
        self._warned = False
        self._leaving = False
        self._head = Static(id="head")
        self._notice = Static(id="notice")
        self._talk = Talk()
        self._sessions = Sessions(id="sessions")
        self._prompt = Prompt()

    def compose(self) -> ComposeResult:
        yield self._sessions
        with Vertical(id="main"):
            yield self._head
            yield self._talk
            yield self._notice
            yield self._prompt
            yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        self.animation_level: AnimationLevel = "none"
        self.desk.changed = self._on_change
        await self._show(self.desk.current)

    def on_unmount(self) -> None:
        self.desk.changed = unheard

    async def leave(self, code: int) -> None:
        """Stop every reply, wait until each is settled, and end with this exit code."""
        if self._leaving:
            return
        self.stop_drawing()
        self._say("stopping the replies …")
        await self.desk.settle()
        self.exit(code)

    def stop_drawing(self) -> None:
        """Show nothing new: this ends."""
        self._leaving = True

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _on_change(self, pane: Pane) -> None:
        if not pane.live:
            self._warned = self._warned and pane is self.desk.current
        self._draw_in(self._rest)

    def _draw_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.set_timer(seconds, self._frame)

    async def _frame(self) -> None:
        self._timer = None
        if self._leaving:
            return  # the screen may be gone by now
        if not self._terminal_takes_it():
            self._draw_in(TICK)
            return
        begun = time.perf_counter()
        await self._draw()
        # What takes long to be laid out is drawn less often: half of the time is for the keys and the other sessions.
        self._rest = max(FRAME, time.perf_counter() - begun)

    def _terminal_takes_it(self) -> bool:
        """Whether what is drawn goes somewhere.

        A terminal that has stopped (Ctrl-S, a stalled SSH) takes nothing, and a write to it would hold up every session
        until it goes on. So nothing is drawn meanwhile; the replies are read to their ends all the same.
        """
        if self.is_headless or sys.__stderr__ is None:
            return True
        try:
            return bool(select.select([], [sys.__stderr__], [], 0)[1])  # where textual draws
        except (OSError, ValueError):
            return True  # nobody can tell: Windows asks sockets only

    async def _draw(self) -> None:
        pane = self.desk.current
        await self._talk.follow(pane, self.desk)
        self._sessions.list(self.desk.panes, pane)
        self._head.update(self._title(pane))
        self._draw_notice()
        if pane.hold is not None:
            self._draw_in(TICK)

    def _draw_notice(self) -> None:
        pane = self.desk.current
        notice = pane.notice
        below = pane.status(self.desk.seconds_left()) if pane.live else "" if notice is None else notice.text
        said = self._aside or counter(self._prompt.text)
        self._notice.update(Content("\n".join(filter(None, (below, said)))))
        self._notice.set_class(not pane.live and notice is not None and notice.failed, "-failed")
        self._notice.display = bool(below or said)

    def _title(self, pane: Pane) -> Content:
        others = "".join(sorted(other.mark for other in self.desk.panes if other is not pane)).strip()
        elsewhere = f"elsewhere {others}" if others and self.screen.has_class("-narrow") else ""
        return Content("  ".join(filter(None, (elsewhere, pane.session_id, self.desk.client.base_url))))

    def _say(self, text: str) -> None:
        self._aside = text
        self._draw_notice()

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def _show(self, pane: Pane) -> None:
        if self._open is not None:
            self._open.draft = self._prompt.text
        self._open = pane
        # Before anything is waited for: what is typed from now on is for this session.
        self._prompt.put(pane.draft)
        self.action_close_list()
        self._aside, self._warned = "", False
        try:
            await self.desk.show(pane)
        except AheadlessError as exc:
            pane.notice = Notice(explain(exc), failed=True)
        await self._draw()

    async def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        await self._show(self.desk.panes[event.option_index])

    async def action_new(self) -> None:
        await self._show(self.desk.new())

    async def action_step(self, by: int) -> None:
        panes = self.desk.panes
        await self._show(panes[(panes.index(self.desk.current) + by) % len(panes)])

    def action_list(self) -> None:
        if self._sessions.has_focus:
            self.action_close_list()
            return
        self.screen.add_class("-listing")
        self._sessions.focus()

    def action_close_list(self) -> None:
        self.screen.remove_class("-listing")
        self._prompt.focus()

    def action_forget(self) -> None:
        if (index := self._sessions.highlighted) is None:
            return
        pane = self.desk.panes[index]

        async def forget(sure: bool | None) -> None:  # noqa: FBT001 - as textual calls it
            if not sure:
                return
            try:
                await self.desk.forget(pane)
            except AheadlessError as exc:
                self._say(explain(exc))
            else:
                self._open = None if self._open is pane else self._open
                await self._show(self.desk.current)

        self.push_screen(Ask(f"Forget “{pane.title or pane.session_id}”? The server keeps what it has."), forget)

    # --- turns --------------------------------------------------------------------------------------------------------

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        pane = self.desk.current
        if pane.live:
            self._say("a reply is being written; Esc stops it")
            return
        try:
            self.desk.ask(pane, event.text)
        except AheadlessError as exc:
            self._say(explain(exc))
            return
        self._prompt.recall.add(event.text)
        self._prompt.put("")

    def on_prompt_too_long(self) -> None:
        self._say("what was pasted is much too long for a message")

    def on_text_area_changed(self, _event: TextArea.Changed) -> None:
        self._warned = False
        self._say("")

    def action_stop(self) -> None:
        self.desk.stop(self.desk.current)

    def action_again(self) -> None:
        self.desk.again(self.desk.current)

    async def action_interrupt(self) -> None:
        if self._warned:
            await self.leave(ExitCode.OK)
            return
        self.action_stop()
        self._warned = True
        self._say("Ctrl-C once more leaves")

    async def action_leave(self) -> None:
        await self.leave(ExitCode.OK)

    def action_copy_answer(self) -> None:
        if not (text := visible(self.desk.last_answer(self.desk.current))):
            self._say("there is no answer yet")
            return
        self.copy_to_clipboard(text)
        self._say(f"{len(text)} characters went to the clipboard, if the terminal lets them")

    def action_scroll_talk(self, pages: int) -> None:
        match pages:
            case 0:
                self._talk.anchor()
            case _ if pages < 0:
                self._talk.scroll_page_up(animate=False)
            case _:
                self._talk.scroll_page_down(animate=False)

    def action_help(self) -> None:
        self.push_screen(Help())
