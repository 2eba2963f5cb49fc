"""A little of what each extra is for: `nox -s package` runs this where the wheel has been installed with it alone."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

from aheadless import ChatClient
from aheadless.testing import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SECRET: Final = "0123456789abcdef" * 3
HEADERS: Final = {"Content-Type": "application/json"}


async def use_discord(client: ChatClient) -> None:
    """Add the bot to one of discord.py's."""
    import discord
    from discord.ext import commands

    from aheadless.bridges.discord import ChatCog

    await commands.Bot("!", intents=discord.Intents.default()).add_cog(ChatCog(client))


async def use_otel(client: ChatClient) -> None:
    """Have a turn that is recorded."""
    import opentelemetry.trace  # noqa: F401 - from now on it is

    await client.chat("s").stream("Hi")
    assert "aheadless._otel" in sys.modules


async def use_redis(_client: ChatClient) -> None:
    """Ask a store whose server is not there."""
    from aheadless import StoreError
    from aheadless.stores import RedisStore

    store = RedisStore("redis://127.0.0.1:9")
    try:
        await store.list()
    except StoreError:
        await store.aclose()


async def use_slack(client: ChatClient) -> None:
    """Add the bot to an app of slack-bolt's."""
    from slack_bolt.async_app import AsyncApp

    from aheadless.bridges.slack import add_chat

    add_chat(AsyncApp(token="xoxb-0", signing_secret=SECRET), client)


async def use_starlette(client: ChatClient) -> None:
    """Answer a visitor with a reply."""
    from aheadless.bridges.starlette import stream_response
    from aheadless.bridges.web import Visitors, to_ndjson

    visitor = Visitors(SECRET).admit(HEADERS, {})
    await stream_response(to_ndjson(client.chat(visitor.session_id).stream("Hi")), headers=visitor.headers)


async def use_telegram(client: ChatClient) -> None:
    """Add the bot to a dispatcher of aiogram's."""
    from aiogram import Dispatcher

    from aheadless.bridges.telegram import chat_router

    Dispatcher().include_router(chat_router(client))


async def use_tui(client: ChatClient) -> None:
    """Ask on the full screen, and see the answer there."""
    from textual.widgets import Markdown

    from aheadless.cli.full.app import FullChat
    from aheadless.cli.full.desk import Desk

    url = client.base_url
    async with Desk(lambda **options: ChatClient(url, api_key="none", **options)) as desk:
        app = FullChat(desk)
        async with app.run_test() as pilot:
            await pilot.press("H", "i", "enter")
            while not desk.messages(desk.current):
                await pilot.pause()
            while "Hello world" not in [shown.source for shown in app.query(Markdown)]:
                await pilot.pause()


async def use_uvloop(client: ChatClient) -> None:
    """Have a turn on its event loop."""
    import uvloop

    assert isinstance(asyncio.get_running_loop(), uvloop.Loop)
    await client.chat("s").stream("Hi")


async def use_web(_client: ChatClient) -> None:
    """Admit a visitor."""
    from aheadless.bridges.web import Visitors

    assert Visitors(SECRET).admit(HEADERS, {}).session_id.startswith("web:")


USES: Final[dict[str, Callable[[ChatClient], Awaitable[None]]]] = {
    "discord": use_discord,
    "otel": use_otel,
    "redis": use_redis,
    "slack": use_slack,
    "starlette": use_starlette,
    "telegram": use_telegram,
    "tui": use_tui,
    "uvloop": use_uvloop,
    "web": use_web,
}


async def use(extra: str) -> None:
    """Use an extra with a client whose server answers."""
    async with ScriptedServer() as server, ChatClient(server.url, api_key="none") as client:
        await USES[extra](client)


def main(extra: str) -> None:
    """Use an extra."""
    if extra == "uvloop":
        import uvloop

        uvloop.run(use(extra))
    else:
        asyncio.run(use(extra))


main(*sys.argv[1:])
