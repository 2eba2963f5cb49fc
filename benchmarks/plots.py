"""The figures as pictures, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "aheadless"  # the same figures give the same file
mpl.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402 - after the choice of what draws

OURS, PLAIN = "aheadless", "aiohttp + orjson"
COLOURS = {OURS: "#0b7a75", PLAIN: "#7b8794", "httpx + json": "#c08497"}


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Draw what was measured; what was not is left out."""
    if "cpu" in found:
        save(cpu(found["cpu"]), folder / "bench-cpu.svg")
    if found.get("many"):
        save(scaling(found["many"]), folder / "bench-streams.svg")
    if "lines" in found:
        save(lines(found["lines"]), folder / "bench-lines.svg")


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def cpu(figures: Mapping[str, float]) -> Any:
    """CPU a token, burst, from the cheapest to the dearest."""
    burst = {name.removesuffix("|burst"): value for name, value in figures.items() if name.endswith("|burst")}
    ranked = sorted(burst.items(), key=lambda item: -item[1])
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(ranked) + 1))
    names, values = zip(*ranked, strict=True)
    bars = axes.barh(
        names, values, color=[COLOURS[OURS] if name.startswith(OURS) else COLOURS[PLAIN] for name in names]
    )
    axes.bar_label(bars, [f"{value:.1f}" for value in values], padding=4)
    axes.set_xscale("log")
    axes.set_xlabel("µs of CPU a token (logarithmic): 20,000 tokens in one stream, one HTTP chunk each")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    return figure


def scaling(many: Mapping[int, Mapping[str, Mapping[str, float]]]) -> Any:
    """CPU, memory and delay against the number of streams."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.4))
    titles = {
        "busy": ("CPU, % of a core, at 2,000 tokens a second", 100),
        "mib": ("memory of the streams, MiB", 1),
        "p99_ms": ("delay of a token, 99 %, ms", 1),
    }
    for axes, (key, (title, factor)) in zip(panels, titles.items(), strict=True):
        for client, colour in COLOURS.items():
            points = [
                (int(streams), value(one[client], key, int(streams)) * factor)
                for streams, one in many.items()
                if client in one and int(streams) >= 100
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=client)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("streams in one process")
        if key == "p99_ms":
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, loc="upper left")
    return figure


def value(one: Mapping[str, float], key: str, streams: int) -> float:
    return one["kib"] * streams / 1024 if key == "mib" else one[key]


def lines(figures: Mapping[int, float]) -> Any:
    """The time for one line against its length."""
    figure, axes = plt.subplots(figsize=(5, 3.2))
    sizes = [int(size) / 2**20 for size in figures]
    axes.loglog(sizes, [1e3 * seconds for seconds in figures.values()], marker="o", color=COLOURS[OURS])
    axes.set_xlabel("MiB in one line, in pieces of 16 KiB")
    axes.set_ylabel("ms of CPU")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
