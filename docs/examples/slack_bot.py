"""A Slack bot that answers where it is mentioned and in direct messages, by Socket Mode."""

import asyncio
import os

from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp
from slack_sdk.web.async_client import AsyncWebClient

from aheadless import ChatClient
from aheadless.bridges.slack import add_chat


async def main() -> None:
    url = os.environ.get("SLACK_API_URL", AsyncWebClient.BASE_URL)  # another one for GovSlack, or for tests
    app = AsyncApp(client=AsyncWebClient(os.environ["SLACK_BOT_TOKEN"], base_url=url))
    async with ChatClient() as client:  # AHEADLESS_BASE_URL and AHEADLESS_API_KEY
        add_chat(app, client)
        await AsyncSocketModeHandler(app, os.environ["SLACK_APP_TOKEN"]).start_async()


asyncio.run(main())
