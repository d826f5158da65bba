"""The choice among handles (PLOT, Sec. 3.3): all of them are evaluated by one compiled program.

Selection sees fit and calibration pairs and refuses test pairs. Among candidates of equal IIA the lower calibration
loss wins, then the lower transport cost, then the earlier one; `ties` says how many distinct handles shared the winning
IIA. A candidate with an output that is not finite on any pair is never chosen; `not_finite` says how many there were.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Real

from abstraction.checks import flag, kind, places
from abstraction.evaluation import Recorded, Tally, tally_handles
from abstraction.evaluation.iia import unique_handles
from abstraction.interventions import Basis, Handle
from abstraction.interventions.handles import take_handle
from abstraction.localization.cutting import Grid
from abstraction.models import Network

Evidence: TypeAlias = Recorded | Sequence[Recorded]
"""What a selection may look at: one recorded bank, or several of the same variables, whose counts are pooled."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """How one handle per variable is selected.

    Attributes:
      shared_axis: an axis on which all variables must agree (the paper's shared-eps rule); by default none.
      first_wins: let the earliest of equal IIA win, as in the paper, whatever its loss and cost.
      onset: choose among the handles of one depth, the first that carries the variable: the first at which a handle is
        within one standard error of the best IIA. What is written at a depth is often read at all later ones.

    Raises:
      ValueError: the axis is not a name, a flag not a truth value, or an onset with a shared axis.
    """

    shared_axis: str | None = None
    first_wins: bool = False
    onset: bool = False

    def __post_init__(self) -> None:
        kind("shared axis", self.shared_axis, (str, type(None)))
        flag("first_wins", self.first_wins)
        flag("onset", self.onset)
        if self.onset and self.shared_axis is not None:
            raise ValueError(f"got an onset with the shared axis {self.shared_axis!r}, expected one of the two")


SELECTION = Selection()


def checked_evidence(evidence: Evidence) -> tuple[Recorded, ...]:
    """Return the banks of the evidence for a selection.

    Raises:
      ValueError: there is none, one is a test bank, they differ in variables, or a variable has no pair in any.
    """
    banks = (evidence,) if isinstance(evidence, Recorded) else tuple(evidence)
    if not banks or len({bank.variables for bank in banks}) != 1:
        raise ValueError(
            f"got evidence of variables {[bank.variables for bank in banks]}, expected at least one recorded bank, all "
            "of equal variables"
        )
    forbidden = [one.bank.role for one in banks if one.bank.role not in ("fit", "calibration")]
    if forbidden:
        raise ValueError(
            f"got a {forbidden[0]} bank as evidence for a selection, expected fit or calibration pairs only"
        )
    counted = np.any([one.bank.eligible.any(axis=1) for one in banks], axis=0)
    if not counted.all():
        empty = [name for name, there in zip(banks[0].variables, counted, strict=True) if not there]
        raise ValueError(f"got evidence without an eligible pair of {empty}, expected some of every variable")
    return banks


@dataclasses.dataclass(frozen=True)
class Choice:
    """The handle chosen for each variable, and on what grounds.

    Attributes:
      variables: names of the V variables.
      handles: one handle per variable, batched.
      settings: the grid values of each variable's winner.
      tally: the winners' counts on the evidence, `[V]`.
      ties: distinct handles that shared the winning IIA, per variable.
      ambiguous: whether the winner's last site was one of several equals, per variable.
      candidates: grid size per variable, the largest where they differ.
      evaluated: distinct (handle, variable) that were run.
      scores: combined IIA of every candidate, `[V, *axes]`; NaN where a variable has fewer than others.
      not_finite: candidates that were not finite on the evidence, and so could not be chosen, per variable.
    """

    variables: tuple[str, ...]
    handles: Handle
    settings: tuple[dict[str, Any], ...]
    tally: Tally
    ties: np.ndarray
    ambiguous: np.ndarray
    candidates: int
    evaluated: int
    scores: np.ndarray
    not_finite: np.ndarray


def calibrate(network: Network, evidence: Evidence, grid: Grid, selection: Selection = SELECTION) -> Choice:
    """Evaluate every distinct handle of a grid on the evidence and choose one per variable.

    Args:
      network: the network.
      evidence: the pairs to choose by.
      grid: the candidates.
      selection: how to select.

    Returns:
      The choice, best combined IIA first.

    Raises:
      ValueError: what `checked_evidence` and `select` refuse, an unknown shared axis, or a grid of other variables.
    """
    banks = checked_evidence(evidence)
    variables, *shape = grid.cost.shape
    if variables != len(banks[0].variables):
        raise ValueError(f"got a grid of {variables} variables, expected {len(banks[0].variables)}, the evidence's")
    shared, size = _axis_index(grid, selection.shared_axis), int(np.prod(shape, dtype=int))
    variable = np.repeat(np.arange(variables), size)
    flat = Handle(grid.tap, grid.weight.reshape(len(variable), *grid.weight.shape[-2:]))
    distinct, owner, inverse = unique_handles(flat, variable)
    distinct = dataclasses.replace(distinct, basis=_repeated(grid.basis, len(owner)))
    every = tally_evidence(network, banks, distinct, owner)[inverse]
    scores, losses = every.combined.reshape(variables, *shape), every.mean_loss.reshape(variables, *shape)
    allowed = (
        np.where(onset(grid, scores, every.error.reshape(scores.shape)), losses, np.nan) if selection.onset else losses
    )
    winners = select(
        scores,
        np.where(np.isfinite(allowed), 0.0, allowed) if selection.first_wins else allowed,
        np.zeros_like(grid.cost) if selection.first_wins else grid.cost,
        names=banks[0].variables,
        shared_axis=shared,
    )
    chosen = [(v, *np.unravel_index(index, shape)) for v, index in enumerate(winners)]
    flat_index = [int(v * size + index) for v, index in enumerate(winners)]
    return Choice(
        variables=banks[0].variables,
        handles=take_handle(distinct, inverse[flat_index]),
        settings=tuple(
            {name: values[i] for (name, values), i in zip(grid.axes, place[1:], strict=True)} for place in chosen
        ),
        tally=every[np.array(flat_index)],
        ties=_distinct_ties(scores.reshape(variables, -1), winners, inverse.reshape(variables, -1)),
        ambiguous=np.array([grid.ambiguous[place] for place in chosen]),
        candidates=size,
        evaluated=len(owner),
        scores=scores,
        not_finite=(~np.isfinite(losses)).reshape(variables, -1).sum(axis=1),
    )


def onset(
    grid: Grid, scores: Float[np.ndarray, "V ..."], errors: Float[np.ndarray, "V ..."]
) -> Bool[np.ndarray, "V ..."]:
    """Tell which handles act first at the first depth where one is within a standard error of the best score.

    Args:
      grid: the handles.
      scores: combined IIA of each, `[V, *axes]`.
      errors: its standard error.
    """
    first = (grid.weight != 0).any(axis=-1).argmax(axis=-1)
    flat = np.where(np.isfinite(scores), scores, -1.0).reshape(len(scores), -1)
    best = flat.argmax(axis=1)[:, None]
    least = np.take_along_axis(flat - errors.reshape(flat.shape), best, axis=1)
    depth = first.reshape(flat.shape)
    earliest = np.where(flat >= least, depth, grid.weight.shape[-2]).min(axis=1, keepdims=True)
    return (depth == earliest).reshape(scores.shape)


def calibrate_candidates(
    network: Network,
    evidence: Evidence,
    handles: Handle,
    variable: Int[np.ndarray, " H"],
    settings: Sequence[dict[str, Any]],
    *,
    cost: Real[np.ndarray, " H"],
) -> Choice:
    """Choose one handle per variable from a flat list, such as trained rotations.

    Args:
      network: the network.
      evidence: the pairs to choose by.
      handles: the candidates.
      variable: which variable each candidate stands for.
      settings: what each candidate is, for the report.
      cost: decides between candidates of equal IIA and loss (a rank, say: smaller wins).

    Raises:
      ValueError: a variable has no candidate, none that is finite, or no pair; other numbers of handles, variables,
        settings and costs; a cost that is not a number.
    """
    banks, variable = checked_evidence(evidence), np.atleast_1d(np.asarray(variable))
    names, sizes = banks[0].variables, (len(variable), len(settings), len(np.atleast_1d(cost)))
    if len({len(np.asarray(handles.weight)), *sizes}) != 1 or np.isnan(np.asarray(cost, float)).any():
        raise ValueError(
            f"got {len(np.asarray(handles.weight))} handles and {sizes} variables, settings and costs, expected one of "
            "each per handle, and costs that are numbers"
        )
    tally = tally_evidence(network, banks, handles, variable)
    counts = np.bincount(variable, minlength=len(names))
    if not counts.all():
        raise ValueError(f"got {counts.tolist()} candidates of {list(names)}, expected at least one of each")
    order = np.full((len(counts), counts.max()), -1)
    for index, count in enumerate(counts):
        order[index, :count] = np.flatnonzero(variable == index)
    there = order >= 0
    scores, losses = (np.where(there, values[order], np.nan) for values in (tally.combined, tally.mean_loss))
    winners = select(scores, losses, np.asarray(cost)[order], names=names)
    chosen = order[np.arange(len(counts)), winners]
    return Choice(
        variables=names,
        handles=take_handle(handles, chosen),
        settings=tuple(settings[index] for index in chosen),
        tally=tally[chosen],
        ties=_distinct_ties(scores, winners, order),
        ambiguous=np.zeros(len(counts), bool),
        candidates=int(counts.max()),
        evaluated=len(variable),
        scores=scores,
        not_finite=(there & ~np.isfinite(losses)).sum(axis=1),
    )


def tally_evidence(network: Network, evidence: Evidence, handles: Handle, variable: Int[np.ndarray, " H"]) -> Tally:
    """Count hits of many handles, pooled over all banks of the evidence."""
    tallies = [tally_handles(network, recorded, handles, variable) for recorded in checked_evidence(evidence)]
    return sum(tallies[1:], start=tallies[0])


def select(
    scores: Float[np.ndarray, "V ..."],
    losses: Float[np.ndarray, "V ..."],
    costs: Real[np.ndarray, "V ..."],
    *,
    names: Sequence[str] | None = None,
    shared_axis: int | None = None,
) -> list[int]:
    """Return the flat index of each variable's winner over `*axes`.

    Highest score, then lowest loss, then lowest cost, then first. With a shared axis, its value is fixed first: the
    one with the highest mean over variables of each variable's best score there, the first of equals. Where score or
    loss is not finite there is no candidate.

    Raises:
      ValueError: a variable is left without a candidate, arrays of unequal shapes, or an axis that is not there.
    """
    if not np.shape(scores) == np.shape(losses) == np.shape(costs) or np.ndim(scores) < 2:
        shapes = [np.shape(values) for values in (scores, losses, costs)]
        raise ValueError(f"got scores, losses and costs of shapes {shapes}, expected one shape [V, ...] for all")
    if shared_axis is not None:
        places("shared axis", shared_axis, np.ndim(scores) - 1)
    finite = np.isfinite(scores) & np.isfinite(losses)
    scores = np.where(finite, np.round(scores, 9), -1.0)
    allowed = np.ones(scores.shape[1:], bool)
    if shared_axis is not None:
        others = tuple(axis for axis in range(1, scores.ndim) if axis != shared_axis + 1)
        best = np.round(scores.max(axis=others).mean(axis=0), 9)
        # A value that leaves a variable without a candidate is none that all can share.
        best = np.where(finite.any(axis=others).all(axis=0), best, -1.0)
        allowed = np.moveaxis(np.zeros_like(allowed), shared_axis, 0)
        allowed[int(best.argmax())] = True
        allowed = np.moveaxis(allowed, 0, shared_axis)
    _require_candidates(finite & allowed, names)
    winners = []
    for score, loss, cost, there in zip(scores, losses, costs, finite & allowed, strict=True):
        keys = (cost.ravel(), np.where(there, loss, np.inf).ravel(), -np.where(there, score, -1.0).ravel())
        winners.append(int(np.lexsort(keys)[0]))
    return winners


def _require_candidates(there: Bool[np.ndarray, "V ..."], names: Sequence[str] | None) -> None:
    left = there.reshape(len(there), -1).any(axis=1)
    if not left.all():
        lost = [names[v] if names else v for v in np.flatnonzero(~left).tolist()]
        raise ValueError(
            f"got no candidate of {lost} whose outputs are finite on every pair, expected at least one: the search "
            "diverged, or the network's outputs are not finite"
        )


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
