"""What the doctor makes of what it has seen, with times that are told and not measured."""

from __future__ import annotations

import inspect
from datetime import datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import exceptions
from aheadless.cli.output import ExitCode, exit_code
from aheadless.cli.verdicts import (
    TURN,
    Check,
    Heard,
    Mark,
    Security,
    Visit,
    judge_clock,
    judge_connection,
    judge_health,
    judge_keep_alive,
    judge_missing_key,
    judge_proxies,
    judge_refusal,
    judge_reply,
    judge_security,
    judge_url,
    may_ask,
)
from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    RateLimitError,
    ReplyFailedError,
    RequestTimeoutError,
)

NOON = datetime(2026, 11, 26, 12, tzinfo=timezone.utc)
URL = "http://127.0.0.1:4000"
ERRORS = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, AheadlessError) and kind is not AheadlessError
]


def visit(**seen: Any) -> Visit:
    """Return a visit at noon to a server that is well, but for what is given."""
    return Visit(**{"asked_at": NOON, "answered_at": NOON, "status": "ok", "address": "127.0.0.1:4000", **seen})


def streaming(*tokens: float, start: float | None = 0.01, **more: Any) -> tuple[str, str, str]:
    """Return mark, fact and advice for a reply whose tokens came at these times."""
    checks = judge_reply(Heard(tokens[-1] if tokens else 1.0, start, tokens, **more))
    return told(next(check for check in checks if check.name == "streaming"))


def told(check: Check) -> tuple[str, str, str]:
    return check.mark.value, check.fact, check.advice


def steps(first: float, every: float, count: int) -> list[float]:
    return [first + every * number for number in range(count)]


# --- the URL ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "mark", "said"),
    [
        ("https://chat.example.org/", "ok", "https://chat.example.org"),
        ("http://127.0.0.1:4000/bots", "ok", "http://127.0.0.1:4000/bots"),
        ("http://127.0.0.1:4000/v1/chat/", "warn", "http://127.0.0.1:4000/v1/chat ends with a path of the API"),
        ("http://127.0.0.1:4000/health", "warn", "ends with a path of the API"),
        ("http://example.org", "fail", "--allow-insecure-http"),
        ("example.org", "fail", "it must begin with http:// or https://"),
        ("https://me:secret@example.org", "fail", "holds a user name or password"),
        (None, "fail", "none is given"),
        ("", "fail", "none is given"),
    ],
)
def test_url(url, mark, said):
    """What is no base URL fails as wrong use, and what looks like a mistake is a warning."""
    check = judge_url(url, allow_insecure_http=False)

    assert check.mark.value == mark
    assert said in check.fact
    assert "secret" not in check.fact
    assert check.code == (ExitCode.USAGE if mark == "fail" else ExitCode.OK)
    assert bool(check.advice) == (mark != "ok")


def test_url_that_lets_the_key_be_read():
    """Allowed, and still told of; on this machine there is nothing to tell."""
    assert judge_url("http://example.org", allow_insecure_http=True).mark is Mark.WARN
    assert judge_url(URL, allow_insecure_http=True).mark is Mark.OK


# --- the way ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_nobody_listens_on_this_machine(host):
    """Who runs it in a container has another machine in mind."""
    check = judge_connection(visit(error=exceptions.ConnectError("refused"), address=None), f"http://{host}:4000")

    assert (check.mark, check.fact, check.code) == (Mark.FAIL, "refused", ExitCode.CONNECT)
    assert "container" in check.advice


@pytest.mark.parametrize(
    ("error", "code", "advice"),
    [
        (exceptions.ConnectError("refused"), ExitCode.CONNECT, "that a firewall lets this machine through"),
        (RequestTimeoutError(phase="connect"), ExitCode.TIMEOUT, "a firewall may drop what is sent there"),
    ],
)
def test_nobody_listens_elsewhere(error, code, advice):
    """Refused is not the same as silence."""
    check = judge_connection(visit(error=error, address=None), "https://chat.example.org")

    assert (check.mark, check.code) == (Mark.FAIL, code)
    assert advice in check.advice
    assert "container" not in check.advice


@pytest.mark.parametrize(
    ("left", "mark", "fact"),
    [
        (timedelta(days=60, hours=5), "ok", "TLSv1.3, certificate valid for 60 days more"),
        (timedelta(days=14), "ok", "TLSv1.3, certificate valid for 14 days more"),
        (timedelta(days=13, hours=23), "warn", "TLSv1.3, certificate valid for 13 days more"),
        (None, "ok", "TLSv1.3"),
    ],
)
def test_certificate(left, mark, fact):
    """Two weeks before it expires there is a warning."""
    security = Security("TLSv1.3", None if left is None else NOON + left)

    assert told(judge_security(visit(security=security), "https://chat.example.org"))[:2] == (mark, fact)


@pytest.mark.parametrize(
    ("error", "url", "advice"),
    [
        (exceptions.NotFoundError("no", status=404), URL, "the URL's path"),
        (exceptions.RedirectError("no", status=301), URL, "where it redirects to"),
        (exceptions.ServerError("no", status=503), URL, "the log of the server"),
        (exceptions.ServerError("no", status=502), URL, "a proxy answers for a server that does not"),
        (exceptions.AuthenticationError("no", status=403), URL, "a proxy in front of it does not"),
        (exceptions.RequestTimeoutError(), URL, "does not answer"),
        (exceptions.ProtocolError("no"), URL, "is it an https:// address?"),
        (exceptions.ProtocolError("no"), "https://x", "something else than the API"),
        (exceptions.ConnectionLostError("no"), URL, "is it an https:// address?"),
        (exceptions.ConnectionLostError("no"), "https://x", "look at the log"),
    ],
)
def test_health_that_is_not_told(error, url, advice):
    """Each kind of answer that is none has its reason."""
    check = judge_health(visit(error=error), url)

    assert (check.mark, check.code) == (Mark.FAIL, exit_code(error))
    assert advice in check.advice


def test_health_that_is_bad():
    """The server's own word counts, as far as a terminal bears it."""
    check = judge_health(visit(status="degr\x1baded", headers={"Server": "nginx/1.24", "Via": "1.1 edge"}), URL)

    assert told(check)[:2] == ("fail", "degr\\x1baded after 0 ms, Server: nginx/1.24, Via: 1.1 edge")
    assert check.code is ExitCode.SERVER


@pytest.mark.parametrize("kind", ERRORS)
def test_what_forbids_a_question(kind):
    """A proxy may keep `/health` to itself, but who redirects gets no key, and who is silent no question."""
    refused = issubclass(kind, exceptions.StatusError) and kind is not exceptions.RedirectError

    assert may_ask(visit(error=kind("no"))) == refused
    assert judge_keep_alive(visit(error=kind("no"), reused=True)).mark is (Mark.OK if refused else Mark.FAIL)


def test_keep_alive():
    """A connection for each request costs its making each time."""
    assert told(judge_keep_alive(visit(reused=True, answer=0.0042))) == (
        "ok",
        "the connection is used again, answer after 4 ms",
        "",
    )
    again = judge_keep_alive(visit(connect=0.25))
    assert (again.mark, again.fact) == (Mark.WARN, "each request makes a connection of its own (250 ms)")


@pytest.mark.parametrize(
    ("asked", "date", "mark", "fact"),
    [
        (0.0, "Thu, 26 Nov 2026 12:00:00 GMT", "ok", "less than 2 s off the server's"),
        (0.9, "Thu, 26 Nov 2026 11:59:58 GMT", "ok", "less than 2 s off the server's"),
        (0.0, "Thu, 26 Nov 2026 11:59:57 GMT", "warn", "this machine is 2 s ahead of the server"),
        (0.0, "Thu, 26 Nov 2026 11:55:00 GMT", "warn", "this machine is 299 s ahead of the server"),
        (0.0, "Thu, 26 Nov 2026 12:05:00 GMT", "warn", "this machine is 300 s behind the server"),
        (-400.0, "Thu, 26 Nov 2026 11:55:00 GMT", "ok", "less than 2 s off the server's"),
        (0.0, "Thu, 26 Nov 2026 12:00:00 -0000", "ok", "less than 2 s off the server's"),
        (0.0, "yesterday", "skipped", "the answer has no Date"),
        (0.0, "", "skipped", "the answer has no Date"),
    ],
)
def test_clock(asked, date, mark, fact):
    """A `Date` has no fractions, and was written at some time while the answer was awaited."""
    seen = visit(asked_at=NOON + timedelta(seconds=asked), headers={"Date": date})

    assert told(judge_clock(seen))[:2] == (mark, fact)


def test_clock_of_a_cache():
    """What is old tells of no clock."""
    seen = visit(headers={"Date": "Thu, 26 Nov 2026 11:55:00 GMT", "Age": "300"})

    assert judge_clock(seen).mark is Mark.SKIPPED


# --- the stream -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "fact"),
    [
        (steps(0.2, 0.05, 20), "20 tokens in 20 pieces over 950 ms"),
        (steps(9.0, 0.002, 40), "40 tokens in 40 pieces over 78 ms"),
        (sorted(steps(0.2, 0.05, 20) * 3), "60 tokens in 20 pieces over 950 ms"),
        ([0.5, 3.0], "2 tokens in 2 pieces over 2.5 s"),
        (sorted(steps(0.2, 0.1, 5) * 20), "100 tokens in 5 pieces over 400 ms"),
    ],
    ids=["slow", "fast after a long thought", "three at once", "two long ones", "twenty at once, ten times a second"],
)
def test_a_stream(tokens, fact):
    """Tokens over some time are a stream, however many come at once."""
    assert streaming(*tokens) == ("ok", fact, "")


@pytest.mark.parametrize("start", [None, 3.0])
def test_a_reply_that_was_held_back(start):
    """It came with its `start`, which the server says before it asks the model."""
    mark, fact, advice = streaming(*steps(3.0, 0.00001, 20), start=start)

    assert mark == "warn"
    assert fact == "20 tokens in 1 piece over 0 ms, and start with them, after 3.0 s: the reply was held back"
    assert "proxy_buffering off; gzip off;" in advice
    assert "compressed" not in advice


def test_a_reply_that_was_compressed():
    """A compressor holds back what it has not enough of; the client had asked for none."""
    _, _, advice = streaming(*steps(3.0, 0.0, 20), start=3.0, headers={"Content-Encoding": "gzip"})

    assert advice.endswith("; it is compressed (gzip), though nobody asked")


def test_a_reply_that_was_made_in_one_piece():
    """Nothing held its `start` back, so no proxy is to blame."""
    mark, fact, advice = streaming(*steps(3.0, 0.0, 20), start=0.01)

    assert (mark, fact) == (
        "warn",
        "20 tokens in 1 piece over 0 ms, 3.0 s after start: the reply was made in one piece",
    )
    assert "proxy" not in advice


def test_a_reply_in_blocks():
    """Many tokens, a pause, many tokens: somebody fills a buffer before he passes it on."""
    mark, fact, advice = streaming(*sorted(steps(1.0, 1.0, 3) * 40))

    assert (mark, fact) == ("warn", "120 tokens in 3 pieces over 2.0 s: in blocks, as from a buffer")
    assert "proxy_buffering off" in advice


@pytest.mark.parametrize(
    ("tokens", "fact"),
    [
        ([2.0], "1 token in 1 piece over 0 ms: too few to tell"),
        (steps(2.0, 0.0, 4), "4 tokens in 1 piece over 0 ms: too few to tell"),
        (steps(0.2, 0.0, 300), "300 tokens in 1 piece over 0 ms: too quick to tell"),
        ([], "there are no tokens"),
    ],
)
def test_no_verdict(tokens, fact):
    """A short reply, or one from a cache, says nothing of a proxy, and no alarm is raised."""
    assert streaming(*tokens, start=0.2) == ("skipped", fact, "")


# --- the turn ---------------------------------------------------------------------------------------------------------


@given(
    st.none() | st.floats(0, 100),
    st.lists(st.floats(0, 100)).map(sorted),
    st.none() | st.sampled_from(ERRORS),
)
def test_every_turn_has_all_its_checks(start, tokens, kind):
    """In their order, whatever was heard; and each that is not well says what to do."""
    error = None if kind is None else kind("no")

    checks = judge_reply(Heard(100.0, start, tuple(tokens), error))

    assert [check.name for check in checks] == [*TURN]
    assert all(bool(check.advice) == (check.mark in {Mark.WARN, Mark.FAIL}) for check in checks)
    assert all((check.code is ExitCode.OK) != (check.mark is Mark.FAIL) for check in checks)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("heard", [Heard(1.0), Heard(1.0, 0.1), Heard(1.0, 0.1, (0.2, 0.5))])
def test_one_failure_for_each_error(kind, heard):
    """One check fails, with the exit code of the error, and the others are not blamed."""
    error = kind("no")

    checks = judge_reply(attrs.evolve(heard, error=error))

    failed = [check.code for check in checks if check.mark is Mark.FAIL]
    still_writing = kind is RequestTimeoutError and heard.tokens  # its phase is "total" here
    assert failed == ([] if still_writing else [exit_code(error)])


@pytest.mark.parametrize("kind", [*ERRORS, None])
def test_one_failure_at_the_most_without_a_message(kind):
    """What refuses the empty question because it is empty has taken the key."""
    checks = judge_refusal(kind and kind("no"), {})

    assert [check.name for check in checks] == [*TURN]
    assert sum(check.mark is Mark.FAIL for check in checks) == (kind is not None)
    accepted = judge_refusal(exceptions.RejectedError("no", status=400), {})
    assert [check.mark.value for check in accepted] == ["ok", "ok", "skipped", "skipped", "skipped"]


def test_without_a_key():
    """That is wrong use, and nothing else can be told."""
    key, *rest = judge_missing_key()

    assert (key.name, key.mark, key.code) == ("key", Mark.FAIL, ExitCode.USAGE)
    assert [check.name for check in rest] == [*TURN[1:]]


def test_the_rate_limit_comes_before_the_key():
    """A 429 says nothing of the key, and a `Retry-After` how long it lasts."""
    error = RateLimitError("429: slow down", status=429, detail="slow down", retry_after=17.0)

    key, limit, *rest = judge_reply(Heard(0.1, error=error))

    assert told(key) == ("skipped", "the rate limit comes first", "")
    assert told(limit) == ("fail", "429: slow down", "wait 17.0 s; all programs at this address share the limit")
    assert {check.mark for check in rest} == {Mark.SKIPPED}


def test_a_key_that_a_proxy_refuses():
    """The API answers in JSON; a web page is somebody else's."""
    page = AuthenticationError("no", status=403, detail="<html>Forbidden")

    [key, *_] = judge_reply(Heard(0.1, error=page))

    assert key.fact == "403: a web page"
    assert "a proxy in front of it" in key.advice


@pytest.mark.parametrize(
    ("headers", "mark", "fact"),
    [
        ({}, "ok", "not reached; the server does not say how much is left"),
        (
            {"X-RateLimit-Remaining": "12", "X-RateLimit-Limit": "30"},
            "ok",
            "x-ratelimit-limit: 30, x-ratelimit-remaining: 12",
        ),
        ({"RateLimit-Remaining": "0"}, "warn", "ratelimit-remaining: 0"),
    ],
)
def test_what_the_server_says_of_its_limit(headers, mark, fact):
    """The API's own server says nothing; a gateway's headers are shown."""
    limit = judge_reply(Heard(1.0, 0.1, (0.2,), headers=headers))[1]

    assert told(limit)[:2] == (mark, fact)


@pytest.mark.parametrize(
    ("heard", "mark", "fact"),
    [
        (Heard(1.0, 0.01, (0.4, 0.9)), "ok", "after 400 ms, start after 10 ms"),
        (Heard(20.0, 0.01, (12.0, 20.0)), "warn", "after 12.0 s, start after 10 ms"),
        (Heard(1.0, 0.01), "warn", "none came: the model said nothing"),
        (Heard(1.0, 0.01, error=ReplyFailedError("no")), "skipped", "the reply failed before it"),
        (Heard(60.0, 0.01, error=RequestTimeoutError("no")), "fail", "no"),
        (Heard(60.0, error=RequestTimeoutError("no")), "fail", "no"),
    ],
)
def test_first_token(heard, mark, fact):
    """Beside it the `start`, which tells a slow model from a slow way."""
    assert told(judge_reply(heard)[2])[:2] == (mark, fact)


@pytest.mark.parametrize(
    ("error", "mark", "fact"),
    [
        (None, "ok", "complete after 60.0 s"),
        (RequestTimeoutError(phase="total"), "warn", "still being written after 60.0 s, and not waited for"),
        (RequestTimeoutError("silence", phase="idle"), "fail", "silence"),
        (ReplyFailedError("the server gave up"), "fail", "the server gave up"),
    ],
)
def test_the_end_of_a_reply(error, mark, fact):
    """A long one is not a broken one."""
    assert told(judge_reply(Heard(60.0, 0.01, (1.0, 2.0, 3.0), error))[4])[:2] == (mark, fact)


# --- this machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "connected", "mark", "fact"),
    [
        ([], False, "ok", "none in the environment"),
        (["HTTPS_PROXY", "ALL_PROXY"], True, "ok", "ALL_PROXY, HTTPS_PROXY set, which aheadless does not use"),
        (["https_proxy"], False, "warn", "https_proxy set, which aheadless does not use"),
    ],
)
def test_proxies_of_the_environment(variables, connected, mark, fact):
    """They are not used, which matters only where there is no way without one."""
    assert told(judge_proxies(variables, connected=connected))[:2] == (mark, fact)
