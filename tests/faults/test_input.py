"""Rows 57 to 63 of docs/explanation/guarantees.md: what a user can give wrong. Nothing of it reaches the network."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aheadless import AheadlessError, ChatClient, ConfigurationError, Delivery, InvalidRequestError, RateLimit, Timeouts
from aheadless.testing import CONVERSATION_ID, Script, ScriptedServer, json_answer
from tests.conftest import MakeClient
from tests.support import KEY


@pytest.fixture(autouse=True)
async def _nothing_is_sent(scripted: ScriptedServer) -> AsyncIterator[None]:
    """No connection was made before the test opened its own, if it did."""
    yield
    assert scripted.connections == len(scripted.requests)
    assert all(b"fine" in request.body for request in scripted.requests)


def assert_refused(error: AheadlessError, kind: type[AheadlessError]) -> None:
    """It is this very error, also a ValueError, and says that nothing was sent."""
    assert type(error) is kind
    assert isinstance(error, ValueError)
    assert error.delivery is Delivery.NOT_SENT
    assert error.partial == ""


# --- session ids and messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "session_id",
    [
        "",
        "x" * 129,
        "caf\u00e9",
        "\uff41",
        "\u212a",
        "a\n",
        "\na",
        "a b",
        "a/b",
        "a\x00",
        "\u0663",
        "\ud83d",
        None,
        b"a",
        5,
    ],
)
async def test_session_id(scripted: ScriptedServer, client: ChatClient, session_id: Any) -> None:
    """1 to 128 ASCII characters of the allowed ones, and no newline at the end."""
    with pytest.raises(InvalidRequestError, match="sessionId") as caught:
        client.chat(session_id)

    assert_refused(caught.value, InvalidRequestError)
    assert len(client.sessions) == 0
    assert scripted.connections == 0


WRONG_MESSAGES = [
    pytest.param("", "message is empty", id="empty"),
    pytest.param(None, "message must be a string, not NoneType", id="None"),
    pytest.param(b"Hi", "message must be a string, not bytes", id="bytes"),
    pytest.param(5, "message must be a string, not int", id="int"),
    pytest.param("x" * 4001, "message has 4001 UTF-16 units, more than 4000", id="4001 units"),
    pytest.param("😀" * 2001, "message has 4002 UTF-16 units, more than 4000", id="2001 emoji"),
    pytest.param("😀" * 1999 + "abc", "message has 4001 UTF-16 units, more than 4000", id="1999 emoji, 3 letters"),
]
_HALF = "message holds half of a surrogate pair, which cannot be encoded"
HALVES = [pytest.param(text, _HALF) for text in ("\ud83d", "a\ude00b", "\ude00\ud83d", "\ud83d\ude00", "😀\ud83d")]


@pytest.mark.parametrize(("message", "why"), WRONG_MESSAGES)
async def test_message(scripted: ScriptedServer, client: ChatClient, message: Any, why: str) -> None:
    """Refused when it is given and not when it is sent, for a stream and for a JSON answer."""
    await refuse(scripted, client, message, why)


@pytest.mark.parametrize(("message", "why"), HALVES)
async def test_lone_surrogate(scripted: ScriptedServer, client: ChatClient, message: str, why: str) -> None:
    """Half a pair cannot be encoded: it is neither sent as something else nor a UnicodeEncodeError."""
    await refuse(scripted, client, message, why)


async def refuse(scripted: ScriptedServer, client: ChatClient, message: Any, why: str) -> None:
    chat = client.chat("s")

    with pytest.raises(InvalidRequestError) as streamed:
        chat.stream(message)
    with pytest.raises(InvalidRequestError) as sent:
        await chat.send(message)

    for caught in (streamed, sent):
        assert str(caught.value) == why
        assert_refused(caught.value, InvalidRequestError)
    assert not chat.busy
    assert chat.messages == ()
    assert scripted.connections == 0


@pytest.mark.parametrize(
    "message", ["fine", "fine" + "x" * 3996, "fine" + "😀" * 1998, "fine" + "😀" * 1997 + "ab", " fine\x00\u2028\n"]
)
async def test_messages_at_the_bound(scripted: ScriptedServer, client: ChatClient, message: str) -> None:
    """4000 UTF-16 units are fine, and arrive as they are."""
    scripted.add(Script(json_answer({"conversationId": CONVERSATION_ID, "message": "yes"})))

    await client.chat("s").send(message)

    assert json.loads(scripted.requests[0].body) == {"sessionId": "s", "message": message}


# --- keys and addresses -----------------------------------------------------------------------------------------------

WRONG_KEYS = [
    "hunter2\r",
    "hunter2\n",
    "hun\nter2",
    "hunter2\x00",
    " hunter2",
    "hunter2 ",
    "\thunter2",
    "hunter2é",
    "hunter2\u212a",
]


@pytest.mark.parametrize("name", ["api_key", "admin_key"])
@pytest.mark.parametrize("key", [*WRONG_KEYS, "", 5, b"hunter2"])
async def test_key(scripted: ScriptedServer, name: str, key: Any) -> None:
    """A key that no header can carry is refused when the client is made, and is not shown."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        ChatClient(scripted.url, **{name: key})

    assert_refused(caught.value, ConfigurationError)
    assert "hunter2" not in str(caught.value)
    assert scripted.connections == 0


@pytest.mark.parametrize("variable", ["AHEADLESS_API_KEY", "WIDGET_API_KEY", "AHEADLESS_ADMIN_KEY", "ADMIN_API_KEY"])
@pytest.mark.parametrize("key", [key for key in WRONG_KEYS if "\x00" not in key])
async def test_key_from_the_environment(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str, key: str
) -> None:
    """The same holds for one that the environment has; the error names the variable."""
    monkeypatch.setenv(variable, key)

    with pytest.raises(ConfigurationError, match=variable) as caught:
        ChatClient(scripted.url)

    assert_refused(caught.value, ConfigurationError)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("given", [True, False], ids=["given", "from the environment"])
@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:4000",
        "chat.example.org",
        "//chat.example.org",
        "ftp://chat.example.org",
        "ws://chat.example.org",
        "https://",
        "https://user@chat.example.org",
        "https://user:hunter2@chat.example.org",
        "https://chat.example.org:0",
        "https://chat.example.org:65536",
        "https://chat.example.org:port",
        "https://chat.example.org:-1",
        "https://chat.example.org?x=1",
        "https://chat.example.org/?",
        "https://chat.example.org#top",
        "https://chat.example.org/ ",
        "https://chat.example.org\n",
        "https://[::1",
    ],
)
async def test_base_url(monkeypatch: pytest.MonkeyPatch, url: str, given: bool) -> None:
    """What is no plain http(s) address is refused when the client is made; a password in it is not shown."""
    if not given:
        monkeypatch.setenv("AHEADLESS_BASE_URL", url)

    with pytest.raises(ConfigurationError, match="base_url") as caught:
        ChatClient(url if given else None, api_key=KEY)

    assert_refused(caught.value, ConfigurationError)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://chat.example.org",
        "http://8.8.8.8",
        "http://[2001:4860:4860::8888]",
        "http://[::ffff:8.8.8.8]",
        "http://134744072",
        "http://0x08080808",
        "http://local.example.org",
        "http://internal.",
    ],
)
async def test_http_to_a_public_host(url: str) -> None:
    """The key would cross the internet in the clear, unless somebody says that it may."""
    with pytest.raises(ConfigurationError, match="in the clear") as caught:
        ChatClient(url, api_key=KEY)

    assert_refused(caught.value, ConfigurationError)
    async with ChatClient(url, api_key=KEY, allow_insecure_http=True) as client:
        assert client.base_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4000",
        "http://127.1.2.3",
        "http://[::1]:4000",
        "http://localhost",
        "http://app.localhost",
        "http://10.1.2.3",
        "http://172.16.0.1",
        "http://192.168.1.2",
        "http://[fd00::1]",
        "http://[fe80::1]",
        "http://chat:4000",
        "http://printer.local",
        "http://chat.internal",
        "https://chat.example.org",
    ],
)
async def test_http_within_the_house(url: str) -> None:
    """Loopback, private addresses and names that only a network of one's own has may be spoken to in the clear."""
    async with ChatClient(url, api_key=KEY) as client:
        assert client.base_url == url


# --- limits -----------------------------------------------------------------------------------------------------------


# An int beyond every float: as good as infinite.
HUGE = pytest.param(10**400, id="huge")


@pytest.mark.parametrize("name", ["connect", "first_token", "idle", "total", "send"])
@pytest.mark.parametrize(
    "value", [-1, -0.5, 0, float("nan"), float("inf"), float("-inf"), HUGE, True, False, "5", b"5", [5]]
)
async def test_timeout(name: str, value: Any) -> None:
    """A time-out is a positive number of seconds or None; it is refused when it is made, and named."""
    with pytest.raises(ConfigurationError, match=rf"^{name} must be a positive number of seconds") as caught:
        Timeouts(**{name: value})

    assert_refused(caught.value, ConfigurationError)


@pytest.mark.parametrize("value", [5, True, {"idle": 5}, "5"])
async def test_timeouts_of_another_kind(make_client: MakeClient, scripted: ScriptedServer, value: Any) -> None:
    """What is no Timeouts is not taken for one, by the client or by a turn."""
    chat = make_client(scripted.url).chat("s")

    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts"):
        ChatClient(scripted.url, api_key=KEY, timeouts=value)
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts"):
        chat.stream("Hi", timeouts=value)
    with pytest.raises(ConfigurationError, match="timeouts must be a Timeouts"):
        await chat.send("Hi", timeouts=value)

    assert scripted.connections == 0


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), HUGE, True, False, "5"])
async def test_other_seconds(scripted: ScriptedServer, value: Any) -> None:
    """The same holds for the longest wait and for a window, though no wait at all is one."""
    with pytest.raises(ConfigurationError, match="max_wait"):
        ChatClient(scripted.url, api_key=KEY, max_wait=value)
    with pytest.raises(ConfigurationError, match="per"):
        RateLimit(1, per=value)

    assert scripted.connections == 0
