"""Code fences in a text that may end, or be cut, anywhere: which one is open, and what closes and reopens it. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MARGIN", "Fence", "FenceReader", "Line"]

# Quotes and indentation, and the marks of list items that may stand before a fence.
MARGIN: Final = r"(?P<quote>(?:[ ]*+>)*+)(?P<indent>[ \t]*+)"
_MARKERS: Final = r"(?P<item>(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)*+)"
_OPENER: Final = re.compile(MARGIN + _MARKERS + r"(?P<mark>`{3,}+(?=[^`\n]*+\n?\Z)|~{3,}+)(?P<info>[^\n]*+)\n?")
_OPENER_MARK: Final = re.compile(MARGIN + _MARKERS + r"(?:`{3,}+|~{3,}+)")
_CLOSER: Final = re.compile(MARGIN + r"(?P<run>`*+|~*+)(?P<after>[ \t\r]*+\n?)")


@attrs.frozen
class Fence:
    """An open code fence."""

    margin: str
    """What its lines begin with: quote marks, indentation."""
    quoted: bool
    mark: str
    info: str

    @property
    def closing(self) -> str:
        return self.margin + self.mark

    def opening(self, *, fresh: bool, info: bool = True) -> str:
        """Return what opens it again, at the beginning of a line of code or within one."""
        line = self.margin + self.mark + (self.info if info else "") + "\n"
        # A line of a quote that does not begin as one would end it.
        return line if fresh or not self.quoted else line + self.margin


@attrs.frozen
class Line:
    """A line, or what is known of it."""

    start: int
    fence: Fence | None
    """The one that is open before it."""
    fresh: bool = True
    """False for the rest of a line that was cut."""


class FenceReader:
    """Reads the lines of a text, each as far as it is known."""

    def __init__(self, text: str, affords: Callable[[Fence], bool]) -> None:
        self.text = text
        self._affords = affords

    def opener(self, start: int, stop: int) -> Fence | None:
        """Return the fence that is opened by a line that begins at `start`, as far as `stop`."""
        found = _OPENER.fullmatch(self.text, start, stop)
        if found is None:
            return None
        margin = found["quote"] + found["indent"] + " " * len(found["item"])
        fence = Fence(margin, bool(found["quote"]), found["mark"], found["info"].rstrip())
        return fence if self._affords(fence) else None

    def closer(self, fence: Fence, start: int, stop: int) -> re.Match[str] | None:
        """Return a match if the line, as far as `stop`, closes the fence or may be about to."""
        found = _CLOSER.fullmatch(self.text, start, stop)
        if found is None or bool(found["quote"]) != fence.quoted:
            return None
        # More indented than that it is code (CommonMark, section 4.5).
        if len(found["quote"] + found["indent"]) > len(fence.margin) + 3:
            return None
        run = found["run"]
        if run and (run[0] != fence.mark[0] or (len(run) < len(fence.mark) and found["after"])):
            return None
        return found

    def closes(self, fence: Fence, start: int, stop: int) -> bool:
        """Whether the line, as far as `stop`, closes the fence."""
        found = self.closer(fence, start, stop)
        return found is not None and len(found["run"]) >= len(fence.mark)

    def leaves_quote(self, fence: Fence, start: int, stop: int) -> bool:
        """Whether the line, as far as `stop`, is outside of the quote in which the fence is."""
        return fence.quoted and self.text[start:stop].lstrip(" ")[:1] not in {"", ">"}

    def after(self, line: Line, stop: int) -> Fence | None:
        """Return the fence that is open at `stop`, in the line or at its end."""
        fence = line.fence
        if not line.fresh:
            return fence
        if fence is not None and not self.leaves_quote(fence, line.start, stop):
            return None if self.closes(fence, line.start, stop) else fence
        return self.opener(line.start, stop)

    def tail(self, line: Line, stop: int) -> str:
        """Return what must follow if a message ends at `stop`, within the line: the end of the fence."""
        fence = self.after(line, stop)
        if fence is None or not self._affords(fence):
            return ""
        if (line.start == stop and line.fresh) or self.text[line.start : stop].endswith("\n"):
            return fence.closing
        if line.fresh and fence is line.fence and (begun := self.closer(fence, line.start, stop)):
            return fence.mark[len(begun["run"]) :]
        return "\n" + fence.closing

    def tails(self, line: Line, stop: int) -> Iterator[str]:
        """Yield the longest tails that any place in the line, as far as `stop`, may have."""
        if line.fence is not None:
            yield "\n" + line.fence.closing
        if line.fresh and (begun := _OPENER_MARK.match(self.text, line.start, stop)):
            yield "\n" + begun[0]
