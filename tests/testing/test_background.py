"""The server on a thread of its own, as programs on other threads and loops see it."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    ConnectError,
    ConnectionLostError,
    RateLimitError,
    Reply,
    ReplyFailedError,
    RequestTimeoutError,
    Retry,
    ServerError,
    StreamInterruptedError,
    Timeouts,
)
from aheadless.testing import BackgroundServer

CUT = (StreamInterruptedError, ConnectionLostError)


@pytest.fixture
def server() -> Iterator[BackgroundServer]:
    with BackgroundServer() as running:
        yield running


async def ask(server: BackgroundServer, message: str = "Hi", *, stream: bool = True, **options: object) -> Reply:
    given = {"api_key": server.api_key, "retry": Retry(attempts=1), "max_wait": 0, **options}
    async with ChatClient(server.url, **given) as client:  # type: ignore[arg-type]
        chat = client.chat("s")
        return await (chat.stream(message) if stream else chat.send(message))


@pytest.mark.parametrize("stream", [True, False])
async def test_replies(server: BackgroundServer, stream: bool) -> None:
    """They come in the order in which they were given, whichever endpoint is asked; then there is a default."""
    server.reply(" Hel", "lo")
    server.reply("Good", "bye")

    replies = [await ask(server, f"{number}", stream=stream) for number in range(3)]

    assert [reply.text for reply in replies] == ["Hello", "Goodbye", "Hello world"]
    assert replies[0].streamed_text == (" Hello" if stream else "")
    assert server.messages == ["0", "1", "2"]
    assert {request.session_id for request in server.requests} == {"s"}


async def test_conversations(server: BackgroundServer) -> None:
    """A session keeps its conversation, and another one has another."""
    async with ChatClient(server.url, api_key=server.api_key) as client:
        ids = [(await client.chat(name).stream("Hi")).conversation_id for name in "aab"]

    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "kinds", "partial"),
    [
        (lambda server: server.fail(), ServerError, ""),
        (lambda server: server.fail(429, retry_after=0.05), RateLimitError, ""),
        (lambda server: server.give_up("Hel", reason="no model"), (ReplyFailedError, ServerError), "Hel"),
        (lambda server: server.cut("Hel", "lo"), CUT, "Hello"),
        (lambda server: server.cut(), CUT, ""),
        (lambda server: server.stall("Hel"), RequestTimeoutError, "Hel"),
    ],
    ids=["fail", "refuse", "give_up", "cut", "cut_at_once", "stall"],
)
async def test_faults(server: BackgroundServer, fault, kinds, partial: str, stream: bool) -> None:
    """The question after it is answered; what had come is on the error."""
    fault(server)

    with pytest.raises(kinds) as caught:
        await ask(
            server, stream=stream, timeouts=Timeouts(first_token=5, idle=0.05, send=5 if partial != "Hel" else 0.05)
        )

    assert isinstance(caught.value, AheadlessError)
    assert caught.value.partial == (partial if stream else "")
    assert (await ask(server, stream=stream, max_wait=20)).text == "Hello world"
    assert server.messages == ["Hi", "Hi"]


async def test_retry_after(server: BackgroundServer) -> None:
    """A client that is told to wait waits, and asks again."""
    server.fail(429, retry_after=0)

    assert (await ask(server, max_wait=10)).text == "Hello world"
    assert server.messages == ["Hi", "Hi"]


async def test_what_the_api_refuses(server: BackgroundServer) -> None:
    """A wrong key, a broken body and another path use up no answer and are no message."""
    server.reply("Hello")

    def status_of(path: str, body: bytes | None, **headers: str) -> int:
        request = urllib.request.Request(server.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            exc.close()
            return exc.code

    with pytest.raises(AuthenticationError):
        await ask(server, api_key="another key")
    key = {"x-widget-api-key": server.api_key}
    assert await asyncio.to_thread(status_of, "/v1/chat", b"{", **key) == 400
    assert await asyncio.to_thread(status_of, "/v1/chat/", b'{"sessionId":"s","message":""}', **key) == 400
    assert await asyncio.to_thread(status_of, "/v2/chat", b"{}", **key) == 404
    assert await asyncio.to_thread(status_of, "/health?now", None) == 200
    assert server.messages == []
    assert await asyncio.to_thread(status_of, "/chat", b'{"sessionId":"s","message":"Hi"}', **key) == 200
    assert server.messages == ["Hi"]


def test_without_an_event_loop() -> None:
    """It serves a test that is no coroutine; when the block is left, its thread and its port are gone."""
    before = threading.active_count()
    with BackgroundServer() as server:
        assert asyncio.run(ask(server)).text == "Hello world"
        assert repr(server) == f"<BackgroundServer {server.url}, 1 requests>"

    assert threading.active_count() == before
    with pytest.raises(ConnectError):
        asyncio.run(ask(server))


async def test_left_in_the_middle_of_a_reply() -> None:
    """A client that waits is not waited for: it is cut off."""
    with ExitStack() as block:
        server = block.enter_context(BackgroundServer())
        server.stall("Hel")
        async with ChatClient(server.url, api_key=server.api_key) as client, client.chat("s").stream("Hi") as stream:
            texts = stream.text()
            assert await anext(texts) == "Hel"

            block.close()

            with pytest.raises(StreamInterruptedError):
                await anext(texts)


def test_outside_of_its_block() -> None:
    """It has no address before it runs, and runs once."""
    server = BackgroundServer()
    with pytest.raises(RuntimeError, match="within its `with` block"):
        server.url  # noqa: B018
    assert "not started" in repr(server)
    with server:
        pass
    with pytest.raises(RuntimeError):
        server.__enter__()


def test_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps it from starting reaches the test."""

    async def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no socket left")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_server", refuse)
    with pytest.raises(OSError, match="no socket left"), BackgroundServer():
        pass
