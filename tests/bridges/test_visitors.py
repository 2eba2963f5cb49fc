"""Who asks: a cookie that nobody can make up leads to a session that nobody else has; so many questions and no more."""

from __future__ import annotations

import traceback
from http.cookies import SimpleCookie
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import ConfigurationError, RateLimit, RateLimitError, RejectedError, Secret
from aheadless.bridges._visitors import SlidingLimit, is_own_page
from aheadless.bridges.web import Visitors, refusal
from aheadless.protocol.codec import validate_session_id

SECRET = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"
JSON = {"Content-Type": "application/json"}
DAY = 24 * 3600


class Clock:
    """A clock that goes when it is told to."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def cookies(set_cookie: str | None) -> dict[str, str]:
    """Return what a browser sends back."""
    return {name: morsel.value for name, morsel in SimpleCookie(set_cookie).items()}


# --- the cookie -------------------------------------------------------------------------------------------------------


def test_visitor_who_comes_back():
    """The cookie leads to the same session, and is not set again."""
    visitors = Visitors(SECRET)
    first = visitors.of({})

    again = visitors.of(cookies(first.set_cookie))

    assert again.session_id == first.session_id
    assert again.set_cookie is None
    assert again.headers == {}
    assert first.headers == {"Set-Cookie": first.set_cookie}


def test_two_visitors():
    """Each has a session of their own, legal for the API, which does not have the cookie's id in it."""
    visitors = Visitors(SECRET)
    one, other = visitors.of({}), visitors.of({})

    assert one.session_id != other.session_id
    for visitor in (one, other):
        assert validate_session_id(visitor.session_id).startswith("web:")
        [value] = cookies(visitor.set_cookie).values()
        assert value.partition(".")[0] not in visitor.session_id
        assert value not in repr(visitor)


def test_cookie_for_https():
    """Scripts cannot read it, other sites' forms do not carry it, and no neighbouring host can plant it."""
    set_cookie = Visitors(SECRET).of({}).set_cookie

    assert set_cookie is not None
    name, _, rest = set_cookie.partition("=")
    value, *attributes = rest.split("; ")
    assert (name, attributes) == ("__Host-visitor", ["Max-Age=7776000", "Path=/", "HttpOnly", "SameSite=Lax", "Secure"])
    assert len(value) == 75


def test_cookie_for_development():
    """Without https it has another name, as browsers want it, and the options are its attributes."""
    set_cookie = Visitors(SECRET, secure=False, samesite="Strict", max_age=60).of({}).set_cookie

    assert set_cookie is not None
    assert set_cookie.startswith("visitor=")
    assert set_cookie.endswith("; Max-Age=60; Path=/; HttpOnly; SameSite=Strict")
    assert Visitors(SECRET, cookie="sid").of({}).headers["Set-Cookie"].startswith("sid=")


def test_expired_cookie():
    """After its time it leads nowhere; from the half of it on it is renewed."""
    clock = Clock()
    visitors = Visitors(SECRET, max_age=10 * DAY, clock=clock)
    first = visitors.of({})
    jar = cookies(first.set_cookie)

    clock.now += 5 * DAY
    assert visitors.of(jar).set_cookie is None
    clock.now += 1
    renewed = visitors.of(jar)
    clock.now += 5 * DAY - 2
    assert visitors.of(jar).session_id == first.session_id
    clock.now += 1
    assert visitors.of(jar).session_id != first.session_id
    assert renewed.session_id == first.session_id == visitors.of(cookies(renewed.set_cookie)).session_id


def test_clocks_that_differ():
    """A cookie that another machine made a moment in the future is good; one from far in the future is not."""
    clock = Clock()
    first = Visitors(SECRET, clock=clock).of({})
    jar = cookies(first.set_cookie)

    clock.now -= 300
    assert Visitors(SECRET, clock=clock).of(jar).session_id == first.session_id
    clock.now -= 1
    assert Visitors(SECRET, clock=clock).of(jar).session_id != first.session_id


def test_secret_that_is_replaced():
    """With the old one still in the list its visitors stay who they are; when it goes, so do they."""
    clock = Clock()
    old = Visitors(OTHER, clock=clock).of({})
    jar = cookies(old.set_cookie)
    both = Visitors([Secret(SECRET), OTHER], clock=clock)

    assert both.of(jar).session_id == old.session_id
    clock.now += 80 * DAY
    assert both.of(jar) == Visitors(OTHER, clock=clock).of(jar).__class__(old.session_id)
    assert Visitors(SECRET, clock=clock).of(jar).session_id != old.session_id
    new = both.of({})
    assert Visitors(SECRET, clock=clock).of(cookies(new.set_cookie)).session_id == new.session_id


def test_cookie_from_another_secret():
    """It is no better than none."""
    stranger = Visitors(OTHER).of({})

    visitor = Visitors(SECRET).of(cookies(stranger.set_cookie))

    assert visitor.session_id != stranger.session_id
    assert visitor.set_cookie is not None


GOOD = cookies(Visitors(SECRET).of({}).set_cookie)["__Host-visitor"]


@given(st.one_of(st.text(), st.text("AZaz09-_.=;, \x00é", max_size=300), st.just("a" * 5000), st.just(f"{GOOD}x")))
def test_made_up_cookie(value: str):
    """Whatever a browser sends is a new visitor, never an error."""
    visitor = Visitors(SECRET).of({"__Host-visitor": value})

    assert visitor.set_cookie is not None
    assert validate_session_id(visitor.session_id)


@given(st.integers(0, len(GOOD) - 2), st.characters(codec="ascii"))
def test_forged_cookie(place: int, character: str):
    """One other character makes another cookie of it; the last one is half padding, and left out here."""
    if character == GOOD[place]:
        return
    forged = GOOD[:place] + character + GOOD[place + 1 :]

    assert Visitors(SECRET).of({"__Host-visitor": forged}).set_cookie is not None


@pytest.mark.parametrize(
    "options",
    [
        {"secret": ""},
        {"secret": "x" * 31},
        {"secret": []},
        {"secret": [SECRET, "short"]},
        {"secret": Secret("short")},
        {"secret": [b"0" * 32]},
        {"cookie": "a b"},
        {"cookie": "a=b"},
        {"cookie": ""},
        {"max_age": 0},
        {"max_age": 1.5},
        {"samesite": "None"},
        {"origins": "https://www.example.com"},
        {"origins": ["www.example.com"]},
        {"origins": ["https://www.example.com/"]},
        {"origins": ["https://WWW.example.com"]},
        {"origins": ["https://www.example.com:443"]},
        {"origins": ["http://www.example.com:80"]},
        {"cookie": "__Host-visitor", "secure": False},
        {"cookie": "__secure-visitor", "secure": False},
    ],
)
def test_unusable_setting(options: dict[str, Any]):
    """It is refused when the program starts."""
    with pytest.raises(ConfigurationError):
        Visitors(**{"secret": SECRET, **options})


def test_secret_in_a_wrong_setting():
    """It stays out of the message, and out of what a traceback shows of the frames."""
    with pytest.raises(ConfigurationError) as refused:
        Visitors([SECRET, OTHER], cookie="a b")

    text = "".join(traceback.TracebackException.from_exception(refused.value, capture_locals=True).format())
    assert SECRET not in text
    assert OTHER not in text


def test_secret_is_not_shown():
    """No repr of these has it."""
    assert SECRET not in repr(Visitors(SECRET)) + repr(vars(Visitors(SECRET)))


# --- the limit --------------------------------------------------------------------------------------------------------


def test_visitor_who_asks_too_often():
    """The question beyond the limit is refused with the time to wait, and after that time the next one is not."""
    clock = Clock()
    visitors = Visitors(SECRET, limit=RateLimit(2, per=60), clock=clock)
    jar = cookies(visitors.of({}).set_cookie)
    visitors.admit(JSON, jar)
    clock.now += 20
    visitors.admit(JSON, jar)

    with pytest.raises(RateLimitError) as refused:
        visitors.admit(JSON, jar)

    answer = refusal(refused.value)
    assert (answer.status, answer.headers["Retry-After"]) == (429, "40")
    visitors.admit(JSON, {})  # somebody else
    clock.now += 40
    visitors.admit(JSON, jar)
    with pytest.raises(RateLimitError, match="too often"):
        visitors.admit(JSON, jar)


def test_no_limit():
    """None is none."""
    visitors = Visitors(SECRET, limit=None)
    jar = cookies(visitors.of({}).set_cookie)

    assert len({visitors.admit(JSON, jar) for _ in range(1000)}) == 1


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 3)), max_size=60))
def test_any_window(steps: list[tuple[str, float]]):
    """In no window of that length there are more than so many admissions, and who is refused is told exactly how long."""
    limit = SlidingLimit(RateLimit(3, per=5))
    now, admitted = 0.0, {"a": [-9.0], "b": [-9.0]}

    for name, pause in steps:
        now += pause
        if (seconds := limit.admit(name, now)) == 0:
            admitted[name].append(now)
            assert sum(now - 5 < at for at in admitted[name]) <= 3
        else:
            assert sum(now - 5 < at for at in admitted[name]) == 3
            assert seconds == pytest.approx(admitted[name][-3] + 5 - now)


def test_flood_of_new_visitors():
    """The memory stays bounded: of all but the last ones nothing is remembered."""
    limit = SlidingLimit(RateLimit(2, per=60), max_stamps=10)

    for number in range(1000):
        limit.admit(str(number), number / 1000)

    assert len(limit) == 10
    limit.admit("last", 120.0)
    assert len(limit) == 1


def test_clock_that_is_put_back():
    """Nobody has to wait until it is there again."""
    limit = SlidingLimit(RateLimit(1, per=60))
    limit.admit("a", 10_000.0)

    assert limit.admit("a", 10.0) == 0


# --- other sites ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),  # no browser
        ({"sec-fetch-site": "same-origin", "origin": "https://a.example", "host": "internal:8000"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site", "origin": "https://b.example", "host": "a.example"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "https://b.example", "host": "a.example"}, False),
        ({"sec-fetch-site": "cross-site", "origin": "https://a.example", "host": "a.example"}, False),
        ({"sec-fetch-site": "x"}, False),
        ({"sec-fetch-site": "same-site", "origin": "https://www.example.com"}, True),
        ({"origin": "https://www.example.com", "host": "a.example"}, True),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, True),
        ({"origin": "https://A.example", "host": "a.example"}, True),
        ({"origin": "https://a.example:444", "host": "a.example"}, False),
        ({"origin": "https://a.example.evil.example", "host": "a.example"}, False),
        ({"origin": "https://a.example@evil.example", "host": "a.example"}, False),
        ({"origin": "null", "host": "a.example"}, False),
        ({"origin": "null", "host": ""}, False),
        ({"origin": "", "host": ""}, False),
        ({"origin": "https://[", "host": "["}, False),
        ({"origin": "https://a.example"}, False),
    ],
)
def test_where_a_request_comes_from(headers: dict[str, str], own: bool):
    """Our own pages may ask, those that are named, and what is no browser; nobody else."""
    assert is_own_page(headers, frozenset({"https://www.example.com"})) is own


@given(st.dictionaries(st.sampled_from(["origin", "host", "sec-fetch-site"]), st.text("htps:/[]@.a\x00é")))
def test_headers_of_all_kinds(headers: dict[str, str]):
    """None is an error."""
    assert is_own_page(headers, frozenset()) in {True, False}


def test_request_from_another_site():
    """It is a 403, and counts for nobody."""
    visitors = Visitors(SECRET, limit=RateLimit(1, per=60))
    jar = cookies(visitors.of({}).set_cookie)

    with pytest.raises(RejectedError) as refused:
        visitors.admit({**JSON, "Sec-Fetch-Site": "cross-site"}, jar)

    assert refusal(refused.value).status == 403
    visitors.admit(JSON, jar)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json-seq", "x"])
def test_form_of_another_site(kind: str):
    """What a form can send without leave is not taken."""
    with pytest.raises(RejectedError) as refused:
        Visitors(SECRET).admit({"content-type": kind}, {})

    assert refusal(refused.value).status == 415


def test_json_with_a_charset():
    """A parameter is fine."""
    assert Visitors(SECRET).admit({"CONTENT-TYPE": "Application/JSON; charset=utf-8"}, {}).session_id
