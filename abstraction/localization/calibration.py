"""From coupling to handle, and the choice among handles.

A row of a plan becomes a handle in three steps (PLOT, Sec. 3.3): keep the K heaviest sites, renormalise their
weights to sum to one, multiply by a strength. Every (scope, eps, K, strength, variable) is one row of one array,
and all of them are evaluated by one compiled program.

Selection sees `Evidence`, which is built from fit and calibration pairs and refuses test pairs. Among candidates of
equal IIA the lower calibration loss wins, then the lower transport cost, then the earlier one; `ties` says how many
distinct handles shared the winning IIA.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from abstraction.causal import PairBank
from abstraction.evaluation import Tally, cross_entropy, tally_handles, top_class, unique_handles
from abstraction.interventions import Handle, LocalHandle, Recording, SiteBank, record_pairs, take_handle
from abstraction.localization.couplings import TIE_RTOL
from abstraction.models import Model
from abstraction.typing import AnyArray, Decode, PairLoss, Params, Setting


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


class Grid(NamedTuple):
    """Candidate handles and what each axis means. Host arrays: cutting is cheap, evaluating is what is compiled.

    Attributes:
      weight: handle weights, strength included, `[V, *axes, L, K]`.
      cost: transport cost of each handle, `[V, *axes]`: the mean cost of its sites under its weights.
      ambiguous: whether the last site kept ties with the first one dropped, in mass and cost, `[V, *axes]`.
      axes: name and values of every axis after V.
    """

    weight: Float[np.ndarray, "V ... L K"]
    cost: Float[np.ndarray, "V ..."]
    ambiguous: Bool[np.ndarray, "V ..."]
    axes: tuple[tuple[str, tuple[Any, ...]], ...]

    def only(self, name: str, values: Collection[Any]) -> "Grid":
        """Keep some values of one axis."""
        names = [axis for axis, _ in self.axes]
        axis = names.index(name)
        kept = [index for index, value in enumerate(self.axes[axis][1]) if value in values]
        axes = [(n, tuple(v[i] for i in kept)) if n == name else (n, v) for n, v in self.axes]
        pick = lambda array: np.take(array, kept, axis=axis + 1)
        return Grid(pick(self.weight), pick(self.cost), pick(self.ambiguous), tuple(axes))


@dataclasses.dataclass(frozen=True)
class CutMenu:
    """How plans are cut into handles.

    Attributes:
      subset_sizes: K, sites to keep.
      strengths: how far to move.
      per_site: a strength r moves the average kept site by r, so the weights of a handle sum to r K; otherwise, as in
        the paper, they sum to r, and a full swap of K sites needs r = K.
      break_ties: whether sites of equal mass are kept by `cost`, cheapest first, or in site `order` as in the paper.
    """

    subset_sizes: tuple[int, ...]
    strengths: tuple[float, ...]
    per_site: bool = True
    break_ties: Literal["cost", "order"] = "cost"


def handle_grid(
    plan: Float[AnyArray, "*B V S"],
    cost: Float[AnyArray, "V S"],
    sites: SiteBank,
    axes: Sequence[tuple[str, Sequence[Any]]],
    menu: CutMenu,
) -> Grid:
    """Cut every row of every plan at every K, at every strength.

    Args:
      plan: couplings over leading axes `*B`.
      cost: transport cost of every variable and site.
      sites: what the columns are.
      axes: names and values of the axes `*B`.
      menu: how to cut.

    Returns:
      A grid with axes `*B`, `subset`, `strength`. A row without mass gives handles that change nothing.

    Raises:
      ValueError: K is not between 1 and the number of sites, or a strength is not positive.
    """
    sizes, strengths = np.asarray(menu.subset_sizes), np.asarray(menu.strengths, np.float32)
    if not len(sizes) or not 1 <= sizes.min() <= sizes.max() <= sites.size:
        raise ValueError(
            f"got subset sizes {sizes.tolist()}, expected values from 1 to {sites.size}, the sites there are"
        )
    if not len(strengths) or not (strengths > 0).all():
        raise ValueError(f"got strengths {strengths.tolist()}, expected positive numbers")
    plan = np.nan_to_num(np.moveaxis(np.asarray(plan), -2, 0), nan=0.0, posinf=0.0, neginf=0.0)
    cost = np.broadcast_to(np.expand_dims(np.asarray(cost), tuple(range(1, plan.ndim - 1))), plan.shape)
    masses, ambiguous = _cut(plan, cost, sizes, menu.break_ties)
    factors = strengths * (sizes[:, None] if menu.per_site else np.ones((len(sizes), 1), np.float32))
    weight = sites.union(masses)[..., None, :, :] * factors[..., None, None]
    repeat = lambda values: np.repeat(values[..., None], len(strengths), axis=-1)
    return Grid(
        weight.astype(np.float32),
        repeat((masses * cost[..., None, :]).sum(axis=-1)),
        repeat(ambiguous),
        (*((n, tuple(v)) for n, v in axes), ("subset", menu.subset_sizes), ("strength", menu.strengths)),
    )


def _cut(
    mass: Float[np.ndarray, "... S"], cost: Float[np.ndarray, "... S"], sizes: Int[np.ndarray, " K"], break_ties: str
) -> tuple[Float[np.ndarray, "... K S"], Bool[np.ndarray, "... K"]]:
    """Keep the heaviest sites of each row, renormalised; masses within a relative 1e-4 of the top are equal."""
    top = np.maximum(mass.max(axis=-1, keepdims=True), 1e-30)
    level = np.round(mass / top / TIE_RTOL)
    by_cost = break_ties == "cost"
    order = np.lexsort((cost, -level)) if by_cost else np.argsort(-mass, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1)
    kept = np.where(rank[..., None, :] < sizes[:, None], mass[..., None, :], 0.0)
    kept = kept / np.maximum(kept.sum(axis=-1, keepdims=True), 1e-30)
    at = lambda values, positions: np.take_along_axis(values, np.take(order, positions, axis=-1), axis=-1)
    last, following = sizes - 1, np.minimum(sizes, mass.shape[-1] - 1)
    tied = (at(level, last) == at(level, following)) & (at(level, last) > 0) & (last != following)
    return kept, tied & (np.isclose(at(cost, last), at(cost, following)) | (not by_cost))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The handle chosen for each variable, and on what grounds.

    Attributes:
      handles: one handle per variable, batched.
      settings: the grid values of each variable's winner.
      tally: the winners' counts on the evidence, `[V]`.
      ties: distinct handles that shared the winning IIA, per variable.
      ambiguous: whether the winner's last site was one of several equals, per variable.
      candidates: grid size per variable.
      evaluated: distinct (handle, variable) that were run.
      scores: combined IIA of every candidate, `[V, *axes]`.
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
    decode: Decode = top_class,
    pair_loss: PairLoss = cross_entropy,
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
      decode: outputs to predictions.
      pair_loss: breaks ties of accuracy.

    Returns:
      The choice, best combined IIA first.
    """
    variables, *shape = grid.cost.shape
    variable = np.repeat(np.arange(variables), np.prod(shape, dtype=int))
    flat = Handle(grid.weight.reshape(len(variable), *grid.weight.shape[-2:]), None, tap)
    distinct, owner, inverse = unique_handles(flat, variable)
    tally = tally_evidence(model, params, evidence, distinct, owner, decode=decode, pair_loss=pair_loss)
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
    decode: Decode = top_class,
    pair_loss: PairLoss = cross_entropy,
) -> Choice:
    """Choose one handle per variable from a flat list, such as trained rotations.

    Args:
      model: the network.
      params: its weights.
      evidence: the pairs to choose by.
      handles: the candidates; every variable has equally many.
      variable: which variable each candidate stands for.
      settings: what each candidate is, for the report.
      cost: decides between candidates of equal IIA and loss (a rank, say: smaller wins).
      decode: outputs to predictions.
      pair_loss: breaks ties of accuracy.

    Raises:
      ValueError: variables have different numbers of candidates.
    """
    counts = np.bincount(variable)
    if len(set(counts)) != 1:
        raise ValueError(f"got {counts.tolist()} candidates per variable, expected equally many")
    order = np.argsort(variable, kind="stable").reshape(len(counts), -1)
    tally = tally_evidence(model, params, evidence, handles, variable, decode=decode, pair_loss=pair_loss)
    scores, losses = tally.combined[order], tally.mean_loss[order]
    winners = select(scores, losses, np.asarray(cost)[order])
    chosen = order[np.arange(len(counts)), winners]
    return Choice(
        handles=take_handle(handles, chosen),
        settings=tuple(settings[index] for index in chosen),
        tally=tally[chosen],
        ties=_distinct_ties(scores, winners, order),
        ambiguous=np.zeros(len(counts), bool),
        candidates=order.shape[1],
        evaluated=order.size,
        scores=scores,
    )


def tally_evidence(
    model: Model,
    params: Params,
    evidence: Evidence,
    handles: Handle | LocalHandle,
    variable: Int[np.ndarray, " H"],
    *,
    decode: Decode = top_class,
    pair_loss: PairLoss = cross_entropy,
) -> Tally:
    """Count hits of many handles, pooled over all banks of the evidence."""
    tallies = [
        tally_handles(model, params, recording, bank, handles, variable, decode=decode, pair_loss=pair_loss)
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
            -np.where(allowed, np.round(score, 9), -1).ravel(),
        )
        winners.append(int(np.lexsort(keys)[0]))
    return winners


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
