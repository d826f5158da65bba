"""Every row of the parity checks has a test that is there, and one that sees it fail."""

import ast
from pathlib import Path

import pytest
from parity_rows import ROWS

FOLDER = Path(__file__).parent


def names_there():
    """Return `file::name` of every test of this folder, without importing it."""
    return {
        f"{path.name}::{node.name}"
        for path in FOLDER.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def missing(rows):
    """Say what a table of rows lacks."""
    known, there = [f"P{number}" for number in range(1, 27)], names_there()
    lost = [row for row in known if row not in rows]
    unknown = sorted(set(rows) - set(known))
    empty = [name for name, row in rows.items() if not row.tests or not row.faults]
    gone = [test for row in rows.values() for test in (*row.tests, *row.faults) if test not in there]
    return lost + unknown + empty + gone


def test_every_row_has_its_tests():
    assert not missing(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_that_vanishes_is_missed(row):
    assert missing({name: found for name, found in ROWS.items() if name != row}) == [row]


def test_a_test_that_vanishes_is_missed():
    row = ROWS["P1"]._replace(tests=("test_decoders.py::test_that_is_gone",))
    assert missing({**ROWS, "P1": row}) == ["test_decoders.py::test_that_is_gone"]
