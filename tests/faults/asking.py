"""How a fault is tried: ask once, with three attempts allowed, and look at everything that is told of the failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from aheadless import AheadlessError, ChatClient, Delivery, Retry, Retrying
from aheadless.testing import Script, ScriptedServer, chunked, events, head, lines, stream_answer
from tests.support import KEY
from tests.virtual import run_virtually

E = TypeVar("E", bound=AheadlessError)

NS, RJ, UN, AC = Delivery.NOT_SENT, Delivery.REJECTED, Delivery.UNKNOWN, Delivery.ACCEPTED
FAST = Retry(attempts=3, base=0.001, cap=0.001)

HELLO = events("Hel", "lo")
WHOLE = stream_answer(HELLO)
# The whole head, `start` and the first token; then what is missing.
FIRST = head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}) + chunked(
    lines(HELLO[:2]), last=False
)
REST = chunked(lines(HELLO[2:]))


async def fail(
    client: ChatClient, kind: type[E], delivery: Delivery, *, partial: str = "", json: bool = False, **options: Any
) -> E:
    """Ask, which must fail in exactly this way; return the error."""
    chat = client.chat("s")
    told: list[str] = []
    with pytest.raises(AheadlessError) as caught:
        await (chat.send("Hi", **options) if json else chat.stream("Hi", on_token=told.append, **options))
    error = caught.value

    assert type(error) is kind, repr(error)
    assert (error.delivery, error.partial, error.session_id) == (delivery, partial, "s")
    assert "".join(told) == partial, "what was told is not what is in the error"
    assert not chat.busy
    return error


def virtually(
    scenario: Callable[[ScriptedServer, ChatClient, list[Retrying]], Awaitable[None]], *scripts: Script, **options: Any
) -> None:
    """Run a scenario on a virtual clock, with a server that has these scripts and a client of it."""

    async def main() -> None:
        retries: list[Retrying] = []
        options.setdefault("retry", FAST)
        async with (
            ScriptedServer(*scripts) as server,
            ChatClient(server.url, api_key=KEY, on_retry=retries.append, **options) as client,
        ):
            await scenario(server, client, retries)

    run_virtually(main(), patience=0.02)


def now() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()
