"""Our JSON corpus: each case is decided as it is written there, and by the quick and the careful reader alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from aheadless.exceptions import ProtocolError
from aheadless.protocol.codec import _event_from, decode_event
from aheadless.protocol.events import Done, Event, Failure, Start, Token, Unknown
from aheadless.protocol.ndjson import NDJSONDecoder, parse_object
from tests.protocol.json_cases import DOCUMENTS, REFUSED, VALUES, Case
from tests.support import cut


def group(case: Case) -> str:
    return case.name.partition(":")[0]


GROUPS = sorted({group(case) for case in VALUES})
each_group = pytest.mark.parametrize("name", GROUPS)


def wrong(cases: Iterable[Case], find: Callable[[Case], object], expect: Callable[[Case], object]) -> dict[str, object]:
    """Return what was found where it is not what was expected; by repr, as 1 is 1.0 and True, and 0.0 is -0.0."""
    return {case.name: found for case in cases if repr(found := find(case)) != repr(expect(case))}


def values(name: str) -> list[Case]:
    return [case for case in VALUES if group(case) == name]


def parsed(data: bytes) -> object:
    try:
        return parse_object(data)
    except ProtocolError:
        return REFUSED


def decoded(line: bytes) -> object:
    """Return what is made of a line, which is what the careful reader alone would make of it."""
    outcomes: list[Event | str] = []
    for read in (decode_event, lambda line: _event_from(parse_object(line))):
        try:
            outcomes.append(read(line))
        except ProtocolError as exc:
            outcomes.append(str(exc))
    quick, careful = outcomes
    assert repr(quick) == repr(careful)
    return REFUSED if isinstance(quick, str) else quick


def test_size() -> None:
    """There are some hundred of each kind, and no name stands for two."""
    cases = [*VALUES, *DOCUMENTS]

    assert len({case.name for case in cases}) == len(cases) >= 300
    assert sum(case.verdict is REFUSED and not case.decision for case in cases) >= 100
    assert sum(case.verdict is not REFUSED and not case.decision for case in cases) >= 100
    assert sum(bool(case.decision) for case in cases) >= 60


@each_group
def test_value(name: str) -> None:
    """As a member of an object."""
    assert {} == wrong(
        values(name),
        lambda case: parsed(b'{"v":' + case.data + b"}"),
        lambda case: REFUSED if case.verdict is REFUSED else {"v": case.verdict},
    )


@each_group
def test_value_as_a_token(name: str) -> None:
    """As the text of a token: a string is its text, anything else is refused."""
    assert {} == wrong(
        values(name),
        lambda case: decoded(b'{"type":"token","token":' + case.data + b"}"),
        lambda case: Token(case.verdict) if isinstance(case.verdict, str) else REFUSED,
    )


@each_group
def test_value_as_an_unknown_field(name: str) -> None:
    """As a field that nobody knows: it is passed over, but the line has to be JSON."""
    assert {} == wrong(
        values(name),
        lambda case: decoded(b'{"type":"token","x":' + case.data + b',"token":"a"}'),
        lambda case: REFUSED if case.verdict is REFUSED else Token("a"),
    )


def as_line(case: Case) -> object:
    """Return what a whole line is worth: an object or nothing."""
    return case.verdict if isinstance(case.verdict, dict) else REFUSED


@pytest.mark.parametrize("name", ["document", *GROUPS])
def test_line(name: str) -> None:
    """As a whole line."""
    assert {} == wrong(values(name) or DOCUMENTS, lambda case: parsed(case.data), as_line)


@pytest.mark.parametrize("name", ["document", *GROUPS])
def test_line_of_a_stream(name: str) -> None:
    """The same, in pieces, as the second line of a stream; the lines around it are read whatever it is."""
    # A blank line is passed over, and a newline would make two of one.
    cases = [case for case in values(name) or DOCUMENTS if case.data.strip(b" \t\r") and b"\n" not in case.data]

    assert {} == wrong(cases, second_line, as_line)


def second_line(case: Case) -> object:
    decoder = NDJSONDecoder()
    for chunk in [b"{}\n", *cut(case.data, max(1, len(case.data) // 50)), b"\n{}\n"]:
        decoder.receive_data(chunk)
    assert decoder.next_object() == {}
    try:
        found: object = decoder.next_object()
    except ProtocolError as exc:
        found = REFUSED if exc.line == 2 else exc
    assert decoder.next_object() == {}
    return found


EVENTS: dict[bytes, object] = {
    b'{"type":"token","token":"a"}': Token("a"),
    b'{"token":"a","type":"token"}': Token("a"),
    b' {"type" : "token", "token" : "a"} ': Token("a"),
    rb'{"\u0074ype":"token","token":"a"}': Token("a"),
    rb'{"type":"\u0074oken","token":"a"}': Token("a"),
    rb'{"type":"token","\u0074oken":"a"}': Token("a"),
    b'{"type":"token","token":"a","token":"b"}': Token("b"),
    b'{"type":"token","token":null,"token":"b"}': Token("b"),
    b'{"type":"token","token":"a","token":null}': REFUSED,
    b'{"type":"token","type":"token","token":"a"}': Token("a"),
    b'{"type":"start","type":"token","token":"a"}': Token("a"),
    b'{"type":"token","type":"start","token":"a","conversationId":"c"}': Start("c"),
    b'{"type":"token","token":"a","type":"error","error":"e"}': Failure("e"),
    b'{"type":null,"type":"token","token":"a"}': Token("a"),
    b'{"type":"token","type":null,"token":"a"}': REFUSED,
    b'{"type":"token","type":5,"token":"a"}': REFUSED,
    b'{"type":"token","token":"a","Token":"b"}': Token("a"),
    b'{"Type":"token","token":"a"}': REFUSED,
    b'{"TYPE":"token","token":"a"}': REFUSED,
    b'{"type":"Token","token":"a"}': Unknown("Token", {"type": "Token", "token": "a"}),
    b'{"type":"token ","token":"a"}': Unknown("token ", {"type": "token ", "token": "a"}),
    b'{"type":"","token":"a"}': Unknown("", {"type": "", "token": "a"}),
    b'{"type":["token"],"token":"a"}': REFUSED,
    b'{"type":{"type":"token"},"token":"a"}': REFUSED,
    b'{"type":true,"token":"a"}': REFUSED,
    b'{"type":0,"token":"a"}': REFUSED,
    b'{"token":"a"}': REFUSED,
    b'{"type":"token"}': REFUSED,
    b'{"type":"token","text":"a"}': REFUSED,
    b'{"type":"token","token":""}': Token(""),
    b'{"type":"start","conversationId":""}': Start(""),
    b'{"type":"start","conversationId":5}': REFUSED,
    b'{"type":"start","conversationid":"c"}': REFUSED,
    rb'{"type":"start","conversationId":"\ud83d"}': Start("\ufffd"),
    b'{"type":"done","message":"m","conversationId":"c"}': Done("m", "c"),
    b'{"conversationId":"c","message":"m","type":"done"}': Done("m", "c"),
    b'{"type":"done","message":"m","conversationId":null}': REFUSED,
    b'{"type":"done","message":["m"],"conversationId":"c"}': REFUSED,
    b'{"type":"done","message":"m"}': REFUSED,
    rb'{"type":"done","message":"\ude00","conversationId":"c"}': Done("\ufffd", "c"),
    b'{"type":"error","error":"e"}': Failure("e"),
    b'{"type":"error","error":{"message":"e"}}': REFUSED,
    b'{"type":"error","message":"e"}': REFUSED,
    b'{"type":"error","error":"e","token":"a"}': Failure("e"),
    b'{"type":"token","token":"a"}x': REFUSED,
    b'{"type":"token","token":"a"}}': REFUSED,
    b'{"type":"token","token":"a"},': REFUSED,
    b'{"type":"token","token":"a"}{}': REFUSED,
    b'{"type":"token","token":"a",}': REFUSED,
    b'{"type":"token","token":"a"': REFUSED,
    b'["token","a"]': REFUSED,
    b'[{"type":"token","token":"a"}]': REFUSED,
    b'"token"': REFUSED,
}


def test_events() -> None:
    """Names, types and values in every order and number."""
    assert {line: decoded(line) for line in EVENTS} == EVENTS
