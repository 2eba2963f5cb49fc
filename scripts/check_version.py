"""Tell what keeps the tree in the working directory from being a release; exit with 1 if anything does.

The version in `_version.py`, the newest heading of the changelog and the tag, if there is one, must be the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = r"\d+\.\d+\.\d+"


def check_changelog(text: str, version: str) -> Iterator[str]:
    """Yield what the changelog wants before this version can be released."""
    headings = re.findall(r"^## (.*)\n", text, re.MULTILINE)
    dated = [found for heading in headings if (found := re.fullmatch(rf"({VERSION}) - \d{{4}}-\d\d-\d\d", heading))]
    if {*headings} - {"Unreleased", *(found[0] for found in dated)}:
        yield "CHANGELOG.md has a heading that is neither `## Unreleased` nor like `## 1.2.3 - 2026-11-30`"
    newest = dated[0][1] if dated else None
    if newest != version:
        yield f"the newest release in CHANGELOG.md is {newest}, and _version.py says {version}"
    numbers = [tuple(map(int, found[1].split("."))) for found in dated]
    if any(later <= earlier for later, earlier in pairwise(numbers)):
        yield "the releases in CHANGELOG.md are not in order, the newest first"
    if re.search(r"^## Unreleased\n+(?!## )\S", text, re.MULTILINE):
        yield "CHANGELOG.md has changes that are in no release"


def check_git(version: str) -> Iterator[str]:
    """Yield what is not committed, or is tagged as another version."""
    if changed := git("status", "--porcelain"):
        yield f"not committed: {', '.join(line[3:] for line in changed)}"
    tags = [tag for tag in git("tag", "--points-at", "HEAD") if re.match(r"v\d", tag)]
    if tags not in ([], [f"v{version}"]):
        yield f"the commit is tagged {', '.join(tags)}, and _version.py says {version}"


def git(*command: str) -> list[str]:
    """Return the lines that git answers."""
    return subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.splitlines()


def check() -> list[str]:
    """Return what keeps this tree from being a release."""
    source = Path("src/aheadless/_version.py").read_text("utf-8")
    [version] = re.findall(rf'^__version__ = "({VERSION})"$', source, re.MULTILINE)
    return [*check_changelog(Path("CHANGELOG.md").read_text("utf-8"), version), *check_git(version)]


if __name__ == "__main__":
    problems = check()
    print("\n".join(problems) or "this tree is a release")
    sys.exit(bool(problems))
