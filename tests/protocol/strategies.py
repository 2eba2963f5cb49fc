"""Hypothesis strategies for events, streams and the ways to cut them."""

from __future__ import annotations

from hypothesis import strategies as st

from aheadless.protocol.events import Done, Event, Failure, Start, Token, Unknown

texts = st.text(max_size=30)
ids = st.text(st.sampled_from("abcdefgh0123456789"), min_size=1, max_size=32)
# Halves of pairs too: a token may end in one (protocol.md §3.8).
token_texts = st.text(st.characters() | st.sampled_from("\ud83d\ude00\u2028\x0b\x1c\r\n"), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def unknown_events(draw: st.DrawFn) -> Unknown:
    kind = draw(texts.filter(lambda text: text not in {"start", "token", "done", "error"}))
    return Unknown(kind, {**draw(st.dictionaries(texts, json_values, max_size=3)), "type": kind})


events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Start, ids),
    st.builds(Token, token_texts),
    st.builds(Done, texts, ids),
    st.builds(Failure, texts),
    unknown_events(),
)


@st.composite
def replies(draw: st.DrawFn) -> list[Event]:
    """A whole stream that is as it should be."""
    conversation_id = draw(ids)
    middle = draw(st.lists(st.builds(Token, texts) | unknown_events(), max_size=8))
    end = draw(st.builds(Done, texts, st.just(conversation_id)) | st.builds(Failure, texts))
    return [Start(conversation_id), *middle, end]


@st.composite
def pieces(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Any way of cutting the data."""
    stops = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:stop] for start, stop in zip([0, *stops], [*stops, len(data)], strict=True)]
