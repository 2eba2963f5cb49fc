"""Libraries that not everybody has: those of the extras, and the web frameworks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["needs"]


@contextmanager
def needs(requirement: str) -> Generator[None]:
    """Let the imports in this block say what to install when they fail, as with a release that is too old.

    The error stays what it is, an ImportError with the `name` of what is missing.
    """
    try:
        yield
    except ImportError as error:
        error.msg = f'{error.msg}; run: pip install "{requirement}"'
        raise
