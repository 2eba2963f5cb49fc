"""The steps of a reply in Slack: which call each one is, and what it means if that fails. Pure."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

import attrs

__all__ = [
    "Append",
    "Delete",
    "Place",
    "Post",
    "Problem",
    "RateLimited",
    "Refused",
    "Start",
    "Step",
    "Stop",
    "Unclear",
    "Update",
    "problem_of",
    "request",
]

# Refusals after which a call may have been made all the same, or may be made later.
_TRANSIENT: Final = {
    "fatal_error",
    "internal_error",
    "rate_limited",
    "ratelimited",
    "request_timeout",
    "service_unavailable",
}


# --- steps ------------------------------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Begin a message as a native stream."""

    text: str


@attrs.frozen
class Post:
    """Post a message."""

    text: str


@attrs.frozen
class Append:
    """Add to a stream."""

    ts: str
    text: str


@attrs.frozen
class Stop:
    """Add the last of a stream, perhaps nothing, and close it."""

    ts: str
    text: str


@attrs.frozen
class Update:
    """Replace a message's text."""

    ts: str
    text: str


@attrs.frozen
class Delete:
    """Take a message away that the reply no longer needs."""

    ts: str


Step: TypeAlias = Start | Post | Append | Stop | Update | Delete


# --- what becomes of a step if it fails -------------------------------------------------------------------------------


@attrs.frozen
class RateLimited:
    """Slack did not do it, and wants to be asked again after so many seconds."""

    seconds: float


@attrs.frozen
class Unclear:
    """Nobody knows whether Slack did it."""


@attrs.frozen
class Refused:
    """Slack did not do it, for the reason of this name."""

    code: str


Problem: TypeAlias = RateLimited | Unclear | Refused


# --- calls ------------------------------------------------------------------------------------------------------------


class Place(Protocol):
    """Where a reply goes, as slack-bolt's AsyncSayStream has it."""

    channel: str | None
    thread_ts: str | None
    recipient_team_id: str | None
    recipient_user_id: str | None


def request(step: Step, to: Place) -> tuple[str, dict[str, object]]:
    """Return the method of Slack's that makes a step, and its arguments."""
    thread = {"channel": to.channel, "thread_ts": to.thread_ts}
    match step:
        case Start(text):
            recipient = {"recipient_team_id": to.recipient_team_id, "recipient_user_id": to.recipient_user_id}
            method, arguments = "chat.startStream", {**thread, **recipient, "markdown_text": text}
        case Post(text):
            method, arguments = "chat.postMessage", {**thread, "markdown_text": text}
        case Append(ts, text):
            method, arguments = "chat.appendStream", {"channel": to.channel, "ts": ts, "markdown_text": text}
        case Stop(ts, text):
            method, arguments = "chat.stopStream", {"channel": to.channel, "ts": ts, "markdown_text": text}
        case Update(ts, text):
            method, arguments = "chat.update", {"channel": to.channel, "ts": ts, "markdown_text": text}
        case Delete(ts):
            method, arguments = "chat.delete", {"channel": to.channel, "ts": ts}
    return method, {name: value for name, value in arguments.items() if value}


def problem_of(error: Exception) -> Problem:
    """Return what an error of the SDK's, or of its transport, says about a call."""
    response: Any = getattr(error, "response", None)
    # Slack's own answers have a `status_code` and `data`; what is no JSON, as a proxy's, is the transport's response.
    status = getattr(response, "status_code", None) or getattr(response, "status", None)
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return RateLimited(_seconds(response.headers.get("Retry-After")))
    match getattr(response, "data", None):
        case {"error": str(code)} if status == HTTPStatus.OK and code not in _TRANSIENT:
            return Refused(code)
        case _:
            return Unclear()


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 1.0
