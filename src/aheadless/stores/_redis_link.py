"""The way to a Redis server: scripts that run at once or later, in order, and errors that are ours."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast

import attrs

from aheadless._extras import needs
from aheadless.exceptions import ConfigurationError, StoreError, snippet

with needs("aheadless[redis]"):
    from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import NoScriptError, RedisError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["Answer", "Argument", "Link", "Script"]

T = TypeVar("T")

logger = logging.getLogger("aheadless")

Argument: TypeAlias = str | bytes | int

Answer: TypeAlias = Any
"""What a server returns: bytes, whole numbers, None and lists of these, as the script or the command says."""

# One round trip carries so many calls at the most: some 100 KiB of tokens.
BATCH: Final = 500

# Calls that wait to be sent later, of all turns of this process: a server that does not answer costs some megabytes.
MAX_POSTED: Final = 20_000


class Script:
    """A Lua script: it runs as a whole or not at all, by the server's clock."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.sha: Final = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # its name on the server


@attrs.frozen
class _Call:
    script: Script
    keys: tuple[str, ...]
    args: tuple[Argument, ...]

    def words(self) -> tuple[Argument, ...]:
        return (len(self.keys), *self.keys, *self.args)


class _Pipeline(Protocol):
    """What is used of redis.asyncio's, whose own types are not complete."""

    def execute_command(self, *words: Argument) -> object: ...
    async def execute(self, *, raise_on_error: bool = True) -> list[Answer]: ...


class _Server(Protocol):
    async def execute_command(self, *words: Argument) -> Answer: ...
    def pipeline(self, *, transaction: bool) -> AbstractAsyncContextManager[_Pipeline]: ...
    async def aclose(self, *, close_connection_pool: bool) -> None: ...


class Link:
    """Run scripts on a server.

    All of them can be run twice with the effect of once: a connection that breaks leaves open whether they were.
    Every failure is a StoreError that holds no password. Belongs to the event loop that uses it first.
    """

    def __init__(self, url: str, *, timeout: float, max_connections: int) -> None:
        options = _parse(url)
        self._password = str(options.get("password") or "")
        self.shown: Final = _shown(options)
        """The server's address, without what is secret in it."""
        self.timeout: Final = timeout
        defaults: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        fixed: dict[str, Any] = {
            "protocol": 2,  # the answers' shapes are those of this one
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),  # decided here, where it is known what can be repeated
        }
        options = {**defaults, **options, **fixed}
        pooled: dict[str, Any] = {**options, "max_connections": max_connections, "timeout": timeout}
        pool = BlockingConnectionPool(**pooled)
        try:
            cast("Any", pool).make_connection()
        except TypeError as exc:
            raise ConfigurationError(f"url holds an option that does not exist: {snippet(str(exc))}") from None
        self._redis = _server(pool)
        # Followers hold a connection each, and wait for as long as they say.
        options["socket_timeout"] = None
        self._readers = _server(ConnectionPool(**options))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._posted: deque[_Call] = deque()
        self._count = 0  # of the calls that were ever posted
        self._written = 0  # how many of them are done with, one way or the other
        self._progress = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._complained = False
        self._asking: set[asyncio.Timeout] = set()  # those who wait for an answer
        self._idle = asyncio.Event()

    def check_open(self) -> None:
        """Raise StoreError when it is closed."""
        if self._closed:
            raise StoreError("the store is closed")

    async def run(self, script: Script, keys: Sequence[str], *args: Argument) -> Answer:
        """Run a script and return what it returns. If cancelled, it may have run."""
        self._loop = asyncio.get_running_loop()
        call = _Call(script, tuple(keys), args)
        return await self._translated(lambda: self._run(call))

    async def _run(self, call: _Call) -> Answer:
        try:
            return await self._redis.execute_command("EVALSHA", call.script.sha, *call.words())
        except NoScriptError:
            return await self._redis.execute_command("EVAL", call.script.text, *call.words())

    async def command(self, *words: Argument) -> Answer:
        """Run one plain command that can be repeated."""
        return await self._translated(lambda: self._redis.execute_command(*words))

    async def commands(self, commands: Sequence[tuple[Argument, ...]]) -> list[Answer]:
        """Run many plain commands that can be repeated, in few round trips."""
        found: list[Answer] = []
        for start in range(0, len(commands), BATCH):
            batch = commands[start : start + BATCH]
            found += await self._translated(partial(self._run_commands, batch))
        return found

    async def _run_commands(self, commands: Sequence[tuple[Argument, ...]]) -> list[Answer]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for words in commands:
                pipeline.execute_command(*words)
            return await pipeline.execute()

    async def read(self, stream: str, after: str, *, wait: float, count: int) -> list[Answer]:
        """Return the entries of a stream after an id; waits for so many seconds for the first one."""
        command = ("XREAD", "COUNT", count, "BLOCK", int(wait * 1000), "STREAMS", stream, after)

        async def read() -> Answer:
            async with asyncio.timeout(wait + self.timeout):
                return await self._readers.execute_command(*command)

        found = await self._translated(read)
        return found[0][1] if found else []

    async def _translated(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the server, and once more when the connection broke: it was restarted, or has closed what was idle."""
        self.check_open()
        scope = asyncio.timeout(None)  # ended when all is closed
        self._asking.add(scope)
        try:
            async with scope:
                try:
                    return await ask()
                except RedisConnectionError:
                    return await ask()
        except (RedisError, OSError) as exc:  # TimeoutError is an OSError
            error = StoreError("the store is closed") if self._closed else self._error(exc)
        finally:
            self._asking.discard(scope)
            if not self._asking:
                self._idle.set()
        raise error

    # --- later --------------------------------------------------------------------------------------------------------

    def post(self, script: Script, keys: Sequence[str], *args: Argument) -> int:
        """Run a script soon, after all that were posted before; return its number, for :meth:`written`.

        Does not wait and does not fail: what could not be run is told in the log, once for each outage.
        """
        if self._closed or self._loop is None or self._loop.is_closed():
            return self._written
        if len(self._posted) >= MAX_POSTED:
            self._complain(StoreError(f"{MAX_POSTED} calls wait for an answer"))
            return self._written
        self._posted.append(_Call(script, tuple(keys), args))
        self._count += 1
        if self._writer is None or self._writer.done():
            self._writer = self._loop.create_task(self._write(), name="aheadless-redis")
        return self._count

    async def written(self, number: int) -> None:
        """Return when what was posted with this number has run, or has failed."""
        while self._written < number and not self._closed:
            await self._progress.wait()

    async def _write(self) -> None:
        while self._posted:
            batch = [self._posted.popleft() for _ in range(min(len(self._posted), BATCH))]
            try:
                await self._write_batch(batch)
            finally:
                self._written += len(batch)
                self._progress.set()
                self._progress = asyncio.Event()

    async def _write_batch(self, batch: list[_Call]) -> None:
        try:
            results = await self._translated(lambda: self._run_all(batch))
            # A script that the server has lost, or never had.
            for index, call in enumerate(batch):
                if isinstance(results[index], NoScriptError):
                    results[index] = await self.run(call.script, call.keys, *call.args)
        except StoreError as exc:
            self._complain(exc)
            return
        failures = [result for result in results if isinstance(result, Exception)]
        if failures:
            self._complain(self._error(failures[0]))
        else:
            self._complained = False

    async def _run_all(self, batch: list[_Call]) -> list[Answer]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for call in batch:
                pipeline.execute_command("EVALSHA", call.script.sha, *call.words())
            return await pipeline.execute(raise_on_error=False)

    def _complain(self, error: StoreError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("events or answers were not told to other processes: %s", error)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Run what was posted, as long as the server answers, and close the connections."""
        if self._closed:
            return
        try:
            if self._writer is not None:
                await asyncio.wait([self._writer], timeout=self.timeout)
        finally:
            self._closed = True
            self._progress.set()
            if self._writer is not None:
                self._writer.cancel()
                await asyncio.wait([self._writer])
            if self._asking:
                self._idle.clear()
                for scope in self._asking:
                    scope.reschedule(0)
                await self._idle.wait()
            for redis in (self._redis, self._readers):
                await redis.aclose(close_connection_pool=True)

    def _error(self, exc: Exception) -> StoreError:
        """Return our error for one of theirs, which is not kept as the cause: its frames hold the password."""
        text = str(exc) or type(exc).__name__
        if self._password:
            text = text.replace(self._password, "***")
        return StoreError(f"Redis at {self.shown}: {snippet(text)}")


def _server(pool: ConnectionPool) -> _Server:
    redis = Redis.from_pool(pool)
    redis.response_callbacks.clear()  # what the server says is taken as it is, be it from a command or from a script
    return cast("_Server", redis)


def _parse(url: object) -> dict[str, Any]:
    if isinstance(url, str):
        try:
            options: dict[str, Any] = {**parse_url(url)}
        except ValueError:
            pass  # its message, and its frames, may quote the password
        else:
            # Those of the pools are given here.
            return {name: value for name, value in options.items() if name not in {"max_connections", "timeout"}}
    raise ConfigurationError("url must be redis://host:port/db, rediss://host:port/db or unix:///path/of.sock")


def _shown(options: dict[str, Any]) -> str:
    if "path" in options:
        return f"{options['path']}"
    host = options.get("host", "localhost")
    return f"{f'[{host}]' if ':' in host else host}:{options.get('port', 6379)}/{options.get('db', 0)}"
