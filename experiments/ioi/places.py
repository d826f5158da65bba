"""Where the variables are: blocks x named tokens, by transport, by first-order scores before it, and by full swaps.

places    the residual stream after each of L blocks at each of P named tokens
plot      effects of full swaps at all L P places, transport; of a variable's heaviest the first that carries it
screened  first-order scores of all places, and transport among those of the highest alone
map       IIA of a full swap at every place, on calibration pairs
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from abstraction.evaluation import Recorded
from abstraction.evaluation.confidence import standard_error
from abstraction.interventions import SiteBank
from abstraction.interventions.handles import handle_depths
from abstraction.localization import CutMenu, Sweeping, localize, measure_effects, sweep
from abstraction.localization.calibration import checked_evidence
from abstraction.localization.maps import Sweep
from abstraction.localization.pipeline import Localization
from abstraction.localization.screening import screen_sites
from abstraction.tasks.ioi import POSITIONS, VARIABLES
from experiments.harness.methods import Bench, Tell
from experiments.harness.results import Results
from experiments.harness.timing import Time, stopwatch
from experiments.ioi.methods import PROTOCOLS
from experiments.ioi.options import Ioi

WAYS = ("plot-places", "screened-places", "map-places")
"""How places are found: by transport, by transport among screened ones, and by the best full swap."""


class Place(NamedTuple):
    """A block and a token."""

    block: int
    position: str

    def __str__(self) -> str:
        return f"{self.block} {self.position}"


def place_of(depth: int) -> Place:
    """Return what one of L P depths stands for."""
    block, position = divmod(int(depth), len(POSITIONS))
    return Place(block, POSITIONS[position])


def find_places(results: Results, bench: Bench, config: Ioi, tell: Tell) -> dict[str, Place]:
    """Find each variable's place, and keep the map beside it; returns what transport found."""
    tell("places, effects of full swaps")
    with stopwatch() as elapsed:
        found = coupled(bench, bench.sites)
    _keep(results, "plot-places", handle_depths(found.choice.handles), elapsed)
    results.arrays["places/cost"] = np.asarray(found.effects.cost).reshape(len(VARIABLES), -1, len(POSITIONS))
    tell("places, screened")
    with stopwatch() as elapsed:
        screened = screen_sites(bench.network, bench.fit, bench.sites, config.screen, bench.signature)
        few = coupled(bench, screened.sites)
    _keep(results, "screened-places", handle_depths(few.choice.handles), elapsed)
    agreement = screened.agreement(-np.asarray(found.effects.cost)).tolist()
    results.details["screened"] = {
        "kept": len(screened.columns), "of": bench.sites.size, "passes": screened.passes,
        "agreement": dict(zip(VARIABLES, agreement, strict=True)),
    }  # fmt: skip
    results.arrays["places/screen"] = screened.scores.reshape(len(VARIABLES), -1, len(POSITIONS))
    tell("places, map of full swaps")
    with stopwatch() as elapsed:
        swapped = sweep(bench.network, one_bank(bench), None, Sweeping(controls=None), tell=_progress(tell))
    _keep_map(results, swapped, elapsed)
    results.details["sweep_pairs"] = one_bank(bench).bank.size
    return {v: place_of(at) for v, at in zip(VARIABLES, handle_depths(found.choice.handles), strict=True)}


def coupled(bench: Bench, sites: SiteBank) -> Localization:
    """Couple the variables to full states, swap each row's heaviest whole, and choose the first that carries it."""
    variant = PROTOCOLS["ours"]
    effects = measure_effects(bench.network, bench.fit, sites, bench.signature)
    plans = variant.coarse(effects)
    jax.block_until_ready(plans.coupling.plan)
    menu = CutMenu(tuple(range(1, min(variant.heaviest, sites.size) + 1)), (1.0,), alone=True)
    return localize(bench.network, effects, plans, menu, evidence=bench.evidence, selection=variant.selection)


def one_bank(bench: Bench) -> Recorded:
    """Return the calibration pairs of a bench that has one bank of them."""
    (bank,) = checked_evidence(bench.evidence)
    return bank


def _keep(results: Results, way: str, depths: np.ndarray, elapsed: Time) -> None:
    for variable, depth in zip(VARIABLES, depths, strict=True):
        block, position = divmod(int(depth), len(POSITIONS))
        results.add(way, variable, "calibration", block=block, position=position)
    results.took(way, elapsed)


def _keep_map(results: Results, swapped: Sweep, elapsed: Time) -> None:
    """Keep the map, and the earliest place whose IIA is within a standard error of the best."""
    ends = {"map": swapped.values, "map/low": swapped.low, "map/high": swapped.high}
    results.arrays.update({name: np.asarray(values, np.float32) for name, values in ends.items()})
    # What the page of a run draws: by token, variable and block; variables in the order of the methods' rows.
    results.arrays["sweep"] = np.moveaxis(results.arrays["map"], 2, 0)[:, ::-1]
    results.details["positions"] = list(POSITIONS)
    blocks = results.arrays["map"].shape[1]
    results.details["places"] = [f"block {block}, {name}" for block in range(blocks) for name in POSITIONS]
    flat = lambda each: np.nan_to_num(np.asarray(each), nan=-1.0).reshape(len(VARIABLES), -1)
    values, pairs = flat(swapped.values), flat(swapped.pairs)
    best = values.argmax(axis=1)[:, None]
    at_best = lambda each: np.take_along_axis(each, best, axis=1)
    least = at_best(values) - standard_error(at_best(values * pairs), at_best(pairs))
    _keep(results, "map-places", (values >= least).argmax(axis=1), elapsed)


def _progress(tell: Tell) -> Callable[[int, int], None]:
    return lambda done, of: tell(f"places, map of full swaps: {done} of {of}")
