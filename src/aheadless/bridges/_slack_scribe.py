"""The loop between a plan and Slack: asks :class:`SlackPlan` for the next step, makes it, tells what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from typing import TYPE_CHECKING, Final, Protocol

from aheadless.bridges._slack_calls import Problem, Step, Unclear, problem_of, request
from aheadless.bridges._writer import CALL_WITHIN, FINAL_WITHIN

if TYPE_CHECKING:
    from slack_bolt.context.say_stream.async_say_stream import AsyncSayStream
    from slack_sdk.http_retry.async_handler import AsyncRetryHandler

    from aheadless.bridges._slack_plan import SlackPlan

__all__ = ["Scribe"]

logger = logging.getLogger("aheadless.slack")

STATUS_WITHIN: Final = 3.0
"""Seconds that Slack has for the status: the first words wait for it."""


class _Answer(Protocol):
    """An answer that says `ok`."""

    def __getitem__(self, key: str) -> object: ...


class _WebApi(Protocol):
    """What is needed of slack_sdk's AsyncWebClient, whose own types say half of it."""

    retry_handlers: list[AsyncRetryHandler]

    async def api_call(self, api_method: str, *, json: dict[str, object]) -> _Answer: ...


class Scribe:
    """Brings a text to Slack while it grows, in a task of its own: what is read never waits for what is shown."""

    def __init__(self, say_stream: AsyncSayStream, plan: SlackPlan, status: str) -> None:
        self._to = say_stream
        # Without the SDK's retries, which append once more what arrived when only the answer to it was lost.
        self._client: _WebApi = copy.copy(say_stream.client)
        self._client.retry_handlers = []
        self._plan = plan
        self._status = status
        self._hurry = False
        self._text = ""
        self._problem: Problem | None = None  # the last one
        self._now = asyncio.get_running_loop().time
        self._ended = asyncio.Event()
        self._more = asyncio.Event()

    def say(self, text: str) -> None:
        """Take the text so far."""
        self._text = text
        self._more.set()

    def end(self, text: str, *, within: float = FINAL_WITHIN) -> None:
        """Take the whole text, unless there is one, and until when it is to be there."""
        if not self._ended.is_set():
            self.say(text)
        self._plan.finish(self._now(), within=within)
        self._ended.set()

    async def write(self) -> str | None:
        """Set the status, then do as :meth:`bring`."""
        where = {"channel_id": self._to.channel, "thread_ts": self._to.thread_ts}
        outcome = await self._call("assistant.threads.setStatus", {**where, "status": self._status}, STATUS_WITHIN)
        self._hurry = not isinstance(outcome, str)  # without a status people would see nothing before the first words
        return await self.bring()

    async def bring(self) -> str | None:
        """Return when the whole text is shown, or why it will not be. If cancelled, it can be called again."""
        plan = self._plan
        while True:
            self._more.clear()
            step = plan.step(self._text, self._now(), hurry=self._hurry)
            if plan.final and (step is None or plan.exhausted):
                return plan.refused if step is None else str(self._problem)
            if step is None:
                await _pause(self._more, until=plan.closes_at())
            elif (due := plan.due(step)) > self._now():
                await _pause(None if plan.final else self._ended, until=due)
            else:
                await self._make(step)

    async def _make(self, step: Step) -> None:
        began = self._now()
        outcome: str | Problem = Unclear()
        try:
            outcome = await self._call(*request(step, self._to), CALL_WITHIN)
        finally:
            if isinstance(outcome, str):
                self._plan.done(step, began, ts=outcome)
            else:
                self._plan.failed(step, outcome, self._now())
                self._problem = outcome

    async def _call(self, method: str, arguments: dict[str, object], within: float) -> str | Problem:
        """Return the name of the message that was made or changed, or why nobody can say so."""
        try:
            async with asyncio.timeout(within):
                answer = await self._client.api_call(method, json=arguments)
        except Exception as exc:  # noqa: BLE001 - whatever a transport raises: nobody knows whether the call arrived
            problem = problem_of(exc)
            logger.debug("%s: %s", method, problem)
            return problem
        return str(answer["ts"])


async def _pause(event: asyncio.Event | None, *, until: float | None) -> None:
    """Wait until a time, or for an event if that comes first."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await (event or asyncio.Event()).wait()
