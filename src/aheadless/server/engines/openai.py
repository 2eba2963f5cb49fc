"""Any OpenAI-compatible `/chat/completions` endpoint: OpenAI, Ollama, vLLM, llama.cpp and others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, cast

import aiohttp
import attrs

from aheadless._options import parse_key, without_frames
from aheadless.exceptions import AheadlessError, ConfigurationError, ProtocolError, ServerError, snippet
from aheadless.protocol.ndjson import LineSplitter, parse_object
from aheadless.server.settings import SYSTEM_PROMPT
from aheadless.server.storage import HISTORY_WINDOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from aheadless._options import Secret
    from aheadless._session import Message

__all__ = ["OpenAIEngine"]

DEFAULT_BASE_URL: Final = "https://api.openai.com/v1"
CONNECT_TIMEOUT: Final = 10.0  # seconds; the rest is limited by the server, which limits the whole reply
MAX_ERROR_BODY: Final = 4096
MAX_LINE: Final = 1024 * 1024  # an event of this API holds one token and some metadata


class OpenAIEngine:
    """Let a model behind an OpenAI-compatible API write the replies.

    `base_url` ends before `/chat/completions`; None: OpenAI's own. The key is sent to it alone. Raises
    ConfigurationError without a model, and for a key or an address that cannot be used.
    """

    @without_frames
    def __init__(
        self,
        *,
        model: str | None,
        base_url: str | None = None,
        api_key: str | Secret | None = None,
        system_prompt: str = SYSTEM_PROMPT,
    ) -> None:
        if not model:
            raise ConfigurationError("the openai engine needs a model: set openai_model or AHEADLESS_OPENAI_MODEL")
        url = base_url or DEFAULT_BASE_URL
        if not url.startswith(("http://", "https://")):
            # Not shown: it may be a key that was put into the wrong setting.
            raise ConfigurationError("openai_base_url must begin with http:// or https://")
        if "@" in url.split("/")[2]:
            raise ConfigurationError("openai_base_url holds a user name or password; the key goes into openai_api_key")
        self._model = model
        self._url = url.rstrip("/") + "/chat/completions"
        self._api_key = None if api_key is None else parse_key(api_key, "api_key")
        self._system_prompt = system_prompt
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<OpenAIEngine {self._model} at {self._url}>"

    async def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the texts that the model streams. Raises AheadlessError when the API refuses or breaks off."""
        messages = [{"role": "system", "content": self._system_prompt}]
        messages += [{"role": message.role, "content": message.text} for message in history[-HISTORY_WINDOW:]]
        body = {"model": self._model, "messages": messages, "stream": True}
        headers = {"Authorization": f"Bearer {self._api_key.reveal()}"} if self._api_key is not None else {}
        # The key belongs to one address: no redirects.
        async with self._open().post(self._url, json=body, headers=headers, allow_redirects=False) as response:
            if response.status != 200:  # noqa: PLR2004
                raise await self._refusal(response)
            splitter = LineSplitter(max_line=MAX_LINE)
            finished = False
            while not finished:
                chunk = await response.content.readany()
                splitter.receive_data(chunk)
                if not chunk:
                    splitter.receive_eof()
                while not finished and (line := splitter.next_line()) is not None:
                    part = _part(line)
                    finished = part.finished
                    if part.text:
                        yield part.text
                if not chunk:
                    break
        if not finished:
            raise ProtocolError("the model's API ended the stream without a finish_reason and without [DONE]")

    async def aclose(self) -> None:
        """Close the connections; may be called again."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _refusal(self, response: aiohttp.ClientResponse) -> ServerError:
        said = (await response.content.read(MAX_ERROR_BODY)).decode("utf-8", "replace")
        if self._api_key is not None:
            said = said.replace(self._api_key.reveal(), "***")  # some quote the key that they refuse
        detail = snippet(said)
        return ServerError(
            f"the model's API answered {response.status}: {detail}", status=response.status, detail=detail
        )


@attrs.frozen
class _Part:
    """What one line says."""

    text: str = ""
    finished: bool = False


def _part(line: bytes) -> _Part:
    """Return what a line says; nothing, if it is blank, a comment or a field that this API does not use.

    Raises AheadlessError for an error of the model, ProtocolError for what is no JSON object.
    """
    field, _, value = line.strip().partition(b":")
    value = value.strip()
    if field != b"data" or not value:
        return _Part()
    if value == b"[DONE]":
        return _Part(finished=True)
    event = parse_object(value)
    if (error := event.get("error")) is not None:
        raise AheadlessError(f"the model's API failed: {snippet(json.dumps(error))}")
    # Some events have no choices (usage), or one whose delta holds a role, null or a call of a tool.
    choice = _first(event.get("choices"))
    content = _mapping(choice.get("delta")).get("content")
    return _Part(content if isinstance(content, str) else "", finished=choice.get("finish_reason") is not None)


def _first(value: object) -> Mapping[str, object]:
    return _mapping(cast("list[object]", value)[0]) if isinstance(value, list) and value else {}


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}
