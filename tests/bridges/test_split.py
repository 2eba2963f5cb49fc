"""A text as messages: nothing is lost or doubled, and what belongs together stays together."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import FrameType

import attrs
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from wcwidth import iter_graphemes

from aheadless import ConfigurationError, InvalidRequestError
from aheadless.bridges import split_text
from aheadless.bridges._split import closed, cut
from aheadless.protocol.codec import utf16_length

# Pieces of what matters to the splitter, in any order: mostly not Markdown that anybody would write.
PIECES = st.sampled_from(
    [
        *("a", "word ", "\n", "\n\n", " ", "  ", "\t", "\r\n", "\u3000", "\xa0", ". ", "。", "# "),
        *("```", "```py\n", "\n```\n", "````", "```` x y\n", "~~~", "~~~\n", "`", "``", "> ", "> ```\n", "- ```js\n"),
        *("[", "](", ")", "![", "[t](u)", "](http://x.y/z)", "\\", "<@123>", "<", " https://ab.c/d?e ", " www"),
        *("- ", "1. ", "* ", " - item text\n", "  more\n"),
        *("e\u0301", "👨‍👩‍👧", "🇩🇪", "🇩", "\u200d", "\u0301", "க்ஷ", "각"),
    ]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=60).map("".join), st.text(max_size=60))
LIMITS = st.integers(1, 60)
LENGTHS: st.SearchStrategy[Callable[[str], int]] = st.sampled_from([len, utf16_length, lambda text: len(text.encode())])


# --- any text ---------------------------------------------------------------------------------------------------------


@given(TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()), LIMITS, LENGTHS)
def test_no_part_is_too_long_and_nothing_is_lost(text, limit, length):
    """The sources give the text back; a part is longer than the limit only if it is a single code point that is."""
    parts = cut(text, limit, length=length)

    assert "".join(part.source for part in parts) == text
    for part in parts:
        assert part.source
        assert length(part.text) <= limit or (len(part.source) == 1 and length(part.source) > limit)


@given(TEXTS.filter(lambda text: "```" not in text and "~~~" not in text), LIMITS)
def test_without_fences_the_parts_are_the_text(text, limit):
    """Joining them gives it back, character by character."""
    assert "".join(split_text(text, limit)) == text


@given(TEXTS, LIMITS, LENGTHS)
def test_what_fits_is_left_alone(text, limit, length):
    """A text that fits is one part, as it is; so is each part of another text."""
    for part in split_text(text, limit, length=length):
        assert length(part) > limit or split_text(part, limit, length=length) == [part]


@given(TEXTS, TEXTS, LIMITS, LENGTHS)
def test_parts_stay_when_more_is_written(text, more, limit, length):
    """Of a reply that grows, only the last message changes: the others are finished."""
    assume(text and not text[-1].isspace())
    before = cut(text, limit, length=length)

    assert cut(text + more, limit, length=length)[: len(before) - 1] == before[:-1]


@given(TEXTS, st.integers(50, 80))
def test_characters_of_several_code_points(text, limit):
    """No emoji, flag or letter with accents is taken apart."""
    assume(max((len(cluster) for cluster in iter_graphemes(text)), default=0) < 10)
    assume("````" not in text)  # of a fence's lines so much may be left that a character is longer than the rest
    borders = {0, *accumulate(len(cluster) for cluster in iter_graphemes(text))}

    ends = accumulate(len(part.source) for part in cut(text, limit))

    assert {*ends} <= borders


@given(st.lists(st.sampled_from(["word ", "Long-word. ", "\n", "\n\n", "- item ", "[t](u) "]), max_size=60), LIMITS)
def test_no_part_is_blank(pieces, limit):
    """Platforms take no empty message: white space stays with what is before it."""
    assume(limit > 16)
    text = "".join(pieces).lstrip()
    assume(text and not re.search(r"\s{8,}", text))

    assert all(part.strip() for part in split_text(text, limit))


# --- Markdown ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class Block:
    """A piece of a document, and what of it has to stay in one message."""

    text: str
    whole: tuple[str, ...] = ()
    code: str = ""
    language: str = ""


WORDS = st.lists(st.sampled_from(["lorem", "ipsum", "a", "it's", "3.14", "x[0]", "naïve", "2 < 3", "(so)"]), min_size=1)
INLINE = st.builds(
    str.format,
    st.sampled_from(
        [
            *("[a link {}](https://example.org/{})", "![pic {}](p{}.png)", "[![b {}](x{}.svg)](https://ci/)"),
            *("`code {} = {}`", "``a ` {} b {}``", "https://example.org/a/{}?q={}", "<https://x.org/{}|the label {}>"),
            *("<@{}{}>", "<:smile_{}:{}>", "<#C{}|general-{}>", "<t:{}{}:R>", "[b (c) {}](http://x/_(y)_{})"),
        ]
    ),
    st.integers(100, 999),
    st.integers(100, 999),
)


@st.composite
def paragraphs(draw: st.DrawFn) -> Block:
    pieces = draw(st.lists(st.one_of(WORDS.map(" ".join), INLINE), min_size=1, max_size=8))
    return Block(" ".join(pieces), tuple(piece for piece in pieces if re.match(r"[\[!`<h]", piece)))


@st.composite
def lists(draw: st.DrawFn) -> Block:
    mark = draw(st.sampled_from(["- ", "* ", "1. "]))
    items = [
        mark + draw(WORDS.map(" ".join)) + draw(st.sampled_from(["", "\n  and more", "\n  and\n  more"]))
        for _ in range(draw(st.integers(1, 5)))
    ]
    return Block("\n".join(items), tuple(items))


@st.composite
def code(draw: st.DrawFn) -> Block:
    language = draw(st.sampled_from(["", "py", "js title=x"]))
    mark = draw(st.sampled_from(["```", "~~~", "````"]))
    margin = draw(st.sampled_from(["", "> ", "   "]))
    lines = draw(
        st.lists(st.sampled_from(["x = 1", "", "    return [a](b)", "if `y`:", "``", "# c", "a" * 30]), min_size=1)
    )
    if mark == "````":
        lines = ["```", *lines, "```"]
    shown = [margin + line for line in (mark + language, *lines, mark)]
    return Block("\n".join(shown), (), "".join(lines), language)


BLOCKS = st.one_of(paragraphs(), lists(), code(), st.just(Block("## A heading")))
DOCUMENTS = st.lists(BLOCKS, min_size=1, max_size=6)


def joined(blocks: list[Block]) -> str:
    return "\n\n".join(block.text for block in blocks)


def fences(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the code of each fence, read in the plain way of CommonMark; code has no newlines here."""
    margin, mark, language = "", "", ""
    lines: list[str] = []
    for line in text.splitlines():
        bare = re.sub("^> ?" if ">" in margin else f"^{margin}", "", line)
        opens = re.fullmatch(r"(> |   )?(`{3,}|~{3,})([^`]*)", line)
        if not mark and opens:
            margin, mark, language, lines = opens[1] or "", opens[2], opens[3], []
        elif mark and re.fullmatch(rf" {{0,3}}{mark}{mark[0]}*\s*", bare):
            yield language, "".join(lines)
            margin = mark = ""
        elif mark:
            lines.append(bare)
    assert not mark, "a fence was left open"


LINE = "       return [a](b)\n"


@example(
    [Block("## A heading\n\n   ```js x=y\n" + LINE * 2 + "   ```", code="    return [a](b)" * 2, language="js x=y")], 55
)
@example(
    [Block("## A heading\n\n1. " + "x " * 24 + "\n\n   ```\n   # c\n" + LINE + "   ```", code="# c    return [a](b)")],
    87,
)
@example([Block("aaa bbb ccc ddd eee fff ggg hhh\n\n   ```\n   x\n   ```", code="x")], 34)
@given(DOCUMENTS, st.integers(60, 200))
def test_code_stays_code(blocks, limit):
    """Every part closes its fences, and their code is what it was, in the language that it was in."""
    parts = split_text(joined(blocks), limit)

    found: dict[str, str] = {}
    for part in parts:
        for language, lines in fences(part):
            found[language] = found.get(language, "") + lines
    wanted: dict[str, str] = {}
    for block in blocks:
        if block.code:
            wanted[block.language] = wanted.get(block.language, "") + block.code
    assert {key: value for key, value in found.items() if value} == wanted


@given(DOCUMENTS, st.integers(60, 200))
def test_links_code_spans_mentions_and_items_stay_whole(blocks, limit):
    """Each that fits is in one part."""
    text = joined(blocks)
    sources = [part.source for part in cut(text, limit)]

    for block in blocks:
        for piece in block.whole:
            if len(piece) < limit:
                assert sum(source.count(piece) for source in sources) >= text.count(piece), piece


@given(DOCUMENTS, st.integers(60, 200), st.data())
def test_every_state_of_a_reply_that_grows(blocks, limit, data):
    """Wherever the text so far ends, each message closes its fences, and only the last one is still to change."""
    text = joined(blocks)
    end = data.draw(st.integers(1, len(text)))

    parts = cut(text[:end].rstrip(), limit)

    for part in parts:
        [*fences(part.text)]
    assert cut(text, limit)[: max(len(parts) - 1, 0)] == parts[:-1]


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "text", "parts"),
    [
        (20, "One two.\n\nThree four five six.", ["One two.\n\n", "Three four five six."]),
        (20, "One two three\nfour five six", ["One two three\n", "four five six"]),
        (20, "One two thr. Four five six.", ["One two thr. ", "Four five six."]),
        (20, "One two three four five", ["One two three four ", "five"]),
        (4, "abcdefghij", ["abcd", "efgh", "ij"]),
        (20, "你好世界。你好世界，你好世界你好世界你好", ["你好世界。你好世界，你好世界你好世界你好"]),
        (10, "你好世界。你好世界，你好世界", ["你好世界。", "你好世界，你好世界"]),
        (30, "Intro:\n- one two three\n- four five six", ["Intro:\n- one two three\n", "- four five six"]),
        (30, "- one\n- two three four\n  and five", ["- one\n", "- two three four\n  and five"]),
        (20, "see [the link](http://x.y)", ["see ", "[the ", "link](http://x.y)"]),
        (24, "Look, [the link](http://x.y)", ["Look, ", "[the link](http://x.y)"]),
        (24, "Look, [no link](here\nor there)", ["Look, [no link](here\n", "or there)"]),
        (30, "A word about it\n\n## Heading\n\nText", ["A word about it\n\n", "## Heading\n\nText"]),
    ],
)
def test_where_a_text_is_cut(limit, text, parts):
    """Where a reader would: between paragraphs, lines, sentences, words; at less than a word only if it must be."""
    assert split_text(text, limit) == parts


@pytest.mark.parametrize(
    ("limit", "text", "parts"),
    [
        (20, "```py\nline1\nline2\n```", ["```py\nline1\n```", "```py\nline2\n```"]),
        (20, "```py\n" + "x" * 20 + "\n```", ["```py\n" + "x" * 10 + "\n```"] * 2),
        (30, "Some more words.\n```py\nline1\nline2\n```", ["Some more words.\n", "```py\nline1\nline2\n```"]),
        (24, "> ```py\n> a = 1\n> b = 2\n> ```", ["> ```py\n> a = 1\n> ```", "> ```py\n> b = 2\n> ```"]),
        (
            24,
            "> ```\n> " + "x" * 16 + "\n> ```",
            ["> ```\n> " + "x" * 10 + "\n> ```", "> ```\n> " + "x" * 6 + "\n> ```"],
        ),
        (28, "- ```py\n  a = 1\n  b = 2\n  ```\n- c", ["- ```py\n  a = 1\n  ```", "  ```py\n  b = 2\n  ```\n- c"]),
        (20, "~~~\n```\nx = 1\ny = 22\n~~~\nz", ["~~~\n```\nx = 1\n~~~", "~~~\ny = 22\n~~~\nz"]),
        (30, "````md\n```py\nx = 1\n```\nand\n````", ["````md\n```py\nx = 1\n```\n````", "````md\nand\n````"]),
        (16, "```python\nx = 1\ny = 2\n```", ["```python\nx \n```", "```\n= 1\n```", "```\ny = 2\n```"]),
        (
            30,
            "```\n{'a': '" + "x" * 36 + "'}\n```",
            ["```\n{'a': '" + "x" * 15 + "\n```", "```\n" + "x" * 21 + "'\n```", "```\n}\n```"],
        ),
        (8, "```py\nabcdef\n```", ["```py\n", "abcdef\n", "```"]),
        (32, "```js``` is no block, and this is text", ["```js``` is no block, and this ", "is text"]),
    ],
)
def test_where_code_is_cut(limit, text, parts):
    """At the end of a line if there is one; the fence is closed before the cut, and opened again behind it."""
    assert split_text(text, limit) == parts


def test_an_info_string_that_is_too_long():
    """It is kept where it stands, and left out where the fence is opened again."""
    parts = split_text("```" + "x" * 50 + "\n" + "line\n" * 20 + "```", 40)

    assert all(len(part) <= 40 and part.endswith("```") for part in parts)
    assert all(part.startswith("```\n") for part in parts[1:])


def test_a_fence_that_the_text_leaves_open():
    """It is left as it is, unless a cut has opened it again; while a reply is written, every message closes it."""
    assert split_text("One two three.\n\n```py\nx", 20) == ["One two three.\n\n", "```py\nx"]
    assert split_text("```py\nx = 1\ny = 2", 16) == ["```py\nx = 1\n```", "```py\ny = 2\n```"]
    assert [part.text for part in cut("```py\nx", 20)] == ["```py\nx\n```"]


@pytest.mark.parametrize("so_far", ["```", "```py", "```py\n", "```py\nx", "```py\nx\n", "```py\nx\n`", "```py\nx\n``"])
def test_a_fence_that_is_being_written(so_far):
    """Its text so far is code, and a closing line that has begun is completed."""
    assert closed(so_far).count("```") == 2
    assert [*fences(closed(so_far))] == [("py" if "py" in so_far else "", "x" if "x" in so_far else "")]


def test_an_empty_text():
    """It has no parts: there is nothing to send."""
    assert split_text("", 10) == []
    assert cut("", 10) == []
    assert closed("") == ""


def test_characters_that_count_twice():
    """Telegram counts UTF-16 units, and a part never ends in the middle of a character."""
    assert split_text("😀" * 5, 4, length=utf16_length) == ["😀😀", "😀😀", "😀"]
    assert split_text("😀😀", 1, length=utf16_length) == ["😀", "😀"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, "10", None, True])
def test_what_is_no_limit(limit):
    """It is told before anything is cut."""
    with pytest.raises(ConfigurationError, match="limit"):
        split_text("text", limit)


@pytest.mark.parametrize("text", [None, b"text", ["text"]])
def test_what_is_no_text(text):
    """It is told, and named."""
    with pytest.raises(InvalidRequestError, match=type(text).__name__):
        split_text(text, 10)


# --- cost -------------------------------------------------------------------------------------------------------------


def calls(text: str, limit: int) -> int:
    """Return how many functions are called to split a text."""
    count = 0

    def count_calls(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(count_calls)
    try:
        cut(text, limit)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "x",
            " ",
            "\n",
            "word ",
            "A sentence. ",
            "- item\n",
            "- ",
            "> > text\n",
            ">  ",
            "🇩🇪",
            "👨‍👩‍👧",
            "a\u0301\u0301",
        ),
        *("[", "[a ", "[a](", "[[a](b) ", "`", "`a``b```c", "<a ", "http://", "\\", "(", "]"),
        *("```\n", "```py\nx = 1\n```\n", "```", "~", "    x\n", "\r\n", "https://a.b/c ", "# x\n", "|a|b|\n"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("begin", ["", "```\n"], ids=repr)
def test_twice_the_text_is_twice_the_work(piece, begin):
    """No text is so unlucky that each of its parts costs as much as the text."""
    once, twice = (calls(begin + piece * (size // len(piece)), 50) for size in (2_000, 4_000))

    assert twice < 2.3 * once + 100
