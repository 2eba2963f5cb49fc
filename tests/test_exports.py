"""What users import is there, documented, and no more than that."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import aheadless

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "api.md"
# That the page has all of them is a test of the public API.
MODULES = sorted({*re.findall(r"^\.\. auto\w+:: (aheadless[a-z_.]*)\.", REFERENCE.read_text("utf-8"), re.MULTILINE)})


def in_order(name: str) -> tuple[bool, bool, str]:
    """Constants, classes, functions, as the linter has them."""
    return not name.isupper(), not name[0].isupper(), name


@pytest.mark.parametrize("name", MODULES)
def test_all_names_are_there_and_documented(name: str) -> None:
    """Each name of `__all__` exists, once and in its order, is of this package, and if it can has a docstring."""
    module = importlib.import_module(name)

    assert [*module.__all__] == sorted({*module.__all__}, key=in_order)
    for item in module.__all__:
        value = getattr(module, item)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, item
            assert value.__module__.startswith("aheadless"), item


@pytest.mark.parametrize(
    "kind",
    [aheadless.ChatClient, aheadless.Chat, aheadless.ReplyStream, aheadless.SessionManager, aheadless.Subscription],
)
def test_public_methods_promise_something(kind: type) -> None:
    """Every public method and property has a docstring."""
    for name, member in vars(kind).items():
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"


def test_names_that_the_readme_teaches() -> None:
    """The shape that users learn."""
    from aheadless import ChatClient, Done, RateLimit, Timeouts, Token

    match Token("a"), Done("a", "c"):
        case Token(text), Done():
            assert text == "a"
    assert inspect.signature(ChatClient.chat).parameters["on_busy"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (Timeouts().connect, RateLimit(30, per=60).limit) == (5.0, 30)
    assert aheadless.__version__.count(".") >= 2
