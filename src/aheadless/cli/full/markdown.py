"""Markdown from a server, made harmless before it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from markdown_it import MarkdownIt
from markdown_it.token import Token

from aheadless.cli.output import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from markdown_it.rules_core import StateCore

__all__ = ["make_parser"]

# Of one list, table or quote: some 300 items. Each of them becomes several widgets, and all anew with every frame as
# long as the list grows: 900 items took two seconds a frame.
MAX_TOKENS: Final = 1500

# Each level is a widget within a widget, and what they cost grows faster than their number. A list has two for each of
# its own levels.
MAX_LEVEL: Final = 8


def make_parser() -> MarkdownIt:
    """Return a parser of which nothing comes that could command a terminal, or be clicked.

    HTML is text like any other. The address of a link stands behind it, to be read before it is opened.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.core.ruler.push("harmless", _make_harmless)
    return parser


def _make_harmless(state: StateCore) -> None:
    state.tokens = [*_without_giants(state.tokens, state.src.split("\n"))]
    for token in state.tokens:
        # After the parser: "&#x202e;" has become the character only now.
        token.content = visible(token.content)
        if token.children is not None:
            token.children = [*_without_links(token.children)]


def _without_giants(tokens: Iterable[Token], lines: list[str]) -> Iterator[Token]:
    """Yield the blocks of a text, those that are too large to be laid out as the text that they are."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level > 0 or token.nesting > 0:
            continue
        deep = max(token.level for token in block) > MAX_LEVEL
        if (deep or len(block) > MAX_TOKENS) and block[0].map is not None:
            first, end = block[0].map
            yield Token("fence", "code", 0, content="\n".join(lines[first:end]), map=[first, end], block=True)
        else:
            yield from block
        block = []


def _without_links(tokens: Iterable[Token]) -> Iterator[Token]:
    address, label = "", ""
    for token in tokens:
        match token.type:
            case "link_open":
                address, label = str(token.attrs.get("href", "")), ""
            case "link_close":
                if address not in {label, f"mailto:{label}"}:
                    yield _text(f" ({address})")
            case "image":
                yield _text(f"[{token.content}] ({token.attrs.get('src', '')})")
            case _:
                token.content = visible(token.content)
                label += token.content
                yield token


def _text(content: str) -> Token:
    return Token("text", "", 0, content=visible(content))
