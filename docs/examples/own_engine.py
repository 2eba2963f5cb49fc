"""Serve the API from your own program, with answers of your own, and talk to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from aheadless import ChatClient, Message
from aheadless.server import ServerSettings, run_server


class Shout:
    """Say what the user said, louder: any object with a `reply` method is an engine."""

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        for word in history[-1].text.split():
            yield word.upper() + " "


async def main() -> None:
    settings = ServerSettings(port=0, engine=Shout(), rate_limit=None)  # any free port, a key of its own making
    async with run_server(settings) as server, ChatClient(server.url, api_key=server.api_key) as client:
        print(await client.chat("own-engine").stream("hello from the other side"))


asyncio.run(main())
