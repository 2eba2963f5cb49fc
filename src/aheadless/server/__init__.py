"""The API itself, for development, tests and self-hosting."""

from aheadless.server.app import RunningServer, create_app, run_server
from aheadless.server.engines import AnswersEngine, EchoEngine, OpenAIEngine, ReplyEngine, ScriptedEngine
from aheadless.server.settings import ServerSettings

__all__ = [
    "AnswersEngine",
    "EchoEngine",
    "OpenAIEngine",
    "ReplyEngine",
    "RunningServer",
    "ScriptedEngine",
    "ServerSettings",
    "create_app",
    "run_server",
]
