"""The events of live turns in Redis Streams, so that another process can give them to its reader."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

from aheadless.exceptions import ReplyFailedError, StreamInterruptedError, UsageError, snippet
from aheadless.protocol.codec import decode_event, encode_event
from aheadless.protocol.events import Done, Failure, Token
from aheadless.stores._redis_link import Script

if TYPE_CHECKING:
    from collections.abc import Callable

    from aheadless._exchange import Lease
    from aheadless.protocol.events import Event
    from aheadless.stores._redis_link import Link

__all__ = ["FOLLOW_LIMIT", "RedisEvents", "RedisFollowing"]

# The longest replies are some 4,000 tokens; an entry takes about 100 bytes.
FOLLOW_LIMIT: Final = 10_000

# A browser that has not come back for so long will not.
KEEP: Final = 3600 * 1000

# How long one read waits. After that it is looked whether the driving process is still alive.
BLOCK: Final = 1.0
READ: Final = 500

BEGIN: Final = b"begin"
END: Final = b"end"

# An entry is `t` (the lease's token, which names the turn), `n` (its number in the turn, from 0) and `e`: an event's
# line, or the marks for the beginning and the early end. Only the holder of the lease can append, and only the next
# number: what is there of a turn has no gap, whatever was lost on the way. On the lease: `logged` (the turn that is in
# the stream), `number` (its last entry), `before` (the entry before its first one).
APPEND: Final = Script("""
local lease, events, token, number, event = KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local held = redis.call('HMGET', lease, 'token', 'logged', 'number')
if held[1] ~= token then return 0 end
local last = held[2] == token and tonumber(held[3]) or -1
if event == 'end' then number = last + 1 elseif number ~= last + 1 then return 0 end
if number == 0 then
  local newest = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
  redis.call('HSET', lease, 'before', newest and newest[1] or '0-0')
end
redis.call('XADD', events, 'MAXLEN', '~', ARGV[4], '*', 't', token, 'n', number, 'e', event)
redis.call('HSET', lease, 'logged', token, 'number', number)
redis.call('PEXPIRE', events, ARGV[5])
return 1
""")

_LIVE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local held = redis.call('HMGET', KEYS[1], 'token', 'until', 'logged', 'before')
local live = now < tonumber(held[2] or 0)
"""

# Where to begin without an id: the entry to read after, and the turn that is live there, if one is.
LOCATE: Final = Script(
    _LIVE
    + """
if live and held[3] == held[1] then return {held[4], held[1]} end
local newest = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
return {newest and newest[1] or '0-0', false}
"""
)

# What more there is of a turn whose process may have died: false as long as it has its lease.
REST: Final = Script(
    _LIVE
    + """
if live and held[1] == ARGV[1] then return false end
return redis.call('XRANGE', KEYS[2], '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
"""
)

_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


@attrs.define(eq=False)
class _Turn:
    """What was posted of a turn that this process drives."""

    token: int
    begun: bool = False
    over: bool = False
    number: int = 0
    """Of the next entry."""
    posted: int = 0
    """The link's number of the last entry."""


class RedisEvents:
    """Append the events of this process's turns, and follow those of any."""

    def __init__(self, link: Link, key: Callable[[str, str], str], *, limit: int) -> None:
        self._link = link
        self._key = key
        self._limit = limit
        self._turns: dict[str, _Turn] = {}

    def opened(self, session_id: str, token: int) -> None:
        """Take note of a lease."""
        self._turns[session_id] = _Turn(token)

    async def closed(self, lease: Lease) -> None:
        """Return when all that was appended under a lease is there, or cannot be."""
        turn = self._turns.get(lease.session_id)
        if turn is not None and turn.token == lease.token:
            await self._link.written(turn.posted)
            self.lost(lease)

    def lost(self, lease: Lease) -> None:
        """Take note that a lease is no longer ours."""
        turn = self._turns.get(lease.session_id)
        if turn is not None and turn.token == lease.token:
            del self._turns[lease.session_id]

    def begin(self, session_id: str) -> None:
        """Begin a turn, as :class:`EventLog` says."""
        if (turn := self._turns.get(session_id)) is not None:
            turn.begun = True
            self._post(session_id, turn, BEGIN)

    def append(self, session_id: str, event: Event) -> None:
        """Add an event, as :class:`EventLog` says."""
        turn = self._turns.get(session_id)
        if turn is not None and not turn.over:
            turn.over = isinstance(event, Done | Failure)
            self._post(session_id, turn, encode_event(event))

    def end(self, session_id: str) -> None:
        """End a turn, as :class:`EventLog` says."""
        turn = self._turns.get(session_id)
        if turn is not None and turn.begun and not turn.over:
            turn.over = True
            self._post(session_id, turn, END)

    def _post(self, session_id: str, turn: _Turn, event: bytes) -> None:
        keys = (self._key(session_id, "lease"), self._key(session_id, "events"))
        turn.posted = self._link.post(APPEND, keys, turn.token, turn.number, event, self._limit, KEEP)
        turn.number += 1

    def follow(self, session_id: str, after: str | None) -> RedisFollowing:
        """Return the events, as :class:`EventLog` says."""
        if after is not None and not (isinstance(after, str) and _ID.fullmatch(after)):
            raise UsageError(f"{snippet(repr(after), 60)} is no event id")
        return RedisFollowing(
            self._link, session_id, self._key(session_id, "lease"), self._key(session_id, "events"), after
        )


@attrs.frozen
class _Entry:
    id: str
    token: str
    number: int
    event: bytes


class RedisFollowing:
    """The events of one turn, read from its stream."""

    def __init__(self, link: Link, session_id: str, lease: str, events: str, after: str | None) -> None:
        self._link = link
        self._session_id = session_id
        self._lease = lease
        self._events = events
        self._given = after
        self._read_to: str | None = None  # the entry after which to read; None: it is not known yet where to begin
        self._token: str | None = None  # of the turn; None: that of the next entry
        self._number = 0  # of the next entry
        self._entries: deque[_Entry] = deque()
        self._parts: list[str] = []
        self._reading = False
        self._failure: Failure | None = None  # was given: the error comes next
        self._over = False

    def __repr__(self) -> str:
        return f"<RedisFollowing {self._session_id}, after {self._given}>"

    @property
    def event_id(self) -> str | None:
        """The id of the event that was given last, as :class:`Following` says."""
        return self._given

    def __aiter__(self) -> RedisFollowing:
        return self

    async def __anext__(self) -> Event:
        """Return the next event, as :class:`Following` says."""
        if self._reading:
            raise UsageError("another task reads these events; follow once for each reader")
        self._reading = True
        try:
            while not self._over:
                if self._failure is not None:
                    raise self._failed(self._failure)
                if self._read_to is None:
                    await self._locate()
                elif not self._entries:
                    await self._fetch(self._read_to)
                elif (event := self._take(self._entries.popleft())) is not None:
                    return event
        finally:
            self._reading = False
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop following; the turn goes on. Not to be called while another task reads."""
        self._over = True

    def _take(self, entry: _Entry) -> Event | None:
        """Return the event of the next entry; None for the mark of the beginning."""
        self._token = self._token or entry.token
        if entry.token != self._token:
            raise self._interrupted("the turn ended without `done` or `error`: its process died")
        if entry.number != self._number:
            raise self._interrupted("events of the turn are no longer kept")
        self._number += 1
        if entry.event == END:
            raise self._interrupted("the turn ended without `done` or `error`")
        if entry.event == BEGIN:
            return None
        event = decode_event(entry.event)
        self._given = entry.id
        if isinstance(event, Token):
            self._parts.append(event.text)
        elif isinstance(event, Failure):
            self._failure = event
        elif isinstance(event, Done):
            self._over = True
        return event

    async def _locate(self) -> None:
        if self._given is None:
            after, token = await self._link.run(LOCATE, (self._lease, self._events))
            self._token = None if token is None else token.decode()
            self._read_to = after.decode()
            return
        [*found] = map(_parse, await self._link.command("XRANGE", self._events, self._given, self._given))
        if not found:
            raise self._interrupted(f"the events after {self._given} are no longer kept")
        entry = found[0]
        self._token, self._number = entry.token, entry.number
        self._take(entry)  # it may be the last one
        self._parts.clear()
        self._read_to = entry.id

    async def _fetch(self, after: str) -> None:
        """Read what has come, or wait for a while; find out when nothing more will come."""
        found = await self._link.read(self._events, after, wait=BLOCK, count=READ)
        if not found and self._token is not None:
            rest = await self._link.run(REST, (self._lease, self._events), self._token, after, READ)
            if rest is None:
                return
            if not rest:
                raise self._interrupted("the turn ended without `done` or `error`: its process died")
            found = rest
        self._entries.extend(map(_parse, found))
        if self._entries:
            self._read_to = self._entries[-1].id

    def _interrupted(self, message: str) -> StreamInterruptedError:
        self._over = True
        return StreamInterruptedError(message, session_id=self._session_id, partial="".join(self._parts))

    def _failed(self, failure: Failure) -> ReplyFailedError:
        self._over = True
        return ReplyFailedError(
            f"the server gave up: {snippet(failure.reason)}",
            reason=failure.reason,
            session_id=self._session_id,
            partial="".join(self._parts),
        )


def _parse(entry: tuple[bytes, list[bytes]]) -> _Entry:
    """Return an entry as the server tells it: its id, then names and values in turn."""
    name, fields = entry
    return _Entry(name.decode(), fields[1].decode(), int(fields[3]), fields[5])
