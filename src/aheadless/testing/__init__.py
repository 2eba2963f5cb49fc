"""For the tests of bots and back ends that use aheadless: a server that misbehaves on command."""

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
