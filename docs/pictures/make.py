"""Make chat.svg: `aheadless demo` on a terminal, a few keys pressed, and what then stands on its screen.

Run it with `python docs/pictures/make.py` in an environment that has the tests' packages.
"""

import asyncio
import io
import re
import sys
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cli.support import CTRL_C, Terminal, terminal

PICTURE = Path(__file__).with_name("chat.svg")
TITLE = "aheadless demo"
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

THEME = TerminalTheme(
    (24, 26, 33),
    (222, 224, 230),
    [
        *((65, 69, 89), (231, 130, 132), (166, 209, 137), (229, 200, 144)),
        *((140, 170, 238), (244, 184, 228), (129, 200, 190), (181, 191, 226)),
    ],
)


async def talk() -> pyte.Screen:
    """Ask, stop an answer in the middle, ask for help; return the screen."""
    async with terminal("demo") as shown:
        await shown.ask("What is a callback?")
        await stop_in_the_middle(shown, "Why is there no heartbeat?", "The API sends none: between two events")
        await shown.ask("/help")
        return shown.screen


async def stop_in_the_middle(shown: Terminal, question: str, after: str) -> None:
    await shown.prompt()
    shown.type(f"{question}\r")
    await shown.until(after)
    shown.type(CTRL_C)
    await shown.until("[stopped]")
    await shown.prompt()


def lines_of(screen: pyte.Screen) -> list[Text]:
    """Return the lines of a screen with their colours, without the empty ones at its end."""
    lines = []
    for row in range(screen.lines):
        line = Text(no_wrap=True)
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            colour = None if cell.fg == "default" else cell.fg
            line.append(cell.data, Style(color=colour, bold=cell.bold))
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def draw(lines: list[Text], width: int) -> str:
    """Return the lines as SVG, which fetches nothing from anywhere."""
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(line)
    svg = console.export_svg(title=TITLE, theme=THEME, unique_id="chat")
    # rich names fonts on a host of somebody's, and itself; whoever looks at the picture has one of these fonts.
    svg = re.sub(r"@font-face \{.*?\}\s*|\s*<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"font-family: [^;]*;", f"font-family: {FONT};", svg)


def main() -> None:
    screen = asyncio.run(talk())
    PICTURE.write_text(draw(lines_of(screen), screen.columns), "utf-8")


main()
