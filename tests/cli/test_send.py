"""`aheadless send` and `aheadless health` against servers on loopback."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

import pytest

from aheadless.protocol.codec import decode_event
from aheadless.protocol.events import Done, Event, Failure, Start, Token
from aheadless.testing import CONVERSATION_ID, Script, events, json_answer, lines, stream_answer
from tests.cli.support import AHEADLESS, KEY, aheadless, posix_only, running

pytestmark = pytest.mark.slow  # a process each time

HEAD: list[Event | bytes] = [Start(CONVERSATION_ID), Token("half "), Token("an answer")]


@pytest.fixture
def closed_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


# --- what comes out ---------------------------------------------------------------------------------------------------


async def test_the_answer_is_on_stdout(serve):
    """The text and one newline, nothing else."""
    server = await serve("Hello", " world", "\n")

    ended = await aheadless("send", "Hi", AHEADLESS_BASE_URL=server.url)

    assert (ended.code, ended.out, ended.err) == (0, "Hello world\n", "")


async def test_tokens_come_as_they_arrive(serve):
    """The first is readable while the second is not made yet."""
    gate = asyncio.Event()
    server = await serve("first", gate, " second")

    async with running("send", "Hi", "--url", server.url) as process:
        await process.until("first")
        before = process.out
        gate.set()
        ended = await process.ended()

    assert before == "first"
    assert (ended.code, ended.out) == (0, "first second\n")


async def test_the_message_from_stdin(serve):
    """`-` reads it; the newline at the end is not part of it."""
    server = await serve("yes")

    ended = await aheadless("send", "-", stdin="zwei\nZeilen 😀\r\n".encode(), AHEADLESS_BASE_URL=server.url)

    assert ended.code == 0
    assert server.settings.engine.asked[0][-1].text == "zwei\nZeilen 😀"


@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (b"", "message is empty"),
        (b"\xff", "stdin is not UTF-8 text: byte 0 is wrong"),
        (b"x" * 4001, "4001 UTF-16 units"),
        (b"x" * 100_000, "stdin holds more than 16000 bytes"),
    ],
)
async def test_a_message_from_stdin_that_is_none(stdin, said, scripted):
    """It is refused before anything is sent."""
    ended = await aheadless("send", "-", stdin=stdin, AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert scripted.requests == []


async def test_a_session_is_kept(serve):
    """Two messages with one session id are one conversation."""
    server = await serve("yes")

    for message in ("one", "two"):
        await aheadless("send", message, "--session", "me", AHEADLESS_BASE_URL=server.url)

    assert [message.text for message in server.settings.engine.asked[1]] == ["one", "yes", "two"]


async def test_sessions_of_their_own(scripted):
    """Without a session id no message meets another."""
    for _ in range(2):
        await aheadless("send", "Hi", AHEADLESS_BASE_URL=scripted.url)

    ids = {json.loads(request.body)["sessionId"] for request in scripted.requests}
    assert len(ids) == 2
    assert all(name.startswith("cli:") for name in ids)


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
async def test_json(options, scripted):
    """One object tells all; it says the same whether it was streamed or not."""
    if options:
        scripted.add(Script(json_answer({"conversationId": CONVERSATION_ID, "message": "Hello"})))
    else:
        scripted.add(Script(stream_answer(events(" Hel", "lo"))))

    ended = await aheadless("send", "Hi", "--json", "--session", "me", *options, AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.err, ended.out.count("\n")) == (0, "", 1)
    told = json.loads(ended.out)
    timings = told.pop("timings")
    assert told == {
        "text": "Hello",
        "streamedText": "" if options else " Hello",
        "sessionId": "me",
        "conversationId": CONVERSATION_ID,
    }
    assert [*timings] == ["queued", "connect", "firstToken", "total"]
    assert 0 <= timings["queued"] < 20
    assert 0 < timings["connect"] < timings["total"] < 20
    assert (timings["firstToken"] is None) == bool(options)
    assert scripted.requests[0].path == ("/v1/chat" if options else "/v1/chat/stream")


async def test_json_of_a_failure(scripted):
    """There is an object all the same: a script reads one thing only."""
    scripted.add(Script(stream_answer([*HEAD, Failure("no model")])))

    ended = await aheadless("send", "Hi", "--json", "--session", "me", AHEADLESS_BASE_URL=scripted.url)

    assert ended.code == 7
    assert json.loads(ended.out) == {
        "sessionId": "me",
        "partial": "half an answer",
        "error": {"type": "ReplyFailedError", "message": "the server gave up: no model", "delivery": "accepted"},
    }
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("last", [Done("half an answer", CONVERSATION_ID), Failure("no model")])
async def test_ndjson(last, scripted):
    """The events as they were on the wire, be the last one `done` or `error`; other events, too."""
    unknown = b'{"type":"usage","tokens":2}\n'
    scripted.add(Script(stream_answer([*HEAD, unknown, last])))

    ended = await aheadless("send", "Hi", "--ndjson", AHEADLESS_BASE_URL=scripted.url)

    assert ended.out.encode() == b"".join(lines([*HEAD, unknown, last]))
    assert ended.code == (7 if isinstance(last, Failure) else 0)


async def test_ndjson_comes_as_it_arrives(serve):
    """Each line is there before the next is made."""
    gate = asyncio.Event()
    server = await serve("first", gate, " second")

    async with running("send", "Hi", "--ndjson", "--url", server.url) as process:
        await process.until('{"type":"token","token":"first"}\n')
        gate.set()
        ended = await process.ended()

    assert [type(decode_event(line.encode())) for line in ended.out.splitlines()] == [Start, Token, Token, Done]


async def test_no_stream(serve):
    """The answer in one piece looks the same."""
    server = await serve("Hello", " \x1b[2J")

    ended = await aheadless("send", "Hi", "--no-stream", AHEADLESS_BASE_URL=server.url)

    assert (ended.code, ended.out) == (0, "Hello ␛[2J\n")


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
async def test_an_answer_without_a_token(options, serve):
    """What the server says instead is shown."""
    server = await serve()

    ended = await aheadless("send", "Hi", *options, AHEADLESS_BASE_URL=server.url)

    assert (ended.code, ended.out, ended.err) == (0, "I could not generate a response right now.\n", "")


async def test_done_differs_from_the_tokens(scripted):
    """It is no failure, but it is said."""
    scripted.add(Script(stream_answer(events("one", text="two"))))

    ended = await aheadless("send", "Hi", AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.out) == (0, "one\n")
    assert "--json shows both" in ended.err


NASTY = "\x1b]0;title\x07\x1b[2J \x9b31m \u202etxt.exe\r\n\t[bold]é😀[/bold]"


@pytest.mark.parametrize("options", [[], ["--json"], ["--ndjson"]])
async def test_control_characters_are_shown(options, serve):
    """On a pipe, too, and in JSON without a change of what it says."""
    server = await serve("a", NASTY, "b")

    ended = await aheadless("send", "Hi", *options, AHEADLESS_BASE_URL=server.url)

    assert ended.code == 0
    assert not set(ended.out) & set("\x1b\x07\x9b\u202e\r")
    if not options:
        assert ended.out == "a␛]0;title␇␛[2J \\u009b31m \\u202etxt.exe␍\n\t[bold]é😀[/bold]b\n"
    elif options == ["--json"]:
        assert json.loads(ended.out)["text"] == f"a{NASTY}b"


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
async def test_raw(options, serve):
    """Whoever asks for them gets them."""
    server = await serve("a", NASTY, "b")

    ended = await aheadless("send", "Hi", "--raw", *options, AHEADLESS_BASE_URL=server.url)

    assert ended.out == f"a{NASTY}b\n"


async def test_a_locale_that_lacks_characters(serve):
    """What cannot be written is escaped, not an end of the program."""
    server = await serve("é😀")

    ended = await aheadless("send", "Hi", AHEADLESS_BASE_URL=server.url, PYTHONIOENCODING="ascii")

    assert (ended.code, ended.out) == (0, "\\xe9\\U0001f600\n")


async def test_the_key_from_a_file(serve, tmp_path):
    """It counts before the environment's; so does the old header."""
    server = await serve("yes")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")

    ended = await aheadless(
        "send", "Hi", "--api-key-file", str(file), "--legacy-auth", "--url", server.url, AHEADLESS_API_KEY="wrong"
    )

    assert (ended.code, ended.out) == (0, "yes\n")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        (Script(json_answer({"error": "Unauthorized"}, status=401)), 4, "set AHEADLESS_API_KEY"),
        (Script(json_answer({"error": "Invalid request payload"}, status=400)), 5, "change the message"),
        (Script(json_answer("<html>Cannot POST", status=404)), 5, "check the URL"),
        (Script(json_answer("", status=302, headers={"Location": "http://127.0.0.1:1/"})), 5, "check the URL"),
        (Script(json_answer({"error": "Too many requests"}, status=429)), 6, "wait a minute"),
        (Script(json_answer({"error": "Internal server error"}, status=500)), 7, "may have been stored"),
        (Script(json_answer("<html>Wi-Fi login\x1b[2J</html>")), 7, "Headless chat API"),
        (Script(b"", end="fin"), 8, "may have been stored"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--ndjson"]])
async def test_refusals(script, code, said, options, scripted):
    """One line, a code for the kind, and nothing on stdout."""
    scripted.add(script)

    ended = await aheadless("send", "Hi", "--max-wait", "0", *options, AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert ended.err.startswith("aheadless: ")
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err


async def test_too_many_requests_are_waited_out(scripted):
    """And whoever waits is told so."""
    scripted.add(Script(json_answer({"error": "Too many requests"}, status=429, headers={"Retry-After": "0.1"})))

    ended = await aheadless("send", "Hi", AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.out) == (0, "Hello world\n")
    assert ended.err == "aheadless: too many requests; waiting 75 s at the most\n"


@pytest.mark.parametrize(
    ("script", "options", "code"),
    [
        (Script(stream_answer([*HEAD, Failure("no model\x1b[2J\n")])), [], 7),
        (Script(stream_answer(HEAD)), [], 8),
        (Script(stream_answer(HEAD, framing="close"), end="rst"), [], 8),
        (Script(stream_answer(HEAD, framing="close"), end="stall"), ["--timeout", "0.3"], 9),
        (Script(stream_answer([*HEAD, b"garbage\n"])), [], 7),
    ],
)
async def test_a_partial_answer_is_kept(script, options, code, scripted):
    """What had come is on stdout, with a newline; that it is not all is on stderr."""
    scripted.add(script)

    ended = await aheadless("send", "Hi", *options, AHEADLESS_BASE_URL=scripted.url)

    assert (ended.code, ended.out) == (code, "half an answer\n")
    assert "the message was stored; the answer is not complete" in ended.err
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.err


async def test_nobody_listens(closed_port):
    """It says so, and where."""
    ended = await aheadless("send", "Hi", "--url", f"http://127.0.0.1:{closed_port}")

    assert (ended.code, ended.out) == (3, "")
    assert "is the server running" in ended.err
    assert ended.err.count("\n") == 1


# --- the process ------------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("options", [[], ["--json"], ["--no-stream"]])
async def test_signals(number, options, scripted):
    """The stream is closed, what had come is kept, the exit code is the signal's."""
    scripted.add(Script(stream_answer(HEAD, framing="close") if options != ["--no-stream"] else b"", end="stall"))

    async with running("send", "Hi", *options, "--url", scripted.url) as process:
        request = await scripted.arrived(1)
        if not options:
            await process.until("half an answer")
        process.process.send_signal(number)
        ended = await process.ended()
        async with asyncio.timeout(5):
            await request.left.wait()

    assert ended.code == 128 + number
    assert ended.out == ("" if options else "half an answer\n")
    assert ended.err == f"aheadless: ended by {number.name}; what was asked for is not complete\n"


@posix_only
@pytest.mark.parametrize("options", [[], ["--ndjson"]])
async def test_whoever_reads_has_enough(options, scripted):
    """A closed pipe ends the program quietly, and the stream with it."""
    scripted.add(Script(stream_answer(HEAD, framing="close"), drip=lines([Token("more\n")])[0]))

    async with running("send", "Hi", *options, "--url", scripted.url) as process:
        await process.until("half")
        process.close_stdout()
        ended = await process.ended()

    assert (ended.code, ended.err) == (141, "")
    async with asyncio.timeout(5):
        await scripted.requests[0].left.wait()


@posix_only
@pytest.mark.parametrize("options", [[], ["--json"], ["--no-stream"]])
async def test_a_pipe_that_is_closed_from_the_start(options, serve):
    """The first write meets it."""
    gate = asyncio.Event()
    server = await serve(gate, "never read")

    async with running("send", "Hi", *options, "--url", server.url) as process:
        process.close_stdout()
        gate.set()
        ended = await process.ended()

    assert (ended.code, ended.err) == (141, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
async def test_a_full_disk(serve):
    """One line says so; there is no second complaint when the interpreter ends."""
    server = await serve("Hello")
    command = ("sh", "-c", 'exec "$@" > /dev/full', "sh", *AHEADLESS)

    ended = await aheadless("send", "Hi", "--url", server.url, command=command)

    assert (ended.code, ended.err) == (1, "aheadless: [Errno 28] No space left on device\n")


@posix_only
@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_closed_streams(closing, serve):
    """A program that is started without them runs all the same."""
    server = await serve("Hello")
    command = ("sh", "-c", f'exec "$@" {closing}', "sh", *AHEADLESS)

    ended = await aheadless("send", "Hi", "--url", server.url, command=command)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out == ("" if ">&-" in closing.replace("2>&-", "") else "Hello\n")


@posix_only
async def test_errors_that_nobody_can_read(closed_port):
    """A closed stderr changes nothing of the exit code."""
    command = ("sh", "-c", 'exec "$@" 2> /dev/full', "sh", *AHEADLESS)

    ended = await aheadless("send", "Hi", "--url", f"http://127.0.0.1:{closed_port}", command=command)

    assert (ended.code, ended.err) == (3, "")


# --- health -----------------------------------------------------------------------------------------------------------


async def test_health(serve):
    """The status, the server and the round trip; no key is needed."""
    server = await serve("yes")

    ended = await aheadless("health", "--url", server.url, AHEADLESS_API_KEY="")

    assert ended.code == 0
    status, url, took, unit = ended.out.split()
    assert (status, url, unit) == ("ok", server.url, "ms")
    assert float(took) >= 0


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (Script(json_answer({"status": "starting\x1b"})), 7),
        (Script(json_answer({"error": "down"}, status=503)), 7),
        (Script(json_answer("<html>")), 7),
        (Script(json_answer({"error": "no"}, status=404)), 5),
        (Script(b"", end="stall"), 9),
    ],
)
async def test_health_of_a_server_that_is_not_well(script, code, scripted):
    """The exit code tells how."""
    scripted.add(script)

    ended = await aheadless("health", "--url", scripted.url, "--timeout", "0.3")

    assert ended.code == code
    assert ended.err.count("\n") == 1
    assert "\x1b" not in ended.out


async def test_health_of_nobody(closed_port):
    """3, as for everything that needs a connection."""
    assert (await aheadless("health", "--url", f"http://127.0.0.1:{closed_port}")).code == 3
