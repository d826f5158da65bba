"""Methods that are this experiment's alone, beside those of the harness."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array

from abstraction.localization import full_supports
from abstraction.localization.screening import screen_sites
from experiments.harness.methods import Outcome, Tell, rotations, run_search
from experiments.harness.options import changed
from experiments.harness.progressive import Method, Stages
from experiments.harness.timing import stopwatch
from experiments.ioi.options import Ioi

_FULL = ("full-das", "screened-das")
"""Methods that search by the budget of `full`."""


def options_of(name: str, config: Ioi) -> Ioi:
    """Return the options one method runs with: the budget of a full search is its own."""
    return changed(config, {"das": config.full}) if name in _FULL else config


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


OWN_METHODS: Mapping[str, Method] = {"screened-das": Method(_screened_search)}
