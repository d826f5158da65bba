"""Tables fit the terminal, and no number is cut."""

import numpy as np
import pandas as pd
import pytest

from experiments.harness.tables import Table, fitted, show_parts, table

NAMES = ("method", *(f"column {place}" for place in range(12)))
ROWS = [[f"row {row}", *(row + place / 10_000 for place in range(12))] for row in range(3)]
CELLS = [[name, *(f"{value:.4f}" for value in values)] for name, *values in ROWS]


def _table(keys: int = 1) -> Table:
    title = "a title that says at length what the numbers of the table below it are"
    return Table(title, pd.DataFrame(ROWS, columns=NAMES), keys=keys)


@pytest.mark.parametrize("width", [30, 60, 80, 120, 300])
def test_lines_fit_and_every_cell_is_there(width: int, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    show_parts([_table(), "some text " * 30])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in CELLS:
        assert all(cell in text for cell in row)
    assert all(name in text for name in NAMES)


@pytest.mark.parametrize("keys", [1, 2])
def test_each_part_begins_with_what_names_the_row_and_columns_keep_their_order(keys: int):
    headers = [list(part.frame.columns) for part in fitted(_table(keys), 60)]
    assert len(headers) > 1
    assert all(header[:keys] == list(NAMES[:keys]) for header in headers)
    assert [name for header in headers for name in header[keys:]] == list(NAMES[keys:])


def test_a_table_that_fits_is_left_alone():
    whole = _table()
    [part] = fitted(whole, 300)
    assert (part.title, part.keys) == (whole.title, whole.keys)
    pd.testing.assert_frame_equal(part.frame, whole.frame)


def test_a_column_too_wide_for_the_terminal_stands_alone():
    assert len(fitted(_table(), 5)) == len(NAMES) - 1


def test_output_that_is_no_terminal_is_120_columns_wide(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.delenv("COLUMNS")
    show_parts([_table()])
    lines = capsys.readouterr().out.splitlines()
    assert 80 < max(map(len, lines)) <= 120


def test_every_column_is_written_as_it_says_and_what_is_not_there_is_empty():
    rows = [
        {"method": "a", "run s": 1.25, "share": 0.5, "n": 3},
        {"method": "b", "run s": np.nan, "share": None, "n": 4},
    ]
    shown = table("times", rows, {"run s": ".1f"}).cells()
    assert shown.to_numpy().tolist() == [["a", "1.2", "0.5000", "3"], ["b", "", "", "4"]]
