"""What stays whole within a paragraph of Markdown: links, URLs, code spans, mentions and emoji of a platform. Pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from typing import Final

__all__ = ["kept_whole"]

_TOKEN: Final = re.compile(
    r"\\[!-/:-@\[-`{-~]"
    r"|(?P<ticks>`++)"
    r"|(?P<bracket>!?\[)"
    r"|(?P<link>\])"
    r"|(?P<angle><(?=\S)[^<>\n]*+>?)"
    r"|(?P<url>(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}+://[^\s<>\]`]*+)"
)
_TICKS: Final = re.compile("`+")
_PAREN: Final = re.compile(r"\\.|[()\n]")
# It may become a URL, for all that is known.
_WORD_AT_END: Final = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{0,30}+(?::/?)?\Z")

Stretch = tuple[int, int]


def kept_whole(text: str, start: int, stop: int, *, first: int, half: int) -> list[Stretch]:
    """Return the stretches of a paragraph that must not be cut, each with its start and its end, in order.

    Nothing is known of the text from `stop` on. What begins before and has not ended there is taken for what it may
    become. Of several brackets, or backticks, that nothing closes, that is the first one from `half` on, or else the
    last one: text that is full of them is not cut into crumbs.
    """
    scan = _Scan(text, start, stop)
    scan.run()
    never_ended = [_one_of(opened, first, half) for opened in (scan.brackets, scan.ticks, scan.others)]
    return sorted([*scan.whole, *((at, stop + 1) for at in never_ended if at is not None)], reverse=True)


def _one_of(opened: list[int], first: int, half: int) -> int | None:
    later = [at for at in opened if at >= half]
    return later[0] if later else max((at for at in opened if at > first), default=None)


class _Scan:
    """Reads a paragraph from its start to its end."""

    def __init__(self, text: str, start: int, stop: int) -> None:
        self.text, self.start, self.stop = text, start, stop
        self.whole: list[Stretch] = []
        # Where something begins of which no end is known:
        self.brackets: list[int] = []
        self.ticks: list[int] = []
        self.others: list[int] = []
        self._runs: defaultdict[int, list[int]] = defaultdict(list)  # of backticks, by their length
        for run in _TICKS.finditer(text, start, stop):
            self._runs[len(run[0])].append(run.start())
        self._no_paren_before = start  # where a search for a closing parenthesis ended in vain

    def run(self) -> None:
        at = self.start
        while token := _TOKEN.search(self.text, at, self.stop):
            at = token.end()
            match token.lastgroup:
                case "ticks":
                    at = self._code_span(token.start(), at)
                case "bracket":
                    # A picture as a link's text is part of it.
                    inner = self.brackets and token[0] == "![" and self.brackets[-1] == token.start() - 1
                    self.brackets.append(self.brackets[-1] if inner else token.start())
                case "link" if self.brackets:
                    at = self._link(self.brackets.pop(), at)
                case "angle" if token[0].endswith(">"):
                    self.whole.append(token.span())
                case "angle" | "url" if at == self.stop:
                    self.others.append(token.start())
                case "url":
                    self.whole.append(token.span())
                case _:
                    pass
        if word := _WORD_AT_END.search(self.text, max(self.start, self.stop - 40), self.stop):
            self.others.append(word.start())

    def _code_span(self, start: int, after: int) -> int:
        runs = self._runs[after - start]
        index = bisect_right(runs, start)
        if index == len(runs):
            self.ticks.append(start)
            return after
        end = runs[index] + after - start
        if end == self.stop:
            # It may go on with one more backtick and end nothing.
            self.ticks.append(start)
        self.whole.append((start, end))
        return end

    def _link(self, start: int, after: int) -> int:
        """Return where to go on after the closing bracket of what may be a link."""
        if after == self.stop:
            self.brackets.append(start)
            return after
        if self.text[after] != "(" or after < self._no_paren_before:
            return after
        depth = 0
        for found in _PAREN.finditer(self.text, after, self.stop):
            if found[0] == "\n":
                self._no_paren_before = found.start()
                return after
            depth += {"(": 1, ")": -1}.get(found[0], 0)
            if depth == 0:
                self.whole.append((start, found.end()))
                return found.end()
        self.brackets.append(start)
        return self.stop
