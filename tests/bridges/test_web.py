"""A turn as bytes for a browser: whole or visibly broken, refused with its status, closed when the browser leaves."""

from __future__ import annotations

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aheadless
from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    ClientClosedError,
    ConfigurationError,
    ConnectError,
    Delivery,
    Done,
    Event,
    InvalidRequestError,
    NotFoundError,
    RateLimitError,
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    SessionBusyError,
    StoreError,
    StreamStoppedError,
    Token,
    UsageError,
)
from aheadless.bridges.web import ByteStream, ai_sdk_message, refusal, to_ai_sdk, to_ndjson, to_sse
from aheadless.protocol.events import Failure, Start, Unknown
from aheadless.stores import MemoryStore
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, events, json_answer, lines, stream_answer
from tests.conftest import MakeClient
from tests.support import KEY
from tests.test_stream import FIRST, HELLO, REST, STALLED

FORMATS = [to_ndjson, to_sse, to_ai_sdk]
Make = Callable[..., ByteStream]
FAILED = Script(stream_answer([*HELLO[:2], Failure(f"boom at http://internal/?key={KEY}")]))


async def read(body: ByteStream) -> bytes:
    return b"".join([piece async for piece in body])


def parts(data: bytes) -> list[Any]:
    """Return the `data` of server-sent events, parsed as far as it is JSON."""
    found = [line.removeprefix("data: ") for line in data.decode().splitlines() if line.startswith("data: ")]
    return [text if text == "[DONE]" else json.loads(text) for text in found]


# --- formats ----------------------------------------------------------------------------------------------------------


async def test_ndjson(scripted: ScriptedServer, client: ChatClient):
    """The browser gets the API's own lines, those included that this version does not know."""
    items = [*HELLO[:2], Unknown("x", {"type": "x", "n": 1}), *HELLO[2:]]
    scripted.add(Script(stream_answer(items)))

    body = to_ndjson(client.chat("s").stream("Hi"))

    assert [piece async for piece in body] == lines(items)
    assert body.media_type == "application/x-ndjson"
    assert (body.headers["Cache-Control"], body.headers["X-Accel-Buffering"]) == ("no-store, no-transform", "no")


async def test_sse(client: ChatClient):
    """Each event has its type as a name and the API's line as data; first comes how soon to ask again."""
    body = to_sse(client.chat("s").stream("Hi"))
    await body.open()

    first, *rest = [piece.decode() async for piece in body]

    assert first == f'retry: 1000\n\nevent: start\ndata: {{"type":"start","conversationId":"{CONVERSATION_ID}"}}\n\n'
    assert rest[0] == 'event: token\ndata: {"type":"token","token":"Hello"}\n\n'
    assert rest[-1].startswith('event: done\ndata: {"type":"done","message":"Hello world"')
    assert body.media_type == "text/event-stream"


async def test_ai_sdk(client: ChatClient):
    """The parts of one text, as the SDK's own server would send them."""
    body = to_ai_sdk(client.chat("s").stream("Hi"))

    assert parts(await read(body)) == [
        {"type": "start"},
        {"type": "text-start", "id": "text"},
        {"type": "text-delta", "id": "text", "delta": "Hello"},
        {"type": "text-delta", "id": "text", "delta": " world"},
        {"type": "text-end", "id": "text"},
        {"type": "finish"},
        "[DONE]",
    ]
    assert body.headers["x-vercel-ai-ui-message-stream"] == "v1"


async def test_ai_sdk_without_tokens(scripted: ScriptedServer, client: ChatClient):
    """A reply that came in `done` alone is shown; an event that the SDK has no part for is left out."""
    scripted.add(Script(stream_answer([HELLO[0], Unknown("x", {"type": "x"}), Done("Sorry.", CONVERSATION_ID)])))

    body = to_ai_sdk(client.chat("s").stream("Hi"))

    assert [part["delta"] for part in parts(await read(body)) if part != "[DONE]" and "delta" in part] == ["Sorry."]


@given(
    st.lists(st.text(alphabet=st.characters(codec="utf-8"))),
    st.text("event:\n\r ", min_size=1),
    st.text(),
)
def test_no_text_gets_out_of_its_field(tokens: list[str], kind: str, event_id: str):
    """Whatever the model, the server or the store says, an event stays one event, and its data gives it back."""
    items: list[Event] = [Unknown(kind, {"type": kind}), *events(*tokens)]

    class Told:
        def __init__(self) -> None:
            self.items = iter(items)
            self.event_id = event_id

        def __aiter__(self):
            return self

        async def __anext__(self) -> Event:
            if (event := next(self.items, None)) is None:
                raise StopAsyncIteration
            return event

    found = asyncio.run(read(to_sse(Told()))).decode()

    blocks = found.removesuffix("\n\n").split("\n\n")
    for block, line in zip(blocks[1:], lines(items), strict=True):
        fields = dict(field.split(": ", 1) for field in block.split("\n"))
        assert json.loads(fields["data"]) == json.loads(line)
        assert {*fields} <= {"id", "event", "data"}


# --- what refuses a turn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FORMATS)
async def test_refused_turn(make: Make, scripted: ScriptedServer, client: ChatClient):
    """Opening raises what refuses the turn, before a byte of an answer is there; after that nothing comes."""
    scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))
    body = make(client.chat("s").stream("Hi"))

    with pytest.raises(AuthenticationError):
        await body.open()

    assert await read(body) == b""


@pytest.mark.parametrize("make", FORMATS)
async def test_refused_turn_that_was_not_opened(make: Make, scripted: ScriptedServer, client: ChatClient):
    """Who only iterates gets the refusal as the only line."""
    scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))

    found = await read(make(client.chat("s").stream("Hi")))

    assert b"The chat does not work right now." in found
    assert b"Unauthorized" not in found


async def test_failure_as_the_first_event(scripted: ScriptedServer, client: ChatClient):
    """A turn that fails before anything of it came is refused, not begun."""
    scripted.add(Script(stream_answer([Failure("no model")])))

    with pytest.raises(ReplyFailedError) as failed:
        await to_ndjson(client.chat("s").stream("Hi")).open()

    assert refusal(failed.value).status == 502


async def test_opening_twice(scripted: ScriptedServer, client: ChatClient):
    """The second time nothing happens, and all that was read is there."""
    body = to_ndjson(client.chat("s").stream("Hi"))

    await body.open()
    await body.open()

    assert await read(body) == b"".join(lines(events("Hello", " world")))
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (InvalidRequestError("message is empty"), 400, None),
        (RejectedError(status=400), 400, None),
        (RejectedError(status=418), 502, None),
        (AuthenticationError(status=401), 401, None),
        (AuthenticationError(status=403), 403, None),
        (NotFoundError(status=404), 502, None),
        (SessionBusyError(), 409, None),
        (StreamStoppedError(), 409, None),
        (RateLimitError(status=429), 429, "60"),
        (RateLimitError("no room within 75 s"), 429, "60"),
        (RateLimitError(status=429, retry_after=1.2), 429, "2"),
        (RateLimitError(status=429, retry_after=0.0), 429, "1"),
        (UsageError(), 500, None),
        (ConfigurationError(), 500, None),
        (ConnectError(), 502, None),
        (ServerError(status=500), 502, None),
        (ServerError(status=503), 503, None),
        (ServerError(status=503, retry_after=7), 503, "7"),
        (ServerError(status=504), 504, None),
        (StoreError(), 503, None),
        (ClientClosedError(), 503, None),
        (RequestTimeoutError(phase="first_token"), 504, None),
        (ReplyFailedError(reason="x"), 502, None),
        (AheadlessError(), 502, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, AheadlessError) else str(value),
)
def test_status_of_a_refusal(error: AheadlessError, status: int, retry_after: str | None):
    """What the browser can act on keeps its status, and what is ours is a failure of the server's side."""
    answer = refusal(error)

    assert (answer.status, answer.headers.get("Retry-After")) == (status, retry_after)
    assert json.loads(answer.body)["delivery"] == error.delivery.value
    assert json.loads(answer.body)["error"].endswith(".")
    assert answer.headers["Cache-Control"] == "no-store"


def test_table_of_the_refusals():
    """The page has each error that can refuse a turn, with its status and its text."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "web-backend.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+Error)` \| (\d+).*? \| (.*) \|$", page, re.MULTILINE)

    for name, status, text in listed:
        error = getattr(aheadless, name)(**({"status": int(status)} if name == "RejectedError" else {}))
        answer = refusal(error)
        if name != "ServerError":
            assert answer.status == int(status), name
        assert json.loads(answer.body)["error"] == text, name
    assert [name for name, _, _ in listed] == [*dict.fromkeys(name for name, _, _ in listed)]
    assert {name for name, _, _ in listed} == {
        name
        for name in aheadless.exceptions.__all__
        if name.endswith("Error") and name not in {"AheadlessError", "StatusError"}
    }


def test_refusal_says_what_is_wrong_with_a_message():
    """What the visitor can change is said; of the rest no word of an error gets out."""
    client = ChatClient("http://127.0.0.1:1", api_key=KEY)
    with pytest.raises(InvalidRequestError) as empty:
        client.chat("s").stream("")
    with pytest.raises(InvalidRequestError) as foreign:
        client.chat("a b")

    assert json.loads(refusal(empty.value).body)["error"] == "The message is empty."
    assert b"a b" not in refusal(foreign.value).body
    for kind in (ConnectError, ServerError, ReplyFailedError, UsageError, AheadlessError):
        assert b"secret" not in refusal(kind("secret")).body


# --- what breaks a turn off -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FORMATS)
async def test_failed_turn(make: Make, scripted: ScriptedServer, client: ChatClient, caplog: pytest.LogCaptureFixture):
    """The last line says in kind words that it failed; what the server said is for the log alone."""
    scripted.add(FAILED)

    found = await read(make(client.chat("s").stream("Hi")))

    assert b"Sorry, no answer could be given." in found
    assert b"internal" not in found
    assert b"done" not in found
    assert b"finish" not in found
    assert "boom" in caplog.text
    assert KEY not in caplog.text


async def test_cut_turn(scripted: ScriptedServer, client: ChatClient):
    """A stream that breaks off ends with an error that tells what became of the message."""
    scripted.add(Script(FIRST, end="rst"))

    *_, last = (await read(to_ndjson(client.chat("s").stream("Hi")))).splitlines()

    assert json.loads(last) == {"type": "error", "error": "The answer broke off.", "delivery": "accepted"}


async def test_stopped_turn(scripted: ScriptedServer, client: ChatClient, caplog: pytest.LogCaptureFixture):
    """A turn that somebody else stops does not look whole; it is nobody's fault."""
    scripted.add(STALLED)
    chat = client.chat("s")
    body = to_ndjson(chat.stream("Hi"))
    assert [await anext(body), await anext(body)] == lines(HELLO[:2])

    chat.stop()

    assert json.loads(await read(body)) == {
        "type": "error",
        "error": "The answer was stopped.",
        "delivery": "accepted",
    }
    assert caplog.text == ""


async def test_turn_that_was_stopped_before_it_was_asked(scripted: ScriptedServer, client: ChatClient):
    """It is refused as what was never sent, so that the visitor may ask again without a second thought."""
    stream = client.chat("s").stream("Hi")
    stream.stop()

    with pytest.raises(StreamStoppedError) as caught:
        await to_ndjson(stream).open()

    assert (caught.value.delivery, scripted.requests) == (Delivery.NOT_SENT, [])


async def test_turn_that_was_read_before(client: ChatClient):
    """What is left comes: of a reply that was read to the end, its end with the whole text."""
    begun, ended = client.chat("s").stream("Hi"), client.chat("t").stream("Hi")
    await begun.advance()
    await ended

    of_begun, of_ended = await read(to_ndjson(begun)), await read(to_ndjson(ended))

    assert [json.loads(line)["type"] for line in of_begun.splitlines()] == ["token", "token", "done"]
    assert [json.loads(line)["message"] for line in of_ended.splitlines()] == ["Hello world"]


async def test_callback_that_raises(client: ChatClient):
    """What a callback of the back end's raises is no failure of the turn, and comes out; nothing follows it."""

    def fail(_: str) -> None:
        raise TimeoutError("ours")

    body = to_sse(client.chat("s").stream("Hi", on_token=fail))

    with pytest.raises(TimeoutError, match="ours"):
        await read(body)
    assert await read(body) == b""


class FullStore(MemoryStore):
    """A store whose disk is full when the reply is to be saved."""

    async def save(self, change: Any, lease: Any) -> None:
        if any(message.role == "assistant" for _, message in change.messages):
            raise StoreError("no space left")
        await super().save(change, lease)


async def test_reply_that_was_not_saved(
    scripted: ScriptedServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
):
    """It is whole for the visitor, and the log tells of the store."""
    client = make_client(scripted.url, store=FullStore())

    body = to_ndjson(client.chat("s").stream("Hi"))
    *_, last = (await read(body)).splitlines()
    await body.aclose()

    assert json.loads(last) == {"type": "done", "message": "Hello world", "conversationId": CONVERSATION_ID}
    assert "no space left" in caplog.text


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [to_sse, to_ai_sdk])
async def test_silent_upstream(make: Make, scripted: ScriptedServer, client: ChatClient):
    """While nothing comes, comments keep the connection alive; nothing of the turn is lost by that."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    body = make(client.chat("s").stream("Hi"), heartbeat=0.005)
    await body.open()
    found = b""

    while found.count(b": ping\n\n") < 3:
        found += await anext(body)
    gate.set()
    found += await read(body)

    assert b"Hel" in found
    assert b"lo" in found
    assert b"error" not in found


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "15"])
async def test_heartbeat_that_is_no_time(seconds: Any, client: ChatClient):
    """A pulse of no seconds would be a flood."""
    with pytest.raises(ConfigurationError):
        to_sse(client.chat("s").stream("Hi"), heartbeat=seconds)


# --- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", FORMATS)
async def test_closing_while_a_read_waits(make: Make, scripted: ScriptedServer, client: ChatClient):
    """The upstream is closed at once, and the loop over the bytes just ends."""
    scripted.add(STALLED)
    body = make(client.chat("s").stream("Hi"))
    await body.open()
    reader = asyncio.create_task(read(body))
    await asyncio.sleep(0)

    await body.aclose()

    assert not client.chat("s").busy
    async with asyncio.timeout(10):
        await reader
        await scripted.requests[0].left.wait()


@pytest.mark.parametrize("script", [Script(end="stall"), Script(FIRST[: FIRST.index(b"{")], end="stall")])
async def test_closing_while_it_opens(script: Script, scripted: ScriptedServer, client: ChatClient):
    """Whoever opens it gets nothing, and the upstream is closed at once, whether there is an answer or not."""
    scripted.add(script)
    body = to_ndjson(client.chat("s").stream("Hi"))
    opening = asyncio.create_task(body.open())
    request = await scripted.arrived(1)

    await body.aclose()

    async with asyncio.timeout(10):
        await opening
        await request.left.wait()
    assert body.empty
    assert await read(body) == b""


@pytest.mark.parametrize("count", range(6))
async def test_closing_anywhere(count: int, scripted: ScriptedServer, client: ChatClient):
    """After however many pieces: the session is free, nothing more comes, and closing again is nothing."""
    scripted.add(Script(stream_answer(events(*"abcdef"))))
    body = to_sse(client.chat("s").stream("Hi"))
    for _ in range(count):
        await anext(body)

    await body.aclose()
    await body.aclose()

    assert not client.chat("s").busy
    assert await read(body) == b""


async def test_cancelled_reader(scripted: ScriptedServer, client: ChatClient):
    """A framework that cancels its handler closes the upstream by that, and the cancel goes on."""
    scripted.add(STALLED)
    body = to_sse(client.chat("s").stream("Hi"))
    await body.open()
    await anext(body)
    await anext(body)
    reader = asyncio.create_task(read(body))
    await asyncio.sleep(0)

    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader

    async with asyncio.timeout(10):
        await scripted.requests[0].left.wait()
    assert [message.text for message in client.chat("s").messages] == ["Hi", "Hel"]


async def test_cancelled_while_opening(scripted: ScriptedServer, client: ChatClient):
    """A browser that leaves before the first event takes its question's connection along."""
    scripted.add(Script(end="stall"))
    opening = asyncio.create_task(to_ndjson(client.chat("s").stream("Hi")).open())
    request = await scripted.arrived(1)

    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    async with asyncio.timeout(10):
        await request.left.wait()


async def test_dropped_bytes(scripted: ScriptedServer, client: ChatClient):
    """Where a framework forgets to close them, the upstream goes with them."""
    scripted.add(STALLED)
    body = to_ndjson(client.chat("s").stream("Hi"))
    await body.open()

    del body
    gc.collect()

    async with asyncio.timeout(10):
        await scripted.requests[0].left.wait()
    assert not client.chat("s").busy


async def test_dropped_between_two_heartbeats(scripted: ScriptedServer, client: ChatClient):
    """The read that goes on meanwhile goes as well."""
    scripted.add(STALLED)
    body = to_sse(client.chat("s").stream("Hi"), heartbeat=0.001)
    await body.open()
    while b"ping" not in await anext(body):
        pass

    del body

    async with asyncio.timeout(10):
        await scripted.requests[0].left.wait()
    assert not client.chat("s").busy


async def test_leaving_the_block(scripted: ScriptedServer, client: ChatClient):
    """A block opens on entering, and closes however it is left."""
    scripted.add(STALLED)

    async with to_ndjson(client.chat("s").stream("Hi")) as body:
        assert await anext(body) == lines(HELLO)[0]

    assert not client.chat("s").busy
    assert await read(body) == b""
    await body.aclose()


async def test_closing_what_was_never_read(scripted: ScriptedServer, client: ChatClient):
    """Nothing was sent, and nothing is."""
    body = to_ndjson(client.chat("s").stream("Hi"))

    await body.aclose()

    assert await read(body) == b""
    assert scripted.requests == []


async def test_second_reader(scripted: ScriptedServer, client: ChatClient):
    """Two tasks that read the same bytes would each get half."""
    scripted.add(STALLED)
    async with to_ndjson(client.chat("s").stream("Hi")) as body:
        await anext(body)
        await anext(body)
        reader = asyncio.create_task(read(body))
        await asyncio.sleep(0)

        with pytest.raises(UsageError, match="another task"):
            await anext(body)
        await body.aclose()
        await reader


async def test_each_step_can_be_cancelled(client: ChatClient, scripted: ScriptedServer):
    """Tokens that are all there already do not keep a cancelled reader going."""
    scripted.add(Script(stream_answer(events(*["x"] * 1000))))
    body = to_ndjson(client.chat("s").stream("Hi"))
    await body.open()
    seen = 0

    async def count() -> None:
        nonlocal seen
        async for _ in body:
            seen += 1
            if seen == 10:
                reader.cancel()

    reader = asyncio.create_task(count())
    with pytest.raises(asyncio.CancelledError):
        await reader

    assert seen == 10


# --- other sources ----------------------------------------------------------------------------------------------------


async def test_second_browser(scripted: ScriptedServer, client: ChatClient):
    """Another tab reads along; its leaving does not end the turn."""
    gate = asyncio.Event()
    scripted.add(Script(FIRST + REST, gates={len(FIRST): gate}))
    stream = client.chat("s").stream("Hi")
    along = to_ndjson(stream.subscribe())
    async with to_ndjson(stream) as body, along:
        assert await anext(along) == await anext(body)
        await along.aclose()
        gate.set()

        assert (await read(body)).splitlines()[-1] + b"\n" == lines(HELLO)[-1]


async def tell(*items: Event) -> AsyncIterator[Event]:
    for item in items:
        yield item


async def test_events_that_just_end():
    """Without `done` it is no whole reply, whoever tells it; with nothing at all there was nothing to tell."""
    cut, nothing = to_ndjson(tell(Start("c"), Token("x"))), to_ndjson(tell())
    await nothing.open()

    assert b"stopped" in await read(cut)
    assert nothing.empty
    assert await read(nothing) == b""


# --- the question of the AI SDK ---------------------------------------------------------------------------------------


def message(*texts: str, role: str = "user") -> dict[str, Any]:
    return {"id": "1", "role": role, "parts": [{"type": "text", "text": text} for text in texts]}


def test_question_of_the_ai_sdk():
    """The last text of the user's, whatever history and attachments come along."""
    history = [message("old"), message("reply", role="assistant"), message("Hel", "lo")]
    history[-1]["parts"].insert(1, {"type": "file", "url": "data:,x"})

    assert ai_sdk_message({"id": "c", "messages": history, "trigger": "submit-message"}) == "Hello"
    assert ai_sdk_message({"messages": [message("\ud83d")]}) == "\ufffd"


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        "x",
        {},
        {"messages": None},
        {"messages": []},
        {"messages": ["x"]},
        {"messages": [message("x", role="assistant")]},
        {"messages": [message("x"), message("y", role="assistant")]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "parts": "x"}]},
        {"messages": [{"role": "user", "parts": [1, {"type": "text", "text": 1}]}]},
        {"messages": [message("x" * 4001)]},
    ],
)
def test_no_question_of_the_ai_sdk(body: object):
    """What is no history with a question at its end is the browser's mistake."""
    with pytest.raises(InvalidRequestError) as refused:
        ai_sdk_message(body)

    assert refusal(refused.value).status == 400


async def test_what_is_shown_of_it(client: ChatClient):
    """Its state is in its repr, no text of the turn."""
    body = to_ndjson(client.chat("s").stream("Hi"))
    shown = [repr(body)]
    await body.open()
    shown.append(repr(body))
    await body.aclose()

    assert [*shown, repr(body)] == [
        f"<ByteStream application/x-ndjson, {state}>" for state in ("not opened", "open", "over")
    ]
