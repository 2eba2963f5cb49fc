"""What the screen knows of each session: what it does, what is new, what is said below it.

No I/O, no widgets, no clock.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import attrs

from aheadless import Retrying, Waiting
from aheadless.cli.output import explain, one_line
from aheadless.exceptions import Delivery
from aheadless.protocol.codec import MAX_MESSAGE_UNITS, utf16_length

if TYPE_CHECKING:
    from aheadless import Message
    from aheadless.exceptions import AheadlessError

__all__ = ["NEXT", "Notice", "Offer", "Pane", "Recall", "Stage", "Step", "Window", "aside", "counter", "notice_of"]

# A reply is a few KiB. Each paragraph is a widget, and what is longer than a book's chapter is not read on a screen.
MAX_SHOWN: Final = 40_000
MAX_LINES: Final = 500

# As readline remembers, more or less.
MAX_RECALLED: Final = 200

# How many units of room are left when the counter appears.
COUNTED_FROM: Final = 500

TITLE_WIDTH: Final = 60


class Stage(enum.Enum):
    """What a session does."""

    IDLE = "idle"
    ASKED = "asked"
    STREAMING = "streaming"
    READING_BACK = "reading back"


class Step(enum.Enum):
    """What can happen to it."""

    ASK = "ask"
    TOKEN = "token"  # noqa: S105 - a piece of text
    READ_BACK = "read back"
    END = "end"


NEXT: Final = {
    (Stage.IDLE, Step.ASK): Stage.ASKED,
    (Stage.IDLE, Step.READ_BACK): Stage.READING_BACK,
    (Stage.ASKED, Step.TOKEN): Stage.STREAMING,
    (Stage.ASKED, Step.READ_BACK): Stage.READING_BACK,
    (Stage.ASKED, Step.END): Stage.IDLE,
    (Stage.STREAMING, Step.TOKEN): Stage.STREAMING,
    (Stage.STREAMING, Step.READ_BACK): Stage.READING_BACK,
    (Stage.STREAMING, Step.END): Stage.IDLE,
    (Stage.READING_BACK, Step.END): Stage.IDLE,
}
"""What is not in here is a mistake of ours."""

Offer: TypeAlias = Literal["send again", "read back"]
"""What Ctrl-R would do: send the message again, or look for its reply in the server's history."""


@attrs.frozen
class Notice:
    """What is said of the last turn, and what can be done about it."""

    text: str
    failed: bool = False
    offer: Offer | None = None


@attrs.define(eq=False)
class Pane:
    """One session's place on the screen."""

    session_id: str
    title: str = ""
    """What it is about, on one line; empty before anything was said."""
    draft: str = ""
    """What was typed and not sent."""
    loaded: bool = False
    """Whether what the store keeps of it was read."""
    stage: Stage = attrs.field(default=Stage.IDLE, init=False)
    turn: int = attrs.field(default=0, init=False)
    """How many turns were begun here."""
    asking: bool = attrs.field(default=False, init=False)
    """Whether the last of them is live, as against a mere look into the server's history."""
    stale: bool = attrs.field(default=False, init=False)
    """Whether an earlier message has changed, so that all has to be shown anew."""
    question: str = attrs.field(default="", init=False)
    """Of the last turn that was begun here."""
    pieces: list[str] = attrs.field(factory=list[str], init=False)
    """The text of the live reply, as it came."""
    hold: Waiting | Retrying | None = attrs.field(default=None, init=False)
    """What the live turn waits for before it is sent."""
    notice: Notice | None = attrs.field(default=None, init=False)
    unread: bool = attrs.field(default=False, init=False)
    """Whether a turn has ended that nobody has looked at."""

    @property
    def live(self) -> bool:
        """Whether something is going on that can be stopped."""
        return self.stage is not Stage.IDLE

    @property
    def mark(self) -> str:
        """One character for a list of sessions."""
        if self.live:
            return "●"
        if self.notice is not None and self.notice.failed:
            return "!"
        return "*" if self.unread else " "

    def ask(self, question: str) -> None:
        """Begin a turn."""
        self._take(Step.ASK)
        self.turn += 1
        self.asking = True
        self.question = question
        self.name_after(question)
        self.pieces = []
        self.notice = None

    def add(self, text: str) -> None:
        """Take what came of the reply."""
        self._take(Step.TOKEN)
        self.hold = None
        self.pieces.append(text)

    def read_back(self) -> None:
        """Begin to look for the reply in the server's history."""
        self._take(Step.READ_BACK)
        self.hold = None

    def end(self, notice: Notice | None = None, *, seen: bool) -> None:
        """End the turn; `seen` says whether somebody was looking."""
        self._take(Step.END)
        self.stale |= not self.asking
        self.asking = False
        self.hold = None
        self.notice = notice
        self.unread = not seen

    def name_after(self, text: str) -> None:
        """Let the title be what is said now."""
        self.title = one_line(text[: 4 * TITLE_WIDTH])[:TITLE_WIDTH]

    def status(self, seconds_left: float) -> str:
        """Return what it does, for a line below it; `seconds_left` are those of a cool-down after a 429."""
        match self.stage:
            case Stage.IDLE:
                return ""
            case Stage.READING_BACK:
                return "reading the reply back from the server's history … · Esc gives up"
            case Stage.STREAMING:
                return "replying … · Esc stops it"
            case Stage.ASKED:
                return f"{self._before_the_reply(seconds_left)} · Esc gives up"

    def _before_the_reply(self, seconds_left: float) -> str:
        if self.hold is None:
            return "thinking …"
        if seconds_left > 0:
            return f"too many requests; the server wants a pause: {max(1, round(seconds_left))} s to go"
        if isinstance(self.hold, Retrying):
            return f"attempt {self.hold.attempt + 1} follows: {one_line(str(self.hold.error))}"
        return "waiting its turn, as there are many"

    def _take(self, step: Step) -> None:
        self.stage = NEXT[self.stage, step]


@attrs.define(eq=False)
class Window:
    """How much of a text still fits on the screen: at most 40,000 characters and 500 lines."""

    characters: int = MAX_SHOWN
    lines: int = MAX_LINES
    left_out: int = 0
    """How many characters did not fit."""

    def take(self, text: str) -> str:
        """Return as much of the next piece as fits."""
        fits = "" if self.left_out else text[: self.characters]
        if fits.count("\n") > self.lines:
            fits = "\n".join(fits.split("\n", self.lines)[: self.lines])
        self.characters -= len(fits)
        self.lines -= fits.count("\n")
        self.left_out += len(text) - len(fits)
        return fits


@attrs.define(eq=False)
class Recall:
    """What was sent before, for the arrow keys: the last 200 messages, and what is being typed below them."""

    _sent: list[str] = attrs.field(factory=list[str], init=False)
    _back: int = attrs.field(default=0, init=False)
    _typed: str = attrs.field(default="", init=False)

    def add(self, message: str) -> None:
        """Remember a message, and begin at the end again."""
        if self._sent[-1:] != [message]:
            self._sent.append(message)
        del self._sent[:-MAX_RECALLED]
        self._back = 0

    def older(self, typed: str) -> str | None:
        """Return the message before, None at the first; `typed` is what the prompt holds, kept for the way back."""
        if self._back == len(self._sent):
            return None
        if self._back == 0:
            self._typed = typed
        self._back += 1
        return self._sent[-self._back]

    def newer(self) -> str | None:
        """Return the message after, at the end what was being typed; None if one is there."""
        if self._back == 0:
            return None
        self._back -= 1
        return self._sent[-self._back] if self._back else self._typed


def notice_of(error: AheadlessError, *, can_read_back: bool) -> Notice:
    """Return what is said of a turn that failed: why, what became of the message, what one can do."""
    text = explain(error)
    if error.delivery in {Delivery.NOT_SENT, Delivery.REJECTED}:
        return Notice(f"{text}; nothing was stored: Ctrl-R sends it again", failed=True, offer="send again")
    if can_read_back:
        return Notice(f"{text}; Ctrl-R looks for the reply on the server", failed=True, offer="read back")
    return Notice(f"{text}; sent again, it would be stored twice", failed=True)


def counter(text: str) -> str:
    """Return how long a message is, if that is near or above what the API takes; otherwise nothing."""
    units = utf16_length(text)
    if units <= MAX_MESSAGE_UNITS - COUNTED_FROM:
        return ""
    if units <= MAX_MESSAGE_UNITS:
        return f"{MAX_MESSAGE_UNITS - units} characters left"
    return f"{units - MAX_MESSAGE_UNITS} characters too long: a message has at most {MAX_MESSAGE_UNITS}"


def aside(message: Message) -> str:
    """Return what is to be said beside a message that is not simply complete."""
    if message.status in {"complete", "pending"}:
        return ""
    if message.role == "assistant":
        return "stopped" if message.status == "interrupted" else "not complete"
    match message.delivery:
        case Delivery.NOT_SENT | Delivery.REJECTED:
            return "not stored"
        case Delivery.UNKNOWN:
            return "may have been stored"
        case Delivery.ACCEPTED:
            return ""
