"""A Slack bot that answers where it is mentioned and in direct messages, by Socket Mode."""

import asyncio
import contextlib
import os

from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp

from aheadless import ChatClient
from aheadless.bridges.slack import add_chat


async def main() -> None:
    app = AsyncApp()  # SLACK_BOT_TOKEN
    app.client.base_url = os.environ.get("SLACK_API_URL", app.client.base_url)  # of GovSlack, or of a test
    async with ChatClient() as client:  # AHEADLESS_BASE_URL, AHEADLESS_API_KEY
        add_chat(app, client)
        handler = AsyncSocketModeHandler(app, os.environ["SLACK_APP_TOKEN"])
        try:
            await handler.start_async()
        finally:
            await handler.close_async()


with contextlib.suppress(KeyboardInterrupt):  # replies that are being written show what they have
    asyncio.run(main())
