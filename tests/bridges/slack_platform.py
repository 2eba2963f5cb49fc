"""A loopback Slack: its Web API, a Socket Mode link, signed requests; it remembers what people see in a channel.

Its rules are those of docs.slack.dev as far as a bot that talks meets them. It never waits by itself: its clock moves when a test
says so, and what goes wrong is asked for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import attrs
from aiohttp import ClientSession, WSMsgType, web
from slack_sdk.signature import SignatureVerifier

BOT_TOKEN = "xoxb-loopback"
APP_TOKEN = "xapp-loopback"
SIGNING_SECRET = "signing-secret-of-the-loopback"
TEAM, CHANNEL, DM, USER, BOT = "T0TEAM", "C0GENERAL", "D0DIRECT", "U0ASKING", "U0BOT"

LIMIT = 12_000  # bytes of UTF-8, all appends of a message together
STREAM_SECONDS = 300
PING = re.compile(r"<!(?:channel|here|everyone|subteam\^)|<@[UWB][A-Z0-9]")


@attrs.define
class Shown:
    """A message, as people see it."""

    ts: str
    channel: str
    thread_ts: str | None
    text: str
    streaming_since: float | None = None
    deleted: bool = False
    history: list[str] = attrs.field(factory=list)


@attrs.frozen
class Call:
    """A call of the Web API."""

    method: str
    arguments: dict[str, Any]
    error: str | None


@attrs.frozen
class Fault:
    """What goes wrong with one call. `applied`: it took effect all the same, and only its answer was lost."""

    error: str = ""
    status: int = 200
    retry_after: int | None = None
    applied: bool = False
    hangs: bool = False


def rate_limited(seconds: int = 0) -> Fault:
    return Fault("ratelimited", status=429, retry_after=seconds)


class SlackError(Exception):
    """The answer `ok: false`."""


class SlackPlatform:
    """Slack on a real socket. Use it as `async with SlackPlatform() as slack`."""

    def __init__(self) -> None:
        self.now = 0.0
        self.messages: list[Shown] = []
        self.calls: list[Call] = []
        self.statuses: list[str] = []
        self.pings: list[str] = []
        self.acks: list[str] = []
        self.unsupported: set[str] = set()
        self.links = 0
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._sockets: list[web.WebSocketResponse] = []
        self._closing = asyncio.Event()

    async def __aenter__(self) -> SlackPlatform:
        app = web.Application()
        app.router.add_post("/api/{method}", self._call)
        app.router.add_get("/link", self._link)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._host = f"{host}:{port}"
        self.url = f"http://{self._host}/api/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing.set()
        for socket in self._sockets:
            await socket.close()
        await self._runner.cleanup()

    # --- what a test asks for -----------------------------------------------------------------------------------------

    def fail(self, method: str, *faults: Fault) -> None:
        """Let the next calls of a method go wrong, one for each of these."""
        self._faults[method].extend(faults)

    def advance(self, seconds: float) -> None:
        """Move the clock; streams that are too old are closed."""
        self.now += seconds
        for message in self.messages:
            if message.streaming_since is not None and self.now - message.streaming_since >= STREAM_SECONDS:
                message.streaming_since = None

    # --- what people see ----------------------------------------------------------------------------------------------

    def texts(self, channel: str = CHANNEL) -> list[str]:
        """Return the messages of a channel that are there, oldest first."""
        return [message.text for message in self.messages if message.channel == channel and not message.deleted]

    @property
    def streaming(self) -> list[Shown]:
        return [message for message in self.messages if message.streaming_since is not None]

    def methods(self) -> list[str]:
        """Return the calls that changed messages, in order."""
        return [call.method for call in self.calls if call.method.startswith("chat.")]

    async def until(self, predicate: Callable[[], object]) -> None:
        """Wait until something is so; looked at after each call and each acknowledgement."""
        async with asyncio.timeout(30), self._changed:
            await self._changed.wait_for(lambda: bool(predicate()))

    async def shows(self, *texts: str) -> None:
        """Wait until these are the messages in the channel."""
        await self.until(lambda: self.texts() == [*texts])

    # --- events -------------------------------------------------------------------------------------------------------

    def event(self, text: str, *, kind: str = "app_mention", number: int | None = None, **more: Any) -> dict[str, Any]:
        """Return the body of an event; one with the same number has the same id."""
        number = next(self._numbers) if number is None else number
        event = {"type": kind, "user": USER, "text": text, "ts": f"1700000000.{number:06}", "channel": CHANNEL, **more}
        return {
            "token": "verification",
            "team_id": TEAM,
            "api_app_id": "A0APP",
            "event": event,
            "type": "event_callback",
            "event_id": f"Ev{number:08}",
            "event_time": 1700000000,
            "authorizations": [{"team_id": TEAM, "user_id": BOT, "is_bot": True, "is_enterprise_install": False}],
        }

    async def send(self, body: dict[str, Any], *, retry: int = 0) -> None:
        """Deliver an event over the Socket Mode link, and wait until it is acknowledged."""
        await self.until(lambda: self._sockets)
        envelope = f"envelope-{next(self._numbers)}"
        await self._sockets[-1].send_json(
            {
                "envelope_id": envelope,
                "type": "events_api",
                "payload": body,
                "accepts_response_payload": False,
                "retry_attempt": retry,
                "retry_reason": "timeout" if retry else "",
            }
        )
        await self.until(lambda: envelope in self.acks)

    async def refresh(self) -> None:
        """Tell the bot to connect anew, as Slack does every few hours."""
        links = self.links
        await self._sockets[-1].send_json({"type": "disconnect", "reason": "refresh_requested"})
        await self.until(lambda: self.links > links)

    async def deliver(self, url: str, body: dict[str, Any], *, retry: int = 0, secret: str = SIGNING_SECRET) -> int:
        """Deliver an event by a signed request; return the status of the answer."""
        data, stamp = json.dumps(body), str(int(time.time()))
        signature = SignatureVerifier(secret).generate_signature(timestamp=stamp, body=data)
        headers = {
            "Content-Type": "application/json",
            "X-Slack-Request-Timestamp": stamp,
            "X-Slack-Signature": str(signature),
        }
        if retry:
            headers |= {"X-Slack-Retry-Num": str(retry), "X-Slack-Retry-Reason": "http_timeout"}
        async with ClientSession() as session, session.post(url, data=data, headers=headers) as response:
            return response.status

    # --- Socket Mode --------------------------------------------------------------------------------------------------

    async def _link(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_json({"type": "hello", "num_connections": 1, "connection_info": {"app_id": "A0APP"}})
        self._sockets.append(socket)
        self.links += 1
        await self._notify()
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                self.acks.append(json.loads(message.data)["envelope_id"])
                await self._notify()
        if socket in self._sockets:
            self._sockets.remove(socket)
        return socket

    # --- the Web API --------------------------------------------------------------------------------------------------

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        arguments = await _arguments(request)
        fault = self._faults[method].popleft() if self._faults[method] else Fault()
        answer: dict[str, Any] = {"ok": False, "error": fault.error or "internal_error"}
        if fault.applied or fault == Fault():
            answer = self._answer(method, arguments, request.headers.get("Authorization", ""))
        self.calls.append(Call(method, arguments, answer.get("error") or fault.error or None))
        await self._notify()
        if fault.hangs:
            await self._closing.wait()
        if fault.applied and request.transport is not None:
            request.transport.close()
        headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        return web.json_response(answer, status=fault.status, headers=headers)

    def _answer(self, method: str, arguments: dict[str, Any], authorization: str) -> dict[str, Any]:
        token = APP_TOKEN if method == "apps.connections.open" else BOT_TOKEN
        if authorization != f"Bearer {token}":
            return {"ok": False, "error": "invalid_auth"}
        handler = getattr(self, "_" + method.replace(".", "_"), None)
        if handler is None or method in self.unsupported:
            return {"ok": False, "error": "unknown_method"}
        try:
            return {"ok": True, **handler(arguments)}
        except SlackError as exc:
            return {"ok": False, "error": str(exc)}

    def _auth_test(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"team_id": TEAM, "team": "Loopback", "user_id": BOT, "user": "bot", "bot_id": "B0BOT", "url": self.url}

    def _apps_connections_open(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"url": f"ws://{self._host}/link?ticket={next(self._numbers)}"}

    def _assistant_threads_setStatus(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.statuses.append(arguments["status"])
        return {}

    def _chat_postMessage(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return self._add(arguments, _text(arguments, empty="no_text"))

    def _chat_update(self, arguments: dict[str, Any]) -> dict[str, Any]:
        message = self._find(arguments)
        if message.streaming_since is not None:
            raise SlackError("streaming_state_conflict")
        return self._show(message, _text(arguments, empty="no_text"))

    def _chat_delete(self, arguments: dict[str, Any]) -> dict[str, Any]:
        self._find(arguments).deleted = True
        return {}

    def _chat_startStream(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        if not arguments.get("thread_ts"):
            raise SlackError("invalid_arguments")
        if not arguments["channel"].startswith("D"):
            for name in ("recipient_team_id", "recipient_user_id"):
                if not arguments.get(name):
                    raise SlackError(f"missing_{name}")
        answer = self._add(arguments, _text(arguments))
        self.messages[-1].streaming_since = self.now
        return answer

    def _chat_appendStream(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        message = self._find(arguments)
        if message.streaming_since is None:
            raise SlackError("message_not_in_streaming_state")
        return self._show(message, message.text + _text(arguments, empty="no_text"))

    def _chat_stopStream(self, arguments: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        message = self._find(arguments)
        if message.streaming_since is None:
            raise SlackError("message_not_in_streaming_state")
        answer = self._show(message, message.text + _text(arguments))
        message.streaming_since = None
        return answer

    def _add(self, arguments: dict[str, Any], text: str) -> dict[str, Any]:
        message = Shown(f"1700001000.{next(self._numbers):06}", arguments["channel"], arguments.get("thread_ts"), "")
        self.messages.append(message)
        return self._show(message, text)

    def _show(self, message: Shown, text: str) -> dict[str, Any]:
        if len(text.encode()) > LIMIT:
            raise SlackError("msg_too_long")
        message.text = text
        message.history.append(text)
        self.pings += PING.findall(text)
        return {"ts": message.ts, "channel": message.channel}

    def _find(self, arguments: dict[str, Any]) -> Shown:
        for message in self.messages:
            if (message.ts, message.channel) == (arguments["ts"], arguments["channel"]) and not message.deleted:
                return message
        raise SlackError("message_not_found")

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _arguments(request: web.Request) -> dict[str, Any]:
    if request.content_type == "application/json":
        arguments: dict[str, Any] = await request.json()
        return arguments
    return {**request.query, **{name: str(value) for name, value in (await request.post()).items()}}


def _text(arguments: dict[str, Any], *, empty: str = "") -> str:
    if "text" in arguments and "markdown_text" in arguments:
        raise SlackError("markdown_text_conflict")
    text: str = arguments.get("markdown_text") or arguments.get("text") or ""
    text += "".join(chunk["text"] for chunk in arguments.get("chunks", ()))
    if empty and not text.strip():
        raise SlackError(empty)
    return text
