"""A Discord bot: mention it, write to it directly, or go on in the thread it opened. DISCORD_TOKEN is its token."""

import asyncio
import contextlib
import os

import discord
from discord.ext import commands

from aheadless import ChatClient
from aheadless.bridges.discord import ChatCog


async def main() -> None:
    discord.utils.setup_logging()
    intents = discord.Intents.default()
    intents.message_content = True  # to be switched on in the developer portal as well
    async with ChatClient() as client, commands.Bot("!", intents=intents) as bot:
        await bot.add_cog(ChatCog(client, open_threads=True))
        await bot.start(os.environ["DISCORD_TOKEN"])


with contextlib.suppress(KeyboardInterrupt):  # replies that are being written show what they have
    asyncio.run(main())
