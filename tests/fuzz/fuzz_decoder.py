"""Feed the decoder with what a coverage-guided fuzzer thinks of: `nox -s fuzz` runs this, pytest does not.

No bytes raise anything but ProtocolError or StreamInterruptedError; any way of cutting them gives the same events; and
the quick reader takes nothing that the careful one reads differently.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aheadless.protocol"]):
    from aheadless.exceptions import AheadlessError, ProtocolError, StreamInterruptedError
    from aheadless.protocol.codec import _event_from, decode_event
    from aheadless.protocol.events import Event
    from aheadless.protocol.ndjson import parse_object
    from aheadless.protocol.turn import Turn

# Small, so that the fuzzer reaches them.
MAX_LINE, MAX_STREAM = 200, 1000


def play(chunks: list[bytes]) -> tuple[list[Event], type[AheadlessError] | None, str, bool]:
    """Return all that a turn makes of these chunks."""
    turn = Turn(max_line=MAX_LINE, max_stream=MAX_STREAM)
    events: list[Event] = []
    try:
        for chunk in chunks:
            turn.receive_data(chunk)
            events += iter(turn.next_event, None)
        turn.receive_eof()
        events += iter(turn.next_event, None)
    except (ProtocolError, StreamInterruptedError) as exc:
        return events, type(exc), str(exc), exc.partial == turn.text
    return events, None, "", turn.over


def decide(line: bytes, *, quick: bool) -> Event | str:
    try:
        return decode_event(line) if quick else _event_from(parse_object(line))
    except ProtocolError as exc:
        return str(exc)


def test_one_input(data: bytes) -> None:
    """The first byte says how the rest is cut."""
    size, body = data[:1], data[1:]
    whole = play([body])
    step = size[0] + 1 if size else 1

    assert whole[-1]  # it came to an end, and the error has all of the text
    assert play([body[start : start + step] for start in range(0, len(body), step)]) == whole
    for line in body.split(b"\n"):
        assert decide(line, quick=True) == decide(line, quick=False)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(f"usage: {Path(__file__).name} [corpus folder] -max_total_time=60")
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
