"""Methods that are this experiment's alone, beside those of the harness."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array

from abstraction.localization import VARIANTS, Boundless, CutMenu, Mask, Selection, Variant, full_supports
from abstraction.localization.guiding import state_supports
from abstraction.localization.screening import screen_sites
from experiments.harness.methods import Outcome, Tell, Tries, rotations, run_search
from experiments.harness.options import changed
from experiments.harness.progressive import Method, Stages
from experiments.harness.stages import CoarseToFine
from experiments.harness.timing import stopwatch
from experiments.ioi.options import Ioi

PROTOCOLS: Mapping[str, Variant] = {
    "ours": dataclasses.replace(
        VARIANTS["ours"],
        menu=CutMenu((1, 2, 3, 4, 6, 8), (0.7, 1.0, 1.4)),
        heaviest=12,
        selection=Selection(onset=True),
    )
}
"""As in the harness, with few strengths: every handle of the position is run at several tokens of every pair. Stage A
goes to the first of the heaviest places that carries a variable: later ones carry what was written there."""
_FULL = ("full-das", "screened-das")
"""Methods that search by the budget of `full`."""
_WIDEST = 256
"""Directions that boundless search may use at most: its transform inverts matrices of twice that size."""


def options_of(name: str, variable: str, config: Ioi) -> Ioi:
    """Return the options a method runs with: full searches, and those for the position, have a budget of their own."""
    if name in _FULL:
        return changed(config, {"das": config.full})
    return changed(config, {"das": config.das_position}) if variable == "position" else config


def _guided(tries: Callable[[CoarseToFine, int], Tries], *, turn: bool) -> Callable[..., Outcome]:
    """Search the whole state where Stage A puts each variable."""

    def run(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
        (_, before), tap = stages.coarse("ours"), stages.bench.tap
        supports = [each._replace(turn=turn) for each in state_supports(tap, stages.depths("ours"))]
        outcome = run_search(stages.bench, key, supports, tries(stages.config, tap.width), tell)
        return outcome._replace(times={name: before + elapsed for name, elapsed in outcome.times.items()})

    return run


def _masks(config: CoarseToFine, width: int) -> Tries:
    options = config.masks
    rates = (options.learning_rate,)
    return Tries(Mask(), options.training, learning_rates=rates, sparsities=options.sparsities)


def _boundless(config: CoarseToFine, width: int) -> Tries:
    options = config.boundless
    featurizer = Boundless(boundary_rate=options.boundary_rate, penalty_weight=options.penalty)
    return Tries(featurizer, options.training, (min(width, _WIDEST),), (options.learning_rate,))


def _screened_search(stages: Stages, method: Method, key: Array, tell: Tell) -> Outcome:
    """Search the blocks whose first-order scores are highest, instead of all."""
    bench, config = stages.bench, stages.config
    share = config.screen if isinstance(config, Ioi) else 1.0
    with stopwatch() as elapsed:
        found = screen_sites(bench.network, bench.fit, bench.sites, share, bench.signature)
    depths = np.asarray(found.sites.depth)
    supports = full_supports(bench.tap, range(len(bench.variables)), depths.tolist())
    outcome = run_search(bench, key, supports, rotations(config.das), tell)
    details = {**outcome.details, "screened": depths.tolist(), "kept": math.ceil(share * bench.sites.size)}
    times = {name: elapsed + spent for name, spent in outcome.times.items()}
    return outcome._replace(times=times, details=details)


OWN_METHODS: Mapping[str, Method] = {
    "screened-das": Method(_screened_search),
    "plot-dbm": Method(_guided(_masks, turn=False)),
    "plot-boundless-das": Method(_guided(_boundless, turn=True)),
}
