"""The matcher: what became of a turn, by all that can happen to a history."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aheadless import Delivery, Message, Session
from aheadless._recovery import LostTurn, NotStored, Preceding, Stored, find, lost_turn, preceding
from aheadless._session import Baseline
from aheadless.admin import Message as Kept

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=timezone.utc)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def thread(*said: str) -> list[Kept]:
    """Return a history; `>` begins a question."""
    return [
        Kept(
            id=str(number),
            conversation_id="c",
            role="user" if text.startswith(">") else "assistant",
            content=text.removeprefix(">"),
            created_at=at(number),
        )
        for number, text in enumerate(said)
    ]


def local(*said: str, delivery: Delivery = Delivery.ACCEPTED, status: Any = "complete") -> tuple[Message, ...]:
    """Return messages of a session, a second apart, before the question of :func:`lost`."""
    return tuple(
        Message(
            "user" if text.startswith(">") else "assistant",
            text.removeprefix(">"),
            created_at=at(number - 100),
            delivery=delivery,
            status=status,
        )
        for number, text in enumerate(said)
    )


def lost(text: str, **known: Any) -> LostTurn:
    return LostTurn(Message("user", text, created_at=START, status="unknown", delivery=Delivery.UNKNOWN), **known)


@pytest.mark.parametrize(
    ("said", "known", "finding"),
    [
        ([], {}, NotStored()),
        ([">hi"], {}, Stored(None)),
        ([">hi", "hello"], {}, Stored("hello")),
        ([">Hi", "hello"], {}, NotStored()),
        ([">hi ", "hello"], {}, NotStored()),
        # The same text twice, the first of them known.
        ([">hi", "hello"], {"before": local(">hi", "hello")}, NotStored()),
        ([">hi", "hello", ">hi", "hello"], {"before": local(">hi", "hello")}, Stored("hello")),
        ([">hi", "hello", ">hi"], {"before": local(">hi", "hello")}, Stored(None)),
        ([">hi", ">hi", "hello"], {"before": local(">hi", status="failed")}, Stored("hello")),
        ([">hi", "hello"], {"before": local(">hi", status="failed")}, NotStored()),
        # What came later is known, too.
        ([">hi", "hello"], {"after": local(">hi", "hello")}, NotStored()),
        ([">hi", ">hi", "hello"], {"after": local(">hi", "hello")}, Stored(None)),
        # The first of two of which nobody knows.
        (
            [">hi", "one", ">hi", "two"],
            {"before": local(">hi", status="unknown", delivery=Delivery.UNKNOWN)},
            Stored("two"),
        ),
        ([">hi", "one"], {"before": local(">hi", status="unknown", delivery=Delivery.UNKNOWN)}, Stored("one")),
        # Somebody else asks in between: the partial text tells whose the reply is.
        ([">hi", ">other", "no", "yes, of course"], {"partial": " yes"}, Stored("yes, of course")),
        ([">hi", "no"], {"partial": "yes"}, Stored("no", certain=False)),
        ([">hi", "\u2713 😀"], {"partial": "\u2713 \ufffd"}, Stored("\u2713 😀")),
        ([">hi", "hello"], {"partial": "hello \n"}, Stored("hello")),
        # The baseline: what is in it, and all that is older, is none of ours.
        ([">hi", "hello", ">hi"], {"baseline": frozenset({"0", "1", "2"})}, NotStored()),
        ([">hi", "hello", ">hi"], {"baseline": frozenset({"1"})}, Stored(None)),
        ([">hi", "hello", ">hi"], {"baseline": frozenset({"2"})}, NotStored()),
        ([">hi"], {"baseline": frozenset({"gone"})}, Stored(None)),
        ([">hi"], {"baseline": frozenset()}, Stored(None)),
        # The server has lost what it had: then only what is there counts.
        ([">hi"], {"before": local(">hi", "hello")}, Stored(None)),
        ([">other"], {"before": local(">hi", "hello")}, NotStored()),
        ([">hi"], {"before": local(">hi", ">hi", status="failed")}, Stored(None)),
    ],
)
def test_cases(said: list[str], known: dict[str, Any], finding: object) -> None:
    """What a person would say who has both sides before them."""
    assert find(thread(*said), lost("hi", **known)) == finding


def test_reply_that_was_stored_after_the_next_question() -> None:
    """A reply of a turn that was left early, recovered since, is no proof that what stands before it is older."""
    before = (
        *local(">one"),
        Message("assistant", "first", created_at=at(5)),  # recovered after the question was sent
    )

    found = find(thread(">one", ">hi", "first", "second"), lost("hi", before=before))

    assert found == Stored("second")


def test_time() -> None:
    """What is clearly older than the question is not the question."""
    history = thread(">hi", "hello", ">hi")

    assert find(history, lost("hi"), not_before=at(1)) == Stored(None)
    assert find(history, lost("hi"), not_before=at(2)) == Stored(None)
    assert find(history, lost("hi"), not_before=at(3)) == NotStored()


def test_lost_turn() -> None:
    """What the session knows around a question, as far as it is younger than the baseline."""
    session = Session("s", 100)
    for number, text in enumerate(["one", "two", "three"]):
        question = session.begin(text, at=at(number))
        status: Any = "interrupted" if text == "two" else "complete"
        session.settle(
            f"r{number}", status=status, delivery=Delivery.ACCEPTED, conversation_id="c", at=at(number + 0.5)
        )
        if text == "two":
            asked = question

    turn = lost_turn(session, asked)
    session.baseline = Baseline(frozenset("x"), 2)
    younger = lost_turn(session, asked)
    session.baseline = Baseline(frozenset("x"), 3)
    older = lost_turn(session, asked)

    assert (turn.partial, [message.text for message in turn.before]) == ("r1", ["one", "r0"])
    assert [message.text for message in turn.after] == ["three", "r2"]
    assert (younger.before, younger.baseline) == ((), frozenset("x"))
    assert (older.before, older.baseline) == (turn.before, None), "the baseline was taken after it was sent"
    stranger = Message("user", "four", created_at=START)
    assert lost_turn(session, stranger) == LostTurn(stranger)
    remembered = Preceding(turn.before, frozenset("y"))
    assert lost_turn(session, stranger, remembered=remembered) == LostTurn(
        stranger, before=turn.before, baseline=frozenset("y")
    )
    assert preceding(session) == Preceding(session.messages[3:], frozenset("x"))


# --- histories by chance ----------------------------------------------------------------------------------------------


@attrs.define
class World:
    """A server's history and one side's view of it, as both come about."""

    random: random.Random
    others: bool
    texts: Sequence[str] = ("hi", "yes", "ok")
    replies: Sequence[str] = ("hello", "ok")
    stored: list[Kept] = attrs.field(factory=list)
    known: list[Message] = attrs.field(factory=list)
    owed: list[str] = attrs.field(factory=list)
    clock: float = 0.0

    def store(self, role: Any, text: str) -> None:
        self.clock += 1
        kept = Kept(id=f"m{len(self.stored)}", conversation_id="c", role=role, content=text, created_at=at(self.clock))
        self.stored.append(kept)

    def know(self, role: Any, text: str, status: Any, delivery: Delivery) -> None:
        self.clock += 1
        self.known.append(Message(role, text, status=status, delivery=delivery, created_at=at(self.clock)))

    def between(self) -> None:
        """Let others write, and late replies come."""
        while self.owed and self.random.random() < 0.5:
            self.store("assistant", self.owed.pop(0))
        while self.others and self.random.random() < 0.4:
            self.store("user", self.random.choice(self.texts))
            if self.random.random() < 0.7:
                self.store("assistant", self.random.choice(self.replies))

    def turn(self, kinds: Sequence[str]) -> tuple[str, bool, str | None]:
        """Have one turn of ours; return its text, whether it was stored, and the reply that is."""
        text, reply = self.random.choice(self.texts), self.random.choice(self.replies)
        kind = self.random.choice(kinds)
        accepted, unknown = Delivery.ACCEPTED, Delivery.UNKNOWN
        status, delivery = {
            "whole": ("complete", accepted),
            "cut": ("interrupted", accepted),
            "failed": ("failed", accepted),
            "lost": ("unknown", unknown),
            "never": ("unknown", unknown),
            "refused": ("failed", Delivery.REJECTED),
        }[kind]
        self.know("user", text, status, delivery)
        self.between()
        if kind not in {"never", "refused"}:
            self.store("user", text)
            self.between()
        if kind == "whole":
            self.store("assistant", reply)
            self.know("assistant", reply, "complete", accepted)
        elif kind == "cut":
            if self.random.random() < 0.5:
                self.know("assistant", reply[:2], "interrupted", accepted)
            self.owed.append(reply)
        elif kind == "lost":
            self.owed.append(reply)
        self.between()
        return text, kind not in {"never", "refused"}, reply if kind == "whole" else None


KINDS = ["whole", "whole", "cut", "failed", "lost", "never", "refused"]


@pytest.mark.slow
@settings(max_examples=1500)
@given(
    seed=st.integers(0, 2**32),
    before=st.integers(0, 6),
    after=st.integers(0, 3),
    limit=st.integers(0, 20),
    taken=st.none() | st.integers(0, 6),
    skew=st.floats(-200, 200),
)
def test_never_a_false_not_stored(
    seed: int, before: int, after: int, limit: int, taken: int | None, skew: float
) -> None:
    """Whatever else was said, by whom, and how little is remembered: what was stored is found."""
    chance = random.Random(seed)
    world = World(chance, others=True)
    baseline = None
    since = 0
    for number in range(before):
        if number == taken:
            baseline, since = (
                frozenset(message.id for message in world.stored[-chance.randint(1, 50) :]),
                len(world.known),
            )
        world.turn(KINDS)
    place = len(world.known)
    lost_at = world.clock
    text, stored, _ = world.turn(["lost", "never", "cut"])
    has_part = len(world.known) > place + 1
    for _ in range(after):
        world.turn(KINDS)
    oldest = max(len(world.known) - limit, since if baseline is not None else 0)
    turn = LostTurn(
        world.known[place],
        partial=world.known[place + 1].text if has_part else "",
        before=tuple(world.known[oldest:place]),
        after=tuple(world.known[place + 1 + has_part :]) if oldest <= place else (),
        baseline=baseline,
    )

    found = find(world.stored, turn, not_before=chance.choice([None, at(lost_at + skew) - timedelta(minutes=5)]))

    if stored:
        assert isinstance(found, Stored), (text, world)


@settings(max_examples=1500)
@given(seed=st.integers(0, 2**32), old=st.integers(0, 4), before=st.integers(0, 5), after=st.integers(0, 3))
def test_exact_for_a_single_writer_with_a_baseline(seed: int, old: int, before: int, after: int) -> None:
    """With nobody else in the conversation, and no other turn open, the verdict and the reply are right."""
    chance = random.Random(seed)
    world = World(chance, others=False)
    for _ in range(old):
        world.turn(KINDS)
    while world.owed:
        world.between()
    baseline, since = frozenset(message.id for message in world.stored[-50:]), len(world.known)
    closed = ["whole", "failed", "refused"]
    for _ in range(before):
        world.turn(closed)
    place = len(world.known)
    text = chance.choice(world.texts)
    stored, replied = chance.choice([(False, False), (True, False), (True, True)])
    world.know("user", text, "unknown", Delivery.UNKNOWN)
    if stored:
        world.store("user", text)
    if replied:
        world.store("assistant", "its reply")
    for _ in range(after):
        world.turn(closed)
    turn = LostTurn(
        world.known[place],
        before=tuple(world.known[since:place]),
        after=tuple(world.known[place + 1 :]),
        baseline=baseline,
    )

    found = find(world.stored, turn)

    assert found == (Stored("its reply" if replied else None) if stored else NotStored())
