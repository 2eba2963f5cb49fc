"""The scripted server on a thread of its own: for tests that are no coroutines, and for those that are."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from aheadless.exceptions import InvalidRequestError
from aheadless.protocol.codec import ChatRequest, parse_request, trim
from aheadless.protocol.events import Failure, Start, Token
from aheadless.testing.scripts import Script, events, json_answer, stream_answer
from aheadless.testing.server import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from aheadless.testing.server import Request

__all__ = ["BackgroundServer"]

# Both take milliseconds, but for a machine that is busy with something else.
LONGEST_START: Final = 30.0
LONGEST_END: Final = 30.0

_STREAMS: Final = frozenset({"/v1/chat/stream", "/chat"})
_WHOLE: Final = "/v1/chat"

# What follows of a chunked body after its last chunk.
_LAST_CHUNK: Final = b"0\r\n\r\n"

_Answer: TypeAlias = "Callable[[str, bool], Script]"
"""Makes what is sent of the conversation's id and of whether a stream was asked for."""


class BackgroundServer:
    """A chat API for tests of programs that use one: real HTTP on loopback, and each answer as the test wants it.

    Each of `reply`, `fail`, `give_up`, `cut` and `stall` says what the next question gets; they add up, in order. A
    question for which nothing was said gets "Hello world". It answers streams and `POST /v1/chat` alike, `/health`, and
    what the API refuses it refuses: a wrong key, a message without a text.

    ::

        with BackgroundServer() as server:
            server.reply("Hel", "lo")
            run_my_bot(server.url, server.api_key)
            assert server.messages == ["Hi"]

    It runs on a thread of its own, so it serves tests with any event loop and without one; everything may be called
    from any thread. Leaving the block closes every connection and ends the thread. Under pytest it is there as the
    fixture `aheadless_server`.
    """

    api_key: str = "the-key-of-the-test-server"
    """The chat key that it takes."""

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque()
        self._requests: list[ChatRequest] = []
        self._address: Future[str] = Future()
        self._end: Callable[[], object] = lambda: None
        self._thread = threading.Thread(target=self._run, name="aheadless-background-server", daemon=True)

    def __repr__(self) -> str:
        where = self._address.result() if self._address.done() else "not started"
        return f"<BackgroundServer {where}, {len(self._requests)} requests>"

    @property
    def url(self) -> str:
        """The base URL, such as `http://127.0.0.1:40321`."""
        if not self._thread.ident:
            raise RuntimeError("the server runs within its `with` block")
        return self._address.result(LONGEST_START)

    @property
    def requests(self) -> list[ChatRequest]:
        """The questions that arrived, in order; one that was sent again is there twice.

        Those with a wrong key, or that the API refuses for their form, are not among them.
        """
        return [*self._requests]

    @property
    def messages(self) -> list[str]:
        """The texts of the questions that arrived."""
        return [request.message for request in self._requests]

    # --- what the next question gets ----------------------------------------------------------------------------------

    def reply(self, *tokens: str) -> None:
        """Answer with a complete reply that comes in these pieces."""

        def answer(conversation_id: str, stream: bool) -> Script:  # noqa: FBT001 - as _Answer says
            if stream:
                return Script(stream_answer(events(*tokens, conversation_id=conversation_id)))
            return Script(json_answer({"conversationId": conversation_id, "message": trim("".join(tokens))}))

        self._answers.append(answer)

    def fail(self, status: int = 500, *, retry_after: float | None = None, error: str = "scripted failure") -> None:
        """Refuse with an HTTP status, and a `Retry-After` of so many seconds if one is given.

        A client waits after a 429, for 1 to 2 s if the answer does not say for how long, and asks once more; so say
        what that is to get as well. After a 503 it asks once more if there is a `retry_after`.
        """
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        script = Script(json_answer({"error": error}, status=status, headers=headers))
        self._answers.append(lambda _conversation_id, _stream: script)

    def give_up(self, *tokens: str, reason: str = "scripted failure") -> None:
        """Send these pieces, and then the `error` event with which a server says that its model has failed."""

        def answer(conversation_id: str, stream: bool) -> Script:  # noqa: FBT001 - as above
            if stream:
                return Script(stream_answer([Start(conversation_id), *map(Token, tokens), Failure(reason)]))
            return Script(json_answer({"error": "Internal server error"}, status=500))

        self._answers.append(answer)

    def cut(self, *tokens: str) -> None:
        """Send these pieces, and close the connection in the middle of the reply."""
        self._answers.append(lambda conversation_id, stream: _begin(conversation_id, tokens, "fin", stream=stream))

    def stall(self, *tokens: str) -> None:
        """Send these pieces, and then nothing more until the client leaves or the server ends."""
        self._answers.append(lambda conversation_id, stream: _begin(conversation_id, tokens, "stall", stream=stream))

    # --- the thread ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        self._address.result(LONGEST_START)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._thread.join(LONGEST_END)
        if self._thread.is_alive():
            raise RuntimeError(f"the server did not end within {LONGEST_END:.0f} s")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as exc:
            if self._address.done():
                raise
            self._address.set_exception(exc)  # whoever waits for the start raises it

    async def _serve(self) -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with ScriptedServer(otherwise=self._answer) as server:
            self._end = lambda: loop.call_soon_threadsafe(ended.set)
            self._address.set_result(server.url)
            await ended.wait()

    def _answer(self, request: Request) -> Script:
        path = request.path.partition("?")[0].rstrip("/").lower()
        match request.method, path:
            case "GET", "/health":
                return Script(json_answer({"status": "ok"}))
            case "POST", path if path in _STREAMS or path == _WHOLE:
                return self._answer_question(request, stream=path != _WHOLE)
            case _:
                return Script(json_answer(f"Cannot {request.method} {path}", status=404))

    def _answer_question(self, request: Request, *, stream: bool) -> Script:
        key = request.header("x-api-key")
        if (request.header("x-widget-api-key") if key is None else key) != self.api_key:
            return Script(json_answer({"error": "Unauthorized"}, status=401))
        try:
            asked = parse_request(json.loads(request.body))
        except (ValueError, InvalidRequestError):
            return Script(json_answer({"error": "Invalid request payload"}, status=400))
        self._requests.append(asked)
        if not self._answers:
            self.reply("Hello", " world")
        return self._answers.popleft()(_conversation_of(asked.session_id), stream)


def _begin(conversation_id: str, tokens: tuple[str, ...], end: Literal["fin", "stall"], *, stream: bool) -> Script:
    """Return the beginning of a reply and what follows it; an answer in one piece has no beginning."""
    if not stream:
        return Script(end=end)
    said = stream_answer([Start(conversation_id), *map(Token, tokens)])
    return Script(said.removesuffix(_LAST_CHUNK), end=end)


def _conversation_of(session_id: str) -> str:
    """Return an id of the server's kind, which is the same for a session and another one for each."""
    return hashlib.sha256(session_id.encode()).hexdigest()[:32]
