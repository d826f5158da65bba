"""Tables fit the terminal, and no number is cut."""

import pytest
from rich.console import Console
from rich.table import Table

from experiments.harness.printing import fitted, show_parts

NAMES = ("method", *(f"column {place}" for place in range(12)))
ROWS = [[f"row {row}", *(f"{row}.{place:04d}" for place in range(12))] for row in range(3)]


def _table() -> Table:
    table = Table(title="a title that says at length what the numbers of the table below it are", title_justify="left")
    for name in NAMES:
        table.add_column(name, justify="right", no_wrap=True)
    for row in ROWS:
        table.add_row(*row)
    return table


@pytest.mark.parametrize("width", [30, 60, 80, 120, 300])
def test_lines_fit_and_every_cell_is_there(width: int, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    show_parts([_table(), "some text " * 30])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in ROWS:
        assert all(f" {cell} " in text for cell in row)
    assert all(name in text for name in NAMES)


def test_each_part_begins_with_the_first_column_and_columns_keep_their_order():
    parts = fitted(_table(), Console(width=60))
    headers = [[str(column.header) for column in part.columns] for part in parts]
    assert len(parts) > 1
    assert all(header[0] == "method" for header in headers)
    assert [name for header in headers for name in header[1:]] == list(NAMES[1:])


def test_a_table_that_fits_is_left_alone():
    table = _table()
    assert fitted(table, Console(width=300)) == [table]


def test_a_column_too_wide_for_the_terminal_stands_alone():
    assert len(fitted(_table(), Console(width=5))) == len(NAMES) - 1


def test_output_that_is_no_terminal_is_120_columns_wide(capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.delenv("COLUMNS")
    show_parts([_table()])
    lines = capsys.readouterr().out.splitlines()
    assert 80 < max(map(len, lines)) <= 120
