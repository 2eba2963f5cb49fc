"""`aheadless serve`: the server as a process."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import sys

import pytest

from aheadless import ChatClient
from tests.cli.support import KEY, Running, aheadless, posix_only, running

pytestmark = [posix_only, pytest.mark.slow]  # a process each time

SERVE = ("serve", "--port", "0", "--engine", "echo")


async def address(process: Running) -> str:
    """Wait until the server listens, and return its URL."""
    await process.until("\n\n  curl")
    await process.until("'\n")
    found = re.match(r"aheadless serves (http://127\.0\.0\.1:\d+)\n", process.out)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_a_signal(number):
    """The key is the environment's and is not shown; a signal ends it, and that is no failure."""
    async with running(*SERVE) as process:
        url = await address(process)
        asked = await aheadless("send", "Hello there", "--url", url)
        process.process.send_signal(number)
        ended = await process.ended()

    assert (asked.code, asked.out) == (0, "Hello there\n")
    assert ended.code == 0
    assert "$AHEADLESS_API_KEY" in ended.out
    assert ended.err == "aheadless: ending, once the replies that are being written are finished\n"


async def test_a_key_that_was_made():
    """It is printed with a line that works as it stands, and works for a client."""
    async with running(*SERVE, AHEADLESS_API_KEY="") as process:
        url = await address(process)
        made = re.search(r"This key was made for this run, .*: (\S{24,})\n", process.out)
        assert made is not None
        asked = await aheadless("send", "Hi", "--url", url, AHEADLESS_API_KEY=made.group(1))
        command = shlex.split(process.out.partition("  curl")[2].replace("\\\n", ""))

    assert (asked.code, asked.out) == (0, "Hi\n")
    assert command[:2] == ["-N", f"{url}/v1/chat/stream"]
    assert f"x-api-key: {made.group(1)}" in command


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_the_curl_line():
    """It can be pasted into a shell."""
    async with running(*SERVE, AHEADLESS_API_KEY="") as process:
        await address(process)
        line = "curl --max-time 10 --silent" + process.out.partition("  curl")[2]
        answer = await aheadless(command=("sh", "-c", line))

    assert answer.code == 0
    assert '{"type":"token","token":"What "}' in answer.out
    assert answer.out.splitlines()[-1].startswith('{"type":"done","message":"What is aheadless?"')


async def test_options_count_before_the_environment(tmp_path):
    """Keys from files, a database on disk, a rate limit; what is left out comes from the environment."""
    key, admin_key = "key-from-a-file-0123456789", "admin-key-from-a-file-0123"
    (tmp_path / "key").write_text(key + "\n")
    (tmp_path / "admin").write_text(admin_key)
    options = (
        *("--api-key-file", str(tmp_path / "key"), "--admin-key-file", str(tmp_path / "admin")),
        *("--database", str(tmp_path / "chat.db"), "--rate-limit", "2/60", "--trusted-proxies", "0"),
        *("--cors-origin", "https://a.example", "--cors-origin", "https://b.example", "--production"),
    )

    async with running(
        "serve",
        *options,
        AHEADLESS_PORT="0",
        AHEADLESS_MAX_REPLIES="5",
        AHEADLESS_ENGINE="echo",
        AHEADLESS_DATABASE="/dev/null/no.db",
    ) as process:
        url = await address(process)
        codes = [
            (await aheadless("send", "Hi", "--max-wait", "0", "--url", url, AHEADLESS_API_KEY=key)).code
            for _ in range(3)
        ]
        async with ChatClient(url, api_key=key, admin_key=admin_key) as client:
            conversations = await client.admin.conversations()
        process.process.send_signal(signal.SIGTERM)
        ended = await process.ended()

    assert codes == [0, 0, 6]
    assert conversations.total == 2
    assert (tmp_path / "chat.db").exists()
    assert not {key, admin_key, KEY} & set(re.split(r"[\s:\"]", ended.out + ended.err))


async def test_the_address_is_taken():
    """One line says so; the exit code is that of a wrong setting."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]

        ended = await aheadless("serve", "--port", str(port), "--engine", "echo")

    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"aheadless: cannot listen on 127.0.0.1:{port}: Address already in use; try another --port; "
        "see aheadless --help\n"
    )


@pytest.mark.parametrize(
    ("options", "variables", "code", "said"),
    [
        (["--host", "host.invalid"], {}, 2, "try another --host"),
        (["--host", "192.0.2.1"], {}, 2, "cannot listen on 192.0.2.1:0: "),
        (["--answers-folder", "/does/not/exist"], {}, 2, "does not exist"),
        (["--engine", "openai"], {}, 2, "model"),
        (["--cors-origin", "example.org"], {}, 2, "is no origin"),
        ([], {"AHEADLESS_API_KEY": "short"}, 2, "at least 24 characters"),
        ([], {"AHEADLESS_MAX_REPLIES": "many"}, 2, "AHEADLESS_MAX_REPLIES"),
        (["--database", "/dev/null/chat.db"], {}, 7, "database"),
    ],
)
async def test_settings_that_cannot_work(options, variables, code, said):
    """They end it before it serves."""
    ended = await aheadless("serve", "--port", "0", *options, **variables)

    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


async def test_a_reply_that_is_being_written_is_finished(tmp_path):
    """SIGTERM lets it be written to its end; a client gets `done`."""
    (tmp_path / "slow.md").write_text("# Slow\n\n" + "slow word " * 20)
    code = (
        "import sys, aheadless.cli.commands as c; from aheadless.server import ServerSettings as S;"
        f"sys.exit(c.serve(S(port=0, api_key={KEY!r}, answers_folder={str(tmp_path)!r}, answers_delay=0.03)))"
    )

    async with running(command=(sys.executable, "-W", "error", "-c", code)) as server:
        url = await address(server)
        async with running("send", "slow?", "--url", url) as client:
            await client.until("slow")
            server.process.send_signal(signal.SIGTERM)
            answered = await client.ended()
        ended = await server.ended()

    assert (answered.code, answered.err) == (0, "")
    assert answered.out.count("slow word") == 20
    assert ended.code == 0


async def test_a_second_signal_does_not_wait(tmp_path):
    """Whoever insists gets out at once."""
    (tmp_path / "slow.md").write_text("# Slow\n\n" + "slow word " * 1000)
    code = (
        "import sys, aheadless.cli.commands as c; from aheadless.server import ServerSettings as S;"
        f"sys.exit(c.serve(S(port=0, api_key={KEY!r}, answers_folder={str(tmp_path)!r}, answers_delay=0.5,"
        "shutdown_timeout=60)))"
    )

    async with running(command=(sys.executable, "-W", "error", "-c", code)) as server:
        url = await address(server)
        async with running("send", "slow?", "--url", url) as client:
            await client.until("slow")
            server.process.send_signal(signal.SIGINT)
            assert server.process.stderr is not None
            await server.process.stderr.readline()
            server.process.send_signal(signal.SIGINT)
            ended = await server.ended()
            answered = await client.ended()

    assert (ended.code, ended.err.count("\n")) == (130, 1)
    assert "ended by SIGINT" in ended.err
    assert answered.code == 8


async def test_nobody_reads_the_introduction():
    """A server whose stdout is closed ends like any command."""
    async with running(*SERVE) as process:
        process.close_stdout()
        ended = await process.ended()

    assert (ended.code, ended.err) == (141, "")


async def test_an_option_makes_up_for_a_broken_variable():
    """What the environment says of the same setting is not even looked at."""
    async with running(*SERVE, AHEADLESS_PORT="many") as process:
        assert await address(process)
        process.process.send_signal(signal.SIGTERM)
        assert (await process.ended()).code == 0
