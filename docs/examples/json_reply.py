"""Get the answer in one piece, without a stream."""

import asyncio

from aheadless import ChatClient, Timeouts


async def main() -> None:
    async with ChatClient(timeouts=Timeouts(send=30)) as client:
        chat = client.chat("json-reply")
        reply = await chat.send("Hello")
        print(reply.text)
        for message in chat.messages:
            print(f"{message.role}: {message.text} [{message.status}]")


asyncio.run(main())
