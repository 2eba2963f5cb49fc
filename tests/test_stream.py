"""What users do with a stream: iterate, enter, await, leave, stop, subscribe."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aheadless import (
    AheadlessError,
    ChatClient,
    ConfigurationError,
    Delivery,
    Done,
    Event,
    ReplyFailedError,
    RequestTimeoutError,
    Start,
    StreamInterruptedError,
    StreamStoppedError,
    Subscription,
    Timeouts,
    Token,
    TurnState,
    Unknown,
    UsageError,
)
from aheadless.protocol.events import Failure
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, chunked, events, head, lines, stream_answer

START = Start(CONVERSATION_ID)
HELLO = events("Hel", "lo")
# A stream of which only the first token comes; then it goes on when the test says so, or never.
FIRST = head(200, {"Content-Type": "application/x-ndjson", "Transfer-Encoding": "chunked"}) + chunked(
    lines(HELLO[:2]), last=False
)
REST = chunked(lines(HELLO[2:]))
STALLED = Script(FIRST, end="stall")


async def test_iterating_gives_the_events(scripted: ScriptedServer, client: ChatClient) -> None:
    """A loop gets every event as it was sent, `done` last."""
    scripted.add(Script(stream_answer([*HELLO[:2], Unknown("x", {"type": "x", "n": 1}), *HELLO[2:]])))

    found = [event async for event in client.chat("s").stream("Hi")]

    assert found == [
        START,
        Token("Hel"),
        Unknown("x", {"type": "x", "n": 1}),
        Token("lo"),
        Done("Hello", CONVERSATION_ID),
    ]
    assert scripted.requests[0].body == b'{"sessionId":"s","message":"Hi"}'


async def test_awaiting_gives_the_reply(scripted: ScriptedServer, client: ChatClient) -> None:
    """Awaiting reads to the end; the reply says what `done` said, and what was streamed."""
    scripted.add(Script(stream_answer(events(" Hel", "lo ", text="Hello"))))

    reply = await client.chat("s").stream("Hi")

    assert (reply.text, reply.streamed_text) == ("Hello", " Hello ")
    assert (reply.session_id, reply.conversation_id, reply.recovered) == ("s", CONVERSATION_ID, False)
    assert str(reply) == "Hello"
    assert reply.timings.first_token is not None
    assert 0 <= reply.timings.first_token <= reply.timings.total


async def test_text_gives_the_tokens(client: ChatClient) -> None:
    """text() leaves out what is no token."""
    assert [text async for text in client.chat("s").stream("Hi").text()] == ["Hello", " world"]


async def test_entering_lets_one_read_in_pieces(client: ChatClient) -> None:
    """Within the block a loop may be left and taken up again; snapshot and reply() follow."""
    async with client.chat("s").stream("Hi") as stream:
        async for text in stream.text():
            assert stream.snapshot == text == "Hello"
            break
        rest = [event async for event in stream]
        reply = await stream.reply()

    assert rest == [Token(" world"), Done("Hello world", CONVERSATION_ID)]
    assert reply.text == stream.snapshot == "Hello world"
    assert await stream == reply
    assert [event async for event in stream] == []


async def test_nothing_is_sent_before_it_is_driven(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream that nobody drives costs nothing."""
    stream = client.chat("s").stream("Hi")
    iterator = stream.text()
    del iterator
    assert stream.state is TurnState.WAITING
    assert stream.snapshot == ""
    assert stream.conversation_id is None
    del stream
    gc.collect()

    assert scripted.connections == 0
    assert not client.chat("s").busy
    assert client.chat("s").messages == ()


async def test_first_token_is_there_before_the_last_is_made(scripted: ScriptedServer, client: ChatClient) -> None:
    """Tokens are given out as the server sends them."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    found: list[Event] = []

    async for event in client.chat("s").stream("Hi"):
        found.append(event)
        if event == Token("Hel"):
            assert not gate.is_set()
            gate.set()

    assert found == HELLO


# --- leaving ----------------------------------------------------------------------------------------------------------


async def leave_by_break(stream: Any) -> None:
    async for event in stream:
        if isinstance(event, Token):
            break


async def leave_by_return(stream: Any) -> None:
    async for event in stream:
        if isinstance(event, Token):
            return


async def leave_by_raise(stream: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        async for event in stream:
            if isinstance(event, Token):
                raise ZeroDivisionError


async def leave_by_block(stream: Any) -> None:
    async with stream:
        async for event in stream:
            if isinstance(event, Token):
                break


async def leave_text(stream: Any) -> None:
    async for _ in stream.text():
        break


async def leave_by_aclose(stream: Any) -> None:
    iterator = aiter(stream)
    await anext(iterator)
    await anext(iterator)
    await iterator.aclose()


@pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_return, leave_by_raise, leave_by_block, leave_text, leave_by_aclose]
)
async def test_leaving_early(scripted: ScriptedServer, client: ChatClient, leave: Any) -> None:
    """The connection is closed at once, the turn settled, the session free; the stream is still referenced."""
    scripted.add(STALLED)
    chat = client.chat("s")
    stream = chat.stream("Hi")

    await leave(stream)

    assert not chat.busy
    assert stream.state is TurnState.INTERRUPTED
    question, answer = chat.messages
    assert (question.status, question.delivery) == ("interrupted", Delivery.ACCEPTED)
    assert (answer.text, answer.partial, answer.status) == ("Hel", "Hel", "interrupted")
    await scripted.requests[0].left.wait()
    with pytest.raises(StreamStoppedError) as caught:
        await stream
    assert caught.value.partial == "Hel"
    assert (await chat.stream("Again")).text == "Hello world"


async def test_a_collected_stream_is_closed(scripted: ScriptedServer, client: ChatClient) -> None:
    """Nobody holds it, nobody will read it: its connection goes."""
    scripted.add(STALLED)
    iterator = aiter(client.chat("s").stream("Hi"))
    await anext(iterator)

    del iterator
    gc.collect()

    await scripted.requests[0].left.wait()
    assert not client.chat("s").busy


async def test_collected_on_another_thread(scripted: ScriptedServer, client: ChatClient) -> None:
    """The collector may run anywhere; the connection is closed on its own loop."""
    scripted.add(STALLED)
    holder = [aiter(client.chat("s").stream("Hi"))]
    await anext(holder[0])

    await asyncio.to_thread(holder.clear)

    await scripted.requests[0].left.wait()
    assert not client.chat("s").busy


async def test_leaving_does_not_wait_for_done(scripted: ScriptedServer, client: ChatClient) -> None:
    """Once `done` is read the reply is there, though the connection stays open."""
    scripted.add(Script(FIRST + REST.removesuffix(b"0\r\n\r\n"), end="stall"))

    assert (await client.chat("s").stream("Hi")).text == "Hello"


# --- stopping ---------------------------------------------------------------------------------------------------------


async def test_stop_ends_a_loop(scripted: ScriptedServer, client: ChatClient) -> None:
    """A loop over a stopped stream just ends, without on_done and on_error."""
    scripted.add(STALLED)
    told: list[object] = []
    chat = client.chat("s")
    stream = chat.stream("Hi", on_done=told.append, on_error=told.append)
    found = []

    async for event in stream:
        found.append(event)
        if event == Token("Hel"):
            stream.stop()

    assert found == HELLO[:2]
    assert told == []
    assert not chat.busy
    assert chat.messages[-1].partial == "Hel"
    await scripted.requests[0].left.wait()


@pytest.mark.parametrize("by", ["stream", "chat"])
async def test_stop_from_another_task(scripted: ScriptedServer, client: ChatClient, by: str) -> None:
    """An await of a stopped stream raises, with the partial text; the task is not cancelled."""
    scripted.add(STALLED)
    chat = client.chat("s")
    seen, errors = asyncio.Event(), list[AheadlessError]()
    stream = chat.stream("Hi", on_token=lambda _: seen.set(), on_error=errors.append)
    task = asyncio.create_task(stream.reply())
    await seen.wait()

    (stream if by == "stream" else chat).stop()

    assert not chat.busy
    with pytest.raises(StreamStoppedError) as caught:
        await task
    assert (caught.value.partial, caught.value.delivery, caught.value.session_id) == ("Hel", Delivery.ACCEPTED, "s")
    assert errors == [caught.value]
    assert task.cancelling() == 0


async def test_stop_before_the_headers(scripted: ScriptedServer, client: ChatClient) -> None:
    """Stopping works while the request waits for its answer."""
    scripted.add(Script(end="stall"))
    chat = client.chat("s")
    stream = chat.stream("Hi")
    task = asyncio.create_task(stream.reply())
    request = await scripted.arrived(1)

    stream.stop()
    stream.stop()

    with pytest.raises(StreamStoppedError) as caught:
        await task
    assert caught.value.delivery is Delivery.UNKNOWN
    await request.left.wait()
    assert [message.status for message in chat.messages] == ["interrupted"]


async def test_stop_before_driving(scripted: ScriptedServer, client: ChatClient) -> None:
    """A stream that was stopped before it was driven sends nothing."""
    chat = client.chat("s")
    stream = chat.stream("Hi")

    stream.stop()
    chat.stop()

    assert [event async for event in stream] == []
    with pytest.raises(StreamStoppedError) as caught:
        await stream
    assert caught.value.delivery is Delivery.NOT_SENT
    with pytest.raises(StreamStoppedError):
        async with stream:
            pass
    assert scripted.connections == 0
    assert chat.messages == ()


async def test_stop_after_done_changes_nothing(client: ChatClient) -> None:
    """What is complete stays complete."""
    stream = client.chat("s").stream("Hi")
    reply = await stream

    stream.stop()
    await stream.aclose()

    assert await stream == reply
    assert stream.state is TurnState.DONE


async def test_stop_within_a_callback(scripted: ScriptedServer, client: ChatClient) -> None:
    """A callback may stop the very stream that calls it; the token it was told of is the last."""
    scripted.add(STALLED)
    stream = client.chat("s").stream("Hi", on_token=lambda _: stream.stop())

    assert [event async for event in stream] == [START]
    assert stream.snapshot == "Hel"


async def test_aclose_in_the_middle(scripted: ScriptedServer, client: ChatClient) -> None:
    """aclose() is stop() for those who close things."""
    scripted.add(STALLED)
    chat = client.chat("s")
    async with chat.stream("Hi") as stream:
        await stream.aclose()
        assert not chat.busy
        assert [event async for event in stream] == []


# --- failing ----------------------------------------------------------------------------------------------------------


async def test_error_event(scripted: ScriptedServer, client: ChatClient) -> None:
    """The server's `error` is raised with its reason and the partial text, and not yielded."""
    scripted.add(Script(stream_answer([*HELLO[:2], Failure("model \x1b[31m down")])))
    found, errors = list[Event](), list[AheadlessError]()
    chat = client.chat("s")
    stream = chat.stream("Hi", on_error=errors.append)

    with pytest.raises(ReplyFailedError) as caught:
        async for event in stream:
            found.append(event)

    assert found == HELLO[:2]
    assert caught.value.reason == "model \x1b[31m down"
    assert str(caught.value) == "the server gave up: model \\x1b[31m down"
    assert (caught.value.partial, caught.value.delivery) == ("Hel", Delivery.ACCEPTED)
    assert errors == [caught.value]
    assert [message.status for message in chat.messages] == ["failed", "failed"]
    with pytest.raises(ReplyFailedError):
        await stream
    assert errors == [caught.value]
    with pytest.raises(ReplyFailedError):  # not the end of a whole reply
        [event async for event in stream]
    assert errors == [caught.value]


@pytest.mark.parametrize("end", ["fin", "rst"])
async def test_cut_stream(scripted: ScriptedServer, client: ChatClient, end: Any) -> None:
    """Without `done` a reply is broken, even if every token came; all that came is in the partial text."""
    scripted.add(Script(FIRST, end=end))

    with pytest.raises(StreamInterruptedError) as caught:
        await client.chat("s").stream("Hi")

    assert caught.value.partial == "Hel"
    assert caught.value.delivery is Delivery.ACCEPTED
    assert not isinstance(caught.value, StreamStoppedError)


async def test_idle_timeout(scripted: ScriptedServer, client: ChatClient) -> None:
    """No event for too long, though blank lines keep coming."""
    scripted.add(Script(FIRST, drip=b"1\r\n\n\r\n", interval=0.001))

    with pytest.raises(RequestTimeoutError) as caught:
        await client.chat("s").stream("Hi", timeouts=Timeouts(idle=0.05))

    assert (caught.value.phase, caught.value.partial, caught.value.delivery) == ("idle", "Hel", Delivery.ACCEPTED)
    assert isinstance(caught.value, TimeoutError)


async def test_first_token_timeout_after_start(scripted: ScriptedServer, client: ChatClient) -> None:
    """`start` is no token."""
    scripted.add(Script(head(200, {"Transfer-Encoding": "chunked"}) + chunked(lines([START]), last=False), end="stall"))

    with pytest.raises(RequestTimeoutError) as caught:
        await client.chat("s").stream("Hi", timeouts=Timeouts(first_token=0.05))

    assert (caught.value.phase, caught.value.delivery) == ("first_token", Delivery.ACCEPTED)


async def test_first_token_timeout_before_the_headers(scripted: ScriptedServer, client: ChatClient) -> None:
    """It runs from the connection on."""
    scripted.add(Script(end="stall"))

    with pytest.raises(RequestTimeoutError) as caught:
        await client.chat("s").stream("Hi", timeouts=Timeouts(first_token=0.05))

    assert (caught.value.phase, caught.value.delivery) == ("first_token", Delivery.UNKNOWN)
    assert str(caught.value) == "timed out waiting for the first token"


@pytest.mark.parametrize("data", [b"", FIRST])
async def test_total_timeout(scripted: ScriptedServer, client: ChatClient, data: bytes) -> None:
    """It runs from the request on, wherever the stream is."""
    scripted.add(Script(data, end="stall"))

    with pytest.raises(RequestTimeoutError) as caught:
        await client.chat("s").stream("Hi", timeouts=Timeouts(total=0.05, first_token=None, idle=None))

    assert caught.value.phase == "total"


async def test_idle_timer_stands_still_while_the_consumer_works(scripted: ScriptedServer, client: ChatClient) -> None:
    """A slow consumer is no reason to give up on the server."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    loop = asyncio.get_running_loop()

    async for event in client.chat("s").stream("Hi", timeouts=Timeouts(idle=0.05)):
        if event == Token("Hel"):
            rung = asyncio.Event()
            loop.call_later(0.15, rung.set)
            await rung.wait()
            gate.set()

    assert event == Done("Hello", CONVERSATION_ID)


# --- one reader, more readers -----------------------------------------------------------------------------------------


async def test_second_reader(scripted: ScriptedServer, client: ChatClient) -> None:
    """A second task is sent to subscribe(); the first goes on undisturbed."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    seen = asyncio.Event()
    stream = client.chat("s").stream("Hi", on_token=lambda _: seen.set())
    task = asyncio.create_task(stream.reply())
    await seen.wait()

    with pytest.raises(UsageError, match=r"subscribe\(\)"):
        await stream
    gate.set()

    assert (await task).text == "Hello"


async def test_subscriptions(scripted: ScriptedServer, client: ChatClient) -> None:
    """Each subscription gets every event from its beginning on, and the end."""
    stream = client.chat("s").stream("Hi")
    first, second = stream.subscribe(), stream.subscribe()

    reply = await stream
    assert [event async for event in first] == [event async for event in second] == events("Hello", " world")
    assert [event async for event in stream.subscribe()] == []
    assert reply.text == "Hello world"


async def test_subscription_waits_for_events(scripted: ScriptedServer, client: ChatClient) -> None:
    """A subscriber that is faster than the stream waits; one task reads it at a time."""
    stream = client.chat("s").stream("Hi")
    subscription = stream.subscribe()

    async def read() -> list[Event]:
        return [event async for event in subscription]

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    with pytest.raises(UsageError, match="one for each reader"):
        await anext(subscription)
    await stream

    assert await task == events("Hello", " world")


async def test_subscription_gets_the_error(scripted: ScriptedServer, client: ChatClient) -> None:
    """What the reader gets, the subscribers get."""
    scripted.add(Script(FIRST, end="fin"))
    stream = client.chat("s").stream("Hi")
    subscription = stream.subscribe()
    with pytest.raises(StreamInterruptedError):
        await stream

    found = list[Event]()
    with pytest.raises(StreamInterruptedError):
        async for event in subscription:
            found.append(event)

    assert found == HELLO[:2]


async def test_full_subscription_drops_the_oldest(client: ChatClient) -> None:
    """drop_oldest keeps the newest events."""
    stream = client.chat("s").stream("Hi")
    subscription = stream.subscribe(2, overflow="drop_oldest")

    await stream

    assert [event async for event in subscription] == events("Hello", " world")[-2:]


async def test_full_subscription_raises(client: ChatClient) -> None:
    """raise ends the subscription, not the stream."""
    stream = client.chat("s").stream("Hi")
    subscription = stream.subscribe(1, overflow="raise")

    await stream

    assert await anext(subscription) == START
    with pytest.raises(UsageError, match="more than 1 events behind"):
        await anext(subscription)


async def test_full_subscription_blocks(client: ChatClient) -> None:
    """block makes the stream wait for its slowest subscriber."""
    stream = client.chat("s").stream("Hi")
    subscription = stream.subscribe(1)
    task = asyncio.create_task(stream.reply())

    found = [event async for event in subscription]

    assert found == events("Hello", " world")
    assert (await task).text == "Hello world"


async def test_closed_subscription_blocks_nobody(client: ChatClient) -> None:
    """A subscriber that leaves is forgotten."""
    stream = client.chat("s").stream("Hi")

    async with stream.subscribe(1) as subscription:
        task = asyncio.create_task(stream.reply())
        await anext(subscription)

    assert (await task).text == "Hello world"
    assert [event async for event in subscription] == []


@pytest.mark.parametrize("used", [False, True])
async def test_dropped_subscription_blocks_nobody(client: ChatClient, used: bool) -> None:
    """Nobody reads it any more: the loop over it was left, or it was never used."""
    stream = client.chat("s").stream("Hi")
    if used:
        task = asyncio.create_task(stream.reply())
        async for _event in stream.subscribe(1):
            break
    else:
        stream.subscribe(1)
        task = asyncio.create_task(stream.reply())

    assert (await task).text == "Hello world"
    assert stream._mailboxes == ()


async def test_a_subscriber_that_does_not_read(scripted: ScriptedServer, client: ChatClient) -> None:
    """It holds the stream no longer than all of it may take."""
    stream = client.chat("s").stream("Hi", timeouts=Timeouts(total=0.05))
    subscription = stream.subscribe(1)

    with pytest.raises(RequestTimeoutError) as caught:
        await stream

    assert (caught.value.phase, caught.value.delivery, caught.value.partial) == ("total", Delivery.ACCEPTED, "Hello")
    assert [event async for event in drained(subscription)] == [START]


async def drained(subscription: Subscription) -> AsyncIterator[Event]:
    """Give what a subscription holds, up to its error."""
    with contextlib.suppress(RequestTimeoutError):
        async for event in subscription:
            yield event


async def test_a_slow_reader_has_its_time_for_itself(scripted: ScriptedServer, client: ChatClient) -> None:
    """What it does between `start` and the first token does not count as waiting for that token."""
    gate, reached = asyncio.Event(), asyncio.get_running_loop().time() + 0.1
    data = FIRST + REST
    scripted.add(Script(data, gates={data.index(b'{"type":"token"'): gate}))
    found = list[Event]()

    async for event in client.chat("s").stream("Hi", timeouts=Timeouts(first_token=0.09)):
        if isinstance(event, Start):
            while asyncio.get_running_loop().time() < reached:
                await asyncio.sleep(0)
            gate.set()
        found.append(event)

    assert found == HELLO


@pytest.mark.parametrize(("maxsize", "overflow"), [(0, "block"), (True, "block"), (1.5, "block"), (1, "wait")])
async def test_wrong_subscriptions(client: ChatClient, maxsize: Any, overflow: Any) -> None:
    """Bad options are refused at once."""
    with pytest.raises(ConfigurationError):
        client.chat("s").stream("Hi").subscribe(maxsize, overflow=overflow)


async def test_repr(client: ChatClient) -> None:
    """It tells the state, not the text."""
    stream = client.chat("s").stream("Hi")
    await stream

    assert repr(stream) == "<ReplyStream s done, 11 characters>"
    assert stream.session_id == "s"
    assert stream.task is None
