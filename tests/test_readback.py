"""Recovery against a real server: whatever is cut, the message is stored once and the reply is whole, or the truth is
told.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import attrs
import pytest

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    ClientClosedError,
    ConfigurationError,
    ConnectionLostError,
    Delivery,
    Done,
    Event,
    Failure,
    Message,
    Reply,
    ReplyFailedError,
    ReplyStream,
    Retry,
    Retrying,
    Start,
    StoreError,
    StreamInterruptedError,
    StreamStoppedError,
    Timeouts,
    Timings,
    Token,
    TurnState,
    UsageError,
)
from aheadless._exchange import Lease, SessionChange
from aheadless._readback import ReadBack
from aheadless.server import EchoEngine, RunningServer, ScriptedEngine, ServerSettings, run_server
from aheadless.stores import MemoryStore, SQLiteStore
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.proxy import CuttingProxy, Side
from tests.support import ADMIN_KEY, KEY

REPLY = "Hello world"
RETRY = Retry(attempts=2, base=1e-9, cap=1e-9)


class Clock:
    """A pause that does not wait but lets the server work."""

    def __init__(self) -> None:
        self.time = 0.0
        self.pauses = 0

    def now(self) -> float:
        return self.time

    async def pause(self, seconds: float) -> None:
        self.time += seconds
        self.pauses += 1
        await asyncio.sleep(0)


def hasten(client: ChatClient) -> Clock:
    """Let a client's searches take no time."""
    clock = Clock()
    readback = client._core.readback
    assert isinstance(readback, ReadBack)
    readback.now, readback.pause = clock.now, clock.pause
    return clock


@pytest.fixture
async def server() -> AsyncIterator[RunningServer]:
    engine = ScriptedEngine(("Hel", "lo ", "world", "\n"))
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=engine, rate_limit=None)
    async with run_server(settings) as running:
        yield running


@pytest.fixture
async def proxy(server: RunningServer) -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy(server.url) as proxy:
        yield proxy


async def stored(client: ChatClient, session_id: str) -> list[tuple[str, str]]:
    """Return what the server has of a session."""
    for conversation in (await client.admin.conversations(limit=200)).conversations:
        if conversation.session_id == session_id:
            thread = await client.admin.conversation(conversation.id)
            return [(message.role, message.content) for message in thread.messages]
    return []


def told(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


@pytest.mark.slow
async def test_cuts_at_every_byte_auto(server: RunningServer, proxy: CuttingProxy, make_client: MakeClient) -> None:
    """The reply is whole, its tokens are its text, and the message is stored once; what was not stored is sent again."""
    client = make_client(proxy.url, admin_key=ADMIN_KEY, recovery="auto", retry=RETRY)
    direct = make_client(server.url, admin_key=ADMIN_KEY)
    hasten(client)
    await client.chat("measure").stream("Hi")
    sizes = dict(proxy.sizes)
    sessions: dict[str, int] = {}
    sent_again = recovered = 0

    for number, (side, size) in enumerate(cuts(sizes)):
        session_id = f"session{number // 20:02}"  # the same text again and again, in threads of bearable length
        sessions[session_id] = sessions.get(session_id, 0) + 1
        chat = client.chat(session_id)
        client._core.budget.__init__()  # type: ignore[misc]
        posts = proxy.posts
        proxy.cut(side, size, "fin" if number % 2 else "rst")
        stream = chat.stream("Hi")
        seen = [event async for event in stream]
        reply = await stream

        where = f"{side} cut at {size} of {sizes[side]}"
        assert reply.text == REPLY, where
        assert [type(event) for event in seen if not isinstance(event, Token)] == [Start, Done], where
        assert "".join(event.text for event in seen if isinstance(event, Token)).strip() == REPLY, where
        assert stream.snapshot.strip() == reply.streamed_text.strip() == REPLY, where
        again = proxy.posts - posts - 1
        # A server that reads the whole request and its connection's end at once may drop it.
        assert again == (side == "request") or (again == 0 and size == sizes["request"]), where
        sent_again += again
        recovered += reply.recovered

    assert sent_again in {sizes["request"], sizes["request"] + 1}
    assert recovered > 100
    for session_id, turns in sessions.items():
        assert await stored(direct, session_id) == [("user", "Hi"), ("assistant", REPLY)] * turns
        assert told(client.chat(session_id).messages) == [("user", "Hi"), ("assistant", REPLY)] * turns


@pytest.mark.slow
async def test_cuts_at_every_byte_by_hand(server: RunningServer, proxy: CuttingProxy, make_client: MakeClient) -> None:
    """`error.recover()` gives the reply, or the verdict that the message may be sent again."""
    client = make_client(proxy.url, admin_key=ADMIN_KEY)
    direct = make_client(server.url, admin_key=ADMIN_KEY)
    hasten(client)
    await client.chat("measure").stream("Hi")
    sizes = dict(proxy.sizes)
    sessions: dict[str, int] = {}

    for number, (side, size) in enumerate(cuts(sizes)):
        session_id = f"session{number // 20:02}"
        chat = client.chat(session_id)
        proxy.cut(side, size, "rst" if number % 2 else "fin")
        where = f"{side} cut at {size} of {sizes[side]}"
        reply, error = await outcome(chat.stream("Hi"))
        if error is not None:
            assert error.delivery in {Delivery.UNKNOWN, Delivery.ACCEPTED, Delivery.NOT_SENT}, where
            reply = await error.recover()
            if side == "request" and (size < sizes["request"] or reply is None):
                assert reply is None, where
                assert error.delivery in {Delivery.REJECTED, Delivery.NOT_SENT}, where
                assert chat.messages[-1].delivery is error.delivery
                continue
            assert reply is not None, where
            assert reply.recovered
            assert reply.streamed_text == error.partial
            assert error.delivery is Delivery.ACCEPTED
        assert reply is not None
        sessions[session_id] = sessions.get(session_id, 0) + 1
        assert reply.text == REPLY, where
        assert reply.conversation_id == chat.conversation_id

    for session_id, turns in sessions.items():
        assert await stored(direct, session_id) == [("user", "Hi"), ("assistant", REPLY)] * turns
        there = [message for message in client.chat(session_id).messages if message.delivery is Delivery.ACCEPTED]
        assert told(there) == [("user", "Hi"), ("assistant", REPLY)] * turns


async def outcome(stream: ReplyStream) -> tuple[Reply | None, AheadlessError | None]:
    """Return how a stream ended."""
    try:
        return await stream, None
    except AheadlessError as error:
        return None, error


def cuts(sizes: dict[Side, int]) -> list[tuple[Side, int]]:
    """Return every place in a request and in its answer."""
    sides: tuple[Side, ...] = ("request", "response")
    return [(side, size) for side in sides for size in range(sizes[side] + (side == "request"))]


# --- a stream goes on -------------------------------------------------------------------------------------------------

CUT_IN_TEXT = Script(stream_answer([Start(CONVERSATION_ID), Token("Hel")]).removesuffix(b"0\r\n\r\n"), end="fin")


def history(*said: str, **headers: str) -> Script:
    """Return the answer of the admin API: a thread, in which `>` begins a question."""
    messages = [
        {
            "_id": f"m{number}",
            "conversationId": CONVERSATION_ID,
            "role": "user" if text.startswith(">") else "assistant",
            "content": text.removeprefix(">"),
            "createdAt": 1_800_000_000_000 + number,
        }
        for number, text in enumerate(said)
    ]
    return Script(json_answer({"conversation": CONVERSATION, "messages": messages}, headers=headers))


CONVERSATION = {"_id": CONVERSATION_ID, "sessionId": "s", "createdAt": 1, "updatedAt": 2, "lastMessage": ""}


def listing(*conversations: dict[str, Any], total: int | None = None) -> Script:
    """Return the admin API's list."""
    return Script(
        json_answer({"conversations": conversations, "total": len(conversations) if total is None else total})
    )


@pytest.fixture
def auto(scripted: ScriptedServer, make_client: MakeClient) -> ChatClient:
    client = make_client(scripted.url, admin_key=ADMIN_KEY, recovery="auto")
    hasten(client)
    return client


@pytest.fixture
def by_hand(scripted: ScriptedServer, make_client: MakeClient) -> ChatClient:
    client = make_client(scripted.url, admin_key=ADMIN_KEY)
    hasten(client)
    return client


async def test_rest_of_a_stream(scripted: ScriptedServer, auto: ChatClient) -> None:
    """It comes as a token, then `done`; every listener hears of it, and the reply says that it was recovered."""
    scripted.add(listing(), CUT_IN_TEXT, history(">Hi"), history(">Hi", "Hello world"))
    tokens: list[str] = []
    done: list[Reply] = []
    stream = auto.chat("s").stream("Hi", on_token=tokens.append, on_done=done.append)
    other = stream.subscribe()

    events = [event async for event in stream]

    assert events == [
        Start(CONVERSATION_ID),
        Token("Hel"),
        Token("lo world"),
        Done("Hello world", CONVERSATION_ID),
    ]
    assert [event async for event in other] == events
    reply = await stream
    assert (reply.text, reply.streamed_text, reply.recovered) == ("Hello world", "Hello world", True)
    assert (tokens, done, stream.snapshot, stream.state) == (
        ["Hel", "lo world"],
        [reply],
        "Hello world",
        TurnState.DONE,
    )
    assert told(auto.chat("s").messages) == [("user", "Hi"), ("assistant", "Hello world")]
    assert {message.status for message in auto.chat("s").messages} == {"complete"}
    assert not auto.chat("s").busy


@pytest.mark.parametrize(
    ("stored_text", "rest"),
    [("Hel", []), ("Goodbye", []), ("Hel \u2713", [Token(" \u2713")])],
    ids=["all", "other", "more"],
)
async def test_tokens_of_the_rest(
    scripted: ScriptedServer, auto: ChatClient, stored_text: str, rest: list[Event]
) -> None:
    """What was streamed is not taken back: if the stored text does not begin with it, only `done` has that."""
    scripted.add(listing(), CUT_IN_TEXT)
    for _ in range(60):
        scripted.add(history(">Hi", stored_text))

    stream = auto.chat("s").stream("Hi")

    assert [event async for event in stream] == [
        Start(CONVERSATION_ID),
        Token("Hel"),
        *rest,
        Done(stored_text, CONVERSATION_ID),
    ]
    assert (await stream).text == stored_text


async def test_idle_stream_goes_on(scripted: ScriptedServer, auto: ChatClient) -> None:
    """A stall is an end of the connection, too."""
    scripted.add(listing(), attrs.evolve(CUT_IN_TEXT, end="stall"), history(">Hi", "Hello"))

    reply = await auto.chat("s").stream("Hi", timeouts=Timeouts(idle=0.01))

    assert (reply.text, reply.recovered) == ("Hello", True)


async def test_error_event_is_final(scripted: ScriptedServer, auto: ChatClient) -> None:
    """The server has said that there is no reply; asked by hand, it is believed at the first look."""
    scripted.add(
        listing(), Script(stream_answer([Start(CONVERSATION_ID), Token("Hel"), Failure("no")])), history(">Hi")
    )

    with pytest.raises(ReplyFailedError) as caught:
        await auto.chat("s").stream("Hi")

    assert len(scripted.requests) == 2
    assert await caught.value.recover() is None
    assert len(scripted.requests) == 3
    assert (caught.value.delivery, auto.chat("s").messages[0].status) == (Delivery.ACCEPTED, "failed")


LOST = Script(end="fin")


async def test_lost_message_with_a_reply(scripted: ScriptedServer, auto: ChatClient) -> None:
    """An answer of which no byte came is told as the stream that it would have been."""
    scripted.add(listing(), LOST, listing(CONVERSATION), history(">Hi", "Hello"))

    stream = auto.chat("s").stream("Hi")

    assert [event async for event in stream] == [
        Start(CONVERSATION_ID),
        Token("Hello"),
        Done("Hello", CONVERSATION_ID),
    ]
    assert (await stream).recovered


async def test_lost_json_answer(scripted: ScriptedServer, auto: ChatClient) -> None:
    """`send()` gets its reply the same way; there are no tokens."""
    scripted.add(listing(), LOST, listing(CONVERSATION), history(">Hi", "Hello"))
    tokens: list[str] = []

    reply = await auto.chat("s").send("Hi", on_token=tokens.append)

    assert (reply.text, reply.recovered, tokens) == ("Hello", True, [])


async def test_lost_message_without_a_reply(scripted: ScriptedServer, auto: ChatClient) -> None:
    """It is stored, so it is not sent again, and the error says so."""
    scripted.add(listing(), LOST, listing(CONVERSATION))
    for _ in range(60):
        scripted.add(history(">Hi"))
    auto._core.retry = Retry(may_duplicate=True, base=1e-9)

    with pytest.raises(ConnectionLostError) as caught:
        await auto.chat("s").stream("Hi")

    assert caught.value.delivery is Delivery.ACCEPTED
    assert [(message.status, message.delivery) for message in auto.chat("s").messages] == [
        ("failed", Delivery.ACCEPTED)
    ]
    assert len(scripted.stored) == 1


@pytest.mark.parametrize(("status", "looks"), [(500, 1), (502, 2)])
async def test_server_error(scripted: ScriptedServer, auto: ChatClient, status: int, looks: int) -> None:
    """The server's own word that there is no reply is believed; a proxy's is not."""
    found = [history(">Hi"), history(">Hi", "Hello")][:looks]
    scripted.add(listing(), Script(json_answer({"error": "x"}, status=status)), listing(CONVERSATION), *found)

    reply, error = await outcome(auto.chat("s").stream("Hi"))

    assert (reply is None) is (status == 500)
    assert error is None or error.delivery is Delivery.ACCEPTED
    assert len(scripted.requests) == 3 + looks


async def test_message_that_was_not_stored_is_sent_again(scripted: ScriptedServer, auto: ChatClient) -> None:
    """But not before it had time to arrive; it is an attempt as any other."""
    auto._core.retry = RETRY
    retries: list[Retrying] = []
    auto._core.on_retry = (retries.append,)
    scripted.add(listing(), LOST)
    for _ in range(6):
        scripted.add(listing())

    reply = await auto.chat("s").stream("Hi")

    assert reply.text == "Hello world"
    assert not reply.recovered
    assert [(retry.attempt, retry.error.delivery) for retry in retries] == [(1, Delivery.REJECTED)]
    assert [request.method for request in scripted.requests] == ["GET", "POST", *["GET"] * 6, "POST"]


async def test_message_that_may_not_be_sent_again(scripted: ScriptedServer, auto: ChatClient) -> None:
    """Where the policy allows no second attempt, the error says that it is safe."""
    scripted.add(listing(), LOST)
    for _ in range(6):
        scripted.add(listing())

    with pytest.raises(ConnectionLostError) as caught:
        await auto.chat("s").stream("Hi")

    assert caught.value.delivery is Delivery.REJECTED
    assert await caught.value.recover() is None
    assert len(scripted.requests) == 8


async def test_answer_without_an_event(scripted: ScriptedServer, auto: ChatClient) -> None:
    """Headers came, `start` did not: the whole turn is read back."""
    scripted.add(listing(), Script(stream_answer([])), listing(CONVERSATION), history(">Hi", "Hello"))

    events = [event async for event in auto.chat("s").stream("Hi")]

    assert events == [Start(CONVERSATION_ID), Token("Hello"), Done("Hello", CONVERSATION_ID)]


@pytest.mark.parametrize("baseline", [True, False])
async def test_out_of_reach(scripted: ScriptedServer, auto: ChatClient, baseline: bool) -> None:
    """Among more than 200 conversations one that is not listed may exist: unknown stays unknown."""
    scripted.add(listing() if baseline else listing(total=201), LOST, listing(total=201))

    with pytest.raises(ConnectionLostError) as caught:
        await auto.chat("s").stream("Hi")

    assert caught.value.delivery is Delivery.UNKNOWN
    assert auto.chat("s").messages[0].status == "unknown"


async def test_admin_api_that_refuses(
    scripted: ScriptedServer, auto: ChatClient, caplog: pytest.LogCaptureFixture
) -> None:
    """By itself the client does not replace one error by another; asked by hand it says what is wrong."""
    refused = Script(json_answer({"error": "Unauthorized"}, status=401))
    scripted.add(refused, CUT_IN_TEXT, refused, refused)

    with pytest.raises(StreamInterruptedError) as caught:
        await auto.chat("s").stream("Hi")
    assert "cannot be read" in caplog.text
    assert (caught.value.partial, caught.value.delivery) == ("Hel", Delivery.ACCEPTED)
    with pytest.raises(AuthenticationError) as refusal:
        await caught.value.recover()

    assert (refusal.value.delivery, refusal.value.session_id) == (Delivery.ACCEPTED, "s")
    assert auto.chat("s").messages[0].status == "interrupted"


async def test_server_that_is_away_for_a_while(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """A look that fails is followed by another."""
    away = [
        Script(end="fin"),
        Script(end="rst"),
        Script(json_answer("x", status=502)),
        Script(json_answer("x", status=429)),
    ]
    scripted.add(CUT_IN_TEXT, *away, history(">Hi", "Hello"))
    with pytest.raises(StreamInterruptedError) as caught:
        await by_hand.chat("s").stream("Hi")
    reply = await caught.value.recover()
    assert reply is not None
    assert reply.text == "Hello"


async def test_server_that_stays_away(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """If no look succeeds, what kept it from that is raised; the message stays unknown."""
    scripted.add(LOST, *[LOST] * 4)  # aiohttp sends a GET once more by itself
    with pytest.raises(ConnectionLostError) as lost:
        await by_hand.chat("s").stream("Hi")
    with pytest.raises(ConnectionLostError) as again:
        await lost.value.recover(wait=0.25)
    assert (again.value.delivery, again.value.session_id) == (Delivery.UNKNOWN, "s")


async def test_too_short_a_look(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """A message that is not there yet may still be on its way: what was lost stays unknown."""
    scripted.add(LOST, *[listing()] * 4)

    with pytest.raises(ConnectionLostError) as caught:
        await by_hand.chat("s").stream("Hi")

    assert await caught.value.recover(wait=1) is None
    assert caught.value.delivery is Delivery.UNKNOWN
    assert by_hand.chat("s").messages[0].status == "unknown"


async def test_history_that_lost_an_accepted_message(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """A `start` was seen: whatever the history says, it is not said to be safe to send again."""
    scripted.add(CUT_IN_TEXT, Script(json_answer({"error": "Conversation not found"}, status=404)), *[listing()] * 7)

    with pytest.raises(StreamInterruptedError) as caught:
        await by_hand.chat("s").stream("Hi")

    assert await caught.value.recover(wait=6) is None
    assert caught.value.delivery is Delivery.ACCEPTED


# --- the baseline -----------------------------------------------------------------------------------------------------


async def test_cost_of_the_baseline(server: RunningServer, make_client: MakeClient) -> None:
    """One look at the list, and at the thread if there is one, before the first turn of a session; then none."""
    client = make_client(server.url, admin_key=ADMIN_KEY, recovery="auto")
    looks: list[str] = []
    get = client._core.transport.get

    async def counted(path: str, *args: Any, **options: Any) -> Any:
        looks.append(path.partition("?")[0])
        return await get(path, *args, **options)

    client._core.transport.get = counted  # type: ignore[method-assign]
    for _ in range(3):
        await client.chat("s").stream("Hi")
    assert looks == ["/v1/admin/conversations"]
    await client.sessions.forget("s")
    await client.chat("s").stream("Hi")
    assert len(looks) == 3


@pytest.mark.parametrize("limit", [0, 2])
async def test_baseline_of_a_short_history(scripted: ScriptedServer, make_client: MakeClient, limit: int) -> None:
    """It is taken again before what came since is more than is kept here."""
    client = make_client(scripted.url, admin_key=ADMIN_KEY, recovery="auto", history_limit=limit)
    hasten(client)
    whole = Script(stream_answer(events("Hello")))
    scripted.add(listing(), whole, history(">Hi", "Hello"), LOST, *[history(">Hi", "Hello")] * 6)
    await client.chat("s").stream("Hi")

    with pytest.raises(ConnectionLostError) as caught:
        await client.chat("s").stream("Hi")

    assert caught.value.delivery is Delivery.REJECTED


# --- ending a search --------------------------------------------------------------------------------------------------


async def stuck(client: ChatClient) -> asyncio.Event:
    """Let the client's searches wait for ever at their first pause; return an event that is set then."""
    reached = asyncio.Event()

    async def pause(_seconds: float) -> None:
        reached.set()
        await asyncio.get_running_loop().create_future()

    assert client._core.readback is not None
    client._core.readback.pause = pause
    return reached


@pytest.mark.parametrize("cut", [CUT_IN_TEXT, LOST], ids=["stream", "opening"])
@pytest.mark.parametrize("how", ["stop", "chat.stop", "cancel", "aclose", "client"])
async def test_ending_a_stream_that_is_being_recovered(
    scripted: ScriptedServer, auto: ChatClient, how: str, cut: Script
) -> None:
    """At once, as at any other time; the session is free."""
    scripted.add(listing(), cut, listing() if cut is LOST else history(">Hi"))
    reached = await stuck(auto)
    chat = auto.chat("s")
    stream = chat.stream("Hi")
    task = asyncio.create_task(stream.reply())
    await reached.wait()

    if how == "stop":
        stream.stop()
    elif how == "chat.stop":
        chat.stop()
    elif how == "cancel":
        task.cancel()
    elif how == "aclose":
        await stream.aclose()
    else:
        await auto.aclose()

    kind = {"cancel": asyncio.CancelledError, "client": ClientClosedError}.get(how, StreamStoppedError)
    with pytest.raises(kind):
        await task
    delivery = Delivery.UNKNOWN if cut is LOST else Delivery.ACCEPTED
    assert [message.delivery for message in chat.messages][:1] == [delivery]
    assert not chat.busy
    assert stream.snapshot == ("" if cut is LOST else "Hel")


@pytest.mark.parametrize("how", ["stop", "cancel", "client"])
async def test_ending_a_search(scripted: ScriptedServer, by_hand: ChatClient, how: str) -> None:
    """It holds the session as a turn does, and leaves it just so."""
    scripted.add(CUT_IN_TEXT, history(">Hi"))
    chat = by_hand.chat("s")
    with pytest.raises(StreamInterruptedError):
        await chat.stream("Hi")
    reached = await stuck(by_hand)
    task = asyncio.create_task(chat.recover())
    await reached.wait()
    assert chat.busy

    if how == "stop":
        chat.stop()
        assert await task is None
    elif how == "cancel":
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        await by_hand.aclose()
        with pytest.raises(ClientClosedError) as caught:
            await task
        assert caught.value.session_id == "s"

    assert not chat.busy
    assert [message.status for message in chat.messages] == ["interrupted", "interrupted"]


# --- by hand ----------------------------------------------------------------------------------------------------------


async def test_without_an_admin_key(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """An error says what is missing, and a setting that cannot work is refused."""
    client = make_client(scripted.url)
    scripted.add(CUT_IN_TEXT)
    with pytest.raises(StreamInterruptedError) as caught:
        await client.chat("s").stream("Hi")

    with pytest.raises(UsageError, match="admin key"):
        await caught.value.recover()
    with pytest.raises(UsageError, match="admin key"):
        await client.chat("s").recover()
    with pytest.raises(ConfigurationError, match="admin key"):
        ChatClient(scripted.url, recovery="auto")
    with pytest.raises(ConfigurationError, match=r'"off" or "auto"'):
        ChatClient(scripted.url, recovery="on")  # type: ignore[arg-type]


async def test_nothing_to_recover(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """A message that was refused, and a session whose turns have all ended well, cost no request."""
    scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))
    with pytest.raises(AuthenticationError) as caught:
        await by_hand.chat("s").stream("Hi")
    await by_hand.chat("s").stream("Hi")

    assert await caught.value.recover() is None
    assert await by_hand.chat("s").recover() is None
    assert len(scripted.requests) == 2
    with pytest.raises(ConfigurationError, match="wait"):
        await by_hand.chat("s").recover(wait=-1)


async def test_error_that_travels(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """The way back stays behind: it leads into the client."""
    scripted.add(CUT_IN_TEXT)
    with pytest.raises(StreamInterruptedError) as caught:
        await by_hand.chat("s").stream("Hi")

    twin = pickle.loads(pickle.dumps(caught.value))

    assert (twin.partial, twin.delivery, twin.way_back) == ("Hel", Delivery.ACCEPTED, None)
    assert ADMIN_KEY not in repr(vars(caught.value))


async def test_reply_takes_its_place(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """After its question, in place of what had come; asking again gives the same."""
    scripted.add(CUT_IN_TEXT)
    chat = by_hand.chat("s")
    with pytest.raises(StreamInterruptedError) as caught:
        await chat.stream("Hi")
    await chat.stream("And now?")
    scripted.add(history(">Hi", ">And now?", "Hello there", "Hello world"))

    reply = await caught.value.recover()

    assert reply is not None
    assert (reply.text, reply.streamed_text, reply.recovered) == ("Hello there", "Hel", True)
    assert told(chat.messages) == [
        ("user", "Hi"),
        ("assistant", "Hello there"),
        ("user", "And now?"),
        ("assistant", "Hello world"),
    ]
    requests = len(scripted.requests)
    again = await caught.value.recover()
    assert again is not None
    assert (again.text, await chat.recover(), len(scripted.requests)) == ("Hello there", None, requests)


async def test_question_that_is_not_kept(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The error knows what preceded it, however short the history is."""
    client = make_client(scripted.url, admin_key=ADMIN_KEY, history_limit=2)
    hasten(client)
    chat = client.chat("s")
    await chat.stream("Hi")
    scripted.add(LOST)
    with pytest.raises(ConnectionLostError) as caught:
        await chat.stream("Hi")
    await chat.stream("Bye")
    scripted.add(history(">Hi", "Hello world", ">Hi", "Hello again", ">Bye", "Hello world"))

    reply = await caught.value.recover()

    assert reply is not None
    assert reply.text == "Hello again"
    assert told(chat.messages) == [("user", "Bye"), ("assistant", "Hello world")]


async def test_reply_that_could_not_be_saved_needs_no_search() -> None:
    """It travels along."""
    reply = Reply("text", session_id="s", conversation_id="c", timings=Timings(None, 1.0))

    assert await StoreError(reply=reply).recover() is reply
    with pytest.raises(UsageError):
        await StoreError().recover()


async def test_another_writer(server: RunningServer, proxy: CuttingProxy, make_client: MakeClient) -> None:
    """Somebody else asks the very same before and after; ours is found between, once."""
    client = make_client(proxy.url, admin_key=ADMIN_KEY, recovery="auto", retry=RETRY)
    hasten(client)
    other = make_client(server.url, admin_key=ADMIN_KEY)
    await client.chat("s").stream("one")
    size = proxy.sizes["request"]
    for _ in range(2):
        await other.chat("s").stream("Hi")
        await client.chat("s").stream("mark")
        proxy.cut("request", size - 10, "rst")
        await client.chat("s").stream("Hi")
        proxy.cut("response", 5, "fin")
        await client.chat("s").stream("Hi")

    asked = [text for role, text in await stored(other, "s") if role == "user"]

    assert asked == ["one", *["Hi", "mark", "Hi", "Hi"] * 2]


# --- with a store -----------------------------------------------------------------------------------------------------


async def crashed(store: MemoryStore, session_id: str, *texts: str) -> None:
    """Leave a session as a process does that dies while its last question is on its way."""
    now = datetime.now(timezone.utc) - timedelta(hours=1)
    messages = [
        Message(
            "user" if number % 2 == 0 else "assistant",
            text,
            status="complete",
            created_at=now + timedelta(seconds=number),
        )
        for number, text in enumerate(texts)
    ]
    messages[-1] = attrs.evolve(messages[-1], status="pending", delivery=Delivery.UNKNOWN)
    lease = await store.acquire(session_id)
    assert lease is not None
    await store.save(SessionChange(session_id, 0, None, tuple(enumerate(messages))), lease)
    await store.release(lease)


async def saved(store: MemoryStore) -> list[tuple[str, str, str, Delivery]]:
    record = await store.load("s", limit=100)
    assert record is not None
    return [(message.role, message.text, message.status, message.delivery) for message in record.messages]


AC, UN, RJ = Delivery.ACCEPTED, Delivery.UNKNOWN, Delivery.REJECTED


@pytest.mark.parametrize(
    ("said", "last", "text"),
    [
        ([">Hi", "Hello", ">Hi", "Again"], ("complete", AC), "Again"),
        ([">Hi", "Hello", ">Hi"], ("failed", AC), None),
        ([">Hi", "Hello"], ("failed", RJ), None),
    ],
    ids=["reply", "no reply", "not stored"],
)
async def test_turn_that_a_crashed_process_left(
    scripted: ScriptedServer,
    make_client: MakeClient,
    said: list[str],
    last: tuple[str, Delivery],
    text: str | None,
) -> None:
    """It is listed, never sent; recovered, its end is saved."""
    async with MemoryStore() as store:
        await crashed(store, "s", "Hi", "Hello", "Hi")
        client = make_client(scripted.url, admin_key=ADMIN_KEY, store=store)
        hasten(client)
        chat = client.chat("s")

        pending = await chat.pending()
        assert [(turn.message, turn.delivery, turn.partial) for turn in pending] == [("Hi", UN, "")]
        assert pending[0].created_at == chat.messages[-1].created_at
        assert "Hi" not in repr(pending[0])
        assert not scripted.requests
        scripted.add(listing(CONVERSATION), *[history(*said)] * 30)
        reply = await pending[0].recover()

        assert (None if reply is None else reply.text) == text
        assert pending[0].delivery is last[1]
        assert await chat.pending() == []
        rows = await saved(store)
        assert rows[2] == ("user", "Hi", *last)
        assert rows[3:] == ([] if text is None else [("assistant", text, "complete", AC)])
        assert not scripted.stored


async def test_discarding(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """It stays in the history and is pending no more; a second time does nothing."""
    async with MemoryStore() as store:
        await crashed(store, "s", "Hi")
        client = make_client(scripted.url, store=store)

        [turn] = await client.chat("s").pending()
        await turn.discard()
        await turn.discard()

        assert await client.chat("s").pending() == []
        assert await saved(store) == [("user", "Hi", "interrupted", UN)]
        assert not scripted.requests


async def test_turn_that_is_live_elsewhere(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Is not pending here, nor there."""
    scripted.add(Script(end="stall"))
    async with MemoryStore() as store:
        first, second = (make_client(scripted.url, store=store) for _ in range(2))
        task = asyncio.create_task(first.chat("s").stream("Hi").reply())
        await scripted.arrived(1)

        assert await second.chat("s").pending() == []
        assert await first.chat("s").pending() == []
        assert [message.status for message in second.chat("s").messages] == ["pending"]

        task.cancel()
        await asyncio.wait([task])


async def test_pending_without_a_store(scripted: ScriptedServer, by_hand: ChatClient) -> None:
    """A lost connection leaves one behind as well."""
    scripted.add(LOST)
    with pytest.raises(ConnectionLostError):
        await by_hand.chat("s").stream("Hi")

    [turn] = await by_hand.chat("s").pending()
    scripted.add(listing(CONVERSATION), history(">Hi", "Hello"))

    assert await turn.recover() is not None
    assert await by_hand.chat("s").pending() == []


async def test_recovered_reply_is_saved_in_its_place(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """What follows it moves on by one; another client reads it so."""
    async with MemoryStore() as store:
        client = make_client(scripted.url, admin_key=ADMIN_KEY, store=store)
        hasten(client)
        chat = client.chat("s")
        scripted.add(LOST)
        with pytest.raises(ConnectionLostError):
            await chat.stream("Hi")
        await chat.stream("Bye")
        scripted.add(history(">Hi", ">Bye", "Hello", "Hello world"))

        reply = await chat.recover()

        assert reply is not None
        assert [row[:3] for row in await saved(store)] == [
            ("user", "Hi", "complete"),
            ("assistant", "Hello", "complete"),
            ("user", "Bye", "complete"),
            ("assistant", "Hello world", "complete"),
        ]
        other = make_client(scripted.url, store=store)
        await other.chat("s").stream("More")
        assert [message.text for message in other.chat("s").messages] == [
            "Hi",
            "Hello",
            "Bye",
            "Hello world",
            "More",
            "Hello world",
        ]


async def test_store_that_fails_after_a_search(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The reply travels along."""

    class Full(MemoryStore):
        full = False

        async def save(self, change: SessionChange, lease: Lease) -> None:
            if self.full:
                raise StoreError("the disk is full")
            await super().save(change, lease)

    async with Full() as store:
        client = make_client(scripted.url, admin_key=ADMIN_KEY, store=store)
        hasten(client)
        scripted.add(CUT_IN_TEXT, history(">Hi", "Hello"))
        with pytest.raises(StreamInterruptedError):
            await client.chat("s").stream("Hi")
        store.full = True
        with pytest.raises(StoreError, match="disk is full") as caught:
            await client.chat("s").recover()
        assert caught.value.reply is not None
        assert (caught.value.reply.text, caught.value.delivery) == ("Hello", AC)
        store.full = False


async def test_baseline_that_another_process_has_made_old(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """It is taken anew when somebody else has changed the session meanwhile."""
    async with MemoryStore() as store:
        client = make_client(scripted.url, admin_key=ADMIN_KEY, recovery="auto", store=store)
        other = make_client(scripted.url, store=store)
        scripted.add(listing())
        await client.chat("s").stream("one")
        await client.chat("s").stream("two")
        await other.chat("s").stream("three")
        scripted.add(history())
        await client.chat("s").stream("four")

        assert [request.method for request in scripted.requests] == ["GET", "POST", "POST", "POST", "GET", "POST"]


# --- a server that is killed ------------------------------------------------------------------------------------------

SERVER = """
import asyncio, sys
from aheadless.server import EchoEngine, ServerSettings, run_server

class Slow(EchoEngine):
    async def reply(self, history):
        async for word in super().reply(history):
            yield word
            if word == "stall ":
                await asyncio.sleep(3600)

async def main():
    settings = ServerSettings(port=int(sys.argv[2]), api_key=sys.argv[3], admin_key=sys.argv[4],
                              engine=Slow(), database=sys.argv[1], rate_limit=None)
    async with run_server(settings) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def process(database: Path, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, database, str(port), KEY, ADMIN_KEY), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        yield server, (await server.stdout.readline()).decode().strip()
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        server._transport.close()  # type: ignore[attr-defined]


CLIENT = """
import asyncio, sys
from aheadless import ChatClient
from aheadless.stores import SQLiteStore

async def main():
    client = ChatClient(sys.argv[2], api_key=sys.argv[3], store=SQLiteStore(sys.argv[1], lease_seconds=0.5))
    await client.chat("s").stream("one two")
    async for text in client.chat("s").stream("one two").text():
        print(text, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

kills = pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")


@kills
async def test_client_that_is_killed(tmp_path: Path, make_client: MakeClient) -> None:
    """`kill -9` in the middle of a reply: the next process sees the turn as unknown, and gets its reply."""
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine=EchoEngine(), rate_limit=None)
    async with run_server(settings) as server:
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CLIENT, tmp_path / "sessions.db", server.url, KEY), stdout=asyncio.subprocess.PIPE
        )
        assert killed.stdout is not None
        assert await killed.stdout.readline()
        killed.kill()
        await killed.wait()
        killed._transport.close()  # type: ignore[attr-defined]
        store = SQLiteStore(tmp_path / "sessions.db", lease_seconds=0.5)
        client = make_client(server.url, admin_key=ADMIN_KEY, store=store)
        hasten(client)
        lease = await store.acquire("s")  # once that of the dead has run out
        assert lease is not None
        await store.release(lease)

        [turn] = await client.chat("s").pending()
        reply = await turn.recover()

        assert (turn.message, turn.delivery) == ("one two", AC)
        assert reply is not None
        assert (reply.text, reply.recovered) == ("one two", True)
        assert told(client.chat("s").messages) == await stored(client, "s")
        assert len(client.chat("s").messages) == 4


@kills
async def test_server_that_is_killed(tmp_path: Path, make_client: MakeClient) -> None:
    """`kill -9` in the middle of a reply: the message is there once, and its reply, which died, never comes."""
    async with process(tmp_path / "db") as (first, url):
        client = make_client(url, admin_key=ADMIN_KEY, recovery="auto", timeouts=Timeouts(send=8.0))
        assert client._core.readback is not None
        clock = hasten(client)
        chat = client.chat("s")
        await chat.stream("one two")
        restarted: list[Any] = []
        pause = client._core.readback.pause

        async with AsyncExitStack() as stack:

            async def restart(seconds: float) -> None:
                if not restarted:
                    restarted.append(
                        await stack.enter_async_context(process(tmp_path / "db", int(url.rpartition(":")[2])))
                    )
                await pause(seconds)

            client._core.readback.pause = restart
            with pytest.raises(StreamInterruptedError) as caught:
                async for text in chat.stream("please stall here").text():
                    if text == "stall ":
                        first.kill()
                        await first.wait()

            assert (caught.value.delivery, caught.value.partial) == (AC, "please stall ")
            assert clock.pauses
            assert [message.status for message in chat.messages[2:]] == ["failed", "failed"]
            assert await caught.value.recover(wait=1) is None
            assert (await chat.stream("three")).text == "three"
            assert await stored(client, "s") == [
                ("user", "one two"),
                ("assistant", "one two"),
                ("user", "please stall here"),
                ("user", "three"),
                ("assistant", "three"),
            ]
