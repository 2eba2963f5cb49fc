"""Catch what can go wrong, and know what became of the message."""

import asyncio
import sys

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    Delivery,
    InvalidRequestError,
    RateLimitError,
    RequestTimeoutError,
)


async def main() -> None:
    async with ChatClient(api_key="not-the-key-of-this-server") as client:
        chat = client.chat("errors")
        try:
            chat.stream("")
        except InvalidRequestError as error:
            print(f"never sent: {error}")

        try:
            await chat.stream("Hello")
        except AuthenticationError as error:
            print(f"the key is wrong: {error.status}, {error.delivery.value}")
        except RateLimitError:
            print("too many requests: wait, then send it again")
        except RequestTimeoutError as error:
            print(f"timed out waiting for {error.phase}, after {error.partial!r}")
        except AheadlessError as error:
            if error.delivery in {Delivery.NOT_SENT, Delivery.REJECTED}:
                print(f"{error}: it can be sent again")
            else:
                print(f"{error}: the server may have the message; so far it said {error.partial!r}", file=sys.stderr)


asyncio.run(main())
