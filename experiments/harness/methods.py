"""Run one method on one trained network: what every experiment shares.

A method measures and chooses on evidence; test pairs are not in its reach.

Runtime is reported by the three conventions of the paper, compilation apart:

    seconds            the full grid: signatures, all couplings, all calibration, test
    seconds_epsilon    all configurations at the selected eps
    seconds_selected   the selected configuration alone

A coupling is solved for all eps in one batch, so its whole time is charged in each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from abstraction.evaluation import Recorded, full_state_handles
from abstraction.evaluation.judging import Tests
from abstraction.interventions import Handle, SiteBank
from abstraction.interventions.handles import at_one_depth
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
    candidate_grid,
    localize,
    measure_effects,
)
from abstraction.localization.calibration import Evidence, calibrate, calibrate_candidates
from abstraction.localization.cutting import Grid
from abstraction.localization.das import orthogonality_error
from abstraction.localization.progressive import chosen_rows
from abstraction.localization.rules import Plans
from abstraction.localization.searching import Featurizer
from abstraction.localization.supports import Support
from abstraction.models import Network, Tap
from experiments.harness.options import DasOptions
from experiments.harness.timing import Time, stopwatch

SELECTION = Selection()
SELECTED = ("epsilon", "tau", "beta", "resolution")
"""Axes of a grid whose chosen values make the selected run."""


Tell = Callable[[str], None]


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
    bench: Bench, grid: Grid, choice: Choice, spent: tuple[Time, Time | None], selection: Selection
) -> dict[str, Time]:
    """Return the seconds of a localization by the three conventions; parts of the grid are evaluated again.

    Args:
      bench: what it ran on.
      grid: what was evaluated.
      choice: what was chosen.
      spent: what all conventions have in common, and the evaluation of the whole grid; None where a stage was timed as
        a whole, whose evaluation is then timed again and taken out.
      selection: how it was chosen.
    """
    common, calibrating = spent
    if calibrating is None:
        calibrating = Time(min(evaluated(bench, grid, selection).run, common.run))
        common = Time(common.total - calibrating.total, common.compile)
    times, size = {"seconds": common + calibrating}, grid.cost.size
    for name, axes in (("seconds_epsilon", ("epsilon",)), ("seconds_selected", SELECTED)):
        part = grid
        for axis in axes:
            if axis in dict(part.axes):
                part = part.only(axis, [setting[axis] for setting in choice.settings])
        again = part.cost.size < size
        times[name] = common + evaluated(bench, part, selection) if again else times["seconds"]
    return times


def evaluated(bench: Bench, grid: Grid, selection: Selection) -> Time:
    """Time the evaluation of a grid on the evidence."""
    with stopwatch() as elapsed:
        calibrate(bench.network, bench.evidence, grid, selection)
    return elapsed


class Tries(NamedTuple):
    """What a search tries at every support.

    Attributes:
      featurizer: what is trained.
      training: how.
      ranks: subspace sizes; those wider than the state are left out.
      learning_rates: Adam's.
      restarts: random starts of each.
      strengths: of the trained handles, chosen on evidence.
      sparsities: prices of a feature.
    """

    featurizer: Featurizer
    training: SearchConfig
    ranks: Sequence[int] = (1,)
    learning_rates: Sequence[float] = (1e-2,)
    restarts: int = 1
    strengths: Sequence[float] = (1.0,)
    sparsities: Sequence[float] = (0.0,)


def rotations(options: DasOptions) -> Tries:
    """Try rotations, or invertible maps, as options say."""
    grid = (options.ranks, options.learning_rates, options.restarts, options.strengths)
    return Tries(Rotation(options.parametrization), options.training, *grid)


def run_search(bench: Bench, key: jax.Array, supports: Sequence[Support], tries: Tries, tell: Tell) -> Outcome:
    """Train every candidate of every support, and choose."""
    start_key, order_key = jax.random.split(key)
    ranks = [rank for rank in tries.ranks if rank <= bench.tap.width]
    grid = {"learning_rates": tries.learning_rates, "restarts": tries.restarts, "sparsities": tries.sparsities}
    candidates = candidate_grid(start_key, bench.tap, supports, ranks=ranks, **grid)
    progress = lambda epoch, running: tell(f"search: epoch {epoch}, {running} running")
    with stopwatch() as elapsed:
        # Controls are drawn once, on the test pairs.
        search = Search(tries.featurizer, tries.training, tuple(tries.strengths), controls=None)
        found = alignment_search(
            order_key, bench.network, bench.fit, candidates, search, evidence=bench.evidence, progress=progress
        )
    for setting in found.choice.settings:
        setting["support"] = supports[setting["support"]].name
    searched = jax.device_get(found.searched)
    details = {
        "finite": bool(searched.finite.all()),
        "stopped_on_plateau": float(searched.stopped.mean()),
        "epochs": [int(searched.epochs.min()), int(searched.epochs.max())],
        "searches": len(searched.epochs),
    }
    rotation = tries.featurizer
    if isinstance(rotation, Rotation) and rotation.parametrization != "oblique":
        width = np.asarray(searched.handles.weight).sum(axis=-1).astype(int)
        details["orthogonality_error"] = float(orthogonality_error(searched.handles.basis, width).max())
    columns = {f"candidates/{name}": values for name, values in candidates.columns().items()}
    arrays = {"curve": np.asarray(searched.curve), "scores": found.choice.scores, **columns}
    return Outcome(found.choice, same_time(elapsed), details, arrays)


def same_time(elapsed: Time) -> dict[str, Time]:
    """Charge one time by all conventions: there is no eps to select."""
    return {convention: elapsed for convention in ("seconds", "seconds_epsilon", "seconds_selected")}


def full_state(bench: Bench) -> Outcome:
    """Swap the whole state at the depth that calibration likes best: what no localisation at all achieves."""
    every = full_state_handles(bench.tap)
    depths, variables = len(every.weight), len(bench.variables)
    with stopwatch() as elapsed:
        choice = calibrate_candidates(
            bench.network,
            bench.evidence,
            at_one_depth(Handle(bench.sites.tap, np.tile(every.weight, (variables, 1, 1)))),
            np.repeat(np.arange(variables), depths),
            [{"depth": depth} for depth in range(depths)] * variables,
            cost=np.tile(np.arange(depths, dtype=float), variables),
        )
    return Outcome(choice, same_time(elapsed), {"sites": depths}, {})


def coupling_details(plans: Plans) -> dict[str, Any]:
    """Tell how many sites a batch of couplings is about, and how it went numerically."""
    coupling = jax.device_get(plans.coupling)
    return {
        "sites": coupling.plan.shape[-1],
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
