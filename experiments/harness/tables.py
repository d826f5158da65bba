"""Tables: raw numbers, how each column is written, and the ways to have them.

In a terminal a table is as wide as the screen: one that is wider is split into several that begin with the same
columns, so that no row breaks and no number is cut. As Markdown and LaTeX it is written with the same digits, as CSV
with all of them.
"""

import dataclasses
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

Format = Literal["terminal", "markdown", "latex", "csv"]
_PIPE = 120
"""Columns where the output is no terminal and COLUMNS is not set."""
_GAP = 1
_DOTTED = ".4f"


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: one line.
      frame: raw numbers and text; a number that is not there is NaN.
      formats: how columns of numbers are written, `.4f` where nothing is said.
      keys: how many columns on the left name the row.
    """

    title: str
    frame: pd.DataFrame
    formats: Mapping[str, str] = field(default_factory=dict)
    keys: int = 1

    def cells(self) -> pd.DataFrame:
        """Write every cell; what is not there is empty."""
        columns = {
            name: [_written(value, self.formats.get(name, _DOTTED)) for value in self.frame[name]]
            for name in self.frame.columns
        }
        return pd.DataFrame(columns, dtype=object)

    def without_empty_columns(self) -> "Table":
        """Leave out columns in which nothing is."""
        return dataclasses.replace(self, frame=self.frame.dropna(axis="columns", how="all"))


Part = Table | str
"""What a report is made of: tables and lines of text."""


def table(
    title: str, rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] | None = None, keys: int = 1
) -> Table:
    """Make a table of rows."""
    return Table(title, pd.DataFrame(list(rows)), formats or {}, keys)


def show_parts(parts: Iterable[Part], style: Format = "terminal") -> None:
    """Print tables and lines of text."""
    if style != "terminal":
        print("\n\n".join(exported(parts, style)))
        return
    console = Console(width=shutil.get_terminal_size((_PIPE, 24)).columns)
    for part in parts:
        if isinstance(part, str):
            console.print(part, highlight=False, markup=False)
            continue
        console.print(part.title, style="italic", highlight=False, markup=False)
        for piece in fitted(part, console.width):
            console.print(_rich(piece), "", highlight=False)


def exported(parts: Iterable[Part], style: Format) -> Iterator[str]:
    """Write tables in a form to be used elsewhere; lines of text stay beside them, but for CSV."""
    for part in parts:
        if isinstance(part, str):
            yield from [] if style == "csv" else [f"% {part}" if style == "latex" else part]
        elif style == "markdown":
            yield f"**{part.title}**\n\n" + part.cells().to_markdown(index=False, disable_numparse=True)
        elif style == "latex":
            layout = "l" * part.keys + "r" * (len(part.frame.columns) - part.keys)
            yield part.cells().to_latex(index=False, escape=True, caption=part.title, column_format=layout)
        else:
            buffer = io.StringIO()
            part.frame.to_csv(buffer, index=False)
            yield f"# {part.title}\n{buffer.getvalue().rstrip()}"


def fitted(whole: Table, width: int) -> list[Table]:
    """Split a table that is wider than the screen into several; each begins with the columns that name the row."""
    cells = whole.cells()
    needs = {name: max(len(str(name)), *(len(text) for text in cells[name]), 0) for name in cells.columns}
    names, rest = list(cells.columns[: whole.keys]), list(cells.columns[whole.keys :])
    groups: list[list[str]] = [[]]
    for name in rest:
        columns = [*names, *groups[-1], name]
        if groups[-1] and sum(needs[column] + _GAP for column in columns) - _GAP > width:
            groups.append([])
        groups[-1].append(name)
    return [dataclasses.replace(whole, frame=whole.frame.filter([*names, *group])) for group in groups]


def _rich(part: Table) -> RichTable:
    # Without edges and padding the lines between columns are the gap that `fitted` counts with.
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for place, name in enumerate(part.frame.columns):
        shown.add_column(str(name), justify="left" if place < part.keys else "right", no_wrap=True)
    for row in part.cells().itertuples(index=False):
        shown.add_row(*row)
    return shown


def _written(value: Any, spec: str) -> str:
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    return f"{value:{spec}}" if isinstance(value, float) or spec != _DOTTED else str(value)
