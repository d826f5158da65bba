"""Causal mechanism reduction, start to end: a network and some inputs in, a smaller network that acts alike out.

    1  collect   moments and curvature of the tap, one pass over the calibration inputs
    2  rank      the order in which units go, and the risk of every budget
    3  choose    the units that stay, from that order
    4  fold      constants or affine maps for the others, closed form
    5  compile   fold them into their readers, drop their rows; or a patch of the original network
    6  refit     optionally, the readers, to the dense outputs under interventions

`rank_units` does 1 and 2, `replace_units` the rest, so one ranking serves a sweep over budgets. `reduce_network` goes
through several taps in forward order, each ranked on the network reduced so far, with the outputs of the dense one as
target, and in rounds where asked.

Source: CMR, arXiv 2602.24266; the formulas are in docs/method.md.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from abstraction.checks import one_of, whole
from abstraction.evaluation.interchange import View, view
from abstraction.interventions import factual_outputs
from abstraction.models import Network
from abstraction.models.taps import NO_EDITS, Edits
from abstraction.randomness import host_generator
from abstraction.reduction.calibration import Calibration, calibration_of, check_calibration
from abstraction.reduction.compiling import compile_plan, patch
from abstraction.reduction.fitting import distortion
from abstraction.reduction.folding import Fold, affine_fold
from abstraction.reduction.methods import METHODS, Method
from abstraction.reduction.plans import Plan, reduction_plan
from abstraction.reduction.ranking import Ranking, check_method, rank_units
from abstraction.reduction.refitting import Refit, Refitted, refit_readers
from abstraction.reduction.replacing import fitted_fold
from abstraction.reduction.selection import check_keep
from abstraction.typing import AnyArray

Backend = Literal["compile", "patch"]


@dataclass(frozen=True)
class Procedure:
    """How a reduction is carried out; checked when it is built.

    Attributes:
      groups: by tap, units that stay or go together: `UnrolledDecoder.head_groups`.
      rounds: rounds in which units of a tap go, an equal share of what is left in each, ranked anew every time.
      round_to: keep a multiple of this many units.
      batch_size: examples per run.
      progress: told what is being done.
    """

    groups: Mapping[str, Sequence[Sequence[int]]] | None = None
    rounds: int = 1
    round_to: int = 1
    batch_size: int = 512
    progress: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        whole("rounds", self.rounds)
        whole("multiple to round to", self.round_to)
        whole("batch size", self.batch_size)
        if self.groups is not None and not isinstance(self.groups, Mapping):
            raise ValueError(f"got groups {type(self.groups).__name__}, expected lists of groups by tap")


class Reduction(NamedTuple):
    """A reduced network.

    Attributes:
      network: what to run: the smaller network, or the original one where it is patched.
      edits: what to run it with; empty where it is compiled.
      plan: what was replaced by what, in the original numbering.
      refitted: what the refit achieved, or None.
    """

    network: Network
    edits: Edits
    plan: Plan
    refitted: Refitted | None = None

    def view(self, tap: str) -> View:
        """See the reduced network from a tap, unit by kept unit of the plan; from any other tap, all of its units.

        Raises:
          ValueError: the tap is unknown.
        """
        one_of("tap", tap, sorted(self.network.taps))
        kept = next((np.asarray(fold.kept) for fold in self.plan.folds if fold.tap == tap), None)
        units = np.arange(self.network.taps[tap].width) if not self.edits or kept is None else kept
        return view(self.network, tap, units, self.edits)


def replace_units(ranking: Ranking, keep: int, *, key: Array | None = None, backend: Backend = "compile") -> Reduction:
    """Keep `keep` units (or groups) of a ranked tap and replace the others.

    Args:
      ranking: what `rank_units` returned.
      keep: units, or groups, to keep.
      key: randomness of a refit.
      backend: "compile" makes a smaller network; "patch" runs the original one with edits.

    Raises:
      ValueError: `keep` is out of range, the backend unknown, there are too few calibration inputs for an affine fold,
        or the fold cannot be compiled exactly.
    """
    one_of("backend", backend, get_args(Backend))
    fold, notes = fitted_fold(ranking, ranking.kept(keep))
    if ranking.warning is not None:
        warnings.warn(f"{ranking.tap}: {ranking.warning}", stacklevel=2)
    risk = distortion(ranking.statistics.hessian, ranking.moments, fold.kept, fold.coefficients) / 2
    plan = reduction_plan(ranking.network, [fold], scores=[ranking.scores], risks=[risk], notes=[notes])
    reduction = _carried_out(ranking.network, plan, backend)
    return _refitted(reduction, ranking.network, ranking.method, ranking.calibration, key)


def reduce_network(
    network: Network,
    inputs: Any,
    keep: Mapping[str, int],
    method: Method = METHODS["cmr"],
    *,
    backend: Backend = "compile",
    key: Array | None = None,
    procedure: Procedure = Procedure(),
) -> Reduction:
    """Reduce one tap or several, in forward order, each on the network reduced so far.

    Args:
      network: the dense network.
      inputs: calibration inputs `[N, ...]`, or a `Calibration` with the labels that the method reads.
      keep: units, or groups, to keep per tap.
      method: how units are chosen and replaced.
      backend: "compile", or "patch", which ranks every tap on the dense network instead.
      key: randomness of random choices and refits.
      procedure: groups, rounds and batches.

    Raises:
      ValueError: an unknown tap or backend, no `Method`, a `keep` that is no whole number from 1 to the tap's units, a
        patch in rounds or with a refit, and what `check_calibration`, `rank_units` and `replace_units` refuse.
    """
    calibration = calibration_of(inputs)
    check_method(method)
    one_of("backend", backend, get_args(Backend))
    _check_patch(backend, method, procedure)
    taps = _forward(network, keep)
    counts = _counts(network, taps, procedure.groups)
    budget = {tap: check_keep(keep[tap], counts[tap], round_to=procedure.round_to) for tap in taps}
    check_calibration(network, calibration)
    if calibration.target is None:
        target = factual_outputs(network, jax.tree.map(jnp.asarray, calibration.inputs))
        calibration = calibration._replace(target=target)
    current, bare, steps = network, dataclasses.replace(method, refit=None), []
    for index, tap in enumerate(taps):
        kind = "groups" if tap in (procedure.groups or {}) else "units"
        if procedure.progress is not None:
            procedure.progress(f"{tap}: {counts[tap]} to {budget[tap]} {kind}")
        left = _schedule(counts[tap], budget[tap], procedure.rounds)
        keys = [None if key is None else jax.random.fold_in(jax.random.fold_in(key, index), count) for count in left]
        rounds = list(zip(left, keys, strict=True))
        steps.append(_reduce_tap(current, calibration, tap, bare, rounds, procedure, backend))
        current = steps[-1].network
    folds, scores, risks, notes, _ = (list(part) for part in zip(*steps, strict=True))
    plan = reduction_plan(network, folds, scores=scores, risks=risks, notes=notes)
    edits = patch(network, plan) if backend == "patch" else NO_EDITS
    reduction = Reduction(current, edits, plan)
    return _refitted(reduction, network, method, calibration, key)


def _check_patch(backend: Backend, method: Method, procedure: Procedure) -> None:
    """Refuse what a patch cannot have: it leaves the network, and so its weights, as they are."""
    if backend == "patch" and procedure.rounds > 1:
        raise ValueError(f"got {procedure.rounds} rounds with a patch, expected 1: every round ranks a smaller network")
    if backend == "patch" and method.refit is not None:
        raise ValueError(
            f"got refit {method.refit!r} with a patch, which changes no weights, expected the backend 'compile', or a "
            "method without a refit"
        )


def _forward(network: Network, keep: Mapping[str, int]) -> list[str]:
    """Return the taps to reduce in the order they run."""
    if not isinstance(keep, Mapping) or not keep or set(keep) - set(network.taps):
        raise ValueError(f"got keep {keep!r}, expected units to keep by tap, some of {sorted(network.taps)}")
    return [tap for tap in network.taps if tap in keep]


def _counts(
    network: Network, taps: Sequence[str], groups: Mapping[str, Sequence[Sequence[int]]] | None
) -> dict[str, int]:
    """Return how many groups every tap has, or units where they are their own."""
    groups = groups or {}
    if set(groups) - set(taps):
        raise ValueError(f"got groups of {sorted(groups)}, expected taps that are reduced, {taps}")
    return {tap: len(groups[tap]) if tap in groups else network.taps[tap].width for tap in taps}


class _Step(NamedTuple):
    """What became of one tap."""

    fold: Fold
    scores: AnyArray | None
    risk: float
    notes: Mapping[str, Any]
    network: Network


def _reduce_tap(
    network: Network,
    calibration: Calibration,
    tap: str,
    method: Method,
    rounds: Sequence[tuple[int, Array | None]],
    procedure: Procedure,
    backend: Backend,
) -> _Step:
    """Reduce one tap in rounds, each to so many units with a key; the folds of the rounds become one."""
    groups = (procedure.groups or {}).get(tap)
    done: _Step | None = None
    for keep, key in rounds:
        ranking = rank_units(network, calibration, tap, method, groups=groups, key=key, batch_size=procedure.batch_size)
        reduction = replace_units(ranking, keep, backend=backend)
        (fold,), (risk,), (notes,) = reduction.plan.folds, reduction.plan.risks, reduction.plan.notes
        network = reduction.network
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

    Raises:
      ValueError: they are of two taps, or the second is not of the units that the first one kept.
    """
    if first.tap != second.tap or second.width != len(first.kept):
        raise ValueError(
            f"got folds of {len(first.kept)} kept units at {first.tap!r} and of {second.width} units at "
            f"{second.tap!r}, expected the second to be of what the first one kept"
        )
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


def _carried_out(network: Network, plan: Plan, backend: Backend) -> Reduction:
    if backend == "patch":
        return Reduction(network, patch(network, plan), plan)
    return Reduction(compile_plan(network, plan), NO_EDITS, plan)


def _refitted(
    reduction: Reduction, network: Network, method: Method, calibration: Calibration, key: Array | None
) -> Reduction:
    """Refit what reads the reduced taps, where the method asks for it."""
    folds = [fold for fold in reduction.plan.folds if len(fold.replaced)]
    if method.refit is None or not folds:
        return reduction
    if reduction.edits:
        raise ValueError(
            f"got refit {method.refit!r} with a patch, which changes no weights, expected the backend 'compile', or a "
            "method without a refit"
        )
    generator = host_generator(jax.random.key(0) if key is None else jax.random.fold_in(key, 1))
    dense = [view(network, fold.tap, np.asarray(fold.kept)) for fold in folds]
    how = Refit(method.refit, method.law)
    refitted = refit_readers(how, dense, reduction.network, calibration.inputs, generator=generator)
    return reduction._replace(network=refitted.network, refitted=refitted)
