"""The pace of edits, tried on a clock that is a number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import ConfigurationError
from aheadless.bridges import Pace
from aheadless.bridges._delivery import ATTEMPTS, LONGEST_WAIT, Schedule

SECONDS = st.floats(0.0, 20.0)
PACES = st.builds(Pace, first=SECONDS, every=SECONDS)
# What the platform says to a call, and how long it takes for that.
ANSWERS = st.tuples(st.sampled_from(["shown", "failed", "postponed"]), SECONDS, SECONDS)


def answer(schedule: Schedule, now: float, kind: str, seconds: float) -> None:
    match kind:
        case "shown":
            schedule.shown(now)
        case "failed":
            schedule.failed(now)
        case _:
            schedule.postponed(now, seconds)


@given(PACES, st.lists(SECONDS, min_size=1), SECONDS)
def test_the_first_words_are_early(pace, tokens, placeholder):
    """The first edit is due `first` after the first token, however long the placeholder took and more tokens come."""
    schedule = Schedule(pace)
    schedule.shown(placeholder)

    for at in sorted(tokens):
        schedule.written(placeholder + at)

    assert schedule.due == placeholder + min(tokens) + pace.first


@given(PACES, st.lists(ANSWERS, min_size=1, max_size=30))
def test_edits_keep_their_distance(pace, answers):
    """None is due before `every` has passed since the last one ended, or before the platform takes one again."""
    schedule = Schedule(pace)
    now, not_before = 0.0, 0.0
    schedule.written(now)

    for kind, takes, seconds in answers:
        assert schedule.due >= not_before
        now = max(now, schedule.due) + takes
        answer(schedule, now, kind, seconds)
        not_before = now + (seconds if kind == "postponed" else pace.every)


@given(PACES, SECONDS, SECONDS, SECONDS)
def test_the_final_text_waits_for_the_platform_alone(pace, shown, demanded, end):
    """It is due at once after any edit, and otherwise when the platform takes one again."""
    schedule = Schedule(pace)
    schedule.written(0.0)
    schedule.shown(shown)
    schedule.finish(shown + end, within=90.0)
    at_once = schedule.due

    schedule.postponed(shown + end, demanded)

    assert at_once <= shown + end
    assert schedule.due == shown + end + demanded


@given(PACES, st.lists(ANSWERS, max_size=10), st.lists(ANSWERS, min_size=60, max_size=60), st.floats(1.0, 20.0))
def test_the_final_text_is_not_tried_for_ever(pace, before, after, within):
    """There is an end to it, in time and in attempts, whatever the platform answers."""
    schedule = Schedule(pace)
    now = 0.0
    for kind, takes, seconds in before:
        now = max(now, schedule.due) + takes
        answer(schedule, now, kind, seconds)
    schedule.finish(now, within)
    end, failures = now + within, 0

    for kind, takes, seconds in after:
        if schedule.exhausted:
            break
        now = max(now, schedule.due)
        assert now < end
        assert failures < ATTEMPTS
        now += takes
        if kind == "shown":
            break
        failures += kind == "failed"
        answer(schedule, now, kind, max(seconds, 0.5))

    assert schedule.exhausted or kind == "shown"


def test_failures_before_the_end_do_not_count():
    """Edits that failed while the reply was written leave all attempts to the final text."""
    schedule = Schedule(Pace())
    for now in range(20):
        schedule.failed(now)

    schedule.finish(20, within=90)

    assert not schedule.exhausted


def test_a_second_end_can_only_be_earlier():
    """A cancel shortens the time that is left; it does not give more."""
    schedule = Schedule(Pace())
    schedule.finish(0.0, within=90.0)
    schedule.finish(10.0, within=2.0)
    schedule.postponed(10.0, 3.0)

    assert schedule.exhausted


@pytest.mark.parametrize(
    ("seconds", "waited"),
    [(-5.0, 0.0), (math.nan, 1.0), (math.inf, LONGEST_WAIT), (1e9, LONGEST_WAIT), (7.5, 7.5)],
)
def test_how_long_a_platform_can_ask_for(seconds, waited):
    """What it says is bounded, as all that comes from outside."""
    schedule = Schedule(Pace(first=0.0, every=0.0))

    schedule.postponed(100.0, seconds)

    assert schedule.due == 100.0 + waited


@pytest.mark.parametrize("field", ["first", "every"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "1", True, None])
def test_what_is_no_pace(field, value):
    """It is refused where it is made."""
    with pytest.raises(ConfigurationError, match=field):
        Pace(**{field: value})
