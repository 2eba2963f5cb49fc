"""Everything that is checked, each in an environment of its own: `nox -s tests`, `nox -s lint`, and so on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from tarfile import TarFile
from typing import Final

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv|virtualenv"
# A Python that is not there is left out, not fetched: what is tested is what this machine has.
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

# uv trusts a list of its own otherwise, and fails behind a proxy where pip works.
os.environ.setdefault("UV_SYSTEM_CERTS", "1")

PROJECT: Final = nox.project.load_toml("pyproject.toml")
THIS_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
# Those of the classifiers, and the one that runs nox, so that there is always one to test.
PYTHONS: Final = list(dict.fromkeys([*nox.project.python_versions(PROJECT), THIS_PYTHON]))

# What the demo answers from, what the type checkers of users need, and the licence.
IN_WHEEL: Final = (
    "aheadless/py.typed",
    "aheadless/server/_docs/README.md",
    "aheadless/server/_docs/tutorial.md",
    "aheadless/server/_docs/howto/self-host.md",
    "aheadless/server/_docs/explanation/protocol.md",
    "aheadless/server/_docs/reference/settings.md",
    "licenses/LICENSE",
)
IN_SDIST: Final = ("README.md", "LICENSE", "noxfile.py", "docs/conf.py", "tests/conftest.py", "src/aheadless/py.typed")


def find_pyenv() -> None:
    """Let every Python that pyenv has installed be found, not only the one that it has switched on."""
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found = [str(path) for path in sorted(root.glob("versions/3.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([*found, os.environ.get("PATH", os.defpath)])


find_pyenv()


def install(session: nox.Session, *groups: str) -> None:
    """Install the package with its command line, and dependency groups."""
    session.install("-e", ".[cli]", *nox.project.dependency_groups(PROJECT, *groups))


def ensure_redis(session: nox.Session) -> None:
    """Install a Redis server unless there is one."""
    if shutil.which("redis-server") is None:
        session.run("sh", "scripts/install_services.sh", external=True)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests (arguments go to pytest); all of them must cover 95 % of the code, and 100 % of the protocol."""
    ensure_redis(session)
    install(session, "test")
    session.env["COVERAGE_FILE"] = str(Path(session.create_tmp(), ".coverage").resolve())
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    if session.posargs:
        return  # some tests cover some of the code
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--include=*/aheadless/protocol/*", "--fail-under=100")
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, form and the direction of the imports."""
    install(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, and that all of the public ones are known to users."""
    install(session, "types", "test")
    session.install("nox")  # for this file
    session.run("mypy")
    session.run("pyright")
    # It fails, too, where a type comes from a library without types: the report is looked at, not the exit code.
    report = session.run(
        "pyright", "--verifytypes", "aheadless", "--ignoreexternal", "--outputjson", silent=True, success_codes=[0, 1]
    )
    completeness = json.loads(str(report))["typeCompleteness"]
    unknown = [
        f"{symbol['name']}: {diagnostic['message']}"
        for symbol in completeness["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
        for diagnostic in symbol["diagnostics"]
    ]
    if completeness["completenessScore"] != 1:
        session.error("public types are not complete:\n" + "\n".join(unknown))
    session.log(f"all {completeness['exportedSymbolCounts']['withKnownType']} public types are known")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def package(session: nox.Session) -> None:
    """Build the sdist and the wheel, look into them, and run the demo from the wheel in an empty environment."""
    session.install(*nox.project.dependency_groups(PROJECT, "package"))
    folder = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--quiet", "--outdir", str(folder / "dist"))  # the wheel from the sdist
    session.run("python", "-m", "build", "--quiet", "--wheel", "--outdir", str(folder / "direct"))
    [sdist] = (folder / "dist").glob("*.tar.gz")
    [wheel] = (folder / "dist").glob("*.whl")
    [direct] = (folder / "direct").glob("*.whl")
    with TarFile.open(sdist) as archive:
        require(session, sdist, IN_SDIST, archive.getnames())
    names = zipfile.ZipFile(wheel).namelist()
    require(session, wheel, IN_WHEEL, names)
    if strays := [name for name in names if not name.startswith("aheadless")]:
        session.error(f"{wheel.name} has files of another package: {strays}")
    if sorted(names) != sorted(zipfile.ZipFile(direct).namelist()):
        session.error("the wheel of the sdist and the wheel of the tree do not hold the same files")

    session.run("python", "-m", "venv", "--clear", str(folder / "venv"))
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = python.with_name("aheadless")
    session.chdir(folder)
    session.run(str(python), "-m", "pip", "install", "--quiet", str(wheel), external=True)
    session.run(str(command), "demo", "--once", external=True, success_codes=[2])  # says what to install
    session.run(str(python), "-m", "pip", "install", "--quiet", f"{wheel}[cli]", external=True)
    said = str(session.run(str(command), "demo", "--once", external=True, silent=True))
    if "overview.md" not in said:
        session.error(f"the demo did not answer from its documentation:\n{said}")


def require(session: nox.Session, archive: Path, wanted: tuple[str, ...], names: list[str]) -> None:
    """End the session unless every wanted file is in the archive."""
    if missing := [end for end in wanted if not any(name.endswith(f"/{end}") or name == end for name in names)]:
        session.error(f"{archive.name} lacks {', '.join(missing)}")
