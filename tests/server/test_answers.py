"""The engine that answers from Markdown: what it finds, what it leaves out, and that no question breaks it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import ConfigurationError, Message
from aheadless.server import AnswersEngine
from aheadless.server.engines import answers as module
from aheadless.server.engines.answers import NOTHING_FOUND, default_folder, split_passages


async def answer(engine: AnswersEngine, question: str) -> str:
    message = Message("user", question, created_at=datetime.now(timezone.utc))
    return "".join([token async for token in engine.reply([message])])


async def ask_once(folder: Path | None, question: str) -> str:
    engine = AnswersEngine(folder)
    try:
        return await answer(engine, question)
    finally:
        await engine.aclose()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("markdown")
    (folder / "zebras.md").write_text('# AND OR NOT NEAR\n\nA zebra\'s "stripes": 0 1 2 é 😀 heading body', "utf-8")
    return folder


@given(question=st.text(max_size=300) | st.text(alphabet="\"*():^-+{}, ANDORNEAR'headingbody\x00", max_size=60))
def test_no_question_breaks_it(folder: Path, question: str) -> None:
    """Quotes, operators, columns, emoji, control characters: there is an answer, or nothing was found."""
    found = asyncio.run(ask_once(folder, question))

    assert found == NOTHING_FOUND or found.startswith("**AND OR NOT NEAR** (zebras.md)")


@pytest.mark.parametrize("question", ["How do I stop a reply while it is streaming?", "timeouts", "ChatClient"])
async def test_its_own_documentation(question: str) -> None:
    """Out of the box it knows aheadless."""
    assert ".md)\n\n" in await ask_once(None, question)


async def test_a_heading_that_asks_the_same_comes_first(tmp_path: Path) -> None:
    """However often another passage has the words; one that asks for more, or for nothing, has no such right."""
    (tmp_path / "a.md").write_text(
        "# Session session\n\n" + "session " * 50 + "\n# What is it?\n\na session"
        "\n# What is a session of yours and mine alone?\n\nsession\n# What is a session?\n\nOne conversation.",
        "utf-8",
    )

    found = await ask_once(tmp_path, "What is a session, please?")

    assert found.startswith("**What is a session?** (a.md)\n\nOne conversation.\n\n**Session session** (a.md)")


async def test_the_readme_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands beside the folder in a source tree; a folder of one's own stands for itself."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Zebras\n\nAre striped.", "utf-8")
    monkeypatch.setattr(module, "default_folder", lambda: tmp_path / "docs")

    assert await ask_once(None, "zebra") == "**Zebras** (README.md)\n\nAre striped."
    assert await ask_once(tmp_path / "docs", "zebra") == NOTHING_FOUND


def test_where_the_documentation_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the package, else in the source tree, else an error that says what to do; never in a folder by chance."""
    package = tmp_path / "src" / "aheadless"
    monkeypatch.setattr(module, "__file__", str(package / "server" / "engines" / "answers.py"))
    (package / "server").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="give a folder"):
        default_folder()

    (tmp_path / "docs").mkdir()
    assert default_folder() == tmp_path / "docs"

    (package / "server" / "_docs").mkdir()
    assert default_folder() == package / "server" / "_docs"

    installed = tmp_path / "site-packages" / "aheadless"
    monkeypatch.setattr(module, "__file__", str(installed / "server" / "engines" / "answers.py"))
    with pytest.raises(ConfigurationError, match="not installed"):
        default_folder()


async def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Files that are too large, too many, or too much together are left out, and the log says which."""
    monkeypatch.setattr(module, "MAX_FILES", 3)
    monkeypatch.setattr(module, "MAX_FILE_SIZE", 100)
    monkeypatch.setattr(module, "MAX_SIZE", 150)
    for name, size in {"a": 60, "b": 101, "c": 60, "d": 60, "e": 10, "f": 10}.items():
        (tmp_path / f"{name}.md").write_text(f"word{name} ".ljust(size, "x"), "utf-8")

    engine = AnswersEngine(tmp_path)
    found = [name for name in "abcdef" if await answer(engine, f"word{name}") != NOTHING_FOUND]
    await engine.aclose()

    assert found == ["a", "c", "e"]
    assert [message.split()[0][-4:] for message in caplog.messages] == ["b.md", "d.md", "f.md"]


async def test_files_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Are left out; bytes that are no UTF-8 are not in the way."""
    (tmp_path / "a.md").symlink_to(tmp_path / "nowhere")
    (tmp_path / "b.md").mkdir()
    (tmp_path / "c.md").write_bytes(b"zebra \xff")

    assert "zebra \ufffd" in await ask_once(tmp_path, "zebra")
    assert [message.split()[0][-4:] for message in caplog.messages] == ["a.md", "b.md"]


async def test_the_event_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the index is made, others are served."""
    gate, threads = threading.Event(), []
    read_files = module._read_files

    def slow(folder: Path, files: Iterable[Path]) -> Iterator[tuple[str, str]]:
        threads.append(threading.current_thread())
        gate.wait()
        return read_files(folder, files)

    monkeypatch.setattr(module, "_read_files", slow)
    (tmp_path / "a.md").write_text("zebra", "utf-8")
    engine = AnswersEngine(tmp_path)
    questions = [asyncio.create_task(answer(engine, "zebra")) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()

    assert await asyncio.gather(*questions) == ["**a.md** (a.md)\n\nzebra"] * 3
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    await engine.aclose()


async def test_closed_unused(tmp_path: Path) -> None:
    """An engine that was never asked is closed like any other."""
    await AnswersEngine(tmp_path).aclose()


async def test_an_index_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails this reply; the next question tries again."""
    (tmp_path / "a.md").write_text("zebra", "utf-8")
    engine = AnswersEngine(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(module, "split_passages", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await answer(engine, "zebra")

    assert "zebra" in await answer(engine, "zebra")
    await engine.aclose()


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("", []),
        ("intro", ["f.md"]),
        ("# A #\none\n### B\ntwo", ["A", "B"]),
        ("#no heading\n####### neither\n# A\r\none", ["f.md", "A"]),
        ("# A\n```\n# code\n```\n# B\ntwo", ["A", "B"]),
        ("# A\n````\n```\n# code\n```\n````\n# B\ntwo", ["A", "B"]),
        ("# A\n~~~\n```\n# code\n~~~\n# B\ntwo", ["A", "B"]),
        ("# A\n```\n# never closed", ["A"]),
        ("# A\nx\u2028# no line\n# B\ny", ["A", "B"]),
    ],
)
def test_headings(text: str, headings: list[str]) -> None:
    """They begin passages, but for those in code; nothing is lost, and a heading without a text is none."""
    assert [passage.heading for passage in split_passages("f.md", text)] == headings
