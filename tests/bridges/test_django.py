"""Django's ASGI side under uvicorn."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.test.utils import override_settings
from django.urls import path

from aheadless import ConfigurationError
from aheadless.bridges.django import RefusalMiddleware, stream_response
from tests.bridges.web_apps import Ask, Serve, WebBackEndContract, under_uvicorn

if not settings.configured:  # once in a process; what a test needs of its own it overrides
    settings.configure(ALLOWED_HOSTS=["127.0.0.1"], LOGGING_CONFIG=None)


def old_middleware(get_response: Callable[[HttpRequest], HttpResponseBase]) -> object:
    """Middleware as it was before there was ASGI: Django runs it on a thread."""
    return get_response


MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware", f"{__name__}.old_middleware"]


class TestDjango(WebBackEndContract):
    @pytest.fixture
    def serve(self) -> Serve:
        return under_uvicorn

    @pytest.fixture(autouse=True, params=[[], MIDDLEWARE], ids=["bare", "with middleware"])
    def project(self, request: pytest.FixtureRequest) -> Iterator[None]:
        with override_settings(
            ROOT_URLCONF=(), MIDDLEWARE=[*request.param, "aheadless.bridges.django.RefusalMiddleware"]
        ):
            yield

    def make_app(self, ask: Ask) -> ASGIHandler:
        async def answer(request: HttpRequest) -> HttpResponseBase:
            body, options = ask(request.headers, request.COOKIES, request.body)
            return await stream_response(body, **options)

        settings.ROOT_URLCONF = (path("ask", answer),)
        return ASGIHandler()


def test_error_in_a_view():
    """A mistake in the back end is a 500 without a word of it; what is none of ours Django deals with itself."""
    middleware = RefusalMiddleware(lambda _: None)

    refused = middleware.process_exception(HttpRequest(), ConfigurationError("no key"))

    assert refused is not None
    assert (refused.status_code, b"no key" in refused.content) == (500, False)
    assert middleware.process_exception(HttpRequest(), KeyError("a")) is None


def test_middleware_among_synchronous_ones():
    """It lets requests through there as well."""
    middleware = RefusalMiddleware(lambda request: request)
    request = HttpRequest()

    assert middleware(request) is request
