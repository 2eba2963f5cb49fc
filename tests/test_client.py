"""Clients, chats, callbacks, busy sessions."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from typing import Any

import aiohttp
import pytest

from aheadless import (
    AheadlessError,
    Chat,
    ChatClient,
    ClientClosedError,
    ConfigurationError,
    Delivery,
    Health,
    InvalidRequestError,
    ProtocolError,
    Reply,
    Secret,
    ServerError,
    SessionBusyError,
    Start,
    StreamStoppedError,
    Timeouts,
    UsageError,
)
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, stream_answer
from tests.conftest import MakeClient
from tests.support import KEY
from tests.test_stream import FIRST, HELLO, REST, STALLED

JSON_REPLY = Script(json_answer({"conversationId": CONVERSATION_ID, "message": "whole"}))


# --- the client -------------------------------------------------------------------------------------------------------


async def test_request_as_the_protocol_wants_it(scripted: ScriptedServer, client: ChatClient) -> None:
    """Path, key, body and headers; no Origin, no cookies, one key header."""
    await client.chat("s").stream("Hé")

    request = scripted.requests[0]
    names = [name.lower() for name, _ in request.headers]
    assert (request.method, request.path) == ("POST", "/v1/chat/stream")
    assert request.header("x-api-key") == KEY
    assert request.header("content-type") == "application/json"
    assert request.header("accept") == "application/x-ndjson"
    assert (request.header("user-agent") or "").startswith("aheadless/")
    assert not {"origin", "cookie", "x-widget-api-key", "x-admin-api-key"} & {*names}
    assert len(names) == len({*names})
    assert request.body == '{"sessionId":"s","message":"Hé"}'.encode()


async def test_legacy_names(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The old header and the old path."""
    client = make_client(scripted.url + "/", legacy_auth=True, endpoint="/chat", headers={"X-Trace": "1"})

    await client.chat("s").stream("Hi")

    request = scripted.requests[0]
    assert (request.path, request.header("x-widget-api-key"), request.header("x-api-key")) == ("/chat", KEY, None)
    assert request.header("x-trace") == "1"


async def test_settings_from_the_environment(scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out comes from the environment; the newer name of the key first."""
    monkeypatch.setenv("AHEADLESS_BASE_URL", scripted.url)
    monkeypatch.setenv("WIDGET_API_KEY", "old-name")
    async with ChatClient() as client:
        await client.chat("s").stream("Hi")
    monkeypatch.setenv("AHEADLESS_API_KEY", "new-name")
    async with ChatClient() as client:
        await client.chat("s").stream("Hi")
    monkeypatch.setenv("AHEADLESS_API_KEY", "")
    async with ChatClient(api_key=Secret("given")) as client:
        assert client.base_url == scripted.url
        await client.chat("s").stream("Hi")

    assert [request.header("x-api-key") for request in scripted.requests] == ["old-name", "new-name", "given"]


async def test_without_url_or_key(scripted: ScriptedServer) -> None:
    """What is missing is named, before any I/O; health needs no key."""
    with pytest.raises(ConfigurationError, match="AHEADLESS_BASE_URL"):
        ChatClient()
    async with ChatClient(scripted.url) as client:
        with pytest.raises(ConfigurationError, match="AHEADLESS_API_KEY"):
            client.chat("s").stream("Hi")
        with pytest.raises(ConfigurationError, match="AHEADLESS_ADMIN_KEY"):
            _ = client.admin
        scripted.add(Script(json_answer({"status": "ok"})))
        assert await client.health() == Health("ok")
    assert scripted.requests[0].header("x-api-key") is None


async def test_health(scripted: ScriptedServer, client: ChatClient) -> None:
    """What the server says of itself."""
    scripted.add(Script(json_answer({"status": "ok"})), Script(json_answer({"status": "ill"})), Script(json_answer({})))

    assert (await client.health()).ok
    assert not (await client.health()).ok
    with pytest.raises(ProtocolError, match="no status"):
        await client.health()
    assert {(request.method, request.path) for request in scripted.requests} == {("GET", "/health")}


async def test_connections_are_used_again(scripted: ScriptedServer, client: ChatClient) -> None:
    """The connection goes back to the pool though the body's end comes after `done`."""
    gates = [asyncio.Event() for _ in range(5)]
    whole = FIRST + REST
    chat = client.chat("s")
    for gate in gates:
        scripted.add(Script(whole, gates={len(whole) - 5: gate}))

    for gate in gates:
        await chat.stream("Hi")
        gate.set()
        while scripted.open_connections and not _idle(client):
            await asyncio.sleep(0)

    assert scripted.connections == 1


def _idle(client: ChatClient) -> int:
    session = client._core.transport._session
    assert session is not None
    assert isinstance(session.connector, aiohttp.BaseConnector)
    return len(session.connector._conns)


async def test_users_own_session(scripted: ScriptedServer) -> None:
    """It is used, never closed, and left as it was."""
    async with aiohttp.ClientSession(headers={"X-Mine": "1"}) as session:
        async with ChatClient(scripted.url, api_key=KEY, session=session) as client:
            assert (await client.chat("s").stream("Hi")).text == "Hello world"
            async with session.get(scripted.url) as response:
                await response.read()
        assert not session.closed
        assert session.trace_configs == []
    assert scripted.requests[0].header("x-mine") == "1"

    async with ChatClient(scripted.url, api_key=KEY, session=session) as client:
        with pytest.raises(UsageError, match="is closed"):
            await client.chat("s").stream("Hi")


async def test_aclose_ends_live_streams(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Each reader gets a ClientClosedError: the streaming, the waiting for headers and the queued one."""
    scripted.add(STALLED, Script(end="stall"))
    client = make_client(scripted.url)
    seen = asyncio.Event()
    streaming = asyncio.create_task(client.chat("a").stream("1", on_token=lambda _: seen.set()).reply())
    await seen.wait()
    opening = asyncio.create_task(client.chat("b").stream("2").reply())
    await scripted.arrived(2)
    queued = asyncio.create_task(client.chat("a").stream("3").reply())
    await asyncio.sleep(0)

    await client.aclose()
    await client.aclose()

    errors = await asyncio.gather(streaming, opening, queued, return_exceptions=True)
    assert [type(error) for error in errors] == [ClientClosedError] * 3
    assert [(error.partial, error.delivery) for error in errors if isinstance(error, AheadlessError)] == [
        ("Hel", Delivery.ACCEPTED),
        ("", Delivery.UNKNOWN),
        ("", Delivery.NOT_SENT),
    ]
    assert len(scripted.requests) == 2
    assert client.closed
    assert isinstance(errors[0], RuntimeError)


async def test_aclose_ends_a_loop_with_an_error(scripted: ScriptedServer, client: ChatClient) -> None:
    """Unlike stop(): nobody asked for the end of this stream."""
    scripted.add(STALLED)

    with pytest.raises(ClientClosedError):
        async for event in client.chat("s").stream("Hi"):
            if event == HELLO[1]:
                await client.aclose()


async def test_use_after_close(scripted: ScriptedServer, client: ChatClient) -> None:
    """Everything that would send raises; what was made before, too."""
    chat = client.chat("s")
    stream = chat.stream("Hi")
    await client.aclose()

    for use in (lambda: client.chat("s"), lambda: chat.stream("Hi")):
        with pytest.raises(ClientClosedError):
            use()
    with pytest.raises(ClientClosedError):
        await stream
    with pytest.raises(ClientClosedError):
        await client.health()
    with pytest.raises(ClientClosedError):
        await client.__aenter__()
    assert repr(client) == f"<ChatClient {scripted.url}, closed>"
    assert scripted.connections == 0


async def test_another_event_loop(scripted: ScriptedServer, client: ChatClient) -> None:
    """A client belongs to the loop that used it first."""
    await client.chat("s").stream("Hi")

    def elsewhere() -> None:
        with pytest.raises(UsageError, match="another event loop"):
            asyncio.run(client.chat("s").stream("Hi").reply())

    await asyncio.to_thread(elsewhere)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only POSIX forks")
async def test_after_a_fork(scripted: ScriptedServer, client: ChatClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client belongs to the process that used it first."""
    await client.chat("s").stream("Hi")

    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        with pytest.raises(UsageError, match="forked"):
            await client.chat("s").stream("Hi")
        with pytest.raises(UsageError, match="forked"):
            await client.aclose()


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": ""},
        {"api_key": "a\nb"},
        {"api_key": " a"},
        {"api_key": "é"},
        {"api_key": "a\x00"},
        {"api_key": 5},
        {"admin_key": "\r"},
        {"endpoint": "chat"},
        {"endpoint": "//evil"},
        {"endpoint": "/a?b"},
        {"endpoint": None},
        {"timeouts": 5},
        {"max_connections": 0},
        {"max_connections": True},
        {"history_limit": -1},
        {"on_busy": "wait"},
        {"headers": {"Origin": "x"}},
        {"headers": {"X-API-Key": "x"}},
        {"headers": {"a b": "x"}},
        {"headers": {"a": "x\n"}},
        {"headers": {"a": 5}},
        {"headers": {"Expect": "100-continue"}},
        {"headers": ["a", "b"]},
        {"ssl": "yes"},
        {"proxy": 5},
        {"proxy": "localhost:3128"},
        {"session": "one"},
        {"on_token": "print"},
    ],
)
def test_wrong_options(options: dict[str, Any]) -> None:
    """Every setting is checked before any I/O, and a key is not shown."""
    with pytest.raises(ConfigurationError) as caught:
        ChatClient("http://127.0.0.1", **options)

    assert caught.value.delivery is Delivery.NOT_SENT
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("header", ["Origin", "x-widget-api-key"])
async def test_users_session_with_unfit_headers(header: str) -> None:
    """It would send them along: an `Origin` is refused by the server, and a second key would not be ours."""
    async with aiohttp.ClientSession(headers={header: "x"}) as session:
        with pytest.raises(ConfigurationError, match=header):
            ChatClient("http://127.0.0.1", session=session)


async def test_errors_name_their_session(client: ChatClient) -> None:
    """Those before any I/O, too."""
    with pytest.raises(InvalidRequestError) as invalid:
        client.chat("s").stream("")
    with pytest.raises(ConfigurationError) as wrong:
        client.chat("s").stream("Hi", on_busy="")  # type: ignore[arg-type]
    chat = client.chat("s")
    await client.aclose()
    with pytest.raises(ClientClosedError) as closed:
        chat.stream("Hi")

    assert [caught.value.session_id for caught in (invalid, wrong, closed)] == ["s", "s", "s"]


# --- chats ------------------------------------------------------------------------------------------------------------


async def test_chat_is_one_object_for_an_id(client: ChatClient) -> None:
    """The same id gives the same chat; a wrong id is refused at once."""
    assert client.chat("a") is client.chat("a")
    assert client.chat("a") is not client.chat("b")
    with pytest.raises(InvalidRequestError):
        client.chat("é")
    with pytest.raises(InvalidRequestError):
        client.chat("a").stream("")
    with pytest.raises(InvalidRequestError):
        await client.chat("a").send("x" * 4001)


async def test_messages(scripted: ScriptedServer, client: ChatClient) -> None:
    """A question is there as soon as it is sent, an answer when it is complete."""
    chat = client.chat("s")
    async for event in chat.stream("Hi"):
        if isinstance(event, Start):
            assert [(m.role, m.text, m.status) for m in chat.messages] == [("user", "Hi", "pending")]
            assert chat.busy
            assert "busy" in repr(chat)

    question, answer = chat.messages
    assert (question.role, question.text, question.status, question.partial) == ("user", "Hi", "complete", "")
    assert (answer.role, answer.text, answer.status, answer.partial) == ("assistant", "Hello world", "complete", "")
    assert question.created_at.utcoffset() == timedelta(0)
    assert question.created_at <= answer.created_at
    assert chat.conversation_id == CONVERSATION_ID
    assert repr(chat) == "<Chat s, 2 messages>"


async def test_history_is_bounded(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The oldest messages go first; 0 keeps none."""
    client = make_client(scripted.url, history_limit=3)
    chat = client.chat("s")
    for text in "12":
        await chat.stream(text)
    assert [message.text for message in chat.messages] == ["Hello world", "2", "Hello world"]

    chat = make_client(scripted.url, history_limit=0).chat("s")
    await chat.stream("Hi")
    assert chat.messages == ()


async def test_send(scripted: ScriptedServer, client: ChatClient) -> None:
    """POST /v1/chat: one reply, no tokens, the same bookkeeping."""
    scripted.add(JSON_REPLY)
    told: list[object] = []
    chat = client.chat("s")

    reply = await chat.send("Hi", on_start=told.append, on_token=told.append, on_done=told.append)

    assert (reply.text, reply.streamed_text, reply.conversation_id) == ("whole", "", CONVERSATION_ID)
    assert reply.timings.first_token is None
    assert told == [Start(CONVERSATION_ID), reply]
    assert [message.text for message in chat.messages] == ["Hi", "whole"]
    assert (scripted.requests[0].path, scripted.requests[0].header("accept")) == ("/v1/chat", "application/json")


async def test_send_times_out(scripted: ScriptedServer, client: ChatClient) -> None:
    """timeouts.send covers the headers and the body."""
    for script in (Script(end="stall"), JSON_REPLY.cut(len(JSON_REPLY.data) - 5, "stall")):
        scripted.add(script)
        with pytest.raises(TimeoutError) as caught:
            await client.chat("s").send("Hi", timeouts=Timeouts(send=0.05))
        assert getattr(caught.value, "phase", None) == "total"
        assert getattr(caught.value, "delivery", None) is Delivery.UNKNOWN


async def test_send_can_be_stopped(scripted: ScriptedServer, client: ChatClient) -> None:
    """chat.stop() ends a JSON turn as well."""
    scripted.add(Script(end="stall"))
    chat = client.chat("s")
    task = asyncio.create_task(chat.send("Hi"))
    await scripted.arrived(1)

    chat.stop()

    with pytest.raises(StreamStoppedError):
        await task


# --- callbacks --------------------------------------------------------------------------------------------------------


async def test_callbacks_of_client_chat_and_stream(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """All are called, once each, in this order, before the event is given out; sync and async."""
    told: list[str] = []

    def say(who: str) -> Any:
        return lambda value: told.append(f"{who}:{value if isinstance(value, str) else type(value).__name__}")

    def say_async(who: str) -> Any:
        async def callback(value: object) -> None:
            await asyncio.sleep(0)
            say(who)(value)

        return callback

    client = make_client(scripted.url, on_start=say("client"), on_token=say("client"), on_done=say("client"))
    chat = client.chat("s", on_token=say_async("given"))

    @chat.on_token
    async def registered(text: str) -> None:
        told.append(f"chat:{text}")

    chat.on_start(say("chat"))
    chat.on_done(say("chat"))
    async for event in chat.stream("Hi", on_token=say("stream"), on_done=say_async("stream")):
        told.append(f"-> {type(event).__name__}")

    assert told == [
        *["client:Start", "chat:Start", "-> Start"],
        *["client:Hello", "given:Hello", "chat:Hello", "stream:Hello", "-> Token"],
        *["client: world", "given: world", "chat: world", "stream: world", "-> Token"],
        *["client:Reply", "chat:Reply", "stream:Reply", "-> Done"],
    ]
    assert registered.__name__ == "registered"


async def test_callbacks_given_again_replace(client: ChatClient) -> None:
    """A handler that calls client.chat(...) for every message does not pile up callbacks."""
    told: list[str] = []
    for _ in range(3):
        chat = client.chat("s", on_token=told.append, on_busy="reject")

    await chat.stream("Hi")

    assert told == ["Hello", " world"]


async def test_on_done_runs_after_the_turn_is_recorded(client: ChatClient) -> None:
    """The reply is in the messages, and the session is free for the next question."""
    chat = client.chat("s")
    seen: list[object] = []

    async def on_done(reply: Reply) -> None:
        seen.extend([chat.messages[-1].text == reply.text, chat.busy])
        if len(seen) == 2:
            await chat.stream("Again")

    await chat.stream("Hi", on_done=on_done)

    assert seen == [True, False]
    assert len(chat.messages) == 4


@pytest.mark.parametrize("name", ["on_start", "on_token", "on_done", "on_error"])
@pytest.mark.parametrize("kind", [ZeroDivisionError, ServerError, asyncio.CancelledError])
async def test_what_a_callback_raises(
    scripted: ScriptedServer, client: ChatClient, name: str, kind: type[BaseException]
) -> None:
    """It reaches the caller unwrapped, the turn is settled, the connection closed."""
    error = kind()

    async def callback(_value: object) -> None:
        raise error

    scripted.add(
        STALLED if name in {"on_start", "on_token"} else Script(FIRST + (REST if name == "on_done" else b""), end="fin")
    )
    chat = client.chat("s")

    with pytest.raises(kind) as caught:
        await chat.stream("Hi", **{name: callback})  # type: ignore[arg-type]

    assert caught.value is error
    assert not chat.busy
    left = "cancelled" if kind is asyncio.CancelledError and name != "on_error" else "interrupted"
    assert chat.messages[-1].status == ("complete" if name == "on_done" else left)
    await scripted.requests[0].left.wait()


async def test_on_error_of_a_refused_message(scripted: ScriptedServer, client: ChatClient) -> None:
    """on_error gets what the caller gets, the session's id on it."""
    scripted.add(Script(json_answer({"error": "Internal server error"}, status=500)))
    errors: list[AheadlessError] = []
    chat = client.chat("s")

    @chat.on_error
    def told(error: AheadlessError) -> None:
        errors.append(error)

    with pytest.raises(ServerError) as caught:
        async with chat.stream("Hi"):
            pass

    assert errors == [caught.value]
    assert caught.value.session_id == "s"
    assert [(m.status, m.delivery) for m in chat.messages] == [("unknown", Delivery.UNKNOWN)]


# --- busy sessions ----------------------------------------------------------------------------------------------------


async def _live(chat: Chat, scripted: ScriptedServer, count: int = 1) -> asyncio.Task[Reply]:
    task = asyncio.create_task(chat.stream("live").reply())
    await scripted.arrived(count)
    return task


async def test_queue_keeps_the_order(scripted: ScriptedServer, client: ChatClient) -> None:
    """Turns of one session go one after the other, in the order of asking."""
    chat = client.chat("s")
    most = 0

    def watch(_start: Start) -> None:
        nonlocal most
        most = max(most, scripted.open_connections)

    tasks = [asyncio.create_task(chat.stream(str(n), on_start=watch).reply()) for n in range(10)]
    await asyncio.gather(*tasks)

    asked = [message.text for message in chat.messages if message.role == "user"]
    assert asked == [str(n) for n in range(10)]
    assert most == 1


async def test_sessions_do_not_wait_for_each_other(scripted: ScriptedServer, client: ChatClient) -> None:
    """Only the same session waits."""
    scripted.add(Script(end="stall"))
    task = await _live(client.chat("a"), scripted)

    assert (await client.chat("b").stream("Hi")).text == "Hello world"

    client.chat("a").stop()
    with pytest.raises(StreamStoppedError):
        await task


@pytest.mark.parametrize("level", ["client", "chat", "stream"])
async def test_reject(scripted: ScriptedServer, make_client: MakeClient, level: str) -> None:
    """A busy session is an error at once; nothing is sent, the live turn goes on."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    client = make_client(scripted.url, on_busy="reject" if level == "client" else "queue")
    chat = client.chat("s", on_busy="reject" if level == "chat" else None)
    task = await _live(chat, scripted)

    with pytest.raises(SessionBusyError) as caught:
        await chat.stream("Hi", on_busy="reject" if level == "stream" else None)
    gate.set()

    assert caught.value.delivery is Delivery.NOT_SENT
    assert caught.value.session_id == "s"
    assert (await task).text == "Hello"
    assert len(scripted.requests) == 1
    assert len(chat.messages) == 2


async def test_interrupt_goes_before_the_queue(scripted: ScriptedServer, client: ChatClient) -> None:
    """The live turn is stopped, and the new one comes before those that wait."""
    scripted.add(STALLED)
    chat = client.chat("s")
    live = await _live(chat, scripted)
    queued = asyncio.create_task(chat.stream("queued").reply())
    await asyncio.sleep(0)

    await chat.stream("urgent", on_busy="interrupt")
    await queued

    with pytest.raises(StreamStoppedError):
        await live
    assert [m.text for m in chat.messages if m.role == "user"] == ["live", "urgent", "queued"]


async def test_nested_call(scripted: ScriptedServer, client: ChatClient) -> None:
    """The task that holds the turn would wait for itself: an error, not a deadlock. Interrupting works."""
    scripted.add(STALLED)
    chat = client.chat("s")

    async with chat.stream("outer") as stream:
        await anext(aiter(stream))
        with pytest.raises(SessionBusyError, match="would wait for itself"):
            await chat.send("inner")
        reply = await chat.stream("inner", on_busy="interrupt")
        assert [event async for event in stream] == []

    assert reply.text == "Hello world"


async def test_queue_is_bounded(scripted: ScriptedServer, client: ChatClient) -> None:
    """The hundred and first is refused."""
    scripted.add(Script(end="stall"))
    chat = client.chat("s")
    tasks = [await _live(chat, scripted)]
    tasks += [asyncio.create_task(chat.stream("wait").reply()) for _ in range(100)]
    await asyncio.sleep(0)

    with pytest.raises(SessionBusyError, match="100 turns are waiting"):
        await chat.stream("one too many")

    await client.aclose()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(error) for error in errors} == {ClientClosedError}


async def test_cancelled_in_the_queue(scripted: ScriptedServer, client: ChatClient) -> None:
    """The place is given up, the order kept, the session free at the end."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    chat = client.chat("s")
    live = await _live(chat, scripted)
    queued = [asyncio.create_task(chat.stream(str(n)).reply()) for n in range(4)]
    await asyncio.sleep(0)
    queued[0].cancel()
    queued[2].cancel()
    gate.set()

    results = await asyncio.gather(live, *queued, return_exceptions=True)

    assert [isinstance(result, Reply) for result in results] == [True, False, True, False, True]
    assert [m.text for m in chat.messages if m.role == "user"] == ["live", "1", "3"]
    assert not chat.busy


async def test_cancelled_as_the_turn_comes(scripted: ScriptedServer, client: ChatClient) -> None:
    """The session is passed on though its next owner is cancelled in that very moment."""
    scripted.add(Script(end="stall"))
    chat = client.chat("s")
    live = await _live(chat, scripted)
    first = asyncio.create_task(chat.stream("first").reply())
    second = asyncio.create_task(chat.stream("second").reply())
    await asyncio.sleep(0)

    chat.stop()
    first.cancel()

    assert (await second).text == "Hello world"
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(StreamStoppedError):
        await live


# --- the session manager ----------------------------------------------------------------------------------------------


async def test_session_manager(scripted: ScriptedServer, client: ChatClient) -> None:
    """It knows the sessions of this client, and can forget one that is not busy."""
    chat = client.chat("a")
    await chat.stream("Hi")
    client.chat("b")

    assert len(client.sessions) == 2
    assert await client.sessions.list() == ["a", "b"]
    session = await client.sessions.get("a")
    assert session is not None
    assert session.messages == chat.messages
    assert await client.sessions.get("c") is None

    scripted.add(STALLED)
    async with chat.stream("Hi"):
        with pytest.raises(SessionBusyError):
            await client.sessions.forget("a")
    await client.sessions.forget("a")
    await client.sessions.forget("a")
    assert await client.sessions.list() == ["b"]
    assert chat.messages == ()
    assert chat.conversation_id is None
    assert client.chat("a") is chat


async def test_callbacks_live_as_long_as_the_session(client: ChatClient) -> None:
    """A decorated function is called though nobody held the chat in between."""
    told: list[str] = []
    client.chat("s").on_token(told.append)

    await client.chat("s").stream("Hi")

    assert told == ["Hello", " world"]


# What `from aheadless import ChatClient` does without: each is loaded by the first that needs it.
NOT_FOR_A_CLIENT = {
    "_exchange",
    "_keeper",
    "_otel",
    "_readback",
    "_recovery",
    "_search",
    "admin",
    "bridges",
    "cli",
    "server",
    "stores",
    "testing",
}
FOREIGN = {"cattrs", "cyclopts", "opentelemetry", "redis", "rich", "secrets", "sqlite3", "wcwidth"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("from aheadless import ChatClient", {f"aheadless.{name}" for name in NOT_FOR_A_CLIENT} | FOREIGN),
        ("import aheadless", {"aheadless._public", "aiohttp", "asyncio", "attr", "msgspec"} | FOREIGN),
        ("import aheadless.cli.process, aheadless.cli.output", {"aheadless._public", "asyncio", "attr"} | FOREIGN),
        ("import aheadless.cli.app", {"aheadless._public", "aiohttp", "asyncio", "msgspec", "rich.markdown"}),
    ],
)
async def test_import_is_light(code: str, absent: set[str]) -> None:
    """Importing the package, and what shows the command's help, loads nothing that only parts of it need."""
    # The measuring of coverage loads sqlite3 by itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"{code}; import sys; print(*sys.modules)",
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert not absent & {*out.decode().split()}


async def test_stream_answers_of_one_chunk(scripted: ScriptedServer, client: ChatClient) -> None:
    """A body with a length, all at once, is a stream too."""
    scripted.add(Script(stream_answer(events("a", "b"), framing="length")))

    assert (await client.chat("s").stream("Hi")).text == "ab"
