"""Run one method on one trained network: what every experiment shares.

A method measures, chooses on evidence, and hands its frozen handles to the judge. Its outcome is a set of rows, the
details behind them, and the arrays its figures need, in one schema for all experiments.

Runtime is reported by the three conventions of the paper, compilation apart:

    seconds            the full grid: signatures, all couplings, all calibration, test
    seconds_epsilon    all configurations at the selected eps
    seconds_selected   the selected configuration alone

A coupling is solved for all eps in one batch, so its whole time is charged in each.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from abstraction.artifacts import save
from abstraction.evaluation import Recorded, Repeats, Tally, binomial_interval, identity_handle
from abstraction.evaluation.controls import chance_level
from abstraction.evaluation.judging import Tests, judge_alone, judge_controls
from abstraction.interventions import Handle, SiteBank
from abstraction.interventions.handles import at_one_depth, stack_handles
from abstraction.localization import (
    Choice,
    CutMenu,
    Effects,
    Rotation,
    Rule,
    Search,
    SearchConfig,
    Selection,
    Signature,
    alignment_search,
    localize,
    measure_effects,
)
from abstraction.localization.calibration import Evidence, calibrate
from abstraction.localization.cutting import Grid
from abstraction.localization.das import orthogonality_error
from abstraction.localization.progressive import chosen_rows
from abstraction.localization.rules import Plans
from abstraction.localization.searching import Featurizer
from abstraction.localization.supports import Candidates
from abstraction.models import Network, Tap
from abstraction.models.base import Recordable
from experiments.harness.records import Row
from experiments.harness.timing import Time, stopwatch

SELECTION = Selection()
SELECTED = ("epsilon", "tau", "beta", "resolution")
"""Axes of a grid whose chosen values make the selected run."""


@dataclass
class Bench:
    """One trained network and the recorded banks methods run on.

    Attributes:
      network: the network.
      sites: where transport looks.
      fit: recorded fit pairs.
      evidence: recorded calibration pairs.
      tests: recorded test pairs by split.
      signature: how effects are measured.
      halves: whether a test bank holds sensitive and invariant pairs, which are then reported apart as well.
    """

    network: Network
    sites: SiteBank
    fit: Recorded
    evidence: Evidence
    tests: Tests
    signature: Signature = field(default_factory=Signature)
    halves: bool = False
    _effects: tuple[Effects, Time] | None = None

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return self.fit.variables

    @property
    def tap(self) -> Tap:
        """Where methods look."""
        return self.network.taps[self.sites.tap]

    def effects(self) -> tuple[Effects, Time]:
        """Measure effects once; every method that needs them is charged their time."""
        if self._effects is None:
            with stopwatch() as elapsed:
                measured = measure_effects(self.network, self.fit, self.sites, self.signature)
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


def run_localization(bench: Bench, rule: Rule, menu: CutMenu, selection: Selection = SELECTION) -> Outcome:
    """Run PLOT, or a baseline that differs from it in the rule alone."""
    effects, measuring = bench.effects()
    with stopwatch() as solving:
        plans = rule(effects)
        jax.block_until_ready(plans.coupling.plan)
    with stopwatch() as calibrating:
        found = localize(bench.network, effects, plans, menu, evidence=bench.evidence, selection=selection)
    times = localization_times(bench, found.grid, found.choice, (measuring + solving, calibrating), selection)
    return Outcome(found.choice, times, coupling_details(plans), localization_arrays(effects, plans, found.choice))


def localization_times(
    bench: Bench, grid: Grid, choice: Choice, spent: tuple[Time, Time], selection: Selection
) -> dict[str, Time]:
    """Return the seconds of a localization by the three conventions; parts of the grid are evaluated again.

    Args:
      bench: what it ran on.
      grid: what was evaluated.
      choice: what was chosen.
      spent: what all conventions have in common, and the evaluation of the whole grid.
      selection: how it was chosen.
    """
    common, calibrating = spent
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
            calibrate(bench.network, bench.evidence, part, selection)
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
        # Controls are drawn once, on the test pairs.
        search = Search(featurizer, config, tuple(strengths), controls=None)
        found = alignment_search(
            key, bench.network, bench.fit, candidates, search, evidence=bench.evidence, progress=progress
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
    if isinstance(bench.network.model, Recordable):
        handles = at_one_depth(handles)
    with stopwatch() as testing:
        tallies = judge_alone(bench.network, handles, bench.tests)
    controls = judge_controls(key, bench.network, handles, bench.tests, Repeats(draws, shuffles))
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
        "candidates_not_finite": choice.not_finite.tolist(),
        **outcome.details,
    }
    depth = bench.sites.tap_depth
    arrays = {"mass": handle_mass(handles, depth), **outcome.arrays}
    return rows, details, {f"{method}/{name}": np.asarray(array) for name, array in arrays.items()}


def keep_choice(folder: Path, bench: Bench, choice: Choice, name: str) -> None:
    """Write chosen handles to a file that `abstraction.load` reads, for the network they were chosen in."""
    plain = tuple({key: np.asarray(value).item() for key, value in setting.items()} for setting in choice.settings)
    path = folder / "handles" / f"{name}.safetensors"
    save(dataclasses.replace(choice, settings=plain), path, network=bench.network, data=bench.fit)


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


def control_rows(bench: Bench, experiment: str, seed: int) -> list[Row]:
    """Write what the network scores as it is, and what the best constant answer does: the level of chance."""
    handles = stack_handles([identity_handle(bench.tap)] * len(bench.variables))
    tallies = judge_alone(bench.network, handles, bench.tests)
    rows = [
        row
        for split, tally in split_halves(bench, tallies).items()
        for row in tally_rows(bench, tally, experiment, "control-identity", split, seed)
    ]
    for split, recorded in bench.tests.items():
        levels = zip(bench.variables, chance_level(recorded.bank).tolist(), strict=True)
        known = {name: level for name, level in levels if not np.isnan(level)}
        for name, level in (known | {"mean": float(np.mean([*known.values()]))}).items():
            rows.append(Row(experiment, "control-identity", name, split, "chance", seed, level))
    return rows


def tally_rows(bench: Bench, tally: Tally, experiment: str, method: str, split: str, seed: int) -> list[Row]:
    """Write IIA, its interval and the number of pairs, per variable that has pairs and for these together.

    A split with sensitive and invariant pairs (calibration) is scored by the mean of the two halves, and its bounds
    are the means of their bounds; a test split holds one half, and its variables pool.
    """
    there = np.flatnonzero(tally.pairs.sum(axis=-1) > 0)
    tally, names = tally[there], [bench.variables[index] for index in there]
    if not names:
        return []
    low, high = tally.interval()
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


def handle_mass(handles: Handle, depth: int) -> np.ndarray:
    """Return how much of each native coordinate a handle moves, `[V, L, D]`: |weight|, or the projector's diagonal."""
    weight = np.abs(np.asarray(handles.weight))
    if handles.basis is not None:
        weight = np.einsum(
            "...dk,...k,...kd->...d", *map(np.asarray, (handles.basis.encoder, weight, handles.basis.decoder))
        )
    if handles.depth is None:
        return weight
    mass = np.zeros((len(weight), depth, weight.shape[-1]), weight.dtype)
    mass[np.arange(len(weight)), np.asarray(handles.depth)] = weight
    return mass


def coupling_details(plans: Plans) -> dict[str, Any]:
    """Report how a batch of couplings went numerically."""
    coupling = jax.device_get(plans.coupling)
    return {
        "couplings": int(coupling.converged.size),
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
    size = np.maximum(sites.counts, 1)
    return {"cost": np.asarray(effects.cost), "plan": sites.union(rows / size).reshape(len(rows), -1)}
