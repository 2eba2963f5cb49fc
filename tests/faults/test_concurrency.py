"""Rows 64 to 76 of docs/explanation/guarantees.md: several tasks, loops and turns at once. Cancels have a file of their
own, tests/test_cancellation.py."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
import weakref
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from aheadless import (
    AheadlessError,
    ChatClient,
    ClientClosedError,
    Delivery,
    Reply,
    ReplyStream,
    RequestTimeoutError,
    Retry,
    ServerError,
    SessionBusyError,
    StreamStoppedError,
    Timeouts,
    Token,
    TurnState,
    UsageError,
)
from aheadless._pacing import pacer_for
from aheadless.protocol.codec import encode_event
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer
from tests.conftest import MakeClient
from tests.faults.support import NARROW, Flood, narrow_client
from tests.support import KEY
from tests.test_stream import FIRST, HELLO, REST, STALLED

JSON_REPLY = Script(json_answer({"conversationId": CONVERSATION_ID, "message": "Hello"}))

Drive = Callable[[ReplyStream], Awaitable[object]]


async def iterate(stream: ReplyStream) -> None:
    async for _ in stream:
        pass


async def enter(stream: ReplyStream) -> None:
    async with stream:
        async for _ in stream.text():
            pass


async def wait(stream: ReplyStream) -> Reply:
    return await stream


DRIVES = [iterate, enter, wait]


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["loop", "text", "block", "aclosing"])
async def test_break(scripted: ScriptedServer, client: ChatClient, how: str) -> None:
    """The connection is closed and the session free at once, though the stream is still referenced."""
    scripted.add(STALLED)
    chat = client.chat("s")
    stream = chat.stream("Hi")

    if how == "block":
        async with stream:
            async for event in stream:
                if isinstance(event, Token):
                    break
            assert chat.busy  # the block owns it
    elif how == "aclosing":
        async with aclosing(stream.text()) as texts:
            await anext(texts)
    else:
        async for piece in stream if how == "loop" else stream.text():
            if piece in {"Hel", Token("Hel")}:
                break

    assert not chat.busy
    assert stream.state is TurnState.INTERRUPTED
    assert [(m.text, m.status, m.delivery) for m in chat.messages] == [
        ("Hi", "interrupted", Delivery.ACCEPTED),
        ("Hel", "interrupted", Delivery.ACCEPTED),
    ]
    await scripted.requests[0].left.wait()
    assert (await chat.stream("And now?")).text == "Hello world"
    assert stream.snapshot == "Hel"


async def test_never_driven(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream that nobody drives sends nothing, holds no session and leaves nothing behind."""
    chat = client.chat("s")
    stream = chat.stream("Hi")
    made: list[object] = [aiter(stream), stream.text(), stream.subscribe()]
    assert (stream.state, stream.snapshot, stream.conversation_id) == (TurnState.WAITING, "", None)
    assert not chat.busy

    left = weakref.ref(stream)

    made.clear()
    del stream
    gc.collect()

    assert not client._core.live
    assert left() is None
    assert chat.messages == ()
    assert scripted.connections == 0


# --- closing ----------------------------------------------------------------------------------------------------------


async def test_aclose_ends_every_turn(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Wherever a turn is, its reader gets a ClientClosedError with the right verdict, and no task has to be cancelled."""
    scripted.add(STALLED, STALLED, STALLED, Script(end="stall"), Script(end="stall"))
    client = make_client(scripted.url)
    turns: dict[str, asyncio.Task[object]] = {}

    def start(name: str, work: Any) -> None:
        turns[name] = asyncio.create_task(work)

    streaming = asyncio.Event()
    for count, drive in enumerate(DRIVES, 1):
        streaming.clear()
        start(drive.__name__, drive(client.chat(drive.__name__).stream("Hi", on_token=lambda _: streaming.set())))
        await scripted.arrived(count)
        await streaming.wait()
    start("headers", wait(client.chat("headers").stream("Hi")))
    await scripted.arrived(4)
    start("send", client.chat("send").send("Hi"))
    await scripted.arrived(5)
    start("queued", wait(client.chat("send").stream("Hi")))
    start("queued send", client.chat("send").send("Hi"))
    await asyncio.sleep(0)

    await client.aclose()
    await client.aclose()

    async with asyncio.timeout(5):
        results = dict(zip(turns, await asyncio.gather(*turns.values(), return_exceptions=True), strict=True))
    assert {name: type(result) for name, result in results.items()} == dict.fromkeys(turns, ClientClosedError)
    assert {name: (error.partial, error.delivery) for name, error in results.items()} == {  # type: ignore[attr-defined]
        **dict.fromkeys(["iterate", "enter", "wait"], ("Hel", Delivery.ACCEPTED)),
        **dict.fromkeys(["headers", "send"], ("", Delivery.UNKNOWN)),
        **dict.fromkeys(["queued", "queued send"], ("", Delivery.NOT_SENT)),
    }
    assert [task.cancelling() for task in turns.values()] == [0] * len(turns)
    assert not client._core.live
    assert len(scripted.stored) == 5
    for request in scripted.requests:
        await request.left.wait()


@pytest.mark.parametrize("where", ["retry", "cool-down"])
async def test_aclose_while_nothing_is_sent(scripted: ScriptedServer, make_client: MakeClient, where: str) -> None:
    """Between two attempts and in a cool-down there is no connection that a close could wake; the turns end all the
    same."""
    refusal = {"status": 503 if where == "retry" else 429, "headers": {"Retry-After": "60"}}
    scripted.add(Script(json_answer({"error": "later"}, **refusal)))  # type: ignore[arg-type]
    waits = asyncio.Event()
    client = make_client(
        scripted.url,
        retry=Retry(attempts=2),
        max_wait=100,
        on_retry=lambda _: waits.set(),
        on_wait=lambda _: waits.set(),
    )
    task = asyncio.create_task(wait(client.chat("s").stream("Hi")))
    await waits.wait()
    await asyncio.sleep(0)

    await client.aclose()

    with pytest.raises(ClientClosedError) as caught:
        await task
    assert caught.value.delivery is Delivery.REJECTED
    assert (len(scripted.requests), scripted.stored) == (1, [])


async def test_aclose_ends_subscriptions(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """A reader beside the main one is not left waiting either; nor is the main one behind a full subscription."""
    scripted.add(STALLED)
    client = make_client(scripted.url)
    stream = client.chat("s").stream("Hi")
    full, idle = stream.subscribe(1), stream.subscribe()
    task = asyncio.create_task(wait(stream))
    assert await anext(idle) == HELLO[0]
    reader = asyncio.create_task(anext(idle))
    await asyncio.sleep(0)

    await client.aclose()

    for ends in (task, reader):
        with pytest.raises(ClientClosedError):
            await ends
    assert await anext(full) == HELLO[0]
    with pytest.raises(ClientClosedError):
        await anext(full)


async def test_use_after_close(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Everything that would send something says that the client is closed; what can be read can still be read."""
    client = make_client(scripted.url, admin_key="admin-key")
    chat = client.chat("s")
    await chat.stream("Hi")
    streams = [chat.stream("never driven") for _ in DRIVES]
    admin = client.admin
    await client.aclose()

    for use in (
        *(lambda drive=drive, stream=stream: drive(stream) for drive, stream in zip(DRIVES, streams, strict=True)),
        lambda: chat.send("Hi"),
        client.health,
        client.__aenter__,
        admin.conversations,
    ):
        with pytest.raises(ClientClosedError) as caught:
            await use()
        assert isinstance(caught.value, RuntimeError)
    for make in (lambda: client.chat("s"), lambda: chat.stream("Hi"), lambda: client.pacing):
        with pytest.raises(ClientClosedError):
            make()

    assert client.closed
    assert [message.text for message in chat.messages] == ["Hi", "Hello world"]
    assert len(scripted.requests) == 1


# --- several readers, several turns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "second", [*DRIVES, lambda stream: anext(stream.text())], ids=["iterate", "enter", "wait", "text"]
)
async def test_two_readers(scripted: ScriptedServer, client: ChatClient, second: Drive) -> None:
    """The second is sent to subscribe(), however it came; the first goes on undisturbed."""
    gate, seen = asyncio.Event(), asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    chat = client.chat("s")
    stream = chat.stream("Hi", on_token=lambda _: seen.set())
    first = asyncio.create_task(wait(stream))
    await seen.wait()
    await asyncio.sleep(0)

    with pytest.raises(UsageError, match=r"subscribe\(\)") as caught:
        await second(stream)
    assert isinstance(caught.value, RuntimeError)
    del caught  # its traceback holds what the second reader made
    gc.collect()
    gate.set()

    assert (await first).text == "Hello"
    assert chat.messages[-1].status == "complete"


async def test_a_block_that_is_refused_owns_nothing(scripted: ScriptedServer, client: ChatClient) -> None:
    """After a second reader was refused the first one's loop still closes the connection when it is left."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    chat = client.chat("s")
    stream = chat.stream("Hi")
    iterator = aiter(stream)
    await anext(iterator)
    await anext(iterator)
    reader = asyncio.create_task(anext(iterator))
    await asyncio.sleep(0)

    with pytest.raises(UsageError):
        async with stream:
            pass
    gate.set()
    await reader
    del iterator, reader

    assert not chat.busy
    assert stream.state is TurnState.INTERRUPTED


@pytest.mark.parametrize("make", [aiter, ReplyStream.text])
async def test_an_iterator_that_is_not_used_ends_nothing(
    scripted: ScriptedServer, client: ChatClient, make: Callable[[ReplyStream], object]
) -> None:
    """Only a loop that has begun owns the stream."""
    gate, seen = asyncio.Event(), asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    stream = client.chat("s").stream("Hi", on_token=lambda _: seen.set())
    task = asyncio.create_task(wait(stream))
    await seen.wait()

    made = make(stream)
    del made
    gc.collect()
    gate.set()

    assert (await task).text == "Hello"


@pytest.mark.parametrize("policy", ["queue", "reject", "interrupt"])
@pytest.mark.parametrize("whole", [False, True])
async def test_two_turns(scripted: ScriptedServer, client: ChatClient, policy: Any, whole: bool) -> None:
    """They never overlap on the wire: the second waits, is refused, or ends the first, as it says."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}), JSON_REPLY if whole else Script(FIRST + REST))
    chat = client.chat("s")
    seen = asyncio.Event()
    first = asyncio.create_task(wait(chat.stream("first", on_token=lambda _: seen.set())))
    await seen.wait()

    second = asyncio.create_task(
        chat.send("second", on_busy=policy) if whole else wait(chat.stream("second", on_busy=policy))
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(scripted.requests) == 1
    if policy == "interrupt":
        await scripted.arrived(2)
    gate.set()
    results = await asyncio.gather(first, second, return_exceptions=True)

    kinds = {"queue": (Reply, Reply), "reject": (Reply, SessionBusyError), "interrupt": (StreamStoppedError, Reply)}
    assert tuple(map(type, results)) == kinds[policy]
    asked = [message.text for message in chat.messages if message.role == "user"]
    assert asked == (["first"] if policy == "reject" else ["first", "second"])
    assert len(scripted.stored) == len(asked)
    if isinstance(results[1], AheadlessError):
        assert results[1].delivery is Delivery.NOT_SENT
    assert not chat.busy


# --- a slow consumer --------------------------------------------------------------------------------------------------


TEXT = "x" * 10_000
LINE = b'{"type":"token","token":"' + TEXT.encode() + b'"}\n'


async def test_slow_consumer() -> None:
    """The server is slowed down while the consumer works, what waits here is bounded, and nothing is lost."""
    start, done = events(text="done")
    flood = Flood(LINE, count=1000, begin=[start], last=encode_event(done))
    async with flood.running(), narrow_client(flood.url) as client:
        found: list[str] = []
        sent = held = 0
        tracemalloc.start()
        try:
            async for text in client.chat("s").stream("Hi").text():
                if not found:
                    before, _ = tracemalloc.get_traced_memory()
                    await flood.stuck.wait()
                    sent, held = flood.sent, tracemalloc.get_traced_memory()[0] - before
                found.append(text)
        finally:
            tracemalloc.stop()

    assert sent < NARROW
    assert held < 2 * NARROW  # the server's own buffers are in this process, too
    assert found == [TEXT] * 1000


async def test_slow_subscriber() -> None:
    """A subscriber that blocks slows the server just as well."""
    start, done = events(text="done")
    flood = Flood(LINE, count=1000, begin=[start], last=encode_event(done))
    async with flood.running(), narrow_client(flood.url) as client:
        stream = client.chat("s").stream("Hi")
        subscription = stream.subscribe(10)
        task = asyncio.create_task(wait(stream))
        await anext(subscription)
        await flood.stuck.wait()
        sent = flood.sent
        count = len([event async for event in subscription])

        assert (await task).text == "done"
    assert sent < NARROW
    assert count == 1001


# --- loops ------------------------------------------------------------------------------------------------------------


async def elsewhere(work: Callable[[], Awaitable[object]]) -> BaseException | None:
    """Run something on another event loop while this one goes on; return what it raised."""

    async def main() -> None:
        await work()

    def on_thread() -> BaseException | None:
        try:
            asyncio.run(main())
        except BaseException as exc:  # noqa: BLE001 - it is looked at
            return exc
        return None

    return await asyncio.to_thread(on_thread)


async def test_another_event_loop(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Whatever is tried from another loop says so, sends nothing and disturbs nothing."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    client = make_client(scripted.url, admin_key="admin-key")
    live = client.chat("live").stream("Hi")
    events_ = aiter(live)
    while await anext(events_) != HELLO[1]:
        pass
    chat, admin = client.chat("s"), client.admin

    async def pacing() -> object:
        return client.pacing

    works: list[Any] = [
        *(lambda drive=drive: drive(chat.stream("Hi")) for drive in DRIVES),
        lambda: chat.send("Hi"),
        lambda: chat.stream("Hi", on_busy="interrupt"),
        lambda: wait(live),
        lambda: anext(aiter(live)),
        live.__aenter__,
        client.health,
        admin.conversations,
        pacing,
        client.aclose,
    ]
    for work in works:
        error = await elsewhere(work)
        assert isinstance(error, UsageError)
        assert isinstance(error, RuntimeError)
        assert "another event loop" in str(error)
        assert not chat.busy
    assert chat.messages == ()
    assert not client.closed

    gate.set()
    assert [event async for event in events_] == HELLO[2:]
    assert len(scripted.requests) == 1


def test_a_loop_after_the_other() -> None:
    """asyncio.run() makes a new loop each time: a client that lives longer can be closed there, and nothing else."""
    client: ChatClient | None = None

    async def first() -> None:
        nonlocal client
        async with ScriptedServer(Script(FIRST + REST), STALLED) as server:
            client = ChatClient(server.url, api_key=KEY)
            await client.chat("s").stream("Hi")
            left_open.append(client.chat("s").stream("Hi"))
            await anext(aiter(left_open[0]))

    async def second() -> None:
        assert client is not None
        with pytest.raises(UsageError, match="another event loop"):
            await client.chat("s").stream("Hi")
        await client.aclose()
        assert client.closed

    left_open: list[ReplyStream] = []
    asyncio.run(first())
    asyncio.run(second())


# --- limits and cancels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", ["never", "at once", "just before", "just after"])
@pytest.mark.parametrize("phase", ["connect", "first_token", "idle", "total", "send"])
async def test_timeout_and_cancel(scripted: ScriptedServer, make_client: MakeClient, phase: Any, cancel: str) -> None:
    """When both come in the same pass of the loop, one of them comes out; a cancel stays counted in either case."""
    loop = asyncio.get_running_loop()
    client = make_client(scripted.url, max_connections=1)
    first = None
    if phase == "connect":
        scripted.add(Script(end="stall"))
        first = asyncio.create_task(wait(client.chat("first").stream("Hi")))
        await scripted.arrived(1)
    scripted.add(Script(end="stall") if phase in {"first_token", "send"} else STALLED)
    seen, deadline = asyncio.Event(), Timeouts(**{"idle": None, "first_token": None, phase: 0.05})
    chat = client.chat("s")
    if phase == "send":
        task: asyncio.Task[Reply] = asyncio.create_task(chat.send("Hi", timeouts=deadline))
    else:
        task = asyncio.create_task(chat.stream("Hi", timeouts=deadline, on_token=lambda _: seen.set()).reply())
    if phase in {"idle", "total"}:
        await seen.wait()
    elif phase != "connect":
        await scripted.arrived(1)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()

    while loop.time() < deadline_of(loop):
        pass  # the loop stands still until the time is over
    if cancel == "at once":
        task.cancel()
    elif cancel != "never":
        loop.call_at(0 if cancel == "just before" else loop.time(), task.cancel)
    await asyncio.wait({task}, timeout=5)

    assert task.done()
    assert task.cancelling() == (cancel != "never")
    if cancel == "never" or not task.cancelled():
        error = task.exception()
        assert isinstance(error, RequestTimeoutError)
        assert error.phase == ("total" if phase == "send" else phase)
    assert not chat.busy
    ended = {"connect": "failed", "first_token": "unknown", "send": "unknown"}.get(phase, "interrupted")
    assert chat.messages[0].status == ("cancelled" if task.cancelled() else ended)
    if first is not None:
        client.chat("first").stop()
        with pytest.raises(StreamStoppedError):
            await first


def deadline_of(loop: asyncio.AbstractEventLoop) -> float:
    """Return when the last of the loop's timers rings that does so within the second."""
    scheduled: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
    return max(timer.when() for timer in scheduled if timer.when() < loop.time() + 1 and not timer.cancelled())


@pytest.mark.parametrize("where", ["streaming", "headers", "queue", "callback", "send"])
async def test_sibling_fails(scripted: ScriptedServer, client: ChatClient, where: str) -> None:
    """The group raises the sibling's error alone; the stream is closed, its session free."""
    scripted.add(STALLED if where in {"streaming", "queue", "callback"} else Script(end="stall"))
    chat = client.chat("s")
    reached = asyncio.Event()

    async def hang(_text: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        if where in {"headers", "send"}:
            await scripted.arrived(1)
        else:
            await reached.wait()
        for _ in range(3):
            await asyncio.sleep(0)
        raise ServerError("sibling")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            if where == "send":
                group.create_task(chat.send("Hi"))
            else:
                group.create_task(
                    chat.stream("Hi", on_token=hang if where == "callback" else lambda _: reached.set()).reply()
                )
            if where == "queue":
                group.create_task(chat.stream("queued").reply())
            group.create_task(fail())

    assert [str(error) for error in caught.value.exceptions] == ["sibling"]
    assert not chat.busy
    assert not client._core.live
    await scripted.requests[0].left.wait()
    assert (await chat.stream("And now?")).text == "Hello world"


async def test_stream_fails_its_siblings(scripted: ScriptedServer, client: ChatClient) -> None:
    """It is the other way round as well: a stream that breaks ends the group, and its error comes with its text."""
    gate = asyncio.Event()
    scripted.add(STALLED, Script(FIRST, gates={len(FIRST): gate}, end="fin"))
    seen: list[str] = []

    def both(text: str) -> None:
        seen.append(text)
        if len(seen) == 2:
            gate.set()

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(client.chat(name).stream("Hi", on_token=both).reply())

    [error] = caught.value.exceptions
    assert isinstance(error, AheadlessError)
    assert error.partial == "Hel"
    assert not client.chat("a").busy
    assert not client.chat("b").busy
    for request in scripted.requests:
        await request.left.wait()


@pytest.mark.parametrize("gone", [{0}, {4}, {1, 3}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}])
@pytest.mark.parametrize("when", ["before", "as the first one's turn comes"])
async def test_cancelled_in_the_queue_of_a_session(
    scripted: ScriptedServer, client: ChatClient, gone: set[int], when: str
) -> None:
    """Whoever is cancelled gives up the place, even if the session is just being handed over; the others keep theirs."""
    scripted.add(STALLED)
    chat = client.chat("s")
    live = asyncio.create_task(chat.stream("live").reply())
    await scripted.arrived(1)
    turns = [asyncio.create_task(chat.stream(str(number)).reply()) for number in range(5)]
    await asyncio.sleep(0)

    if when == "before":
        for number in gone:
            turns[number].cancel()
        chat.stop()
    else:
        chat.stop()
        for number in gone:
            turns[number].cancel()
    results = await asyncio.gather(live, *turns, return_exceptions=True)

    assert isinstance(results[0], StreamStoppedError)
    assert {number for number, result in enumerate(results[1:]) if isinstance(result, asyncio.CancelledError)} == gone
    asked = [message.text for message in chat.messages if message.role == "user"]
    assert asked == ["live", *(str(number) for number in range(5) if number not in gone)]
    assert len(scripted.stored) == len(asked)
    assert not chat.busy


@pytest.mark.parametrize("gone", [{0}, {4}, {1, 3}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}])
async def test_cancelled_while_the_rate_limit_holds(
    scripted: ScriptedServer, make_client: MakeClient, gone: set[int]
) -> None:
    """No leave to send is lost with one who is cancelled, be it the probe itself; the others go in their order."""
    scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "0.05"})))
    waiting: list[str] = []
    client = make_client(scripted.url, max_wait=60, on_wait=lambda turn: waiting.append(turn.session_id))
    turns = []
    for number in range(5):
        turns.append(asyncio.create_task(client.chat(str(number)).stream("Hi").reply()))
        while len(waiting) <= number:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert client.pacing.waiting == 5

    for number in gone:
        turns[number].cancel()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*turns, return_exceptions=True)

    assert {number for number, result in enumerate(results) if isinstance(result, asyncio.CancelledError)} == gone
    stayed = [number for number in range(5) if number not in gone]
    assert [json.loads(request.body)["sessionId"] for request in scripted.requests[1:]] == list(map(str, stayed))
    pacer = pacer_for(scripted.url)
    assert (pacer.state().waiting, pacer._in_flight) == (0, 0)
    assert (await client.chat("0").stream("And now?")).text == "Hello world"


# --- callbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "drive"),
    [
        (name, drive)
        for name in ("on_start", "on_token", "on_done", "on_error")
        for drive in (*DRIVES, None)  # None: send(), whose answer has no tokens
        if drive is not None or name != "on_token"
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_callback_raises(
    scripted: ScriptedServer, client: ChatClient, name: str, drive: Drive | None, is_async: bool
) -> None:
    """It reaches the caller as it is; the connection is closed, the turn settled, the session free."""
    error = ZeroDivisionError("mine")

    def raises(_value: object) -> None:
        raise error

    async def raises_later(value: object) -> None:
        await asyncio.sleep(0)
        raises(value)

    if name == "on_error":
        scripted.add(Script(FIRST, end="fin") if drive is not None else Script(json_answer({}, status=500)))
    else:
        scripted.add(JSON_REPLY if drive is None else STALLED if name != "on_done" else Script(FIRST + REST))
    chat = client.chat("s", **{name: raises_later if is_async else raises})  # type: ignore[arg-type]

    with pytest.raises(ZeroDivisionError) as caught:
        await (chat.send("Hi") if drive is None else drive(chat.stream("Hi")))

    assert caught.value is error
    assert not chat.busy
    assert not client._core.live
    question = chat.messages[0]
    assert question.status == (
        "complete" if name == "on_done" else "unknown" if drive is None and name == "on_error" else "interrupted"
    )
    if drive is not None and name != "on_done":
        await scripted.requests[0].left.wait()
    chat = client.chat("another")
    assert (await chat.stream("And now?")).text == "Hello world"


@pytest.mark.parametrize("name", ["on_wait", "on_retry"])
async def test_callback_of_a_wait_raises(scripted: ScriptedServer, make_client: MakeClient, name: str) -> None:
    """So do those that are told of a wait; no leave to send is lost."""
    scripted.add(Script(json_answer({}, status=429 if name == "on_wait" else 503, headers={"Retry-After": "0"})))
    error = ZeroDivisionError("mine")

    async def raises(_value: object) -> None:
        await asyncio.sleep(0)
        raise error

    client = make_client(scripted.url, max_wait=60, retry=Retry(attempts=2), **{name: raises})
    chat = client.chat("s")

    if name == "on_wait":
        scripted._scripts.appendleft(Script(json_answer({}, status=429, headers={"Retry-After": "60"})))
    with pytest.raises(ZeroDivisionError) as caught:
        await chat.stream("Hi")

    assert caught.value is error
    assert not chat.busy
    assert pacer_for(scripted.url)._in_flight == 0
    assert chat.messages[0].delivery is Delivery.REJECTED
