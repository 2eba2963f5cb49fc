"""An idle session is a few small objects; benchmarks/session_memory.py measures what they cost."""

from __future__ import annotations

import gc
from collections import Counter
from datetime import datetime, timezone

import pytest

from aheadless import ChatClient, Delivery
from tests.conftest import MakeClient

SESSIONS = 500


@pytest.fixture
def client(make_client: MakeClient) -> ChatClient:
    return make_client("http://127.0.0.1:9", max_sessions=SESSIONS)


def tracked() -> Counter[str]:
    """Return how many objects there are that the collector has to look at, by their classes."""
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects())


def ask(client: ChatClient, session_id: str, *, reply: str) -> None:
    """Have a turn as a stream has it, without a server."""
    session = client.chat(session_id)._session
    session.begin("What is it?", at=datetime.now(timezone.utc))
    session.settle(
        reply,
        status="complete",
        delivery=Delivery.ACCEPTED,
        conversation_id="j",
        at=datetime.now(timezone.utc),
    )


def made_between(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """Return how many there are more for each session; other tests' leftovers are far fewer."""
    return {kind: round(count / SESSIONS) for kind, count in (after - before).items() if count > SESSIONS / 2}


async def test_idle_session(client: ChatClient) -> None:
    """Without messages it is three objects: no list, no dictionary, no callbacks, no weak reference of its own."""
    before = tracked()

    for number in range(SESSIONS):
        client.chat(f"user-{number}")

    assert made_between(before, tracked()) == {"Chat": 1, "Gate": 1, "Session": 1}


async def test_idle_session_with_messages(client: ChatClient) -> None:
    """Each message is one object, and all of a session are in one tuple."""
    before = tracked()

    for number in range(SESSIONS):
        ask(client, f"user-{number}", reply="A chat.")

    assert made_between(before, tracked()) == {"Chat": 1, "Gate": 1, "Session": 1, "Message": 2, "tuple": 1}


async def test_objects_have_no_dictionary(client: ChatClient) -> None:
    """A dictionary costs more than all that would be in it."""
    chat = client.chat("user-1")

    for thing in (chat, chat._session, chat._gate, client.chat("user-2")._registered):
        assert not hasattr(thing, "__dict__"), type(thing).__name__


async def test_held_chat_of_a_session_that_was_let_go(client: ChatClient) -> None:
    """Who asks for it again gets the same chat, with the messages it had."""
    held = client.chat("held")
    ask(client, "held", reply="A chat.")
    for number in range(SESSIONS):
        client.chat(f"user-{number}")
    assert await client.sessions.get("held") is None

    again = client.chat("held")

    assert again is held
    assert [message.text for message in again.messages] == ["What is it?", "A chat."]


async def test_forgotten_chat_that_is_held(client: ChatClient) -> None:
    """The same object again, and empty."""
    held = client.chat("held")
    ask(client, "held", reply="A chat.")

    await client.sessions.forget("held")

    assert client.chat("held") is held
    assert held.messages == ()


async def test_nobody_holds_a_session_that_was_let_go(client: ChatClient) -> None:
    """It is gone, and so are its messages."""
    ask(client, "gone", reply="A chat.")
    for number in range(SESSIONS):
        client.chat(f"user-{number}")
    gc.collect()

    assert "gone" not in client.sessions._left
    assert client.chat("gone").messages == ()
