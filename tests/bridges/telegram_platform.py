"""A Telegram on loopback: the part of the Bot API that chat bots use, its limits, and faults on command.

It keeps what the people in its chats see. Its time is the event loop's, so on a virtual loop half a minute is nothing.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from aiohttp import web

TOKEN = "123456:loopback-telegram-token"
BOT = {"id": 123456, "is_bot": True, "first_name": "Bot", "username": "loopback_bot"}
ADA = {"id": 1001, "is_bot": False, "first_name": "Ada"}
BEN = {"id": 1002, "is_bot": False, "first_name": "Ben"}
PRIVATE = {"id": 1001, "type": "private", "first_name": "Ada"}
GROUP = {"id": -100200300, "type": "supergroup", "title": "Group", "is_forum": True}

# https://core.telegram.org/bots/api#sendmessage, #sendmessagedraft
LIMIT = 4096
DRAFT_SECONDS = 30.0


def utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@attrs.define(eq=False)
class Shown:
    """A message as it is in a chat, from whomever."""

    message_id: int
    chat: dict[str, Any]
    sender: dict[str, Any]
    text: str
    topic: int | None = None
    entities: list[dict[str, Any]] = attrs.field(factory=list)
    buttons: list[dict[str, Any]] = attrs.field(factory=list)
    reply_to: int | None = None
    silent: bool = False
    preview: bool = True
    versions: list[str] = attrs.field(factory=list)
    """All that it has said, one after the other."""

    def pieces(self, kind: str) -> list[str]:
        """Return the pieces of the text that are of a kind."""
        data = self.text.encode("utf-16-le")
        return [
            data[2 * entity["offset"] : 2 * (entity["offset"] + entity["length"])].decode("utf-16-le")
            for entity in self.entities
            if entity["type"] == kind
        ]

    def as_json(self) -> dict[str, Any]:
        message = {"message_id": self.message_id, "date": 1_700_000_000, "chat": self.chat, "from": self.sender}
        if self.topic is not None:
            message |= {"message_thread_id": self.topic, "is_topic_message": True}
        return message | {"text": self.text, "entities": self.entities}


@attrs.frozen
class Draft:
    """The preview of a message, which fades."""

    draft_id: int
    text: str
    at: float
    can_stop: bool


@attrs.frozen
class Call:
    """A request that was made."""

    method: str
    fields: dict[str, str]
    at: float
    status: int


@attrs.frozen
class Fault:
    """How a request fails: with a status, or with a lost connection after it was carried out."""

    status: int = 500
    description: str = "Internal Server Error"
    retry_after: int | None = None
    lost: bool = False
    raw: str | None = None
    """A body that is not the API's, as of a proxy."""


class RefusedError(Exception):
    """What the API answers to a request that it does not carry out."""

    def __init__(self, status: int, description: str, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.status, self.description, self.retry_after = status, description, retry_after


class TelegramPlatform:
    """Chats, the people in them, and the Bot API for one bot.

    `edit_interval`: so many seconds between two edits in a chat are allowed. `drafts`: whether there are any.
    """

    def __init__(self, *, edit_interval: float = 1.0, drafts: bool = True) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self.drafts_seen: list[Draft] = []
        """All drafts, each version."""
        self.answers: list[str] = []
        """What pressing a button was answered by."""
        self.administrators: list[dict[str, Any]] = []
        self._edit_interval = edit_interval
        self._with_drafts = drafts
        self._messages: dict[tuple[int, int], Shown] = {}
        self._drafts: dict[tuple[int, int | None], Draft] = {}
        self._blocked: set[int] = set()
        self._edited_at: dict[int, float] = {}
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._held: dict[str, asyncio.Event] = {}
        self._updates: list[dict[str, Any]] = []
        self._ids = 0
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    # --- its life -----------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> TelegramPlatform:
        app = web.Application()
        app.router.add_post(f"/bot{TOKEN}/{{method}}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    # --- what people see ----------------------------------------------------------------------------------------------

    def said(self, chat: dict[str, Any] = PRIVATE) -> list[Shown]:
        """Return what the bot has in a chat now, oldest first."""
        return [shown for shown in self._messages.values() if shown.chat is chat and shown.sender is BOT]

    def texts(self, chat: dict[str, Any] = PRIVATE) -> list[str]:
        return [shown.text for shown in self.said(chat)]

    def draft(self, chat: dict[str, Any] = PRIVATE, topic: int | None = None) -> str | None:
        """Return the draft that is to be seen now, or None."""
        draft = self._drafts.get((chat["id"], topic))
        return None if draft is None or self._now() - draft.at >= DRAFT_SECONDS else draft.text

    def made(self, method: str) -> list[Call]:
        """Return the requests for a method, those included that were refused."""
        return [call for call in self.calls if call.method == method]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that a request or a person changes."""
        async with self._changed:
            await self._changed.wait_for(condition)

    # --- what people do -----------------------------------------------------------------------------------------------

    async def say(
        self,
        text: str,
        *,
        chat: dict[str, Any] = PRIVATE,
        sender: dict[str, Any] = ADA,
        topic: int | None = None,
        reply_to: Shown | None = None,
        **more: Any,
    ) -> Shown:
        """Write a message to a chat; the bot gets it, as one without privacy mode does."""
        shown = Shown(self._next_id(), chat, sender, text, topic)
        for found in re.finditer(r"(?<![\w/])(?:(@\w+)|/\w+(?:@\w+)?(?!/))\b", text):
            kind = "mention" if found[1] else "bot_command"
            shown.entities.append({"type": kind, "offset": utf16(text[: found.start()]), "length": utf16(found[0])})
        self._messages[chat["id"], shown.message_id] = shown
        message = shown.as_json() | more
        if reply_to is not None:
            message["reply_to_message"] = reply_to.as_json()
        await self.update(message=message)
        return shown

    async def press(self, shown: Shown, *, sender: dict[str, Any] = ADA) -> None:
        """Press the one button of a message."""
        [button] = shown.buttons
        query = {"id": str(self._next_id()), "from": sender, "chat_instance": "1", "data": button["callback_data"]}
        await self.update(callback_query=query | {"message": shown.as_json()})

    async def press_stop(self, draft: Draft) -> None:
        """Press the button of a draft. As reported for Bot API 10.3, the update names the bot's own chat."""
        assert draft.can_stop
        chat = {"id": BOT["id"], "type": "private", "first_name": "Bot"}
        await self.update(stopped_message_generation={"chat": chat, "draft_id": draft.draft_id})

    async def update(self, **event: Any) -> None:
        """Send the bot an update."""
        async with self._changed:
            self._updates.append({"update_id": self._next_id(), **event})
            self._changed.notify_all()

    def delete(self, shown: Shown) -> None:
        """Delete a message for all."""
        del self._messages[shown.chat["id"], shown.message_id]

    def block(self, chat: dict[str, Any] = PRIVATE) -> None:
        """Block the bot, or throw it out."""
        self._blocked.add(chat["id"])

    # --- faults -------------------------------------------------------------------------------------------------------

    def fail(self, method: str, *faults: Fault) -> None:
        """Let the next requests for a method fail, one after the other."""
        self._faults[method].extend(faults)

    def hold(self, method: str) -> asyncio.Event:
        """Let requests for a method wait until the event is set."""
        self._held[method] = asyncio.Event()
        return self._held[method]

    # --- the API ------------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        fields = {key: str(value) for key, value in (await request.post()).items()}
        if (held := self._held.get(method)) is not None:
            await held.wait()
        fault = self._faults[method].popleft() if self._faults[method] else None
        status, body = await self._answer(method, fields, fault)
        if method != "getUpdates":
            self.calls.append(Call(method, fields, self._now(), status))
            async with self._changed:
                self._changed.notify_all()
        if fault is not None and fault.lost:
            assert request.transport is not None
            request.transport.close()
        if fault is not None and fault.raw is not None:
            return web.Response(status=status, text=fault.raw, content_type="text/html")
        return web.json_response(body, status=status)

    async def _answer(self, method: str, fields: dict[str, str], fault: Fault | None) -> tuple[int, dict[str, Any]]:
        try:
            if fault is not None and not fault.lost:
                raise RefusedError(fault.status, fault.description, fault.retry_after)
            carry_out: Callable[[dict[str, str]], Awaitable[Any]] | None = getattr(self, f"_{method}", None)
            if carry_out is None:
                raise RefusedError(404, "Not Found: method not found")
            return 200, {"ok": True, "result": await carry_out(fields)}
        except RefusedError as refused:
            body: dict[str, Any] = {"ok": False, "error_code": refused.status, "description": refused.description}
            if refused.retry_after is not None:
                body["parameters"] = {"retry_after": refused.retry_after}
            return refused.status, body

    async def _getMe(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802 - the API's name, as below
        return BOT

    async def _getUpdates(self, fields: dict[str, str]) -> list[dict[str, Any]]:  # noqa: N802
        offset = int(fields.get("offset", 0))
        kinds = json.loads(fields.get("allowed_updates", "[]"))
        self._updates = [update for update in self._updates if update["update_id"] >= offset]
        try:
            async with asyncio.timeout(float(fields.get("timeout", 0))):
                await self.until(lambda: self._updates)
        except TimeoutError:
            return []
        return [update for update in self._updates if not kinds or not update.keys().isdisjoint(kinds)]

    async def _sendMessage(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        chat = self._chat(fields)
        topic = int(fields["message_thread_id"]) if "message_thread_id" in fields else None
        text, entities = self._text(fields)
        shown = Shown(self._next_id(), chat, BOT, text, topic, entities, self._buttons(fields))
        shown.reply_to = json.loads(fields.get("reply_parameters", "{}")).get("message_id")
        shown.silent = fields.get("disable_notification") == "true"
        shown.preview = not json.loads(fields.get("link_preview_options", "{}")).get("is_disabled", False)
        shown.versions.append(text)
        self._messages[chat["id"], shown.message_id] = shown
        self._drafts.pop((chat["id"], topic), None)
        return shown.as_json()

    async def _editMessageText(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        chat = self._chat(fields)
        wait = self._edited_at.get(chat["id"], -math.inf) + self._edit_interval - self._now()
        if wait > 0.001:  # clocks are not that exact
            raise RefusedError(429, f"Too Many Requests: retry after {math.ceil(wait)}", math.ceil(wait))
        shown = self._messages.get((chat["id"], int(fields["message_id"])))
        if shown is None:
            raise RefusedError(400, "Bad Request: message to edit not found")
        text, entities = self._text(fields)
        buttons = self._buttons(fields)
        if (text, entities, buttons) == (shown.text, shown.entities, shown.buttons):
            raise RefusedError(
                400, "Bad Request: message is not modified: specified new message content and reply markup"
            )
        shown.text, shown.entities, shown.buttons = text, entities, buttons
        shown.versions.append(text)
        self._edited_at[chat["id"]] = self._now()
        return shown.as_json()

    async def _editMessageReplyMarkup(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        shown = self._messages.get((self._chat(fields)["id"], int(fields["message_id"])))
        if shown is None:
            raise RefusedError(400, "Bad Request: message to edit not found")
        shown.buttons = self._buttons(fields)
        return shown.as_json()

    async def _sendMessageDraft(self, fields: dict[str, str]) -> bool:  # noqa: N802
        chat = self._chat(fields)
        if chat["type"] != "private" or not self._with_drafts:
            raise RefusedError(400, "Bad Request: TEXTDRAFT_PEER_INVALID")
        text = self._text(fields)[0] if "text" in fields else ""
        topic = int(fields["message_thread_id"]) if "message_thread_id" in fields else None
        draft = Draft(int(fields["draft_id"]), text, self._now(), fields.get("can_stop") == "true")
        self._drafts[chat["id"], topic] = draft
        self.drafts_seen.append(draft)
        return True

    async def _sendChatAction(self, fields: dict[str, str]) -> bool:  # noqa: N802
        self._chat(fields)
        return True

    async def _answerCallbackQuery(self, fields: dict[str, str]) -> bool:  # noqa: N802
        self.answers.append(fields.get("text", ""))
        return True

    async def _getChatMember(self, fields: dict[str, str]) -> dict[str, Any]:  # noqa: N802
        for person in self.administrators:
            if str(person["id"]) == fields["user_id"]:
                return {"status": "creator", "user": person, "is_anonymous": False}
        return {"status": "member", "user": {**ADA, "id": int(fields["user_id"])}}

    def _chat(self, fields: dict[str, str]) -> dict[str, Any]:
        for chat in (PRIVATE, GROUP):
            if str(chat["id"]) == fields.get("chat_id"):
                if chat["id"] in self._blocked:
                    raise RefusedError(403, "Forbidden: bot was blocked by the user")
                return chat
        raise RefusedError(400, "Bad Request: chat not found")

    def _text(self, fields: dict[str, str]) -> tuple[str, list[dict[str, Any]]]:
        """Return a text and its entities as Telegram keeps them."""
        text = fields.get("text", "")
        entities: list[dict[str, Any]] = json.loads(fields.get("entities", "[]"))
        if "parse_mode" in fields:
            raise RefusedError(400, "Bad Request: can't parse entities: the marks of half a reply are never balanced")
        if not text.strip():
            raise RefusedError(400, "Bad Request: message text is empty")
        if utf16(text) > LIMIT:
            raise RefusedError(400, "Bad Request: message is too long")
        for entity in entities:
            if not (0 <= entity["offset"] < entity["offset"] + entity["length"] <= utf16(text)):
                raise RefusedError(400, "Bad Request: ENTITY_BOUNDS_INVALID")
        return text, entities

    def _buttons(self, fields: dict[str, str]) -> list[dict[str, Any]]:
        rows: list[list[dict[str, Any]]] = json.loads(fields.get("reply_markup", "{}")).get("inline_keyboard", [])
        return [button for row in rows for button in row]

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
