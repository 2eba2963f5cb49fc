"""What people and scripts see: safe text, one line for an error, an exit code for its kind. No I/O."""

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
    RejectedError,
    ReplyFailedError,
    RequestTimeoutError,
    ServerError,
    StatusError,
    StoreError,
    StreamInterruptedError,
)

__all__ = ["EXIT_CODES", "ExitCode", "error_line", "exit_code", "visible"]


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


EXIT_CODES: Final = """\
0 well; 1 failed otherwise; 2 wrong use or settings; 3 no connection; 4 the key is refused; 5 the request is refused;
6 too many requests; 7 the server failed; 8 the answer is not complete; 9 timed out; 130, 141, 143 ended by SIGINT, a
closed pipe, SIGTERM"""

# The first class that fits counts.
_KINDS: Final[tuple[tuple[tuple[type[AheadlessError], ...], ExitCode, str], ...]] = (
    ((ConfigurationError, InvalidRequestError), ExitCode.USAGE, ""),
    ((ConnectError,), ExitCode.CONNECT, "is the server running, and is the URL right?"),
    ((AuthenticationError,), ExitCode.AUTHENTICATION, "set AHEADLESS_API_KEY to the server's key"),
    ((RateLimitError,), ExitCode.RATE_LIMIT, "wait a minute and try again"),
    ((NotFoundError, RejectedError), ExitCode.REJECTED, ""),
    ((ServerError, ReplyFailedError, StoreError), ExitCode.SERVER, ""),
    ((RequestTimeoutError,), ExitCode.TIMEOUT, ""),
    ((StreamInterruptedError, ConnectionLostError), ExitCode.INTERRUPTED, ""),
    ((ProtocolError, StatusError), ExitCode.SERVER, "is this the URL of a Headless chat API?"),
)

# Control characters but for tab and newline, and those that turn the direction of the text around.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with every character that could command a terminal made visible: ESC becomes ␛."""
    return _UNSAFE.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:  # noqa: PLR2004
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"  # noqa: PLR2004


def exit_code(error: AheadlessError) -> ExitCode:
    """Return the exit code for a kind of error."""
    return next((code for kinds, code, _ in _KINDS if isinstance(error, kinds)), ExitCode.FAILED)


def error_line(error: AheadlessError) -> str:
    """Return one line: what went wrong, what became of the message, what to do."""
    hint = next((hint for kinds, _, hint in _KINDS if isinstance(error, kinds)), "")
    told = {
        Delivery.UNKNOWN: "the message may have been stored",
        Delivery.ACCEPTED: "the message was stored; the answer above is not complete"
        if error.partial
        else "the message was stored",
    }.get(error.delivery, "")
    if isinstance(error, ConfigurationError | InvalidRequestError):
        told = ""
    return "aheadless: " + "; ".join(visible(part).replace("\n", " ") for part in (str(error), told, hint) if part)
