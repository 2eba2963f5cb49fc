"""A Discord on loopback: as much of its REST API and its gateway as a bot with the real discord.py needs to chat.

It limits rates as Discord does, a bucket for each route and channel, fails as it is told, and remembers what was to be
seen of every message from its first word to its last.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from itertools import count
from typing import Any, Literal

import attrs
import discord
import yarl
from aiohttp import web
from discord.gateway import DiscordWebSocket
from discord.http import Route

__all__ = [
    "ASKER",
    "BOT",
    "CHANNEL",
    "DM",
    "GUILD",
    "MANAGE_MESSAGES",
    "MODERATOR",
    "OTHER",
    "DiscordPlatform",
    "Fault",
    "Posted",
    "intents",
    "use_platform",
]

# A snowflake begins with its time, and discord.py asks some for their age.
_snowflakes = count((int(time.time() * 1000) - 1420070400000) << 22, 1 << 22)


def snowflake() -> int:
    return next(_snowflakes)


GUILD, CHANNEL, DM = snowflake(), snowflake(), snowflake()
BOT, BOT_ROLE, ASKER, OTHER, MODERATOR = (snowflake() for _ in range(5))
NAMES = {BOT: "bot", ASKER: "ada", OTHER: "bob", MODERATOR: "mod"}

LIMIT = 2000  # characters a message
MANAGE_MESSAGES = 1 << 13

Call = Literal["post", "edit", "delete", "typing", "thread", "callback"]


@attrs.define
class Fault:
    """What happens to the next calls of a kind, instead of what should."""

    on: Call
    status: int = 503
    code: int = 0
    """Discord's own number of the error."""
    retry_after: float | None = None
    by_proxy: bool = False
    """Whether a 429 is not Discord's own."""
    everywhere: bool = False
    """Whether a 429 is that of the whole bot, not of a route."""
    times: int = 1
    skip: int = 0
    """How many calls go well before."""
    gate: asyncio.Event | None = None
    """Waited for first; with it and the status 0 the call is only slow."""
    carry_out: bool = False
    """Whether the call is carried out all the same, so that only its answer is lost."""


@attrs.define
class Posted:
    """A message as the channel has it."""

    id: int
    channel_id: int
    author: int
    content: str
    payload: dict[str, Any] = attrs.field(factory=dict[str, Any], repr=False)
    """What the bot sent last."""
    states: list[str] = attrs.field(factory=list[str], repr=False)
    """Every text that was to be seen, in order."""
    buttons: tuple[str, ...] = ()
    """The ids of its buttons."""
    reply_to: int | None = None
    pings: bool = False
    """Whether any text of it could have rung somebody's phone."""


@attrs.define
class Bucket:
    """A fixed window that begins with its first call."""

    left: int
    until: float


class DiscordPlatform:
    """Run a Discord, and have discord.py talk to it.

    ::

        async with DiscordPlatform() as platform, bot:
            ...
            platform.say("Hello", mention=True)
            await platform.until(lambda: platform.shown() == ["Hello"])

    discord.py's two addresses are globals; they are set and put back.
    """

    def __init__(self, *, limit: int = 5, per: float = 0.25) -> None:
        self.limit, self.per = limit, per
        """Calls in a window, for each route and channel. Discord has 5 in 5 seconds."""
        self.messages: dict[int, Posted] = {}
        """What was posted and is not deleted."""
        self.calls: list[tuple[Call, int]] = []
        """Every call, with its status."""
        self.threads: dict[int, str] = {}
        """The names of the threads."""
        self.responses: list[dict[str, Any]] = []
        """What the bot answered when its buttons were clicked."""
        self.faults: list[Fault] = []
        self.connected = asyncio.Event()
        self._buckets: dict[tuple[Call, int], Bucket] = {}
        self._global_until = 0.0
        self._nonces: dict[str, int] = {}
        self._changed = asyncio.Condition()
        self._events: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self._sequence = count(1)
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> DiscordPlatform:
        app = web.Application()
        app.add_routes(
            [
                web.get("/users/@me", self._me),
                web.get("/oauth2/applications/@me", self._application),
                web.get("/gateway", self._gateway_url),
                web.get("/ws", self._gateway),
                web.post("/channels/{channel}/messages", self._post),
                web.patch("/channels/{channel}/messages/{message}", self._edit),
                web.delete("/channels/{channel}/messages/{message}", self._delete),
                web.post("/channels/{channel}/typing", self._typing),
                web.post("/channels/{channel}/messages/{message}/threads", self._thread),
                web.post("/interactions/{interaction}/{token}/callback", self._callback),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        self._real = Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY
        use_platform(self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY = self._real
        assert self._runner is not None
        await self._runner.cleanup()

    # --- what people do ---

    def say(
        self,
        text: str,
        *,
        channel: int = CHANNEL,
        author: int = ASKER,
        mention: bool = False,
        mentions: int | None = None,
        is_bot: bool = False,
        kind: int = 0,
        reply_to: Posted | None = None,
        roles: Sequence[int] = (),
    ) -> int:
        """Write a message as a person, or as another bot; return its id."""
        content = f"<@{BOT}> {text}".rstrip() if mention else text
        posted = Posted(snowflake(), channel, author, content, states=[content])
        self.messages[posted.id] = posted
        mentioned = [_user(BOT, is_bot=True)] if mention else [_user(mentions)] if mentions else []
        data = self._message(posted, mentions=mentioned, is_bot=is_bot, kind=kind)
        data["mention_roles"] = [str(role) for role in roles]
        if reply_to is not None:
            of_bot = self._message(reply_to, is_bot=reply_to.author == BOT)
            data |= {
                "type": 19,
                "message_reference": {"message_id": str(reply_to.id), "channel_id": str(channel)},
                "referenced_message": of_bot,
            }
        if channel != DM:
            data |= {"guild_id": str(GUILD), "member": _member()}
        self._dispatch("MESSAGE_CREATE", data)
        return posted.id

    async def click(self, posted: Posted, *, user: int = ASKER, permissions: int = 0) -> None:
        """Click the first button of a message until the bot responds: at first it may not know that it is there yet."""
        before = self.count("callback")
        while self.count("callback") == before:
            self._dispatch("INTERACTION_CREATE", self._click(posted, user, permissions))
            with suppress(TimeoutError):
                await self.until(lambda: self.count("callback") > before, within=0.5)

    def _click(self, posted: Posted, user: int, permissions: int) -> dict[str, Any]:
        data = {
            "id": str(snowflake()),
            "application_id": str(BOT),
            "type": 3,
            "token": "interaction-token",
            "version": 1,
            "attachment_size_limit": 1,
            "channel_id": str(posted.channel_id),
            "data": {"custom_id": posted.buttons[0], "component_type": 2},
            "message": self._message(posted, is_bot=True),
        }
        if posted.channel_id == DM:
            data |= {"channel": {"id": str(DM), "type": 1}, "user": _user(user)}
        else:
            member = {**_member(), "user": _user(user), "permissions": str(permissions)}
            data |= {"channel": {"id": str(posted.channel_id), "type": 0}, "guild_id": str(GUILD), "member": member}
        return data

    def remove(self, posted: Posted) -> None:
        """Delete a message as a moderator does."""
        del self.messages[posted.id]
        data = {"id": str(posted.id), "channel_id": str(posted.channel_id), "guild_id": str(GUILD)}
        self._dispatch("MESSAGE_DELETE", data)

    def lift_limit(self) -> None:
        """End a limit for the whole bot before its time."""
        self._global_until = 0.0

    def open_thread(self, name: str) -> int:
        """Open a thread in which the bot is not; return its id."""
        thread = snowflake()
        self.threads[thread] = name
        self._dispatch("THREAD_CREATE", _thread(thread, name, owner=ASKER))
        return thread

    # --- what is to be seen ---

    def written(self, channel: int = CHANNEL) -> list[Posted]:
        """Return the bot's messages in a channel, the oldest first."""
        return [posted for posted in self.messages.values() if (posted.author, posted.channel_id) == (BOT, channel)]

    def shown(self, channel: int = CHANNEL) -> list[str]:
        """Return the texts of the bot's messages in a channel."""
        return [posted.content for posted in self.written(channel)]

    def count(self, call: Call, status: int | None = None) -> int:
        """Return how many calls of a kind there were, or how many with a status."""
        return sum(call == kind and status in {None, answer} for kind, answer in self.calls)

    async def until(self, condition: Callable[[], object], *, within: float = 30) -> None:
        """Wait until something is as it should be."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(lambda: bool(condition()))

    async def note(self) -> None:
        """Have those that wait look again."""
        async with self._changed:
            self._changed.notify_all()

    # --- the gateway ---

    async def _gateway(self, request: web.Request) -> web.WebSocketResponse:
        gateway = web.WebSocketResponse()
        await gateway.prepare(request)
        await gateway.send_json({"op": 10, "d": {"heartbeat_interval": 41250}})
        sending: asyncio.Task[None] | None = None
        async for received in gateway:
            asked = json.loads(received.data)
            if asked["op"] == 1:
                await gateway.send_json({"op": 11})
            elif asked["op"] == 2:
                await self._welcome(gateway)
                sending = asyncio.create_task(self._send_events(gateway))
        if sending is not None:
            sending.cancel()
            await asyncio.wait([sending])
        return gateway

    async def _welcome(self, gateway: web.WebSocketResponse) -> None:
        ready = {
            "v": 10,
            "user": _user(BOT, is_bot=True),
            "guilds": [{"id": str(GUILD), "unavailable": True}],
            "session_id": "session",
            "resume_gateway_url": self.url.replace("http", "ws") + "/ws",
            "application": {"id": str(BOT), "flags": 0},
        }
        for name, data in (("READY", ready), ("GUILD_CREATE", _guild())):
            await gateway.send_json({"op": 0, "t": name, "s": next(self._sequence), "d": data})
        self.connected.set()

    def _dispatch(self, name: str, data: dict[str, Any]) -> None:
        """Send an event after those before it; what happens before the bot is there waits for it."""
        self._events.put_nowait((name, data))

    async def _send_events(self, gateway: web.WebSocketResponse) -> None:
        while True:
            name, data = await self._events.get()
            await gateway.send_json({"op": 0, "t": name, "s": next(self._sequence), "d": data})

    # --- REST ---

    async def _me(self, _: web.Request) -> web.Response:
        return _answer(_user(BOT, is_bot=True))

    async def _application(self, _: web.Request) -> web.Response:
        return _answer({"id": str(BOT), "name": "bot", "description": "", "flags": 0, "icon": None, "owner": _user(OTHER), "bot_public": True,
                        "bot_require_code_grant": False, "verify_key": "", "summary": "", "team": None, "rpc_origins": []})  # fmt: skip

    async def _gateway_url(self, _: web.Request) -> web.Response:
        return _answer({"url": self.url.replace("http", "ws") + "/ws"})

    async def _post(self, request: web.Request) -> web.Response:
        channel, payload = int(request.match_info["channel"]), await request.json()
        return await self._call("post", channel, lambda: self._create(channel, payload))

    def _create(self, channel: int, payload: dict[str, Any]) -> web.Response:
        nonce = payload.get("nonce")
        if payload.get("enforce_nonce") and nonce in self._nonces:
            again = self.messages.get(self._nonces[nonce])
            return _failure(404, 10008) if again is None else _answer(self._message(again, is_bot=True))
        if (refused := _refused(payload)) is not None:
            return refused
        reference: dict[str, Any] = payload.get("message_reference") or {}
        reply_to = int(reference["message_id"]) if reference else None
        if reply_to is not None and reply_to not in self.messages:
            if reference.get("fail_if_not_exists", True):
                return _failure(400, 50035)
            reply_to = None
        posted = Posted(snowflake(), channel, BOT, "", reply_to=reply_to)
        self.messages[posted.id] = posted
        if nonce is not None:
            self._nonces[nonce] = posted.id
        self._update(posted, payload)
        data = self._message(posted, is_bot=True)
        self._dispatch(
            "MESSAGE_CREATE", data if channel == DM else {**data, "guild_id": str(GUILD), "member": _member()}
        )
        if channel in self.threads:
            joined = {"id": str(channel), "user_id": str(BOT), "join_timestamp": _now(), "flags": 1}
            self._dispatch(
                "THREAD_MEMBERS_UPDATE",
                {"id": str(channel), "guild_id": str(GUILD), "member_count": 2, "added_members": [joined]},
            )
        return _answer(data)

    async def _edit(self, request: web.Request) -> web.Response:
        channel, message = int(request.match_info["channel"]), int(request.match_info["message"])
        payload = await request.json()
        return await self._call("edit", channel, lambda: self._change(message, payload))

    def _change(self, message: int, payload: dict[str, Any]) -> web.Response:
        posted = self.messages.get(message)
        if posted is None:
            return _failure(404, 10008)
        if "content" in payload and (refused := _refused(payload)) is not None:
            return refused
        self._update(posted, payload)
        return _answer(self._message(posted, is_bot=True))

    def _update(self, posted: Posted, payload: dict[str, Any]) -> None:
        posted.payload = payload
        if "content" in payload:
            posted.content = payload["content"].strip()
            posted.states.append(posted.content)
            allowed = payload.get("allowed_mentions")
            posted.pings |= allowed is None or bool(allowed.get("parse")) or bool(allowed.get("replied_user"))
        if "components" in payload:
            posted.buttons = tuple(button["custom_id"] for row in payload["components"] for button in row["components"])

    async def _delete(self, request: web.Request) -> web.Response:
        channel, message = int(request.match_info["channel"]), int(request.match_info["message"])

        def delete() -> web.Response:
            return _failure(404, 10008) if self.messages.pop(message, None) is None else web.Response(status=204)

        return await self._call("delete", channel, delete)

    async def _typing(self, request: web.Request) -> web.Response:
        channel = int(request.match_info["channel"])
        return await self._call("typing", channel, lambda: web.Response(status=204))

    async def _thread(self, request: web.Request) -> web.Response:
        channel, message = int(request.match_info["channel"]), int(request.match_info["message"])
        name = (await request.json())["name"]

        def open_thread() -> web.Response:
            if not 1 <= len(name) <= 100:
                return _failure(400, 50035)
            self.threads[message] = name
            data = _thread(message, name, owner=BOT)
            self._dispatch("THREAD_CREATE", {**data, "newly_created": True})
            return _answer(data, status=201)

        return await self._call("thread", channel, open_thread)

    async def _callback(self, request: web.Request) -> web.Response:
        payload = await request.json()

        def respond() -> web.Response:
            self.responses.append(payload)
            return _answer({"interaction": {"id": request.match_info["interaction"], "type": 3}})

        return await self._call("callback", 0, respond)

    async def _call(self, call: Call, channel: int, carry_out: Callable[[], web.Response]) -> web.Response:
        """Carry a call out, unless there is a fault for it or it comes too fast."""
        response = await self._fault(call, carry_out) or self._too_fast(call, channel) or carry_out()
        if (bucket := self._buckets.get((call, channel))) is not None:
            response.headers.update(
                {
                    "X-RateLimit-Limit": str(self.limit),
                    "X-RateLimit-Remaining": str(bucket.left),
                    "X-RateLimit-Reset": str(time.time() + bucket.until - time.monotonic()),
                    "X-RateLimit-Reset-After": f"{max(0.0, bucket.until - time.monotonic()):.3f}",
                    "X-RateLimit-Bucket": f"bucket-{call}",
                }
            )
        self.calls.append((call, response.status))
        await self.note()
        return response

    async def _fault(self, call: Call, carry_out: Callable[[], web.Response]) -> web.Response | None:
        fault = next((fault for fault in self.faults if fault.on == call), None)
        if fault is None:
            return None
        if fault.skip:
            fault.skip -= 1
            return None
        fault.times -= 1
        if not fault.times:
            self.faults.remove(fault)
        if fault.gate is not None:
            self.calls.append((call, 0))  # it has come
            await self.note()
            await fault.gate.wait()
            self.calls.remove((call, 0))
        if not fault.status:
            return None
        if fault.carry_out:
            carry_out()
        if fault.status != 429:
            return _failure(fault.status, fault.code)
        seconds = fault.retry_after or 0.0
        if fault.everywhere:
            self._global_until = time.monotonic() + seconds
        response = _slow_down(seconds, everywhere=fault.everywhere)
        if fault.by_proxy:
            del response.headers["Via"]
        return response

    def _too_fast(self, call: Call, channel: int) -> web.Response | None:
        now = time.monotonic()
        if now < self._global_until:
            return _slow_down(self._global_until - now, everywhere=True)
        bucket = self._buckets.get((call, channel))
        if bucket is None or now >= bucket.until:
            bucket = self._buckets[call, channel] = Bucket(self.limit, now + self.per)
        if not bucket.left:
            return _slow_down(bucket.until - now)
        bucket.left -= 1
        return None

    def _message(
        self, posted: Posted, *, mentions: list[dict[str, Any]] | None = None, is_bot: bool = False, kind: int = 0
    ) -> dict[str, Any]:
        return {
            "id": str(posted.id),
            "channel_id": str(posted.channel_id),
            "author": _user(posted.author, is_bot=is_bot),
            "content": posted.content,
            "timestamp": _now(),
            "edited_timestamp": None,
            "tts": False,
            "mention_everyone": False,
            "mentions": mentions or [],
            "mention_roles": [],
            "attachments": [],
            "embeds": [],
            "pinned": False,
            "type": kind,
            "components": [],
        }


def use_platform(url: str) -> None:
    """Have discord.py talk to a platform, in this process."""
    Route.BASE = url
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(url.replace("http", "ws") + "/ws")


def intents() -> discord.Intents:
    """Return what a bot has to ask for."""
    asked = discord.Intents.default()
    asked.message_content = True
    return asked


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


def _user(user: int, *, is_bot: bool = False) -> dict[str, Any]:
    name = NAMES.get(user, "somebody")
    return {"id": str(user), "username": name, "discriminator": "0", "global_name": name, "avatar": None, "bot": is_bot}


def _member() -> dict[str, Any]:
    return {"roles": [], "joined_at": _now(), "deaf": False, "mute": False, "flags": 0}


def _guild() -> dict[str, Any]:
    everyone = {"id": str(GUILD), "name": "@everyone", "permissions": "0", "position": 0, "color": 0, "hoist": False,
                "managed": False, "mentionable": False, "flags": 0, "colors": {"primary_color": 0}}  # fmt: skip
    of_bot = everyone | {"id": str(BOT_ROLE), "name": "bot", "managed": True, "tags": {"bot_id": str(BOT)}}
    channel = {"id": str(CHANNEL), "type": 0, "name": "general", "position": 0, "permission_overwrites": []}
    return {
        "id": str(GUILD),
        "name": "guild",
        "owner_id": str(OTHER),
        "member_count": 4,
        "unavailable": False,
        "roles": [everyone, of_bot],
        "channels": [channel],
        "threads": [],
        "members": [{**_member(), "user": _user(BOT, is_bot=True)}],
        "emojis": [],
        "stickers": [],
        "features": [],
    }


def _thread(thread: int, name: str, *, owner: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": str(thread),
        "guild_id": str(GUILD),
        "parent_id": str(CHANNEL),
        "owner_id": str(owner),
        "type": 11,
        "name": name,
        "message_count": 0,
        "member_count": 1,
        "thread_metadata": {"archived": False, "auto_archive_duration": 1440, "archive_timestamp": _now()},
    }
    if owner == BOT:
        data["member"] = {"id": str(thread), "user_id": str(BOT), "join_timestamp": _now(), "flags": 1}
    return data


def _answer(data: object, *, status: int = 200) -> web.Response:
    # discord.py parses `application/json` and nothing else, not with a charset either.
    return web.Response(body=json.dumps(data).encode(), status=status, content_type="application/json")


def _failure(status: int, code: int) -> web.Response:
    return _answer({"message": "refused", "code": code}, status=status)


def _slow_down(seconds: float, *, everywhere: bool = False) -> web.Response:
    response = _answer({"message": "slow down", "retry_after": seconds, "global": everywhere}, status=429)
    # Without `Via` discord.py takes it for a ban by Cloudflare.
    response.headers.update({"Via": "1.1 google", "Retry-After": f"{seconds:.1f}"})
    return response


def _refused(payload: dict[str, Any]) -> web.Response | None:
    content = payload.get("content") or ""
    if not content.strip():
        return _failure(400, 50006)
    return _failure(400, 50035) if len(content) > LIMIT else None
