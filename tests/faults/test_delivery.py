"""What is said of the delivery is true, wherever the connection breaks: at every byte of the request and of the answer.

NOT_SENT or REJECTED: no message was stored. ACCEPTED: exactly one was. A normal return: `done` was read. The partial text
is that of the tokens whose lines were complete in what was sent.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import aiohttp
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aheadless import (
    AheadlessError,
    AuthenticationError,
    ChatClient,
    ConnectError,
    ConnectionLostError,
    Delivery,
    Event,
    ProtocolError,
    RejectedError,
    Reply,
    Retry,
    Retrying,
    StreamInterruptedError,
    StreamStoppedError,
)
from aheadless._answer import Answer
from aheadless.testing import Script, ScriptedServer, chunked, events, head, json_answer, lines
from tests.faults.asking import AC, NS, RJ, UN
from tests.support import KEY

End: TypeAlias = Literal["fin", "rst"]
ENDS: tuple[End, ...] = ("fin", "rst")
EACH_END = pytest.mark.parametrize("end", ENDS)

SAID = events("Hé", "l\U0001f600", " \u2028x", conversation_id="c")


class Bench:
    """A server, a client that tries once, and the count of what was stored."""

    def __init__(self) -> None:
        self.server = ScriptedServer()

    async def __aenter__(self) -> Bench:
        await self.server.__aenter__()
        self.client = ChatClient(self.server.url, api_key=KEY, retry=Retry(attempts=1), max_wait=0, history_limit=0)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.client.aclose()
        await self.server.aclose()

    async def ask(
        self, script: Script, *, json: bool = False, slowly: bool = False
    ) -> tuple[Reply | AheadlessError, int]:
        """Return what came of a turn and how many messages the server stored for it.

        Who reads `slowly` reads on only after the connection is lost, and seen to be.
        """
        before = len(self.server.stored)
        self.server.add(script)
        chat = self.client.chat("s")
        outcome: Reply | AheadlessError
        try:
            if slowly:
                async with chat.stream("Hi") as stream:
                    assert isinstance(stream._source, Answer)
                    content = stream._source._content
                    while not (content.is_eof() or content.exception()):
                        await asyncio.sleep(0)
                    outcome = await stream
            else:
                outcome = await (chat.send("Hi") if json else chat.stream("Hi"))
        except AheadlessError as exc:
            outcome = exc
        stored = len(self.server.stored) - before

        assert not chat.busy
        match outcome:
            case AheadlessError(delivery=Delivery.NOT_SENT | Delivery.REJECTED):
                assert stored == 0
            case AheadlessError(delivery=Delivery.ACCEPTED) | Reply():
                assert stored == 1
            case _:
                assert stored in {0, 1}
        return outcome, stored


# --- the request ------------------------------------------------------------------------------------------------------


async def size_of_a_request(bench: Bench) -> int:
    await bench.ask(Script(close_answer(SAID).data, end="fin"))
    return bench.server.requests[0].size


@EACH_END
async def test_request_is_cut_at_every_byte(end: End) -> None:
    """Before the last byte nothing is stored; after it something may be, and is: nobody can tell from here."""
    async with Bench() as bench:
        whole = await size_of_a_request(bench)
        for size in range(whole + 1):
            error, stored = await bench.ask(Script(read=size, end=end))

            assert isinstance(error, AheadlessError), size
            assert error.delivery in ({UN} if size == whole else {UN, NS}), size
            assert stored == (size == whole), size
            assert error.partial == ""


@EACH_END
async def test_request_is_refused_at_every_byte(end: End) -> None:
    """A refusal need not wait for the whole request, and neither do we."""
    refusal = json_answer({}, status=413, headers={"Connection": "close"})
    async with Bench() as bench:
        whole = await size_of_a_request(bench)
        for size in range(1, whole + 1):
            error, stored = await bench.ask(Script(refusal, read=size, end=end))

            assert type(error) is RejectedError, size
            assert (error.delivery, stored) == (RJ, 0), size


@pytest.mark.parametrize("status", [301, 400, 401, 404])
@EACH_END
async def test_refusal_is_cut_at_every_byte(status: int, end: End) -> None:
    """With the head the verdict is there; before it nothing is known."""
    answer = json_answer({"error": "no"}, status=status)
    whole = answer.index(b"\r\n\r\n") + 4
    async with Bench() as bench:
        for size in range(0, len(answer), 5):
            error, _ = await bench.ask(Script(answer).cut(size, end))

            assert isinstance(error, AheadlessError)
            assert error.delivery is (RJ if size >= whole else UN), size


class Connecting:
    """Holds connections back, once they are there, until the test lets them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connected = asyncio.Event()
        self.go_on = asyncio.Event()
        self.on_go: Callable[[], None] = lambda: None
        connect: Any = aiohttp.TCPConnector.connect

        async def connect_held(*args: Any) -> Any:
            connection = await connect(*args)
            self.connected.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                connection.close()
                raise
            self.on_go()
            return connection

        monkeypatch.setattr(aiohttp.TCPConnector, "connect", connect_held)


@pytest.mark.parametrize("by", ["stop", "aclose", "cancel"])
async def test_ended_while_connecting(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Nothing was written, and what the turn is told says so."""
    connecting = Connecting(monkeypatch)
    async with Bench() as bench:
        chat = bench.client.chat("s")
        stream = chat.stream("Hi")
        task = asyncio.create_task(stream.reply())
        await connecting.connected.wait()

        if by == "aclose":
            await bench.client.aclose()
        elif by == "stop":
            stream.stop()
        else:
            task.cancel()
        with pytest.raises(asyncio.CancelledError if by == "cancel" else AheadlessError) as caught:
            await task

        assert getattr(caught.value, "delivery", NS) is NS
        with pytest.raises(AheadlessError) as seen:
            await stream
        assert seen.value.delivery is NS
        assert bench.server.requests == []


async def test_stopped_in_the_moment_of_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is there and the request about to go; as it was said not to be sent, it is not."""
    connecting = Connecting(monkeypatch)
    async with Bench() as bench:
        stream = bench.client.chat("s").stream("Hi")
        connecting.on_go = stream.stop
        connecting.go_on.set()

        with pytest.raises(StreamStoppedError) as caught:
            await stream

        assert caught.value.delivery is NS
        connecting.on_go = lambda: None
        assert (await bench.client.chat("s").stream("Hi")).text == "Hello world"
        assert len(bench.server.requests) == 1


@pytest.mark.parametrize("last", ["refused", "gone"])
async def test_an_earlier_attempt_may_have_arrived(last: str) -> None:
    """The verdict is that of all attempts: where duplicates are allowed, the last one does not speak for the first."""
    retry = Retry(attempts=2, base=0.001, may_duplicate=True)
    told: list[Delivery] = []
    async with ScriptedServer() as server:

        async def on_retry(retrying: Retrying) -> None:
            told.append(retrying.error.delivery)
            if last == "gone":
                await server.aclose()

        server.add(Script(end="fin"), Script(json_answer({}, status=401)))
        async with ChatClient(server.url, api_key=KEY, retry=retry, on_retry=on_retry) as client:
            with pytest.raises(AheadlessError) as caught:
                await client.chat("s").stream("Hi")

    assert type(caught.value) is (ConnectError if last == "gone" else AuthenticationError)
    assert caught.value.delivery is UN
    assert told == [UN]
    assert len(server.stored) == 1


# --- the answer -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Sent:
    """The bytes of an answer, and what a part of its body says."""

    data: bytes
    decode: Callable[[bytes], bytes]

    def cut(self, said: list[Event], size: int) -> tuple[Delivery | None, str]:
        """Return the verdict (None: it is complete) and the text, if only so many bytes come."""
        body = self.decode(self.data[self.data.index(b"\r\n\r\n") + 4 : size])
        complete, end = 0, 0
        for line in lines(said):
            end += len(line)
            complete += len(body) >= end - 1  # the newline may be missing: then the end of the bytes is its end
        text = "".join(event.text for event in said[:complete] if hasattr(event, "text"))
        if complete == len(said):
            return None, ""
        return (AC if complete else UN), text


def unchunk(body: bytes) -> bytes:
    """Return what is in the chunks as far as they have come."""
    content = b""
    while (end := body.find(b"\r\n")) > 0:
        size = int(body[:end], 16)
        content += body[end + 2 :][:size]
        body = body[end + 2 + size + 2 :]
    return content


def gunzip(body: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(body)


def chunked_answer(said: list[Event]) -> Sent:
    return Sent(head(200, {"Transfer-Encoding": "chunked"}) + chunked(lines(said)), unchunk)


def length_answer(said: list[Event]) -> Sent:
    body = b"".join(lines(said))
    return Sent(head(200, {"Content-Length": str(len(body))}) + body, bytes)


def close_answer(said: list[Event]) -> Sent:
    return Sent(head(200, {"Connection": "close"}) + b"".join(lines(said)), bytes)


def gzip_chunked_answer(said: list[Event]) -> Sent:
    return Sent(
        head(200, {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked"}) + chunked(gzip_pieces(said)),
        lambda body: gunzip(unchunk(body)),
    )


def gzip_close_answer(said: list[Event]) -> Sent:
    return Sent(head(200, {"Content-Encoding": "gzip", "Connection": "close"}) + b"".join(gzip_pieces(said)), gunzip)


def gzip_pieces(said: list[Event]) -> Iterator[bytes]:
    """Return gzip in which each line can be read as soon as it has come."""
    compressor = zlib.compressobj(wbits=31)
    for line in lines(said):
        yield compressor.compress(line) + compressor.flush(zlib.Z_SYNC_FLUSH)
    yield compressor.flush()


ANSWERS = [chunked_answer, length_answer, close_answer, gzip_chunked_answer, gzip_close_answer]


async def check(
    bench: Bench, said: list[Event], answer: Sent, size: int, script: Script, *, slowly: bool = False
) -> None:
    """Let the answer be cut there; all must be as `Sent.cut` says."""
    expected, text = answer.cut(said, size)
    outcome, stored = await bench.ask(script, slowly=slowly)

    assert stored == 1
    if expected is None:
        assert isinstance(outcome, Reply), size
        assert outcome.streamed_text == "".join(event.text for event in said[:-1] if hasattr(event, "text"))
        return
    assert isinstance(outcome, AheadlessError), size
    headless = size < answer.data.index(b"\r\n\r\n") + 4
    assert type(outcome) is (ConnectionLostError if headless else StreamInterruptedError), size
    assert (outcome.delivery, outcome.partial) == (expected, text), size


def cut_at(answer: Sent, size: int, end: End) -> Script:
    """Return the script; a connection whose answer is whole is kept, so that its end meets no other turn."""
    script = Script(answer.data)
    return script if size == len(answer.data) and b"close" not in answer.data else script.cut(size, end)


@pytest.mark.parametrize("make", ANSWERS)
@EACH_END
@pytest.mark.parametrize("slowly", [False, True])
async def test_answer_is_cut_at_every_byte(make: Callable[[list[Event]], Sent], end: End, slowly: bool) -> None:
    """An exact verdict and an exact text for each of them, whether or not the reader is there in time."""
    answer = make(SAID)
    async with Bench() as bench:
        for size in range(len(answer.data) + 1):
            await check(bench, SAID, answer, size, cut_at(answer, size, end), slowly=slowly)


TOKENS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), max_size=9)
CUTS = st.tuples(
    st.floats(0, 1), st.sampled_from(ENDS), st.none() | st.lists(st.integers(1, 40), min_size=1, max_size=5)
)


@settings(max_examples=25)
@given(TOKENS, st.sampled_from(ANSWERS), st.lists(CUTS, min_size=1, max_size=12))
def test_any_answer_is_cut_anywhere(
    tokens: list[str], make: Callable[[list[Event]], Sent], cuts: list[tuple[float, End, list[int] | None]]
) -> None:
    """The same for any reply, in any pieces."""
    said = events(*tokens)
    answer = make(said)

    async def main() -> None:
        async with Bench() as bench:
            for part, end, pieces in cuts:
                size = int(part * len(answer.data))
                script = attrs.evolve(cut_at(answer, size, end), pieces=None if pieces is None else tuple(pieces))
                await check(bench, said, answer, size, script)

    asyncio.run(main())


PAYLOAD = json.dumps({"conversationId": "c", "message": "Hé"}).encode()
JSON = {
    "length": head(200, {"Content-Type": "application/json", "Content-Length": str(len(PAYLOAD))}) + PAYLOAD,
    "chunked": head(200, {"Transfer-Encoding": "chunked"}) + chunked([PAYLOAD[:9], PAYLOAD[9:]]),
    "close": head(200, {"Connection": "close"}) + PAYLOAD,
}


@pytest.mark.parametrize("framing", JSON)
@EACH_END
async def test_json_answer_is_cut_at_every_byte(framing: str, end: End) -> None:
    """It is a reply only when it is whole; otherwise the message, which was stored, may have been."""
    data = JSON[framing]
    start = data.index(b"\r\n\r\n") + 4
    async with Bench() as bench:
        for size in range(len(data) + 1):
            whole = size == len(data)
            script = Script(data) if whole and framing != "close" else Script(data).cut(size, end)
            outcome, stored = await bench.ask(script, json=True)

            assert stored == 1
            if whole:
                assert isinstance(outcome, Reply)
                assert outcome.text == "Hé"
                continue
            assert isinstance(outcome, AheadlessError), size
            # Up to the close, the bytes that came are all there is to judge by; aiohttp takes a reset for one, too.
            kind = ProtocolError if framing == "close" and size >= start else ConnectionLostError
            assert (type(outcome), outcome.delivery, outcome.partial) == (kind, UN, ""), size
