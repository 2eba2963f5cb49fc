"""What users import is there, documented, and no more than that."""

from __future__ import annotations

import importlib
import inspect

import pytest

import aheadless

MODULES = [
    "aheadless",
    "aheadless.admin",
    "aheadless.bridges.aiohttp",
    "aheadless.bridges.django",
    "aheadless.bridges.litestar",
    "aheadless.bridges.quart",
    "aheadless.bridges.starlette",
    "aheadless.bridges.web",
    "aheadless.bridges",
    "aheadless.bridges.discord",
    "aheadless.bridges.slack",
    "aheadless.bridges.telegram",
    "aheadless.exceptions",
    "aheadless.server",
    "aheadless.testing",
]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_are_there_and_documented(name: str) -> None:
    """Each name of `__all__` exists, once, and each class and function has a docstring."""
    module = importlib.import_module(name)

    assert len(module.__all__) == len({*module.__all__})
    for item in module.__all__:
        value = getattr(module, item)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, item


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
