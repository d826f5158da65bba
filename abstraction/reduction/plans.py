"""A plan: the folds of a reduction, in the order the network runs through them, with what is known about each.

A plan does not change a network. `patch` runs the original one under it, `compile_plan` makes a smaller one of it. It
prints as a table and is stored as one safetensors file: arrays, and everything else as JSON in the file's own header,
so that no half of it can be lost.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from abstraction.checks import finite, number
from abstraction.files import replaced
from abstraction.models import Network
from abstraction.reduction.folding import Fold, affine_fold, check_fold, obstacle
from abstraction.typing import AnyArray

_FORMAT = "abstraction plan 1"
_ARRAYS = ("kept", "replaced", "intercept", "coefficients")
_LARGEST = 3


@dataclass(frozen=True, eq=False)
class Plan:
    """Folds and their records; the four tuples have one entry per fold.

    Attributes:
      folds: in forward order, one per tap, each in the original numbering of its tap.
      scores: what removing each unit of the tap was worth, `[D]`, or None.
      risks: expected discrepancy of the fold, or None.
      notes: anything else that JSON can hold.
      obstacles: why `compile_plan` refuses the fold; empty where it is exact.
    """

    folds: tuple[Fold, ...]
    scores: tuple[AnyArray | None, ...]
    risks: tuple[float | None, ...]
    notes: tuple[Mapping[str, Any], ...]
    obstacles: tuple[str, ...]

    def __str__(self) -> str:
        head = ("tap", "kept", "replaced by", "largest coefficients", "risk", "compile")
        rows = [
            (
                fold.tap,
                f"{fold.kept.shape[0]} of {fold.width}",
                "affine maps" if np.any(fold.coefficients) else "constants",
                _largest(fold),
                "" if risk is None else f"{risk:.4g}",
                f"patch only: {why}" if why else "exact",
            )
            for fold, risk, why in zip(self.folds, self.risks, self.obstacles, strict=True)
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
            for row in (head, *rows)
        )

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, which appears under its name only when complete."""
        arrays = {
            f"{index}.{name}": np.ascontiguousarray(getattr(fold, name))
            for index, fold in enumerate(self.folds)
            for name in _ARRAYS
        }
        given = {index: score for index, score in enumerate(self.scores) if score is not None}
        arrays |= {f"{index}.scores": np.ascontiguousarray(score) for index, score in given.items()}
        about = [
            {"tap": fold.tap, "risk": risk, "notes": dict(notes), "obstacle": why}
            for fold, risk, notes, why in zip(self.folds, self.risks, self.notes, self.obstacles, strict=True)
        ]
        with replaced(path) as partial:
            partial.write_bytes(save(arrays, {"format": _FORMAT, "folds": json.dumps(about)}))


def reduction_plan(
    network: Network,
    folds: Sequence[Fold],
    *,
    scores: Sequence[AnyArray | None] | None = None,
    risks: Sequence[float | None] | None = None,
    notes: Sequence[Mapping[str, Any]] | None = None,
) -> Plan:
    """Make a plan for a network, and find out which of its folds can be compiled exactly.

    Args:
      network: the network.
      folds: in forward order, at most one per tap.
      scores: per fold, one number per unit of its tap.
      risks: per fold.
      notes: per fold, what JSON can hold.

    Raises:
      ValueError: a fold does not fit its tap, taps repeat or are out of order, a record does not fit the folds or
        JSON, or a score or risk is not finite.
    """
    for fold in folds:
        check_fold(network, fold)
    order = [fold.tap for fold in folds]
    forward = [tap for tap in network.taps if tap in order]
    if order != forward:
        raise ValueError(f"got folds at {order}, expected one per tap, in the order {forward}")
    count = len(folds)
    records = {"scores": scores, "risks": risks, "notes": notes}
    wrong = {name: len(record) for name, record in records.items() if record is not None and len(record) != count}
    if wrong:
        raise ValueError(f"got {wrong} records for {count} folds, expected one each")
    scores = [None] * count if scores is None else scores
    sizes = [(fold.width,) if score is None else np.shape(score) for fold, score in zip(folds, scores, strict=True)]
    if sizes != [(fold.width,) for fold in folds]:
        raise ValueError(f"got scores of shapes {sizes}, expected one per unit, {[(fold.width,) for fold in folds]}")
    for fold, score in zip(folds, scores, strict=True):
        finite(f"scores of {fold.tap!r}", 0.0 if score is None else score)
    return Plan(
        tuple(folds),
        tuple(scores),
        tuple(None if risk is None else float(finite("a risk", risk)) for risk in risks or [None] * count),
        tuple(_plain(note) for note in notes or [{}] * count),
        tuple(obstacle(network, fold) for fold in folds),
    )


def load_plan(path: str | Path) -> Plan:
    """Read what `Plan.save` has written.

    Raises:
      ValueError: the file is damaged or is not a plan; what is wrong with it.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"format {header.get('format')!r}, expected {_FORMAT!r}")
            about = json.loads(header["folds"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        folds = tuple(
            affine_fold(fold["tap"], *(arrays.pop(f"{index}.{name}") for name in _ARRAYS))
            for index, fold in enumerate(about)
        )
        scores = tuple(arrays.pop(f"{index}.scores", None) for index in range(len(about)))
        if arrays:
            raise ValueError(f"unknown arrays {sorted(arrays)}")
        rest = [tuple(fold[name] for fold in about) for name in ("risk", "notes", "obstacle")]
        _check_records(folds, scores, *rest)
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read a plan from {path}: {error}") from error
    return Plan(folds, scores, *rest)


def _check_records(
    folds: Sequence[Fold],
    scores: Sequence[Any],
    risks: Sequence[Any],
    notes: Sequence[Any],
    obstacles: Sequence[Any],
) -> None:
    """Refuse records of a file that are not those of its folds."""
    for fold, score, risk, note, why in zip(folds, scores, risks, notes, obstacles, strict=True):
        if score is not None and finite(f"scores of {fold.tap!r}", score).shape != (fold.width,):
            raise ValueError(f"got scores of shape {score.shape} at {fold.tap!r}, expected {(fold.width,)}")
        if risk is not None:
            number("risk", risk, -float("inf"))
        if not isinstance(note, dict) or not isinstance(why, str) or not isinstance(fold.tap, str):
            raise ValueError(f"got a fold at {fold.tap!r} with notes {note!r}, expected a tap's name and a table")


def _plain(note: Mapping[str, Any]) -> dict[str, Any]:
    """Return a note as a file gives it back."""
    try:
        return json.loads(json.dumps(dict(note), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"got note {note}, expected what JSON can hold: {error}") from error


def _largest(fold: Fold) -> str:
    """Show the largest coefficients as "replaced unit <- value kept unit"."""
    coefficients = np.asarray(fold.coefficients)
    order = np.argsort(-np.abs(coefficients), axis=None, kind="stable")[:_LARGEST]
    shown = [(*np.unravel_index(flat, coefficients.shape), coefficients.flat[flat]) for flat in order]
    return ", ".join(
        f"{fold.replaced[row]} <- {value:+.3g} x {fold.kept[column]}" for row, column, value in shown if value
    )
