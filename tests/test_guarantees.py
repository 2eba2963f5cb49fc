"""The page of guarantees promises nothing that no test shows."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "guarantees.md"
ROWS = {
    int(cells[0]): cells[-1]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if (cells := [cell.strip() for cell in line.strip("|").split(" | ")]) and cells[0].isdecimal()
}


def test_every_fault_has_a_row():
    """They are numbered without a gap."""
    assert list(ROWS) == [*range(1, 96)]


@pytest.mark.parametrize("number", ROWS)
def test_proof(number):
    """A row names at least one test, and each test that it names is there."""
    proof = ROWS[number]
    links = re.findall(r"\[(test_\w+)\]\(\.\./\.\./(tests/[\w/]+\.py)\)", proof)

    assert links, f"row {number} has no proof"
    for name, file in links:
        assert name in names_in(file), f"row {number}: there is no {name} in {file}"


@cache
def names_in(file: str) -> set[str]:
    """Return the names of the tests in a file."""
    return set(re.findall(r"^ *(?:async )?def (test_\w+)\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE))
