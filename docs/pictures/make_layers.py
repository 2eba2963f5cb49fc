"""Make layers.svg: the floors of the code, from the contract that `lint-imports` holds it to.

Run it with `python docs/pictures/make_layers.py`; `tests/test_docs.py` tells when the contract has changed since.
"""

import re
import tomllib
from html import escape
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
PICTURE: Final = HERE / "layers.svg"

# What begins with the floor of a module, from the top, and its colour.
GROUPS: Final = {
    "cli": ("What programs are made of", "#dbe7f6"),
    "_client": ("The client", "#dff0e3"),
    "_exchange": ("Without await, socket and clock", "#f7ead2"),
}

FONT: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
CHARACTER: Final = 7.9  # of this font at 13 pixels
HEIGHT: Final = 26
STEP: Final = 36
LEFT: Final = 24
WIDTH: Final = 700


def floors() -> list[list[str]]:
    """Return the modules of each floor, from the top."""
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text("utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return [re.findall(r"\w+", layer) for layer in layers]


def draw() -> str:
    """Return the picture. It has a ground of its own, so it looks the same on light and dark pages."""
    parts, y, colour = [], 16, ""
    for floor in floors():
        if floor[0] in GROUPS:
            title, colour = GROUPS[floor[0]]
            parts.append(f'<text x="{LEFT}" y="{y + 18}" class="group">{escape(title)}</text>')
            y += 28
        x = float(LEFT)
        for name in floor:
            width = (len(name) + 2) * CHARACTER
            parts.append(f'<rect x="{x:g}" y="{y}" width="{width:g}" height="{HEIGHT}" rx="5" fill="{colour}"/>')
            parts.append(f'<text x="{x + width / 2:g}" y="{y + 18}" text-anchor="middle">{escape(name)}</text>')
            x += width + 10
        y += STEP
    arrow = f"M {WIDTH - 40} 30 V {y - 16} m -6 -9 l 6 9 l 6 -9"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" role="img" aria-labelledby="t">\n'
        '<title id="t">The layers of aheadless, from the top; each imports only from those below it</title>\n'
        f"<style>text {{ font: 13px {FONT}; fill: #23272f }} .group {{ font: 600 13px sans-serif }}</style>\n"
        f'<rect width="{WIDTH}" height="{y + 8}" rx="10" fill="#fbfbfd"/>\n'
        + "\n".join(parts)
        + f'\n<path d="{arrow}" fill="none" stroke="#5b6472" stroke-width="2"/>\n'
        f'<text x="{WIDTH - 52}" y="40" text-anchor="end" class="group">imports</text>\n</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), "utf-8")
