"""The commands and their options. What they do is loaded when they are called, so that `--help` is fast."""

from __future__ import annotations

import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - cyclopts reads the annotations
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from aheadless.cli import loading
from aheadless.cli.output import ExitCode, one_line
from aheadless.cli.process import complain, is_terminal
from aheadless.exceptions import ConfigurationError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aheadless import ChatClient, Waiting
    from aheadless._core import OnRetry, OnWait
    from aheadless._store import SessionStore
    from aheadless.cli import commands

__all__ = ["app", "run_app"]

# More than any message: 4000 UTF-16 units (protocol.md §1) are at most 12,000 bytes, and a line's end.
MAX_STDIN = 16_000

# A lone "-" looks like an option to cyclopts, so it reads this instead, which no argument of a process can be.
STDIN = "\0"

# A longer argument is not repeated in a message about it: it may be a key.
MAX_SHOWN = 12

# A key is one line.
MAX_KEY_FILE = 4096

app: App = App(
    name="aheadless",
    version_flags=[],
    suppress_keyboard_interrupt=False,
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=False),
)


@Parameter(name="*")
@dataclass(frozen=True)
class Server:
    """Where the server is, for who has its key."""

    url: str | None = None
    "The server's base URL; AHEADLESS_BASE_URL if left out."

    api_key_file: Path | None = None
    "A file that holds the key; AHEADLESS_API_KEY if left out. (A key among the arguments could be read by others.)"

    legacy_auth: bool = False
    "Send the key in the old header, x-widget-api-key."

    allow_insecure_http: bool = False
    "Let the key go over http:// to a public host."


@Parameter(name="*")
@dataclass(frozen=True)
class Connection(Server):
    """Where the server is, and how long to wait for it."""

    timeout: float | None = None
    "Seconds to wait for the first token and between two events [60], or for a whole answer with --no-stream [120]."

    max_wait: float | None = None
    "Seconds to wait at the most while the server says that there are too many requests; 75 if left out, 0: not at all."

    def client(
        self,
        *,
        store: SessionStore | None = None,
        on_wait: OnWait | None = None,
        on_retry: OnRetry | None = None,
    ) -> ChatClient:
        """Return a client for these options; unless somebody else is told of its waits, they are on stderr."""
        from aheadless import ChatClient, Timeouts  # noqa: PLC0415
        from aheadless._client import MAX_WAIT  # noqa: PLC0415

        # What a warning would tell of a turn, its command tells in its own words.
        logging.getLogger("aheadless").addHandler(logging.NullHandler())
        _check_url(self.url)
        seconds = self.timeout
        return ChatClient(
            self.url,
            api_key=_read_key(self.api_key_file, "--api-key-file"),
            timeouts=None if seconds is None else Timeouts(first_token=seconds, idle=seconds, send=seconds),
            max_wait=MAX_WAIT if self.max_wait is None else self.max_wait,
            store=store,
            on_wait=_tell if on_wait is None else on_wait,
            on_retry=on_retry,
            legacy_auth=self.legacy_auth,
            allow_insecure_http=self.allow_insecure_http,
        )


def _tell(waiting: Waiting) -> None:
    complain(f"aheadless: too many requests; waiting {waiting.longest:.0f} s at the most")


@Parameter(name="*")
@dataclass(frozen=True)
class AdminConnection:
    """Where the server is, for who may read its conversations."""

    url: str | None = None
    "The server's base URL; AHEADLESS_BASE_URL if left out."

    admin_key_file: Path | None = None
    "A file that holds the admin key; AHEADLESS_ADMIN_KEY (or ADMIN_API_KEY) if left out."

    timeout: float | None = None
    "Seconds to wait for the answer [120]."

    allow_insecure_http: bool = False
    "Let the key go over http:// to a public host."

    def client(self) -> ChatClient:
        """Return a client for these options."""
        from aheadless import ChatClient, Timeouts  # noqa: PLC0415

        _check_url(self.url)
        return ChatClient(
            self.url,
            admin_key=_read_key(self.admin_key_file, "--admin-key-file"),
            timeouts=None if self.timeout is None else Timeouts(send=self.timeout),
            allow_insecure_http=self.allow_insecure_http,
        )


def _check_url(url: str | None) -> None:
    if url is None and not os.environ.get("AHEADLESS_BASE_URL"):
        raise ConfigurationError("which server? Pass --url or set AHEADLESS_BASE_URL")


def _read_key(path: Path | None, option: str) -> str | None:
    if path is None:
        return None
    # The path is not repeated: it is the key itself if somebody took this option for another.
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_FILE).decode("ascii").strip()
    except OSError as exc:
        raise ConfigurationError(f"the file of {option} cannot be read: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the file of {option} holds something else than a key") from None


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        tokens = [STDIN if argument == "-" else argument for argument in arguments]
        code: object = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        complain(f"aheadless: {_problem(exc, arguments)} See aheadless {_command_of(arguments)}--help")
        return ExitCode.USAGE
    except SystemExit:
        # So rich, which writes the help, ends a program whose output nobody reads.
        raise BrokenPipeError from None
    return code if isinstance(code, int) else ExitCode.OK


def _problem(error: CycloptsError, arguments: Sequence[str]) -> str:
    """Return what is wrong, without what may be a key in a wrong place."""
    if isinstance(error, UnusedCliTokensError):
        return "There are too many arguments; a message of several words needs quotes."
    problem = str(error)
    for argument in arguments:
        value = argument.partition("=")[2] if argument.startswith("-") else argument
        if len(value) > MAX_SHOWN:
            problem = problem.replace(value, "…")
    # Cut at the "=": what follows may be a key that was meant for an option of another name.
    return re.sub(r"(--?[\w-]+)=[^\s\"']*", r"\1=…", one_line(problem))


def _command_of(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments[0] in app else ""


@app.command
def send(
    text: str,
    /,
    *,
    session: str | None = None,
    json: bool = False,
    ndjson: bool = False,
    no_stream: bool = False,
    raw: bool = False,
    connection: Connection = Connection(),
) -> int:
    """Send one message and write the answer to stdout.

    The answer comes token by token. Control characters in it are shown as pictures,
    as ␛ for ESC, on a pipe as well.

    Parameters
    ----------
    text
        The message; - reads it from stdin.
    session
        The session id; without one the message begins a conversation of its own.
    json
        Write one JSON object when the answer is complete, or has failed.
    ndjson
        Write the events, a JSON object a line, as they come.
    no_stream
        Ask for the answer in one piece (POST /v1/chat).
    raw
        Let control characters of the answer through as they are.
    """
    with loading():
        from aheadless.cli import commands  # noqa: PLC0415

    if json + ndjson + raw > 1:
        raise ConfigurationError("--json, --ndjson and --raw exclude each other")
    if ndjson and no_stream:
        raise ConfigurationError("--ndjson shows a stream; it does not go with --no-stream")
    form: commands.Form = "json" if json else "ndjson" if ndjson else "raw" if raw else "text"
    return commands.send(connection.client, _message(text), session, form=form, stream=not no_stream)


def _message(text: str) -> str:
    if text != STDIN:
        return text
    data = sys.stdin.buffer.read(MAX_STDIN + 1)
    if len(data) > MAX_STDIN:
        raise InvalidRequestError(f"stdin holds more than {MAX_STDIN} bytes, more than a message may have")
    try:
        # What a person or a program puts last is a newline that is not meant.
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"stdin is not UTF-8 text: byte {exc.start} is wrong") from None


@app.command
def chat(
    *,
    session: str | None = None,
    full: bool = False,
    store: Path | None = None,
    connection: Connection = Connection(),
) -> int:
    """Chat in the terminal; tokens appear as they arrive, Ctrl-C stops a reply.

    Parameters
    ----------
    session
        The session id, to go on with a conversation.
    full
        Take the whole screen: several sessions, Markdown, F1 for the keys. Needs the extra tui.
    store
        An SQLite file that keeps the sessions of --full; without one they end with the program.
    """
    if full:
        return _full_chat(connection, session, store)
    if store is not None:
        raise ConfigurationError("--store goes with --full")
    with loading():
        from aheadless.cli import commands  # noqa: PLC0415

    return commands.chat(connection.client, session)


def _full_chat(connection: Connection, session: str | None, store: Path | None) -> int:
    try:
        with loading():
            from aheadless.cli.full import program  # noqa: PLC0415
    except ImportError as exc:
        complain(f"aheadless: {exc}")
        return ExitCode.USAGE
    return program.full(connection.client, session_id=session, store=store)


@app.command
def doctor(*, no_message: bool = False, json: bool = False, timeout: float = 60, server: Server = Server()) -> int:
    """Check what lies between this machine and a server, and say what to do.

    One line for each check: ok, warn, fail or skipped; what was found; what to do.
    It asks for the server's health twice, and sends one short message in a session
    of its own, which the rate limit counts and the model answers.

    Parameters
    ----------
    no_message
        Send no message: the model is not asked, and how it streams is not checked.
    json
        Write one JSON object at the end.
    timeout
        Seconds to wait for the first token and between two events [60]. The whole reply may take twice as long.
    """
    with loading():
        from aheadless import ChatClient, Retry  # noqa: PLC0415
        from aheadless.cli import doctor as work  # noqa: PLC0415

    logging.getLogger("aheadless").addHandler(logging.NullHandler())
    url = os.environ.get("AHEADLESS_BASE_URL") if server.url is None else server.url
    return work.doctor(
        url,
        lambda timeouts: ChatClient(
            url,
            api_key=_read_key(server.api_key_file, "--api-key-file"),
            timeouts=timeouts,
            retry=Retry(attempts=1),
            max_wait=0,
            legacy_auth=server.legacy_auth,
            allow_insecure_http=server.allow_insecure_http,
        ),
        allow_insecure_http=server.allow_insecure_http,
        timeout=timeout,
        with_message=not no_message,
        as_json=json,
    )


@app.command
def health(*, connection: Connection = Connection()) -> int:
    """Ask the server whether it is well, and how long it takes to say so."""
    with loading():
        from aheadless.cli import commands  # noqa: PLC0415

    return commands.health(connection.client)


@app.command
def conversations(
    conversation: str | None = None,
    /,
    *,
    limit: int = 100,
    json: bool = False,
    connection: AdminConnection = AdminConnection(),
) -> int:
    """List the server's newest conversations, or show the messages of one.

    Needs the admin key. Times are UTC. Control characters are shown as pictures.

    Parameters
    ----------
    conversation
        The id of the conversation whose messages to show.
    limit
        How many to list, 1 to 200 [100].
    json
        Write one JSON object.
    """
    from aheadless.cli import history  # noqa: PLC0415

    if conversation is None:
        return history.conversations(connection.client, limit=limit, as_json=json)
    return history.conversation(connection.client, conversation, as_json=json)


@app.command
def sessions(*, store: Path, json: bool = False) -> int:
    """List the sessions in a SQLite file, the last saved first.

    Parameters
    ----------
    store
        The file that was given to SQLiteStore.
    json
        Write one JSON object.
    """
    from aheadless.cli import history  # noqa: PLC0415

    return history.sessions(store, as_json=json)


@app.command
def demo(*, once: bool = False) -> int:
    """Run a server and a chat in one process: no key, no network, nothing to set up.

    It answers questions about aheadless from its documentation.

    Parameters
    ----------
    once
        Ask three questions, show the answers and end; so it does without a terminal, too.
    """
    with loading():
        from aheadless.cli import commands  # noqa: PLC0415

    return commands.demo(once=once or not is_terminal(sys.stdin, sys.stdout))


@app.command
def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    api_key_file: Path | None = None,
    admin_key_file: Path | None = None,
    database: Path | None = None,
    engine: Literal["answers", "openai", "echo"] | None = None,
    answers_folder: Path | None = None,
    openai_base_url: str | None = None,
    openai_model: str | None = None,
    rate_limit: str | None = None,
    trusted_proxies: int | None = None,
    cors_origin: tuple[str, ...] | None = None,
    production: bool | None = None,
) -> int:
    """Run the API's server until SIGINT or SIGTERM.

    Replies that are being written then are finished and stored first; a second
    signal ends it at once.

    What is left out comes from the environment: AHEADLESS_HOST, AHEADLESS_PORT and
    so on; keys from AHEADLESS_API_KEY, AHEADLESS_ADMIN_KEY and
    AHEADLESS_OPENAI_API_KEY. On loopback without a key one is made and printed.

    Parameters
    ----------
    host
        The address to listen on [127.0.0.1].
    port
        The port; 0 takes a free one [4000].
    api_key_file
        A file that holds the key of the chat, of at least 24 characters.
    admin_key_file
        A file that holds the key of the conversations API.
    database
        The SQLite file of the conversations; without one they are kept in memory.
    engine
        Who answers [answers].
    answers_folder
        The Markdown to answer from; the documentation of aheadless if left out.
    openai_base_url
        An OpenAI-compatible API, as in http://127.0.0.1:11434/v1.
    openai_model
        The model to ask for.
    rate_limit
        Requests in a window of seconds for each address, as in 30/60; off: none.
    trusted_proxies
        How many proxies of yours stand in front of this server.
    cors_origin
        An origin whose pages may call the API; may be given several times.
    production
        Add HSTS, tell less about refused requests.
    """
    with loading():
        from aheadless.cli import commands  # noqa: PLC0415
    from aheadless.server.settings import ServerSettings, settings_from_env  # noqa: PLC0415

    given: dict[str, Any] = {
        "host": host,
        "port": port,
        "api_key": _read_key(api_key_file, "--api-key-file"),
        "admin_key": _read_key(admin_key_file, "--admin-key-file"),
        "database": database,
        "engine": engine,
        "answers_folder": answers_folder,
        "openai_base_url": openai_base_url,
        "openai_model": openai_model,
        "trusted_proxies": trusted_proxies,
        "cors_origins": cors_origin,
        "production": production,
    }
    environment = dict(os.environ)
    if rate_limit is not None:
        if not re.fullmatch(r"off|[1-9]\d{0,8}(/[1-9]\d{0,8})?", rate_limit):
            raise ConfigurationError("--rate-limit must be as in 30/60, which is 30 requests in 60 seconds, or off")
        environment["AHEADLESS_RATE_LIMIT"] = rate_limit
    chosen = {name: value for name, value in given.items() if value is not None}
    return commands.serve(ServerSettings(**settings_from_env(environment, without=chosen), **chosen))
