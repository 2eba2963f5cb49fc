"""A place on a platform and its session: one for one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import InvalidRequestError
from aheadless.bridges import platform_id
from aheadless.protocol.codec import validate_session_id

PARTS = st.lists(
    st.none()
    | st.integers()
    | st.text(max_size=200)
    | st.text("ab:-.%\u00e9", max_size=4)
    | st.sampled_from(["None", "", "-", ":", "a:b", "a", "b", "1" * 120]),
    min_size=1,
    max_size=5,
)


def same(parts: list[str | int | None]) -> list[str | None]:
    """What of the parts is told apart: everything but a number and its digits."""
    return [None if part is None else str(part) for part in parts]


@pytest.mark.parametrize(
    ("parts", "session_id"),
    [
        (("discord", 1234, 5678, 9), "discord:1234:5678:9"),
        (("discord", None, 5678, "9"), "discord:-:5678:9"),
        (("slack", "T01", "C02", "1700000000.000100"), "slack:T01:C02:1700000000.000100"),
        (("tg", -100123, 7), "tg:-100123:7"),
        (("irc", "#café"), "irc::zKLWm3Fh89oesSFld-79-WI_qJTellPEtVNMv5ju0nE"),
        (("irc", "x" * 124), "irc:" + "x" * 124),
        (("irc", "x" * 125), "irc::OBj6tsaVGxEwFrLrLzn0TUxCwlxgxIp9ugk6AvCncAQ"),
    ],
    ids=lambda value: str(value[:2]),
)
def test_ids_are_what_they_have_always_been(parts, session_id):
    """Sessions outlive a version of this library, so the form must not change."""
    assert platform_id(*parts) == session_id


@given(PARTS)
def test_every_id_is_legal(parts):
    """The API takes it, whatever the platform's ids are."""
    validate_session_id(platform_id("x1", *parts))


@given(PARTS, PARTS)
def test_two_places_never_meet(parts, others):
    """Different parts, different ids; and what only the type of a number tells apart is the same place."""
    assert (platform_id("x", *parts) == platform_id("x", *others)) == (same(parts) == same(others))


@given(PARTS, st.data())
def test_moving_a_border_gives_another_id(parts, data):
    """`a:b` and `c` do not meet `a` and `b:c`."""
    joined = ":".join("-" if part is None else str(part) for part in parts)
    cuts = [found.start() for found in re.finditer(":", joined)]
    at = data.draw(st.sampled_from([*cuts, len(joined)]))
    others: list[str | int | None] = [joined[:at], joined[at + 1 :]]

    assert (platform_id("x", *parts) == platform_id("x", *others)) == (same(parts) == others)


def test_two_platforms_never_meet():
    """Not even where both have long ids."""
    assert platform_id("a", "é") != platform_id("b", "é")


@pytest.mark.parametrize("platform", ["", "Discord", "dis:cord", "1st", "x" * 33, "x\n", None, b"x"])
def test_what_is_no_platform(platform):
    """Its name is part of every id, so it has to be a plain word."""
    with pytest.raises(InvalidRequestError, match="platform"):
        platform_id(platform, "1")


@pytest.mark.parametrize("parts", [(), (b"1",), (1.5,), (True,), ((1, 2),)])
def test_what_is_no_part(parts):
    """A mistake is told, and does not become an id that others share."""
    with pytest.raises(InvalidRequestError, match="part"):
        platform_id("x", *parts)
