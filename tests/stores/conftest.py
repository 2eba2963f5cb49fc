"""A real Redis server for the tests of its store."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# It ends with whoever started it, however that ends: a shell waits for the end of its input and then kills the server.
UNTIL_THE_END = '"$@" > /dev/null & echo $!; read -r _; kill -9 $!; wait'

MISSING = "redis-server is not installed: `apt-get install redis-server` or `brew install redis`"


def free_port() -> int:
    """Return a port that nobody listens on now, and that no connection gets by chance: systems take those from 32768 on."""
    while True:
        port = random.SystemRandom().randrange(20_000, 22_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A server of our own, which keeps nothing when it ends."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._shell: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> None:
        """Start, and return when it answers."""
        program = shutil.which("redis-server")
        assert program is not None, MISSING
        self._shell = subprocess.Popen(
            [
                *("sh", "-c", UNTIL_THE_END, "sh", program, "--port", str(self.port), "--bind", "127.0.0.1"),
                *("--save", "", "--appendonly", "no", "--dir", str(self._folder), *self._options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert self._shell.stdout is not None
            self._pid = int(self._shell.stdout.readline())
            give_up_at = time.monotonic() + 30
            while self.ask("PING") not in {b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n"}:
                assert time.monotonic() < give_up_at, "redis-server does not answer"
        except BaseException:
            self.kill()
            raise

    def ask(self, *words: str) -> bytes:
        """Return the first bytes of the answer to a command; none if there is nobody."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(
                    b"".join([b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(w), w.encode()) for w in words)])
                )
                return sock.recv(4096)
        except OSError:
            return b""

    def kill(self) -> None:
        """End it without a word; nothing happens if it has ended."""
        if self._shell is not None:
            self._shell.communicate()
            self._shell = None

    def pause(self) -> None:
        """Let it answer no more."""
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        os.kill(self._pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """One for all tests, and empty."""
    assert redis_process.ask("FLUSHALL") == b"+OK\r\n"
    return redis_process


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """One that a test can kill and start again."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()
