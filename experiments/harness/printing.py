"""Tables as wide as the terminal: one that is wider is split into several, so that no number is cut."""

import copy
import shutil
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

_PIPE = 120
"""Columns where the output is no terminal and COLUMNS is not set."""


def show_parts(parts: Iterable[Any]) -> None:
    """Print tables and lines of text."""
    console = Console(width=shutil.get_terminal_size((_PIPE, 24)).columns)
    for part in parts:
        if isinstance(part, Table):
            for table in fitted(part, console):
                console.print(table)
        else:
            console.print(part, highlight=False)


def fitted(table: Table, console: Console) -> list[Table]:
    """Split a table that is wider than the console into several; each begins with the first column."""
    if len(table.columns) < 2 or _width(table, console) <= console.width:
        return [table]
    first, *rest = table.columns
    groups: list[list[Column]] = [[]]
    for column in rest:
        if groups[-1] and _width(_part(table, [first, *groups[-1], column]), console) > console.width:
            groups.append([])
        groups[-1].append(column)
    return [_part(table, [first, *group], continued=bool(place)) for place, group in enumerate(groups)]


def _part(table: Table, columns: list[Column], continued: bool = False) -> Table:
    """Copy some columns of a table."""
    title = f"{table.title} (continued)" if continued else table.title
    part = Table(title=title, title_justify=table.title_justify)
    for place, column in enumerate(columns):
        same = copy.copy(column)
        same._index = place
        part.columns.append(same)
    part.rows = list(table.rows)
    return part


def _width(table: Table, console: Console) -> int:
    """Return the columns a table needs when nothing is cut; its title wraps."""
    untitled = copy.copy(table)
    untitled.title = None
    return Measurement.get(console, console.options.update(max_width=10_000), untitled).maximum
