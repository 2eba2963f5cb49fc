"""What is true after a cancel, wherever it hits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aheadless import Chat, ChatClient, ServerError, Timeouts, Token
from aheadless.testing import Script, ScriptedServer
from tests.test_stream import FIRST, HELLO, REST, STALLED

WITHIN = 0.05  # seconds in which the server sees the close, faults.md row 64


async def iterate(chat: Chat) -> None:
    async for _ in chat.stream("Hi"):
        pass


async def enter(chat: Chat) -> None:
    async with chat.stream("Hi") as stream:
        async for _ in stream.text():
            pass


async def wait(chat: Chat) -> None:
    await chat.stream("Hi")


async def send(chat: Chat) -> None:
    await chat.send("Hi")


def assert_settled(chat: Chat, client: ChatClient) -> None:
    """The session is free, and nothing of the turn is left."""
    assert not chat.busy
    assert not client._core.live
    assert all(message.status != "pending" for message in chat.messages)


async def cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize("drive", [iterate, enter, wait, send])
async def test_while_waiting_for_the_headers(
    scripted: ScriptedServer, client: ChatClient, drive: Callable[[Chat], Awaitable[None]]
) -> None:
    """CancelledError comes through, the server sees the close, the message is pending nowhere."""
    scripted.add(Script(end="stall"))
    chat = client.chat("s")
    task = asyncio.ensure_future(drive(chat))
    request = await scripted.arrived(1)

    await cancel(task)

    assert_settled(chat, client)
    await asyncio.wait_for(request.left.wait(), WITHIN)


@pytest.mark.parametrize("drive", [iterate, enter, wait])
async def test_in_mid_stream(
    scripted: ScriptedServer, client: ChatClient, drive: Callable[[Chat], Awaitable[None]]
) -> None:
    """The partial text stays in the messages."""
    scripted.add(STALLED)
    seen = asyncio.Event()
    chat = client.chat("s", on_token=lambda _: seen.set())
    task = asyncio.ensure_future(drive(chat))
    await seen.wait()
    await asyncio.sleep(0)

    await cancel(task)

    assert_settled(chat, client)
    assert chat.messages[-1].partial == "Hel"
    await asyncio.wait_for(scripted.requests[0].left.wait(), WITHIN)


@pytest.mark.parametrize("name", ["on_start", "on_token", "on_done", "on_error"])
async def test_in_a_callback(scripted: ScriptedServer, client: ChatClient, name: str) -> None:
    """A callback that waits is cancelled with its reader."""
    reached = asyncio.Event()

    async def callback(_value: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    scripted.add(Script(FIRST, end="fin") if name == "on_error" else Script(FIRST + REST))
    chat = client.chat("s", **{name: callback})  # type: ignore[arg-type]
    task = asyncio.ensure_future(wait(chat))
    await reached.wait()

    await cancel(task)

    assert_settled(chat, client)


async def test_in_a_full_subscription(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream that waits for its subscriber can be cancelled; the subscription ends."""
    scripted.add(Script(FIRST + REST))
    chat = client.chat("s")
    stream = chat.stream("Hi")
    subscription = stream.subscribe(1)
    task = asyncio.create_task(stream.reply())
    while len(subscription._events) < 1:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert_settled(chat, client)


async def test_at_every_step_of_a_turn(scripted: ScriptedServer, client: ChatClient) -> None:
    """Cancelled after 0, 1, 2 … steps of the event loop, a turn is always settled and never hangs."""
    chat = client.chat("s")
    outcomes = set()
    for steps in range(120):
        asked = len(chat.messages)
        task = asyncio.ensure_future(wait(chat))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        assert task.done()
        outcomes.add(task.cancelled())
        assert_settled(chat, client)
        assert len(chat.messages) - asked <= 2
    assert outcomes == {True, False}


async def test_cancelling_count_is_intact(scripted: ScriptedServer, client: ChatClient) -> None:
    """A cancel that the caller swallows leaves a task that can go on."""
    scripted.add(STALLED)
    chat = client.chat("s")
    seen = asyncio.Event()
    results: list[object] = []

    async def swallow() -> None:
        try:
            await chat.stream("Hi", on_token=lambda _: seen.set())
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            results.append(task.cancelling())
            task.uncancel()
        results.append((await chat.stream("Again")).text)

    task = asyncio.create_task(swallow())
    await seen.wait()
    task.cancel()
    await task

    assert results == [1, "Hello world"]


async def test_timeout_scope_of_the_caller(scripted: ScriptedServer, client: ChatClient) -> None:
    """asyncio.timeout() around a turn raises its own TimeoutError, not one of ours."""
    scripted.add(STALLED)

    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await client.chat("s").stream("Hi")

    assert type(caught.value) is TimeoutError
    assert_settled(client.chat("s"), client)


async def test_timeout_and_cancel_together(scripted: ScriptedServer, client: ChatClient) -> None:
    """One or the other comes out, and neither is swallowed."""
    for _ in range(20):
        scripted.add(Script(end="stall"))
        chat = client.chat("s")
        task = asyncio.create_task(chat.stream("Hi", timeouts=Timeouts(first_token=0.005)).reply())
        asyncio.get_running_loop().call_later(0.005, task.cancel)
        done, _pending = await asyncio.wait({task}, timeout=5)
        assert done == {task}
        assert task.cancelled() or isinstance(task.exception(), TimeoutError)
        assert_settled(chat, client)


async def test_sibling_in_a_task_group_fails(scripted: ScriptedServer, client: ChatClient) -> None:
    """The stream is closed, and the group raises the sibling's error alone."""
    scripted.add(STALLED)
    chat = client.chat("s")
    seen = asyncio.Event()

    async def fail() -> None:
        await seen.wait()
        raise ServerError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(chat.stream("Hi", on_token=lambda _: seen.set()).reply())
            group.create_task(fail())

    assert [type(error) for error in caught.value.exceptions] == [ServerError]
    assert_settled(chat, client)
    await asyncio.wait_for(scripted.requests[0].left.wait(), WITHIN)


async def test_cancelled_in_the_body_of_a_loop(scripted: ScriptedServer, client: ChatClient) -> None:
    """The loop's body is cancelled, not our await: leaving the loop closes the stream all the same."""
    scripted.add(STALLED)
    chat = client.chat("s")
    reached = asyncio.Event()

    async def work() -> None:
        async for event in chat.stream("Hi"):
            if event == HELLO[1]:
                reached.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await reached.wait()
    await cancel(task)

    assert_settled(chat, client)
    assert isinstance(HELLO[1], Token)
    await asyncio.wait_for(scripted.requests[0].left.wait(), WITHIN)
