"""Answers from a folder of Markdown: SQLite's full-text search finds the passages, and they are the answer."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.exceptions import ConfigurationError
from aheadless.server.engines.simple import words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from aheadless._session import Message

__all__ = ["AnswersEngine", "default_folder"]

logger: logging.Logger = logging.getLogger("aheadless.server")

# A folder of documentation, not a disk: 2,000 files of at most 1 MiB, and 32 MiB together.
MAX_FILES: Final = 2000
MAX_FILE_SIZE: Final = 1024 * 1024
MAX_SIZE: Final = 32 * 1024 * 1024

# What a reader takes in at once.
PASSAGES: Final = 2
# Those are chosen from so many, which is all that a folder of documentation has on a word.
CANDIDATES: Final = 200
MAX_PASSAGE: Final = 1500

# A question has a few words that matter; the rest only costs time.
MAX_TERMS: Final = 32

NOTHING_FOUND: Final = "I found nothing about that in the documentation. Try other words, or fewer."

_STOP_WORDS: Final = frozenset(
    """
    a an and are as at be but by can could do does for from had has have how i if in into is it its me my of on or our
    please should so tell that the their them then there these they this to was we what when where which who why will
    with would you your about
    """.split()  # noqa: SIM905 - one word a line would be two screens
)


@attrs.frozen
class Passage:
    """A piece of a file below one heading."""

    file: str
    heading: str
    text: str


class AnswersEngine:
    """Answer with the best passages of a folder's Markdown files, or say that nothing was found.

    The index is made from the files at the first question, and lives in memory; a thread of the engine's own makes and
    searches it. `delay` seconds pass between two words. Without a folder the documentation of aheadless is used.
    Raises ConfigurationError without a folder to answer from.
    """

    def __init__(self, folder: str | Path | None = None, *, delay: float = 0.0) -> None:
        self._folder = default_folder() if folder is None else Path(folder)
        if not self._folder.is_dir():
            raise ConfigurationError(f"the folder {self._folder} that is to be answered from does not exist")
        # In a source tree the README stands beside the folder, in the installed package inside of it.
        self._files = (self._folder.parent / "README.md",) if folder is None else ()
        self._delay = delay
        self._index: sqlite3.Connection | None = None
        self._worker = ThreadPoolExecutor(1, "aheadless-answers")  # starts its thread when there is work
        self._closed = False

    def __repr__(self) -> str:
        return f"<AnswersEngine {self._folder}{', closed' * self._closed}>"

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the words of the answer to the last message."""
        answer = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, history[-1].text)
        for word in words(answer):
            if self._delay:
                await asyncio.sleep(self._delay)
            yield word

    async def aclose(self) -> None:
        """Drop the index; no more answers after this. Closing twice does no harm."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._worker, self._drop_index)
            self._worker.shutdown(wait=False)

    def _drop_index(self) -> None:
        if self._index is not None:
            self._index.close()

    def _answer(self, question: str) -> str:
        found = self._search(question)
        if not found:
            return NOTHING_FOUND
        return "\n\n".join(f"**{passage.heading}** ({passage.file})\n\n{passage.text}" for passage in found)

    def _search(self, question: str) -> list[Passage]:
        terms = [term for term in re.findall(r"\w+", question.lower()) if term not in _STOP_WORDS][:MAX_TERMS]
        if not terms:
            return []
        if self._index is None:
            self._index = _build_index(self._folder, self._files)
        rows = self._index.execute(
            # A word in a heading weighs more than one in the text, and that more than one in a file's name.
            "SELECT file, heading, body FROM passages WHERE passages MATCH ?"
            " ORDER BY bm25(passages, 0.5, 6.0, 1.0) LIMIT ?",
            # Quoted, so that no word is taken for an operator of the query language.
            (" OR ".join(f'"{term}"' for term in terms), CANDIDATES),
        ).fetchall()
        # The search counts words. Who asks what a session is wants the passage of that name first.
        asked = set(re.findall(r"\w+", question.lower()))
        found = sorted((Passage(*row) for row in rows), key=lambda passage: _echo(passage.heading, asked), reverse=True)
        return found[:PASSAGES]


def _echo(heading: str, asked: set[str]) -> int:
    """Return how many words of the question a heading repeats, if it speaks of nothing else; 0 otherwise."""
    words = set(re.findall(r"\w+", heading.lower()))
    subjects = words - _STOP_WORDS
    return len(words & asked) if subjects and subjects <= asked else 0


def default_folder() -> Path:
    """Return the documentation of aheadless: in the installed package, or in the source tree it runs from."""
    package = Path(__file__).parents[1]
    source = package.parents[1]
    for folder in (package / "_docs", source.parent / "docs"):
        if folder.is_dir() and (folder.parent == package or source.name == "src"):
            return folder
    raise ConfigurationError("the documentation of aheadless is not installed; give a folder of Markdown files")


def _build_index(folder: Path, files: Iterable[Path]) -> sqlite3.Connection:
    index = sqlite3.connect(":memory:")
    try:
        index.execute("CREATE VIRTUAL TABLE passages USING fts5 (file, heading, body, tokenize = 'porter unicode61')")
        index.executemany(
            "INSERT INTO passages VALUES (?, ?, ?)",
            (
                attrs.astuple(passage)
                for name, text in _read_files(folder, files)
                for passage in split_passages(name, text)
            ),
        )
    except BaseException:
        index.close()
        raise
    return index


def _read_files(folder: Path, files: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Return the names and texts of the files, and of the Markdown in a folder, as many as the bounds allow."""
    found = [(path, path.name) for path in files if path.is_file()]
    found += [(path, path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*.md"))]
    count = size = 0
    for path, name in found:
        try:
            length = path.stat().st_size
            if count >= MAX_FILES or length > MAX_FILE_SIZE or size + length > MAX_SIZE:
                logger.warning("%s is left out: there is too much to answer from", path)
                continue
            text = path.read_text("utf-8", "replace")
        except OSError as exc:
            logger.warning("%s is left out: %s", path, exc)
            continue
        count += 1
        size += length
        yield name, text


def split_passages(file: str, text: str) -> Iterator[Passage]:
    """Return what stands below each heading; headings in code are no headings, and passages have a size."""
    heading, lines, fence = file, list[str](), ""
    for line in text.split("\n"):
        if found := re.match(r"\s*(`{3,}|~{3,})", line):
            if not fence:
                fence = found[1]
            elif found[1].startswith(fence):
                fence = ""
        if fence or not re.match(r"#{1,6}\s", line):
            lines.append(line)
            continue
        yield from _passage(file, heading, lines)
        heading, lines = line.strip().strip("#").strip(), []
    yield from _passage(file, heading, lines)


def _passage(file: str, heading: str, lines: Iterable[str]) -> Iterator[Passage]:
    if body := "\n".join(lines).strip():
        yield Passage(file, heading, _shorten(body))


def _shorten(body: str) -> str:
    if len(body) <= MAX_PASSAGE:
        return body
    end = body.rfind("\n\n", 0, MAX_PASSAGE)
    return body[: end if end > 0 else MAX_PASSAGE].rstrip() + "\n\n…"
