"""Keys, base URLs, time-outs: checked before any I/O."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aheadless import ConfigurationError, Delivery, RateLimit, Secret, Timeouts
from aheadless._options import parse_base_url, parse_key


@pytest.mark.parametrize("key", ["k", "a b", "!~", "x" * 5000])
def test_keys(key: str) -> None:
    """Printable ASCII without outer spaces."""
    assert parse_key(key, "api_key").reveal() == key
    assert parse_key(Secret(key), "api_key") == Secret(key)


@pytest.mark.parametrize("key", ["", " a", "a ", "\ta", "a\r", "a\nb", "a\x00b", "a\x7f", "é", "\u212a", None, b"k", 5])
def test_wrong_keys(key: object) -> None:
    """Refused without being shown."""
    with pytest.raises(ConfigurationError, match=r"^api_key ") as caught:
        parse_key(key, "api_key")

    assert caught.value.delivery is Delivery.NOT_SENT


@pytest.mark.parametrize("key", ["hunter2-hunter2\n", " hunter2-hunter2", "hunter2-hunter2é"])
def test_a_wrong_key_is_not_shown(key: str) -> None:
    """Most of it may be right."""
    with pytest.raises(ConfigurationError) as caught:
        parse_key(key, "api_key")

    assert "hunter2" not in str(caught.value)


def test_secret_keeps_itself() -> None:
    """It prints stars, compares, and is not pickled or copied by accident."""
    secret = Secret("abc")

    assert (repr(secret), str(secret), f"{secret}", f"{secret!s:>5}") == ("***", "***", "***", "  ***")
    assert secret == Secret("abc")
    assert secret != Secret("abd")
    assert secret != "abc"
    assert hash(secret) == hash(Secret("abc"))
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            leak(secret)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("http://127.0.0.1:4000/", "http://127.0.0.1:4000"),
        ("https://example.org/api/", "https://example.org/api"),
        ("HTTPS://Example.org", "HTTPS://Example.org"),
        ("http://localhost", "http://localhost"),
        ("http://[::1]:4000", "http://[::1]:4000"),
        ("http://10.0.0.1", "http://10.0.0.1"),
        ("http://192.168.1.2", "http://192.168.1.2"),
        ("http://172.16.0.1", "http://172.16.0.1"),
        ("http://[fe80::1]", "http://[fe80::1]"),
        ("http://chat", "http://chat"),
        ("http://chat.internal:80", "http://chat.internal:80"),
        ("http://printer.local", "http://printer.local"),
        ("http://app.localhost", "http://app.localhost"),
    ],
)
def test_base_urls(url: str, base: str) -> None:
    """Plain http(s) URLs; http:// within one's own network."""
    assert parse_base_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:4000",
        "example.org",
        "//example.org",
        "ftp://example.org",
        "file:///etc/passwd",
        "https://",
        "https:///v1",
        "https://user@example.org",
        "https://user:secret@example.org",
        "https://example.org:0",
        "https://example.org:65536",
        "https://example.org:port",
        "https://example.org:",
        "https://example.org?x=1",
        "https://example.org/?",
        "https://example.org#x",
        "https://exa mple.org",
        "https://example.org\n",
        "https://example.org\\@evil",
        "https://[::1",
        "https://example.org/?key=secret",
        "https://example.org/#secret",
        "ftp://example.org/?key=secret",
        "example.org?secret",
        "user:secret@example.org",
        "https://user:se?secret@example.org",
        "https://user:secret\u2100@example.org",
        "https://[user:secret@example.org/?secret\n",
        "http://example.org/\\?\nsecret",
        None,
        b"https://example.org",
    ],
)
def test_wrong_base_urls(url: object) -> None:
    """Everything else is refused, and neither a password nor a query in it is shown."""
    with pytest.raises(ConfigurationError, match="base_url") as caught:
        parse_base_url(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "http://8.8.8.8",
        "http://[2001:4860:4860::8888]",
        "http://[::ffff:8.8.8.8]",
        "http://134744072",
        "http://0x08080808",
        "http://localhost.example.org",
        "http://evil.localnet",
    ],
)
def test_http_to_a_public_host(url: str) -> None:
    """The key would go in the clear: only if one says so."""
    with pytest.raises(ConfigurationError, match="in the clear"):
        parse_base_url(url)

    assert parse_base_url(url, allow_insecure_http=True) == url


@given(st.text())
def test_no_url_raises_anything_else(url: str) -> None:
    """A URL is taken or refused."""
    try:
        parse_base_url(url)
    except ConfigurationError:
        pass


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "5", b"5"])
@pytest.mark.parametrize("name", ["connect", "first_token", "idle", "total", "send"])
def test_wrong_timeouts(name: str, value: Any) -> None:
    """A positive number of seconds, or None."""
    with pytest.raises(ConfigurationError, match=name):
        Timeouts(**{name: value})


def test_timeouts() -> None:
    """The defaults; None is no limit."""
    assert Timeouts() == Timeouts(connect=5.0, first_token=60.0, idle=60.0, total=None, send=120.0)
    assert Timeouts(connect=None, total=0.5).connect is None


@pytest.mark.parametrize(("limit", "per"), [(0, 60), (True, 60), (1.5, 60), (30, 0), (30, None), (30, "60")])
def test_wrong_rate_limits(limit: Any, per: Any) -> None:
    """A whole number of requests in a positive number of seconds."""
    with pytest.raises(ConfigurationError):
        RateLimit(limit, per=per)
