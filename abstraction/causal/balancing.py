"""Balanced banks: labels, answers and values that occur equally often.

Random pairs have labels as unequal as the task makes them: under uniform inputs hierarchical equality answers 1 in 98
of 100, and a constant answer scores as much. A balanced bank has, for every variable on its own, the same number of
pairs in every *cell*, a combination of what is balanced:

    label    the counterfactual label of the variable
    factual  the output on the base
    active   whether the two differ
    base     the value of the variable on the base
    source   the value of the variable on the source

Pairs are taken in the order of the stream: one is taken if it has room in its cell of every variable. Where the room
that is left lies in cells that never occur together, the last pair taken that makes way for two others is given back.
So the stream alone decides which pairs a bank holds, and a seeded stream gives the same bank again.
"""

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
      counts: pairs of the bank in every cell of every variable, all the same.
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

    Pairs with a value that is not listed are left out. Variables are balanced each on its own; together they need not
    be.

    Args:
      model: the causal model that labels the pairs.
      stream: chunks of candidate pairs; it decides what is drawn, so seed it.
      by: what to balance, some of `WHAT`, and its values: one list for all variables, or one for each by name.
      variables: the variables to label.
      role: what the bank is for.
      size: pairs to draw, a multiple of the number of cells.
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
    none = np.zeros((len(grids), 0), np.int64)
    drawn, candidates = _Drawn((), none, none, room), 0
    for base, source in stream:
        if candidates >= max_pairs or not drawn.lacks:
            break
        bank = label_pairs(model, base, source, variables=variables, role=role)
        places = _places(model, bank, tuple(by), grids)
        seen = [n + np.bincount(row[row >= 0], minlength=len(n)) for n, row in zip(seen, places, strict=True)]
        drawn = _draw(drawn, bank, places)
        candidates += bank.size
    found = _table(cells, seen)
    if drawn.lacks:
        raise ValueError(_impossible(tuple(by), _table(cells, drawn.room), found, candidates))
    counts = {name: {cell: size // len(each) for cell in each} for name, each in cells.items()}
    return Balanced(concatenate_banks(*drawn.banks), tuple(by), counts, found, candidates)


class _Drawn(NamedTuple):
    """What has been taken: banks, the cells of their pairs, the combinations of cells seen, and the room left."""

    banks: tuple[PairBank, ...]
    places: Int[np.ndarray, "V T"]
    patterns: Int[np.ndarray, "V P"]
    room: list[np.ndarray]

    @property
    def lacks(self) -> bool:
        return any(bool(rest.any()) for rest in self.room)


def _draw(drawn: _Drawn, bank: PairBank, places: Int[np.ndarray, "V N"]) -> _Drawn:
    """Take from one chunk what has room; where nothing ever will, give a pair back for two others."""
    rows, room = _fill(places, drawn.room)
    known = np.concatenate([drawn.patterns, places[:, (places >= 0).all(axis=0)]], axis=1)
    patterns = np.unique(known, axis=1) if known.size else known
    drawn = _Drawn((*drawn.banks, take_rows(bank, rows)), _joined(drawn.places, places[:, rows]), patterns, room)
    free = (places >= 0).all(axis=0)
    free[rows] = False
    while drawn.lacks and not _fits(patterns, drawn.room).any():
        exchange = _exchange(drawn, np.where(free, places, -1))
        if exchange is None:
            break
        given, taken = exchange
        free[taken] = False
        held = np.delete(np.arange(drawn.places.shape[1]), given)
        banks = take_rows(concatenate_banks(*drawn.banks), held), take_rows(bank, taken)
        room = [rest.copy() for rest in drawn.room]
        for rest, old, new in zip(room, drawn.places[:, given], places[:, taken], strict=True):
            rest[old] += 1
            rest -= np.bincount(new, minlength=len(rest))
        drawn = _Drawn(banks, _joined(drawn.places[:, held], places[:, taken]), patterns, room)
    return drawn


def _exchange(drawn: _Drawn, places: Int[np.ndarray, "V N"]) -> tuple[int, Int[np.ndarray, " 2"]] | None:
    """Find a pair that was taken and two that were not, by index, such that these have room once it is given back."""
    fresh, first = np.unique(places, axis=1, return_index=True)
    for given in range(drawn.places.shape[1])[::-1]:
        room = [rest.copy() for rest in drawn.room]
        for rest, cell in zip(room, drawn.places[:, given], strict=True):
            rest[cell] += 1
        fitting = np.flatnonzero(_fits(fresh, room))
        cells = fresh[:, fitting]
        # Two with the same cell of a variable need room for two there.
        two = np.stack([rest[row] >= 2 for rest, row in zip(room, cells, strict=True)])
        beside = ((cells[:, :, None] != cells[:, None, :]) | two[:, :, None]).all(axis=0)
        if beside.any():
            return given, first[fitting[np.argwhere(beside)[0]]]
    return None


def _fits(places: Int[np.ndarray, "V N"], room: list[np.ndarray]) -> Bool[np.ndarray, " N"]:
    """Tell which pairs have room in their cell of every variable."""
    return (places >= 0).all(axis=0) & np.all([rest[row] > 0 for rest, row in zip(room, places, strict=True)], axis=0)


def _joined(*places: Int[np.ndarray, "V _"]) -> Int[np.ndarray, "V _"]:
    return np.concatenate(places, axis=1)


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


def _fill(places: Int[np.ndarray, "V N"], room: list[np.ndarray]) -> tuple[Int[np.ndarray, " K"], list[np.ndarray]]:
    """Take each pair, in order, that has room in its cell of every variable; return them and the room that is left.

    All pairs up to the first that would overfill a cell are taken at once. That cell is then full, so there are no more
    rounds than cells, whatever the number of pairs.
    """
    left, room, taken = np.arange(places.shape[1]), [rest.copy() for rest in room], []
    while len(left):
        left = left[_fits(places[:, left], room)]
        over = np.any([_rank(row[left]) > rest[row[left]] for rest, row in zip(room, places, strict=True)], axis=0)
        stop = int(over.argmax()) if over.any() else len(left)
        for rest, row in zip(room, places, strict=True):
            rest -= np.bincount(row[left[:stop]], minlength=len(rest))
        taken.append(left[:stop])
        left = left[stop:]
    return np.concatenate([np.zeros(0, np.int64), *taken]), room


def _rank(cells: Int[np.ndarray, " K"]) -> Int[np.ndarray, " K"]:
    """Count, for each entry, those up to and with it that are in the same cell."""
    order = np.argsort(cells, kind="stable")
    ranks = np.empty(len(cells), np.int64)
    ranks[order] = np.arange(len(cells)) - np.searchsorted(cells[order], cells[order]) + 1
    return ranks


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
        "were searched, expected values that occur together, fewer things to balance, one variable at a time or a "
        "larger pool"
    )


def _words(by: tuple[str, ...], cell: tuple[Any, ...]) -> str:
    return ", ".join(f"{what} {value}" for what, value in zip(by, cell, strict=True))
