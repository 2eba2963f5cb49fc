"""The program as such: help, version, wrong use, and the extra that is not installed."""

from __future__ import annotations

import sys

import pytest

from aheadless import __version__, cli
from aheadless.cli.output import OVERVIEW
from tests.cli.support import KEY, aheadless, posix_only, running

WITHOUT_EXTRA = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Missing())
from aheadless.cli import main
sys.exit(main())
"""

INTERRUPTED = """
import signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
import aheadless
sys.meta_path.insert(0, Interrupt())
from aheadless.cli import main
sys.exit(main())
"""


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process."""
    monkeypatch.setattr(sys, "argv", ["aheadless", *arguments])
    return cli.main()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
async def test_overview(arguments):
    """Without a command it tells which there are."""
    ended = await aheadless(*arguments)

    assert (ended.code, ended.out, ended.err) == (0, OVERVIEW, "")


def test_overview_and_version_in_this_process(monkeypatch, capsys):
    """Both are plain text on stdout."""
    assert main(monkeypatch, "--help") == 0
    assert main(monkeypatch, "--version") == 0
    assert capsys.readouterr() == (f"{OVERVIEW}{__version__}\n", "")


async def test_help_is_fast():
    """The overview loads neither the argument parser nor rich."""
    code = "import sys, aheadless.cli as c; c.main(); print({'cyclopts', 'rich'} & set(sys.modules))"

    ended = await aheadless("--help", command=(sys.executable, "-c", code))

    assert ended.out == f"{OVERVIEW}set()\n"


@pytest.mark.parametrize("command", ["chat", "conversations", "demo", "doctor", "health", "send", "serve", "sessions"])
def test_help_of_a_command(command, monkeypatch, capsys):
    """Each command lists its options, in words."""
    assert main(monkeypatch, command, "--help") == 0

    out = capsys.readouterr().out
    assert out.startswith(f"Usage: aheadless {command}")
    assert "--no-no" not in out


@posix_only
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["send", "--help"]])
async def test_nobody_reads_the_help(arguments):
    """Quiet, and with the code that all commands have for it."""
    async with running(*arguments) as process:
        process.close_stdout()
        ended = await process.ended()

    assert (ended.code, ended.err) == (141, "")


@posix_only
@pytest.mark.parametrize("module", ["cyclopts", "aheadless.cli.app", "aheadless.server"])
async def test_ctrl_c_while_it_starts(module):
    """One line, whatever of the command's own is being loaded at the moment."""
    code = INTERRUPTED.replace("{module!r}", repr(module))

    ended = await aheadless(
        "send", "hi", "--url", "http://127.0.0.1:1", command=(sys.executable, "-W", "error", "-c", code)
    )

    assert (ended.code, ended.out, ended.err) == (130, "", "aheadless: ended by SIGINT\n")


@pytest.mark.parametrize("blocked", [{"cyclopts"}, {"rich"}, {"cyclopts", "rich"}])
@pytest.mark.parametrize("arguments", [[], ["send", "hi"]])
async def test_without_the_extra(blocked, arguments):
    """One line says how to get it."""
    code = WITHOUT_EXTRA.replace("{blocked!r}", repr(blocked))

    ended = await aheadless(*arguments, command=(sys.executable, "-W", "error", "-c", code))

    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.count("\n") == 1
    assert ended.err.endswith(' not installed; run: pip install "aheadless[cli]"\n')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], 'Unknown command "bogus"'),
        ([KEY], "Unknown command"),
        (["send", "hi", KEY], "too many arguments; a message of several words needs quotes"),
        (["serve", "short-key"], "too many arguments"),
        (["send", "hi", "--timeout", KEY], "Invalid value for --timeout"),
        (["serve", "--engine", KEY], "Choose from"),
        (["send", "hi", "--url", f"http://127.0.0.1:1/?key={KEY}"], "no query"),
        (["send"], "requires an argument"),
        (["send", "hi", f"--api-key={KEY}"], "Did you mean --api-key-file"),
        (["send", "hi", f"--key={KEY}"], "Unknown option"),
        (["send", "--jsn"], "Did you mean --json"),
        (["send", "hi", "--json", "--ndjson"], "exclude each other"),
        (["send", "hi", "--no-stream", "--ndjson"], "--no-stream"),
        (["send", "hi"], "--url or set AHEADLESS_BASE_URL"),
        (["send", "hi", "--url", "ftp://x"], "http://"),
        (["send", "hi", "--url", "http://example.org"], "--allow-insecure-http"),
        (["send", "hi", "--url", "http://127.0.0.1:1", "--timeout", "0"], "positive"),
        (["doctor", "--url", "http://127.0.0.1:1", "--timeout", "0"], "positive"),
        (["send", "hi", "--url", "http://127.0.0.1:1", "--api-key-file", KEY], "--api-key-file cannot be read"),
        (["send", "", "--url", "http://127.0.0.1:1"], "message is empty"),
        (["send", "x" * 4001, "--url", "http://127.0.0.1:1"], "4001 UTF-16 units"),
        (["send", "hi", "--url", "http://127.0.0.1:1", "--session", "é"], "sessionId"),
        (["health", "--port", "1"], "Unknown option"),
        (["serve", "--port", "99999"], "at most 65535"),
        (["serve", "--rate-limit", "0/60"], "--rate-limit must be as in 30/60"),
        (["serve", "--host", "0.0.0.0", "--api-key-file", "/dev/null"], "api_key is empty"),
        (["serve", "--engine", "magic"], "--engine"),
    ],
)
def test_wrong_use(arguments, said, monkeypatch, capsys):
    """One line on stderr names what is wrong, and shows no key."""
    monkeypatch.setenv("AHEADLESS_API_KEY", KEY)

    code = main(monkeypatch, *arguments)

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("aheadless: ")
    assert err.count("\n") == 1
    assert KEY not in err
    assert "short-key" not in err


def test_without_a_key(monkeypatch, capsys):
    """A server on another address than loopback, and a client, need one."""
    assert main(monkeypatch, "send", "hi", "--url", "http://127.0.0.1:1") == 2
    assert "pass --api-key-file or set AHEADLESS_API_KEY" in capsys.readouterr().err
    assert main(monkeypatch, "serve", "--host", "192.0.2.1") == 2
    assert "needs an api_key" in capsys.readouterr().err


def test_a_key_file_that_holds_no_key(monkeypatch, capsys, tmp_path):
    """Bytes that are no text are not shown."""
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe")

    assert main(monkeypatch, "health", "--url", "http://127.0.0.1:1", "--api-key-file", str(file)) == 2
    assert "holds something else than a key" in capsys.readouterr().err
