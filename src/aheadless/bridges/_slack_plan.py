"""What to do next on Slack so that its messages say what the reply says; pure, with the clock passed in.

A plan knows the messages as far as Slack's answers told, and is asked for the next step towards a text. What became of
the step is told to it, and it is asked again: so there is one way, from whatever state, and the newest text wins.

A message is a native stream as long as that goes well: text is appended to it. A stream that grows old, breaks off, or
of which nobody knows what arrived, is closed, and its message edited from then on.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.bridges._delivery import Pace, Schedule, check_seconds
from aheadless.bridges._slack_calls import (
    Append,
    Delete,
    Post,
    Problem,
    RateLimited,
    Refused,
    Start,
    Step,
    Stop,
    Unclear,
    Update,
)
from aheadless.bridges._split import Part, closed, cut
from aheadless.protocol.codec import trim

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LIMIT", "SlackPace", "SlackPlan", "presentable"]

LIMIT: Final = 11_500
"""Bytes of UTF-8 in a message. The reference says 12,000 characters; what streams were seen to take was about as many
bytes, all appends together (https://github.com/openclaw/openclaw/pull/143882)."""

SHORTEST: Final = 1_000
"""To so many characters messages shrink if Slack finds them too long: it does not say what it counts."""

MAX_DELETED: Final = 3
"""So many messages are begun anew that somebody deleted; then nothing is shown before the whole text."""

SLOWEST: Final = 8
"""How many times as long as the pace says the pauses get."""

_TOO_LONG: Final = {"msg_too_long", "msg_blocks_too_long", "markdown_text_too_long"}

# What notifies people. What else Slack puts in angle brackets are links, which a reply may have.
_PING: Final = re.compile(r"<(?=@[UWB][A-Z0-9]|!(?:channel|here|everyone|group|subteam))")
_PERHAPS_PING: Final = re.compile(r"<(?:@[UWB]?|![a-z]{0,8})?\Z")
_WORD_JOINER: Final = "\u2060"


def presentable(text: str, *, final: bool) -> str:
    """Return a text as it can be shown: trimmed, and with mentions that notify nobody, by a character that is not seen.

    What is returned for a text that is not final is the beginning of what is returned for it when it has grown.
    """
    if not final:
        text = _PERHAPS_PING.sub("", text)
    return _PING.sub("<" + _WORD_JOINER, trim(text))


@attrs.frozen(kw_only=True)
class SlackPace:
    """How often a reply's messages are brought up to date, and how old a stream gets; all in seconds."""

    append: float = attrs.field(default=0.6, validator=check_seconds)
    """Between two appends to a stream: Slack takes 100 a minute of an app in a workspace."""

    edit: float = attrs.field(default=1.2, validator=check_seconds)
    """Between two edits where there is no stream: Slack takes 50 a minute."""

    roll_over: float = attrs.field(default=200.0, validator=check_seconds)
    """From this age of a stream on, the next line that is not within a code block begins a new message."""

    close: float = attrs.field(default=230.0, validator=check_seconds)
    """At this age a stream is closed wherever it is, and the rest shown by edits. Slack closes it at about 300."""


@attrs.define
class _Message:
    ts: str
    shown: str
    streaming_since: float | None = None
    sure: bool = True  # whether it shows that


class SlackPlan:
    """The messages of one reply: what they show, and what is to be done next.

    `native` says whether streams are tried, `placeholder` is what an edited message shows that has no text yet. Times
    are seconds of any one clock.
    """

    def __init__(self, pace: SlackPace, *, native: bool = True, placeholder: str = "…", limit: int = LIMIT) -> None:
        self._pace = pace
        self._native = native
        self._placeholder = placeholder
        self._limit = limit
        self._messages: list[_Message] = []
        # A roll-over settles what the messages before it say: their texts, and what of the reply they hold.
        self._settled: list[str] = []
        self._before = ""
        self._editable = True
        self._deleted = 0
        self._slow = 1  # grows with each 429: other replies share the workspace's budget
        self._last_at = -math.inf
        self._schedule = Schedule(Pace(first=0, every=0))
        self.refused: str | None = None
        """Why Slack takes no message here at all, by its code; nothing is left to do then."""

    @property
    def final(self) -> bool:
        """Whether the text is the whole one."""
        return self._schedule.final

    @property
    def exhausted(self) -> bool:
        """Whether the whole text was tried to be shown as often, or as long, as is of use."""
        return self._schedule.exhausted

    def finish(self, now: float, *, within: float) -> None:
        """Take note that the text from now on is the whole one, and to be there after so many seconds."""
        self._schedule.finish(now, within)

    def step(self, text: str, now: float, *, hurry: bool = False) -> Step | None:
        """Return the next step towards messages that show the text; None if they do, or cannot.

        `hurry`: a message is wanted before there is text.
        """
        if self.refused is not None:
            return None
        wanted = list(self._wanted(presentable(text, final=self.final), now))
        for index, (message, want) in enumerate(zip(self._messages, wanted, strict=False)):
            if (step := self._bring(message, want, now, live=self._lives(index, wanted))) is not None:
                return step
        if (index := len(self._messages)) < len(wanted):
            return self._begin(wanted[index], live=self._lives(index, wanted))
        if self.final and len(self._messages) > len(wanted):
            return Delete(self._messages[-1].ts)
        if hurry and not self._messages:
            return Start("") if self._native else Post(self._placeholder)
        return self._close_empty(self._messages[len(wanted) :], now)

    def due(self, step: Step) -> float:
        """Return from when on a step may be made. What is final keeps no pace, but waits where it must."""
        if self.final or not isinstance(step, Append | Update):
            return self._schedule.due
        pause = self._pace.append if isinstance(step, Append) else self._pace.edit
        return max(self._schedule.due, self._last_at + pause * self._slow)

    def closes_at(self) -> float | None:
        """Return when there will be a step although the text stays the same: an open stream grows old."""
        open_since = [message.streaming_since for message in self._messages if message.streaming_since is not None]
        return min(open_since) + self._pace.close if open_since and self.refused is None else None

    def done(self, step: Step, now: float, *, ts: str = "") -> None:
        """Take note that a step was made at this time; `ts` names the message that it began."""
        self._schedule.shown(now)
        self._last_at = now
        match step:
            case Start(text):
                self._messages.append(_Message(ts, text, streaming_since=now))
            case Post(text):
                self._messages.append(_Message(ts, text))
            case Append(_, text):
                self._find(step.ts).shown += text
            case Stop(_, text):
                message = self._find(step.ts)
                message.shown += text
                message.streaming_since = None
            case Update(_, text):
                message = self._find(step.ts)
                message.shown, message.sure = text, True
            case Delete():
                self._forget(step.ts)

    def failed(self, step: Step, problem: Problem, now: float) -> None:
        """Take note that a step was not made, or that nobody knows, at this time."""
        self._last_at = now
        match problem:
            case RateLimited(seconds):
                self._schedule.postponed(now, seconds)
                self._slow = min(self._slow * 2, SLOWEST)
            case Unclear():
                self._schedule.failed(now)
                self._doubt(step)
            case Refused(code) if code in _TOO_LONG and self._limit > SHORTEST:
                self._limit //= 2
            case Refused(code):
                self._obey(step, code, now)

    # --- the text in messages -----------------------------------------------------------------------------------------

    def _lives(self, index: int, wanted: list[Part]) -> bool:
        """Whether the text of a message still grows."""
        return not self.final and index == len(wanted) - 1

    def _wanted(self, text: str, now: float) -> Iterator[Part]:
        """Yield what each message is to show."""
        if not text.startswith(self._before):
            self._before, self._settled = "", []  # the stored reply is another one than the tokens were
        parts = self._cut(text)
        if parts and not self.final and self._rolls_over(parts, now):
            parts = self._cut(text)
        for part in (*(Part(text, text) for text in self._settled), *parts):
            if part.text.strip():  # Slack takes no blank message
                yield part

    def _cut(self, text: str) -> list[Part]:
        rest = text[len(self._before) :]
        return cut(rest, self._limit, length=_bytes) if rest else []

    def _rolls_over(self, parts: list[Part], now: float) -> bool:
        """Settle what is before a good place for a new message, if it is time for one and there is one."""
        if not self._messages or len(self._messages) != len(self._settled) + len(parts):
            return False
        message, (*whole, last) = self._messages[-1], parts
        if message.streaming_since is None or now < message.streaming_since + self._pace.roll_over:
            return False
        if (end := _line_end(last, len(message.shown))) is None:
            return False
        self._settled += [part.text for part in whole]
        self._settled.append(last.source[:end])
        self._before += "".join(part.source for part in whole) + last.source[:end]
        return True

    def _bring(self, message: _Message, want: Part, now: float, *, live: bool) -> Step | None:
        """Return the step that brings one message nearer to its text."""
        text = want.text.rstrip()
        if message.streaming_since is None:
            return None if message.sure and message.shown == text else Update(message.ts, text)
        if live and message.sure and now < message.streaming_since + self._pace.close:
            text = _unclosed(want)
            if text.startswith(message.shown):
                rest = text[len(message.shown) :]
                return Append(message.ts, rest) if rest else None
            text = want.text.rstrip()
        if message.sure and text.startswith(message.shown):
            return Stop(message.ts, text[len(message.shown) :])
        return Stop(message.ts, "")

    def _close_empty(self, messages: list[_Message], now: float) -> Step | None:
        """Return the step that closes one which has no text and is old."""
        for message in messages:
            if message.streaming_since is not None and now >= message.streaming_since + self._pace.close:
                return Stop(message.ts, "")
        return None

    def _begin(self, want: Part, *, live: bool) -> Step | None:
        if live and self._native:
            return Start(_unclosed(want))
        if live and not self._editable:
            return None  # it would stay as it is; the final text comes in one piece
        return Post(want.text.rstrip())

    # --- failures -----------------------------------------------------------------------------------------------------

    def _doubt(self, step: Step) -> None:
        match step:
            case Append() | Stop() | Update():
                self._find(step.ts).sure = False
            case Start() | Post() | Delete():
                pass

    def _obey(self, step: Step, code: str, now: float) -> None:
        match step:
            case Start():
                self._native = False
            case Post():
                self.refused = code
            case Delete():
                self._forget(step.ts)
            case Append() | Stop() | Update() if code == "message_not_found":
                self._forget(step.ts)
                self._deleted += 1
                if self._deleted > MAX_DELETED:
                    self._native = self._editable = False
            case Append() | Stop():
                self._find(step.ts).streaming_since = None
            case Update() if code == "streaming_state_conflict":
                self._find(step.ts).streaming_since = now  # so it was not closed after all
                self._schedule.failed(now)
            case Update():
                self._forget(step.ts)
                self._editable = False

    def _find(self, ts: str) -> _Message:
        return next(message for message in self._messages if message.ts == ts)

    def _forget(self, ts: str) -> None:
        self._messages = [message for message in self._messages if message.ts != ts]


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _unclosed(part: Part) -> str:
    """Return what a part shows, without the end of a code block that was only put there because the text ends."""
    return part.text[: part.text.rindex(part.source) + len(part.source)].rstrip()


def _line_end(part: Part, shown: int) -> int | None:
    """Return the end of the last line that is not shown yet and not in a code block, with the blank lines after it."""
    if not part.text.startswith(part.source):
        return None  # it begins in the middle of a code block
    end = len(part.source)
    while (end := part.source.rfind("\n", shown, end)) >= 0:
        rest = part.source[end:]
        after = end + len(rest) - len(rest.lstrip("\n"))
        if closed(head := part.source[:after]) == head:
            return after
    return None
