"""The pytest plugin of aheadless: the fixture `aheadless_server`.

It stands outside of the package because pytest imports it at the start of every run, whatever is tested: importing
`aheadless` takes a third of a second, which only tests that use the fixture should pay for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aheadless.testing import BackgroundServer

__all__ = ["aheadless_server"]


@pytest.fixture
def aheadless_server() -> Iterator[BackgroundServer]:
    """A chat API on loopback for this test alone, which answers as the test tells it to: `.reply("Hel", "lo")`."""
    from aheadless.testing import BackgroundServer  # noqa: PLC0415 - see above

    with BackgroundServer() as server:
        yield server
