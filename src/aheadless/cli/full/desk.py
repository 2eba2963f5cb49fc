"""The sessions of a full-screen chat, and the turns that go on in them at the same time. No widgets."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Final, Protocol

from aheadless import (
    AheadlessError,
    ConfigurationError,
    ConnectionLostError,
    Delivery,
    RequestTimeoutError,
    SessionBusyError,
    StreamInterruptedError,
)
from aheadless.cli.full.panes import Notice, Pane, notice_of
from aheadless.protocol.codec import trim, validate_message
from aheadless.protocol.turn import TurnState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from aheadless import ChatClient, Message, Reply, Retrying, Waiting
    from aheadless._store import SessionStore

__all__ = ["Desk", "MakeClient", "unheard"]

# Of those that a store keeps, the last saved. Nobody looks through more in a side bar.
MAX_LISTED: Final = 100

# A reply whose tokens are all there already is read without waiting once; the keyboard must not wait for its end.
TOKENS_AT_ONCE: Final = 64

STOP_AGAIN: Final = 0.1

_STOPPED: Final = Notice("stopped")
_LEFT_BEHIND: Final = "nobody knows whether the server has the last question, as its reply was never seen"


class MakeClient(Protocol):
    """Makes the client whose waits are to be told of."""

    def __call__(
        self,
        *,
        store: SessionStore | None,
        on_wait: Callable[[Waiting], None],
        on_retry: Callable[[Retrying], None],
    ) -> ChatClient: ...


class Desk:
    """The sessions, the newest first, and their turns; a block that owns the client, its store and every task.

    Leaving the block stops what is live, waits until it is settled and saved, and closes the client with the store.
    `changed` is called after each change of a pane.
    """

    def __init__(
        self, make_client: MakeClient, *, store: SessionStore | None = None, session_id: str | None = None
    ) -> None:
        self.panes: list[Pane] = []
        self.changed: Callable[[Pane], None] = unheard
        self._make_client = make_client
        self._store = store
        self._first = session_id
        self._turns: dict[Pane, asyncio.Task[None]] = {}
        self._block = AsyncExitStack()

    async def __aenter__(self) -> Desk:
        async with AsyncExitStack() as opening:
            client = self._make_client(store=self._store, on_wait=self._hold, on_retry=self._hold)
            self.client: ChatClient = await opening.enter_async_context(client)
            self.can_read_back: bool = _has_admin_key(self.client)
            if self._store is not None:
                await self._list(self._store)
            self.current: Pane = self._pane(self._first or _new_id())
            # Last, as what is raised within the group comes out as a group of errors.
            self._tasks = await opening.enter_async_context(asyncio.TaskGroup())
            opening.push_async_callback(self.settle)
            self._block = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._block.__aexit__(kind, error, trace)

    async def _list(self, store: SessionStore) -> None:
        for session_id in (await store.list())[-MAX_LISTED:]:
            pane = self._pane(session_id)
            record = await store.load(session_id, limit=1)
            if record is not None and record.messages:
                pane.name_after(record.messages[-1].text)

    def _pane(self, session_id: str) -> Pane:
        for pane in self.panes:
            if pane.session_id == session_id:
                return pane
        pane = Pane(session_id)
        self.panes.insert(0, pane)
        return pane

    # --- sessions -----------------------------------------------------------------------------------------------------

    def new(self) -> Pane:
        """Return a new session, or the current one if nothing was said in it yet; it is the current one from now on."""
        if self.messages(self.current) or self.current.live:
            self.current = self._pane(_new_id())
        return self.current

    async def show(self, pane: Pane) -> None:
        """Make a session the current one, and read what the store keeps of it. Raises StoreError."""
        self.current = pane
        pane.unread = False
        if self._store is None or pane.loaded or pane.live:
            return
        await self.client.sessions.get(pane.session_id)
        pane.loaded = True
        questions = [message for message in self.messages(pane) if message.role == "user"]
        if questions and questions[-1].status == "unknown" and pane.notice is None:
            offer = "; Ctrl-R looks for it on the server" if self.can_read_back else ""
            pane.notice = Notice(_LEFT_BEHIND + offer, offer="read back" if self.can_read_back else None)

    def messages(self, pane: Pane) -> tuple[Message, ...]:
        """Return what was said in a session, without the live turn."""
        messages = self.client.chat(pane.session_id).messages
        return messages[:-1] if messages and messages[-1].status == "pending" else messages

    def last_answer(self, pane: Pane) -> str:
        """Return the text of the last answer, of a live one what has come; empty if there is none."""
        if pane.live and pane.pieces:
            return "".join(pane.pieces)
        answers = (message.text for message in reversed(self.messages(pane)) if message.role == "assistant")
        return next(answers, "")

    async def forget(self, pane: Pane) -> None:
        """Drop a session, here and in the store. Raises SessionBusyError while a turn is live in it, and StoreError.

        If it was the current one, a new one is.
        """
        await self.client.sessions.forget(pane.session_id)
        self.panes.remove(pane)
        if pane is self.current:
            self.current = self._pane(_new_id())

    # --- turns --------------------------------------------------------------------------------------------------------

    def ask(self, pane: Pane, message: str) -> None:
        """Begin a turn. Raises InvalidRequestError for what the API does not take, SessionBusyError in a live turn."""
        validate_message(message)
        if pane.live:
            raise SessionBusyError("a reply is being written", session_id=pane.session_id)
        pane.ask(message)
        self._begin(pane, self._turn(pane, message))

    def again(self, pane: Pane) -> None:
        """Do what the pane's notice offers, if it offers anything."""
        notice = pane.notice
        if pane.live or notice is None or notice.offer is None:
            return
        if notice.offer == "send again":
            self.ask(pane, pane.question)
        else:
            pane.read_back()
            self._begin(pane, self._search(pane))

    def stop(self, pane: Pane) -> None:
        """Stop what is live in a session; it is settled a moment later."""
        self.client.chat(pane.session_id).stop()

    async def settle(self) -> None:
        """Stop every live turn, and wait until each is settled and saved."""
        while self._turns:
            for pane in self._turns:
                self.stop(pane)
            # Once more if it went on: a turn that has not begun cannot be stopped, nor one between stream and search.
            await asyncio.wait(self._turns.values(), timeout=STOP_AGAIN)

    def seconds_left(self) -> float:
        """Return how long the server's 429 still holds turns back."""
        return self.client.pacing.seconds_left

    def _begin(self, pane: Pane, work: Coroutine[None, None, Notice | None]) -> None:
        async def turn() -> None:
            try:
                # Not before it is known here: an eager task, as textual makes them, might be over by then.
                await asyncio.sleep(0)
                notice = await work
            except AheadlessError as exc:
                notice = notice_of(exc, can_read_back=self.can_read_back)
            finally:
                del self._turns[pane]
            pane.end(notice, seen=pane is self.current)
            self.changed(pane)

        self._turns[pane] = self._tasks.create_task(turn())
        self.changed(pane)

    async def _turn(self, pane: Pane, message: str) -> Notice | None:
        stream = self.client.chat(pane.session_id).stream(message)
        try:
            async with aclosing(stream.text()) as texts:
                count = 0
                async for text in texts:
                    pane.add(text)
                    self.changed(pane)
                    count += 1
                    if count % TOKENS_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except (ConnectionLostError, StreamInterruptedError, RequestTimeoutError) as exc:
            if not self.can_read_back or exc.delivery in {Delivery.NOT_SENT, Delivery.REJECTED}:
                raise
            pane.read_back()
            self.changed(pane)
            if await exc.recover() is None:
                raise
            return Notice("the connection broke; this reply was read back from the server's history")
        if stream.state is not TurnState.DONE:
            return _STOPPED
        return _differs(await stream)

    async def _search(self, pane: Pane) -> Notice:
        if await self.client.chat(pane.session_id).recover() is None:
            return Notice("the server has no whole reply to it; Ctrl-R looks again", offer="read back")
        return Notice("this reply was read back from the server's history")

    def _hold(self, hold: Waiting | Retrying) -> None:
        pane = self._pane(hold.session_id)
        pane.hold = hold
        self.changed(pane)


def unheard(_pane: Pane) -> None:
    """Tell nobody of a change."""


def _differs(reply: Reply) -> Notice | None:
    if trim(reply.streamed_text) == reply.text or not trim(reply.streamed_text):
        return None
    return Notice("the server stored another text than it streamed; this is what it stored")


def _has_admin_key(client: ChatClient) -> bool:
    try:
        return client.admin is not None
    except ConfigurationError:
        return False


def _new_id() -> str:
    return f"cli:{secrets.token_hex(8)}"
