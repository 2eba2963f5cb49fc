"""What people and scripts see: safe text, one line for an error, an exit code for its kind. No I/O.

Text that came from a server is never written as it is: :func:`visible` shows what could command a terminal, on a pipe
as well, because what stands in a file or a log is shown on a terminal some day. `send --raw` is the way around.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from aheadless.exceptions import (
    AheadlessError,
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    ConnectionLostError,
    Delivery,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    RateLimitError,
    RedirectError,
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    StoreError,
    StreamInterruptedError,
)

__all__ = [
    "OVERVIEW",
    "ExitCode",
    "error_line",
    "exit_code",
    "explain",
    "in_options",
    "one_line",
    "visible",
    "visible_json",
]


class ExitCode(enum.IntEnum):
    """Why the command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    CONNECT = 3
    AUTHENTICATION = 4
    REJECTED = 5
    RATE_LIMIT = 6
    SERVER = 7
    INTERRUPTED = 8
    TIMEOUT = 9
    SIGINT = 130
    SIGPIPE = 141
    SIGTERM = 143


# A test holds the commands against the app's.
OVERVIEW: Final = """\
Usage: aheadless COMMAND

Talk to a Headless chat API, or run one.

Commands:
  chat           Chat in the terminal; tokens appear as they arrive, Ctrl-C stops a reply.
  conversations  List the server's newest conversations, or show the messages of one.
  demo           Run a server and a chat in one process: no key, no network, nothing to set up.
  doctor         Check what lies between this machine and a server, and say what to do.
  health         Ask the server whether it is well, and how long it takes to say so.
  send           Send one message and write the answer to stdout.
  serve          Run the API's server until SIGINT or SIGTERM.
  sessions       List the sessions in a SQLite file, the last saved first.

  aheadless COMMAND --help lists the options of a command; aheadless --version shows the version.

Environment:
  AHEADLESS_BASE_URL   the server, as in http://127.0.0.1:4000; or --url
  AHEADLESS_API_KEY    its key (or WIDGET_API_KEY); or --api-key-file
  AHEADLESS_ADMIN_KEY  the key of its conversations (or ADMIN_API_KEY); or --admin-key-file
  NO_COLOR             if set, nothing is coloured

Exit codes:
  0    all is well
  1    failed in another way, as when the disk is full
  2    wrong use: an option, a setting, the message; no key
  3    no connection to the server
  4    the key is refused
  5    the request is refused, or there is no such API at this URL
  6    too many requests
  7    the server failed, or does not speak this API
  8    the answer broke off
  9    timed out
  130  ended by SIGINT (Ctrl-C)
  141  whoever read the output has closed it
  143  ended by SIGTERM
"""

# The first class that fits counts. The text is what to do next.
_KINDS: Final[tuple[tuple[tuple[type[AheadlessError], ...], ExitCode, str], ...]] = (
    ((ConfigurationError,), ExitCode.USAGE, "see aheadless --help"),
    ((InvalidRequestError,), ExitCode.USAGE, ""),
    ((ConnectError,), ExitCode.CONNECT, "is the server running, and is the URL right?"),
    ((AuthenticationError,), ExitCode.AUTHENTICATION, "set AHEADLESS_API_KEY to the server's key"),
    ((RateLimitError,), ExitCode.RATE_LIMIT, "wait a minute, then send it again"),
    ((RedirectError, NotFoundError), ExitCode.REJECTED, "check the URL"),
    ((RejectedError,), ExitCode.REJECTED, "change the message or the session id"),
    ((ServerError, ReplyFailedError, StoreError), ExitCode.SERVER, "look at the server's log"),
    ((RequestTimeoutError,), ExitCode.TIMEOUT, "try a longer --timeout"),
    ((StreamInterruptedError, ConnectionLostError), ExitCode.INTERRUPTED, "look at the server and the network"),
    ((ProtocolError, StatusError), ExitCode.SERVER, "is this the URL of a Headless chat API?"),
)

_BECAME: Final = {
    Delivery.UNKNOWN: "the message may have been stored",
    Delivery.ACCEPTED: "the message was stored",
}

# What the library calls by its parameters' names, people know by the options'.
_OPTIONS: Final = {
    "allow_insecure_http=True": "--allow-insecure-http",
    "pass api_key": "pass --api-key-file",
    "pass admin_key": "pass --admin-key-file",
}

# Control characters but for tab and newline, those that turn the direction of the text around, and halves of surrogate
# pairs, which cannot be written at all.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with every character that could command a terminal made visible: ESC becomes ␛."""
    return _UNSAFE.sub(_picture, text)


def visible_json(text: str) -> str:
    """Return JSON text that says the same, with those characters escaped: JSON itself lets most of them stand."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """Return the text visible and on one line."""
    return visible(" ".join(text.split()))


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:  # noqa: PLR2004 - U+2400 to U+241F are the pictures of U+0000 to U+001F
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else _escape(match)  # noqa: PLR2004


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def exit_code(error: AheadlessError) -> ExitCode:
    """Return the exit code for a kind of error."""
    return next((code for kinds, code, _ in _KINDS if isinstance(error, kinds)), ExitCode.FAILED)


def in_options(error: AheadlessError) -> str:
    """Return the error's own message, with options where the library names its parameters."""
    message = str(error)
    if isinstance(error, ConfigurationError):
        for name, option in _OPTIONS.items():
            message = message.replace(name, option)
    return message


def error_line(error: AheadlessError) -> str:
    """Return one line for stderr: what :func:`explain` returns, and who says it."""
    return f"aheadless: {explain(error)}"


def explain(error: AheadlessError) -> str:
    """Return what went wrong, what became of the message and the answer, what to do; on one line."""
    parts = [in_options(error), _BECAME.get(error.delivery, "")]
    if error.partial:
        parts.append("the answer is not complete")
    parts.append(next((hint for kinds, _, hint in _KINDS if isinstance(error, kinds)), ""))
    return "; ".join(one_line(part) for part in parts if part)
