"""The commands and their options. What they do is loaded when they are called, so that `--help` is fast."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter

from aheadless._version import __version__
from aheadless.cli.output import EXIT_CODES, ExitCode, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aheadless import ChatClient

__all__ = ["app", "run_app"]

app = App(
    name="aheadless",
    version=__version__,
    help="Talk to a Headless chat API, or run one.\n\n"
    "The server and its key come from AHEADLESS_BASE_URL and AHEADLESS_API_KEY (or WIDGET_API_KEY).\n\n"
    f"Exit codes: {EXIT_CODES}.",
)


@Parameter(name="*")
@dataclass(frozen=True)
class Connection:
    """Where the server is."""

    url: str | None = None
    "The server's base URL; AHEADLESS_BASE_URL if left out."

    api_key_file: Path | None = None
    "A file that holds the key; AHEADLESS_API_KEY if left out. (A key among the arguments could be read by others.)"

    timeout: float | None = None
    "Seconds to wait for the first token, and between two events; 60 if left out."

    legacy_auth: bool = False
    "Send the key in the old header, x-widget-api-key."

    def client(self) -> ChatClient:
        """Return a client for these options."""
        from aheadless import ChatClient, ConfigurationError, Timeouts  # noqa: PLC0415

        key = None
        if self.api_key_file is not None:
            try:
                key = self.api_key_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ConfigurationError(f"the key file {self.api_key_file} cannot be read: {exc}") from None
        timeouts = Timeouts() if self.timeout is None else Timeouts(first_token=self.timeout, idle=self.timeout)
        return ChatClient(self.url, api_key=key, timeouts=timeouts, legacy_auth=self.legacy_auth)


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        code: object = app(list(arguments), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as exc:
        print("aheadless:", visible(" ".join(str(exc).split())), file=sys.stderr)
        return ExitCode.USAGE
    return code if isinstance(code, int) else ExitCode.OK


@app.command
def send(
    text: str,
    *,
    session: str | None = None,
    json: bool = False,
    ndjson: bool = False,
    no_stream: bool = False,
    raw: bool = False,
    connection: Connection = Connection(),  # noqa: B008 - frozen
) -> int:
    """Send one message and write the answer to stdout.

    Parameters
    ----------
    text
        The message; `-` reads it from stdin.
    session
        The session id; without one the message begins a conversation of its own.
    json
        Write one JSON object when the answer is complete.
    ndjson
        Write the events, a JSON object a line, as they come.
    no_stream
        Ask for the answer in one piece (POST /v1/chat).
    raw
        Let control characters of the answer through as they are.
    """
    from aheadless.cli import commands  # noqa: PLC0415

    form: commands.Form = "json" if json else "ndjson" if ndjson else "raw" if raw else "text"
    return commands.send(connection, _message(text), session, form=form, stream=not no_stream)


def _message(text: str) -> str:
    if text != "-":
        return text
    # What a person or a program puts last is a newline that is not meant.
    return sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")


@app.command
def chat(*, session: str | None = None, connection: Connection = Connection()) -> int:  # noqa: B008
    """Chat in the terminal; tokens appear as they arrive, Ctrl-C stops a reply.

    Parameters
    ----------
    session
        The session id, to go on with a conversation.
    """
    from aheadless.cli import commands  # noqa: PLC0415

    return commands.chat(connection, session)


@app.command
def health(*, connection: Connection = Connection()) -> int:  # noqa: B008
    """Ask the server whether it is well."""
    from aheadless.cli import commands  # noqa: PLC0415

    return commands.health(connection)


@app.command
def demo(*, once: bool = False) -> int:
    """Run a server and a chat in one process: no key, no network, nothing to set up.

    It answers questions about aheadless from its documentation.

    Parameters
    ----------
    once
        Ask three questions, show the answers and end; so it does without a terminal, too.
    """
    from aheadless.cli import commands  # noqa: PLC0415

    return commands.demo(once=once or not (sys.stdin.isatty() and sys.stdout.isatty()))


@app.command
def serve(
    *,
    host: str | None = None,
    port: int | None = None,
    database: Path | None = None,
    engine: str | None = None,
    answers_folder: Path | None = None,
    openai_base_url: str | None = None,
    openai_model: str | None = None,
    rate_limit: str | None = None,
    trusted_proxies: int | None = None,
    cors_origin: tuple[str, ...] | None = None,
    production: bool | None = None,
) -> int:
    """Run the API's server until SIGINT or SIGTERM; running replies are finished and stored first.

    What is left out comes from the environment: AHEADLESS_HOST, AHEADLESS_PORT and so on. Keys come from there alone:
    AHEADLESS_API_KEY, AHEADLESS_ADMIN_KEY, AHEADLESS_OPENAI_API_KEY. On loopback without a key one is made and printed.

    Parameters
    ----------
    host
        The address to listen on [127.0.0.1].
    port
        The port; 0 takes a free one [4000].
    database
        The SQLite file of the conversations; without one they are kept in memory.
    engine
        Who answers: answers, openai or echo [answers].
    answers_folder
        The Markdown to answer from; the documentation of aheadless if left out.
    openai_base_url
        An OpenAI-compatible API, as in http://127.0.0.1:11434/v1.
    openai_model
        The model to ask for.
    rate_limit
        Requests in a window for each address, as in 30/60; off: none.
    trusted_proxies
        How many proxies of yours stand in front of this server.
    cors_origin
        An origin whose pages may call the API; may be given several times.
    production
        Add HSTS, tell less about refused requests.
    """
    from aheadless.cli import commands  # noqa: PLC0415

    if rate_limit is not None:
        os.environ["AHEADLESS_RATE_LIMIT"] = rate_limit
    return commands.serve(
        host=host,
        port=port,
        database=None if database is None else str(database),
        engine=engine,
        answers_folder=answers_folder,
        openai_base_url=openai_base_url,
        openai_model=openai_model,
        trusted_proxies=trusted_proxies,
        cors_origins=cors_origin,
        production=production,
    )
