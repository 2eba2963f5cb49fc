"""A web page's back end: the browser sends a text, the reply streams back, the API key never leaves the server."""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator

from aiohttp import web

from aheadless import AheadlessError, ChatClient, InvalidRequestError, RateLimitError

CLIENT = web.AppKey("client", ChatClient)
COOKIE = "visitor"
PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>Chat</title>
<form><input name="q" autofocus> <button>Ask</button> <button type="button">Stop</button></form><pre></pre>
<script>
  const form = document.forms[0], out = document.querySelector("pre"), [, stop] = document.querySelectorAll("button");
  form.onsubmit = async event => {
    event.preventDefault();
    const abort = new AbortController();
    stop.onclick = () => abort.abort();
    out.textContent = "";
    try {
      const answer = await fetch("/ask", {method: "POST", body: form.q.value, signal: abort.signal});
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part; !(part = await reader.read()).done;) out.textContent += part.value;
      if (!answer.ok) out.textContent += ` (${answer.status})`;
    } catch (error) {
      out.textContent += " [stopped or broken off]";
    }
  };
</script>
"""


async def page(request: web.Request) -> web.Response:
    response = web.Response(text=PAGE, content_type="text/html")
    if COOKIE not in request.cookies:
        secure = request.scheme == "https"
        response.set_cookie(COOKIE, secrets.token_urlsafe(), httponly=True, samesite="Strict", secure=secure)
    return response


def session_id(request: web.Request) -> str:
    """Return the visitor's session: from a cookie that cannot be guessed, never from what the page says."""
    if COOKIE not in request.cookies:
        raise web.HTTPForbidden(text="load the page first")
    return "web:" + hashlib.sha256(request.cookies[COOKIE].encode()).hexdigest()


async def ask(request: web.Request) -> web.StreamResponse:
    chat = request.app[CLIENT].chat(session_id(request), on_busy="interrupt")
    response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
    response.content_type = "text/plain"
    response.charset = "utf-8"
    try:
        # Entering waits for the API's own answer, so a refusal can still become a status of ours.
        async with chat.stream(await request.text()) as stream:
            await response.prepare(request)
            async for text in stream.text():
                await response.write(text.encode())
            await stream  # raises if the visitor's next question has stopped this one
    except AheadlessError as error:
        if not response.prepared:
            raise refusal(error) from None
        if request.transport is not None:
            request.transport.close()  # a clean end would make half a reply look whole
    return response


def refusal(error: AheadlessError) -> web.HTTPException:
    match error:
        case InvalidRequestError():
            return web.HTTPBadRequest(text=str(error))
        case RateLimitError():
            return web.HTTPTooManyRequests(text="too many questions, try again in a minute")
        case _:
            return web.HTTPBadGateway(text="the chat does not answer")


async def chat_client(app: web.Application) -> AsyncIterator[None]:
    async with ChatClient() as app[CLIENT]:
        yield


def make_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(chat_client)
    app.add_routes([web.get("/", page), web.post("/ask", ask)])
    return app


if __name__ == "__main__":
    # handler_cancellation: when the browser leaves, the handler is cancelled, and with it the stream.
    web.run_app(make_app(), host="127.0.0.1", port=int(os.environ.get("PORT", "8080")), handler_cancellation=True)
