"""The scripted server tells what its clients did."""

from __future__ import annotations

import asyncio

from aheadless.testing import ScriptedServer


async def test_a_client_that_leaves_before_it_is_read(scripted: ScriptedServer):
    """Whoever waits for it to leave does not wait for ever: it has left already."""
    _, writer = await asyncio.open_connection(*scripted.url.removeprefix("http://").split(":"))
    writer.write(b"POST /v1/chat HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    writer.close()

    request = await scripted.arrived(1)

    async with asyncio.timeout(5):
        await request.left.wait()
    assert request.left_at is not None
    await writer.wait_closed()
