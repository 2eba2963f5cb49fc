"""What the commands in the docs' bash blocks are when the tests run them.

The blocks run in a real bash whose PATH has one folder: a link to this program for each command below. What is not
listed is "command not found", and the block's test fails until it is decided what is to be done with it.

Some really run: `aheadless`, `uvicorn`, `python3`, `sqlite3`. The others would need a network, minutes, or root: of
them it is checked that what they name is there.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PYTHON: Final = (sys.executable, "-W", "error")

# Where the pages say that the server is; in the environment's TEST_SERVER is where it is.
SERVER: Final = "http://127.0.0.1:4000"
SERVERS: Final = {SERVER, "https://chat.example.org"}


def make_folder(folder: Path) -> None:
    """Make a folder of the commands."""
    folder.mkdir(parents=True)
    program = folder / ".stand-in"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.stand_ins import main\nmain(*sys.argv)\n",
        "utf-8",
    )
    program.chmod(0o755)
    for name in COMMANDS:
        (folder / name).symlink_to(program.name)


# --- what really runs -------------------------------------------------------------------------------------------------


def aheadless(*arguments: str) -> None:
    """The command, on the server of the test. `serve` is ended when it listens."""
    match arguments:
        case ("serve", *_):
            serve("-m", "aheadless", *arguments, says="aheadless serves")
        case ("chat", "--full", *_):
            pass  # it needs a terminal: tests/cli/test_full.py runs it, and test_docs.py knows its options
        case _:
            run("-m", "aheadless", *map(moved, arguments))


def uvicorn(*arguments: str) -> None:
    """The back end of an example: it is ended when it listens."""
    serve("-m", "uvicorn", *arguments, "--port", "0", says="running on")


def environment() -> dict[str, str]:
    """Return what the block has exported, with the server of the test in the place of the page's."""
    return {**{name: moved(value) for name, value in os.environ.items()}, "AHEADLESS_PORT": "0"}


def moved(value: str) -> str:
    """Return the address of the test's server for that of a page's, and anything else as it is."""
    return os.environ["TEST_SERVER"] if value in SERVERS else value


def run(*arguments: str) -> None:
    """Run a program of Python's, which must end well."""
    ended = subprocess.run((*PYTHON, *arguments), check=False, env=environment(), stdin=subprocess.DEVNULL)
    assert ended.returncode == 0, f"{arguments} ended with {ended.returncode}"


def serve(*arguments: str, says: str) -> None:
    """Run a server until it says that it is one; it must then end well."""
    server = subprocess.Popen(
        (*PYTHON, *arguments),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    said = ""
    while says not in (line := server.stdout.readline()):
        assert line, f"it ended: {said}"
        said += line
    server.terminate()
    said, _ = server.communicate(timeout=20)
    assert server.returncode in {0, -15}, said


def python(*arguments: str) -> None:
    """This Python; of the modules that would fetch something only their being there is checked."""
    match arguments:
        case ("-m", "venv", folder):
            assert folder == ".venv"
        case ("-m", "pip", *rest):
            pip(*rest)
        case ("-m", "tests.ai_sdk"):
            assert (ROOT / "tests" / "ai_sdk" / "__main__.py").exists()
        case ("-m", module) if module.startswith("benchmarks."):
            # It would take minutes, and packages of its own.
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
        case ("docs/examples/discord_bot.py",):
            assert "DISCORD_TOKEN" in os.environ  # it would call Discord: tests/bridges/test_discord.py runs it
        case _:
            run(*arguments)


def sqlite(database: str, statement: str) -> None:
    """SQLite's own shell, which not every machine has."""
    assert Path(database).exists(), f"there is no {database}"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(statement)


# --- what is only looked at -------------------------------------------------------------------------------------------


def pip(*arguments: str) -> None:
    """It would fetch packages: what is installed must be this project, its extras and groups, or a package we test with."""
    assert arguments[0] == "install", arguments
    wanted = iter(arguments[1:])
    for argument in wanted:
        match argument:
            case "--upgrade":
                assert next(wanted) == "pip"
            case "--group":
                assert next(wanted) in PROJECT["dependency-groups"]
            case "-q" | "-e" | "nox":
                pass  # nox is what runs this, from another environment
            case _ if found := re.fullmatch(r"\.(?:\[([\w,]+)\])?", argument):
                extras = found[1].split(",") if found[1] else []
                assert {*extras} <= {*PROJECT["project"]["optional-dependencies"]}, argument
            case _:
                metadata.version(argument)  # raises PackageNotFoundError


def nox(*arguments: str) -> None:
    """It would take minutes: the session must be there."""
    sessions = re.findall(r"^@nox\.session.*\ndef (\w+)", (ROOT / "noxfile.py").read_text("utf-8"), re.MULTILINE)
    assert not arguments or (arguments[0] == "-s" and arguments[1] in sessions), arguments


def pytest(*arguments: str) -> None:
    """It would run these tests: the files that are named must be there."""
    for argument in arguments:
        assert argument.startswith("-") or (ROOT / argument).exists(), argument


def sh(script: str) -> None:
    """It would install packages as root: the script must be there, and one that a shell can read."""
    subprocess.run(["/bin/sh", "-n", ROOT / script], check=True)


def curl(*arguments: str) -> NoReturn:
    """It would need the host of the example: the block is run in tests/test_nginx.py, with that host on loopback."""
    raise AssertionError(f"a curl line is to be run by a test of its own: {arguments}")


COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "aheadless": aheadless,
    "curl": curl,
    "nox": nox,
    "pip": pip,
    "pytest": pytest,
    "python": python,
    "python3": python,
    "sh": sh,
    "sqlite3": sqlite,
    "uvicorn": uvicorn,
}


def main(name: str, *arguments: str) -> None:
    """Be the command of a name."""
    COMMANDS[Path(name).name](*arguments)
