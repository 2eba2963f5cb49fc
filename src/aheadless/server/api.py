"""The handlers, and the checks before them in the order of protocol.md §2."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from aheadless.exceptions import InvalidRequestError, StoreError
from aheadless.protocol.codec import JSONReply, encode_event, encode_reply, parse_request
from aheadless.protocol.events import Done, Failure
from aheadless.server.answers import (
    INTERNAL_ERROR,
    KEEP_ALIVE_SECONDS,
    SECURITY_HEADERS,
    STRICT_TRANSPORT,
    Refusal,
    error_page,
    json_answer,
    json_bytes,
)
from aheadless.server.body import Room, discard_body, read_body
from aheadless.server.checks import forwarded_address, has_key
from aheadless.server.limiter import WindowLimiter
from aheadless.server.openapi import openapi_document
from aheadless.server.replies import Replies
from aheadless.server.storage import Storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aheadless.protocol.codec import ChatRequest
    from aheadless.server.engines import ReplyEngine
    from aheadless.server.replies import RunningReply
    from aheadless.server.settings import ServerSettings

__all__ = ["API"]

logger: logging.Logger = logging.getLogger("aheadless.server")

STREAM_HEADERS: Final = {
    "Content-Type": "application/x-ndjson; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "Connection": "keep-alive",
    "X-Accel-Buffering": "no",
}
CORS_ANSWER: Final = {
    "Access-Control-Allow-Methods": "GET,POST,OPTIONS",
    "Access-Control-Allow-Headers": "Content-Type, x-api-key, x-widget-api-key, x-admin-api-key",
}
MAX_LISTED: Final = 200  # protocol.md §4
DEFAULT_LISTED: Final = 100
MAX_ID_LENGTH: Final = 128

_CONVERSATION: Final = re.compile(r"/v1/admin/conversations/([^/]+)/?", re.IGNORECASE)

Handler: TypeAlias = "Callable[[web.Request, object], Awaitable[web.StreamResponse]]"
"""Takes the request and its parsed body."""


class API:
    """The state and the handlers of one application; its methods are what aiohttp calls.

    `inflated` says whether aiohttp undoes the content coding of requests or leaves that to us.
    """

    def __init__(self, settings: ServerSettings, engine: ReplyEngine, *, inflated: bool) -> None:
        self._settings = settings
        self._engine = engine
        self._inflated = inflated
        self._limiter = None if settings.rate_limit is None else WindowLimiter(settings.rate_limit)
        self._storage: Storage
        self._replies: Replies
        self._room = Room()
        self.busy: set[web.RequestHandler] = set()
        """The connections on which a request is being answered that was read whole."""
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat"): self._chat,
            ("POST", "/v1/chat/stream"): self._stream,
            ("POST", "/chat"): self._stream,
            ("GET", "/health"): self._health,
            ("GET", "/v1/openapi.json"): self._openapi,
            ("GET", "/v1/admin/conversations"): self._conversations,
        }

    # --- life ---------------------------------------------------------------------------------------------------------

    async def life(self, _app: web.Application) -> AsyncIterator[None]:
        """Open the database; at the end close the engine and it."""
        settings = self._settings
        self._storage = await Storage.open(settings.database)
        try:
            self._replies = Replies(
                self._storage, self._engine, limit=settings.max_replies, reply_timeout=settings.reply_timeout
            )
            yield
        finally:
            try:
                if (aclose := getattr(self._engine, "aclose", None)) is not None:
                    await aclose()
            finally:
                await self._storage.aclose()

    async def drain(self, _app: web.Application) -> None:
        """Let running replies finish; the sockets listen no more."""
        await self._replies.drain(self._settings.shutdown_timeout)

    # --- every request ------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, whatever it is."""
        try:
            return await self._answer(request)
        except Refusal as refusal:
            return refusal.answer
        except ConnectionError:
            raise  # the client left; aiohttp knows what to do
        except StoreError as exc:
            logger.warning("the store failed: %s", exc)
        except Exception:
            logger.exception("a request failed")
        finally:
            self.busy.discard(request.protocol)
        return json_answer({"error": INTERNAL_ERROR}, 500)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin not in self._settings.cors_origins:
            await discard_body(request)
            raise Refusal(error_page(500))
        if request.method == hdrs.METH_OPTIONS:
            await discard_body(request)
            return web.Response(status=204, headers=CORS_ANSWER)
        payload = await read_body(request, inflated=self._inflated, room=self._room)
        self.busy.add(request.protocol)
        return await self._handler(request)(request, payload)

    def _handler(self, request: web.Request) -> Handler:
        method = "GET" if request.method == "HEAD" else request.method
        path = _path(request)
        handler = self._routes.get((method, path.lower().removesuffix("/")))
        if handler is not None:
            return handler
        if method == "GET" and (found := _CONVERSATION.fullmatch(path)):
            return partial(self._conversation, conversation_id=unquote(found[1]))
        raise Refusal(error_page(404, f"Cannot {request.method} {path}"))

    def add_headers(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Add what every answer carries, and a name in place of aiohttp's, which tells versions."""
        headers = response.headers
        headers[hdrs.SERVER] = "aheadless"
        headers[hdrs.VARY] = "Origin"
        headers.update(SECURITY_HEADERS)
        if self._settings.production:
            headers["Strict-Transport-Security"] = STRICT_TRANSPORT
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin in self._settings.cors_origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        if request.keep_alive and hdrs.CONNECTION not in headers:
            headers[hdrs.CONNECTION] = "keep-alive"
            headers["Keep-Alive"] = f"timeout={KEEP_ALIVE_SECONDS}"

    # --- chat ---------------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request, payload: object) -> web.StreamResponse:
        reply = self._replies.begin(self._admit(request, payload))
        match await reply.last_event():
            case Done(text, conversation_id):
                return json_bytes(encode_reply(JSONReply(text, conversation_id)))
            case _:
                return json_answer({"error": INTERNAL_ERROR}, 500)

    async def _stream(self, request: web.Request, payload: object) -> web.StreamResponse:
        reply = self._replies.begin(self._admit(request, payload))
        if isinstance(await reply.event(0), Failure):
            return json_answer({"error": INTERNAL_ERROR}, 500)
        response = _EventStream(request)
        try:
            await response.prepare(request)
            await response.send_events(reply)
        except ConnectionError:
            # The reply goes on without its reader (protocol.md §3.4).
            logger.debug("a client left its stream")
        return response

    def _admit(self, request: web.Request, payload: object) -> ChatRequest:
        """Return the question of a chat request that passes: rate limit, then key, then payload."""
        now = asyncio.get_running_loop().time()
        if self._limiter is not None and not self._limiter.allow(self._client(request), now):
            raise Refusal(json_answer({"error": "Too many requests"}, 429))
        if not has_key(request.headers, self._settings.api_key, "x-api-key", "x-widget-api-key"):
            raise Refusal(json_answer({"error": "Unauthorized"}, 401))
        try:
            question = parse_request(payload)
        except InvalidRequestError as exc:
            details = {} if self._settings.production else {"details": str(exc)}
            raise Refusal(json_answer({"error": "Invalid request payload", **details}, 400)) from None
        if self._replies.full:
            busy = json_answer({"error": "Too many replies are being written"}, 503, headers={"Retry-After": "1"})
            raise Refusal(busy)
        return question

    def _client(self, request: web.Request) -> str:
        lines = request.headers.getall(hdrs.X_FORWARDED_FOR, [])
        return forwarded_address(lines, self._settings.trusted_proxies) or request.remote or "unknown"

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def _health(self, _request: web.Request, _payload: object) -> web.StreamResponse:
        return json_answer({"status": "ok"}, headers={"Cache-Control": "no-store"})

    async def _openapi(self, _request: web.Request, _payload: object) -> web.StreamResponse:
        return json_answer(openapi_document())

    async def _conversations(self, request: web.Request, _payload: object) -> web.StreamResponse:
        self._check_admin(request)
        match request.query.getall("limit", [str(DEFAULT_LISTED)]):
            case [limit] if re.fullmatch(r"[0-9]{1,3}", limit) and 1 <= int(limit) <= MAX_LISTED:
                return json_answer(await self._storage.conversations(int(limit)))
            case _:
                raise Refusal(json_answer({"error": "Invalid query parameters"}, 400))

    async def _conversation(
        self, request: web.Request, _payload: object, *, conversation_id: str
    ) -> web.StreamResponse:
        self._check_admin(request)
        if len(conversation_id) > MAX_ID_LENGTH:
            raise Refusal(json_answer({"error": "Invalid conversationId"}, 400))
        found = await self._storage.conversation(conversation_id)
        if found is None:
            raise Refusal(json_answer({"error": "Conversation not found"}, 404))
        return json_answer(found)

    def _check_admin(self, request: web.Request) -> None:
        if self._settings.admin_key is None:
            raise Refusal(json_answer({"error": "ADMIN_API_KEY is not configured on this deployment"}, 503))
        if not has_key(request.headers, self._settings.admin_key, "x-admin-api-key"):
            raise Refusal(json_answer({"error": "Unauthorized"}, 401))


class _EventStream(web.StreamResponse):
    """A stream of events, whose connection stays open after it although the client asked to close it.

    This is how the reference behaves (protocol.md §3.9). HTTP/1.0, which many proxies speak, knows no chunks: there the
    end of the connection is the end of the stream.

    An event is a chunk. We make the chunks, as aiohttp sends each by a system call of its own, the headers too: that
    was most of what a stream cost.
    """

    _length_check = False  # as for aiohttp's own websockets: it leaves the framing to us
    _send_headers_immediately = False

    def __init__(self, request: web.Request) -> None:
        super().__init__(headers=STREAM_HEADERS)
        self._chunks = request.version >= HttpVersion11
        self._last_chunk = b"0\r\n\r\n" if self._chunks else b""
        if self._chunks:
            self.headers[hdrs.TRANSFER_ENCODING] = "chunked"
        else:
            self.headers[hdrs.CONNECTION] = "close"

    @property
    def keep_alive(self) -> bool | None:
        return self._chunks

    async def send_events(self, reply: RunningReply) -> None:
        """Send the events of a reply as they come; a slow client holds up nobody else."""
        sent = 0
        while True:
            events = await reply.events(sent)
            sent += len(events)
            data = b"".join([self._framed(encode_event(event)) for event in events])
            if isinstance(events[-1], Done | Failure):
                await self.write_eof(data + self._last_chunk)
                return
            await self.write(data)

    def _framed(self, line: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(line), line) if self._chunks else line


def _path(request: web.Request) -> str:
    """Return the path as it was sent, nothing decoded."""
    target = request.raw_path.partition("?")[0]
    # A proxy may send the whole URL.
    return target if target.startswith("/") else request.rel_url.raw_path
