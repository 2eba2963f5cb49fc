"""A connection of the server, and what aiohttp writes into the log about it."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion11

from aheadless.server.answers import KEEP_ALIVE_SECONDS, error_page

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "ServerLog"]


class ServerLog(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log of a server, without what strangers could fill it with.

    What cannot be parsed as HTTP is one line at INFO, a client that leaves one at DEBUG: no traceback, and nothing of
    what was sent, which may hold a key.
    """

    def __init__(self) -> None:
        super().__init__(logging.getLogger("aheadless.server"))

    # Any: whatever logging takes.
    def log(self, level: int, msg: object, *args: object, exc_info: Any = None, **options: Any) -> None:  # noqa: ANN401
        """Log what aiohttp says."""
        match exc_info:
            case HttpProcessingError():
                super().log(logging.INFO, f"{msg}: %s", *args, type(exc_info).__name__)
            case ConnectionError():
                super().log(logging.DEBUG, f"{msg}: %s", *args, type(exc_info).__name__)
            case _:
                super().log(level, msg, *args, exc_info=exc_info, **options)


class Connection(web.RequestHandler):
    """A connection that refuses what is no HTTP as any other bad request; aiohttp's own answer would quote it."""

    __slots__ = ("_add_headers", "_limit", "_server")

    def __init__(
        self, manager: web.Server, add_headers: Callable[[web.BaseRequest, web.StreamResponse], None], *, limit: int
    ) -> None:
        # A client may reuse a connection up to the announced 5 s; the sixth second spares it a race (protocol.md §3.9).
        # We inflate bodies ourselves: aiohttp refuses a coding it does not know before we could answer, and makes all
        # of what a bomb holds. We also read them to their end ourselves: aiohttp's own lingering goes on, for 10 s,
        # although the client has gone and the server has ended.
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            logger=cast("logging.Logger", ServerLog()),
            access_log=cast("logging.Logger", None),  # typed as if there had to be one
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_SECONDS + 1,
            lingering_time=0,
        )
        self._add_headers = add_headers
        self._server = manager
        self._limit = limit

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; a connection beyond the limit is closed at once."""
        super().connection_made(transport)
        if len(self._server.connections) > self._limit:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that failed outside of the application."""
        response = super().handle_error(request, status, exc, message)
        if isinstance(exc, HttpProcessingError):
            # What aiohttp cannot parse it takes for HTTP/1.0, and answers in kind.
            request._version = HttpVersion11  # noqa: SLF001 - there is no other way to say so
            response = error_page(status)
            response.force_close()
            self._add_headers(request, response)
        return response
