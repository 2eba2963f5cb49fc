"""The conversations as the server stores them (protocol.md §4); needs the admin key."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from aheadless._options import hide
from aheadless._session import Role  # noqa: TC001 - cattrs looks at the annotations when it runs
from aheadless.exceptions import InvalidRequestError, ProtocolError, snippet
from aheadless.protocol.ndjson import parse_object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aheadless._http import Key

__all__ = ["AdminClient", "Conversation", "ConversationPage", "Message", "Thread"]

T = TypeVar("T")

MAX_LIMIT = 200  # protocol.md §4
MAX_ID_LENGTH = 128  # protocol.md §4


@attrs.frozen
class Conversation:
    """One conversation on the server."""

    id: str
    session_id: str
    created_at: datetime
    """Aware, by the server's clock, as all times here."""
    updated_at: datetime
    last_message: str = ""
    """The first 500 UTF-16 units of the newest message."""


@attrs.frozen
class Message:
    """One stored message."""

    id: str
    conversation_id: str
    role: Role
    content: str
    created_at: datetime


@attrs.frozen
class ConversationPage:
    """The newest conversations, the last updated first."""

    conversations: tuple[Conversation, ...]
    total: int
    """How many there are on the server; there is no paging, so only the newest 200 can be listed."""


@attrs.frozen
class Thread:
    """A conversation with its messages, the oldest first."""

    conversation: Conversation
    messages: tuple[Message, ...]
    answered_at: datetime | None = attrs.field(default=None, eq=False)
    """The server's time when it answered, to the second, if its answer had a `Date`."""


class AdminClient:
    """Read the server's conversations; made by :attr:`ChatClient.admin`.

    Errors are those of any request of the client. Nothing here changes anything; if a call is cancelled, its connection
    is closed.
    """

    def __init__(self, get: Callable[[str, Key], Awaitable[tuple[bytes, datetime | None]]], key: Key) -> None:
        self._get = get
        self._key = key

    async def conversations(self, *, limit: int = 100) -> ConversationPage:
        """Return the newest conversations, at most `limit` of them (1 to 200)."""
        if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= MAX_LIMIT:
            raise InvalidRequestError(f"limit must be a whole number from 1 to {MAX_LIMIT}, not {limit!r}")
        page, _ = await self._fetch(f"/v1/admin/conversations?limit={limit}", ConversationPage)
        return page

    async def conversation(self, conversation_id: str) -> Thread:
        """Return a conversation and its messages; NotFoundError when there is none with this id."""
        if not isinstance(conversation_id, str) or not 1 <= len(conversation_id) <= MAX_ID_LENGTH:
            raise InvalidRequestError(f"a conversation id has 1 to {MAX_ID_LENGTH} characters")
        # Empty, it would be the list's path; as dots, another path altogether.
        if conversation_id in {".", ".."}:
            raise InvalidRequestError(f"{conversation_id!r} is no conversation id")
        try:
            quoted = quote(conversation_id, safe="")
        except UnicodeEncodeError:
            raise InvalidRequestError("the conversation id cannot be encoded") from None
        thread, answered_at = await self._fetch(f"/v1/admin/conversations/{quoted}", Thread)
        return attrs.evolve(thread, answered_at=answered_at)

    async def _fetch(self, path: str, kind: type[T]) -> tuple[T, datetime | None]:
        body, answered_at = await self._get(path, self._key)
        try:
            return _structure(body, kind), answered_at
        except ProtocolError as exc:
            hide(self._key.secret, exc)
            raise


def _structure(body: bytes, kind: type[T]) -> T:
    data = parse_object(body)
    try:
        return _converter.structure(data, kind)
    except cattrs.BaseValidationError as exc:
        raise ProtocolError(snippet("; ".join(cattrs.transform_error(exc)))) from None


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()

    # cattrs would call str() and int() here, and turn a null into the word "None".
    def text(value: object, _kind: object) -> str:
        if not isinstance(value, str):
            raise TypeError(f"expected a string, got {snippet(repr(value), 40)}")
        return value

    def count(value: object, _kind: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"expected a whole number, got {snippet(repr(value), 40)}")
        return value

    def moment(value: object, _kind: object) -> datetime:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError(f"expected milliseconds, got {snippet(repr(value), 40)}")
        return datetime.fromtimestamp(value / 1000, timezone.utc)

    converter.register_structure_hook(str, text)
    converter.register_structure_hook(int, count)
    converter.register_structure_hook(datetime, moment)
    converter.register_structure_hook(
        Conversation,
        make_dict_structure_fn(
            Conversation,
            converter,
            id=override(rename="_id"),
            session_id=override(rename="sessionId"),
            created_at=override(rename="createdAt"),
            updated_at=override(rename="updatedAt"),
            last_message=override(rename="lastMessage"),
        ),
    )
    converter.register_structure_hook(
        Message,
        make_dict_structure_fn(
            Message,
            converter,
            id=override(rename="_id"),
            conversation_id=override(rename="conversationId"),
            created_at=override(rename="createdAt"),
        ),
    )
    # That one is ours, not the wire's.
    converter.register_structure_hook(
        Thread, make_dict_structure_fn(Thread, converter, answered_at=override(omit=True))
    )
    return converter


_converter = _make_converter()
