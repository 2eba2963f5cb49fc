"""Chat in a terminal. Ctrl-C stops an answer; at the prompt, Ctrl-C, Ctrl-D or an empty line ends the program."""

import asyncio

from aheadless import AheadlessError, Chat, ChatClient

# An answer could move the cursor or change the window's title: drop what is not to be shown.
CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


async def answer(chat: Chat, question: str) -> None:
    await asyncio.sleep(0)  # let the loop, which stood still at the prompt, notice which connections were closed
    try:
        async for text in chat.stream(question).text():
            print(text.translate(CONTROLS), end="", flush=True)
        print()
    except AheadlessError as error:
        print(f"\n[{error}]")


def main() -> None:
    with asyncio.Runner() as runner:
        client = ChatClient()  # AHEADLESS_BASE_URL and AHEADLESS_API_KEY
        chat = client.chat("terminal")
        try:
            while question := input("> ").strip():
                try:
                    runner.run(answer(chat, question))
                except KeyboardInterrupt:  # the runner has cancelled the answer
                    print(" [stopped]")
        except (EOFError, KeyboardInterrupt):
            print()
        finally:
            runner.run(client.aclose())


main()
