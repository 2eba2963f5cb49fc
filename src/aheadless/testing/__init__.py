"""For the tests of bots and back ends that use aheadless: a server that misbehaves on command."""

from aheadless.protocol.codec import ChatRequest
from aheadless.testing.background import BackgroundServer
from aheadless.testing.scripts import (
    CONVERSATION_ID,
    End,
    Script,
    chunked,
    events,
    gzip_bomb,
    gzipped,
    head,
    json_answer,
    lines,
    stream_answer,
)
from aheadless.testing.server import Request, ScriptedServer

__all__ = [
    "CONVERSATION_ID",
    "BackgroundServer",
    "ChatRequest",
    "End",
    "Request",
    "Script",
    "ScriptedServer",
    "chunked",
    "events",
    "gzip_bomb",
    "gzipped",
    "head",
    "json_answer",
    "lines",
    "stream_answer",
]
