"""A Telegram bot that answers in private chats, and in groups where it is mentioned or replied to."""

import asyncio
import logging
import os

from aiogram import Bot, Dispatcher

from aheadless import ChatClient
from aheadless.bridges.telegram import chat_router


async def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    bot = Bot(os.environ["TELEGRAM_TOKEN"])  # from @BotFather
    async with ChatClient() as client:  # AHEADLESS_BASE_URL and AHEADLESS_API_KEY
        dispatcher = Dispatcher()
        dispatcher.include_router(chat_router(client))
        await dispatcher.start_polling(bot)


asyncio.run(main())
