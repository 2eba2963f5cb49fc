"""A chat's back end on aiohttp: a cookie tells who asks, the reply streams back, the API key stays here."""

import os
import secrets
from collections.abc import AsyncIterator

from aiohttp import web

from aheadless import ChatClient
from aheadless.bridges.aiohttp import refusals, stream_response
from aheadless.bridges.web import Visitors, to_ndjson

CLIENT = web.AppKey("client", ChatClient)
# With https leave out `secure=False`. Without a secret that lasts, everybody is a new visitor after a restart.
VISITORS = Visitors(os.environ.get("VISITOR_SECRET") or secrets.token_urlsafe(), secure=False)


async def ask(request: web.Request) -> web.StreamResponse:
    visitor = VISITORS.admit(request.headers, request.cookies)
    message = (await request.json())["message"]
    chat = request.app[CLIENT].chat(visitor.session_id, on_busy="interrupt")
    return await stream_response(request, to_ndjson(chat.stream(message)), headers=visitor.headers)


async def chat_client(app: web.Application) -> AsyncIterator[None]:
    async with ChatClient() as app[CLIENT]:
        yield


def make_app() -> web.Application:
    app = web.Application(middlewares=[refusals])
    app.cleanup_ctx.append(chat_client)
    app.add_routes([web.post("/ask", ask)])
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")))
