"""What the commands do."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import secrets
import socket
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from aheadless import AheadlessError, ChatClient, ConfigurationError, Reply, ReplyFailedError
from aheadless.cli.chat import converse
from aheadless.cli.output import ExitCode, visible, visible_json
from aheadless.cli.process import complain, write
from aheadless.cli.terminal import on_first_signal, run, show
from aheadless.protocol.codec import encode_event
from aheadless.protocol.events import Failure
from aheadless.server import ServerSettings, run_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from aheadless import Chat

__all__ = ["Form", "chat", "demo", "health", "send", "serve"]

Form: TypeAlias = Literal["text", "raw", "json", "ndjson"]
"""How an answer is written."""

QUESTIONS: Final = (
    "What is aheadless?",
    "How do I stop a reply?",
    "What happens when a stream breaks off in the middle?",
)

# A word every 15 ms is a fast reader's pace, and lets one see that it streams.
DEMO_DELAY: Final = 0.015

# In use, or below 1024 and not for this user; with any other error it is the host that cannot be had.
_PORT_TAKEN: Final = frozenset([errno.EADDRINUSE, errno.EACCES])

GREETING: Final = "Ask something. /help lists the commands, Ctrl-D leaves."
DEMO_GREETING: Final = (
    "A server and a chat in one process: the answers are passages of the documentation of aheadless.\n"
    f'Try "{QUESTIONS[0]}" /help lists the commands, Ctrl-D leaves.'
)


def send(client: Callable[[], ChatClient], message: str, session: str | None, *, form: Form, stream: bool) -> int:
    """Send a message and write the answer."""

    async def work() -> int:
        async with client() as opened:
            conversation = opened.chat(session or _new_session())
            match form:
                case "ndjson":
                    await _write_events(conversation, message)
                case "json":
                    await _write_object(conversation, message, stream=stream)
                case _ if stream:
                    await show(conversation.stream(message), raw=form == "raw")
                case _:
                    reply = await conversation.send(message)
                    write((reply.text if form == "raw" else visible(reply.text)) + "\n")
        return ExitCode.OK

    return run(work())


async def _write_events(conversation: Chat, message: str) -> None:
    try:
        async for event in conversation.stream(message):
            _write_json_line(encode_event(event).decode("utf-8"))
    except ReplyFailedError as exc:
        _write_json_line(encode_event(Failure(exc.reason)).decode("utf-8"))
        raise


async def _write_object(conversation: Chat, message: str, *, stream: bool) -> None:
    try:
        reply = await (conversation.stream(message) if stream else conversation.send(message))
    except AheadlessError as exc:
        failed = {"sessionId": conversation.session_id, "partial": exc.partial, "error": _error_as_json(exc)}
        _write_json_line(json.dumps(failed, ensure_ascii=False) + "\n")
        raise
    _write_json_line(json.dumps(_reply_as_json(reply), ensure_ascii=False) + "\n")


def _write_json_line(line: str) -> None:
    write(visible_json(line))


def _reply_as_json(reply: Reply) -> dict[str, Any]:
    return {
        "text": reply.text,
        "streamedText": reply.streamed_text,
        "sessionId": reply.session_id,
        "conversationId": reply.conversation_id,
        "timings": {
            "queued": reply.timings.queued,
            "connect": reply.timings.connect,
            "firstToken": reply.timings.first_token,
            "total": reply.timings.total,
        },
    }


def _error_as_json(error: AheadlessError) -> dict[str, str]:
    return {"type": type(error).__name__, "message": str(error), "delivery": error.delivery.value}


def _new_session() -> str:
    return f"cli:{secrets.token_hex(8)}"


def health(client: Callable[[], ChatClient]) -> int:
    """Write whether the server is well, and how long it took to say so."""

    async def work() -> int:
        async with client() as opened:
            begun = time.perf_counter()
            answer = await opened.health()
            took = (time.perf_counter() - begun) * 1000
            write(f"{visible(answer.status)}  {opened.base_url}  {took:.0f} ms\n")
        if answer.ok:
            return ExitCode.OK
        complain("aheadless: the server says that it is not well; look at its log")
        return ExitCode.SERVER

    return run(work())


def chat(client: Callable[[], ChatClient], session: str | None) -> int:
    """Chat with a server."""
    with asyncio.Runner() as runner:
        opened = client()
        try:
            return converse(opened.chat(session or _new_session()), runner, greeting=GREETING)
        finally:
            runner.run(opened.aclose())


def demo(*, once: bool) -> int:
    """Chat with a server of one's own."""
    if once:
        return run(_ask_all())
    with asyncio.Runner() as runner:
        host = _demo_client()
        client = runner.run(host.__aenter__())
        try:
            return converse(client.chat(_new_session()), runner, greeting=DEMO_GREETING)
        finally:
            runner.run(host.__aexit__(None, None, None))


async def _ask_all() -> int:
    async with _demo_client() as client:
        conversation = client.chat(_new_session())
        for question in QUESTIONS:
            write(f"you: {question}\n\n")
            await show(conversation.stream(question))
            write("\n")
    return ExitCode.OK


@asynccontextmanager
async def _demo_client() -> AsyncGenerator[ChatClient]:
    # Its log is for who runs a server; here it would tell a person of the reply that they stopped themselves.
    logging.getLogger("aheadless.server").setLevel(logging.CRITICAL)
    settings = ServerSettings(port=0, rate_limit=None, answers_delay=DEMO_DELAY, shutdown_timeout=1.0)
    async with run_server(settings) as server, ChatClient(server.url, api_key=server.api_key) as client:
        yield client


def serve(settings: ServerSettings) -> int:
    """Run a server until a signal, then let running replies finish; a second signal ends it at once."""

    async def work() -> int:
        ended = asyncio.Event()
        with on_first_signal(lambda _: ended.set()):
            async with AsyncExitStack() as stack:
                try:
                    server = await stack.enter_async_context(run_server(settings))
                except OSError as exc:
                    where = f"{settings.host}:{settings.port}"
                    other = "--port" if exc.errno in _PORT_TAKEN else "--host"
                    raise ConfigurationError(f"cannot listen on {where}: {_reason(exc)}; try another {other}") from None
                write(_introduction(server.url, settings))
                await ended.wait()
                complain("aheadless: ending, once the replies that are being written are finished")
        return ExitCode.OK

    return run(work())


def _reason(error: OSError) -> str:
    # asyncio wraps the system's words in a sentence with the address in it, and since 3.13 keeps only that one.
    if error.errno is None:
        return str(error)
    return str(error.strerror) if isinstance(error, socket.gaierror) else os.strerror(error.errno)


def _introduction(url: str, settings: ServerSettings) -> str:
    key = settings.api_key.reveal() if settings.key_was_made else "$AHEADLESS_API_KEY"
    made = f"This key was made for this run, as there is no AHEADLESS_API_KEY: {key}\n" if settings.key_was_made else ""
    return (
        f"aheadless serves {url}\n{made}\n"
        f'  curl -N {url}/v1/chat/stream -H "x-api-key: {key}" -H "content-type: application/json" \\\n'
        '    -d \'{"sessionId": "me", "message": "What is aheadless?"}\'\n\n'
    )
