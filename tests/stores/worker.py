"""A process that talks in sessions which it shares with others, to be killed and paused: `python -m tests.stores.worker`.

Its one argument is a JSON object, see `Orders`. It tells what happens in JSON objects, one a line:

- `begun`: the server has the question and begins to answer.
- `paused`: it is about to stop itself, in the middle of a reply, because it read a line `pause`.
- `told`: how a turn ended, `complete` or `lost` (or an error that nobody expected), with the reply, if there is one,
  and when it was asked and ended, by the clock that all processes of a machine share.

It ends, after the turns that are under way, when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from typing import Any

import attrs

from aheadless import ChatClient, StoreError
from aheadless._store import SessionStore
from aheadless.stores import RedisStore, SQLiteStore


@attrs.frozen
class Orders:
    """What a worker is to do."""

    url: str
    key: str
    store: dict[str, Any]
    name: str
    sessions: list[str]
    tasks: int = 1
    """How many turns it has at a time."""
    turns: int | None = None
    """How many turns each task has; None: it goes on until its input ends."""


def open_store(store: dict[str, Any]) -> SessionStore:
    """Return the store that all workers share."""
    options = dict(store)
    match kind := options.pop("kind"):
        case "sqlite":
            return SQLiteStore(**options)
        case "redis":
            return RedisStore(**options)
        case _:
            raise ValueError(f"there is no store of the kind {kind}")


class Worker:
    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.random = random.Random(orders.name)
        self.count = 0
        self.pausing = False
        self.ending = False

    async def run(self) -> None:
        orders = self.orders
        store = open_store(orders.store)
        async with ChatClient(orders.url, api_key=orders.key, store=store, max_wait=0) as client:
            listening = asyncio.create_task(self.listen())
            async with asyncio.TaskGroup() as group:
                for _ in range(orders.tasks):
                    group.create_task(self.talk(client))
            listening.cancel()
            await asyncio.wait([listening])

    async def listen(self) -> None:
        lines = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        try:
            while await lines.readline():
                self.pausing = True
            self.ending = True
        finally:
            transport.close()

    async def talk(self, client: ChatClient) -> None:
        turns = 0
        while not self.ending and turns != self.orders.turns:
            turns += 1
            self.count += 1
            await self.turn(client, self.random.choice(self.orders.sessions), f"{self.orders.name}-{self.count}")

    async def turn(self, client: ChatClient, session: str, text: str) -> None:
        asked = time.monotonic()
        reply = None
        try:
            reply = await client.chat(session).stream(
                text,
                on_start=lambda _: tell("begun", session=session, text=text),
                on_token=lambda _: self.pause(session, text),
            )
        except StoreError as exc:
            reply = exc.reply
            outcome = "lost" if exc.lost else repr(exc)
        except Exception as exc:  # noqa: BLE001 - the test asserts that there are none
            outcome = repr(exc)
        else:
            outcome = "complete"
        answer = {} if reply is None else {"reply": reply.text, "conversation": reply.conversation_id}
        tell("told", session=session, text=text, outcome=outcome, asked=asked, ended=time.monotonic(), **answer)

    def pause(self, session: str, text: str) -> None:
        if self.pausing:
            self.pausing = False
            tell("paused", session=session, text=text)
            os.kill(os.getpid(), signal.SIGSTOP)  # as somebody else would do it, but surely in the middle of a turn


def tell(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Worker(Orders(**json.loads(sys.argv[1]))).run())
