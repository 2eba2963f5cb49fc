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
from aheadless.bridges._fences import MARGIN, Fence, FenceReader, Line
from aheadless.bridges._inline import kept_whole
from aheadless.exceptions import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Part", "closed", "cut", "split_text"]

# What a cut is worth, from the best: between paragraphs, lines, sentences, words, and within a line of code.
PARAGRAPH: Final = 4
LINE: Final = 3
SENTENCE: Final = 2
WORD: Final = 1
INNER: Final = 0

_LINE: Final = re.compile(MARGIN + r"(?P<item>(?:[-*+]|\d{1,9}[.)])(?=\s|\Z))?(?P<heading>#{1,6}(?=[ \t]))?")
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
class _Place:
    """A place in the text, and all of what is before it that matters after it."""

    at: int = 0
    fence: Fence | None = None
    fresh: bool = True
    """Whether a line begins here."""


@attrs.frozen
class _Break:
    """A place for a cut."""

    at: int
    rank: int
    item: int | None = None
    """Where the list item begins in which it lies."""


class _Cutter:
    """Goes through a text once, part by part."""

    def __init__(self, text: str, limit: int, measure: _Measure) -> None:
        self.text = text
        self.limit = limit
        self.measure = measure
        self.fences = FenceReader(text, self.affords)
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

    def affords(self, fence: Fence) -> bool:
        """Whether there is room between a fence's lines."""
        lines = fence.opening(fresh=False, info=False) + "\n" + fence.closing
        return self.measure.of(lines) + 1 < self.limit


class _Window:
    """The stretch of the text that one part may take: where it can be cut, and where it is."""

    def __init__(self, cutter: _Cutter, place: _Place, room: int) -> None:
        self.cutter = cutter
        self.fences = cutter.fences
        self.text = cutter.text
        self.start = place.at
        self.room = room
        self.cap = cutter.measure.fit(place.at, room)  # no part ends behind this
        solid = _SOLID.search(self.text, place.at, self.cap)
        self.first = solid.start() if solid else self.cap
        self.lines = [Line(place.at, place.fence, place.fresh)]
        self.breaks: list[_Break] = []
        # Of the lines so far:
        self.paragraph = place.at
        self.item: tuple[int, int] | None = None  # where it begins, how far it is indented
        self.opened = self.closed = self.blank = self.heading = False

    def end(self) -> tuple[_Place, str]:
        """Return where the part ends, and what closes its fence."""
        known = self._read()
        if known is None:
            return _Place(len(self.text)), self.fences.tail(self.lines[-1], len(self.text))
        last = known - 1
        if last <= self.start:
            # Not one character fits: it goes alone, without the lines of a fence if those take the room.
            line = self.lines[-1]
            return _Place(self.start + 1, self.fences.after(line, self.start + 1), self.text[self.start] == "\n"), ""
        stop = self._choose(known, last)
        if self.cutter.solid_end <= stop < len(self.text) and self._fence_at(stop) is None:
            # Only white space would be left, and that is no message.
            earlier = self._cluster(self.cutter.solid_end - 1)
            if earlier > self.first:
                stop = self._choose(known, earlier)
        index = bisect_right(self.lines, stop, key=lambda line: line.start) - 1
        line = self.lines[index]
        fresh = line.start == stop and line.fresh
        return _Place(stop, self.fences.after(line, stop), fresh), self.fences.tail(line, stop)

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
            self.lines.append(Line(stop, self.fences.after(line, stop)))
            if stop == len(self.text):
                return None

    def _overflow(self, line: Line, stop: int) -> int | None:
        """Return the first place in the line at which a message cannot end any more, its tail included."""
        measure = self.cutter.measure
        longest = max(map(measure.of, self.fences.tails(line, stop)), default=0)
        for place in range(max(line.start, measure.fit(self.start, self.room - longest)) + 1, stop + 1):
            if measure.between(self.start, place) + measure.of(self.fences.tail(line, place)) > self.room:
                return place
        return None

    def _note(self, line: Line, stop: int) -> None:
        """Take note of a line: whether the text may be cut before it, and what that is worth."""
        fences, start, fence = self.fences, line.start, line.fence
        if fence is not None and not (line.fresh and fences.leaves_quote(fence, start, stop)):
            ends = line.fresh and fences.closes(fence, start, stop)
            if not self.opened and not ends:
                # What is known of it may turn out to be the closing line, which should not be left alone.
                unsure = self.text[stop - 1] != "\n" and fences.closer(fence, start, stop) is not None
                self._add(start, WORD if unsure else LINE)
            self.opened, self.closed, self.blank, self.heading = False, ends, False, False
            self.paragraph = stop
            return
        found = _LINE.match(self.text, start, stop)
        assert found is not None  # noqa: S101 - it matches the empty text
        if _SOLID.search(self.text, start, stop) is None:
            self.blank = True
            return
        opens = line.fresh and fences.opener(start, stop) is not None
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
        code = self.fences.after(line, known) is not None
        if code:
            whole = [(line.start, known)] if line.fence is None else []
        else:
            half = (self.start + last) // 2
            whole = kept_whole(self.text, self.paragraph, known, first=self.first, half=half)
        breaks = [*self.breaks, *self._gaps(line, known, last, code=code)]
        for place in sorted(breaks, key=lambda place: self._worth(place, last), reverse=True):
            if (
                self.first < place.at <= last
                and self._leaves_item(place)
                and self._cluster(place.at) == place.at
                and _outside(whole, place.at, self.first) == place.at
            ):
                return place.at
        stop = self._cluster(_outside(whole, last, self.first))
        return stop if stop > self.start else last

    def _gaps(self, line: Line, known: int, last: int, *, code: bool) -> Iterator[_Break]:
        """Yield the places within the line that is too long, and the one in the white space at its end."""
        item = None if self.item is None else self.item[0]
        start = max(line.start, self.start)
        if not code:
            # The white space before a blank line that is too long belongs to what is before it.
            start = len(self.text[self.start : start].rstrip()) + self.start
        else:
            solid = _SOLID.search(self.text, start, known)
            start = known if solid is None else solid.start()  # not within the indentation
        for gap in _GAP.finditer(self.text, start, known):
            breaks = gap[0].count("\n")
            if breaks and gap.end() <= last:
                continue  # the beginning of a line, of which note was taken
            sentence = _SENTENCE_END.search(self.text, max(start, gap.start() - 4), gap.start() + (not gap["space"]))
            rank = INNER if code else min(PARAGRAPH, LINE + breaks - 1) if breaks else SENTENCE if sentence else WORD
            at = min(gap.end(), last)
            if code and at < (self.start + last) // 2:
                continue  # a long line of code is better cut anywhere than at the one space at its beginning
            # Not within the indentation of the next line, which may be that of a fence.
            newline = self.text.rfind("\n", gap.start(), at)
            yield _Break(at if newline < 0 else newline + 1, rank, item)

    def _leaves_item(self, place: _Break) -> bool:
        """Whether a cut leaves the list item whole, or cannot as it is too long in any case."""
        return place.item is None or place.item <= self.first or place.item == place.at

    def _worth(self, place: _Break, last: int) -> tuple[int, int]:
        """Return by what places are compared: before the message is half full, none is worth more than a word."""
        return (place.rank if place.at >= (self.start + last) // 2 else min(place.rank, WORD)), place.at

    def _cluster(self, at: int) -> int:
        """Return the last place up to `at` that is not within a character."""
        return self.start + grapheme_boundary_before(self.text[self.start : at + 1], at + 1 - self.start)

    def _fence_at(self, stop: int) -> Fence | None:
        index = bisect_right(self.lines, stop, key=lambda line: line.start) - 1
        return self.fences.after(self.lines[index], stop)


def _outside(stretches: list[tuple[int, int]], at: int, first: int) -> int:
    """Return the place, or that before the stretch in which it lies; those that begin with the part do not count."""
    for start, stop in stretches:
        if first < start < at < stop:
            at = start
    return at
