"""What people and scripts see, without a process."""

from __future__ import annotations

import inspect
import json
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import exceptions
from aheadless.cli.app import app
from aheadless.cli.output import OVERVIEW, ExitCode, error_line, exit_code, one_line, visible, visible_json
from aheadless.exceptions import AheadlessError, Delivery

ANY_TEXT = st.text(st.characters(exclude_categories=[])) | st.text(
    st.sampled_from("a\n\t\r\x1b[31m\x00\x07\x7f\x80\x85\x9b\u202e\u2066\u2069\u200f\u061c\ud83d\udc00é😀 ")
)
ERRORS = [
    kind
    for _, kind in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(kind, AheadlessError) and kind is not AheadlessError
]


def is_safe(char: str) -> bool:
    bidi = unicodedata.bidirectional(char) in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return char in "\n\t" or (unicodedata.category(char) not in {"Cc", "Cs"} and not bidi)


@given(ANY_TEXT)
def test_nothing_that_commands_a_terminal_is_left(text):
    """Controls, halves of pairs and bidi overrides are gone; what is harmless stays as it is."""
    shown = visible(text)

    assert all(map(is_safe, shown))
    if all(map(is_safe, text)) and not set(text) & set("\u061c\u200e\u200f"):
        assert shown == text


@given(ANY_TEXT, ANY_TEXT)
def test_making_visible_does_not_depend_on_where_tokens_are_cut(one, two):
    """A sequence in two tokens is as visible as in one, and once is enough."""
    assert visible(one + two) == visible(one) + visible(two)
    assert visible(visible(one)) == visible(one)


def test_pictures():
    """ESC is ␛, DEL is ␡, the rest an escape; newline and tab stay."""
    assert visible("\x1b[2J\x7f\r\n\t\x00\x9b\u202e") == "␛[2J␡␍\n\t␀\\u009b\\u202e"


@given(st.dictionaries(st.text(), st.text(st.characters(exclude_categories=["Cs"]))))
def test_visible_json_says_the_same(data):
    """Escaping what JSON lets stand changes no value."""
    shown = visible_json(json.dumps(data, ensure_ascii=False))

    assert json.loads(shown) == data
    assert all(map(is_safe, shown))


@pytest.mark.parametrize("kind", ERRORS)
def test_every_kind_of_error_has_an_exit_code(kind):
    """Only errors of this program's own making are 1."""
    own = (exceptions.ClientClosedError, exceptions.SessionBusyError, exceptions.UsageError)

    assert (exit_code(kind("no")) is ExitCode.FAILED) == issubclass(kind, own)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (exceptions.ConfigurationError, 2),
        (exceptions.InvalidRequestError, 2),
        (exceptions.ConnectError, 3),
        (exceptions.AuthenticationError, 4),
        (exceptions.RejectedError, 5),
        (exceptions.NotFoundError, 5),
        (exceptions.RedirectError, 5),
        (exceptions.RateLimitError, 6),
        (exceptions.ServerError, 7),
        (exceptions.ReplyFailedError, 7),
        (exceptions.ProtocolError, 7),
        (exceptions.StreamInterruptedError, 8),
        (exceptions.ConnectionLostError, 8),
        (exceptions.RequestTimeoutError, 9),
    ],
)
def test_exit_codes(kind, code):
    """Scripts rely on these."""
    assert exit_code(kind("no")) == code


@given(ANY_TEXT, st.sampled_from(ERRORS), st.sampled_from(Delivery), st.sampled_from(["", "half"]))
def test_an_error_is_one_safe_line(text, kind, delivery, partial):
    """Whatever a server says, it cannot add a line."""
    error = kind(text, delivery=delivery)
    error.partial = partial

    line = error_line(error)

    assert line.startswith("aheadless: ")
    assert all(is_safe(char) and char not in "\n\t" for char in line)
    assert ("the answer is not complete" in line) or not partial


def test_an_error_line_says_what_became_of_the_message():
    """Whether to send it again is the first question."""
    lost = exceptions.StreamInterruptedError("the stream ended", delivery=Delivery.ACCEPTED, partial="half")
    unknown = exceptions.ConnectionLostError("gone")
    refused = exceptions.RateLimitError("too many requests")

    assert error_line(lost) == (
        "aheadless: the stream ended; the message was stored; the answer is not complete; "
        "look at the server and the network"
    )
    assert (
        error_line(unknown) == "aheadless: gone; the message may have been stored; look at the server and the network"
    )
    assert error_line(refused) == "aheadless: too many requests; wait a minute, then send it again"


def test_one_line():
    """Blanks of any kind become one, controls become visible."""
    assert one_line(" a\n\tb\u2028c \x1b ") == "a b c ␛"


def test_the_overview_lists_the_commands():
    """What is written by hand says what the commands say of themselves."""
    listed = dict(
        re.findall(r"^  ([a-z]+) +(\S.*)$", OVERVIEW.split("Commands:")[1].split("Environment:")[0], re.MULTILINE)
    )
    listed.pop("aheadless", None)
    commands = {name: app[name].help.split("\n")[0] for name in app if not name.startswith("-")}

    assert listed == commands
    assert list(listed) == sorted(listed)


def test_the_overview_lists_the_exit_codes():
    """All of them, and no other."""
    listed = re.findall(r"^  (\d+) ", OVERVIEW.split("Exit codes:")[1], re.MULTILINE)

    assert [int(code) for code in listed] == sorted(ExitCode)
    assert max(map(len, OVERVIEW.splitlines())) <= 100
