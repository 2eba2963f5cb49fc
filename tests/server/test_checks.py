"""Who asks, and with which key."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from aheadless import Secret
from aheadless.server.checks import forwarded_address, has_key
from tests.support import KEY

addresses = st.ip_addresses().map(str)


def holds(*headers: tuple[str, str]) -> bool:
    return has_key(CIMultiDictProxy(CIMultiDict(headers)), Secret(KEY), "x-api-key", "x-widget-api-key")


@given(st.lists(st.text(alphabet="0123456789.,: x"), max_size=3), addresses, st.lists(addresses, max_size=3))
def test_what_the_client_wrote_never_counts(forged: list[str], client: str, proxies: list[str]) -> None:
    """Whatever it sends, our proxies append behind it whom they saw."""
    lines = [*forged, ", ".join([client, *proxies])]

    assert forwarded_address(lines, len(proxies) + 1) == str(ipaddress.ip_address(client))


@given(st.lists(st.text()), st.integers(0, 5))
def test_an_address_or_nothing(lines: list[str], trusted: int) -> None:
    """No header makes it fail, and nothing but an address comes out."""
    found = forwarded_address(lines, trusted)

    assert found is None or str(ipaddress.ip_address(found)) == found


@pytest.mark.parametrize(
    ("lines", "trusted"),
    [([], 1), (["1.1.1.1"], 0), (["1.1.1.1"], 2), (["1.1.1.1:80"], 1), (["1.1.1.1,"], 1), (["unknown"], 1)],
)
def test_no_address(lines: list[str], trusted: int) -> None:
    """No proxy, one that was gone around, or one that says nothing of use."""
    assert forwarded_address(lines, trusted) is None


@given(st.text())
def test_another_key_does_not_open(key: str) -> None:
    """Of any length and any characters."""
    assert holds(("X-Api-Key", key)) is (key == KEY)


@pytest.mark.parametrize("key", ["", "\udcff\udce9", "é" * 100, "x" * 100_000, KEY[:-1], KEY + " ", KEY.upper()])
def test_odd_keys(key: str) -> None:
    """Bytes that are no UTF-8 come as surrogates; they are a wrong key and no failure."""
    assert not holds(("x-api-key", key))
    assert not holds(("x-api-key", key), ("x-widget-api-key", KEY))


def test_precedence() -> None:
    """The new header alone counts if it is there, and whichever counts must be there once."""
    assert holds(("x-api-key", KEY))
    assert holds(("X-Widget-Api-Key", KEY))
    assert holds(("x-api-key", KEY), ("x-widget-api-key", "wrong"), ("x-widget-api-key", "wrong"))
    assert not holds(("x-api-key", KEY), ("X-API-KEY", KEY))
    assert not holds(("x-widget-api-key", KEY), ("x-widget-api-key", KEY))
    assert not holds(("authorization", KEY))
    assert not holds()
