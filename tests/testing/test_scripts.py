"""What a script sends is what it was given, however it is cut."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from aheadless.testing import Script


@given(st.binary(max_size=30), st.none() | st.integers(1, 40) | st.lists(st.integers(0, 40), max_size=4).map(tuple))
def test_pieces(data, pieces):
    """The pieces are the data, the last and shorter one included."""
    script = Script(data, pieces=pieces, gates={3: asyncio.Event()})

    sliced = [*script.slices()]

    assert b"".join(piece for _, piece in sliced) == data
    assert [offset for offset, _ in sliced] == [data.index(piece, offset) for offset, piece in sliced]
