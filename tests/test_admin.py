"""The conversations as the server stores them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from aheadless import AuthenticationError, ChatClient, InvalidRequestError, NotFoundError, ProtocolError
from aheadless.admin import Conversation, Message
from aheadless.testing import Script, ScriptedServer, json_answer
from tests.conftest import MakeClient
from tests.support import ADMIN_KEY, KEY, recorded


@pytest.fixture
def admin_client(scripted: ScriptedServer, make_client: MakeClient) -> ChatClient:
    return make_client(scripted.url, admin_key=ADMIN_KEY)


def answer(name: str) -> Any:
    return json.loads(recorded()[name]["body"])


async def test_recorded_list(scripted: ScriptedServer, admin_client: ChatClient) -> None:
    """The reference's list; unknown keys are passed over."""
    data = answer("admin_list")
    data["conversations"][0]["new"] = data["new"] = [None]
    scripted.add(Script(json_answer(data)))

    page = await admin_client.admin.conversations(limit=7)

    request = scripted.requests[0]
    assert (request.method, request.path) == ("GET", "/v1/admin/conversations?limit=7")
    assert (request.header("x-admin-api-key"), request.header("x-api-key")) == (ADMIN_KEY, None)
    assert page.total == data["total"]
    first = data["conversations"][0]
    assert page.conversations[0] == Conversation(
        id=first["_id"],
        session_id=first["sessionId"],
        created_at=datetime.fromtimestamp(first["createdAt"] / 1000, timezone.utc),
        updated_at=datetime.fromtimestamp(first["updatedAt"] / 1000, timezone.utc),
        last_message=first["lastMessage"],
    )


async def test_recorded_thread(scripted: ScriptedServer, admin_client: ChatClient) -> None:
    """The reference's thread, the oldest message first."""
    data = answer("admin_thread")
    scripted.add(Script(json_answer(data)))

    thread = await admin_client.admin.conversation("a/b c")

    assert scripted.requests[0].path == "/v1/admin/conversations/a%2Fb%20c"
    assert [message.content for message in thread.messages] == [message["content"] for message in data["messages"]]
    assert thread.messages[0] == Message(
        id=data["messages"][0]["_id"],
        conversation_id=data["messages"][0]["conversationId"],
        role="user",
        content=data["messages"][0]["content"],
        created_at=datetime.fromtimestamp(data["messages"][0]["createdAt"] / 1000, timezone.utc),
    )


@pytest.mark.parametrize("limit", [0, 201, -1, True, 1.5, "5", None])
async def test_wrong_limits(scripted: ScriptedServer, admin_client: ChatClient, limit: Any) -> None:
    """Refused before any I/O."""
    with pytest.raises(InvalidRequestError, match="limit"):
        await admin_client.admin.conversations(limit=limit)
    assert scripted.connections == 0


@pytest.mark.parametrize("conversation_id", ["", ".", "..", "x" * 129, "\ud83d", None, 5])
async def test_wrong_ids(scripted: ScriptedServer, admin_client: ChatClient, conversation_id: Any) -> None:
    """An empty id would be the list's own path."""
    with pytest.raises(InvalidRequestError):
        await admin_client.admin.conversation(conversation_id)
    assert scripted.connections == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("_id", None), ("_id", 5), ("createdAt", "now"), ("createdAt", 1e30), ("createdAt", True), ("sessionId", None)],
)
async def test_wrong_answers(scripted: ScriptedServer, admin_client: ChatClient, key: str, value: object) -> None:
    """A null never becomes the word "None"."""
    data = answer("admin_list")
    data["conversations"][1][key] = value
    scripted.add(Script(json_answer(data)))

    with pytest.raises(ProtocolError, match="conversations"):
        await admin_client.admin.conversations()


@pytest.mark.parametrize("total", [None, "3", True, 1.5])
async def test_wrong_total(scripted: ScriptedServer, admin_client: ChatClient, total: object) -> None:
    """A whole number is a whole number."""
    scripted.add(Script(json_answer({"conversations": [], "total": total})))

    with pytest.raises(ProtocolError, match="total"):
        await admin_client.admin.conversations()


async def test_wrong_role(scripted: ScriptedServer, admin_client: ChatClient) -> None:
    """Two roles there are."""
    data = answer("admin_thread")
    data["messages"][0]["role"] = "system"
    scripted.add(Script(json_answer(data)))

    with pytest.raises(ProtocolError, match="role"):
        await admin_client.admin.conversation("x")


async def test_refusals(scripted: ScriptedServer, admin_client: ChatClient) -> None:
    """The same errors as everywhere."""
    scripted.add(Script(json_answer({"error": "Conversation not found"}, status=404)))
    with pytest.raises(NotFoundError, match="Conversation not found"):
        await admin_client.admin.conversation("x")
    scripted.add(Script(json_answer({"error": "Unauthorized"}, status=401)))
    with pytest.raises(AuthenticationError) as caught:
        await admin_client.admin.conversations()
    assert ADMIN_KEY not in str(caught.value)
    assert KEY not in str(caught.value)
