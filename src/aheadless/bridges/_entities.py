"""Markdown as Telegram shows it: the text without its marks, and what each piece of it is. Pure.

A model writes Markdown. Telegram's own parse modes refuse a message whose marks are not balanced, which those of half
a reply never are. Entities cannot be refused for that: they are places in a text, and where this module
does not understand a mark it stays a character.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Entity", "render", "utf16_length"]

# Within quotes and items of lists too.
FENCE: Final = re.compile(
    r"(?P<quote>(?:[ \t]*+>)*+)(?P<indent>[ \t]*+)(?P<item>(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)*+)"
    r"(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^`\n]*)\n?"
)
HEADING: Final = re.compile(r" {0,3}#{1,6}[ \t]+(.+?)(?:[ \t]+#+)?[ \t]*\n?")
LANGUAGE: Final = re.compile(r"[\w+#.-]{1,64}")

# What is not paired, and underscores, as in __init__, are left alone.
INLINE: Final = re.compile(
    r"\\(?P<escaped>[*_`])"
    r"|(?<!`)(?P<ticks>`+)(?P<code>[^`]|[^`].*?[^`])(?P=ticks)(?!`)"
    r"|!?\[(?P<label>[^\[\]]+)\]\((?P<url>https?://[^\s()]+(?:\([^\s()]*\)[^\s()]*)*)\)"
    r"|\*\*\*(?=[^\s*])(?P<both>.+?)(?<=[^\s\\])\*\*\*(?!\*)"
    r"|\*\*(?=[^\s*])(?P<bold>.+?)(?<=[^\s\\])\*\*(?!\*)"
    r"|(?<![\w*])\*(?=[^\s*])(?P<italic>[^*]+?)(?<=[^\s\\])\*(?![\w*])"
    r"|~~(?=[^\s~])(?P<strikethrough>.+?)(?<=[^\s\\])~~(?!~)"
)
# Any name that Telegram could take for one, and addresses, whose parts are none.
NAME: Final = re.compile(r"https?://\S+|(?P<name>(?<!\w)@\w{2,})")
# These do not go together with others, and what is in them notifies nobody.
ALONE: Final = frozenset({"code", "pre", "text_link"})


@attrs.frozen
class Entity:
    """What a piece of a text is, in the words of the Bot API. Offset and length are UTF-16 units."""

    type: str
    offset: int
    length: int
    language: str | None = None
    url: str | None = None


@attrs.frozen
class _Run:
    """A piece of the text that is all alike."""

    text: str
    kinds: tuple[str, ...] = ()
    language: str | None = None
    url: str | None = None


def utf16_length(text: str) -> int:
    """Return a text's length as Telegram counts: in UTF-16 units."""
    return len(text) + sum(char > "\uffff" for char in text)


def render(markdown: str, *, mentions: bool = True) -> tuple[str, list[Entity]]:
    """Return the text that is shown, and its entities in order.

    The text is the given one without the marks that were understood, so it is never longer, and nothing in it is new.
    Understood are fenced blocks of code, code, bold, italic, strikethrough, headings, and
    links to http and https. Entities do not overlap, but for those of the very same piece.

    Without `mentions`, an @name becomes code: it reads the same, and nobody is notified.
    """
    runs = list(_merge(_blocks(markdown)))
    if not mentions:
        runs = list(_merge(_without_names(runs)))
    entities: list[Entity] = []
    offset = 0
    for run in runs:
        length = utf16_length(run.text)
        entities += [Entity(kind, offset, length, run.language, run.url) for kind in run.kinds]
        offset += length
    return "".join(run.text for run in runs), entities


def _blocks(markdown: str) -> Iterator[_Run]:
    """Yield the runs of a text: lines, and blocks of code. One that is not closed goes to the end."""
    opened: re.Match[str] | None = None
    code: list[str] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", markdown):
        fence = FENCE.fullmatch(line)
        if opened is None:
            opened = fence
            yield from _line(line) if fence is None else [_Run(fence["item"])]
        elif fence is not None and _closes(fence, opened):
            yield from _block(code, opened, line)
            opened, code = None, []
        else:
            code.append(_outdented(line, opened))
    if opened is not None:
        yield from _block(code, opened, "")


def _block(code: list[str], opened: re.Match[str], closing: str) -> Iterator[_Run]:
    language = LANGUAGE.match(opened["info"])
    yield _Run("".join(code).removesuffix("\n"), ("pre",), language=language and language[0])
    if closing.endswith("\n"):
        yield _Run("\n")


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    bare = not fence["item"] and not fence["info"].strip()
    return bare and fence["fence"].startswith(opened["fence"])


def _outdented(line: str, opened: re.Match[str]) -> str:
    """Return a line of code without the quote and the indentation of its block, as far as it has them."""
    for _ in range(opened["quote"].count(">")):
        line = line.lstrip(" \t").removeprefix(">")
    common = len(line) - len(line.lstrip(" \t"))
    return line[min(common, len(opened["indent"] + opened["item"])) :]


def _line(line: str) -> Iterator[_Run]:
    if heading := HEADING.fullmatch(line):
        yield from _inline(heading[1], ("bold",))
        if line.endswith("\n"):
            yield _Run("\n")
    else:
        yield from _inline(line)


def _inline(text: str, kinds: tuple[str, ...] = ()) -> Iterator[_Run]:
    end = 0
    for found in INLINE.finditer(text):
        yield _Run(text[end : found.start()], kinds)
        end = found.end()
        match found.lastgroup:
            case "escaped":
                yield _Run(found["escaped"], kinds)
            case "code":
                yield _Run(_unpadded(found["code"]), ("code",))
            case "url":
                yield _Run(found["label"], ("text_link",), url=found["url"])
            case kind:
                assert kind is not None  # noqa: S101 - each way to match has a name
                styles = ("bold", "italic") if kind == "both" else (kind,)
                yield from _inline(found[kind], tuple(dict.fromkeys((*kinds, *styles))))
    yield _Run(text[end:], kinds)


def _unpadded(code: str) -> str:
    """Return code without the spaces that part it from its marks, as in `` `x` ``."""
    return code[1:-1] if code.strip(" ") and code[0] == code[-1] == " " else code


def _without_names(runs: list[_Run]) -> Iterator[_Run]:
    """Yield the runs with every name as code, however many runs a name is made of."""
    names = [found.span("name") for found in NAME.finditer("".join(run.text for run in runs)) if found["name"]]
    start = 0
    for run in runs:
        end = start + len(run.text)
        at = start
        for first, last in names if ALONE.isdisjoint(run.kinds) else ():
            if first < end and last > start:
                yield attrs.evolve(run, text=run.text[at - start : max(first, start) - start])
                yield _Run(run.text[max(first, start) - start : min(last, end) - start], ("code",))
                at = min(last, end)
        yield attrs.evolve(run, text=run.text[at - start :])
        start = end


def _merge(runs: Iterable[_Run]) -> Iterator[_Run]:
    """Join neighbours that are alike, and leave out those that are empty."""
    for _, alike in groupby((run for run in runs if run.text), key=lambda run: attrs.evolve(run, text="")):
        first, *more = alike
        yield attrs.evolve(first, text=first.text + "".join(run.text for run in more))
