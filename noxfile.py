"""Everything that is checked, each in an environment of its own: `nox -s tests`, `nox -s lint`, and so on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tarfile import TarFile
from typing import Final

import nox
from nox.command import CommandFailed

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

# In percent. What survives is mostly no change at all: "utf-8" as "UTF-8", None for a first False.
LEAST_SCORE: Final = 93


def find_pyenv() -> None:
    """Let every Python that pyenv has installed be found, not only the one that it has switched on."""
    root = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()
    found = [str(path) for path in sorted(root.glob("versions/3.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([*found, os.environ.get("PATH", os.defpath)])


find_pyenv()


def install(session: nox.Session, *groups: str) -> None:
    """Install the package with all of its extras, and dependency groups."""
    extras = "tui,redis,discord,slack,telegram,starlette,otel"
    session.install("-e", f".[{extras}]", *nox.project.dependency_groups(PROJECT, *groups))


def ensure_services(session: nox.Session) -> None:
    """Install a Redis server, an nginx and a Chromium unless they are there."""
    chromium = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if shutil.which("redis-server") is None or nginx is None or not chromium:
        session.run("sh", "scripts/install_services.sh", external=True)


def ensure_npm_packages(session: nox.Session) -> None:
    """Install what the tests need from npm, unless it is there; its tests fail without it, and say so."""
    try:
        session.run("python", "-m", "tests.ai_sdk")
    except CommandFailed:
        session.warn("npm has not installed the packages of tests/ai_sdk: the tests that need them will fail")


def run_tests(session: nox.Session, *command: str) -> None:
    """Run the tests on all cores; what fails gets a second chance alone, and the log says so.

    Hundreds of them start processes and wait for them: one more at a time than there are cores keeps these busy, and
    on a machine that is busy otherwise one can come too late.
    """
    try:
        session.run(*command, f"--numprocesses={(os.cpu_count() or 1) + 1}", "--dist=worksteal")
    except CommandFailed:
        session.warn("tests failed; they are run once more, one after the other: what fails again is broken")
        session.run(*command, "--last-failed", "--last-failed-no-failures=none")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests (arguments go to pytest).

    On the Python that runs nox all of them, which must cover 95 % of the code and 100 % of the protocol; on the others
    without the slow ones, and with few examples for each property.
    """
    ensure_services(session)
    install(session, "test")
    ensure_npm_packages(session)
    if session.posargs:
        session.run("pytest", *session.posargs)
    elif session.python != THIS_PYTHON:
        run_tests(session, "pytest", "-m", "not slow", "--hypothesis-profile=few")
    else:
        session.env["COVERAGE_FILE"] = str(Path(session.create_tmp(), ".coverage").resolve())
        session.run("coverage", "erase")
        run_tests(session, "coverage", "run", "-m", "pytest")
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report", "--include=*/aheadless/protocol/*", "--fail-under=100")
        session.run("coverage", "report")


@nox.session(default=False)
def crashes(session: nox.Session) -> None:
    """Kill and pause processes in mid-turn for thousands of turns (their number is an argument), on each store."""
    install(session, "test")
    session.env["CRASH_TURNS"] = session.posargs[0] if session.posargs else "5000"
    session.run("pytest", "-s", "-o", "faulthandler_timeout=0", "tests/stores/test_processes.py")


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
    """Build the sdist and the wheel, look into them, and use the wheel in empty environments, with each extra alone."""
    session.install(*nox.project.dependency_groups(PROJECT, "package"))
    _, wheel = build(session)
    use_wheel(session, wheel)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Do what `package` does, try the README's commands in the sdist, and put into `dist` what may be uploaded then.

    What keeps the tree from being a release, as a heading that the changelog lacks, is told at the beginning and fails
    at the end: until then it is a rehearsal.
    """
    session.install(*nox.project.dependency_groups(PROJECT, "package"))
    problems = session.run("python", "scripts/check_version.py", silent=True, success_codes=[0, 1])
    session.log(problems)
    sdist, wheel = build(session)
    use_wheel(session, wheel)
    use_sdist(session, sdist)
    session.run("python", "scripts/check_version.py")
    Path("dist").mkdir(exist_ok=True)
    for archive in (sdist, wheel):
        shutil.copy(archive, "dist")
        session.log(f"dist/{archive.name} may be uploaded")


def build(session: nox.Session) -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, and return both when nothing is wrong with what they hold."""
    folder = Path(session.create_tmp()).resolve()
    for name in ("dist", "direct"):
        shutil.rmtree(folder / name, ignore_errors=True)
    session.run("python", "-m", "build", "--quiet", "--outdir", str(folder / "dist"))
    session.run("python", "-m", "build", "--quiet", "--wheel", "--outdir", str(folder / "direct"))
    session.run("python", "scripts/check_package.py", str(folder / "dist"))
    [sdist] = (folder / "dist").glob("*.tar.gz")
    [wheel] = (folder / "dist").glob("*.whl")
    [direct] = (folder / "direct").glob("*.whl")
    if sorted(zipfile.ZipFile(wheel).namelist()) != sorted(zipfile.ZipFile(direct).namelist()):
        session.error("the wheel of the sdist and the wheel of the tree do not hold the same files")
    session.run("twine", "check", "--strict", str(sdist), str(wheel))
    return sdist, wheel


def use_wheel(session: nox.Session, wheel: Path) -> None:
    """Run the README's first program where nothing but the wheel is installed, and a little with each extra alone."""
    root, folder = Path.cwd(), Path(session.create_tmp()).resolve()
    with session.chdir(folder):  # away from the sources
        python = make_environment(session, folder / "venv", str(wheel))
        session.run(str(python), str(root / "scripts/try_first_script.py"), str(root / "README.md"), external=True)
        command = python.with_name("aheadless")
        session.run(str(command), "demo", "--once", external=True, success_codes=[2])  # says what to install
        for extra in PROJECT["project"]["optional-dependencies"]:
            make_environment(session, folder / "venv", f"{wheel}[{extra}]")
            if extra != "cli":
                session.run(str(python), str(root / "scripts/try_extra.py"), extra, external=True)
                continue
            said = str(session.run(str(command), "demo", "--once", external=True, silent=True))
            if "overview.md" not in said:
                session.error(f"the demo did not answer from its documentation:\n{said}")


def use_sdist(session: nox.Session, sdist: Path) -> None:
    """Run the README's two commands where the sdist is unpacked; of the tests only those of the README itself."""
    folder = Path(session.create_tmp(), "unpacked").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    with TarFile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.iterdir()
    readme = (unpacked / "README.md").read_text("utf-8")
    demo, test = re.findall(r"^```bash\n(python3 -m venv .*)\n```$", readme, re.MULTILINE)
    with session.chdir(unpacked):
        session.run("bash", "-euo", "pipefail", "-c", f"{demo} --once", external=True)
        session.run("bash", "-euo", "pipefail", "-c", f"{test} -- tests/test_readme.py", external=True)


def make_environment(session: nox.Session, folder: Path, requirement: str) -> Path:
    """Make an environment with nothing else in it, in the place of the one before, and return its Python."""
    session.run("python", "-m", "venv", "--clear", str(folder))
    # Not resolved: it is a link, and what it leads to would install for everybody.
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = (str(python), "-m", "pip", "install", "--quiet", "--no-compile", requirement)
    session.run(*install, external=True, env={"PIP_REQUIRE_VIRTUALENV": "1"})
    return python


# --- hardening: each is bounded, and told of in docs/explanation/hardening.md -----------------------------------------


@nox.session(default=False)
def audit(session: nox.Session) -> None:
    """Ask for known vulnerabilities of all that users install; fail, too, if there was nobody to ask."""
    session.install(".[tui,uvloop]", *nox.project.dependency_groups(PROJECT, "audit"))
    # Two services that know the same advisories; some networks reach neither.
    for service in ("osv", "pypi"):
        said = session.run(
            *("pip-audit", "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"),
            silent=True,
            stderr=subprocess.DEVNULL,  # a traceback of hundreds of lines when there is no such host
            success_codes=[0, 1],
        )
        asked, vulnerable = read_audit(str(said))
        if vulnerable:
            session.error("known vulnerabilities:\n" + "\n".join(vulnerable))
        if asked:
            session.log(f"{service} knows of nothing in {asked} packages")
            return
        session.warn(f"{service} was not reached, or knows of none of the packages")
    session.error("nobody could be asked: this says nothing of the dependencies, good or bad")


def read_audit(said: str) -> tuple[int, list[str]]:
    """Return how many packages were looked up, and what is wrong with them, from what pip-audit printed."""
    line = next((line for line in said.splitlines() if line.startswith('{"dependencies"')), "{}")
    # One that is skipped was not found; pip-audit takes that for a success.
    found = [item for item in json.loads(line).get("dependencies", ()) if "skip_reason" not in item]
    return len(found), [
        f"{item['name']} {item['version']}: {vulnerability['id']}"
        for item in found
        for vulnerability in item.get("vulns", ())
    ]


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz the client with a state machine for some minutes, then the decoder for 60 s (or as the argument says)."""
    install(session, "test", "fuzz")
    session.run("pytest", "tests/fuzz", "--hypothesis-profile=fuzz", "-o", "faulthandler_timeout=1800")
    corpus = Path(session.create_tmp(), "corpus").resolve()
    session.run("python", "-m", "tests.fuzz.corpus", str(corpus))
    seconds = session.posargs[0] if session.posargs else "60"
    fuzzer = ("python", "-m", "tests.fuzz.fuzz_decoder", str(corpus), f"-artifact_prefix={corpus.parent}/")
    session.run(*fuzzer, "-max_len=400", f"-max_total_time={seconds}", "-print_final_stats=1")


@nox.session(default=False)
def leaks(session: nox.Session) -> None:
    """Have 10,000 turns (or what the argument says), one in a hundred with a fault, and see that nothing grows."""
    install(session, "test")
    session.run(
        "python", "-X", "dev", "-W", "error::ResourceWarning", "-m", "tests.test_leaks", *(session.posargs or ["10000"])
    )


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure every goal beside the peers, and draw the plots (arguments go on, as `--quick`)."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def mutation(session: nox.Session) -> None:
    """Change the protocol, retries and pacing in some 800 ways, and count which of them no test notices."""
    install(session, "test", "mutation")
    session.run("mutmut", "run", *session.posargs)
    session.run("mutmut", "results")
    session.run("mutmut", "export-cicd-stats", silent=True)
    stats: dict[str, int] = json.loads(Path("mutants", "mutmut-cicd-stats.json").read_text("utf-8"))
    noticed = stats["killed"] + stats["timeout"]
    score = 100 * noticed / stats["total"]
    session.log(f"{noticed} of {stats['total']} mutants are noticed: {score:.1f} %")
    if score < LEAST_SCORE:
        session.error(f"less than {LEAST_SCORE} %")
