"""Let functions be called as the answer arrives: for the whole client, for a session, for one question."""

import asyncio

from aheadless import AheadlessError, ChatClient, Reply, Start


def log_error(error: AheadlessError) -> None:
    print(f"[{error.session_id}: {error} (the message was {error.delivery.value})]")


async def save(reply: Reply) -> None:
    await asyncio.sleep(0)  # a database would be written here; the next event waits for it
    print(f"\n[saved {len(reply.text)} characters]")


async def main() -> None:
    async with ChatClient(on_error=log_error) as client:
        chat = client.chat("callbacks", on_done=save)

        @chat.on_start
        def announce(start: Start) -> None:
            print(f"[conversation {start.conversation_id}]")

        reply = await chat.stream("Hello there", on_token=lambda text: print(text, end="", flush=True))
        print(f"[the reply: {reply.text!r}]")


asyncio.run(main())
