"""What an error of slack_sdk's says about the call that raised it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from slack_sdk.errors import SlackApiError
from slack_sdk.web.async_client import AsyncWebClient
from slack_sdk.web.async_slack_response import AsyncSlackResponse

from aheadless.bridges._slack_calls import Problem, RateLimited, Refused, Unclear, problem_of


def answer(status: int, data: object, headers: dict[str, str] | None = None) -> SlackApiError:
    """Return the error for an answer of Slack's."""
    response = AsyncSlackResponse(
        client=AsyncWebClient(),
        http_verb="POST",
        api_url="https://slack.com/api/chat.update",
        req_args={},
        data=data,  # type: ignore[arg-type]
        headers=headers or {},
        status_code=status,
    )
    return SlackApiError("failed", response)


def not_json(status: int, headers: dict[str, str] | None = None) -> SlackApiError:
    """Return the error for an answer that is no JSON: with the response of the transport."""
    return SlackApiError("failed", SimpleNamespace(status=status, headers=headers or {}))


ERRORS: dict[str, tuple[Exception, Problem]] = {
    "429": (answer(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": "7"}), RateLimited(7)),
    "429 that says nothing": (answer(429, {"ok": False}), RateLimited(1)),
    "429 that says nonsense": (answer(429, {"ok": False}, {"Retry-After": "soon"}), RateLimited(1)),
    "429 of a proxy": (not_json(429, {"Retry-After": "3"}), RateLimited(3)),
    "refusal": (answer(200, {"ok": False, "error": "is_archived"}), Refused("is_archived")),
    "refusal for a while": (answer(200, {"ok": False, "error": "internal_error"}), Unclear()),
    "failure of the server": (answer(500, {"ok": False, "error": "is_archived"}), Unclear()),
    "empty answer": (answer(200, ""), Unclear()),
    "page of a proxy": (not_json(200), Unclear()),
    "time-out": (TimeoutError(), Unclear()),
}


@pytest.mark.parametrize(("error", "problem"), ERRORS.values(), ids=ERRORS)
def test_error(error: Exception, problem: Problem):
    """It was refused, or limited, or nobody knows."""
    assert problem_of(error) == problem
