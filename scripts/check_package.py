"""Look into the sdist and the wheel in a folder: `python scripts/check_package.py dist`; exit with 1 if they are wrong.

The sdist must hold what git has and nothing else, the wheel what the sdist has under `src` and the pages that the
server answers from, and no more than that.
"""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Nobody reads or runs so large a file; it is a recording, a model or a bundle that got in by mistake.
MAX_SIZE: Final = 1_000_000

# What tools leave behind. Git ignores it, and so does the build, unless somebody changes the one or the other.
LEFT_BEHIND: Final = frozenset(["__pycache__", "node_modules", "_build", ".venv", ".nox", ".hypothesis", "mutants"])

DIST_INFO: Final = frozenset(["METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"])


def check_sdist(sizes: dict[str, int], tracked: set[str], others: set[str]) -> Iterator[str]:
    """Yield what is wrong with the files of an sdist, given those that git has, and others that it does not ignore."""
    for name in sorted(tracked - sizes.keys()):
        yield f"the sdist lacks {name}, which git has"
    for name in sorted(sizes.keys() - {"PKG-INFO"}):
        if tracked and name not in tracked | others:
            yield f"the sdist holds {name}, which git has not"
        if not LEFT_BEHIND.isdisjoint(name.split("/")):
            yield f"the sdist holds {name}, which a tool has left behind"
        if sizes[name] > MAX_SIZE:
            yield f"the sdist holds {name}, which has {sizes[name]:,} bytes"


def check_wheel(names: set[str], expected: set[str]) -> Iterator[str]:
    """Yield what is wrong with the files of a wheel."""
    for name in sorted(expected - names):
        yield f"the wheel lacks {name}"
    for name in sorted(names - expected):
        yield f"the wheel holds {name}, which is none of the package's files"


def expected_in_wheel(sdist: Iterable[str], included: dict[str, str], dist_info: str) -> set[str]:
    """Return what a wheel must hold: what the sdist has under `src`, and in the files and folders that are included."""
    places = {"src": "", **{source: f"{target}/" for source, target in included.items()}}
    inside = {
        target + name.removeprefix(f"{source}/")
        for name in sdist
        for source, target in places.items()
        if name.startswith(f"{source}/")
    }
    files = {target for source, target in included.items() if source in sdist}
    return inside | files | {f"{dist_info}/{name}" for name in DIST_INFO}


def check_readme(metadata: str) -> Iterator[str]:
    """Yield the links of the long description that lead nowhere in an index, which has no files beside it."""
    text = str(email.message_from_string(metadata).get_payload())
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    if not prose.strip():
        yield "the long description is empty"
    for target in re.findall(r"\]\(([^)]*)\)", prose):
        if not target.startswith(("https://", "http://")):
            yield f"the long description has a link to {target}"


def git_files(*options: str) -> set[str]:
    """Return the files of this folder as git lists them; nothing where there is no clone."""
    listed = subprocess.run(["git", "ls-files", "-z", *options], check=False, capture_output=True, text=True)
    return {name for name in listed.stdout.split("\0") if name and Path(name).exists()}


def check(folder: Path) -> list[str]:
    """Return what is wrong with the archives in a folder, made of the tree in the working directory."""
    [sdist], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(sdist) as tar:
        sizes = {item.name.partition("/")[2]: item.size for item in tar.getmembers() if not item.isdir()}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        dist_info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
        metadata = archive.read(f"{dist_info}/METADATA").decode()
    tracked = git_files()
    if not tracked:
        print("this is no clone: the sdist is not compared with what git has")
    config = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]["targets"]["wheel"]
    return [
        *check_sdist(sizes, tracked, git_files("--others", "--exclude-standard")),
        *check_wheel(names, expected_in_wheel(sizes, config["force-include"], dist_info)),
        *check_readme(metadata),
    ]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "the sdist and the wheel hold what they should")
    sys.exit(bool(problems))
