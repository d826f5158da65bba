"""The table of what was compiled ahead of time: rows of other targets stay, and a chunk that was cut says so."""

import csv

from benchmarks.aot import Row, _write


def _row(target, chunk):
    return Row(target, 1, "case", "sweep", "3 places", 8, chunk, 1.0, 2.0, 3.0, 6.0, "yes", 4.0, "none", "jax")


def test_rows_of_other_targets_stay(tmp_path):
    path = tmp_path / "aot.csv"
    _write(path, "v5e", [_row("v5e", 8)])
    _write(path, "h100", [_row("h100", 5)])
    _write(path, "v5e", [_row("v5e", 2)])
    with path.open(newline="") as file:
        rows = [Row(*row) for row in csv.reader(file)][1:]
    assert [(row.target, row.chunk) for row in rows] == [("h100", "5"), ("v5e", "2")]
    page = path.with_suffix(".md").read_text()
    assert "## case, 1 x H100 (84.9 GB)" in page
    assert "| sweep | 3 places | 2 of 8 | 1 | 2 | 3 | 6 | yes | 4 | none |" in page
