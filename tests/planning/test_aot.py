"""The table of what was compiled ahead of time: rows of other devices stay, and a chunk that was cut says so."""

import csv

from benchmarks.aot import _VERSIONS, Row, _known, _write


def _row(target, chunk, devices=1):
    sizes = (1.0, 2.0, 3.0, 6.0)
    return Row(target, devices, "case", "sweep", "3 places", 8, chunk, *sizes, "yes", 1e12, 4.0, "none", "jax")


def test_rows_of_other_devices_stay(tmp_path):
    path = tmp_path / "aot.csv"
    _write(path, ("v5e", 1), [_row("v5e", 8)])
    _write(path, ("v5e", 8), [_row("v5e", 4, 8)])
    _write(path, ("h100", 1), [_row("h100", 5)])
    _write(path, ("v5e", 1), [_row("v5e", 2)])
    with path.open(newline="") as file:
        rows = [Row(*row) for row in csv.reader(file)][1:]
    found = [(row.target, row.devices, row.chunk) for row in rows]
    assert found == [("h100", "1", "5"), ("v5e", "1", "2"), ("v5e", "8", "4")]
    page = path.with_suffix(".md").read_text()
    assert "## case, 1 x H100 (84.9 GB)" in page
    assert "## case, 8 x TPU v5e (17.2 GB)" in page
    assert "| sweep | 3 places | 2 of 8 | 1 | 2 | 3 | 6 | yes | 1e+12 | 4 | none |" in page


def test_rows_of_this_version_are_known_when_a_table_is_gone_on_with(tmp_path):
    path = tmp_path / "aot.csv"
    assert _known(path, ("v5e", 1)) == []
    _write(path, ("v5e", 1), [_row("v5e", 8)._replace(versions=_VERSIONS), _row("v5e", 4)])
    _write(path, ("v5e", 8), [_row("v5e", 8, 8)._replace(versions=_VERSIONS)])
    assert [row[2:5] for row in _known(path, ("v5e", 1))] == [("case", "sweep", "3 places")]
