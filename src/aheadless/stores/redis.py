"""Sessions in Redis or Valkey: for several processes on several machines. Needs the extra `redis`."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from itertools import count
from typing import TYPE_CHECKING, Final, Literal

from aheadless._exchange import Lease, SessionRecord
from aheadless._options import parse_count, parse_seconds, without_frames
from aheadless.exceptions import ConfigurationError, StoreError, snippet
from aheadless.stores._base import LEASE_SECONDS, BaseStore, lost
from aheadless.stores._records import decode_message, encode_message
from aheadless.stores._redis_events import FOLLOW_LIMIT, RedisEvents
from aheadless.stores._redis_link import Argument, Link, Script
from aheadless.stores._redis_pace import RedisPace

if TYPE_CHECKING:
    from aheadless._exchange import SessionChange

__all__ = ["RedisStore"]

# How often one who waits for a session asks again, in seconds: at first, and at the most.
FIRST_POLL: Final = 0.005
LAST_POLL: Final = 0.05

# Who waits and has not asked for so long is passed over. One who was only paused comes back to the old place.
WAITER_SECONDS: Final = 2.0

# What is known of a lease that nobody has is forgotten after a day: whoever comes back then has lost it.
FORGET_LEASE: Final = 24 * 3600 * 1000

# A lease is a hash: `token`, `until` (microseconds of the server's clock; none: it is free), `ticket` of who got it,
# `order`, the number of the last one who queued. The queue is two sorted sets of tickets: by order, and by the time up
# to which their owners are believed alive.
_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local function text(number) return string.format('%.0f', number) end
"""

ACQUIRE: Final = Script(
    _NOW
    + """
local lease, queue, alive = KEYS[1], KEYS[2], KEYS[3]
local ticket, order, wait = ARGV[1], ARGV[2], ARGV[3] == '1'
local lease_ms, waiter_ms, keep_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local held = redis.call('HMGET', lease, 'token', 'until', 'ticket')
local free = now >= tonumber(held[2] or 0)
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', text(now))) do
  redis.call('ZREM', queue, dead)
  redis.call('ZREM', alive, dead)
end
if held[3] ~= ticket then
  if wait then
    if order == '' then order = text(redis.call('HINCRBY', lease, 'order', 1)) end
    redis.call('ZADD', queue, order, ticket)
    redis.call('ZADD', alive, text(now + waiter_ms * 1000), ticket)
    for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, keep_ms) end
  end
  local first = redis.call('ZRANGE', queue, 0, 0)[1]
  if not free or (first and first ~= ticket) then return {false, order} end
  redis.call('ZREM', queue, ticket)
  redis.call('ZREM', alive, ticket)
  -- The clock counts as well, so that a token grows even if what was known of the last one is gone.
  local token = math.max(tonumber(held[1] or 0) + 1, now)
  redis.call('HSET', lease, 'token', text(token), 'ticket', ticket)
  held[1] = text(token)
end
redis.call('HSET', lease, 'until', text(now + lease_ms * 1000))
redis.call('PEXPIRE', lease, keep_ms + lease_ms)
return {held[1], order}
"""
)

# Also for what was granted to a ticket whose owner has not heard of it. HDEL and ZREM work when the memory is full.
GIVE_UP: Final = Script("""
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('HGET', KEYS[1], 'ticket') == ARGV[1] then redis.call('HDEL', KEYS[1], 'until') end
""")

RENEW: Final = Script(
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'until', text(now + ARGV[2] * 1000))
redis.call('PEXPIRE', KEYS[1], ARGV[2] + ARGV[3])
return 1
"""
)

RELEASE: Final = Script("""
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then redis.call('HDEL', KEYS[1], 'until') end
""")

# A record is a hash: `revision`, `conversation`, `count`, `first` (the number of the oldest message that is kept),
# `saved` (when, in microseconds), `by` (the name of the last save). Its messages are a hash by their numbers.
SAVE: Final = Script(
    _NOW
    + """
local lease, record, messages = KEYS[1], KEYS[2], KEYS[3]
local token, lease_ms, keep_ms, revision, conversation = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local name, limit = ARGV[6], tonumber(ARGV[7])
if redis.call('HGET', lease, 'token') ~= token then return 0 end
local had = redis.call('HMGET', record, 'revision', 'by', 'count', 'first')
local last = tonumber(had[1] or 0)
-- A save of this name may have been carried out without its owner hearing of it. This one says all that it said.
if last ~= revision and not (last == revision + 1 and had[2] == name) then return 0 end
local count, first = tonumber(had[3] or 0), tonumber(had[4] or 0)
for index = 8, #ARGV, 2 do
  local number = tonumber(ARGV[index])
  if number >= first then redis.call('HSET', messages, ARGV[index], ARGV[index + 1]) end
  count = math.max(count, number + 1)
end
if limit >= 0 then
  for number = first, count - limit - 1 do redis.call('HDEL', messages, text(number)) end
  first = math.max(first, count - limit)
end
redis.call('HSET', record, 'revision', text(revision + 1), 'by', name, 'count', text(count), 'first', text(first),
           'saved', text(now))
if conversation == '' then redis.call('HDEL', record, 'conversation')
else redis.call('HSET', record, 'conversation', conversation) end
redis.call('HSET', lease, 'until', text(now + lease_ms * 1000))
redis.call('PEXPIRE', lease, lease_ms + keep_ms)
return 1
"""
)

LOAD: Final = Script("""
local had = redis.call('HMGET', KEYS[1], 'revision', 'conversation', 'count', 'first')
if not had[1] then return false end
local count, messages = tonumber(had[3]), {}
for number = math.max(tonumber(had[4]), count - ARGV[1]), count - 1 do
  messages[#messages + 1] = redis.call('HGET', KEYS[2], string.format('%.0f', number))
end
return {had[1], had[2], had[3], messages}
""")

FORGET: Final = Script("""
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
return 1
""")


class RedisStore(BaseStore):
    """Keep sessions in Redis or Valkey, for as many processes and machines as reach it.

    `url` is `redis://`, `rediss://` (TLS) or `unix://`, as the package redis takes it; its password is shown nowhere.

    - `prefix`: what all keys begin with. The keys of a session lie in one slot of a cluster.
    - `history_limit`: how many messages of a session are kept; None: all.
    - `lease_seconds`: after how many seconds a holder that does not renew its lease loses it.
    - `on_outage`: what a turn does when Redis cannot be reached. "raise": it fails with a StoreError, and nothing is
      sent; "local": it goes on with what this process knows, and a warning is logged.
    - `timeout`: how long one answer of Redis may take, in seconds.
    - `max_connections`: how many connections there are at the most, but for one more for each follower.
    - `follow`: keep the events of each turn for a while, so that `chat.follow()` gives them in any process; the
      newest `follow_limit` of a session at least.
    - `address`: names where the messages come from. The server's rate limit is that of an address; processes with the
      same name here share one pace. With machines that reach the server from different addresses, name each.

    Time is that of the Redis server. All that belongs together happens in one script, and so at once; only a session's
    name in the list of all sessions is written before its first message. Raises ConfigurationError for values that
    cannot work.
    """

    @without_frames
    def __init__(
        self,
        url: str,
        *,
        prefix: str = "aheadless",
        history_limit: int | None = None,
        lease_seconds: float = LEASE_SECONDS,
        on_outage: Literal["raise", "local"] = "raise",
        timeout: float = 5.0,
        max_connections: int = 32,
        follow: bool = False,
        follow_limit: int = FOLLOW_LIMIT,
        address: str = "",
    ) -> None:
        super().__init__(lease_seconds=lease_seconds)
        if on_outage not in {"raise", "local"}:
            raise ConfigurationError(f'on_outage must be "raise" or "local", not {snippet(repr(on_outage), 40)}')
        self._prefix = _parse_name(prefix, "prefix") or _refuse_empty("prefix")
        self._history_limit = -1 if history_limit is None else parse_count(history_limit, "history_limit", least=0)
        self._on_outage: Literal["raise", "local"] = on_outage
        self._link = Link(
            url,
            timeout=parse_seconds(timeout, "timeout"),
            max_connections=parse_count(max_connections, "max_connections", least=1),
        )
        limit = parse_count(follow_limit, "follow_limit", least=1)
        self._events = RedisEvents(self._link, self._key, limit=limit) if follow else None
        self._pace = RedisPace(
            self._link,
            f"{self._prefix}:pace:{_parse_name(address, 'address')}",
            on_outage=on_outage,
            alive_seconds=lease_seconds,
        )
        self._name = secrets.token_hex(8)
        self._numbers = count()
        self._unsure: dict[str, str] = {}  # the names of saves that may or may not have been carried out
        self._closing = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<RedisStore {self._link.shown}, prefix {self._prefix}{', closed' * self._closing.is_set()}>"

    @property
    def on_outage(self) -> Literal["raise", "local"]:
        """What a turn does when Redis cannot be reached."""
        return self._on_outage

    @property
    def events(self) -> RedisEvents | None:
        """The events of live turns, for followers; None unless it was told to keep them."""
        return self._events

    @property
    def pace(self) -> RedisPace:
        """The pace that all processes of an address share."""
        return self._pace

    # --- leases -------------------------------------------------------------------------------------------------------

    async def acquire(self, session_id: str, *, wait: bool = True) -> Lease | None:
        """Return the lease, as :class:`SessionStore` says."""
        self._check_open()
        ticket = self._new_name()
        left = asyncio.get_running_loop().create_future()
        self._waiting.add(left)
        try:
            token = await self._acquire(session_id, ticket, wait=wait)
        except BaseException:
            self._link.post(GIVE_UP, self._lease_keys(session_id), ticket)
            raise
        finally:
            self._waiting.discard(left)
            left.set_result(None)
        if token is None:
            return None
        self._unsure.pop(session_id, None)
        if self._events is not None:
            self._events.opened(session_id, token)
        return Lease(session_id, token)

    async def _acquire(self, session_id: str, ticket: str, *, wait: bool) -> int | None:
        keys, order, pause = self._lease_keys(session_id), b"", FIRST_POLL
        while True:
            token, order = await self._link.run(
                ACQUIRE,
                keys,
                ticket,
                order,
                int(wait),
                _ms(self.lease_seconds),
                _ms(WAITER_SECONDS),
                FORGET_LEASE,
            )
            if token is not None:
                return int(token)
            if not wait:
                return None
            try:
                async with asyncio.timeout(pause * random.uniform(0.5, 1)):  # noqa: S311 - not for secrets
                    await self._closing.wait()
            except TimeoutError:
                pass
            self._check_open()
            pause = min(pause * 2, LAST_POLL)

    async def renew(self, lease: Lease) -> bool:
        """Let a lease last, as :class:`SessionStore` says."""
        keys = [self._key(lease.session_id, "lease")]
        return bool(await self._link.run(RENEW, keys, lease.token, _ms(self.lease_seconds), FORGET_LEASE))

    async def release(self, lease: Lease) -> None:
        """Give a lease back, as :class:`SessionStore` says; not before the turn's events are where followers are."""
        if self._events is not None:
            await self._events.closed(lease)
        self._unsure.pop(lease.session_id, None)
        await self._link.run(RELEASE, [self._key(lease.session_id, "lease")], lease.token)

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def load(self, session_id: str, *, limit: int) -> SessionRecord | None:
        """Return what is kept, as :class:`SessionStore` says."""
        found = await self._link.run(LOAD, self._record_keys(session_id), limit)
        if found is None:
            return None
        revision, conversation, number, messages = found
        return SessionRecord(
            session_id,
            int(revision),
            None if conversation is None else conversation.decode(),
            tuple(map(decode_message, messages)),
            int(number),
        )

    async def save(self, change: SessionChange, lease: Lease) -> None:
        """Carry out a change, as :class:`SessionStore` says."""
        session_id = change.session_id
        if not change.revision:
            await self._link.command("SADD", f"{self._prefix}:sessions", session_id)
        messages: list[Argument] = []
        for number, message in change.messages:
            messages += number, encode_message(message)
        name = self._unsure.setdefault(session_id, self._new_name())
        saved = await self._link.run(
            SAVE,
            [self._key(session_id, "lease"), *self._record_keys(session_id)],
            lease.token,
            _ms(self.lease_seconds),
            FORGET_LEASE,
            change.revision,
            change.conversation_id or "",
            name,
            self._history_limit,
            *messages,
        )
        del self._unsure[session_id]
        if not saved:
            if self._events is not None:
                self._events.lost(lease)
            raise lost(session_id)

    async def forget(self, session_id: str, lease: Lease) -> None:
        """Drop what is kept, as :class:`SessionStore` says."""
        keys = [self._key(session_id, "lease"), *self._record_keys(session_id), self._key(session_id, "events")]
        if not await self._link.run(FORGET, keys, lease.token):
            raise lost(session_id)
        await self._link.command("SREM", f"{self._prefix}:sessions", session_id)

    async def list(self) -> list[str]:
        """Return the ids, as :class:`SessionStore` says."""
        known = sorted(name.decode() for name in await self._link.command("SMEMBERS", f"{self._prefix}:sessions"))
        saved = await self._link.commands([("HGET", self._key(name, "record"), "saved") for name in known])
        # One that has no record was about to be saved for the first time, or has just been forgotten.
        dated = [(int(at), name) for at, name in zip(saved, known, strict=True) if at is not None]
        return [name for _, name in sorted(dated)]

    async def aclose(self) -> None:
        """Close the connections; may be called again. Whoever waits for a lease gets a StoreError.

        First what is still to be written is, as long as the server answers. If cancelled, call it again.
        """
        self._closing.set()
        self._pace.close()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=self._link.timeout)
        await self._link.aclose()

    # --- names --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreError("the store is closed")

    def _new_name(self) -> str:
        return f"{self._name}:{next(self._numbers)}"

    def _key(self, session_id: str, what: str) -> str:
        # What stands in braces decides the slot of a cluster.
        return f"{{{self._prefix}:{session_id}}}:{what}"

    def _lease_keys(self, session_id: str) -> tuple[str, str, str]:
        return self._key(session_id, "lease"), self._key(session_id, "queue"), self._key(session_id, "alive")

    def _record_keys(self, session_id: str) -> tuple[str, str]:
        return self._key(session_id, "record"), self._key(session_id, "messages")


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)


def _parse_name(value: object, name: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-z|~]{0,100}", value):
        raise ConfigurationError(f"{name} must be up to 100 printable ASCII characters without spaces and braces")
    return value


def _refuse_empty(name: str) -> str:
    raise ConfigurationError(f"{name} is empty")
