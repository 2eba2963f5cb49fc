"""Send with an aiohttp session that your program has already; the client never closes it."""

import asyncio

import aiohttp

from aheadless import ChatClient


async def main() -> None:
    connector = aiohttp.TCPConnector(limit=20, keepalive_timeout=4)  # the server closes after 5 s
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        async with ChatClient(session=session) as client:
            print(await client.chat("own-session").stream("Hello"))
        print(f"closed: {session.closed}")


asyncio.run(main())
