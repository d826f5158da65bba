"""Balanced banks: labels, answers and values that occur equally often.

Random pairs have labels as unequal as the task makes them: under uniform inputs hierarchical equality answers 1 in 98
of 100, and a constant answer scores as much. A balanced bank has, for every variable on its own, the same number of
pairs in every *cell*, a combination of what is balanced:

    label    the counterfactual label of the variable
    factual  the output on the base
    active   whether the two differ
    base     the value of the variable on the base
    source   the value of the variable on the source

A pair counts for each variable apart: it is taken for every variable in whose cell there is room, in the order of the
stream, and is eligible for those in the bank. So variables whose cells exclude each other are balanced all the same,
and a seeded stream gives the same bank again.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from abstraction.causal.pairs import PairBank, Role, check_variables, concatenate_banks, label_pairs, take_rows
from abstraction.causal.sampling import Stream
from abstraction.causal.scm import CausalModel
from abstraction.checks import whole

WHAT = ("label", "factual", "active", "base", "source")
Values = Iterable[Any]
Counts = dict[str, dict[tuple[Any, ...], int]]
"""By variable, pairs by cell: a value of each thing that is balanced."""

_SHOWN = 8


class Balanced(NamedTuple):
    """A balanced bank, and what the stream held.

    Attributes:
      bank: the pairs.
      by: what is balanced, in the order in which a cell has it.
      counts: eligible pairs of the bank in every cell of every variable, all the same.
      seen: candidates in every cell, among those that were looked at.
      candidates: how many were looked at.
    """

    bank: PairBank
    by: tuple[str, ...]
    counts: Counts
    seen: Counts
    candidates: int

    def __str__(self) -> str:
        lines = [f"{self.bank.size} pairs of {self.candidates} candidates, by {', '.join(self.by)}"]
        for name, cells in self.counts.items():
            for cell, count in cells.items():
                lines.append(f"{name}: {_words(self.by, cell)}: {count} of {self.seen[name][cell]}")
        return "\n".join(lines)


def balanced_bank(
    model: CausalModel,
    stream: Stream,
    by: Mapping[str, Values | Mapping[str, Values]],
    *,
    variables: Sequence[str],
    role: Role,
    size: int,
    max_pairs: int = 20_000_000,
) -> Balanced:
    """Draw pairs until every combination of what is balanced occurs equally often for every variable.

    Pairs with a value that is not listed are left out. The bank has `size` eligible pairs of each variable, and `size`
    to V times as many in all.

    Args:
      model: the causal model that labels the pairs.
      stream: chunks of candidate pairs; it decides what is drawn, so seed it.
      by: what to balance, some of `WHAT`, and its values: one list for all variables, or one for each by name.
      variables: the variables to label.
      role: what the bank is for.
      size: pairs to draw for each variable, a multiple of the number of cells.
      max_pairs: candidates to look at before the policy is declared impossible.

    Raises:
      ValueError: something unknown to balance, no values or one twice, a size that cannot be split, or the stream ends,
        or `max_pairs` candidates have been seen, with a cell unfilled: says which, and how often it occurred.
    """
    whole("max_pairs", max_pairs)
    check_variables(model, variables)
    grids = [_grid(by, name) for name in variables]
    cells = {name: list(itertools.product(*(v.tolist() for v in g))) for name, g in zip(variables, grids, strict=True)}
    _check_size(size, {name: len(each) for name, each in cells.items()})
    room = [np.full(len(each), size // len(each)) for each in cells.values()]
    seen = [np.zeros(len(each), np.int64) for each in cells.values()]
    kept: list[PairBank] = []
    candidates = 0
    for base, source in stream:
        if candidates >= max_pairs or not any(rest.any() for rest in room):
            break
        bank = label_pairs(model, base, source, variables=variables, role=role)
        places = _places(model, bank, tuple(by), grids)
        taken = np.stack([_taken(row, rest) for row, rest in zip(places, room, strict=True)])
        room = [rest - _counted(row[own], rest) for rest, row, own in zip(room, places, taken, strict=True)]
        seen = [count + _counted(row, count) for count, row in zip(seen, places, strict=True)]
        kept.append(take_rows(dataclasses.replace(bank, eligible=taken), np.flatnonzero(taken.any(axis=0))))
        candidates += bank.size
    found = _table(cells, seen)
    if any(rest.any() for rest in room):
        raise ValueError(_impossible(tuple(by), _table(cells, room), found, candidates))
    counts = {name: {cell: size // len(each) for cell in each} for name, each in cells.items()}
    return Balanced(concatenate_banks(*kept), tuple(by), counts, found, candidates)


def _taken(cells: Int[np.ndarray, " N"], room: Int[np.ndarray, " cells"]) -> Bool[np.ndarray, " N"]:
    """Take of every cell as many pairs as there is room for, the first ones."""
    order = np.argsort(cells, kind="stable")
    rank = np.empty(len(cells), np.int64)
    rank[order] = np.arange(len(cells)) - np.searchsorted(cells[order], cells[order])
    return (cells >= 0) & (rank < room[cells])


def _counted(cells: Int[np.ndarray, " N"], like: Int[np.ndarray, " cells"]) -> Int[np.ndarray, " cells"]:
    return np.bincount(cells[cells >= 0], minlength=len(like))


def _table(cells: Mapping[str, list[tuple[Any, ...]]], counts: list[np.ndarray]) -> Counts:
    return {
        name: dict(zip(each, count.tolist(), strict=True))
        for (name, each), count in zip(cells.items(), counts, strict=True)
    }


def _grid(by: Mapping[str, Values | Mapping[str, Values]], name: str) -> list[np.ndarray]:
    """Return the values of each thing that is balanced, for one variable."""
    unknown = [what for what in by if what not in WHAT] if isinstance(by, Mapping) else [by]
    if unknown or not by:
        raise ValueError(f"got {unknown or by} to balance, expected one or more of {WHAT}, each with its values")
    grid = []
    for what, listed in by.items():
        if isinstance(listed, Mapping):
            if name not in listed:
                raise ValueError(f"got values of {what!r} for {list(listed)}, expected some for {name!r}")
            listed = listed[name]
        words = isinstance(listed, str) or not isinstance(listed, Iterable)
        values = np.asarray([] if words else list(listed))
        if values.ndim != 1 or values.dtype.kind not in "biufUS" or len(np.unique(values)) != len(values) or words:
            raise ValueError(f"got values {listed!r} of {what!r}, expected a list of numbers or of words, each once")
        if not len(values) or (values.dtype.kind == "f" and not np.isfinite(values).all()):
            raise ValueError(f"got values {listed!r} of {what!r}, expected at least one, and finite ones")
        grid.append(values)
    return grid


def _check_size(size: int, cells: dict[str, int]) -> None:
    whole("size", size)
    if any(size % count for count in cells.values()):
        raise ValueError(f"got a size of {size} pairs for cells {cells}, expected a multiple of each of these numbers")


def _places(
    model: CausalModel, bank: PairBank, by: tuple[str, ...], grids: list[list[np.ndarray]]
) -> Int[np.ndarray, "V N"]:
    """Return the cell of every pair for every variable, -1 where a value is not listed."""
    runs = {what: model.run(side) for what, side in (("base", bank.base), ("source", bank.source)) if what in by}
    places = np.zeros((len(grids), bank.size), np.int64)
    for v, (name, grid) in enumerate(zip(bank.variables, grids, strict=True)):
        columns = {"label": bank.labels[v], "factual": bank.factual, "active": bank.active[v]}
        columns |= {what: np.asarray(run[name]) for what, run in runs.items()}
        for what, values in zip(by, grid, strict=True):
            index = _index(what, name, columns[what], values)
            places[v] = np.where((places[v] < 0) | (index < 0), -1, places[v] * len(values) + index)
    return places


def _index(what: str, name: str, column: np.ndarray, values: np.ndarray) -> Int[np.ndarray, " N"]:
    """Return which of the listed values each number or word is, -1 for none."""
    if (column.dtype.kind in "US") != (values.dtype.kind in "US") or column.dtype.kind not in "biufUS":
        raise ValueError(
            f"got values {values.tolist()[:_SHOWN]} of {what!r}, expected some like {name!r}: {column[:1]}"
        )
    same = values[:, None] == column
    return np.where(same.any(axis=0), same.argmax(axis=0), -1)


def _impossible(by: tuple[str, ...], missing: Counts, seen: Counts, candidates: int) -> str:
    lacking = [
        f"{count} more pairs of {name!r} with {_words(by, cell)} ({seen[name][cell] or 'never'} seen)"
        for name, cells in missing.items()
        for cell, count in cells.items()
        if count
    ]
    more = [f"and {len(lacking) - _SHOWN} others"] if len(lacking) > _SHOWN else []
    return (
        f"got a balance that cannot be reached: it lacks {'; '.join(lacking[:_SHOWN] + more)}; {candidates} candidates "
        "were searched, expected values that occur together, fewer things to balance or a larger pool"
    )


def _words(by: tuple[str, ...], cell: tuple[Any, ...]) -> str:
    return ", ".join(f"{what} {value}" for what, value in zip(by, cell, strict=True))
