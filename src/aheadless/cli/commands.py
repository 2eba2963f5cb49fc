"""What the commands do."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import attrs

from aheadless import ChatClient, Reply, Secret
from aheadless.cli.chat import converse
from aheadless.cli.output import ExitCode, visible
from aheadless.cli.terminal import guard, run, show, write
from aheadless.protocol.codec import encode_event
from aheadless.server import ServerSettings, run_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aheadless.cli.app import Connection

__all__ = ["chat", "demo", "health", "send", "serve"]

Form: TypeAlias = Literal["text", "raw", "json", "ndjson"]
"""How an answer is written."""

QUESTIONS: Final = (
    "What is aheadless?",
    "How do I stop a reply while it is streaming?",
    "What happens when a stream breaks off in the middle?",
)

# A word every 15 ms is a fast reader's pace, and lets one see that it streams.
DEMO_DELAY: Final = 0.015


def send(
    connection: Connection,
    message: str,
    session: str | None,
    *,
    form: Form,
    stream: bool,
) -> int:
    """Send a message and write the answer."""

    async def work() -> int:
        async with connection.client() as client:
            conversation = client.chat(session or _new_session())
            if form == "ndjson":
                async for event in conversation.stream(message):
                    write(encode_event(event).decode("utf-8"))
            elif form == "json":
                reply = await (conversation.stream(message) if stream else conversation.send(message))
                write(json.dumps(_as_json(reply), ensure_ascii=False) + "\n")
            elif stream:
                await show(conversation.stream(message), raw=form == "raw")
            else:
                reply = await conversation.send(message)
                write((reply.text if form == "raw" else visible(reply.text)) + "\n")
        return ExitCode.OK

    return run(work())


def _as_json(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "sessionId": reply.session_id,
        "conversationId": reply.conversation_id,
        "timings": attrs.asdict(reply.timings),
    }


def _new_session() -> str:
    return f"cli:{secrets.token_hex(8)}"


def health(connection: Connection) -> int:
    """Write whether the server is well, and how long it took to say so."""

    async def work() -> int:
        async with connection.client() as client:
            begun = time.perf_counter()
            answer = await client.health()
            took = (time.perf_counter() - begun) * 1000
            write(f"{visible(answer.status)}  {client.base_url}  {took:.0f} ms\n")
        return ExitCode.OK if answer.ok else ExitCode.SERVER

    return run(work())


def chat(connection: Connection, session: str | None) -> int:
    """Chat with a server."""

    def work() -> int:
        with asyncio.Runner() as runner:
            client = connection.client()
            try:
                return converse(client.chat(session or _new_session()), runner)
            finally:
                runner.run(client.aclose())

    return guard(work)


def demo(*, once: bool) -> int:
    """Chat with a server of one's own."""
    if once:
        return run(_ask_all())

    def work() -> int:
        with asyncio.Runner() as runner:
            host = _demo_client()
            client = runner.run(host.__aenter__())
            try:
                return converse(client.chat(_new_session()), runner)
            finally:
                runner.run(host.__aexit__(None, None, None))

    return guard(work)


async def _ask_all() -> int:
    async with _demo_client() as client:
        conversation = client.chat(_new_session())
        for question in QUESTIONS:
            write(f"you: {question}\n\n")
            await show(conversation.stream(question))
            write("\n")
    return ExitCode.OK


@asynccontextmanager
async def _demo_client() -> AsyncIterator[ChatClient]:
    settings = ServerSettings(port=0, rate_limit=None, answers_delay=DEMO_DELAY, shutdown_timeout=1.0)
    async with run_server(settings) as server, ChatClient(server.url, api_key=server.api_key) as client:
        yield client


def serve(**given: Any) -> int:
    """Run a server until a signal."""

    async def work() -> int:
        settings = ServerSettings.from_env(**given)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, ended.set)
            except NotImplementedError:
                break  # Windows: Ctrl-C cancels this coroutine, which ends the server in the same way
        async with run_server(settings) as server:
            write(f"aheadless serves {server.url}\n")
            if settings.key_was_made:
                write(_introduction(server.url, settings.api_key))
            await ended.wait()
            print("finishing the replies that are being written", file=sys.stderr)
        return ExitCode.OK

    return run(work())


def _introduction(url: str, key: Secret) -> str:
    return (
        f"This key was made for this run, as AHEADLESS_API_KEY is not set: {key.reveal()}\n\n"
        f"  curl -N {url}/v1/chat/stream -H 'x-api-key: {key.reveal()}' -H 'content-type: application/json' \\\n"
        '    -d \'{"sessionId": "me", "message": "What is aheadless?"}\'\n\n'
    )
