"""The application: the checks in the order of protocol.md §2, the routes behind them, and the life of it all."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote

import attrs
from aiohttp import web

from aheadless.exceptions import InvalidRequestError, StoreError
from aheadless.protocol.codec import JSONReply, encode_event, encode_reply, parse_request
from aheadless.protocol.events import Done, Failure, Start, Token
from aheadless.server.answers import (
    KEEP_ALIVE_SECONDS,
    SECURITY_HEADERS,
    Refusal,
    error_page,
    json_answer,
    json_bytes,
)
from aheadless.server.body import MAX_BODY, read_body
from aheadless.server.engines import AnswersEngine, EchoEngine, OpenAIEngine
from aheadless.server.limiter import WindowLimiter
from aheadless.server.openapi import openapi_document
from aheadless.server.replies import Replies
from aheadless.server.storage import Storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aheadless._options import Secret
    from aheadless.protocol.codec import ChatRequest
    from aheadless.server.engines import ReplyEngine
    from aheadless.server.replies import RunningReply
    from aheadless.server.settings import ServerSettings

__all__ = ["RunningServer", "create_app", "run_server"]

logger = logging.getLogger("aheadless.server")

INTERNAL_ERROR: Final = "Internal server error"
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
CONVERSATIONS: Final = "/v1/admin/conversations"

Handler: TypeAlias = "Callable[[web.Request, object], Awaitable[web.StreamResponse]]"
"""Takes the request and its parsed body."""


def create_app(settings: ServerSettings) -> web.Application:
    """Return the API as an aiohttp application, to be run by aiohttp's own means.

    Raises ConfigurationError for an engine that cannot work. The database is opened when the application starts.
    """
    server = _Server(settings, make_engine(settings))
    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_route("*", "/{path:.*}", server.handle)
    app.on_response_prepare.append(server.add_headers)
    app.cleanup_ctx.append(server.life)
    app.on_shutdown.append(server.drain)
    return app


@attrs.frozen
class RunningServer:
    """A server that listens."""

    url: str
    settings: ServerSettings

    @property
    def api_key(self) -> Secret:
        """The chat key, be it given or made."""
        return self.settings.api_key


@asynccontextmanager
async def run_server(settings: ServerSettings) -> AsyncIterator[RunningServer]:
    """Run a server as long as the block lasts; leaving it lets running replies finish, within the settings' limit.

    Raises ConfigurationError, StoreError when the database cannot be used, and OSError when the address cannot.
    """
    # A client may reuse a connection up to the announced 5 s; the sixth second spares it a race (protocol.md §3.9).
    runner = web.AppRunner(
        create_app(settings), access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS + 1, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        port = runner.addresses[0][1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield RunningServer(f"http://{host}:{port}", settings)
    finally:
        await runner.cleanup()


def make_engine(settings: ServerSettings) -> ReplyEngine:
    """Return the engine that the settings name, or the one that they hold."""
    match settings.engine:
        case "answers":
            return AnswersEngine(settings.answers_folder, delay=settings.answers_delay)
        case "openai":
            return OpenAIEngine(
                model=settings.openai_model,
                base_url=settings.openai_base_url,
                api_key=settings.openai_api_key,
                system_prompt=settings.system_prompt,
            )
        case str():
            return EchoEngine()
        case engine:
            return engine


class _Server:
    """The state and the handlers of one application."""

    def __init__(self, settings: ServerSettings, engine: ReplyEngine) -> None:
        self._settings = settings
        self._engine = engine
        self._limiter = None if settings.rate_limit is None else WindowLimiter(settings.rate_limit)
        self._storage: Storage
        self._replies: Replies
        self._routes: dict[tuple[str, str], Handler] = {
            ("POST", "/v1/chat"): self._chat,
            ("POST", "/v1/chat/stream"): self._stream,
            ("POST", "/chat"): self._stream,
            ("GET", "/health"): self._health,
            ("GET", "/v1/openapi.json"): self._openapi,
            ("GET", CONVERSATIONS): self._conversations,
        }

    # --- life ---------------------------------------------------------------------------------------------------------

    async def life(self, _app: web.Application) -> AsyncIterator[None]:
        """Open the database; at the end close it and the engine."""
        settings = self._settings
        self._storage = await Storage.open(settings.database)
        self._replies = Replies(
            self._storage, self._engine, limit=settings.max_replies, timeout=settings.reply_timeout
        )
        yield
        if (aclose := getattr(self._engine, "aclose", None)) is not None:
            await aclose()
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
        except (web.HTTPException, ConnectionError):
            raise
        except StoreError as exc:
            logger.warning("the store failed: %s", exc)
        except Exception:
            logger.exception("a request failed")
        return json_answer({"error": INTERNAL_ERROR}, 500)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and origin not in self._settings.cors_origins:
            raise Refusal(error_page(500))
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=CORS_ANSWER)
        payload = await read_body(request)
        method = "GET" if request.method == "HEAD" else request.method
        path = _path(request)
        handler = self._routes.get((method, path.lower().removesuffix("/") or "/"))
        if handler is None and method == "GET" and path.lower().startswith(CONVERSATIONS + "/"):
            handler = self._conversation
        if handler is None:
            raise Refusal(error_page(404, f"Cannot {request.method} {path}"))
        return await handler(request, payload)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer carries."""
        headers = response.headers
        headers.setdefault("Vary", "Origin")
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if self._settings.production:
            headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
        if (origin := request.headers.get("Origin")) in self._settings.cors_origins and origin is not None:
            headers["Access-Control-Allow-Origin"] = origin
        headers["Server"] = "aheadless"
        if request.keep_alive and "Connection" not in headers:
            headers["Connection"] = "keep-alive"
            headers["Keep-Alive"] = f"timeout={KEEP_ALIVE_SECONDS}"

    # --- chat ---------------------------------------------------------------------------------------------------------

    async def _chat(self, request: web.Request, payload: object) -> web.StreamResponse:
        reply = await self._begin(self._admit(request, payload))
        async for _ in reply.follow():
            pass
        if reply.text is None:
            return json_answer({"error": INTERNAL_ERROR}, 500)
        return json_bytes(encode_reply(JSONReply(reply.text, reply.conversation_id)))

    async def _stream(self, request: web.Request, payload: object) -> web.StreamResponse:
        # Once begun the reply is written and stored, even if the client has gone already.
        reply = await self._begin(self._admit(request, payload))
        conversation_id = reply.conversation_id
        response = web.StreamResponse(headers=STREAM_HEADERS)
        try:
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(encode_event(Start(conversation_id)))
            async for token in reply.follow():
                await response.write(encode_event(Token(token)))
            if reply.text is None:
                await response.write(encode_event(Failure(INTERNAL_ERROR)))
            else:
                await response.write(encode_event(Done(reply.text, conversation_id)))
            await response.write_eof()
        except ConnectionError:
            logger.debug("a client left its stream")
        return response

    def _admit(self, request: web.Request, payload: object) -> ChatRequest:
        """Return the question of a chat request that passes: rate limit, then key, then payload."""
        now = asyncio.get_running_loop().time()
        if self._limiter is not None and not self._limiter.allow(self._client_address(request), now):
            raise Refusal(json_answer({"error": "Too many requests"}, 429))
        if not _has_key(request, self._settings.api_key, "x-api-key", "x-widget-api-key"):
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

    async def _begin(self, question: ChatRequest) -> RunningReply:
        conversation_id, history = await self._storage.add_question(question.session_id, question.message)
        return self._replies.begin(conversation_id, history)

    def _client_address(self, request: web.Request) -> str:
        proxies = self._settings.trusted_proxies
        hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        if proxies and len(hops) >= proxies:
            # The last proxy appends whom it saw, so only this many entries, from the right, are not the client's word.
            try:
                return str(ipaddress.ip_address(hops[-proxies]))
            except ValueError:
                pass
        return request.remote or "unknown"

    # --- the rest -----------------------------------------------------------------------------------------------------

    async def _health(self, _request: web.Request, _payload: object) -> web.StreamResponse:
        return json_answer({"status": "ok"}, headers={"Cache-Control": "no-store"})

    async def _openapi(self, _request: web.Request, _payload: object) -> web.StreamResponse:
        return json_answer(openapi_document())

    async def _conversations(self, request: web.Request, _payload: object) -> web.StreamResponse:
        self._check_admin(request)
        limit = request.query.get("limit", str(DEFAULT_LISTED))
        if not re.fullmatch(r"[0-9]{1,3}", limit) or not 1 <= int(limit) <= MAX_LISTED:
            raise Refusal(json_answer({"error": "Invalid query parameters"}, 400))
        return json_answer(await self._storage.conversations(int(limit)))

    async def _conversation(self, request: web.Request, _payload: object) -> web.StreamResponse:
        self._check_admin(request)
        conversation_id = unquote(_path(request)[len(CONVERSATIONS) + 1 :].removesuffix("/"))
        if len(conversation_id) > MAX_ID_LENGTH:
            raise Refusal(json_answer({"error": "Invalid conversationId"}, 400))
        found = await self._storage.conversation(conversation_id)
        if found is None:
            raise Refusal(json_answer({"error": "Conversation not found"}, 404))
        return json_answer(found)

    def _check_admin(self, request: web.Request) -> None:
        if self._settings.admin_key is None:
            raise Refusal(json_answer({"error": "ADMIN_API_KEY is not configured on this deployment"}, 503))
        if not _has_key(request, self._settings.admin_key, "x-admin-api-key"):
            raise Refusal(json_answer({"error": "Unauthorized"}, 401))


def _path(request: web.Request) -> str:
    """Return the path as it was sent, nothing decoded."""
    target = request.raw_path.partition("?")[0]
    return target if target.startswith("/") else request.rel_url.raw_path


def _has_key(request: web.Request, key: Secret, *headers: str) -> bool:
    """Whether the first of the headers that is there, once, holds the key."""
    values: list[str] = next((found for name in headers if (found := request.headers.getall(name, []))), [])
    return len(values) == 1 and hmac.compare_digest(_digest(values[0]), _digest(key.reveal()))


def _digest(key: str) -> bytes:
    # Digests have one length, so the comparison tells nothing of the key's own.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
