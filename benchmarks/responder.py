"""A responder that is never the limit: it writes prepared bytes, from a process of its own.

The path of a request says what is sent: `/<dialect>/<mode>/<tokens>/<rate>/…`, where what follows is what the client's
library adds by itself. Dialects are `chat` (this API), `ollama`, `openai` and `anthropic`; modes are

- `burst`: one HTTP chunk for each token, back to back;
- `joined`: the same lines in chunks of 16 KiB;
- `bytes`: one HTTP chunk for each byte;
- `paced`: `rate` tokens a second, each with the time of its sending for a text;
- `stalled`: `start` and one token, and then nothing for as long as the client stays;
- `line`: one line of so many bytes, in chunks of 16 KiB.

`python -m benchmarks.responder` prints its port and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import cast

CONVERSATION = "j57d9c8x0000000000000000000000ab"
PIECE = 16 * 1024
TICK = 0.002  # seconds; paced streams are written in steps of this length
WORD = "token "


def encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- dialects: each gives the lines before, for one token, and after --------------------------------------------------


def chat(token: str) -> bytes:
    return encode({"type": "token", "token": token}) + b"\n"


def chat_frame(tokens: int) -> tuple[bytes, bytes]:
    reply = (WORD * tokens).strip()
    return (
        encode({"type": "start", "conversationId": CONVERSATION}) + b"\n",
        encode({"type": "done", "message": reply, "conversationId": CONVERSATION}) + b"\n",
    )


def ollama(token: str) -> bytes:
    message = {"role": "assistant", "content": token}
    return encode({"model": "m", "created_at": "2026-11-26T00:00:00Z", "message": message, "done": False}) + b"\n"


def ollama_frame(tokens: int) -> tuple[bytes, bytes]:
    message = {"role": "assistant", "content": ""}
    end = {"model": "m", "created_at": "2026-11-26T00:00:00Z", "message": message, "done": True, "eval_count": tokens}
    return b"", encode(end) + b"\n"


def openai(token: str) -> bytes:
    choice = {"index": 0, "delta": {"content": token}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + encode(chunk) + b"\n\n"


def openai_frame(_tokens: int) -> tuple[bytes, bytes]:
    return b"", b"data: [DONE]\n\n"


def anthropic(token: str) -> bytes:
    return sse("content_block_delta", index=0, delta={"type": "text_delta", "text": token})


def sse(kind: str, **data: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + encode({"type": kind, **data}) + b"\n\n"


def anthropic_frame(tokens: int) -> tuple[bytes, bytes]:
    usage = {"input_tokens": 1, "output_tokens": tokens}
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    before = sse("message_start", message=message)
    before += sse("content_block_start", index=0, content_block={"type": "text", "text": ""})
    after = sse("content_block_stop", index=0)
    after += sse("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage=usage)
    return before, after + sse("message_stop")


DIALECTS: dict[str, tuple[Callable[[str], bytes], Callable[[int], tuple[bytes, bytes]], str]] = {
    "chat": (chat, chat_frame, "application/x-ndjson"),
    "ollama": (ollama, ollama_frame, "application/x-ndjson"),
    "openai": (openai, openai_frame, "text/event-stream"),
    "anthropic": (anthropic, anthropic_frame, "text/event-stream"),
}


# --- bytes ------------------------------------------------------------------------------------------------------------


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def head(kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def in_pieces(data: bytes, size: int) -> Iterable[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@functools.lru_cache(maxsize=16)
def prepared(dialect: str, mode: str, tokens: int) -> bytes:
    """Return a whole answer."""
    write, frame, kind = DIALECTS[dialect]
    before, after = frame(tokens)
    if mode == "line":
        # One line of so many bytes: `done`, whose text nobody has to check against tokens.
        done = encode({"type": "done", "message": "x" * tokens, "conversationId": CONVERSATION}) + b"\n"
        lines: Iterable[bytes] = (before, *in_pieces(done, PIECE))
    elif mode == "burst":
        lines = (before, *[write(WORD)] * tokens, after)
    else:
        whole = before + write(WORD) * tokens + after
        lines = in_pieces(whole, 1 if mode == "bytes" else PIECE)
    return head(kind) + b"".join(chunk(line) for line in lines if line) + b"0\r\n\r\n"


# --- the server -------------------------------------------------------------------------------------------------------


class Paced:
    """One stream that is written token by token."""

    def __init__(self, transport: asyncio.WriteTransport, dialect: str, tokens: int, rate: float) -> None:
        self.transport = transport
        self.write, frame, kind = DIALECTS[dialect]
        before, self.after = frame(tokens)
        self.left = tokens
        self.every = 1 / rate
        self.due = time.monotonic() + self.every
        transport.write(head(kind) + (chunk(before) if before else b""))

    def tick(self, now: float) -> bool:
        """Write what is due; return whether more is to come."""
        while self.left and self.due <= now:
            self.left -= 1
            self.due += self.every
            self.transport.write(chunk(self.write(f"{time.monotonic():.6f} ")))
        if not self.left:
            self.transport.write(chunk(self.after) + b"0\r\n\r\n")
        return bool(self.left) and not self.transport.is_closing()


class Ticker:
    """Writes all paced streams."""

    def __init__(self) -> None:
        self.streams: list[Paced] = []
        self.handle: asyncio.TimerHandle | None = None

    def add(self, stream: Paced) -> None:
        # Spread over the interval, as the streams of different users are.
        stream.due += stream.every * (len(self.streams) * 0.618 % 1)
        self.streams.append(stream)
        if self.handle is None:
            self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        self.streams = [stream for stream in self.streams if stream.tick(now)]
        self.handle = asyncio.get_running_loop().call_later(TICK, self.tick) if self.streams else None


class Responder(asyncio.Protocol):
    def __init__(self, ticker: Ticker) -> None:
        self.ticker = ticker
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            top = bytes(self.received[:end]).lower()
            _, _, rest = top.partition(b"content-length:")
            size = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(self.received) < end + 4 + size:
                return
            path = bytes(self.received[:end]).split(b" ", 2)[1].decode()
            del self.received[: end + 4 + size]
            self.answer(path)

    def answer(self, path: str) -> None:
        _, dialect, mode, tokens, rate, *_ = path.split("/")
        if mode == "paced":
            self.ticker.add(Paced(self.transport, dialect, int(tokens), float(rate)))
        elif mode == "stalled":
            write, frame, kind = DIALECTS[dialect]
            self.transport.write(head(kind) + chunk(frame(1)[0] + write(WORD)))
        else:
            self.transport.write(prepared(dialect, mode, int(tokens)))


async def main() -> None:
    loop = asyncio.get_running_loop()
    ticker = Ticker()
    server = await loop.create_server(lambda: Responder(ticker), "127.0.0.1", 0, backlog=16384)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    from benchmarks.measure import pin, raise_file_limit

    pin(1)
    raise_file_limit()
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
