"""Stop a reply, and read it back from the server's history, where it was finished all the same."""

import asyncio

from aheadless import ChatClient


async def main() -> None:
    async with ChatClient() as client:  # AHEADLESS_ADMIN_KEY too
        chat = client.chat("read-back")
        async with chat.stream("Tell me a story that is longer than one word") as stream:
            async for text in stream.text():
                print(f"left after {text!r}")
                break

        assert chat.conversation_id is not None  # `start` told it
        async with asyncio.timeout(60):  # if its model fails, the server never stores a reply
            while (last := (await client.admin.conversation(chat.conversation_id)).messages[-1]).role == "user":
                await asyncio.sleep(0.1)
        print(f"the whole reply: {last.content!r}")


asyncio.run(main())
