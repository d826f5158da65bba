"""Run one method on one trained network: what every experiment shares.

A method measures, chooses on evidence, and hands its frozen handles to the judge. Its outcome is a set of rows, the
details behind them, and the arrays its figures need, in one schema for all experiments.

Runtime is reported by the three conventions of the paper, compilation apart:

    seconds            the full grid: signatures, all couplings, all calibration, test
    seconds_epsilon    all configurations at the selected eps
    seconds_selected   the selected configuration alone

A coupling is solved for all eps in one batch, so its whole time is charged in each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, Readout, Tally, Tests, binomial_interval, judge, judge_controls
from abstraction.interventions import Handle, LocalHandle, Recording, SiteBank, at_one_depth
from abstraction.localization import (
    Candidates,
    Choice,
    CutMenu,
    Effects,
    Evidence,
    Featurizer,
    Grid,
    Plans,
    Rotation,
    Rule,
    SearchConfig,
    alignment_search,
    calibrate,
    chosen_rows,
    localize,
    measure_effects,
    orthogonality_error,
)
from abstraction.models import Model, Recordable
from abstraction.typing import Params
from experiments.records import Row
from experiments.timing import Time, stopwatch

SELECTED = ("epsilon", "tau", "beta", "resolution")
"""Axes of a grid whose chosen values make the selected run."""


@dataclass
class Bench:
    """One trained network and the recorded banks methods run on.

    Attributes:
      model: the network.
      params: its weights.
      sites: where transport looks.
      fit: recorded fit pairs.
      evidence: recorded calibration pairs.
      tests: recorded test pairs by split.
      signature: options of `measure_effects`.
      readout: how outputs meet labels.
      halves: whether a test bank holds sensitive and invariant pairs, which are then reported apart as well.
    """

    model: Model
    params: Params
    sites: SiteBank
    fit: tuple[Recording, PairBank]
    evidence: Evidence
    tests: Tests
    signature: dict[str, Any] = field(default_factory=dict)
    readout: Readout = CLASSES
    halves: bool = False
    _effects: tuple[Effects, Time] | None = None

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return self.fit[1].variables

    def effects(self) -> tuple[Effects, Time]:
        """Measure effects once; every method that needs them is charged their time."""
        if self._effects is None:
            with stopwatch() as elapsed:
                measured = measure_effects(self.model, self.params, *self.fit, self.sites, **self.signature)
                jax.block_until_ready(measured)
            self._effects = measured, elapsed
        return self._effects


class Outcome(NamedTuple):
    """What a method found, before it is tested.

    Attributes:
      choice: the handles.
      times: seconds by runtime convention, compilation included.
      details: diagnostics, as JSON.
      arrays: for figures.
    """

    choice: Choice
    times: dict[str, Time]
    details: dict[str, Any]
    arrays: dict[str, np.ndarray]


def run_localization(bench: Bench, rule: Rule, menu: CutMenu, **options: Any) -> Outcome:
    """Run PLOT, or a baseline that differs from it in the rule alone."""
    effects, measuring = bench.effects()
    with stopwatch() as solving:
        plans = rule(effects)
        jax.block_until_ready(plans.coupling.plan)
    with stopwatch() as calibrating:
        found = localize(
            bench.model, bench.params, effects, plans, menu, bench.evidence, readout=bench.readout, **options
        )
    times = localization_times(bench, found.grid, found.choice, measuring + solving, calibrating, options)
    return Outcome(found.choice, times, coupling_details(plans), localization_arrays(effects, plans, found.choice))


def localization_times(
    bench: Bench, grid: Grid, choice: Choice, common: Time, calibrating: Time, options: Mapping[str, Any]
) -> dict[str, Time]:
    """Return the seconds of a localization by the three conventions; parts of the grid are evaluated again."""
    times, size = {"seconds": common + calibrating}, grid.cost.size
    for name, axes in (("seconds_epsilon", ("epsilon",)), ("seconds_selected", SELECTED)):
        part = grid
        for axis in axes:
            if axis in dict(part.axes):
                part = part.only(axis, [setting[axis] for setting in choice.settings])
        if part.cost.size == size:
            times[name] = times["seconds"]
            continue
        with stopwatch() as elapsed:
            calibrate(
                bench.model, bench.params, bench.evidence, part, tap=bench.sites.tap, readout=bench.readout, **options
            )
        times[name] = common + elapsed
    return times


def run_search(
    bench: Bench,
    key: jax.Array,
    candidates: Candidates,
    featurizer: Featurizer,
    config: SearchConfig,
    strengths: Sequence[float] = (1.0,),
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Run an alignment search over all candidates."""
    with stopwatch() as elapsed:
        found = alignment_search(
            key,
            bench.model,
            bench.params,
            *bench.fit,
            candidates,
            bench.evidence,
            featurizer,
            tap=bench.sites.tap,
            config=config,
            strengths=strengths,
            readout=bench.readout,
            progress=progress,
        )
    searched = jax.device_get(found.searched)
    details = {
        "finite": bool(searched.finite.all()),
        "stopped_on_plateau": float(searched.stopped.mean()),
        "epochs": [int(searched.epochs.min()), int(searched.epochs.max())],
        "searches": len(searched.epochs),
    }
    if isinstance(featurizer, Rotation) and featurizer.parametrization != "oblique":
        width = np.asarray(searched.handles.weight).sum(axis=-1).astype(int)
        details["orthogonality_error"] = float(orthogonality_error(searched.handles.basis, width).max())
    columns = {f"candidates/{name}": values for name, values in candidates.columns().items()}
    arrays = {"curve": np.asarray(searched.curve), "scores": found.choice.scores, **columns}
    return Outcome(found.choice, same_time(elapsed), details, arrays)


def same_time(elapsed: Time) -> dict[str, Time]:
    """Charge one time by all conventions: there is no eps to select."""
    return {convention: elapsed for convention in ("seconds", "seconds_epsilon", "seconds_selected")}


def test_outcome(
    bench: Bench,
    outcome: Outcome,
    *,
    experiment: str,
    method: str,
    seed: int,
    key: jax.Array,
    draws: int,
    shuffles: int,
) -> tuple[list[Row], dict[str, Any], dict[str, np.ndarray]]:
    """Judge frozen handles and their controls once, and write everything down."""
    handles = outcome.choice.handles
    if isinstance(bench.model, Recordable):
        handles = at_one_depth(handles) if isinstance(handles, Handle) else handles
    with stopwatch() as testing:
        tallies = judge(bench.model, bench.params, handles, bench.tests, readout=bench.readout)
    controls = judge_controls(
        key, bench.model, bench.params, handles, bench.tests, draws=draws, shuffles=shuffles, readout=bench.readout
    )
    named = {
        method: {"calibration": outcome.choice.tally, **split_halves(bench, tallies)},
        f"control-random-{method}": split_halves(bench, controls.random),
        f"control-shuffled-{method}": split_halves(bench, controls.shuffled),
    }
    rows = [
        row
        for name, splits in named.items()
        for split, tally in splits.items()
        for row in tally_rows(bench, tally, experiment, name, split, seed)
    ]
    times = {name: elapsed + testing for name, elapsed in outcome.times.items()}
    rows += [Row(experiment, method, "mean", "test", name, seed, elapsed.run) for name, elapsed in times.items()]
    full = times["seconds"]
    rows.append(Row(experiment, method, "mean", "test", "seconds_compile", seed, full.compile))
    rows.append(Row(experiment, method, "mean", "test", "seconds_wall", seed, full.total))
    choice = outcome.choice
    details = {
        "settings": dict(zip(bench.variables, choice.settings, strict=True)),
        "calibration_score": choice.tally.combined.tolist(),
        "calibration_loss": choice.tally.mean_loss.tolist(),
        "ties": choice.ties.tolist(),
        "last_site_ambiguous": choice.ambiguous.tolist(),
        "candidates_per_variable": choice.candidates,
        "handles_evaluated": choice.evaluated,
        **outcome.details,
    }
    depth = bench.sites.tap_depth
    arrays = {"mass": handle_mass(handles, depth), **outcome.arrays}
    return rows, details, {f"{method}/{name}": np.asarray(array) for name, array in arrays.items()}


def split_halves(bench: Bench, tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    """Report the two halves of each split beside their mean, where the banks hold both."""
    if not bench.halves:
        return dict(tallies)
    named = {}
    for split, tally in tallies.items():
        named[split] = tally
        for half, name in enumerate(("sensitive", "invariant")):
            keep = np.arange(2) == half
            named[f"{split}-{name}"] = jax.tree.map(lambda leaf, keep=keep: leaf * keep, tally)
    return named


def tally_rows(bench: Bench, tally: Tally, experiment: str, method: str, split: str, seed: int) -> list[Row]:
    """Write IIA, its interval and the number of pairs, per variable that has pairs and for these together.

    A split with sensitive and invariant pairs (calibration) is scored by the mean of the two halves, and its bounds
    are the means of their bounds; a test split holds one half, and its variables pool.
    """
    there = np.flatnonzero(tally.pairs.sum(axis=-1) > 0)
    tally, names = tally[there], [bench.variables[index] for index in there]
    if not names:
        return []
    low, high = np.nanmean([_bounds(tally.hits[:, half], tally.pairs[:, half]) for half in range(2)], axis=0)
    pairs = tally.pairs.sum(axis=-1)
    columns = {"iia": tally.combined, "iia_low": low, "iia_high": high, "pairs": pairs}
    pooled = {name: values.mean() for name, values in columns.items()} | {"pairs": pairs.sum()}
    if ((tally.pairs > 0).sum(axis=-1) == 1).all():
        pooled["iia_low"], pooled["iia_high"] = binomial_interval(pooled["iia"] * pairs.sum(), pairs.sum())
    return [
        Row(experiment, method, variable, split, name, seed, float(value))
        for variable, values in (
            *((v, {name: column[i] for name, column in columns.items()}) for i, v in enumerate(names)),
            ("mean", pooled),
        )
        for name, value in values.items()
    ]


def _bounds(hits: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    return np.where(pairs > 0, binomial_interval(hits, pairs), np.nan)


def handle_mass(handles: Handle | LocalHandle, depth: int) -> np.ndarray:
    """Return how much of each native coordinate a handle moves, `[V, L, D]`: |weight|, or the projector's diagonal."""
    weight = np.abs(np.asarray(handles.weight))
    if handles.basis is not None:
        weight = np.einsum(
            "...dk,...k,...kd->...d", *map(np.asarray, (handles.basis.encoder, weight, handles.basis.decoder))
        )
    if isinstance(handles, Handle):
        return weight
    mass = np.zeros((len(weight), depth, weight.shape[-1]), weight.dtype)
    mass[np.arange(len(weight)), np.asarray(handles.depth)] = weight
    return mass


def coupling_details(plans: Plans) -> dict[str, Any]:
    """Report how a batch of couplings went numerically."""
    coupling = plans.coupling
    return {
        "couplings": int(np.asarray(coupling.converged).size),
        "converged": float(np.mean(coupling.converged)),
        "marginal_error": float(np.max(coupling.marginal_error)),
        "mass": [float(np.min(coupling.mass)), float(np.max(coupling.mass))],
        "saturated_sites": [int(np.min(coupling.saturated)), int(np.max(coupling.saturated))],
        "clamped_kernel": float(np.mean(coupling.clamped)),
        "finite": bool(np.isfinite(coupling.plan).all()),
    }


def localization_arrays(effects: Effects, plans: Plans, choice: Choice) -> dict[str, np.ndarray]:
    """Keep the cost, and each variable's row of the plan its handle was cut from, spread over depth and feature."""
    rows, sites = chosen_rows(plans, choice), effects.sites
    size = np.maximum((np.asarray(sites.weight) != 0).sum(axis=1), 1)
    return {"cost": np.asarray(effects.cost), "plan": sites.union(rows / size).reshape(len(rows), -1)}
