"""Measure every goal of this project in one run: `python -m benchmarks [--quick] [--only NAME …]`.

Each figure is a ratio of two measurements of this run, each in a process of its own on a core of its own, taken in
turns and summed up by their medians; the responder has the other core. Microseconds differ from machine to machine, and
on a shared one from minute to minute; ratios do so much less. The table goes to stdout, all figures to
`benchmarks/results.json`, and table and plots to `docs/explanation/performance.md`. Peers that are not installed are
left out and named.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import aheadless
from benchmarks import plots, servers
from benchmarks.clients import PACKAGES

RESULTS = Path("benchmarks/results.json")
PICTURES = Path("docs/pictures")
PAGE = Path("docs/explanation/performance.md")
FLOOR, PLAIN, OURS, TEXT, ON_TOKEN = (
    "aiohttp, read only",
    "aiohttp + orjson",
    "aheadless",
    "aheadless, text()",
    "aheadless, on_token",
)
PLOTS = {
    "bench-cpu.svg": "CPU a token of each client, in a burst",
    "bench-streams.svg": "CPU, memory and delay against the number of streams",
    "bench-lines.svg": "The time for one line against its length",
}
PEERS = ("ollama", "anthropic", "openai")


@attrs.frozen
class Row:
    """One goal, and how near we are."""

    name: str
    found: float
    goal: float
    less_is_better: bool = True
    spread: float = 0.0
    """Between the quartiles of the rounds' ratios."""
    unit: str = "×"

    @property
    def met(self) -> bool:
        return self.found <= self.goal if self.less_is_better else self.found >= self.goal

    @property
    def shown(self) -> str:
        """The figure as people read it, and how far the rounds were apart."""
        digits = 0 if abs(self.found) >= 100 else 2
        spread = f" (±{self.spread / 2:.{digits}f})" if self.spread else ""
        return f"{self.found:.{digits}f}{self.unit}{spread}"


class Bench:
    """Runs measurements, each in a process, and keeps what they found."""

    def __init__(self, base: str, *, quick: bool, progress: Progress) -> None:
        self.base = base
        self.quick = quick
        self.found: dict[str, Any] = {}
        self.rows: list[Row] = []
        self._progress = progress

    def measure(self, what: str, *loop: str, **arguments: Any) -> Any:
        command = [sys.executable, "-m", "benchmarks.measure", what, json.dumps(arguments), *loop]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{what} {arguments} failed:\n{done.stderr[-2000:]}")
        return json.loads(done.stdout)

    def in_turns(self, title: str, rounds: int, measurements: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
        """Take each measurement `rounds` times, in turns, so that all share what the machine does meanwhile."""
        found: dict[str, list[Any]] = {name: [] for name in measurements}
        task = self._progress.add_task(title, total=rounds * len(measurements))
        for _ in range(rounds):
            for name, take in measurements.items():
                found[name].append(take())
                self._progress.advance(task)
        return found

    def ratio(self, name: str, ours: list[float], theirs: list[float], goal: float, **more: Any) -> None:
        """Add a row: our figures over theirs, round by round."""
        ratios = sorted(our / their for our, their in zip(ours, theirs, strict=True))
        quarters = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        self.rows.append(Row(name, statistics.median(ratios), goal, spread=quarters[2] - quarters[0], **more))

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 5


def available(client: str) -> bool:
    return all(importlib.util.find_spec(package) for package in PACKAGES.get(client, ()))


# --- the goals --------------------------------------------------------------------------------------------------------


def decoding(bench: Bench) -> None:
    """CPU for a token, when they come faster than they can be read."""
    clients = [client for client in PACKAGES if available(client)]
    modes = ("burst", "joined")
    found = bench.in_turns(
        "burst and joined",
        bench.rounds,
        {
            f"{client}|{mode}": lambda client=client, mode=mode: statistics.median(
                bench.measure(
                    "cpu",
                    base=bench.base,
                    client=client,
                    mode=mode,
                    tokens=2000 if client in PEERS or client.startswith("httpx") else 20_000,
                    rounds=3,
                )
            )
            for client in clients
            for mode in modes
        }
        | {"msgspec": lambda: statistics.median(bench.measure("decoding", tokens=20_000, rounds=5))},
    )
    bench.found["cpu"] = {name: statistics.median(figures) for name, figures in found.items()}
    burst = {client: found[f"{client}|burst"] for client in clients}
    bench.ratio("burst, CPU a token ÷ aiohttp that reads and parses nothing", burst[OURS], burst[FLOOR], 1.45)
    bench.ratio("the same, with text()", burst[TEXT], burst[FLOOR], 1.45)
    joined = "joined, CPU a token ÷ msgspec.json.decode of each line"
    bench.ratio(joined, found[f"{OURS}|joined"], found["msgspec"], 2.2)
    bench.ratio("the same, with text()", found[f"{TEXT}|joined"], found["msgspec"], 2.2)
    bench.ratio("on_token with a plain function ÷ iteration, burst", burst[ON_TOKEN], burst[OURS], 1.0)
    for peer, goal in zip(PEERS, (12, 60, 80), strict=True):
        if peer in burst:
            bench.ratio(
                f"{peer}'s SDK ÷ ours, CPU a token, burst", burst[peer], burst[OURS], goal, less_is_better=False
            )


def pieces(bench: Bench) -> None:
    """One HTTP chunk for each byte."""
    found = bench.in_turns(
        "one-byte pieces",
        bench.rounds,
        {
            client: lambda client=client: statistics.median(
                bench.measure("cpu", base=bench.base, client=client, mode="bytes", tokens=1000, rounds=3)
            )
            for client in (FLOOR, PLAIN, OURS)
        },
    )
    bench.found["bytes"] = {name: statistics.median(figures) for name, figures in found.items()}
    bench.ratio("one-byte chunks, CPU a token ÷ aiohttp that parses nothing", found[OURS], found[FLOOR], 1.45)


def paced(bench: Bench) -> None:
    """Streams as people have them: some tokens a second each."""
    tokens = 50 if bench.quick else 250
    found = bench.in_turns(
        "paced, 100 streams at 50 a second",
        bench.rounds,
        {
            client: lambda client=client: bench.measure(
                "paced", base=bench.base, client=client, streams=100, tokens=tokens, rate=50
            )
            for client in (PLAIN, OURS)
        },
    )
    ours, theirs = ([one["cpu_us"] for one in found[client]] for client in (OURS, PLAIN))
    bench.ratio("paced at 50 a second, CPU a token ÷ aiohttp + orjson", ours, theirs, 1.1)
    bench.found["paced"] = {client: figures[-1] for client, figures in found.items()}


def many(bench: Bench) -> None:
    """1, 100, 1,000, 5,000 and 10,000 streams in one process, 2,000 tokens a second among them."""
    counts = (1, 100, 1000) if bench.quick else (1, 100, 1000, 5000, 10_000)
    clients = [client for client in (PLAIN, OURS, "httpx + json") if available(client)]
    bench.found["many"] = {}
    for streams in counts:
        rate = min(2000 / streams, 50)
        # The streams are opened at once, which takes a while.
        seconds = 5 if bench.quick else 10 if streams <= 100 else 20
        arguments = {"base": bench.base, "streams": streams, "tokens": max(int(rate * seconds), 1), "rate": rate}
        found = bench.in_turns(
            f"{streams:,} paced streams",
            1 if bench.quick else 2,
            {
                client: lambda client=client, arguments=arguments: bench.measure("paced", client=client, **arguments)
                for client in clients
                if client in {PLAIN, OURS} or streams <= 1000
            },
        )
        bench.found["many"][streams] = {
            client: {key: statistics.median(one[key] for one in figures) for key in figures[0]}
            for client, figures in found.items()
        }
        if streams in {1000, 5000}:
            for key, name, goal in (("cpu_us", "CPU a token", 1.0), ("p99_ms", "99 % delay of a token", 1.2)):
                ours, theirs = ([one[key] for one in found[client]] for client in (OURS, PLAIN))
                bench.ratio(f"{streams:,} paced streams, {name} ÷ aiohttp + orjson", ours, theirs, goal)


def first_token(bench: Bench) -> None:
    """How long the first token takes on a warm connection, beyond what plain aiohttp takes."""
    clients = [client for client in (PLAIN, OURS, "httpx + json") if available(client)]
    turns = 200 if bench.quick else 500
    found = bench.in_turns(
        "first token",
        bench.rounds,
        {"all": lambda: bench.measure("first_token", base=bench.base, clients=clients, turns=turns)},
    )["all"]
    medians = {client: [statistics.median(one[client]) for one in found] for client in clients}
    more = sorted(our - their for our, their in zip(medians[OURS], medians[PLAIN], strict=True))
    bench.rows.append(
        Row("first token, warm, later than aiohttp + orjson by", statistics.median(more), 100, unit=" µs")
    )
    bench.found["first_token"] = {client: statistics.median(figures) for client, figures in medians.items()}


def long_lines(bench: Bench) -> None:
    """One line of 1 to 64 MiB in pieces of 16 KiB: the time grows as its length does."""
    sizes = [2**20 * size for size in (1, 2, 4, 8, 16, 32, 64)]
    found = bench.in_turns("long lines", bench.rounds, {"all": lambda: bench.measure("lines", base="", sizes=sizes)})[
        "all"
    ]
    seconds = [min(one[index] for one in found) for index in range(len(sizes))]
    slope = statistics.linear_regression([*map(math.log, sizes)], [*map(math.log, seconds)]).slope
    bench.rows.append(Row("one line of 1 to 64 MiB in 16 KiB pieces: exponent of the time", slope, 1.1, unit=""))
    bench.found["lines"] = dict(zip(sizes, seconds, strict=True))


def memory(bench: Bench) -> None:
    """What an open stream takes, and an idle session."""
    streams = 500 if bench.quick else 2000
    found = bench.in_turns(
        "memory of open streams",
        3,
        {
            client: lambda client=client: bench.measure("open_streams", base=bench.base, client=client, streams=streams)
            for client in (PLAIN, OURS, "httpx + json")
            if available(client)
        },
    )
    bench.found["open_streams_kib"] = {client: statistics.median(figures) for client, figures in found.items()}
    bench.ratio("memory of an open stream ÷ plain aiohttp's response", found[OURS], found[PLAIN], 1.15)
    said = subprocess.run(
        [sys.executable, "benchmarks/session_memory.py", "--json"], check=True, capture_output=True, text=True
    )
    rows = json.loads(said.stdout)
    bench.found["sessions"] = rows
    empty = next(row for row in rows if row["messages"] == 0 and row["by"] == "RSS")
    bench.rows.append(Row("an idle session of 100,000, without texts", empty["bytes"], 500, unit=" bytes"))


def imports(bench: Bench) -> None:
    """How long the process takes that imports us, and the command that shows its help."""

    # As pip does on installing; what is compiled at each start counts for a sixth of it.
    compileall.compile_dir(Path(aheadless.__path__[0]), quiet=2)

    def seconds(*command: str) -> Callable[[], float]:
        return lambda: bench.measure("process", command=[sys.executable, *command])

    found = bench.in_turns(
        "imports",
        7 if bench.quick else 15,
        {
            "aiohttp": seconds("-c", "import aiohttp"),
            "aheadless": seconds("-c", "from aheadless import ChatClient"),
            "cyclopts": seconds("-c", "import cyclopts"),
            "help": seconds("-m", "aheadless", "--help"),
        },
    )
    bench.found["processes"] = {name: statistics.median(figures) for name, figures in found.items()}
    bench.ratio("`from aheadless import ChatClient` ÷ `import aiohttp`", found["aheadless"], found["aiohttp"], 1.1)
    bench.ratio("`aheadless --help` ÷ `import cyclopts`", found["help"], found["cyclopts"], 1.3)


def server(bench: Bench) -> None:
    """The embedded server against the same application on plain aiohttp.web, which stores nothing."""
    turns, streams = (300, 50) if bench.quick else (2000, 200)
    found = bench.in_turns(
        "the embedded server",
        3 if bench.quick else 5,
        {name: lambda name=name: servers.measured(name, turns=turns, streams=streams) for name in servers.KINDS},
    )
    bench.found["server"] = {
        name: {key: statistics.median(one[key] for one in figures) for key in figures[0]}
        for name, figures in found.items()
    }
    for key, title in (("replies", "replies a second"), ("streams", "streams a second, as many at once")):
        ours, plain = ([one[key] for one in found[name]] for name in ("aheadless", "plain"))
        bench.ratio(f"embedded server, {title} ÷ plain aiohttp.web", ours, plain, 0.7, less_is_better=False)


def loops(bench: Bench) -> None:
    """What uvloop saves on a paced token; it is the user's choice, so there is no goal."""
    if importlib.util.find_spec("uvloop") is None:
        return
    tokens = 50 if bench.quick else 250
    found = bench.in_turns(
        "uvloop",
        3,
        {
            f"{client}|{loop}": lambda client=client, loop=loop: bench.measure(
                "paced", loop, base=bench.base, client=client, streams=100, tokens=tokens, rate=50
            )["cpu_us"]
            for client in (PLAIN, OURS)
            for loop in ("asyncio", "uvloop")
        },
    )
    bench.found["uvloop"] = {name: statistics.median(figures) for name, figures in found.items()}


GOALS: dict[str, Callable[[Bench], None]] = {
    "decoding": decoding,
    "pieces": pieces,
    "paced": paced,
    "many": many,
    "first_token": first_token,
    "long_lines": long_lines,
    "memory": memory,
    "imports": imports,
    "server": server,
    "loops": loops,
}


# --- the run ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def responder() -> Iterator[str]:
    """Run the responder in a process of its own and give its URL."""
    command = [sys.executable, "-m", "benchmarks.responder"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def machine() -> dict[str, str]:
    """Name the machine and what was measured on it."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        names = [
            line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("model name")
        ]
        cpu = names[0].partition(": ")[2] if names else cpu
    packages = {package for needed in PACKAGES.values() for package in needed} | {"aheadless", "msgspec"}
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in sorted(packages) if importlib.util.find_spec(name)},
    }


def shown(rows: list[Row]) -> Table:
    table = Table("goal", "found", "wanted", "")
    for row in rows:
        sign = "≤" if row.less_is_better else "≥"
        table.add_row(row.name, row.shown, f"{sign} {row.goal:g}{row.unit}", "yes" if row.met else "no")
    return table


def write_page(rows: list[Row], about: dict[str, str], found: dict[str, Any]) -> None:
    """Put the table, the plots and the machine's name into the page, between its marks."""
    lines = ["| | found | wanted | |", "|---|---|---|---|"]
    for row in rows:
        sign = "≤" if row.less_is_better else "≥"
        lines.append(
            f"| {row.name} | {row.shown} | {sign} {row.goal:g}{row.unit} | {'met' if row.met else 'not met'} |"
        )
    for name, figure in found.get("uvloop", {}).items():
        client, _, loop = name.partition("|")
        lines.append(f"| paced at 50 a second, {client} on {loop} | {figure:.1f} µs a token | | |")
    lines += ["", ", ".join(f"{name} {value}" for name, value in about.items()) + ".", ""]
    for name, title in PLOTS.items():
        if (PICTURES / name).exists():
            lines += [f"![{title}](../pictures/{name})", ""]
    put_into(PAGE, "results", lines)


def put_into(page: Path, mark: str, lines: list[str]) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text("utf-8").partition(f"<!-- {mark} -->\n")
    _, _, after = rest.partition(f"<!-- /{mark} -->")
    text = "\n".join(lines).rstrip()
    page.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works, not to quote")
    parser.add_argument("--only", nargs="+", choices=GOALS, help="measure these only, and leave the files alone")
    arguments = parser.parse_args()
    with Progress(console=Console(stderr=True), transient=True) as progress, responder() as base:
        bench = Bench(base, quick=arguments.quick, progress=progress)
        for name, measure in GOALS.items():
            if not arguments.only or name in arguments.only:
                measure(bench)
    about = machine() | ({"run": "--quick, not to be quoted"} if arguments.quick else {})
    Console(width=120).print(shown(bench.rows))
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    if missing := [client for client in PACKAGES if not available(client)]:
        print("not installed, and left out:", ", ".join(missing))
    if not arguments.only:
        rows = [attrs.asdict(row) | {"met": row.met} for row in bench.rows]
        RESULTS.write_text(
            json.dumps({"machine": about, "goals": rows, "found": bench.found}, indent=1) + "\n", "utf-8"
        )
        plots.draw(bench.found, PICTURES)
        write_page(bench.rows, about, bench.found)


if __name__ == "__main__":
    main()
