"""The choice among handles (PLOT, Sec. 3.3): all of them are evaluated by one compiled program.

Selection sees `Evidence`, which is built from fit and calibration pairs and refuses test pairs. Among candidates of
equal IIA the lower calibration loss wins, then the lower transport cost, then the earlier one; `ties` says how many
distinct handles shared the winning IIA.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Real

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Readout, Tally, tally_handles, unique_handles
from abstraction.interventions import Basis, Handle, LocalHandle, Recording, at_one_depth, record_pairs, take_handle
from abstraction.localization.cutting import Grid
from abstraction.models import Model
from abstraction.typing import AnyArray, Params, Setting


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a selection may look at; build it with `gather_evidence`.

    Attributes:
      recordings: base and source runs, one per bank.
      banks: fit and calibration banks of the same variables.
    """

    recordings: tuple[Recording, ...]
    banks: tuple[PairBank, ...]


def record_bank(
    model: Model, params: Params, encode: Callable[[Setting], AnyArray], bank: PairBank, *, tap: str
) -> Recording:
    """Run a bank's base and source settings through the network once."""
    return record_pairs(model, params, encode(bank.base), encode(bank.source), taps=(tap,))


def gather_evidence(pairs: Sequence[tuple[Recording, PairBank]]) -> Evidence:
    """Collect recorded banks for a selection.

    Raises:
      ValueError: a bank has the role `test`, banks differ in variables, or there is none.
    """
    banks = tuple(bank for _, bank in pairs)
    if not banks or len({bank.variables for bank in banks}) != 1:
        raise ValueError(
            f"got banks of {[bank.variables for bank in banks]}, expected at least one, of equal variables"
        )
    forbidden = [bank.role for bank in banks if bank.role not in ("fit", "calibration")]
    if forbidden:
        raise ValueError(
            f"got a {forbidden[0]} bank as evidence for a selection, expected fit or calibration pairs only"
        )
    return Evidence(tuple(recording for recording, _ in pairs), banks)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The handle chosen for each variable, and on what grounds.

    Attributes:
      handles: one handle per variable, batched.
      settings: the grid values of each variable's winner.
      tally: the winners' counts on the evidence, `[V]`.
      ties: distinct handles that shared the winning IIA, per variable.
      ambiguous: whether the winner's last site was one of several equals, per variable.
      candidates: grid size per variable, the largest where they differ.
      evaluated: distinct (handle, variable) that were run.
      scores: combined IIA of every candidate, `[V, *axes]`; NaN where a variable has fewer than others.
    """

    handles: Handle | LocalHandle
    settings: tuple[dict[str, Any], ...]
    tally: Tally
    ties: np.ndarray
    ambiguous: np.ndarray
    candidates: int
    evaluated: int
    scores: np.ndarray


def calibrate(
    model: Model,
    params: Params,
    evidence: Evidence,
    grid: Grid,
    *,
    tap: str,
    shared_axis: str | None = None,
    first_wins: bool = False,
    readout: Readout = CLASSES,
) -> Choice:
    """Evaluate every distinct handle of a grid on the evidence and choose one per variable.

    Args:
      model: the network.
      params: its weights.
      evidence: the pairs to choose by; counts of all its banks are pooled.
      grid: the candidates.
      tap: the tap they edit.
      shared_axis: an axis on which all variables must agree (the paper's shared-eps rule); by default none.
      first_wins: let the earliest of equal IIA win, as in the paper, whatever its loss and cost.
      readout: how outputs meet labels.

    Returns:
      The choice, best combined IIA first.
    """
    variables, *shape = grid.cost.shape
    variable = np.repeat(np.arange(variables), np.prod(shape, dtype=int))
    flat = Handle(grid.weight.reshape(len(variable), *grid.weight.shape[-2:]), None, tap)
    distinct, owner, inverse = unique_handles(flat, variable)
    distinct = dataclasses.replace(distinct, basis=_repeated(grid.basis, len(owner)))
    tally = tally_evidence(model, params, evidence, at_one_depth(distinct), owner, readout=readout)
    every = tally[inverse]
    scores, losses = every.combined.reshape(variables, *shape), every.mean_loss.reshape(variables, *shape)
    winners = select(
        scores,
        np.zeros_like(losses) if first_wins else losses,
        np.zeros_like(grid.cost) if first_wins else grid.cost,
        shared_axis=_axis_index(grid, shared_axis),
    )
    chosen = [(v, *np.unravel_index(index, shape)) for v, index in enumerate(winners)]
    flat_index = [int(v * np.prod(shape, dtype=int) + index) for v, index in enumerate(winners)]
    return Choice(
        handles=take_handle(distinct, inverse[flat_index]),
        settings=tuple(
            {name: values[i] for (name, values), i in zip(grid.axes, place[1:], strict=True)} for place in chosen
        ),
        tally=every[np.array(flat_index)],
        ties=_distinct_ties(scores.reshape(variables, -1), winners, inverse.reshape(variables, -1)),
        ambiguous=np.array([grid.ambiguous[place] for place in chosen]),
        candidates=int(np.prod(shape, dtype=int)),
        evaluated=len(owner),
        scores=scores,
    )


def calibrate_candidates(
    model: Model,
    params: Params,
    evidence: Evidence,
    handles: Handle | LocalHandle,
    variable: Int[np.ndarray, " H"],
    settings: Sequence[dict[str, Any]],
    *,
    cost: Real[np.ndarray, " H"],
    readout: Readout = CLASSES,
) -> Choice:
    """Choose one handle per variable from a flat list, such as trained rotations.

    Args:
      model: the network.
      params: its weights.
      evidence: the pairs to choose by.
      handles: the candidates.
      variable: which variable each candidate stands for.
      settings: what each candidate is, for the report.
      cost: decides between candidates of equal IIA and loss (a rank, say: smaller wins).
      readout: how outputs meet labels.

    Raises:
      ValueError: a variable has no candidate.
    """
    counts = np.bincount(variable, minlength=len(evidence.banks[0].variables))
    if not counts.all():
        raise ValueError(f"got {counts.tolist()} candidates per variable, expected at least one of each")
    tally = tally_evidence(model, params, evidence, handles, variable, readout=readout)
    order = np.full((len(counts), counts.max()), -1)
    for index, count in enumerate(counts):
        order[index, :count] = np.flatnonzero(variable == index)
    there = order >= 0
    scores = np.where(there, tally.combined[order], np.nan)
    winners = select(scores, np.where(there, tally.mean_loss[order], np.inf), np.asarray(cost)[order])
    chosen = order[np.arange(len(counts)), winners]
    return Choice(
        handles=take_handle(handles, chosen),
        settings=tuple(settings[index] for index in chosen),
        tally=tally[chosen],
        ties=_distinct_ties(scores, winners, order),
        ambiguous=np.zeros(len(counts), bool),
        candidates=int(counts.max()),
        evaluated=len(variable),
        scores=scores,
    )


def tally_evidence(
    model: Model,
    params: Params,
    evidence: Evidence,
    handles: Handle | LocalHandle,
    variable: Int[np.ndarray, " H"],
    *,
    readout: Readout = CLASSES,
) -> Tally:
    """Count hits of many handles, pooled over all banks of the evidence."""
    tallies = [
        tally_handles(model, params, recording, bank, handles, variable, readout=readout)
        for recording, bank in zip(evidence.recordings, evidence.banks, strict=True)
    ]
    return sum(tallies[1:], start=tallies[0])


def select(
    scores: Float[np.ndarray, "V ..."],
    losses: Float[np.ndarray, "V ..."],
    costs: Real[np.ndarray, "V ..."],
    *,
    shared_axis: int | None = None,
) -> list[int]:
    """Return the flat index of each variable's winner over `*axes`.

    Highest score, then lowest loss, then lowest cost, then first. With a shared axis, its value is fixed first: the
    one with the highest mean over variables of each variable's best score there, the first of equals.
    """
    allowed = np.ones(scores.shape[1:], bool)
    if shared_axis is not None:
        others = tuple(axis for axis in range(1, scores.ndim) if axis != shared_axis + 1)
        best = np.round(scores.max(axis=others).mean(axis=0), 9)
        allowed = np.moveaxis(np.zeros_like(allowed), shared_axis, 0)
        allowed[int(best.argmax())] = True
        allowed = np.moveaxis(allowed, 0, shared_axis)
    winners = []
    for score, loss, cost in zip(scores, losses, costs, strict=True):
        keys = (
            cost.ravel(),
            np.nan_to_num(loss, nan=np.inf).ravel(),
            -np.where(allowed, np.round(np.nan_to_num(score, nan=-1.0), 9), -1).ravel(),
        )
        winners.append(int(np.lexsort(keys)[0]))
    return winners


def _repeated(basis: Basis | None, count: int) -> Basis | None:
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *np.shape(leaf))), jax.device_get(basis))


def _axis_index(grid: Grid, name: str | None) -> int | None:
    names = [axis for axis, _ in grid.axes]
    if name is not None and name not in names:
        raise ValueError(f"got shared axis {name!r}, expected one of {names}")
    return None if name is None else names.index(name)


def _distinct_ties(scores: np.ndarray, winners: list[int], identity: np.ndarray) -> np.ndarray:
    return np.array(
        [
            len(np.unique(names[np.round(row, 9) == np.round(row[winner], 9)]))
            for row, winner, names in zip(scores, winners, identity, strict=True)
        ]
    )
