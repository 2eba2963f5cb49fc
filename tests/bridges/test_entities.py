"""Markdown becomes a text and its entities, and can never be refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless.bridges._entities import Entity, render, utf16_length

MARKS = [
    "```",
    "```py",
    "~~~",
    "\n",
    "`",
    "``",
    "*",
    "**",
    "***",
    "~~",
    "[",
    "](",
    ")",
    "https://a.b/c",
    "# ",
    "\\",
    "_",
]
WORDS = [" ", "  ", "word", "@ada", "é", "😀", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}", "\u2028", "!"]
MARKDOWN = st.lists(st.sampled_from(MARKS + WORDS) | st.text(max_size=5), max_size=30).map("".join)


def pieces(markdown: str, *, mentions: bool = True) -> list[tuple[str, str]]:
    """Return the kind and the piece of text of each entity."""
    text, entities = render(markdown, mentions=mentions)
    return [(entity.type, piece(text, entity)) for entity in entities]


def piece(text: str, entity: Entity) -> str:
    data = text.encode("utf-16-le", "surrogatepass")
    return data[2 * entity.offset : 2 * (entity.offset + entity.length)].decode("utf-16-le", "surrogatepass")


@pytest.mark.parametrize(
    ("markdown", "text", "expected"),
    [
        ("**bold** and *italic*", "bold and italic", [("bold", "bold"), ("italic", "italic")]),
        ("***both***", "both", [("bold", "both"), ("italic", "both")]),
        ("**a *b* c**", "a b c", [("bold", "a "), ("bold", "b"), ("italic", "b"), ("bold", " c")]),
        ("**with `code` in it**", "with code in it", [("bold", "with "), ("code", "code"), ("bold", " in it")]),
        ("~~no~~", "no", [("strikethrough", "no")]),
        ("`` a`b ``", "a`b", [("code", "a`b")]),
        ("## A **heading** ##\nText", "A heading\nText", [("bold", "A heading")]),
        ("😀 **b**", "😀 b", [("bold", "b")]),
        (r"\*stars\*", "*stars*", []),
    ],
)
def test_marks_that_are_understood(markdown: str, text: str, expected: list[tuple[str, str]]):
    """They are gone, and what they meant is an entity."""
    assert render(markdown)[0] == text
    assert pieces(markdown) == expected


@pytest.mark.parametrize(
    "text", ["2 * 3 * 4", "2*3*4", "__init__", "snake_case_name", "**half", "* an item", "a ` b", "[x](y)"]
)
def test_marks_that_are_none(text: str):
    """They stay as they are."""
    assert render(text) == (text, [])


def test_block_of_code():
    """It is shown without its fences, with its language, and nothing in it is taken for a mark."""
    text, entities = render("Look:\n```python\nx = '**a**'\n```\nDone")

    assert text == "Look:\nx = '**a**'\nDone"
    assert entities == [Entity("pre", 6, 11, "python")]


def test_block_of_code_that_is_not_closed_yet():
    """It goes to the end: so it looks while it is written."""
    assert pieces("```\nfirst\nsecon") == [("pre", "first\nsecon")]


def test_fence_in_a_longer_fence():
    """Only as long a fence closes a block."""
    assert pieces("````md\n```py\nx\n```\n````") == [("pre", "```py\nx\n```")]


def test_block_in_a_list():
    """Its code loses the indentation of the block, and keeps its own."""
    assert pieces("1. so:\n   ```\n   if x:\n       y\n  z\n   ```") == [("pre", "if x:\n    y\nz")]


def test_block_in_a_quote():
    """Its code is not quoted any more."""
    assert pieces("> ```py\n> if x:\n>     y\n> ```\nDone") == [("pre", "if x:\n    y")]


def test_block_that_begins_an_item():
    """The item keeps its mark."""
    text, entities = render("- ```py\n  x\n  ```\n- z")

    assert text == "- x\n- z"
    assert entities == [Entity("pre", 2, 1, "py")]


def test_link():
    """Its label is shown; only what leads to the web is a link."""
    text, entities = render("[docs](https://a.b/c_(d)) [call](tg://user?id=1)")

    assert text == "docs [call](tg://user?id=1)"
    assert entities == [Entity("text_link", 0, 4, url="https://a.b/c_(d)")]


def test_names_in_a_group():
    """Nobody is notified: a name is code, however it is put together; an address stays one."""
    markdown = "@ada, **@be**nny, @`carl`, mail@example.org, https://a.b/@dan"

    assert pieces(markdown, mentions=False) == [("code", "@ada"), ("code", "@benny"), ("code", "@carl")]
    assert render(markdown, mentions=False)[0] == render(markdown)[0]


@given(MARKDOWN, st.booleans())
def test_any_text(markdown: str, mentions: bool):
    """The shown text is no longer than the given one and has nothing new; each entity is a piece of it."""
    text, entities = render(markdown, mentions=mentions)

    rest = iter(markdown)
    assert all(char in rest for char in text)  # in the same order
    for entity in entities:
        assert 0 <= entity.offset < entity.offset + entity.length <= utf16_length(text)
    spans = sorted({(entity.offset, entity.offset + entity.length) for entity in entities})
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@given(st.text())
def test_length(text: str):
    """It is that of the encoding."""
    assert utf16_length(text) == len(text.encode("utf-16-le", "surrogatepass")) // 2
