"""Who asks, and whether with the right key: decided from the request's headers alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multidict import CIMultiDictProxy

    from aheadless._options import Secret

__all__ = ["forwarded_address", "has_key"]


def has_key(headers: CIMultiDictProxy[str], key: Secret, *names: str) -> bool:
    """Return whether the first of the named headers that is there, once, holds the key (protocol.md §1).

    The time it takes tells nothing about the key; no value, however long or odd, makes it fail.
    """
    values = next((headers.getall(name) for name in names if name in headers), [""])
    return len(values) == 1 and hmac.compare_digest(_digest(values[0]), _digest(key.reveal()))


def _digest(key: str) -> bytes:
    # Digests have one length, so the comparison does not show the key's own. Bytes that are no UTF-8 arrive as
    # surrogates.
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def forwarded_address(lines: Sequence[str], trusted_proxies: int) -> str | None:
    """Return the client's address in `X-Forwarded-For`, or None if it is not to be had from there.

    Each proxy appends the address that it saw, so this many entries from the right are not the client's own word. A
    client that came around the proxies, or an entry that is no address, gives None.
    """
    hops = [hop.strip() for line in lines for hop in line.split(",")]
    if not 0 < trusted_proxies <= len(hops):
        return None
    try:
        # Without a scope, which may be of any length: what is returned is kept.
        return str(ipaddress.ip_address(hops[-trusted_proxies].partition("%")[0]))
    except ValueError:
        return None
