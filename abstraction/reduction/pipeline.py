"""Causal mechanism reduction, start to end: a network and some inputs in, a smaller network that acts alike out.

    1  collect   moments and curvature of the tap, one pass over the calibration inputs
    2  rank      the order in which units go, and the risk of every budget
    3  choose    the units that stay, from that order
    4  fold      constants or affine maps for the others, closed form
    5  compile   fold them into their readers, drop their rows; or a patch of the original network
    6  refit     optionally, the readers, to the dense outputs under interventions

`rank_units` does 1 and 2, `replace_units` the rest, so one ranking serves a sweep over budgets. `reduce_network` goes
through several taps in forward order, each ranked on the network reduced so far, with the outputs of the dense one as
target (spec B.14), and in rounds where asked.

Source: CMR, arXiv 2602.24266; steps and names follow spec C.1.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from abstraction.evaluation.interchange import View, view
from abstraction.interventions import factual_outputs
from abstraction.models import NO_EDITS, Edits, Model, Reducible
from abstraction.randomness import host_generator
from abstraction.reduction.compiling import compile_plan, patch
from abstraction.reduction.fitting import distortion
from abstraction.reduction.folding import Fold, Reduced, affine_fold
from abstraction.reduction.methods import METHODS, Method
from abstraction.reduction.plans import Plan, reduction_plan
from abstraction.reduction.ranking import Calibration, Ranking, rank_units
from abstraction.reduction.refitting import Refitted, refit_readers
from abstraction.reduction.replacing import fitted_fold
from abstraction.reduction.selection import check_keep
from abstraction.typing import AnyArray, Params

Backend = Literal["compile", "patch"]


class Reduction(NamedTuple):
    """A reduced network.

    Attributes:
      model: the network to run: compiled, or the original one where it is patched.
      params: its weights.
      edits: what to run it with; empty where it is compiled.
      plan: what was replaced by what, in the original numbering.
      refitted: what the refit achieved, or None.
    """

    model: Model
    params: Params
    edits: Edits
    plan: Plan
    refitted: Refitted | None

    def view(self, tap: str) -> View:
        """See the reduced network from a tap, unit by kept unit of the plan; from any other tap, all of its units."""
        kept = next((np.asarray(fold.kept) for fold in self.plan.folds if fold.tap == tap), None)
        compiled = not self.edits
        units = np.arange(self.model.taps[tap].width) if compiled or kept is None else kept
        return view(self.model, self.params, tap, units, self.edits)


def replace_units(ranking: Ranking, keep: int, *, key: Array | None = None, backend: Backend = "compile") -> Reduction:
    """Keep `keep` units (or groups) of a ranked tap and replace the others.

    Args:
      ranking: what `rank_units` returned.
      keep: units, or groups, to keep.
      key: randomness of a refit.
      backend: "compile" makes a smaller network; "patch" runs the original one with edits.

    Raises:
      ValueError: `keep` is out of range, there are too few calibration inputs for an affine fold, or the fold cannot
        be compiled exactly.
    """
    fold, notes = fitted_fold(ranking, ranking.kept(keep))
    if ranking.warning is not None:
        warnings.warn(f"{ranking.tap}: {ranking.warning}", stacklevel=2)
    risk = distortion(ranking.statistics.hessian, ranking.moments, fold.kept, fold.coefficients) / 2
    plan = reduction_plan(ranking.model, ranking.params, [fold], scores=[ranking.scores], risks=[risk], notes=[notes])
    reduction = _carried_out(ranking.model, ranking.params, plan, backend)
    return _refitted(reduction, ranking.model, ranking.params, ranking.method, ranking.calibration, key)


def reduce_network(
    model: Reducible,
    params: Params,
    calibration: Calibration,
    keep: Mapping[str, int],
    method: Method = METHODS["cmr"],
    *,
    groups: Mapping[str, Sequence[Sequence[int]]] | None = None,
    rounds: int = 1,
    round_to: int = 1,
    key: Array | None = None,
    backend: Backend = "compile",
    batch_size: int = 512,
    progress: Callable[[str], None] | None = None,
) -> Reduction:
    """Reduce one tap or several, in forward order, each on the network reduced so far.

    Args:
      model: the dense network.
      params: its weights.
      calibration: inputs, and labels where the method reads them.
      keep: units, or groups, to keep per tap.
      method: how.
      groups: by tap, units that stay or go together: `UnrolledDecoder.head_groups`.
      rounds: rounds in which units of a tap go, an equal share of what is left in each, ranked anew every time.
      round_to: keep a multiple of this many units.
      key: randomness of random choices and refits.
      backend: "compile", or "patch", which ranks every tap on the dense network instead.
      batch_size: examples per run.
      progress: told what is being done.

    Raises:
      ValueError: what `rank_units` and `replace_units` refuse.
    """
    taps = _forward(model, keep, rounds, backend)
    together, counts = _groups(model, taps, groups)
    budget = {tap: check_keep(keep[tap], counts[tap], round_to=round_to) for tap in taps}
    if calibration.target is None:
        calibration = calibration._replace(target=factual_outputs(model, params, jnp.asarray(calibration.inputs)))
    dense = current = Reduced(model, params)
    bare, steps = dataclasses.replace(method, refit=None), []
    for index, tap in enumerate(taps):
        if progress is not None:
            progress(f"{tap}: {counts[tap]} to {budget[tap]} {'units' if together[tap] is None else 'groups'}")
        left = _schedule(counts[tap], budget[tap], rounds)
        keys = [None if key is None else jax.random.fold_in(jax.random.fold_in(key, index), count) for count in left]
        network = dense if backend == "patch" else current
        step = _reduce_tap(network, calibration, tap, together[tap], left, bare, keys, backend, batch_size)
        steps.append(step)
        current = step.network
    folds, scores, risks, notes, _ = (list(part) for part in zip(*steps, strict=True))
    plan = reduction_plan(model, params, folds, scores=scores, risks=risks, notes=notes)
    if backend == "patch":
        current, edits = dense, patch(model, plan)
    else:
        edits = NO_EDITS
    return _refitted(Reduction(*current, edits, plan, None), model, params, method, calibration, key)


def _forward(model: Model, keep: Mapping[str, int], rounds: int, backend: Backend) -> list[str]:
    """Return the taps to reduce in the order they run."""
    taps = [tap for tap in model.taps if tap in keep]
    if len(taps) != len(keep) or not taps or rounds < 1:
        raise ValueError(
            f"got taps {sorted(keep)} in {rounds} rounds, expected some of {sorted(model.taps)} in at least 1 round"
        )
    if backend == "patch" and rounds > 1:
        raise ValueError(f"got {rounds} rounds with a patch, expected 1: every round ranks a smaller network")
    return taps


def _groups(
    model: Model, taps: Sequence[str], groups: Mapping[str, Sequence[Sequence[int]]] | None
) -> tuple[dict[str, Sequence[Sequence[int]] | None], dict[str, int]]:
    """Return the groups of every tap, None where units are their own, and how many groups or units there are."""
    groups = groups or {}
    if set(groups) - set(taps):
        raise ValueError(f"got groups of {sorted(groups)}, expected taps that are reduced, {taps}")
    counts = {tap: len(groups[tap]) if tap in groups else model.taps[tap].width for tap in taps}
    return {tap: groups.get(tap) for tap in taps}, counts


class _Step(NamedTuple):
    """What became of one tap."""

    fold: Fold
    scores: AnyArray | None
    risk: float
    notes: Mapping[str, Any]
    network: Reduced


def _reduce_tap(
    network: Reduced,
    calibration: Calibration,
    tap: str,
    groups: Sequence[Sequence[int]] | None,
    schedule: Sequence[int],
    method: Method,
    keys: Sequence[Array | None],
    backend: Backend,
    batch_size: int,
) -> _Step:
    """Reduce one tap in rounds; the folds of the rounds become one."""
    done: _Step | None = None
    for keep, key in zip(schedule, keys, strict=True):
        ranking = rank_units(
            network.model, network.params, calibration, tap, method, groups=groups, key=key, batch_size=batch_size
        )
        reduction = replace_units(ranking, keep, backend=backend)
        (fold,), (risk,), (notes,) = reduction.plan.folds, reduction.plan.risks, reduction.plan.notes
        network = Reduced(reduction.model, reduction.params)  # pyright: ignore[reportArgumentType]
        groups = None if groups is None else _renumbered(groups, fold)
        if done is None:
            done = _Step(fold, ranking.scores, risk or 0.0, notes, network)
        else:
            joined = compose_folds(done.fold, fold)
            done = _Step(joined, done.scores, done.risk + (risk or 0.0), {**done.notes, **notes}, network)
    if done is None:
        raise ValueError("got an empty schedule, expected at least one round")
    return done


def _renumbered(groups: Sequence[Sequence[int]], fold: Fold) -> list[list[int]]:
    """Return the groups that a fold keeps, in the numbering of what is left."""
    kept = np.asarray(fold.kept)
    return [np.searchsorted(kept, group).tolist() for group in groups if np.isin(group, kept).all()]


def compose_folds(first: Fold, second: Fold) -> Fold:
    """Join two folds of one tap, the second in the numbering of the units the first one kept.

    a_S1 = b1 + B1 a_K1,  a_S2 = b2 + B2 a_K   =>   a_S1 = b1 + B1_S2 b2 + (B1_K + B1_S2 B2) a_K
    """
    kept1, kept, replaced = (np.asarray(v) for v in (first.kept, second.kept, second.replaced))
    b1, m1 = np.asarray(first.intercept, float), np.asarray(first.coefficients, float)
    b2, m2 = np.asarray(second.intercept, float), np.asarray(second.coefficients, float)
    joined = np.concatenate([first.replaced, kept1[replaced]])
    intercept = np.concatenate([b1 + m1[:, replaced] @ b2, b2])
    coefficients = np.concatenate([m1[:, kept] + m1[:, replaced] @ m2, m2])
    order = np.argsort(joined)
    return affine_fold(first.tap, kept1[kept], joined[order], intercept[order], coefficients[order])


def _schedule(width: int, keep: int, rounds: int) -> list[int]:
    """Return how many units each round leaves: an equal share of what is left goes every time."""
    left = [round(width * (keep / width) ** ((step + 1) / rounds)) for step in range(rounds - 1)]
    return [*dict.fromkeys(value for value in left if keep < value < width), keep]


def _carried_out(model: Model, params: Params, plan: Plan, backend: Backend) -> Reduction:
    if backend == "patch":
        return Reduction(model, params, patch(model, plan), plan, None)
    if backend != "compile":
        raise ValueError(f"got backend {backend!r}, expected one of {get_args(Backend)}")
    return Reduction(*compile_plan(model, params, plan), NO_EDITS, plan, None)


def _refitted(
    reduction: Reduction, model: Model, params: Params, method: Method, calibration: Calibration, key: Array | None
) -> Reduction:
    """Refit what reads the reduced taps, where the method asks for it."""
    folds = [fold for fold in reduction.plan.folds if len(fold.replaced)]
    if method.refit is None or not folds:
        return reduction
    if reduction.edits:
        raise ValueError(f"got refit {method.refit!r} with a patch, expected the backend 'compile', or no refit")
    generator = host_generator(jax.random.key(0) if key is None else jax.random.fold_in(key, 1))
    dense = [view(model, params, fold.tap, np.asarray(fold.kept)) for fold in folds]
    smaller = Reduced(reduction.model, reduction.params)  # pyright: ignore[reportArgumentType]
    refitted = refit_readers(method.refit, dense, smaller, calibration.inputs, law=method.law, generator=generator)
    return reduction._replace(model=refitted.network.model, params=refitted.network.params, refitted=refitted)
