"""Answers on the page: Markdown becomes elements, as it grows and as a whole; nothing else becomes anything."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, expect

from aheadless.testing import Script, ScriptedServer, events, stream_answer
from tests.bridges.page.support import answer, ask, environment, open_page, ready, serve, visitor

# "slow", as what is tested here is no Python: once is enough.
pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.sockets, pytest.mark.slow]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def blank(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Page]:
    """A page that asks nothing; its modules are there to be called."""
    async with serve(environment("http://127.0.0.1:9", tmp_path_factory.mktemp("blank"))) as url:
        async with visitor(browser) as context:
            page = await open_page(context, url)
            await page.evaluate("""async () => {
                const { MarkdownView } = await import(new URL("markdown.js", location));
                globalThis.draw = (pieces, whole = true) => {
                    const root = document.createElement("div");
                    const view = new MarkdownView(root);
                    for (const piece of pieces) {
                        view.append(piece);
                        view.render();
                    }
                    if (whole) view.finish(pieces.join("").trim());
                    return root;
                };
            }""")
            yield page


async def draw(page: Page, text: str) -> str:
    """Return the elements of a whole answer, written as HTML."""
    html: str = await page.evaluate("text => draw([text]).innerHTML", text)
    return html


# --- what there is ----------------------------------------------------------------------------------------------------

LINK = '<a href="{0}" title="{0}" target="_blank" rel="noopener noreferrer nofollow ugc">{1}</a>'

INLINE = {
    "**bold** and *italic* and __both__ _kinds_": (
        "<strong>bold</strong> and <em>italic</em> and <strong>both</strong> <em>kinds</em>"
    ),
    "***all*** of ~~it~~": "<strong><em>all</em></strong> of <del>it</del>",
    "**bold *and italic* in it**": "<strong>bold <em>and italic</em> in it</strong>",
    "2 * 3 * 4 and snake_case_name and **": "2 * 3 * 4 and snake_case_name and **",
    "`a * b * c` and ``a`b`` and ` alone": "<code>a * b * c</code> and <code>a`b</code> and ` alone",
    r"\*not italic\* and \`not code\` and C:\dir": "*not italic* and `not code` and C:\\dir",
    "one\ntwo": "one<br>two",
    '[the *guide*](https://example.org/a_b(c)?d=e "Title").': (
        LINK.format("https://example.org/a_b(c)?d=e", "the <em>guide</em>") + "."
    ),
    "**[bold](https://example.org/)**": "<strong>" + LINK.format("https://example.org/", "bold") + "</strong>",
    "*a [b* c](https://example.org/)": "*a " + LINK.format("https://example.org/", "b* c"),
    "(see https://example.org/x.)": "(see " + LINK.format("https://example.org/x", "https://example.org/x") + ".)",
    "<mailto:a@example.org>": LINK.format("mailto:a@example.org", "mailto:a@example.org"),
    "a [list] of [things](not here) [x]": "a [list] of [things](not here) [x]",
    "![a picture](https://example.org/p.png)": LINK.format("https://example.org/p.png", "a picture"),
    "[relative](/admin) [empty]()": "<span>relative</span> <span>empty</span>",
}


@pytest.mark.parametrize("text", INLINE)
async def test_inside_of_a_line(blank: Page, text: str):
    """Emphasis, code and links, with the exceptions that people expect."""
    assert await draw(blank, text) == f"<p>{INLINE[text]}</p>"


def code(language: str, text: str) -> str:
    return (
        f'<figure class="code"><figcaption><span class="language">{language}</span>'
        '<button class="copy" type="button">Copy</button></figcaption>'
        f'<pre tabindex="0" role="region" aria-label="Code"><code>{text}</code></pre></figure>'
    )


BLOCKS = {
    "# One\n###### Six #\n#No": ('<h3 class="level-1">One</h3><h6 class="level-6">Six</h6><p>#No</p>'),
    "a\n\nb\n***\nc": "<p>a</p><p>b</p><hr><p>c</p>",
    "- a\n- b\n  - c\n    more\n- d": (
        "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c<br>more</p></li></ul></li><li><p>d</p></li></ul>"
    ),
    "3. a\n\n   b\n4. c\n   - d\n\ne": (
        '<ol start="3"><li><p>a</p><p>b</p></li><li><p>c</p><ul><li><p>d</p></li></ul></li></ol><p>e</p>'
    ),
    "In\n1984. That": "<p>In<br>1984. That</p>",
    "- a\n1. b": '<ul><li><p>a</p></li></ul><ol start="1"><li><p>b</p></li></ol>',
    "> a\n> > b\nc\n\nd": "<blockquote><p>a</p><blockquote><p>b<br>c</p></blockquote></blockquote><p>d</p>",
    "```python\nif a < b:\n\n    c\n```\nafter": code("python", "if a &lt; b:\n\n    c") + "<p>after</p>",
    "~~~\n```\n~~~": code("", "```"),
    "````md\n```\nin\n```\n````": code("md", "```\nin\n```"),
    "1. a\n   ```sh\n   ls\n     -l\n   ```\n2. b": (
        '<ol start="1"><li><p>a</p>' + code("sh", "ls\n  -l") + "</li><li><p>b</p></li></ol>"
    ),
    "| a | b |\n|---|:-:|\n| 1 | `x` \\| y | 3 |\n| 2 |": (
        '<div class="table" tabindex="0" role="region" aria-label="Table"><table>'
        '<thead><tr><th class="start" scope="col">a</th><th class="center" scope="col">b</th></tr></thead>'
        '<tbody><tr><td class="start">1</td><td class="center"><code>x</code> | y</td></tr>'
        '<tr><td class="start">2</td><td class="center"></td></tr></tbody></table></div>'
    ),
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "<div onclick=x>\n<!-- a -->\n&lt;": "<p>&lt;div onclick=x&gt;<br>&lt;!-- a --&gt;<br>&amp;lt;</p>",
}


@pytest.mark.parametrize("text", BLOCKS)
async def test_blocks(blank: Page, text: str):
    """Headings below the page's own, lists, quotes, code and tables; HTML is text like any other."""
    assert await draw(blank, text) == BLOCKS[text]


# --- while it grows ---------------------------------------------------------------------------------------------------

EVERYTHING = "\n\n".join([*INLINE, *BLOCKS])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
async def test_any_way_of_cutting(blank: Page, size: int):
    """An answer that came in pieces looks in the end like one that came at once."""
    pieces = [EVERYTHING[start : start + size] for start in range(0, len(EVERYTHING), size)]

    assert await blank.evaluate("pieces => draw(pieces).innerHTML", pieces) == await draw(blank, EVERYTHING)


# What Markdown is made of, to be put together at random.
PARTS = [
    *("\n", "\n\n", "\r\n", " ", "  ", "    ", "\t", "a", "b c", "x_y", "é", "🎉", "<b>", "&amp;", "!", "\\", "<", ">"),
    *("*", "**", "_", "__", "~~", "`", "``", "[", "]", "(", ")", "](", "](https://x.example/)", "https://x.example/y"),
    *("> ", "- ", "1. ", "2) ", "#", "## ", "|", "|-|-|\n", "---", "```", "~~~"),
]


@pytest.mark.parametrize("seed", range(3))
async def test_any_text(blank: Page, seed: int):
    """Whatever is written, in pieces or at once, comes to the same."""
    random = Random(seed)
    texts = [[random.choice(PARTS) for _ in range(random.randint(1, 40))] for _ in range(300)]

    different = await blank.evaluate(
        """texts => texts.filter((pieces) =>
            draw(pieces).innerHTML !== draw([pieces.join("").trim()]).innerHTML)""",
        texts,
    )

    assert different == []


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["```py\n", "x = 1", "\n", "``"], code("py", "x = 1")),
        (["some **bold"], "<p>some <strong>bold</strong></p>"),
        (["call `run("], "<p>call <code>run(</code></p>"),
        (["text\n", "-"], "<p>text</p>"),
        (["text\n\n", "| a "], "<p>text</p>"),
        (["12"], ""),
    ],
)
async def test_what_is_not_closed_yet(blank: Page, pieces: list[str], shown: str):
    """Code and bold are shown as such before their end has come, and a line only once it is clear what it is."""
    assert await blank.evaluate("pieces => draw(pieces, false).innerHTML", pieces) == shown


async def test_what_stands_stays(blank: Page):
    """The elements of finished blocks, and those of a code block that grows, are never made anew."""
    same = await blank.evaluate("""async () => {
        const { MarkdownView } = await import(new URL("markdown.js", location));
        const root = document.createElement("div");
        const view = new MarkdownView(root);
        view.append("One.\\n\\n```\\na\\n");
        view.render();
        const [paragraph, figure] = root.children;
        const text = figure.querySelector("code").firstChild;
        for (const piece of ["b\\n", "c\\n", "```\\n\\nTwo.", " Three."]) {
            view.append(piece);
            view.render();
        }
        view.finish(view.source);
        return [root.children[0] === paragraph, root.children[1] === figure,
                figure.querySelector("code").firstChild === text, text.data, root.children.length];
    }""")
    assert same == [True, True, True, "a\nb\nc", 3]


# --- answers that mean harm -------------------------------------------------------------------------------------------

SCRIPT = "globalThis.harmed = true"
HOSTILE = [
    f"<script>{SCRIPT}</script>",
    f"<img src=x onerror='{SCRIPT}'>",
    f"<svg onload='{SCRIPT}'><script>{SCRIPT}</script></svg>",
    f'<iframe srcdoc="<script>parent.{SCRIPT}</script>"></iframe>',
    "<style>@import 'https://evil.example/x.css'</style><base href='https://evil.example/'>",
    f"<!-- --><a href='javascript:{SCRIPT}'>x</a>",
    f"[click](javascript:{SCRIPT})",
    f"[click](JaVaScRiPt:{SCRIPT})",
    f"[click](<java\tscript:{SCRIPT}>)",
    f"[click](\x01javascript:{SCRIPT})",
    f"[click](&#106;avascript:{SCRIPT})",
    f"[click](data:text/html,<script>{SCRIPT}</script>)",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x) [click](file:///etc/passwd) [click](blob:https://x/y)",
    "[click](//evil.example) [click](https://[)",
    f'[click](https://example.org/"onmouseover="{SCRIPT})',
    f"<javascript:{SCRIPT}>",
    "![x](https://evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    f"```html\n<script>{SCRIPT}</script>\n```",
    f"```<script>{SCRIPT}</script>\ncode\n```",
    f"| <script>{SCRIPT}</script> | b |\n|---|---|\n| <img src=x onerror={SCRIPT}> | [x](javascript:{SCRIPT}) |",
    f"# <img src=x onerror={SCRIPT}>",
    f"`<img src=x onerror={SCRIPT}>`",
    "{{constructor.constructor('harmed')()}} ${harmed}",
    "\u202eevil\u202c \x00 \ufeff",
    # What parsers of HTML turn into something else when they read it a second time.
    f"<noscript><p title=\"</noscript><img src=x onerror='{SCRIPT}'>\">",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={SCRIPT}&gt;'>",
    f"<template shadowrootmode=open><script>{SCRIPT}</script></template><x-harm is=x>",
    f"<xmp><p title='</xmp><svg/onload={SCRIPT}>'></xmp><plaintext>",
    # What would lead the page somewhere else, or fetch something.
    "<meta http-equiv=refresh content='0;url=https://evil.example'><link rel=prefetch href=https://evil.example>",
    f"<object data='javascript:{SCRIPT}'></object><embed src=https://evil.example/x.swf><video src=x onerror={SCRIPT}>",
    # What would stand in for the page's own elements and properties.
    "<form id=log name=log><input name=attributes><a id=turns></form>",
    "```__proto__\ncode\n```\n\n```constructor\ncode\n```",
    # Addresses that are not what they seem.
    "[click](javascript%3Aharmed) [click](&#x6a;avascript&colon;harmed) [click](\uff4aavascript:harmed)",
    "[click](view-source:x) [click](about:blank) [click](filesystem:https://x/y) [click](intent:x) [click](ws://x)",
    f"[click][harm]\n\n[harm]: javascript:{SCRIPT}",
    f"[click](https://example.org/ \"'><img src=x onerror={SCRIPT}>\") <https://example.org/'onmouseover={SCRIPT}>",
    f"[[click](javascript:{SCRIPT})](https://example.org/) [![x](data:,x)](javascript:{SCRIPT})",
    f"[**click](javascript:{SCRIPT})** *[click*](javascript:{SCRIPT}) [`](javascript:{SCRIPT})`](javascript:{SCRIPT})",
]

ALLOWED = [
    "P",
    "H3",
    "H4",
    "H5",
    "H6",
    "UL",
    "OL",
    "LI",
    "BLOCKQUOTE",
    "HR",
    "BR",
    "STRONG",
    "EM",
    "DEL",
    "CODE",
    "PRE",
    "FIGURE",
    "FIGCAPTION",
    "SPAN",
    "BUTTON",
    "A",
    "DIV",
    "TABLE",
    "THEAD",
    "TBODY",
    "TR",
    "TH",
    "TD",
]
ATTRIBUTES = {"class", "href", "title", "target", "rel", "start", "scope", "type", "tabindex", "role", "aria-label"}


async def elements(page: Page) -> list[dict[str, Any]]:
    """Return all elements of the last answer."""
    found: list[dict[str, Any]] = await answer(page).evaluate("""root => [...root.querySelectorAll("*")].map((made) => ({
        name: made.tagName,
        attributes: made.getAttributeNames(),
        protocol: made.protocol ?? null,
        space: made.namespaceURI,
    }))""")
    return found


async def test_no_script_of_an_answer_runs(context: BrowserContext, url: str, api: ScriptedServer):
    """Not as it is written, not when it is whole, not when the page is loaded again; and nothing is fetched."""
    asked_for: list[str] = []
    context.on("request", lambda request: asked_for.append(request.url))
    page = await open_page(context, url)
    text = "\n\n".join(HOSTILE)
    api.add(Script(stream_answer(events(*(text[start : start + 5] for start in range(0, len(text), 5))))))

    await ask(page, HOSTILE[0])
    await ready(page)
    written = await elements(page)
    await page.reload()
    await ready(page)

    assert await elements(page) == written
    assert len(written) > 40
    for made in written:
        assert made["name"] in ALLOWED
        assert {*made["attributes"]} <= ATTRIBUTES
        assert made["protocol"] in {None, "https:"}
        assert made["space"] == "http://www.w3.org/1999/xhtml"
    assert await page.evaluate("globalThis.harmed") is None
    assert [address for address in asked_for if not address.startswith(url)] == []
    assert await page.locator(".question").inner_text() == HOSTILE[0]
    # The text of each is there for all to see.
    for found in ("<iframe srcdoc", "<svg onload", "<!-- -->", "{{constructor"):
        await expect(answer(page)).to_contain_text(found)


PATHOLOGICAL = {
    "brackets": "[" * 10_000,
    "closed brackets": "[" * 10_000 + "]" * 10_000,
    "links": "[a](" * 10_000,
    "links in links": "[" * 10_000 + "a" + "](https://x.example)" * 10_000,
    "images": "![" * 10_000,
    "stars": "*" * 100_000,
    "emphasis": "*a " * 20_000 + "a* " * 20_000,
    "kinds of emphasis": "*a **b _c __d ~~e " * 5_000,
    "backticks": " ".join("`" * length for length in range(1, 400)),
    "quotes": ">" * 10_000 + " a",
    "quotes on lines": "> " * 500 + "a\n" + "> " * 500 + "b",
    "list in list": "".join(" " * (2 * depth) + "- a\n" for depth in range(400)),
    "dashes": "- " * 10_000 + "a",
    "spaces": "a" + " " * 100_000 + "b",
    "spaces before a line": " " * 100_000 + "#",
    "hashes": "# " + "# " * 20_000 + "a",
    "table": "|" * 20_000 + "\n|-|-|",
    "table rule": "a|b\n" + "-|" * 20_000 + " " * 20_000 + "x",
    "fence": "```" + " " * 50_000 + "`",
    "addresses": "<https://" * 10_000,
    "an address": "https://" + "a)" * 20_000,
    "escapes": "\\" * 50_000,
    "parentheses": "[a](" + "(" * 20_000,
    "spaces in a link": "[a](" + " " * 1900 + "](" * 2_000,
    "entities": "&" * 50_000,
    "lines": "a\n" * 20_000,
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
async def test_answers_that_take_long_elsewhere(blank: Page, name: str):
    """Each is drawn in a moment, and no deeper than a browser can lay out."""
    ms, depth = await blank.evaluate(
        """text => {
            let root, ms = Infinity;
            // A machine that does something else meanwhile spoils a try, not all of them.
            for (let tries = 0; tries < 5 && ms >= 2000; tries += 1) {
                const begun = performance.now();
                root = draw([text]);
                ms = performance.now() - begun;
            }
            let depth = 0;
            for (const made of root.querySelectorAll("*")) {
                let steps = 0;
                for (let above = made; above !== root; above = above.parentNode) steps += 1;
                depth = Math.max(depth, steps);
            }
            return [ms, depth];
        }""",
        PATHOLOGICAL[name],
    )

    assert ms < 2000  # some 50 ms where nothing else runs
    assert depth <= 50


@pytest.mark.parametrize(
    "line",
    [
        "A sentence of an answer, with **bold** and `code`.\n\n",
        "- an item of a list, rather long\n",
        "x = 'code'\n",
        "word ",
    ],
    ids=["paragraphs", "one list", "one block of code", "one paragraph"],
)
async def test_a_long_answer(blank: Page, line: str):
    """100 KB in pieces of 2000 characters are drawn in a fraction of the time in which they come."""
    text = ("```\n" if line.startswith("x") else "") + line * (100_000 // len(line))
    pieces = [text[start : start + 500] for start in range(0, len(text), 2000)]

    ms = await blank.evaluate(
        "pieces => { const begun = performance.now(); draw(pieces); return performance.now() - begun; }", pieces
    )

    assert ms < 10_000  # 10 to 1000 ms on a busy machine
