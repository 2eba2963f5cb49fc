"""What writes the replies: an object with one method."""

from aheadless.server.engines.answers import AnswersEngine
from aheadless.server.engines.base import ReplyEngine
from aheadless.server.engines.openai import OpenAIEngine
from aheadless.server.engines.simple import EchoEngine, ScriptedEngine

__all__ = ["AnswersEngine", "EchoEngine", "OpenAIEngine", "ReplyEngine", "ScriptedEngine"]
