"""The server goes away in the middle of a thousand streams."""

from __future__ import annotations

import asyncio
import gc
import resource
from contextlib import AsyncExitStack
from functools import partial

import aiohttp
import pytest

from aheadless import ChatClient, ReplyStream, Retry, StreamInterruptedError
from aheadless._answer import Answer
from aheadless.testing import Script, ScriptedServer, events, stream_answer
from tests.faults.asking import AC
from tests.support import KEY

STREAMS = 1000


@pytest.fixture(autouse=True)
def _enough_files() -> None:
    """Both ends of each connection are open in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * STREAMS + 200
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            pytest.skip(f"this process may open only {hard} files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def broken(stream: ReplyStream) -> bool:
    """Whether this end has seen that the connection is lost."""
    assert isinstance(stream._source, Answer)
    return stream._source._content.exception() is not None


def tokens_of(number: int) -> list[str]:
    """Return what stream `number` is told before the end: nothing to six tokens."""
    return [f"{number}/{count} " for count in range(number % 7)]


@pytest.mark.slow
@pytest.mark.parametrize("drained", [True, False])
async def test_server_goes_away_under_a_thousand_streams(drained: bool) -> None:
    """Each ends with an error that has exactly what it was sent, whether its reader was there in time or came too late.

    Nothing hangs, and neither a task nor an answer is left.
    """
    told = dict.fromkeys(range(STREAMS), "")
    missing = sum(len(tokens_of(number)) for number in range(STREAMS))
    all_told = asyncio.Event()

    def note(number: int, text: str) -> None:
        nonlocal missing
        told[number] += text
        missing -= 1
        if not missing:
            all_told.set()

    async with (
        ScriptedServer() as server,
        ChatClient(server.url, api_key=KEY, retry=Retry(1), max_connections=STREAMS) as client,
        AsyncExitStack() as stack,
    ):
        streams: list[ReplyStream] = []
        for number in range(STREAMS):
            data = stream_answer(events(*tokens_of(number))[:-1]).removesuffix(b"0\r\n\r\n")
            server.add(Script(data, end="stall"))
            stream = client.chat(str(number)).stream("Hi", on_token=partial(note, number))
            streams.append(await stack.enter_async_context(stream))
        if drained:
            readers = [asyncio.create_task(stream.reply()) for stream in streams]
            await all_told.wait()
            await server.aclose()
        else:
            await server.aclose()
            while not all(broken(stream) for stream in streams):
                await asyncio.sleep(0)
            readers = [asyncio.create_task(stream.reply()) for stream in streams]
        async with asyncio.timeout(30):
            outcomes = await asyncio.gather(*readers, return_exceptions=True)

        for number, outcome in enumerate(outcomes):
            text = "".join(tokens_of(number))
            assert type(outcome) is StreamInterruptedError, outcome
            assert (outcome.partial, outcome.delivery, outcome.session_id) == (text, AC, str(number))
            assert told[number] == text
            assert not client.chat(str(number)).busy
            assert client.chat(str(number)).messages[-1].partial == text
        assert len(server.stored) == STREAMS
        assert asyncio.all_tasks() == {asyncio.current_task()}

    del stack, streams, stream, readers, outcomes, outcome
    gc.collect()
    assert [thing for thing in gc.get_objects() if issubclass(type(thing), aiohttp.ClientResponse)] == []
