"""Answers from a folder of Markdown: SQLite's full-text search finds the passages, and they are the answer."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.exceptions import ConfigurationError
from aheadless.server.engines.simple import words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from aheadless._session import Message

__all__ = ["AnswersEngine", "default_folder"]

# A folder of documentation, not a disk: 2,000 files of at most 1 MiB.
MAX_FILES: Final = 2000
MAX_FILE_SIZE: Final = 1024 * 1024

# What a reader takes in at once.
PASSAGES: Final = 2
MAX_PASSAGE: Final = 1500

# A question has a few words that matter; the rest only costs time.
MAX_TERMS: Final = 32

_STOP_WORDS: Final = frozenset(
    "a an and are as at be but by can could do does for from had has have how i if in into is it its me my of on or our "
    "please should so tell that the their them then there these they this to was we what when where which who why will "
    "with would you your about".split()
)


@attrs.frozen
class Passage:
    """A piece of a file below one heading."""

    file: str
    heading: str
    text: str


class AnswersEngine:
    """Answer with the best passages of a folder's Markdown files, or say that nothing was found.

    The index is made from the files at the first question, in a thread, and lives in memory. `delay` seconds pass
    between two words.
    """

    def __init__(self, folder: str | Path | None = None, *, delay: float = 0.0) -> None:
        self._folder = default_folder() if folder is None else Path(folder)
        if not self._folder.is_dir():
            raise ConfigurationError(f"the folder {self._folder} that is to be answered from does not exist")
        self._delay = delay
        self._index: sqlite3.Connection | None = None
        self._lock = threading.Lock()

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the words of the answer to the last message."""
        answer = await asyncio.to_thread(self._answer, history[-1].text)
        for word in words(answer):
            if self._delay:
                await asyncio.sleep(self._delay)
            yield word

    async def aclose(self) -> None:
        """Drop the index."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        with self._lock:
            if self._index is not None:
                self._index.close()
                self._index = None

    def _answer(self, question: str) -> str:
        found = self._search(question)
        if not found:
            return "I found nothing about that in the documentation. Try other words, or fewer."
        return "\n\n".join(f"**{passage.heading}** ({passage.file})\n\n{passage.text}" for passage in found)

    def _search(self, question: str) -> list[Passage]:
        terms = [term for term in re.findall(r"\w+", question.lower()) if term not in _STOP_WORDS][:MAX_TERMS]
        if not terms:
            return []
        # Quoted, so that no word is taken for an operator of the query language.
        query = " OR ".join(f'"{term}"' for term in terms)
        with self._lock:
            if self._index is None:
                self._index = _build_index(self._folder)
            rows = self._index.execute(
                "SELECT file, heading, body FROM passages WHERE passages MATCH ?"
                " ORDER BY bm25(passages, 0.5, 6.0, 1.0) LIMIT ?",
                (query, PASSAGES),
            ).fetchall()
        return [Passage(*row) for row in rows]


def default_folder() -> Path:
    """Return the documentation of aheadless: in the installed package, or in the source tree it runs from."""
    package = Path(__file__).parents[1]
    for folder in (package / "_docs", package.parents[2] / "docs"):
        if folder.is_dir():
            return folder
    raise ConfigurationError("the documentation of aheadless is not installed; give a folder of Markdown files")


def _build_index(folder: Path) -> sqlite3.Connection:
    index = sqlite3.connect(":memory:", check_same_thread=False)
    index.execute("CREATE VIRTUAL TABLE passages USING fts5 (file, heading, body, tokenize = 'porter unicode61')")
    files = sorted(path for path in folder.rglob("*.md") if path.is_file() and path.stat().st_size <= MAX_FILE_SIZE)
    index.executemany(
        "INSERT INTO passages VALUES (?, ?, ?)",
        (
            attrs.astuple(passage)
            for path in files[:MAX_FILES]
            for passage in split_passages(path.relative_to(folder).as_posix(), path.read_text("utf-8", "replace"))
        ),
    )
    return index


def split_passages(file: str, text: str) -> Iterator[Passage]:
    """Return what stands below each heading; headings in code are no headings, and passages have a size."""
    heading, lines, fenced = file, list[str](), False
    for line in [*text.splitlines(), "# "]:
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        if fenced or not re.match(r"#{1,6}\s", line):
            lines.append(line)
            continue
        if body := "\n".join(lines).strip():
            yield Passage(file, heading, _shorten(body))
        heading, lines = line.lstrip("#").strip(), []


def _shorten(body: str) -> str:
    if len(body) <= MAX_PASSAGE:
        return body
    end = body.rfind("\n\n", 0, MAX_PASSAGE)
    return body[: end if end > 0 else MAX_PASSAGE].rstrip() + "\n\n…"
