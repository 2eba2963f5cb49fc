"""A long text as messages of a limited length: cut where a reader would, and code stays code on both sides of a cut.

Pure. The decision where a part ends looks at no character beyond the first that does not fit, so that the parts of a
text that is still being written stay what they are when more of it comes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import attrs
from wcwidth import grapheme_boundary_before

from aheadless._options import parse_count
from aheadless.bridges._inline import kept_whole
from aheadless.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Part", "closed", "cut", "split_text"]

# What a cut is worth, from the best: between paragraphs, lines, sentences, words.
PARAGRAPH: Final = 3
LINE: Final = 2
SENTENCE: Final = 1
WORD: Final = 0

# Quotes and indentation, and the marks of list items that may stand before a fence.
_MARGIN: Final = r"(?P<quote>(?:[ ]*+>)*+)(?P<indent>[ \t]*+)"
_MARKERS: Final = r"(?P<item>(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)*+)"
_OPENER: Final = re.compile(_MARGIN + _MARKERS + r"(?P<mark>`{3,}+(?=[^`\n]*+\n?\Z)|~{3,}+)(?P<info>[^\n]*+)\n?")
_OPENER_MARK: Final = re.compile(_MARGIN + _MARKERS + r"(?:`{3,}+|~{3,}+)")
_CLOSER: Final = re.compile(_MARGIN + r"(?P<run>`*+|~*+)(?P<after>[ \t\r]*+\n?)")
_LINE: Final = re.compile(_MARGIN + r"(?P<item>(?:[-*+]|\d{1,9}[.)])(?=\s|\Z))?(?P<heading>#{1,6}(?=[ \t]))?")
_SOLID: Final = re.compile(r"\S")
# Where a line may be cut: after white space that breaks, and after the punctuation of scripts that have none.
_GAP: Final = re.compile(r"(?P<space>[^\S\xa0\u202f]+)|[。！？，、；：]+[」』）】”’]*")
_SENTENCE_END: Final = re.compile(r"[.!?…。！？][\"'”’»)\]*_」』）】]*\Z")


@attrs.frozen
class Part:
    """One message of a text that was cut."""

    text: str
    """What is shown: the source, and where a fence is cut, its opening line before and its end after it."""

    source: str
    """The stretch of the text that it shows; those of all parts, joined, are the text."""


def split_text(text: str, limit: int, *, length: Callable[[str], int] = len) -> list[str]:
    """Return a text as messages of at most `limit` characters, cut between paragraphs, lines, sentences or words.

    A Markdown link, a URL, a code span, a mention, an emoji of the platform's and a list item stay whole if they fit
    the limit; a character is never taken apart that consists of several code points. Where a code fence is cut, the
    part ends with its closing line and the next one begins with its opening line again, language included; all other
    text comes back, exactly, by joining the parts. White space at a cut stays with the part before it. A text that
    fits is one part; an empty text has none.

    A limit that is too small for a fence's lines cuts the fence as if it were text, and one that is too small for a
    character cuts that between its code points.

    `length` counts as the platform does, `aheadless.bridges.utf16_length` for example. It must count a text as the sum
    of its code points, or as less.

    Raises ConfigurationError for a limit that is not a whole number from 1, InvalidRequestError for what is no text.
    """
    parts = cut(text, limit, length=length)
    if len(parts) <= 1 or length(text) <= limit:
        return [text] if text else []
    texts = [part.text for part in parts]
    if texts[-1].startswith(parts[-1].source):
        # A fence that the text leaves open, and that no cut has opened again, is the text's own affair.
        texts[-1] = parts[-1].source
    return texts


def cut(text: str, limit: int, *, length: Callable[[str], int] = len) -> list[Part]:
    """Return the parts of a text, as :func:`split_text` makes them, each with what it shows of the text.

    Here the last part, too, closes a fence that is open at its end, as it is while a reply is being written. When text
    is appended, the parts before the last stay as they are, unless the text ended in white space.
    """
    if not isinstance(text, str):
        raise InvalidRequestError(f"a text to be split must be a str, not {type(text).__name__}")
    parse_count(limit, "limit", least=1)
    return list(_Cutter(text, limit, _Measure(text, length)))


def closed(text: str) -> str:
    """Return the text with the closing line of the fence that is open at its end, if there is one."""
    return "".join(part.text for part in cut(text, 4 * len(text) + 16))


class _Measure:
    """How much a stretch of the text counts."""

    def __init__(self, text: str, length: Callable[[str], int]) -> None:
        self.of = length
        self._end = len(text)
        self._sums = None if length is len else list(accumulate(map(lru_cache(length), text), initial=0))

    def between(self, start: int, stop: int) -> int:
        return stop - start if self._sums is None else self._sums[stop] - self._sums[start]

    def fit(self, start: int, room: int) -> int:
        """Return where the longest stretch from `start` ends that counts at most `room`."""
        if self._sums is None:
            return max(start, min(start + room, self._end))
        return max(start, bisect_right(self._sums, self._sums[start] + room) - 1)


@attrs.frozen
class _Fence:
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
class _Place:
    """A place in the text, and all of what is before it that matters after it."""

    at: int = 0
    fence: _Fence | None = None
    fresh: bool = True
    """Whether a line begins here."""


@attrs.frozen
class _Break:
    """A place for a cut."""

    at: int
    rank: int
    item: int | None = None
    """Where the list item begins in which it lies."""


@attrs.frozen
class _Line:
    """A line, or what is known of it."""

    start: int
    fence: _Fence | None
    """The one that is open before it."""
    fresh: bool = True
    """False for the rest of a line that was cut."""


class _Cutter:
    """Goes through a text once, part by part."""

    def __init__(self, text: str, limit: int, measure: _Measure) -> None:
        self.text = text
        self.limit = limit
        self.measure = measure
        self.solid_end = len(text.rstrip())

    def __iter__(self) -> Iterator[Part]:
        place = _Place()
        while place.at < len(self.text):
            head = self._head(place)
            window = _Window(self, place, self.limit - self.measure.of(head))
            following, tail = window.end()
            source = self.text[place.at : following.at]
            yield Part(head + source + tail, source)
            place = following

    def _head(self, place: _Place) -> str:
        if place.fence is None or not self.affords(place.fence):
            return ""
        head = place.fence.opening(fresh=place.fresh)
        # A long info string must not leave so little room that a block of code becomes a hundred messages.
        if 4 * self.measure.of(head + "\n" + place.fence.closing) > 3 * self.limit:
            head = place.fence.opening(fresh=place.fresh, info=False)
        return head

    def affords(self, fence: _Fence) -> bool:
        """Whether there is room between a fence's lines."""
        lines = fence.opening(fresh=False, info=False) + "\n" + fence.closing
        return self.measure.of(lines) + 1 < self.limit

    def opener(self, start: int, stop: int) -> _Fence | None:
        """Return the fence that is opened by a line that begins at `start`, as far as `stop`."""
        found = _OPENER.fullmatch(self.text, start, stop)
        if found is None:
            return None
        margin = found["quote"] + found["indent"] + " " * len(found["item"])
        fence = _Fence(margin, bool(found["quote"]), found["mark"], found["info"].rstrip())
        return fence if self.affords(fence) else None

    def closer(self, fence: _Fence, start: int, stop: int) -> re.Match[str] | None:
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

    def closes(self, fence: _Fence, start: int, stop: int) -> bool:
        """Whether the line, as far as `stop`, closes the fence."""
        found = self.closer(fence, start, stop)
        return found is not None and len(found["run"]) >= len(fence.mark)

    def leaves_quote(self, fence: _Fence, start: int, stop: int) -> bool:
        """Whether the line, as far as `stop`, is outside of the quote in which the fence is."""
        return fence.quoted and self.text[start:stop].lstrip(" ")[:1] not in {"", ">"}

    def after(self, line: _Line, stop: int) -> _Fence | None:
        """Return the fence that is open at `stop`, in the line or at its end."""
        fence = line.fence
        if not line.fresh:
            return fence
        if fence is not None and not self.leaves_quote(fence, line.start, stop):
            return None if self.closes(fence, line.start, stop) else fence
        return self.opener(line.start, stop)

    def tail(self, line: _Line, stop: int) -> str:
        """Return what must follow if a message ends at `stop`, within the line: the end of the fence."""
        fence = self.after(line, stop)
        if fence is None or not self.affords(fence):
            return ""
        if (line.start == stop and line.fresh) or self.text[line.start : stop].endswith("\n"):
            return fence.closing
        if line.fresh and fence is line.fence and (begun := self.closer(fence, line.start, stop)):
            return fence.mark[len(begun["run"]) :]
        return "\n" + fence.closing


class _Window:
    """The stretch of the text that one part may take: where it can be cut, and where it is."""

    def __init__(self, cutter: _Cutter, place: _Place, room: int) -> None:
        self.cutter = cutter
        self.text = cutter.text
        self.start = place.at
        self.room = room
        self.cap = cutter.measure.fit(place.at, room)  # no part ends behind this
        solid = _SOLID.search(self.text, place.at, self.cap)
        self.first = solid.start() if solid else self.cap
        self.lines = [_Line(place.at, place.fence, place.fresh)]
        self.breaks: list[_Break] = []
        # Of the lines so far:
        self.paragraph = place.at
        self.item: tuple[int, int] | None = None  # where it begins, how far it is indented
        self.opened = self.closed = self.blank = self.heading = False

    def end(self) -> tuple[_Place, str]:
        """Return where the part ends, and what closes its fence."""
        known = self._read()
        if known is None:
            return _Place(len(self.text)), self.cutter.tail(self.lines[-1], len(self.text))
        last = known - 1
        if last <= self.start:
            # Not one character fits: it goes alone, without the lines of a fence if those take the room.
            line = self.lines[-1]
            return _Place(self.start + 1, self.cutter.after(line, self.start + 1), self.text[self.start] == "\n"), ""
        stop = self._choose(known, last)
        if self.cutter.solid_end <= stop < len(self.text) and self._fence_at(stop) is None:
            # Only white space would be left, and that is no message.
            earlier = self._cluster(self.cutter.solid_end - 1)
            if earlier > self.first:
                stop = self._choose(known, earlier)
        index = bisect_right(self.lines, stop, key=lambda line: line.start) - 1
        line = self.lines[index]
        fresh = line.start == stop and line.fresh
        return _Place(stop, self.cutter.after(line, stop), fresh), self.cutter.tail(line, stop)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> int | None:
        """Take note of the lines that fit; return behind which character the text is too long, None if it is not."""
        while True:
            line = self.lines[-1]
            newline = self.text.find("\n", line.start, self.cap + 1)
            stop = newline + 1 if newline >= 0 else min(self.cap + 1, len(self.text))
            known = self._overflow(line, stop)
            self._note(line, known or stop)
            if known is not None or newline < 0:
                return known
            self.lines.append(_Line(stop, self.cutter.after(line, stop)))
            if stop == len(self.text):
                return None

    def _overflow(self, line: _Line, stop: int) -> int | None:
        """Return the first place in the line at which a message cannot end any more, its tail included."""
        measure = self.cutter.measure
        longest = 0
        if line.fence is not None:
            longest = measure.of("\n" + line.fence.closing)
        if line.fresh and (mark := _OPENER_MARK.match(self.text, line.start, stop)):
            longest = max(longest, measure.of("\n" + mark[0]))
        for place in range(max(line.start, measure.fit(self.start, self.room - longest)) + 1, stop + 1):
            if measure.between(self.start, place) + measure.of(self.cutter.tail(line, place)) > self.room:
                return place
        return None

    def _note(self, line: _Line, stop: int) -> None:
        """Take note of a line: whether the text may be cut before it, and what that is worth."""
        cutter, start = self.cutter, line.start
        fence = line.fence
        if fence is not None and not (line.fresh and cutter.leaves_quote(fence, start, stop)):
            ends = line.fresh and cutter.closes(fence, start, stop)
            begins_to_end = self.text[stop - 1] != "\n" and cutter.closer(fence, start, stop) is not None
            if not (self.opened or ends or begins_to_end):
                self._add(start, LINE)
            self.opened, self.closed, self.blank, self.heading = False, ends, False, False
            self.paragraph = stop
            return
        found = _LINE.match(self.text, start, stop)
        assert found is not None  # noqa: S101 - it matches the empty text
        if _SOLID.search(self.text, start, stop) is None:
            self.blank = True
            return
        opens = line.fresh and cutter.opener(start, stop) is not None
        apart = self.blank or self.closed or opens or found["heading"] is not None
        margin = (found["quote"] or found["indent"]).expandtabs(4)
        width = len(margin) - len(margin.lstrip())
        if found["item"] is not None and line.fresh:
            self.item = start, width
        elif self.item is not None and width <= self.item[1] and (apart or not line.fresh):
            self.item = None
        if apart or found["item"] is not None:
            self.paragraph = start
        self._add(start, WORD if self.heading else PARAGRAPH if apart else LINE)
        self.opened, self.closed, self.blank, self.heading = opens, False, False, found["heading"] is not None

    def _add(self, at: int, rank: int) -> None:
        self.breaks.append(_Break(at, rank, None if self.item is None else self.item[0]))

    # --- choosing -----------------------------------------------------------------------------------------------------

    def _choose(self, known: int, last: int) -> int:
        """Return the best place for a cut, none being behind `last`, by what is known of the text."""
        line = self.lines[-1]
        code = self.cutter.after(line, known) is not None
        if code:
            whole = [(line.start, known)] if line.fence is None else []
        else:
            half = (self.start + last) // 2
            whole = kept_whole(self.text, self.paragraph, known, first=self.first, half=half)
        breaks = [*self.breaks, *self._gaps(line, known, last, code=code)]
        usable = (place for place in breaks if self.first < place.at <= last and self._leaves_item(place))
        for place in sorted(usable, key=lambda place: self._worth(place, last, code=code), reverse=True):
            if code and place.rank == WORD and place.at < (self.start + last) // 2:
                break
            if self._cluster(place.at) == place.at and _outside(whole, place.at, self.first) == place.at:
                return place.at
        stop = self._cluster(_outside(whole, last, self.first))
        return stop if stop > self.start else last

    def _gaps(self, line: _Line, known: int, last: int, *, code: bool) -> Iterator[_Break]:
        """Yield the places within the line that is too long, and the one in the white space at its end."""
        item = None if self.item is None else self.item[0]
        start = max(line.start, self.start)
        if not code:
            # The white space before a blank line that is too long belongs to what is before it.
            start = len(self.text[self.start : start].rstrip()) + self.start
        elif solid := _SOLID.search(self.text, start, known):
            start = solid.start()
        for gap in _GAP.finditer(self.text, start, known):
            breaks = gap[0].count("\n")
            if breaks and gap.end() <= last:
                continue  # the beginning of a line, of which note was taken
            sentence = _SENTENCE_END.search(self.text, max(start, gap.start() - 4), gap.start() + (not gap["space"]))
            rank = WORD if code else min(PARAGRAPH, LINE + breaks - 1) if breaks else SENTENCE if sentence else WORD
            yield _Break(min(gap.end(), last), rank, item)

    def _leaves_item(self, place: _Break) -> bool:
        """Whether a cut leaves the list item whole, or cannot as it is too long in any case."""
        return place.item is None or place.item <= self.first or place.item == place.at

    def _worth(self, place: _Break, last: int, *, code: bool) -> tuple[int, int]:
        """Return by what places are compared: a message should be half full before it is cut at less than a word."""
        if place.at >= (self.start + last) // 2:
            return place.rank, place.at
        return (WORD if not code or place.rank == WORD else SENTENCE), place.at

    def _cluster(self, at: int) -> int:
        """Return the last place up to `at` that is not within a character."""
        return self.start + grapheme_boundary_before(self.text[self.start : at + 1], at + 1 - self.start)

    def _fence_at(self, stop: int) -> _Fence | None:
        index = bisect_right(self.lines, stop, key=lambda line: line.start) - 1
        return self.cutter.after(self.lines[index], stop)


def _outside(stretches: list[tuple[int, int]], at: int, first: int) -> int:
    """Return the place, or that before the stretch in which it lies; those that begin with the part do not count."""
    for start, stop in stretches:
        if first < start < at < stop:
            at = start
    return at
