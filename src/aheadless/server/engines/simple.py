"""Engines without a model: one repeats, one plays a script."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from aheadless._session import Message

__all__ = ["EchoEngine", "ScriptedEngine", "Step"]

Step: TypeAlias = "str | float | asyncio.Event | BaseException"
"""A token, seconds to pause, an event to wait for, or what the model fails with."""


class EchoEngine:
    """Say what the user said, word by word."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the words of the last message."""
        for word in words(history[-1].text):
            yield word


class ScriptedEngine:
    """Play one script for each reply, the last one again and again; for tests."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        self._scripts = scripts or ((),)
        self.asked: list[Sequence[Message]] = []
        """The histories that came, one for each reply."""

    def __repr__(self) -> str:
        return f"<ScriptedEngine, {len(self._scripts)} scripts, {len(self.asked)} replies>"

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the tokens of the next script."""
        script = self._scripts[min(len(self.asked), len(self._scripts) - 1)]
        self.asked.append(history)
        for step in script:
            match step:
                case str():
                    yield step
                case asyncio.Event():
                    await step.wait()
                case BaseException():
                    raise step
                case _:
                    await asyncio.sleep(step)


def words(text: str) -> list[str]:
    """Return the text in pieces of a word and the blanks that follow it."""
    return re.findall(r"\s*\S+\s*|\s+", text)
