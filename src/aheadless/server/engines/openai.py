"""Any OpenAI-compatible `/chat/completions` endpoint: OpenAI, Ollama, vLLM, llama.cpp and others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

import aiohttp

from aheadless.exceptions import AheadlessError, ConfigurationError, ProtocolError, ServerError, snippet
from aheadless.protocol.ndjson import LineSplitter, parse_object
from aheadless.server.settings import SYSTEM_PROMPT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from aheadless._options import Secret
    from aheadless._session import Message

__all__ = ["OpenAIEngine"]

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
MAX_ERROR_BODY: Final = 4096
MAX_LINE: Final = 1024 * 1024  # an event of this API holds one token and some metadata


class OpenAIEngine:
    """Let a model behind an OpenAI-compatible API write the replies.

    `base_url` ends before `/chat/completions`. Raises ConfigurationError without a model.
    """

    def __init__(
        self,
        *,
        model: str | None,
        base_url: str | None = None,
        api_key: Secret | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        if not model:
            raise ConfigurationError("the openai engine needs a model: set openai_model or AHEADLESS_OPENAI_MODEL")
        url = base_url or DEFAULT_BASE_URL
        if not url.startswith(("http://", "https://")):
            raise ConfigurationError(f"openai_base_url must begin with http:// or https://, not {snippet(repr(url), 60)}")
        self._model = model
        self._url = url.rstrip("/") + "/chat/completions"
        self._api_key = api_key
        self._system_prompt = system_prompt
        self._session: aiohttp.ClientSession | None = None

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the texts that the model streams. Raises AheadlessError when the API refuses or breaks off."""
        if self._session is None:
            # No time limit of its own: the server limits the whole reply.
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10), cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {"Authorization": f"Bearer {self._api_key.reveal()}"} if self._api_key is not None else {}
        messages = [{"role": "system", "content": self._system_prompt}]
        messages += [{"role": message.role, "content": message.text} for message in history]
        body = {"model": self._model, "messages": messages, "stream": True}
        async with self._session.post(self._url, json=body, headers=headers, allow_redirects=False) as response:
            if response.status != 200:  # noqa: PLR2004
                said = await response.content.read(MAX_ERROR_BODY)
                raise ServerError(f"the model's API answered {response.status}: {snippet(said.decode('utf-8', 'replace'))}")
            splitter = LineSplitter(max_line=MAX_LINE)
            async for chunk in response.content.iter_any():
                splitter.receive_data(chunk)
                for event in _events(splitter):
                    if event is None:
                        return
                    yield event
        raise ProtocolError("the model's API ended the stream without [DONE]")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _events(splitter: LineSplitter) -> Iterator[str | None]:
    """Return the texts in the lines that are complete, and None for the end."""
    while (line := splitter.next_line()) is not None:
        if not line.startswith(b"data:"):
            continue  # a comment, a blank line, a field of Server-Sent Events that this API does not use
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            yield None
            return
        if text := _text(parse_object(data)):
            yield text


def _text(event: Mapping[str, object]) -> str:
    if (error := event.get("error")) is not None:
        raise AheadlessError(f"the model's API failed: {snippet(json.dumps(error))}")
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    delta = choice.get("delta") if isinstance(choice, dict) else None
    content = delta.get("content") if isinstance(delta, dict) else None
    return content if isinstance(content, str) else ""
