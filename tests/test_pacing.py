"""Rate limits: paced beforehand, cooled down after, on a virtual clock; and over a real socket."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aheadless import (
    AheadlessError,
    ChatClient,
    ConfigurationError,
    Delivery,
    PacingState,
    RateLimit,
    RateLimitError,
    StreamStoppedError,
    UsageError,
    Waiting,
)
from aheadless._pacing import LONGEST_COOL_DOWN, MAX_LOG, MAX_WAITING, Pacer, Pass, pacer_for
from aheadless.server.limiter import WindowLimiter
from aheadless.testing import Script, ScriptedServer, json_answer
from tests.conftest import MakeClient
from tests.virtual import run_virtually

LIMIT = RateLimit(30, per=60)
REFUSED = Script(json_answer({"error": "Too many requests"}, status=429))


def now() -> float:
    return asyncio.get_running_loop().time()


# --- a limit that is known beforehand ---------------------------------------------------------------------------------


async def simulate(requests: int, *, limit: RateLimit, slowest: float, seed: int) -> tuple[int, float]:
    """Send so many through one pacer to a fixed window; return its refusals and the seconds it took."""
    chance = random.Random(seed)
    pacer, server = Pacer(), WindowLimiter(limit)
    refused = 0
    todo = iter(range(requests))
    await asyncio.sleep(chance.uniform(0, limit.per))  # the window's phase
    begun = now()

    async def worker() -> None:
        nonlocal refused
        for _ in todo:
            leave = await pacer.enter(limit)
            there = chance.uniform(0, slowest)
            await asyncio.sleep(there)
            refused += not server.allow("us", now())
            await asyncio.sleep(chance.uniform(0, slowest - there))
            pacer.leave(leave, counted=True)
            if chance.random() < 0.01:
                await asyncio.sleep(chance.uniform(0, 2 * limit.per))  # a pause, so that windows open at any time

    await asyncio.gather(*(worker() for _ in range(40)))
    return refused, now() - begun


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_refused(seed: int) -> None:
    """150,000 requests with random phases and latencies against a fixed window: not one is refused."""
    refused, _ = run_virtually(simulate(30_000, limit=LIMIT, slowest=2.0, seed=seed))

    assert refused == 0


def test_the_window_is_used() -> None:
    """At latencies under 2 s at least 95 % of what the window allows goes through."""
    refused, took = run_virtually(simulate(3000, limit=LIMIT, slowest=2.0, seed=7))

    assert refused == 0
    assert 3000 / took >= 0.95 * LIMIT.limit / LIMIT.per


@pytest.mark.slow
@settings(max_examples=50)
@given(st.integers(1, 5), st.floats(1, 100), st.floats(0.01, 300), st.integers(0, 1000))
def test_nothing_is_refused_by_any_window(limit: int, per: float, slowest: float, seed: int) -> None:
    """Whatever the limit, and however slow the answers."""
    refused, _ = run_virtually(simulate(200, limit=RateLimit(limit, per=per), slowest=slowest, seed=seed))

    assert refused == 0


def test_stamped_when_answered_and_not_when_sent() -> None:
    """A request that is under way holds its place; what was not sent at all gives it back at once."""

    async def main() -> None:
        pacer, limit = Pacer(), RateLimit(2, per=60)
        slow, unsent = await pacer.enter(limit), await pacer.enter(limit)
        assert pacer.must_wait(limit)
        pacer.leave(unsent, counted=False)
        assert not pacer.must_wait(limit)
        quick = await pacer.enter(limit)
        pacer.leave(quick, counted=True)
        third = asyncio.create_task(pacer.enter(limit))
        await asyncio.sleep(50)
        pacer.leave(slow, counted=True)
        pacer.leave(await third, counted=True)
        assert now() == pytest.approx(60)
        await pacer.enter(limit)
        assert now() == pytest.approx(110)

    run_virtually(main())


def test_no_waiting_without_need() -> None:
    """Who can go at once does so without giving way to anyone."""

    async def main() -> None:
        with pytest.raises(StopIteration) as returned:
            Pacer().enter(LIMIT).send(None)
        assert isinstance(returned.value.value, Pass)

    run_virtually(main())


def test_nobody_passes_the_queue() -> None:
    """A client without a limit of its own goes behind one that waits for its limit; only who was refused goes before."""

    async def main() -> None:
        pacer, one = Pacer(), RateLimit(1, per=60)
        assert not pacer.must_wait(None)
        first = await pacer.enter(one)
        came: list[str] = []

        async def queue(name: str, limit: RateLimit | None, *, again: bool) -> None:
            leave = await (pacer.enter(limit, again=True) if again else pacer.enter(limit))
            came.append(name)
            pacer.leave(leave, counted=False)

        tasks = [
            asyncio.create_task(queue("limited", one, again=False)),
            asyncio.create_task(queue("free", None, again=False)),
            asyncio.create_task(queue("again", one, again=True)),
        ]
        await asyncio.sleep(0)
        assert pacer.must_wait(None)
        pacer.leave(first, counted=False)
        await asyncio.gather(*tasks)
        assert came == ["again", "limited", "free"]

    run_virtually(main())


def test_cancelled_in_the_very_moment_of_its_turn() -> None:
    """What was let go and not sent does not count."""

    async def main() -> None:
        pacer, one = Pacer(), RateLimit(1, per=60)
        first = await pacer.enter(one)
        let_go, last = (asyncio.create_task(pacer.enter(one)) for _ in range(2))
        await asyncio.sleep(0)
        pacer.leave(first, counted=False)
        let_go.cancel()
        await last
        assert (let_go.cancelled(), now()) == (True, 0)

    run_virtually(main())


def test_behind_one_that_was_cancelled() -> None:
    """Who stands behind a place that was given up a moment ago gets its turn."""

    async def main() -> None:
        pacer, one = Pacer(), RateLimit(1, per=60)
        first = await pacer.enter(one)
        gone, last = (asyncio.create_task(pacer.enter(one)) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        pacer.leave(first, counted=False)
        await last
        assert (gone.cancelled(), now()) == (True, 0)

    run_virtually(main())


def test_all_wait_while_it_cools_down() -> None:
    """With a limit of their own and without."""

    async def main() -> None:
        pacer = Pacer()
        pacer.refused(await pacer.enter(None), 5)
        assert pacer.must_wait(None)
        assert pacer.must_wait(LIMIT)

    run_virtually(main())


def test_log_is_bounded() -> None:
    """The stamps of old requests go, however many are sent."""

    async def main() -> None:
        pacer = Pacer()
        for _ in range(MAX_LOG + 10):
            pacer.leave(await pacer.enter(None), counted=True)
        assert len(pacer._answered) == MAX_LOG

    run_virtually(main())


def test_each_origin_has_its_own_pace() -> None:
    """All clients of one share it, those of another do not."""

    async def main() -> None:
        pacer = pacer_for("http://one")
        assert pacer_for("http://one") is pacer
        assert pacer_for("http://two") is not pacer

    run_virtually(main())


# --- a cool-down after a 429 ------------------------------------------------------------------------------------------


async def ask(pacer: Pacer, server: WindowLimiter | None, log: list[tuple[float, str]], name: str) -> None:
    """Send until it gets through, as a client does."""
    again = False
    while True:
        leave = await pacer.enter(None, again=again)
        await asyncio.sleep(0.1)
        allowed = server is None or server.allow("us", now())
        log.append((round(now(), 3), name if allowed else "429"))
        if allowed:
            pacer.accepted(leave)
            pacer.leave(leave, counted=True)
            return
        pacer.refused(leave, None)
        pacer.leave(leave, counted=False)
        again = True


def test_cool_down_is_shared_and_ends() -> None:
    """A crowd meets a full window: few probes go, then all get through, and nobody asks in vain after that."""

    async def main() -> list[tuple[float, str]]:
        pacer, server = Pacer(chance=lambda: 0.5), WindowLimiter(LIMIT)
        for _ in range(30):
            server.allow("us", now())
        log: list[tuple[float, str]] = []
        await asyncio.gather(*(ask(pacer, server, log, str(n)) for n in range(20)))
        assert pacer.state().waiting == 0
        return log

    log = run_virtually(main())
    first = [entry for entry in log if entry[0] < 1]
    probes = [entry for entry in log if entry[1] == "429" and entry[0] > 1]
    through = [entry for entry in log if entry[1] != "429"]
    assert len(first) == 20  # they were on their way when the first 429 came
    assert 5 <= len(probes) <= 12
    assert len(through) == 20
    assert through[0][0] <= 60 + LONGEST_COOL_DOWN
    assert log.index(through[0]) == len(log) - 20, "once one got through, nobody was refused"


def test_released_slowly_and_in_order() -> None:
    """One probe, then two, then four at a time; first come, first served."""

    async def main() -> None:
        pacer = Pacer(chance=lambda: 0.0)
        pacer.refused(await pacer.enter(None), 5.0)
        pacer.leave(Pass(0), counted=False)
        log: list[tuple[float, str]] = []
        await asyncio.gather(*(ask(pacer, None, log, str(n)) for n in range(16)))
        assert [at for at, _ in log] == [5.1] + [5.2] * 2 + [5.3] * 4 + [5.4] * 8 + [5.5]
        for first, last in ((0, 1), (1, 3), (3, 7), (7, 15), (15, 16)):
            assert {name for _, name in log[first:last]} == {str(n) for n in range(first, last)}

    run_virtually(main())


def test_states_are_visible() -> None:
    """Open, cooling with the seconds left, releasing, open again."""

    async def main() -> None:
        pacer = Pacer()
        assert pacer.state() == PacingState("open", 0, 0.0)
        leave = await pacer.enter(None)
        pacer.refused(leave, 10)
        pacer.leave(leave, counted=False)
        waiting = asyncio.create_task(pacer.enter(None))
        await asyncio.sleep(4)
        assert pacer.state() == PacingState("cooling", 1, 6.0)
        probe = await waiting
        assert pacer.state() == PacingState("releasing", 0, 0.0)
        pacer.accepted(probe)
        pacer.leave(probe, counted=True)
        for _ in range(14):
            assert pacer.state().state == "releasing"
            leave = await pacer.enter(None)
            pacer.accepted(leave)
            pacer.leave(leave, counted=True)
        assert pacer.state() == PacingState("open", 0, 0.0)

    run_virtually(main())


def test_what_was_on_its_way_starts_no_new_cool_down() -> None:
    """Ten answers of 429 to ten requests sent together are one refusal."""

    async def main() -> None:
        pacer = Pacer(chance=lambda: 1.0)
        leaves = [await pacer.enter(None) for _ in range(10)]
        for leave in leaves:
            pacer.refused(leave, None)
            pacer.leave(leave, counted=False)
        assert pacer.state().seconds_left == 2.0
        probe = await pacer.enter(None)
        pacer.accepted(leaves[0])  # an old answer opens nothing
        assert pacer.state().state == "releasing"
        pacer.refused(probe, None)
        pacer.leave(probe, counted=False)
        assert pacer.state().seconds_left == 4.0

    run_virtually(main())


def test_a_probe_that_is_lost_is_followed_by_another() -> None:
    """No answer at all is neither a yes nor a no."""

    async def main() -> None:
        pacer = Pacer()
        leave = await pacer.enter(None)
        pacer.refused(leave, 1)
        pacer.leave(leave, counted=False)
        probe = await pacer.enter(None)
        second = asyncio.create_task(pacer.enter(None))
        await asyncio.sleep(0)
        assert not second.done()
        pacer.leave(probe, counted=True)
        await second

    run_virtually(main())


def test_cancelled_while_waiting() -> None:
    """No place is lost: not in the queue, and not in the very moment of being let go."""

    async def main() -> None:
        pacer = Pacer()
        leave = await pacer.enter(None)
        pacer.refused(leave, 1)
        pacer.leave(leave, counted=False)
        tasks = [asyncio.create_task(pacer.enter(None)) for _ in range(3)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        await asyncio.sleep(0.4999)
        asyncio.get_running_loop().call_at(1.0, tasks[1].cancel)
        assert isinstance(await tasks[2], Pass)
        assert [task.cancelled() for task in tasks] == [True, True, False]
        assert pacer.state().waiting == 0
        assert pacer._in_flight == 1

    run_virtually(main())


def test_cool_downs_grow_until_one_gets_through() -> None:
    """Two seconds, four, eight, ten; after an answer it is two again."""

    async def main() -> None:
        pacer = Pacer(chance=lambda: 1.0)

        async def refused_for() -> float:
            leave = await pacer.enter(None)
            pacer.refused(leave, None)
            pacer.leave(leave, counted=False)
            return pacer.state().seconds_left

        assert [await refused_for() for _ in range(5)] == pytest.approx([2, 4, 8, 10, 10])
        leave = await pacer.enter(None)
        pacer.accepted(leave)
        pacer.leave(leave, counted=True)
        assert await refused_for() == pytest.approx(2)

    run_virtually(main())


def test_queue_is_bounded() -> None:
    """A thousand wait, the next is refused before anything is sent."""

    async def main() -> None:
        pacer = Pacer()
        leave = await pacer.enter(None)
        pacer.refused(leave, 1000)
        tasks = [asyncio.create_task(pacer.enter(None)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(RateLimitError, match=f"^{MAX_WAITING} turns wait") as caught:
            await pacer.enter(None)
        assert caught.value.delivery is Delivery.NOT_SENT
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pacer.state().waiting == 0

    run_virtually(main())


# --- on the wire ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Over real sockets a cool-down takes milliseconds."""
    if "scripted" in request.fixturenames:
        monkeypatch.setattr("aheadless._pacing.FIRST_COOL_DOWN", 0.01)
        monkeypatch.setattr("aheadless._pacing.LONGEST_COOL_DOWN", 0.02)


async def test_429_is_waited_out(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The turn gets through without its caller noticing; one who wants to know is told once."""
    scripted.add(REFUSED, REFUSED, REFUSED)
    told: list[Waiting] = []
    client = make_client(scripted.url, max_wait=5, on_wait=told.append)

    assert (await client.chat("s").stream("Hi")).text == "Hello world"

    assert told == [Waiting("s", "cool_down", 5)]
    assert len(scripted.requests) == 4
    assert [message.status for message in client.chat("s").messages] == ["complete", "complete"]
    assert client.pacing.state == "releasing"


async def test_429_for_too_long(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The wait is bounded by time; the last refusal is raised."""
    scripted.add(*[REFUSED] * 100)
    client = make_client(scripted.url, max_wait=0.1)

    with pytest.raises(RateLimitError) as caught:
        await client.chat("s").stream("Hi")

    assert (caught.value.status, caught.value.delivery) == (429, Delivery.REJECTED)
    assert 2 <= len(scripted.requests) <= 50


async def test_retry_after_beyond_the_wait(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Who would wait in vain is told at once."""
    scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "100"})))
    client = make_client(scripted.url, max_wait=50)

    with pytest.raises(RateLimitError) as caught:
        await client.chat("s").stream("Hi")

    assert caught.value.retry_after == 100
    assert client.pacing.state == "cooling"


async def test_cool_down_is_shared_between_clients(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """The limit is the address's, so all clients of this process wait."""
    scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "0.05"})))
    first, second = make_client(scripted.url), make_client(scripted.url + "/v1/..", max_wait=5)
    with pytest.raises(RateLimitError):
        await first.chat("s").stream("Hi")

    assert second.pacing.state == "cooling"
    told: list[Waiting] = []
    second = make_client(scripted.url, max_wait=5, on_wait=told.append)
    await second.chat("s").stream("Hi")

    assert len(told) == 1
    assert pacer_for(scripted.url) is pacer_for(scripted.url)


async def test_own_limit(scripted: ScriptedServer, make_client: MakeClient) -> None:
    """Paced beforehand; what cannot go within max_wait is not sent."""
    client = make_client(scripted.url, rate_limit=RateLimit(2, per=0.1), max_wait=1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for _ in range(5):
        await client.chat("s").stream("Hi")
    assert loop.time() - begun >= 0.2

    client = make_client(scripted.url, rate_limit=RateLimit(1, per=1000), max_wait=0.05)
    with pytest.raises(RateLimitError, match="left no room") as caught:
        await client.chat("s").stream("Hi")
    assert caught.value.delivery is Delivery.NOT_SENT
    assert len(scripted.requests) == 5


@pytest.mark.parametrize("how", ["stop", "cancel", "close"])
async def test_leaving_the_wait(
    scripted: ScriptedServer, client: ChatClient, make_client: MakeClient, how: str
) -> None:
    """A turn that waits can be stopped, cancelled and closed; the session is free, nobody's place is lost."""
    scripted.add(Script(json_answer({}, status=429, headers={"Retry-After": "30"})))
    waits = asyncio.Event()
    client = make_client(scripted.url, max_wait=60, on_wait=lambda _: waits.set())
    chat = client.chat("s")
    task = asyncio.create_task(chat.stream("Hi").reply())
    await waits.wait()
    await asyncio.sleep(0)
    assert client.pacing.waiting == 1

    if how == "stop":
        chat.stop()
    elif how == "cancel":
        task.cancel()
    else:
        await client.aclose()
    [error] = await asyncio.gather(task, return_exceptions=True)

    assert not chat.busy
    assert pacer_for(scripted.url).state().waiting == 0
    if isinstance(error, AheadlessError):
        assert error.delivery is Delivery.REJECTED
    assert isinstance(error, StreamStoppedError) is (how == "stop")


def test_pace_without_an_event_loop() -> None:
    """There is none; that is said in the library's own words."""
    with pytest.raises(UsageError, match="no event loop"):
        _ = ChatClient("http://127.0.0.1").pacing


@pytest.mark.parametrize(
    "options", [{"max_wait": -1}, {"max_wait": None}, {"rate_limit": 30}, {"retry": 3}, {"on_wait": 1}]
)
def test_wrong_options(options: dict[str, Any]) -> None:
    """Refused at once."""
    with pytest.raises(ConfigurationError):
        ChatClient("http://127.0.0.1", **options)
