"""The documentation says what the code does: its programs run, its links lead somewhere, its tables are complete."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from mdit_py_plugins.anchors.index import slugify

import aheadless
from aheadless import AheadlessError, ChatClient, Delivery, RateLimit, TurnState, exceptions
from aheadless.cli.app import app
from aheadless.cli.output import ExitCode
from aheadless.protocol.turn import NEXT
from aheadless.server import ServerSettings, run_server
from aheadless.server.settings import _VARIABLES
from tests.stores.conftest import RedisServer
from tests.stores.contract import StoreContract
from tests.support import ADMIN_KEY, KEY
from tests.test_readme import run

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aheadless"
DOCS = ROOT / "docs"
PAGES = [
    *ROOT.glob("*.md"),
    *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts),
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def code_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and the code of each block of a page, with the newlines that keep its line numbers."""
    text = page.read_text("utf-8")
    for found in re.finditer(r"^```([^\n`]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], "\n" * text[: found.start(2)].count("\n") + found[2]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without the heads' rules; an escaped bar stays in its cell."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in cells if not set("".join(row)) <= {"-"}]


def section(page: str, heading: str) -> str:
    """Return what stands below a heading."""
    return read(page).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# Not by Sybil: what follows is shorter than its configuration would be, and the blocks of a page share coroutines, a
# server and clients on one event loop, which its evaluators do not have.

# --- programs ---------------------------------------------------------------------------------------------------------

# The README has a test of its own, which knows what each of its programs prints.
WITH_PYTHON = [
    page
    for page in PAGES
    if page.name != "README.md" and any(language == "python" for language, _ in code_blocks(page))
]


@pytest.fixture
async def names(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, Any]]:
    """What a page's programs find: a server that repeats what it is told, a client, a chat, and Redis if it is used."""
    monkeypatch.chdir(tmp_path)
    settings = ServerSettings(port=0, api_key=KEY, admin_key=ADMIN_KEY, engine="echo", rate_limit=None)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(run_server(settings))
        client = ChatClient(server.url, api_key=KEY, admin_key=ADMIN_KEY)
        chat = client.chat("docs")
        module = ModuleType("page")  # Litestar looks up where a handler is from
        monkeypatch.setitem(sys.modules, "page", module)
        names = vars(module)
        names |= {"server": server, "client": client, "chat": chat, "key": KEY, "asyncio": asyncio}
        if any(language == "python" and "redis_url" in code for language, code in code_blocks(page)):
            redis = RedisServer(tmp_path)
            redis.start()
            stack.callback(redis.kill)
            names["redis_url"] = redis.url
        try:
            yield names
        finally:
            for made in names.values():
                if isinstance(made, ChatClient):
                    await made.aclose()


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
async def test_programs_of_a_page(page, names):
    """They run one after the other, each with what those before have left; a whole program runs alone."""
    for language, code in code_blocks(page):
        if language != "python":
            continue
        if "asyncio.run(" in code:
            exit_code, out = await run(code, names["server"])
            assert exit_code == 0, out
            continue
        program = compile(code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        async with asyncio.timeout(30):
            waiting = eval(program, names)
            if program.co_flags & inspect.CO_COROUTINE:
                await waiting


@pytest.mark.slow
def test_the_worked_examples(tmp_path):
    """The store and the bridge pass the tests that the page gives them; for a store those are the tests of every store."""
    blocks = [code.lstrip() for _, code in code_blocks(ROOT / "CONTRIBUTING.md")]
    for name in ("SealedStore", "RoomPage"):
        first = next(index for index, code in enumerate(blocks) if f"class {name}" in code)
        (tmp_path / f"test_{name}.py").write_text("\n\n".join(blocks[first : first + 2]), "utf-8")

    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, tmp_path],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.returncode == 0, ran.stdout
    of_every_store = sum(name.startswith("test_") for name in vars(StoreContract))
    assert f"{of_every_store + 5} passed" in ran.stdout


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_is_found(page):
    """None has another name for the language, or an indentation, that would keep it from being run."""
    marked = re.findall(r"^[ \t]*(?:```|~~~) *py.*$", page.read_text("utf-8"), re.MULTILINE | re.IGNORECASE)

    assert marked == ["```python"] * sum(language == "python" for language, _ in code_blocks(page))


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    """Each relative link and picture of a page is a file or a folder of this project, its `#anchor` a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            assert re.match(r"https://[\w.-]+\.[a-z]+(/|$)", target), target  # nothing else is reachable from the tests
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@cache
def anchors(page: Path) -> set[str]:
    """Return what the headings of a page can be linked by, as Sphinx makes it."""
    return {slugify(heading) for heading in re.findall(r"^#{1,3} (.+)$", prose(page), re.MULTILINE)}


@pytest.mark.parametrize("page", [path for path in PAGES if path.is_relative_to(DOCS)], ids=name_of)
def test_the_readme_leads_to_every_page(page):
    """Who reads on GitHub finds them all; the index and its text are the site's own."""
    if page.name not in {"index.md", "overview.md"}:
        assert f"]({name_of(page)}" in prose(ROOT / "README.md")


def test_docstrings_refer_to_what_there_is():
    """The names in their roles are defined somewhere, and the files that they and the comments name are there."""
    sources = [path.read_text("utf-8") for path in SOURCE.rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    defined = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
    defined |= {
        node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }

    for source in sources:
        for role in re.findall(r":(?:class|meth|func|attr|exc|data):`~?([\w.]+)`", source):
            assert role.rpartition(".")[2] in defined, role
        for file in re.findall(r"\b(?:docs|tests)/[\w/-]+\.(?:md|py)\b", source):
            assert (ROOT / file).exists(), file


def test_every_page_is_in_the_table_of_contents():
    """What is written can be found."""
    listed = re.findall(r"^[\w/-]+$", read("docs/index.md"), re.MULTILINE)

    assert sorted(listed) == sorted(
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in PAGES
        if path.is_relative_to(DOCS) and path.name != "index.md"
    )


# --- settings and environment -----------------------------------------------------------------------------------------


def test_every_setting():
    """The table has each setting of the server, its variables in their order, and its default."""
    table = rows(section("docs/reference/settings.md", "Which settings does the server have?"))[1:]
    described = {
        setting.strip("`"): (tuple(quoted(variables)), eval(default.strip("`"), {"RateLimit": RateLimit}))
        for setting, variables, default, _ in table
    }

    assert described == {
        field.name: (_VARIABLES[field.name][0], field.default) for field in attrs.fields(ServerSettings) if field.init
    }


def test_every_environment_variable():
    """The page names each variable that the code reads, and no other."""
    source = "\n".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    ours = r"\b(?:AHEADLESS|OPENAI|WIDGET|ADMIN)_[A-Z_]*[A-Z]\b"
    read_by_name = re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", source)
    page = read("docs/reference/settings.md")

    assert {*re.findall(ours, source)} == {*re.findall(ours, page)}
    assert {*read_by_name} <= {*quoted(prose(DOCS / "reference" / "settings.md"))}


# --- command ----------------------------------------------------------------------------------------------------------

COMMANDS = [name for name in app if not name.startswith("-")]


def options_of(command: str) -> set[str]:
    names = (argument.names[0] for argument in app[command].assemble_argument_collection())
    return {name for name in names if name.startswith("--")}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command(command):
    """Its section on the page has each of them, if not the section on what several commands share."""
    page = read("docs/reference/cli.md")
    [described] = [part for part in page.split("\n## ") if f"```bash\naheadless {command}" in part]
    if "--url" in options_of(command):
        described += section("docs/reference/cli.md", "How do I connect to a server?")

    assert options_of(command) <= {*re.findall(r"`(--[\w-]+)", described)}


def test_no_option_is_made_up():
    """The page has none that no command knows, but those of the overview."""
    known = {option for command in COMMANDS for option in options_of(command)} | {"--help", "--version"}

    assert {*re.findall(r"(?<!\w)--[a-z][\w-]*", read("docs/reference/cli.md"))} <= known


def test_every_exit_code():
    """The table has each of them."""
    table = rows(section("docs/reference/cli.md", "Which exit codes are there?"))[1:]

    assert [int(code) for code, _ in table] == [*ExitCode]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_that_the_pages_show(page):
    """No page shows a command or an option that there is not."""
    for language, code in code_blocks(page):
        if language not in {"bash", "ini"}:
            continue
        for line in code.splitlines():
            if found := re.search(r"(?:^|/|=|&& )aheadless (\w+)(.*)", line.partition("#")[0]):
                options = re.findall(r"(?<= )--[a-z][\w-]*", found[2])
                assert {*options} <= options_of(found[1]), line


def test_every_extra():
    """The overview's table has each of those that can be installed."""
    table = rows(section("docs/explanation/overview.md", "Which extras are there?"))[1:]

    assert {quoted(extra)[0] for extra, _, _ in table} == {
        *tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    }


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        "aheadless",
        "aheadless.stores",
        "aheadless.admin",
        "aheadless.bridges.aiohttp",
        "aheadless.bridges.django",
        "aheadless.bridges.litestar",
        "aheadless.bridges.quart",
        "aheadless.bridges.starlette",
        "aheadless.bridges.web",
        "aheadless.bridges",
        "aheadless.bridges.discord",
        "aheadless.bridges.slack",
        "aheadless.server",
        "aheadless.bridges.telegram",
        "aheadless.testing",
    ],
)
def test_every_public_name(module):
    """The reference has each of them, once."""
    page = read("docs/reference/api.md")
    described = re.findall(rf"^\.\. auto\w+:: {re.escape(module)}\.(\w+)(?:\(\))?$", page, re.MULTILINE)

    assert sorted(described) == sorted(importlib.import_module(module).__all__)


def test_every_class_tells_its_signature():
    """`help()` and the docs' builder can ask for it: no annotation names what is not there at run time."""
    for name in aheadless.__all__:
        if inspect.isclass(public := getattr(aheadless, name)):
            inspect.signature(public)


# --- the map of the code ----------------------------------------------------------------------------------------------

MAP = "docs/explanation/architecture.md"


def test_the_tree_has_every_module():
    """And none that is not there."""
    tree = section(MAP, "Where is what?").split("```")[1]
    folders: list[str] = []
    listed = set()
    for line in tree.splitlines():
        if not (found := re.match(r"( +)([\w/]+(?:\.py)?) ", line)):
            continue
        depth = len(found[1]) // 2
        folders[depth - 1 :] = [found[2].rstrip("/")]
        if found[2].endswith(".py"):
            listed.add("/".join(folders))

    assert listed == {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if path.name != "__init__.py" or path.parent == SOURCE
    }


def test_the_floors_are_those_that_are_checked():
    """The table has the layers of pyproject.toml, from the top."""
    contracts = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = [layer.strip("()") for layer in contracts[0]["layers"]]
    table = rows(section(MAP, "Which module may import which?"))[1:]

    assert [cell.strip("`").replace("\\", "") for _, cell in table] == layers


def test_the_picture_of_the_floors():
    """It is what its program draws now: `python docs/pictures/make_layers.py`."""
    program = runpy.run_path(str(DOCS / "pictures" / "make_layers.py"))

    assert program["PICTURE"].read_text("utf-8") == program["draw"]()


def test_the_state_table():
    """It is the one that the code goes by."""
    head, *table = rows(section(MAP, "Which states does a turn have?"))

    assert {
        TurnState[state]: {
            getattr(aheadless, event): TurnState[cell]
            for event, cell in zip(head[1:-1], cells[:-1], strict=True)
            if cell != "✗"
        }
        for state, *cells in table
    } == NEXT


def test_the_error_tree():
    """Each class stands below its parent, and none is missing."""
    tree = section(MAP, "How are the errors arranged?").split("```")[1]
    parents: list[type] = []
    listed = []
    for line in tree.strip().splitlines():
        found = re.match(r"([│├└─ ]*)([A-Z]\w+(?:, [A-Z]\w+)*)", line)
        assert found is not None, line
        depth = (len(found[1]) + 2) // 6
        kinds = [getattr(exceptions, name) for name in found[2].split(", ")]
        assert all(kind.__base__ is Exception or parents[depth - 1] in kind.__bases__ for kind in kinds), line
        parents[depth:] = kinds[:1]
        listed += kinds

    assert {*listed} == {
        kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, AheadlessError)
    }
    assert len(listed) == len({*listed})


@pytest.mark.parametrize("page", [MAP, "docs/howto/errors-and-delivery.md"])
def test_every_verdict(page):
    """The tables of the deliveries are complete."""
    named = [row[0].strip("`").removeprefix("Delivery.") for row in rows(read(page))]

    assert [name for name in named if name in Delivery.__members__] == [verdict.name for verdict in Delivery]
