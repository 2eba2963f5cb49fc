"""Stop a reply from another task, as a Stop button does."""

import asyncio

from aheadless import Chat, ChatClient, ReplyStream, StreamStoppedError


async def show(stream: ReplyStream) -> None:
    async for text in stream.text():  # after stop() the loop just ends
        print(text, end="", flush=True)
    print(f"\n[{stream.state.value}]")


async def press_stop(chat: Chat, stream: ReplyStream) -> None:
    """Press the button as soon as there is something to read."""
    async with stream.subscribe() as events:
        async for _ in events:
            if stream.snapshot:
                break
    chat.stop()  # or stream.stop(): plain calls, from any task of the event loop


async def main() -> None:
    async with ChatClient() as client:
        chat = client.chat("stop-button")
        stream = chat.stream("Tell me a long story about a stream that would not end")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(press_stop(chat, stream))
            tasks.create_task(show(stream))

        try:
            await stream
        except StreamStoppedError as stopped:
            print(f"[kept {len(stopped.partial)} characters]")
        print(f"[{[message.status for message in chat.messages]}]")


asyncio.run(main())
