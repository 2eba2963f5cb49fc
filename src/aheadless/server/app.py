"""The life of a server: an application, an engine for it, a socket."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from aheadless.server.answers import KEEP_ALIVE_SECONDS
from aheadless.server.api import API
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


logger = logging.getLogger("aheadless.server.http")


class _WithoutBytes(logging.Filter):
    """Cut what aiohttp logs of a request that is no HTTP down to a line: it quotes the bytes, and a key among them."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        record.msg, record.exc_info = f"{record.msg}: {type(error).__name__}", None
        # The client's mistake, not ours; whoever can connect could fill the log with it.
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logger.isEnabledFor(logging.DEBUG)


logger.addFilter(_WithoutBytes())


def create_app(settings: ServerSettings) -> web.Application:
    """Return the API as an aiohttp application, to be run by aiohttp's own means; for anything else see `run_server`.

    The database is opened when the application starts. Give aiohttp `keepalive_timeout=6`, which is what the API
    announces. aiohttp's own log then quotes requests that are no HTTP; `run_server` keeps that out of its log. Raises
    ConfigurationError for an engine that cannot work.
    """
    return _create_app(API(settings, make_engine(settings), inflated=True))


def _create_app(api: API) -> web.Application:
    # Not routes: the API matches paths in its own way, and what matches none gets an answer of ours, too.
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:  # noqa: ARG001 - given by name
        return await api.handle(request)

    app = web.Application(middlewares=[answer])
    app.on_response_prepare.append(api.add_headers)
    app.cleanup_ctx.append(api.life)
    app.on_shutdown.append(api.drain)
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
    # A client may reuse a connection up to the announced 5 s; the sixth second spares it a race (protocol.md §3.9).
    # We inflate bodies ourselves: aiohttp refuses a coding it does not know before we could answer, and makes all of
    # what a bomb holds. We also read them to their end ourselves: aiohttp's own lingering goes on, for 10 s, although
    # the client has gone and the server has ended.
    api = API(settings, make_engine(settings), inflated=False)
    app = _create_app(api)
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=logger,
        auto_decompress=False,
        keepalive_timeout=KEEP_ALIVE_SECONDS + 1,
        lingering_time=0,
        shutdown_timeout=LAST_WORDS,
    )

    # aiohttp now reads no more from any connection, and leaves them open until all replies have ended: a request that
    # is sent on one, or is still being sent, would wait that long, for nothing.
    async def close_idle_connections(_app: web.Application) -> None:
        for connection in runner.server.connections if runner.server is not None else ():
            if connection not in api.busy:
                connection.force_close()

    app.on_shutdown.insert(0, close_idle_connections)
    try:
        await runner.setup()
        await web.TCPSite(runner, settings.host, settings.port).start()
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
