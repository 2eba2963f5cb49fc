"""What several test files need."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aheadless.exceptions import AheadlessError
from aheadless.protocol.events import Event
from aheadless.protocol.turn import Turn

KEY = "test-key-0123456789-abcdefgh"
ADMIN_KEY = "admin-key-0123456789-abcdefgh"


def recorded() -> dict[str, dict[str, Any]]:
    """Return the exchanges that were recorded on the reference server, by name."""
    lines = (Path(__file__).parent / "data" / "recorded.ndjson").read_text("utf-8").splitlines()
    return {exchange["name"]: exchange for exchange in map(json.loads, filter(None, lines))}


def play(chunks: Iterable[bytes], turn: Turn | None = None) -> tuple[list[Event], AheadlessError | None, Turn]:
    """Feed a turn with chunks and their end; return its events and what it raised."""
    turn = turn or Turn()
    events: list[Event] = []
    try:
        for chunk in chunks:
            turn.receive_data(chunk)
            events += iter(turn.next_event, None)
        turn.receive_eof()
        events += iter(turn.next_event, None)
    except AheadlessError as exc:
        return events, exc, turn
    return events, None, turn


def cut(data: bytes, size: int) -> list[bytes]:
    """Return the data in pieces of a size."""
    return [data[start : start + size] for start in range(0, len(data), size)]
