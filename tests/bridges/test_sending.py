"""A stream for a browser that may stop taking it; what the frameworks make of that is in the tests of each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from aheadless import ChatClient, ConfigurationError
from aheadless.bridges._sending import Sending
from aheadless.bridges.web import to_ndjson
from aheadless.testing import ScriptedServer
from tests.bridges.web_apps import SILENT_AFTER_A_TOKEN


async def test_next_piece_is_asked_for_too_late(scripted: ScriptedServer, client: ChatClient):
    """The upstream is closed by then; who asks all the same is told so, and that is the end."""
    scripted.add(SILENT_AFTER_A_TOKEN)
    sending = Sending(to_ndjson(client.chat("s").stream("Hi")), 0.01)

    assert b'"start"' in await anext(sending)
    async with asyncio.timeout(30):
        await (await scripted.arrived(1)).left.wait()
        *_, last = [json.loads(piece) async for piece in sending]

    assert (last["type"], last["error"]) == ("error", "The answer was stopped.")


async def test_nobody_holds_it_any_more(scripted: ScriptedServer, client: ChatClient):
    """The upstream is closed at once, and not when the time is over."""
    scripted.add(SILENT_AFTER_A_TOKEN)
    sending = Sending(to_ndjson(client.chat("s").stream("Hi")), 600)
    await anext(sending)

    del sending

    async with asyncio.timeout(30):
        await (await scripted.arrived(1)).left.wait()


async def test_it_is_closed(scripted: ScriptedServer, client: ChatClient):
    """The upstream is closed with it, and nothing comes any more."""
    scripted.add(SILENT_AFTER_A_TOKEN)
    sending = Sending(to_ndjson(client.chat("s").stream("Hi")), 0.01)
    await anext(sending)

    await sending.aclose()

    assert not client.chat("s").busy
    assert [piece async for piece in sending] == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1"])
async def test_time_out_that_is_no_time(client: ChatClient, seconds: Any):
    """It is refused."""
    with pytest.raises(ConfigurationError, match="send_timeout"):
        Sending(to_ndjson(client.chat("s").stream("Hi")), seconds)
