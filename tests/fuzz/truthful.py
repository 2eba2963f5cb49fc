"""A server that does with a message what the message says, and keeps a truthful log of what became of each."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal, TypeAlias, get_args

import attrs

from aheadless.protocol.events import Failure
from aheadless.testing import CONVERSATION_ID, events, json_answer, lines, stream_answer

Plan: TypeAlias = Literal[
    "whole",
    "gated",
    "silent",
    "cut",
    "reset",
    "dropped",
    "error",
    "garbage",
    "unauthorized",
    "limited",
    "failed",
    "unavailable",
]
"""All of a reply; a reply of which the half waits; nothing until the gate opens; half a reply, then FIN or RST; nothing
and a FIN; an `error` event; a line that is no JSON; 401; 500; and 429 and 503, both with a Retry-After, the first time,
then a reply."""

PLANS: tuple[Plan, ...] = get_args(Plan)
AGAIN = frozenset({"limited", "unavailable"})
TOKENS = ("Hel", "lo ", "wor", "ld")
TEXT = "".join(TOKENS)
EVENTS = events(*TOKENS)
STREAM = stream_answer(EVENTS)
HALF = len(stream_answer(EVENTS[:3])) - len(b"0\r\n\r\n")  # `start` and two tokens
WHOLE = json_answer({"conversationId": CONVERSATION_ID, "message": TEXT})
ERROR = stream_answer([*EVENTS[:3], Failure("no")])
UNAVAILABLE = json_answer({"error": "busy"}, status=503, headers={"Retry-After": "0"})
REFUSALS: dict[str, bytes] = {
    "unauthorized": json_answer({"error": "Unauthorized"}, status=401),
    "limited": json_answer({"error": "Too many requests"}, status=429, headers={"Retry-After": "0"}),
    "failed": json_answer({"error": "Internal server error"}, status=500),
}


@attrs.define(eq=False)
class Told:
    """What the server knows of one message."""

    arrived: int = 0
    """In how many requests it came whole."""
    stored: int = 0
    """In how many of them it was not refused."""


@attrs.define(eq=False)
class TruthfulServer:
    """Listens on loopback; to be opened, and closed at the end."""

    port: int = 0
    log: dict[str, Told] = attrs.field(factory=dict[str, Told])
    gate: asyncio.Event = attrs.field(factory=asyncio.Event)
    """What waits, waits for this."""
    _server: asyncio.Server | None = None
    _tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = attrs.field(factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def listening(self) -> bool:
        return self._server is not None

    async def open(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Die: listen no more, and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def open_gate(self) -> None:
        """Let go on what waits now."""
        self.gate.set()
        self.gate = asyncio.Event()

    def cut(self) -> None:
        """Cut every connection."""
        for task, writer in self._tasks.items():
            writer.transport.abort()
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del self._tasks[task]
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether there can be another one on this connection."""
        fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        length = next(int(field[15:]) for field in fields if field.startswith("content-length:"))
        request: dict[str, Any] = json.loads(await reader.readexactly(length))
        message: str = request["message"]
        plan: Plan = message.split(maxsplit=1)[0]  # type: ignore[assignment]
        told = self.log.setdefault(message, Told())
        told.arrived += 1
        if plan == "unauthorized" or (plan in AGAIN and told.arrived == 1):
            writer.write(REFUSALS.get(plan, UNAVAILABLE))
            return True
        told.stored += 1
        streamed = fields[0].startswith("post /v1/chat/stream")
        return await self._reply(plan, writer, STREAM if streamed else WHOLE, HALF if streamed else len(WHOLE) // 2)

    async def _reply(self, plan: Plan, writer: asyncio.StreamWriter, answer: bytes, half: int) -> bool:
        match plan:
            case "gated":
                writer.write(answer[:half])
                await self.gate.wait()
                writer.write(answer[half:])
            case "silent":
                await self.gate.wait()
                writer.write(answer)
            case "failed":
                writer.write(REFUSALS["failed"])
            case "error":
                writer.write(ERROR if half == HALF else REFUSALS["failed"])
            case "garbage":
                writer.write(stream_answer([*lines(EVENTS[:3]), b"oops\n"]) if half == HALF else json_answer([]))
            case "cut" | "reset":
                writer.write(answer[:half])
                await writer.drain()
                if plan == "reset":
                    writer.transport.abort()
                return False
            case "dropped":
                return False
            case _:
                writer.write(answer)
        await writer.drain()
        return True
