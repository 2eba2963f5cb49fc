"""A chat's back end on FastAPI: a cookie tells who asks, the reply streams back, the API key stays here."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI, Request, Response

from aheadless import AheadlessError, ChatClient
from aheadless.bridges.starlette import refuse, stream_response
from aheadless.bridges.web import Visitors, to_ndjson

# With https leave out `secure=False`. Without a secret that lasts, everybody is a new visitor after a restart.
visitors = Visitors(os.environ.get("VISITOR_SECRET") or secrets.token_urlsafe(), secure=False)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with ChatClient() as app.state.client:
        yield


app = FastAPI(lifespan=lifespan, exception_handlers={AheadlessError: refuse})


@app.post("/ask")
async def ask(request: Request, message: Annotated[str, Body(embed=True)]) -> Response:
    visitor = visitors.admit(request.headers, request.cookies)
    chat = request.app.state.client.chat(visitor.session_id, on_busy="interrupt")
    return await stream_response(to_ndjson(chat.stream(message)), headers=visitor.headers)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
