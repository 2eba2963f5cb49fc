"""Make full.svg: the full-screen chat on the embedded server, with three sessions, two of them being answered.

Run it with `python docs/pictures/make_full.py` in an environment that has the extra `tui`.
"""

import asyncio
import re
from functools import partial
from pathlib import Path

from aheadless import ChatClient
from aheadless.cli.full.app import FullChat
from aheadless.cli.full.desk import Desk
from aheadless.cli.full.widgets import Prompt
from aheadless.server import ServerSettings, run_server

PICTURE = Path(__file__).with_name("full.svg")
TITLE = "aheadless chat --full"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SIZE = (110, 32)

QUESTIONS = {"What is a token?": 0, "What is a session?": 0, "How do I stop a reply?": 500}
"""What is asked, each in a session of its own, and how many characters of the answer to wait for."""


async def talk() -> str:
    """Ask in three sessions, and return the screen as SVG while the last answer is being written."""
    settings = ServerSettings(port=0, rate_limit=None, answers_delay=0.02)
    async with run_server(settings) as server:
        make_client = partial(ChatClient, server.url, api_key=server.api_key)
        async with Desk(make_client) as desk:
            app = FullChat(desk)
            app.theme = "textual-dark"
            async with app.run_test(size=SIZE) as pilot:
                for question, characters in QUESTIONS.items():
                    await pilot.press("ctrl+n")
                    app.query_one(Prompt).put(question)
                    await pilot.press("enter")
                    while sum(map(len, desk.current.pieces)) < characters:
                        await pilot.pause()
                app.query_one(Prompt).put("And how do I")
                await pilot.pause()
                return app.export_screenshot(title=TITLE)


def without_fonts(svg: str) -> str:
    """Return the picture so that it fetches nothing: whoever looks at it has one of these fonts."""
    svg = re.sub(r"@font-face \{.*?\}\s*|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: [^;]*;", f"font-family: {FONT};", svg)


def main() -> None:
    PICTURE.write_text(without_fonts(asyncio.run(talk())), "utf-8")


main()
