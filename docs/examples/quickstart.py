"""Ask one question and print the answer while it is written."""

import asyncio

from aheadless import ChatClient


async def main() -> None:
    async with ChatClient() as client:  # AHEADLESS_BASE_URL and AHEADLESS_API_KEY
        chat = client.chat("quickstart")
        stream = chat.stream("What happens when the stream breaks?")
        async for text in stream.text():
            print(text, end="", flush=True)
        print()

        reply = await stream  # the loop has ended by itself, so the reply is complete
        print(f"[{len(reply.text)} characters in {reply.timings.total:.1f} s, conversation {reply.conversation_id}]")


asyncio.run(main())
