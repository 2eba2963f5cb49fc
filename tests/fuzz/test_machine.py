"""Any order of asking, cancelling, stopping and closing, on a server that fails in any way: what is said stays true.

A short form of it is one of the tests; `nox -s fuzz` runs the long one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar, get_args

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aheadless import AheadlessError, Chat, ChatClient, Delivery, Message, Reply, ReplyStream, Retry, Timeouts, Token
from tests.fuzz.truthful import AGAIN, PLANS, TEXT, Plan, Told, TruthfulServer
from tests.support import KEY

T = TypeVar("T")
How = Literal["iterate", "text", "enter", "await", "send", "leave", "raise"]
"""The ways to drive a turn; `leave` breaks out of the loop at the first token, `raise` has a callback that fails."""

# Far beyond what anything here takes: who is not back by then hangs.
HANGS = 20.0


class OopsError(Exception):
    """What the user's own code raises."""


@attrs.define(eq=False)
class Asked:
    """A turn, as the one who asked sees it."""

    message: str
    plan: Plan
    how: How
    chat: Chat
    stream: ReplyStream | None
    task: asyncio.Task[Reply | None]

    @property
    def error(self) -> BaseException | None:
        return None if self.task.cancelled() else self.task.exception()


async def drive(chat: Chat, how: How, stream: ReplyStream | None, sending: Coroutine[Any, Any, Reply] | None) -> Any:
    if stream is None:
        assert sending is not None
        return await sending
    match how:
        case "iterate":
            async for _ in stream:
                pass
        case "leave":
            async for event in stream:
                if isinstance(event, Token):
                    break
        case "text":
            async for _ in stream.text():
                pass
        case "enter":
            async with stream:
                return await stream
        case _:
            return await stream
    return None


def fail(_text: str) -> None:
    raise OopsError


class Turns(RuleBasedStateMachine):
    """Turns of three sessions against one server."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.server = TruthfulServer()
        self.asked: list[Asked] = []
        self.clients: list[ChatClient] = []

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a plain function on the loop, where clients expect to be called."""

        async def called() -> None:
            function(*args)

        self.run(called())

    @property
    def client(self) -> ChatClient:
        return self.clients[-1]

    def make_client(self) -> None:
        self.clients.append(
            ChatClient(
                self.server.url,
                api_key=KEY,
                retry=Retry(attempts=2, base=0.001, cap=0.001),
                timeouts=Timeouts(first_token=None, idle=None, send=None),
                max_wait=HANGS / 2,
            )
        )

    # --- what can happen ----------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.run(self.server.open())
        self.make_client()

    @rule(
        session=st.sampled_from(["a", "a", "b", "c"]),
        plan=st.sampled_from(PLANS),
        how=st.sampled_from(get_args(How)),
        on_busy=st.sampled_from(["queue", "queue", "reject", "interrupt"]),
    )
    def ask(self, session: str, plan: Plan, how: How, on_busy: Any) -> None:
        """Begin a turn."""

        async def begin() -> None:
            chat = self.client.chat(session)
            message = f"{plan} {len(self.asked)}"
            on_token = fail if how == "raise" else None
            stream = sending = None
            if how == "send":
                sending = chat.send(message, on_busy=on_busy)
            else:
                stream = chat.stream(message, on_busy=on_busy, on_token=on_token)
            task = asyncio.create_task(drive(chat, how, stream, sending))
            self.asked.append(Asked(message, plan, how, chat, stream, task))

        self.run(begin())

    @rule(steps=st.integers(1, 40))
    def go_on(self, steps: int) -> None:
        """Let everyone take some steps."""

        async def take() -> None:
            for _ in range(steps):
                await asyncio.sleep(0)

        self.run(take())

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Cancel whoever reads a turn."""
        self.call(data.draw(st.sampled_from(self.asked)).task.cancel)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), whole=st.booleans())
    def stop(self, data: st.DataObject, whole: bool) -> None:
        """Stop a stream, or whatever its session is at."""
        turn = data.draw(st.sampled_from(self.asked))
        self.call(turn.chat.stop if whole or turn.stream is None else turn.stream.stop)

    @rule()
    def open_the_gate(self) -> None:
        """Let the server finish what it held back."""
        self.call(self.server.open_gate)

    @rule()
    def cut_all_connections(self) -> None:
        """The network fails."""
        self.call(self.server.cut)

    @rule()
    def kill_or_revive_the_server(self) -> None:
        """It refuses connections, or is there again."""
        self.run(self.server.close() if self.server.listening else self.server.open())

    @rule()
    def close_the_client(self) -> None:
        """All its turns end at once, without being waited for; another one takes its place."""
        self.run(self.client.aclose())
        assert not self.client._core.live
        self.make_client()

    # --- what must always be true -------------------------------------------------------------------------------------

    @invariant()
    def at_most_one_question_is_open(self) -> None:
        """And it is the last one of a session that is busy."""
        for chat in self.chats():
            pending = [number for number, message in enumerate(chat.messages) if message.status == "pending"]
            assert pending in ([], [len(chat.messages) - 1])
            assert chat.busy or not pending

    @invariant()
    def nothing_is_stored_twice(self) -> None:
        """Whatever happened, and however often it was tried."""
        for message, told in self.server.log.items():
            assert told.stored <= 1, message
            assert told.arrived <= (2 if message.split()[0] in AGAIN else 1), message

    def chats(self) -> set[Chat]:
        return {turn.chat for turn in self.asked}

    def teardown(self) -> None:
        try:
            self.run(self.finish())
            for turn in self.asked:
                self.check(turn)
            self.nothing_is_stored_twice()
        finally:
            self.runner.close()

    async def finish(self) -> None:
        """Let all turns come to their end; nobody hangs, and nothing is left."""
        if not self.server.listening:
            await self.server.open()
        async with asyncio.timeout(HANGS):
            while waiting := [turn.task for turn in self.asked if not turn.task.done()]:
                self.server.open_gate()
                await asyncio.wait(waiting, timeout=0.001)
        for chat in self.chats():
            assert not chat.busy
            assert all(message.status != "pending" for message in chat.messages)
        for client in self.clients:
            assert not client._core.live
            await client.aclose()
        await self.server.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def check(self, turn: Asked) -> None:
        """What the turn's owner was told is what the server knows."""
        told = self.server.log.get(turn.message, Told())
        question, answer = recorded(turn)
        error = turn.error
        if question is None:
            assert told.arrived == 0, "sent without a record of it"
            assert error is None or isinstance(error, AheadlessError)
            assert error is None or error.delivery is Delivery.NOT_SENT
            return
        check_verdict(turn, question.delivery, told)
        if answer is not None:
            assert TEXT.startswith(answer.text)
            assert (answer.status == "complete") is (answer.text == TEXT and question.status == "complete")
        if isinstance(error, AheadlessError):
            assert error.delivery is question.delivery, turn
            assert error.session_id == turn.chat.session_id
            assert TEXT.startswith(error.partial)
            assert error.partial == ("" if answer is None else answer.text)
        else:
            assert error is None or (turn.how == "raise" and isinstance(error, OopsError))
        if question.status == "complete":
            assert (told.stored, answer and answer.text) == (1, TEXT)
        if not turn.task.cancelled() and error is None and (reply := turn.task.result()) is not None:
            assert (reply.text, question.status) == (TEXT, "complete")


def recorded(turn: Asked) -> tuple[Message | None, Message | None]:
    """Return the question of a turn and its answer, if the session has them."""
    messages = turn.chat.messages
    found = [number for number, message in enumerate(messages) if message.text == turn.message]
    if not found:
        return None, None
    [number] = found
    assert messages[number].role == "user"
    following = messages[number + 1] if number + 1 < len(messages) else None
    return messages[number], following if following is not None and following.role == "assistant" else None


def check_verdict(turn: Asked, delivery: Delivery, told: Told) -> None:
    match delivery:
        case Delivery.NOT_SENT:
            assert told.stored == 0, turn
        case Delivery.REJECTED:
            assert (told.stored, told.arrived > 0) == (0, True), turn
        case Delivery.ACCEPTED:
            assert told.stored == 1, turn
        case Delivery.UNKNOWN:
            pass  # whatever it is


def test_turns() -> None:
    """Nothing is sent twice, no session stays busy, and the verdict on each message is what the server's log says."""
    long = settings.get_current_profile_name() == "fuzz"
    run_state_machine_as_test(Turns, settings=settings() if long else settings(max_examples=25, stateful_step_count=25))
