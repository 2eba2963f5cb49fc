"""Talk in fifty sessions at once, with one client: each session has its own history and its own order."""

import asyncio

from aheadless import AheadlessError, ChatClient

USERS = 50


async def ask(client: ChatClient, user: int) -> bool:
    chat = client.chat(f"user-{user}")
    try:
        # Both at once: the second question of a session waits until the first is answered.
        first, second = await asyncio.gather(chat.stream("My name is Ada"), chat.stream("What is my name?"))
    except AheadlessError as error:
        print(f"user {user}: {error}")
        return False
    return first.conversation_id == second.conversation_id


async def main() -> None:
    async with ChatClient(max_connections=USERS) as client:
        answered = await asyncio.gather(*(ask(client, user) for user in range(USERS)))
    print(f"{sum(answered)} of {USERS} users were answered twice")


asyncio.run(main())
