"""What a token costs is counted, not timed: calls of Python functions, steps of the event loop, looks of the decoder."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from aheadless import ChatClient, Token
from aheadless.testing import Script, ScriptedServer, events, stream_answer
from tests.conftest import MakeClient

TOKENS = 400


@pytest.fixture
async def client(scripted: ScriptedServer, make_client: MakeClient) -> ChatClient:
    """A client whose answers come in one packet, or as few as the socket makes of it."""
    scripted.add(Script(stream_answer(events(*["token "] * TOKENS))))
    return make_client(scripted.url)


def count_calls(counts: Counter[str]) -> Any:
    """Return a profile function that counts the calls of our functions by name."""

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and "aheadless" in frame.f_code.co_filename and "testing" not in frame.f_code.co_filename:
            counts[frame.f_code.co_name] += 1

    return profile


async def test_iterating(client: ChatClient) -> None:
    """A token that came with others is one call: the iterator's own step."""
    counts: Counter[str] = Counter()
    tokens = 0

    sys.setprofile(count_calls(counts))
    try:
        async for event in client.chat("s").stream("Hi"):
            tokens += isinstance(event, Token)
    finally:
        sys.setprofile(None)

    assert tokens == TOKENS
    assert TOKENS <= counts["__anext__"] < TOKENS + 10
    assert sum(counts.values()) - counts["__anext__"] < TOKENS, counts


async def test_on_token(client: ChatClient) -> None:
    """With a plain function for tokens there is one call for each as well: the one that calls it."""
    counts: Counter[str] = Counter()
    texts: list[str] = []

    sys.setprofile(count_calls(counts))
    try:
        await client.chat("s").stream("Hi", on_token=texts.append)
    finally:
        sys.setprofile(None)

    assert texts == ["token "] * TOKENS
    assert TOKENS <= counts["call"] < TOKENS + 10
    assert sum(counts.values()) - counts["call"] < TOKENS, counts


async def test_the_decoder_is_asked_once_a_block(client: ChatClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens a block has."""
    import aheadless.protocol.turn as module

    blocks: list[int] = []
    decode = module.decode_tokens

    def counted(block: bytes) -> list[Token]:
        tokens = decode(block)
        blocks.append(len(tokens))
        return tokens

    monkeypatch.setattr(module, "decode_tokens", counted)

    await client.chat("s").stream("Hi")

    assert sum(blocks) == TOKENS
    assert len(blocks) < 10


async def test_nothing_is_waited_for_between_tokens(client: ChatClient) -> None:
    """Tokens that have come are given without a step of the event loop in between."""
    steps = 0

    async def count_steps() -> None:
        nonlocal steps
        while True:
            steps += 1
            await asyncio.sleep(0)

    async with client.chat("s").stream("Hi") as stream:
        counting = asyncio.create_task(count_steps())
        async for event in stream:
            if isinstance(event, Token):
                break
        before = steps
        async for _ in stream.text():
            pass
        counting.cancel()

    assert stream.snapshot == "token " * TOKENS
    assert steps - before < TOKENS / 4
