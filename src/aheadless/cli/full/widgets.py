"""What stands on the full screen: the sessions, what was said in one of them, and the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding, BindingType
from textual.containers import Center, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Markdown, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from aheadless.cli.full.markdown import make_parser
from aheadless.cli.full.panes import Pane, Recall, Window, aside
from aheadless.cli.output import one_line, visible
from aheadless.protocol.codec import trim

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual import events
    from textual.app import ComposeResult

    import aheadless
    from aheadless.cli.full.desk import Desk

__all__ = ["Ask", "Help", "Prompt", "Sessions", "Talk"]

# The newest messages of a session; those before them stay in the store.
MAX_MESSAGES: Final = 60

# Of a session that is talked in for hours: a question and its answer are two.
MAX_WIDGETS: Final = 200

# Much more than any message: what is longer was not meant for here, and would be slow to edit.
MAX_PASTED: Final = 16_000


class Prompt(TextArea):
    """Where one types: Enter sends, Ctrl-J begins a new line, the arrow keys bring earlier messages back."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send"),
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "New line", key_display="^j"),
        Binding("up", "older", show=False),
        Binding("down", "newer", show=False),
        # What TextArea has these for is less wanted here.
        Binding("ctrl+c", "app.interrupt", show=False),
        Binding("ctrl+y", "app.copy_answer", show=False),
        Binding("pageup", "app.scroll_talk(-1)", show=False),
        Binding("pagedown", "app.scroll_talk(1)", show=False),
    ]

    class Sent(Message):
        """Somebody wants this to be sent."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class TooLong(Message):
        """Somebody pasted what is no message."""

    def __init__(self) -> None:
        super().__init__(
            id="prompt", compact=True, highlight_cursor_line=False, placeholder="A message; Enter sends it, F1 helps"
        )
        self.recall: Recall = Recall()
        # A terminal at the end of a slow line should not have to draw while nothing happens.
        self.cursor_blink = False

    def action_send(self) -> None:
        if self.text.strip():
            self.post_message(self.Sent(self.text))

    def action_newline(self) -> None:
        self.insert("\n")

    def action_older(self) -> None:
        if self.get_cursor_up_location() != self.cursor_location and self.cursor_location[0] > 0:
            self.action_cursor_up()
        elif (text := self.recall.older(self.text)) is not None:
            self.put(text)

    def action_newer(self) -> None:
        if self.cursor_location[0] < self.document.line_count - 1:
            self.action_cursor_down()
        elif (text := self.recall.newer()) is not None:
            self.put(text)

    def put(self, text: str) -> None:
        """Let this be what was typed, with the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        # In here, for the order: a binding with priority would overtake letters that came in the same packet.
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.action_send()
            return
        await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        if len(event.text) > MAX_PASTED:
            self.post_message(self.TooLong())
            return
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        # Made visible, as it is drawn as it is.
        self.replace(visible(text), *self.selection)


class Sessions(OptionList):
    """The list of the sessions, with a mark for what goes on in each."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete,backspace", "app.forget", "Forget", key_display="del"),
        Binding("escape", "app.close_list", "Back"),
        Binding("ctrl+c", "app.interrupt", show=False),
    ]

    def list(self, panes: Sequence[Pane], current: Pane) -> None:
        """Show these, with a bar on the one that is open."""
        lines = [_line(pane, current=pane is current) for pane in panes]
        if [option.id for option in self.options] == [pane.session_id for pane in panes]:
            for index, line in enumerate(lines):
                if self.options[index].prompt != line:
                    self.replace_option_prompt_at_index(index, line)
        else:
            self.set_options(Option(line, id=pane.session_id) for pane, line in zip(panes, lines, strict=True))
        if not self.has_focus:
            self.highlighted = panes.index(current)


def _line(pane: Pane, *, current: bool) -> Content:
    title = pane.title or "new session"
    return Content.assemble(pane.mark, " ", (title, "bold" if current or pane.unread else ""))


class Talk(VerticalScroll):
    """What was said in a session, the newest below; it follows what comes unless somebody has scrolled up."""

    can_focus = False

    def __init__(self) -> None:
        super().__init__(id="talk")
        self._pane: Pane | None = None
        self._turn = 0  # of the pane, the last one that is here
        self._live: _Answer | None = None

    async def follow(self, pane: Pane, desk: Desk) -> None:
        """Show what there is of a session now, as far as it is not here yet."""
        if pane is not self._pane or pane.stale or pane.turn > self._turn + 1:
            await self._show(pane, desk.messages(pane))
        elif pane.turn > self._turn:
            await self._begin(pane)
        if self._live is None:
            return
        await self._live.grow(pane.pieces)
        if not pane.live:
            await self._end(desk.messages(pane))

    async def _show(self, pane: Pane, messages: Sequence[aheadless.Message]) -> None:
        self._live = None
        self._pane, self._turn, pane.stale = pane, pane.turn, False
        left_out = len(messages) - MAX_MESSAGES
        async with self.batch():
            await self.remove_children()
            if left_out > 0:
                await self.mount(_aside(f"{left_out} earlier messages"))
            await self.mount_all(_said(messages[-MAX_MESSAGES:]))
            if pane.asking:
                await self._begin(pane)
        self.anchor()

    async def _begin(self, pane: Pane) -> None:
        self._turn = pane.turn
        await self.remove_children(self.children[:-MAX_WIDGETS])
        self._live = _Answer()
        await self.mount(_question(pane.question), self._live)
        # Where one types is where one looks.
        self.anchor()

    async def _end(self, messages: Sequence[aheadless.Message]) -> None:
        live, self._live = self._live, None
        assert live is not None  # noqa: S101 - only called in a turn
        last = messages[-1] if messages else None
        if last is None or last.role == "user":
            await live.remove()
        else:
            await live.become(last.text)
        if last is not None and (said := aside(last)):
            await self.mount(_aside(said))
        if live.left_out:
            await self.mount(_aside(_left_out(live.left_out)))


class _Answer(Markdown):
    """An answer: all of it at once, or as it comes."""

    def __init__(self, text: str = "") -> None:
        self._window = Window()
        self._text = text
        self._count = 0  # pieces that are here
        super().__init__(self._window.take(text), parser_factory=make_parser, open_links=False, classes="answer")

    @property
    def left_out(self) -> int:
        """How many characters did not fit."""
        return self._window.left_out

    async def grow(self, pieces: Sequence[str]) -> None:
        """Take those of the pieces that are new."""
        text = "".join(pieces[self._count :])
        self._count = len(pieces)
        self._text += text
        # Not through a MarkdownStream, which joins what comes between two frames, as a frame does here already, and
        # leaves a task behind when the program ends.
        await self.append(self._window.take(text))

    async def become(self, text: str) -> None:
        """Be this text, which it is already, if nothing else was stored than was streamed."""
        if trim(self._text) != trim(text):
            self._window = Window()
            await self.update(self._window.take(text))


def _said(messages: Iterable[aheadless.Message]) -> Iterable[Static | _Answer]:
    for message in messages:
        if message.role == "user":
            yield _question(message.text)
        else:
            yield (answer := _Answer(message.text))
            if answer.left_out:
                yield _aside(_left_out(answer.left_out))
        if said := aside(message):
            yield _aside(said)


def _question(text: str) -> Static:
    return Static(Content(visible(text)), classes="question")


def _aside(text: str) -> Static:
    return Static(Content(text), classes="aside")


def _left_out(count: int) -> str:
    return f"{count} more characters; Ctrl-Y copies them all"


class Ask(ModalScreen[bool]):
    """A question with a yes and a no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,ctrl+c", "dismiss(False)", "No"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = one_line(question)

    def compose(self) -> ComposeResult:
        with Center():
            yield Static(Content(f"{self._question}\n\ny: yes   n, Esc: no"), id="ask")


HELP: Final = """\
Enter      send                     Ctrl-J      a new line, as Shift-Enter where the terminal can
Esc        stop the reply           Ctrl-C      stop it; once more: leave
Ctrl-N     a new session            Alt-↓ Alt-↑ the next session, the one before
Ctrl-G     the list of sessions     Del         in it: forget a session
Ctrl-R     what the last line says  Ctrl-Y      copy the last answer
↑ ↓        earlier messages         PgUp PgDn   scroll; Ctrl-End to the end
Ctrl-Q     leave"""


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,enter,ctrl+c", "dismiss", "Back")]

    def compose(self) -> ComposeResult:
        with Center():
            yield Static(Content(HELP), id="ask")
