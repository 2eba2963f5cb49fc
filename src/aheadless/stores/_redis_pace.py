"""The pace of an address in Redis: a sliding log and a cool-down over all processes, as `_pacing` has them for one."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from itertools import count
from typing import TYPE_CHECKING, Final, Literal

from aheadless._exchange import Slot
from aheadless.exceptions import Delivery, StoreError
from aheadless.stores._redis_link import Script

if TYPE_CHECKING:
    from aheadless._options import RateLimit
    from aheadless._store import WaitReason
    from aheadless.stores._redis_link import Link

__all__ = ["RedisPace"]

logger = logging.getLogger("aheadless")

# As in `_pacing`, where the reasons are.
FIRST_COOL_DOWN: Final = 2.0
LONGEST_COOL_DOWN: Final = 10.0
OPEN_AGAIN: Final = 16

# How often it is asked again, in seconds: when an answer is waited for, and when it is known for how long to wait,
# as the cool-down may end early.
FIRST_POLL: Final = 0.01
LAST_POLL: Final = 0.1
LONGEST_SLEEP: Final = 1.0

HEARTBEATS: Final = 3

# What is known of an origin is forgotten when nobody has asked for so long, or for two windows.
KEEP: Final = 3600 * 1000

# `flight` is a sorted set of the slots whose answer has not come, by the time up to which their process is believed
# alive; `round` those of them that were given since the last 429; `log` those that count against a limit, by the time
# of the answer. `state` is a hash: `round`, `refusals`, `allowance`, `cooling` (until when), `per` (the longest window
# that was asked for), as Pacer has them. Times are microseconds.
_NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state, flight, round, log = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local function text(number) return string.format('%.0f', number) end
"""

ENTER: Final = Script(
    _NOW
    + """
local slot, limit, per, alive, keep = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
-- Whose process died may have been answered as late as this.
local dead = redis.call('ZRANGEBYSCORE', flight, '-inf', text(now), 'WITHSCORES')
for index = 1, #dead, 2 do
  redis.call('ZREM', flight, dead[index])
  redis.call('ZREM', round, dead[index])
  redis.call('ZADD', log, dead[index + 1], dead[index])
end
local known = redis.call('HMGET', state, 'allowance', 'cooling', 'per')
per = math.max(per, tonumber(known[3] or 0))
redis.call('HSET', state, 'per', text(per))
redis.call('ZREMRANGEBYSCORE', log, '-inf', text(now - per))
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, text(tonumber(keep) + 2 * per / 1000)) end
if now < tonumber(known[2] or 0) then return {'cool_down', text(known[2] - now)} end
if known[1] and redis.call('ZCARD', round) >= tonumber(known[1]) then return {'cool_down', '0'} end
if limit > 0 then
  per = tonumber(ARGV[3])
  local needed = limit - redis.call('ZCARD', flight)
  if redis.call('ZCOUNT', log, '(' .. text(now - per), '+inf') >= needed then
    -- One more can go when the oldest of so many leaves the window; if all are under way, when one is back.
    if needed <= 0 then return {'rate_limit', '0'} end
    local oldest = redis.call('ZREVRANGE', log, needed - 1, needed - 1, 'WITHSCORES')[2]
    return {'rate_limit', text(math.max(oldest + per - now, 1))}
  end
end
redis.call('ZADD', flight, text(now + alive), slot)
redis.call('ZADD', round, text(now + alive), slot)
return {'', '0'}
"""
)

LEAVE: Final = Script(
    _NOW
    + """
local slot, counted, answer, pause, chance = ARGV[1], ARGV[2] == '1', ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local first, longest, open = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local of_this_round = redis.call('ZREM', round, slot) == 1
redis.call('ZREM', flight, slot)
if counted then redis.call('ZADD', log, text(now), slot) end
if answer == '' or not of_this_round then return end
local known = redis.call('HMGET', state, 'allowance', 'refusals')
if answer == 'refused' then
  if pause < 0 then
    pause = math.min(longest, first * 2 ^ math.min(tonumber(known[2] or 0), 10)) * (1000 + chance) / 2000
  end
  redis.call('HINCRBY', state, 'refusals', 1)
  redis.call('HSET', state, 'allowance', 1, 'cooling', text(now + pause))
  redis.call('DEL', round)
elseif known[1] then
  redis.call('HDEL', state, 'refusals', 'cooling')
  if known[1] + 1 >= open then redis.call('HDEL', state, 'allowance')
  else redis.call('HINCRBY', state, 'allowance', 1) end
end
"""
)

BEAT: Final = Script(
    _NOW
    + """
local alive = text(now + ARGV[1])
for index = 2, #ARGV do
  redis.call('ZREM', log, ARGV[index])
  redis.call('ZADD', flight, alive, ARGV[index])
  redis.call('ZADD', round, 'XX', alive, ARGV[index])
end
"""
)


class RedisPace:
    """The pace that all processes of one address share.

    A process asks for one turn at a time, the others of its turns wait behind that, in order.
    """

    def __init__(self, link: Link, prefix: str, *, on_outage: Literal["raise", "local"], alive_seconds: float) -> None:
        self._link = link
        self._prefix = prefix
        self._on_outage = on_outage
        self._alive_seconds = alive_seconds
        self._name = secrets.token_hex(8)
        self._numbers = count()
        self._heads: dict[str, asyncio.Lock] = {}
        self._slots: dict[str, Slot] = {}  # by their names; in flight
        self._posted = 0
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, origin: str, limit: RateLimit | None, *, wait: bool) -> Slot | WaitReason | None:
        """Return the leave to send, as :class:`SharedPace` says."""
        slot = Slot(origin, f"{self._name}:{next(self._numbers)}")
        try:
            if wait:
                async with self._heads.setdefault(origin, asyncio.Lock()):
                    return await self._enter(slot, limit, wait=True)
            if origin in self._heads and self._heads[origin].locked():
                return "cool_down" if limit is None else "rate_limit"  # those who wait go first
            return await self._enter(slot, limit, wait=False)
        except StoreError as exc:
            self._give_back(slot)
            if self._on_outage == "raise":
                exc.delivery = Delivery.NOT_SENT
                raise
            logger.warning("the rate limit is not shared with other processes: %s", exc)
            return None
        except BaseException:
            self._give_back(slot)
            raise

    def _give_back(self, slot: Slot) -> None:
        self.leave(slot, counted=False, answer=None, retry_after=None)

    async def _enter(self, slot: Slot, limit: RateLimit | None, *, wait: bool) -> Slot | WaitReason:
        poll = FIRST_POLL
        while True:
            await self._link.written(self._posted)  # what this process has heard counts
            reason, left = await self._link.run(
                ENTER,
                self._keys(slot.origin),
                slot.name,
                0 if limit is None else limit.limit,
                0 if limit is None else _us(limit.per),
                _us(self._alive_seconds),
                KEEP,
            )
            if not reason:
                self._slots[slot.name] = slot
                self._watch()
                return slot
            if not wait:
                return "rate_limit" if reason == b"rate_limit" else "cool_down"
            pause = int(left) / 1e6
            if not pause:
                pause, poll = poll, min(poll * 2, LAST_POLL)
            # Not all processes at once, and none before its time.
            await asyncio.sleep(min(pause, LONGEST_SLEEP) + random.uniform(0, FIRST_POLL))  # noqa: S311 - no secret

    def leave(
        self, slot: Slot, *, counted: bool, answer: Literal["accepted", "refused"] | None, retry_after: float | None
    ) -> None:
        """Give a leave back, as :class:`SharedPace` says."""
        self._slots.pop(slot.name, None)
        self._posted = self._link.post(
            LEAVE,
            self._keys(slot.origin),
            slot.name,
            int(counted),
            answer or "",
            -1 if retry_after is None else _us(retry_after),
            random.randint(0, 1000),  # noqa: S311 - not for secrets
            _us(FIRST_COOL_DOWN),
            _us(LONGEST_COOL_DOWN),
            OPEN_AGAIN,
        )

    def close(self) -> None:
        """Say no more that this process is alive."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._alive_seconds / HEARTBEATS, self._beat)

    def _beat(self) -> None:
        self._timer = None
        for origin in {slot.origin for slot in self._slots.values()}:
            names = [slot.name for slot in self._slots.values() if slot.origin == origin]
            self._link.post(BEAT, self._keys(origin), _us(self._alive_seconds), *names)
        if self._slots:
            self._watch()

    def _keys(self, origin: str) -> tuple[str, ...]:
        tag = f"{{{self._prefix}:{origin}}}"
        return f"{tag}:state", f"{tag}:flight", f"{tag}:round", f"{tag}:log"


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
