"""What is true after a cancel, wherever it hits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import product
from typing import Any, TypeAlias

import pytest

from aheadless import AheadlessError, Chat, ChatClient, Delivery, RateLimit, Retry, Token
from aheadless._pacing import pacer_for
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.test_stream import FIRST, HELLO, REST, STALLED

# Passes of the event loop, in which client and server both run, until the server has seen the close (faults.md row 64):
# a small part of its 50 ms, and the same however busy the machine is.
SOON = 50

PATIENCE = 10
"""Seconds after which what did not happen will not happen."""

JSON_REPLY = Script(json_answer({"conversationId": CONVERSATION_ID, "message": "Hello"}))

Drive: TypeAlias = "Callable[..., Coroutine[Any, Any, object]]"
Turn: TypeAlias = "tuple[Chat, asyncio.Task[object]]"


async def iterate(chat: Chat, **callbacks: Any) -> None:
    async for _ in chat.stream("Hi", **callbacks):
        pass


async def enter(chat: Chat, **callbacks: Any) -> None:
    async with chat.stream("Hi", **callbacks) as stream:
        async for _ in stream.text():
            pass


async def wait(chat: Chat, **callbacks: Any) -> None:
    await chat.stream("Hi", **callbacks)


async def send(chat: Chat, **callbacks: Any) -> None:
    await chat.send("Hi", **callbacks)


DRIVES: list[Drive] = [iterate, enter, wait, send]


async def _pause(_value: object) -> None:
    await asyncio.sleep(0)


CALLBACKS: dict[str, dict[str, Any]] = {
    "none": {},
    "sync": {name: lambda _: None for name in ("on_start", "on_token", "on_done")},
    "async": dict.fromkeys(("on_start", "on_token", "on_done"), _pause),
}


def assert_settled(chat: Chat) -> None:
    """The session is free, and nothing of the turn is left."""
    assert not chat.busy
    assert not chat._core.live
    assert all(message.status != "pending" for message in chat.messages)


def pooled(client: ChatClient) -> int:
    """Return how many connections lie idle in the pool, as their answers had come whole."""
    session = client._core.transport._session
    connector = None if session is None else session.connector  # None, too, once it is closed
    return 0 if connector is None else sum(map(len, connector._conns.values()))


async def all_closed(scripted: ScriptedServer, client: ChatClient) -> None:
    """Wait until the server has seen, soon, the close of all connections but those in the pool."""
    passes = 0
    while scripted.open_connections > pooled(client):
        passes += 1
        assert passes <= SOON
        await asyncio.sleep(0)
    if scripted.requests and not pooled(client):
        assert scripted.requests[-1].left.is_set()


async def no_tasks() -> None:
    """Wait until no task is left but the test's own; the server's end a moment after its connections."""
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)


def live_timers(loop: asyncio.AbstractEventLoop) -> Iterator[asyncio.TimerHandle]:
    """Return the timers that will still ring."""
    scheduled: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    return (timer for timer in scheduled if not timer.cancelled())


async def cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


# --- at every step ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("callbacks", ["none", "sync", "async"])
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("drive", DRIVES)
async def test_at_every_step(
    scripted: ScriptedServer, make_client: MakeClient, drive: Drive, kept: bool, callbacks: str
) -> None:
    """Cancelled after 0, 1, 2 … passes of the event loop, until there is nothing left to cancel: the same every time."""

    async def attempt(steps: int) -> tuple[bool, str]:
        client = make_client(scripted.url, **CALLBACKS[callbacks])
        if kept:
            await client.chat("first").stream("Hi")
        asked = len(scripted.requests)
        scripted.add(Script(JSON_REPLY.data if drive is send else FIRST + REST, pieces=40))
        chat = client.chat("s")
        task = asyncio.create_task(drive(chat))
        for _ in range(steps):
            await asyncio.sleep(0)

        cancelled = task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)

        assert task.cancelled() == cancelled
        assert task.cancelling() == cancelled
        assert_settled(chat)
        status = chat.messages[0].status if chat.messages else "not asked"
        if status == "cancelled":
            await all_closed(scripted, client)
        scripted._scripts.clear()
        if len(scripted.requests) > asked and drive is not send:
            assert chat.messages[0].delivery is not Delivery.NOT_SENT
        assert (await chat.stream("And now?")).text == "Hello world"
        await client.aclose()
        await all_closed(scripted, client)
        await no_tasks()
        assert set(live_timers(loop)) <= timers
        return cancelled, status

    loop = asyncio.get_running_loop()
    timers = set(live_timers(loop))
    reached: set[str] = set()
    for steps in range(1000):
        cancelled, status = await attempt(steps)
        reached.add(status)
        if not cancelled:
            break

    assert reached == {"not asked", "cancelled", "complete"}
    # Together more than two hundred, over these twelve kinds of turns with each of the two kinds of connections.
    assert steps >= (8 if kept else 12)


# --- at chosen instants -----------------------------------------------------------------------------------------------


class Instant:
    """A turn that stands still at a place of which one knows the name: that of a method."""

    def __init__(self, scripted: ScriptedServer, client: ChatClient, drive: Drive) -> None:
        self.scripted, self.client, self.drive = scripted, client, drive
        self.others: list[asyncio.Task[object]] = []
        self.retries = asyncio.Event()
        client._core.on_retry = (lambda _: self.retries.set(),)

    async def start(self, waits: Callable[[], Coroutine[Any, Any, object]], **callbacks: Any) -> Turn:
        """Start the turn and let it get to where it waits."""
        chat = self.client.chat("s", **callbacks)
        task = asyncio.create_task(self.drive(chat))
        await waits()
        for _ in range(10):
            await asyncio.sleep(0)
        return chat, task

    async def arrived(self) -> None:
        await self.scripted.arrived(1)

    async def held_back(self) -> None:
        while not self.client.pacing.waiting:
            await asyncio.sleep(0)

    async def live(self, session_id: str) -> None:
        self.scripted.add(Script(end="stall"))
        self.others.append(asyncio.create_task(self.client.chat(session_id).stream("live").reply()))
        await self.arrived()

    async def before(self) -> Turn:
        chat = self.client.chat("s")
        return chat, asyncio.create_task(self.drive(chat))

    async def in_the_queue(self) -> Turn:
        await self.live("s")
        return await self.start(self.arrived)

    async def in_a_cool_down(self) -> Turn:
        self.scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "0.1"})))
        return await self.start(self.held_back)

    async def before_its_own_limit(self) -> Turn:
        await self.client.chat("first").stream("Hi")
        return await self.start(self.held_back)

    async def between_two_attempts(self) -> Turn:
        self.scripted.add(Script(json_answer({}, status=503, headers={"Retry-After": "60"})))
        return await self.start(self.retries.wait)

    async def waiting_for_a_connection(self) -> Turn:
        await self.live("first")
        return await self.start(self.arrived)

    async def waiting_for_the_headers(self) -> Turn:
        self.scripted.add(Script(end="stall"))
        return await self.start(self.arrived)

    async def in_the_headers(self) -> Turn:
        self.scripted.add(Script(FIRST[:30], end="stall"))
        return await self.start(self.arrived)

    async def in_the_body(self) -> Turn:
        self.scripted.add(JSON_REPLY.cut(len(JSON_REPLY.data) - 5, "stall"))
        return await self.start(self.arrived)

    async def waiting_for_the_first_token(self) -> Turn:
        started = asyncio.Event()
        self.scripted.add(Script(stream_answer(HELLO[:1], framing="close"), end="stall"))
        return await self.start(started.wait, on_start=lambda _: started.set())

    async def streaming(self) -> Turn:
        seen = asyncio.Event()
        self.scripted.add(STALLED)
        return await self.start(seen.wait, on_token=lambda _: seen.set())

    async def in_a_line(self) -> Turn:
        seen = asyncio.Event()
        self.scripted.add(Script(FIRST + REST).cut(len(FIRST) + 15, "stall"))
        return await self.start(seen.wait, on_token=lambda _: seen.set())


EVERYWHERE = [
    "before",
    "in_the_queue",
    "in_a_cool_down",
    "before_its_own_limit",
    "between_two_attempts",
    "waiting_for_a_connection",
    "waiting_for_the_headers",
    "in_the_headers",
]


@pytest.mark.parametrize(
    ("drive", "where"),
    [
        *product(DRIVES, EVERYWHERE),
        *product([iterate, enter, wait], ["waiting_for_the_first_token", "streaming", "in_a_line"]),
        (send, "in_the_body"),
    ],
)
async def test_at_an_instant(scripted: ScriptedServer, make_client: MakeClient, drive: Drive, where: str) -> None:
    """CancelledError comes through, the server sees the close, the session goes on; what had come stays."""
    options: dict[str, Any] = {"max_wait": 60, "retry": Retry(attempts=2)}
    if where == "waiting_for_a_connection":
        options["max_connections"] = 1
    elif where == "before_its_own_limit":
        options["rate_limit"] = RateLimit(1, per=0.1)
    client = make_client(scripted.url, **options)
    instant = Instant(scripted, client, drive)
    chat, task = await getattr(instant, where)()
    asked = len(scripted.stored)

    assert task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE)

    assert task.cancelled()
    assert task.cancelling() == 1
    if instant.others:
        assert chat.busy == (where == "in_the_queue")
        for other in instant.others:
            other.cancel()
        await asyncio.wait(instant.others)
    elif where not in {"in_a_cool_down", "before_its_own_limit", "between_two_attempts"}:
        await all_closed(scripted, client)
    assert_settled(chat)
    assert [message.partial for message in chat.messages if message.role == "assistant"] == (
        ["Hel"] if where in {"streaming", "in_a_line"} else []
    )
    assert len(scripted.stored) == asked  # nothing is sent any more
    assert (await chat.stream("And now?")).text == "Hello world"
    assert pacer_for(scripted.url).state().waiting == 0
    assert pacer_for(scripted.url)._in_flight == 0


@pytest.mark.parametrize("how", ["while it waits", "from within, sync", "from within, async"])
@pytest.mark.parametrize(
    ("drive", "name"),
    [
        *product([iterate, enter, wait], ["on_start", "on_token", "on_done", "on_error"]),
        *product([send], ["on_start", "on_done", "on_error"]),
    ],
)
async def test_in_a_callback(scripted: ScriptedServer, client: ChatClient, drive: Drive, name: str, how: str) -> None:
    """A callback is cancelled with its reader, and may be the one that cancels; on_done comes after the turn."""
    reached = asyncio.Event()

    def cancel_now(_value: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async def cancel_here(value: object) -> None:
        cancel_now(value)
        await asyncio.Event().wait()

    async def hang(_value: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    if name == "on_error":
        scripted.add(Script(json_answer({}, status=500)) if drive is send else Script(FIRST, end="fin"))
    elif name == "on_done":
        scripted.add(JSON_REPLY if drive is send else Script(FIRST + REST))
    else:
        scripted.add(JSON_REPLY if drive is send else STALLED)
    callback = {"while it waits": hang, "from within, sync": cancel_now, "from within, async": cancel_here}[how]
    chat = client.chat("s")
    task = asyncio.create_task(drive(chat, **{name: callback}))
    if callback is hang:
        await reached.wait()
        task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE)

    assert task.cancelling() == 1
    if name == "on_error" and callback is cancel_now:
        # It was about to be raised, with no await in between at which a cancel could take its place.
        assert isinstance(task.exception(), AheadlessError)
    else:
        assert task.cancelled()
    assert_settled(chat)
    complete = name == "on_done" or (drive is send and name == "on_start" and callback is cancel_now)
    assert (chat.messages[0].status == "complete") == complete
    assert (await chat.stream("And now?")).text == "Hello world"


# --- other places -----------------------------------------------------------------------------------------------------


async def test_in_a_full_subscription(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream that waits for its subscriber can be cancelled; the subscription ends."""
    scripted.add(Script(FIRST + REST))
    chat = client.chat("s")
    stream = chat.stream("Hi")
    subscription = stream.subscribe(1)
    task = asyncio.create_task(stream.reply())
    while len(subscription._mailbox._events) < 1:
        await asyncio.sleep(0)
    await asyncio.sleep(0)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert_settled(chat)


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
    assert_settled(client.chat("s"))


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

    assert_settled(chat)
    assert isinstance(HELLO[1], Token)
    await asyncio.wait_for(scripted.requests[0].left.wait(), PATIENCE)
