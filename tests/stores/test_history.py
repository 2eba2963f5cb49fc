"""The history checker finds what it is there to find."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import attrs
import pytest

from aheadless import Message
from aheadless._exchange import SessionRecord
from tests.stores.history import problems

AT = datetime(2026, 11, 26, tzinfo=timezone.utc)
A, RE_A, B, RE_B = ("user", "a"), ("assistant", "re a"), ("user", "b"), ("assistant", "re b")
GOOD = [A, RE_A, B, RE_B]


def report(text: str, asked: float, ended: float, **more: Any) -> dict[str, Any]:
    return {
        "session": "s",
        "text": text,
        "outcome": "complete",
        "reply": f"re {text}",
        "asked": asked,
        "ended": ended,
        **more,
    }


TOLD = [report("a", 1, 2), report("b", 3, 4)]
RECORD = SessionRecord(
    "s",
    4,
    "c",
    (
        Message("user", "a", created_at=AT),
        Message("assistant", "re a", created_at=AT),
        Message("user", "b", created_at=AT),
        Message("assistant", "re b", created_at=AT),
    ),
    4,
)


def test_good() -> None:
    """Nothing is wrong, be it that a turn was lost or is known to the server alone."""
    assert problems({"s": GOOD}, {"s": RECORD}, TOLD) == []
    assert problems({"s": GOOD}, {"s": RECORD}, [report("a", 1, 2, outcome="lost"), TOLD[1]]) == []
    assert problems({"s": GOOD}, {"s": RECORD}, []) == []


@pytest.mark.parametrize(
    ("thread", "told", "problem"),
    [
        ([A, B, RE_A, RE_B], TOLD, "interleaved"),
        ([A, RE_B, B, RE_A], TOLD, "interleaved"),
        ([A, RE_A, B], TOLD, "interleaved"),
        ([A, RE_A, A, RE_A, B, RE_B], TOLD, "a is 2 times on the server"),
        ([A, RE_A], TOLD, "b was complete and is not on the server"),
        ([B, RE_B, A, RE_A], TOLD, "a had ended before"),
        ([B, RE_B, A, RE_A], [], "order"),
        (GOOD, [report("a", 1, 2, reply="re b")], "another question's answer"),
        (GOOD, [report("a", 1, 2, outcome="ValueError()")], "ValueError"),
        ([*GOOD, ("user", "c"), ("assistant", "re c")], [*TOLD, report("c", 5, 6)], "not so in the store"),
    ],
)
def test_bad(thread: list[tuple[str, str]], told: list[dict[str, Any]], problem: str) -> None:
    """It says what."""
    assert any(problem in found for found in problems({"s": thread}, {"s": RECORD}, told))


def test_bad_record() -> None:
    """A reply that the store does not have."""
    record = attrs.evolve(RECORD, messages=RECORD.messages[:3])

    assert problems({"s": GOOD}, {"s": record}, TOLD) == ["s: b was complete and is not so in the store"]
