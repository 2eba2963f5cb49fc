"""Session ids made of a platform's own ids. Pure."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

from aheadless.exceptions import InvalidRequestError

__all__ = ["platform_id"]

MAX_LENGTH: Final = 128  # protocol.md, section 1
_PLATFORM: Final = re.compile(r"[a-z][a-z0-9]{0,31}")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.-]+")
_NOTHING: Final = "-"


def platform_id(platform: str, *parts: str | int | None) -> str:
    """Return the session id for a place on a platform, ``discord:1234:5678:9`` for example.

    Different parts give different ids, so that no two conversations ever meet. A number is the same as its digits, as
    platforms write their ids both ways, and None, for what a place does not have, differs from all text. Parts that an
    id cannot hold, or that would make it longer than 128 characters, give ``discord::`` and their SHA-256; no other id
    has an empty part. The same parts give the same id, in every process and every version.

    Raises InvalidRequestError if the platform is no lower-case word of at most 32 letters and digits, there is no
    part, or one is of another type.
    """
    if not isinstance(platform, str) or _PLATFORM.fullmatch(platform) is None:
        raise InvalidRequestError("a platform is a lower-case word of at most 32 letters and digits")
    if not parts:
        raise InvalidRequestError("a session id needs at least one part besides the platform")
    texts = [_text(part) for part in parts]
    plain = ":".join((platform, *(_NOTHING if text is None else text for text in texts)))
    if (
        all(text is None or (_PLAIN.fullmatch(text) and text != _NOTHING) for text in texts)
        and len(plain) <= MAX_LENGTH
    ):
        return plain
    return f"{platform}::{_digest(texts)}"


def _text(part: str | int | None) -> str | None:
    if part is None or isinstance(part, str):
        return part
    if isinstance(part, int) and not isinstance(part, bool):
        return str(part)
    raise InvalidRequestError(f"a part of a session id is a text, a whole number or None, not {type(part).__name__}")


def _digest(texts: list[str | None]) -> str:
    # Each with its length before it, so that no two lists are the same bytes.
    encoded = [None if text is None else text.encode("utf-8", "surrogatepass") for text in texts]
    framed = b"".join(b"-;" if data is None else b"%d;%b" % (len(data), data) for data in encoded)
    return base64.urlsafe_b64encode(hashlib.sha256(framed).digest()).rstrip(b"=").decode("ascii")
