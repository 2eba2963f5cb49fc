"""What keeps a tree, or the archives made of it, from being a release is found, and named."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PYPROJECT = """
[tool.hatch.build.targets.wheel.force-include]
"README.md" = "pkg/_docs/README.md"
"docs/howto" = "pkg/_docs/howto"
"""
TREE = {
    "pyproject.toml": PYPROJECT,
    "README.md": "# pkg\n\nSee <https://www.python.org> and [PEPs](https://peps.python.org).\n",
    "CHANGELOG.md": "# Changes\n\n## Unreleased\n\n## 1.2.0 - 2026-11-30\n\n- New.\n\n## 1.1.0 - 2026-10-01\n\n- Old.\n",
    ".gitignore": "__pycache__/\n",
    "docs/howto/use.md": "# Use\n",
    "src/pkg/__init__.py": "",
    "src/aheadless/_version.py": '"""The version."""\n\n__version__ = "1.2.0"\n',
    "tests/test_pkg.py": "",
}
WHEEL = {
    "pkg/__init__.py": "",
    "aheadless/_version.py": TREE["src/aheadless/_version.py"],
    "pkg/_docs/README.md": TREE["README.md"],
    "pkg/_docs/howto/use.md": TREE["docs/howto/use.md"],
    "pkg-1.2.0.dist-info/METADATA": f"Metadata-Version: 2.4\nName: pkg\n\n{TREE['README.md']}",
    "pkg-1.2.0.dist-info/WHEEL": "",
    "pkg-1.2.0.dist-info/RECORD": "",
    "pkg-1.2.0.dist-info/entry_points.txt": "",
    "pkg-1.2.0.dist-info/licenses/LICENSE": "",
}


def git(tree: Path, *command: str) -> None:
    identity = ("-c", "user.name=Tess", "-c", "user.email=tess@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *command], cwd=tree, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone whose only commit is a release."""
    tree = tmp_path / "tree"
    for name, text in TREE.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    git(tree, "init")
    git(tree, "add", "--all")
    git(tree, "commit", "-m", "Release")
    return tree


def pack(folder: Path, sdist: dict[str, str], wheel: dict[str, str]) -> Path:
    """Write both archives, as `python -m build` does."""
    folder.mkdir()
    with tarfile.open(folder / "pkg-1.2.0.tar.gz", "w:gz") as tar:
        for name, text in {**sdist, "PKG-INFO": ""}.items():
            info = tarfile.TarInfo(f"pkg-1.2.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    with zipfile.ZipFile(folder / "pkg-1.2.0-py3-none-any.whl", "w") as archive:
        for name, text in wheel.items():
            archive.writestr(name, text)
    return folder


def run(tree: Path, script: str, *arguments: str | Path) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    ran = subprocess.run(command, cwd=tree, check=False, capture_output=True, text=True)
    assert ran.stderr == ""
    return ran.returncode, ran.stdout.splitlines()


# --- archives ---------------------------------------------------------------------------------------------------------


def test_archives_hold_what_they_should(tree, tmp_path):
    """Nothing is said against them."""
    dist = pack(tmp_path / "dist", TREE, WHEEL)

    assert run(tree, "check_package.py", dist) == (0, ["the sdist and the wheel hold what they should"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.txt", ["the sdist holds notes.txt, which git has not"]),
        (
            "tests/__pycache__/test_pkg.pyc",
            [
                "the sdist holds tests/__pycache__/test_pkg.pyc, which git has not",
                "the sdist holds tests/__pycache__/test_pkg.pyc, which a tool has left behind",
            ],
        ),
    ],
)
def test_stray_file_in_the_sdist(tree, tmp_path, name, said):
    """Each is named."""
    dist = pack(tmp_path / "dist", {**TREE, name: ""}, WHEEL)

    assert run(tree, "check_package.py", dist) == (1, said)


def test_file_that_is_about_to_be_added(tree, tmp_path):
    """What git does not ignore may be in the sdist: a new module is, before its first commit."""
    (tree / "src/pkg/new.py").touch()
    dist = pack(tmp_path / "dist", {**TREE, "src/pkg/new.py": ""}, {**WHEEL, "pkg/new.py": ""})

    assert run(tree, "check_package.py", dist)[0] == 0


def test_file_is_missing(tree, tmp_path):
    """In the sdist it is one that git has, in the wheel one that the sdist has."""
    without_test = {name: text for name, text in TREE.items() if name != "tests/test_pkg.py"}
    without_page = {name: text for name, text in WHEEL.items() if name != "pkg/_docs/howto/use.md"}
    dist = pack(tmp_path / "dist", without_test, without_page)

    assert run(tree, "check_package.py", dist) == (
        1,
        ["the sdist lacks tests/test_pkg.py, which git has", "the wheel lacks pkg/_docs/howto/use.md"],
    )


@pytest.mark.parametrize("name", ["tests/test_pkg.py", "pkg/node_modules/a.js", "pkg/__pycache__/a.pyc", "other.py"])
def test_stray_file_in_the_wheel(tree, tmp_path, name):
    """Whatever is not a file of the package."""
    dist = pack(tmp_path / "dist", TREE, {**WHEEL, name: ""})

    assert run(tree, "check_package.py", dist) == (
        1,
        [f"the wheel holds {name}, which is none of the package's files"],
    )


@pytest.mark.parametrize(("size", "code"), [(1_000_000, 0), (1_000_001, 1)])
def test_large_file(tree, tmp_path, size, code):
    """A million bytes are allowed, and no more."""
    dist = pack(tmp_path / "dist", {**TREE, "tests/test_pkg.py": "#" * size}, WHEEL)

    assert run(tree, "check_package.py", dist)[0] == code


@pytest.mark.parametrize("link", ["[a](docs/howto/use.md)", "![a](chat.svg)", "[a](#more)"])
def test_link_that_is_dead_in_an_index(tree, tmp_path, link):
    """There are no files beside the long description."""
    metadata = f"Name: pkg\n\n# pkg\n\n{link}\n\n```python\nnames[0](chat)\n```\n"
    dist = pack(tmp_path / "dist", TREE, {**WHEEL, "pkg-1.2.0.dist-info/METADATA": metadata})

    target = link.partition("(")[2][:-1]
    assert run(tree, "check_package.py", dist) == (1, [f"the long description has a link to {target}"])


def test_unpacked_sdist(tree, tmp_path):
    """Where there is no clone the files are not compared with git, and that is said."""
    subprocess.run(["rm", "-r", tree / ".git"], check=True)
    dist = pack(tmp_path / "dist", TREE, WHEEL)

    code, said = run(tree, "check_package.py", dist)

    assert code == 0
    assert said[0] == "this is no clone: the sdist is not compared with what git has"


# --- version ----------------------------------------------------------------------------------------------------------


def test_tree_is_a_release(tree):
    """With its tag or before it has one."""
    assert run(tree, "check_version.py") == (0, ["this tree is a release"])

    git(tree, "tag", "v1.2.0")

    assert run(tree, "check_version.py") == (0, ["this tree is a release"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "## 1.2.0 - 2026-11-30",
            "## 1.3.0 - 2026-11-30",
            "the newest release in CHANGELOG.md is 1.3.0, and _version.py says 1.2.0",
        ),
        (
            "## 1.1.0 -",
            "## 1.2.0 -",
            "the releases in CHANGELOG.md are not in order, the newest first",
        ),
        (
            "## 1.1.0 - 2026-10-01",
            "## 1.1",
            "CHANGELOG.md has a heading that is neither `## Unreleased` nor like `## 1.2.3 - 2026-11-30`",
        ),
        ("Unreleased\n", "Unreleased\n\n- Newer.\n", "CHANGELOG.md has changes that are in no release"),
    ],
)
def test_changelog_that_is_not_of_this_version(tree, old, new, said):
    """What is wrong with it is told."""
    (tree / "CHANGELOG.md").write_text(TREE["CHANGELOG.md"].replace(old, new), "utf-8")
    git(tree, "commit", "--all", "-m", "Change")

    assert run(tree, "check_version.py") == (1, [said])


def test_tree_that_is_not_committed(tree):
    """A release is a commit."""
    (tree / "new.py").touch()

    assert run(tree, "check_version.py") == (1, ["not committed: new.py"])


def test_tag_of_another_version(tree):
    """It is not moved to this one."""
    git(tree, "tag", "v1.1.0")

    assert run(tree, "check_version.py") == (1, ["the commit is tagged v1.1.0, and _version.py says 1.2.0"])


def test_changelog_of_this_project():
    """It has the form that a release wants: versions with dates, the kinds of change that Keep a Changelog knows."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

    for heading in re.findall(r"^## (.*)", text, re.MULTILINE):
        assert re.fullmatch(r"Unreleased|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading)
    assert {*re.findall(r"^### (.*)", text, re.MULTILINE)} <= kinds
