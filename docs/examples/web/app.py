"""A chat page and its back end; the address and the key of the API come from the environment, as does CHAT_SECRET."""

import os
from pathlib import Path
from typing import Annotated

from fastapi import Body, FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles

from aheadless import AheadlessError, ChatClient
from aheadless.bridges.starlette import refuse, stream_response
from aheadless.bridges.web import Visitors, ai_sdk_message, to_ai_sdk, to_ndjson
from aheadless.stores import SQLiteStore

visitors = Visitors(os.environ["CHAT_SECRET"])  # each with a signed cookie, and 20 questions a minute
store = SQLiteStore(os.environ.get("CHAT_DATABASE", "chat.db"), lease_seconds=5)
client = ChatClient(store=store, max_wait=5)  # seconds to wait for a rate limit; nobody watches three dots for long
app = FastAPI(exception_handlers={AheadlessError: refuse}, on_shutdown=[client.aclose], openapi_url=None)


@app.get("/messages")
async def messages(request: Request, response: Response) -> list[dict[str, str]]:
    visitor = visitors.of(request.cookies)
    response.headers.update({"Cache-Control": "no-store", **visitor.headers})
    chat = client.chat(visitor.session_id)
    await chat.pending()  # brings the conversation back from the store
    return [{"role": m.role, "text": m.text, "status": m.status, "delivery": m.delivery.value} for m in chat.messages]


@app.post("/chat")
async def ask(request: Request, body: Annotated[object, Body()]) -> Response:
    visitor = visitors.admit(request.headers, request.cookies)
    chat = client.chat(visitor.session_id)
    if isinstance(body, dict) and "message" in body:
        return await stream_response(to_ndjson(chat.stream(body["message"])), headers=visitor.headers)
    # The Vercel AI SDK posts the whole conversation.
    return await stream_response(to_ai_sdk(chat.stream(ai_sdk_message(body))), headers=visitor.headers)


app.mount("/", StaticFiles(directory=Path(__file__).with_name("page"), html=True))
