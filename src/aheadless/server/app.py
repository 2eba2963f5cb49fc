"""The life of a server: an application, an engine for it, a socket."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

import attrs
from aiohttp import web

from aheadless.server.api import API
from aheadless.server.connection import Connection, ServerLog
from aheadless.server.engines import AnswersEngine, EchoEngine, OpenAIEngine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from aiohttp.typedefs import Handler

    from aheadless._options import Secret
    from aheadless.server.engines import ReplyEngine
    from aheadless.server.settings import ServerSettings

__all__ = ["RunningServer", "create_app", "run_server"]

# The replies have ended by then; what is left is to write their last events to clients that read.
LAST_WORDS = 1.0  # seconds

# Connections that wait to be accepted. Clients of a bot that starts come all at once, and the system has one for which
# there is no place here try again only after a second.
BACKLOG = 1024

# Two connections for each reply, one on which it is read and one that idles, and some for all else. Without a limit a
# flood of them, each with its buffers, could fill the memory, although one that idles is closed after 6 s.
SPARE_CONNECTIONS = 100


def create_app(settings: ServerSettings) -> web.Application:
    """Return the API as an aiohttp application, to be run by aiohttp's own means; for anything else see `run_server`.

    The database is opened when the application starts. Give aiohttp `keepalive_timeout=6`, which is what the API
    announces. What aiohttp cannot parse it refuses before the application sees it, with an answer of its own: that
    quotes the bytes to whoever sent them and has none of the API's headers. In the log it is one line without them.
    Raises ConfigurationError for an engine that cannot work.
    """
    return _create_app(API(settings, make_engine(settings), inflated=True))


def _create_app(api: API) -> web.Application:
    # Not routes: the API matches paths in its own way, and what matches none gets an answer of ours, too.
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: ARG001 - given by name
        return await api.handle(request)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        api.add_headers(request, response)

    app = web.Application(middlewares=[answer], handler_args={"logger": ServerLog()})
    # Never called, but what has no route costs: aiohttp makes a refusal and a chain of handlers for each such request.
    app.router.add_route("*", "/{path:.*}", api.handle)
    app.on_response_prepare.append(add_headers)
    app.cleanup_ctx.append(api.life)
    app.on_shutdown.append(api.drain)
    return app


@attrs.frozen
class RunningServer:
    """A server that listens."""

    url: str
    """The base URL, such as `http://127.0.0.1:4000`."""
    settings: ServerSettings

    @property
    def api_key(self) -> Secret:
        """The chat key, be it given or made."""
        return self.settings.api_key

    @property
    def admin_key(self) -> Secret | None:
        """The admin key, if there is one."""
        return self.settings.admin_key


@asynccontextmanager
async def run_server(settings: ServerSettings) -> AsyncGenerator[RunningServer, None]:
    """Run a server as long as the block lasts.

    Leaving the block stops listening, lets running replies finish and be stored for at most
    `settings.shutdown_timeout` seconds, and closes the database. Raises ConfigurationError, StoreError when the
    database cannot be used, and OSError when the address cannot.
    """
    api = API(settings, make_engine(settings), inflated=False)
    app = _create_app(api)
    runner = web.AppRunner(app, shutdown_timeout=LAST_WORDS)

    # aiohttp now reads no more from any connection, and leaves them open until all replies have ended: a request that
    # is sent on one, or is still being sent, would wait that long, for nothing.
    async def close_idle_connections(_app: web.Application) -> None:
        for connection in runner.server.connections if runner.server is not None else ():
            if connection not in api.busy:
                connection.force_close()

    app.on_shutdown.insert(0, close_idle_connections)
    try:
        await runner.setup()
        limit = 2 * settings.max_replies + SPARE_CONNECTIONS
        connect = partial(Connection, cast("web.Server", runner.server), api.add_headers, limit=limit)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(connect, settings.host, settings.port, backlog=BACKLOG)
        try:
            port = listening.sockets[0].getsockname()[1]
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            yield RunningServer(f"http://{host}:{port}", settings)
        finally:
            listening.close()
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
