"""Signatures of ever more sites: one compiled program serves them all, and compiling takes no longer.

Three layers of 128 units, 256 pairs. Sites are blocks of 8 units (48), single units (384), and all windows of 1 to 8
neighboring units (3072). The baseline is the same compiled function called for one site at a time. In the third row the
site is a constant of the program, as it is in a closure or a hook, so that every site compiles anew; a few are timed
and scaled, compile time too.
"""

from collections.abc import Sequence

import jax
import numpy as np

from abstraction.interventions import SiteBank, coordinate_sites, group_sites, unit_sites
from abstraction.interventions.patching import Runs, run_pairs
from abstraction.localization.signatures import site_signatures
from abstraction.models import MLP, Network, Tap
from benchmarks.problem import TAP
from benchmarks.records import Row, compare, measure, require_agreement

PAIRS, WIDTH, CLOSED = 256, 128, 6
BASELINE = "abstraction, one site per call"


def run(budget: float) -> list[Row]:
    """Time every bank of sites."""
    model = MLP(16, WIDTH, 3, 2)
    network = Network(model, model.init(jax.random.key(0)))
    base, source = np.random.default_rng(0).uniform(-1, 1, (2, PAIRS, 16)).astype(np.float32)
    runs = run_pairs(network, base, source, taps=(TAP,))
    tap = network.taps[TAP]
    banks = (group_sites(tap, 8), unit_sites(tap), windows(tap, 8))
    return [row for sites in banks for row in _run(network, runs, sites, budget)]


def windows(tap: Tap, widest: int) -> SiteBank:
    """Make every run of 1 to `widest` neighboring units a site, the last unit being a neighbor of the first."""
    starts, depths = range(tap.width), range(tap.depth)
    units: list[tuple[int, Sequence[int]]] = [
        (depth, [(start + step) % tap.width for step in range(size)])
        for depth in depths
        for size in range(1, widest + 1)
        for start in starts
    ]
    return coordinate_sites(tap, units)


def _run(network: Network, runs: Runs, sites: SiteBank, budget: float) -> list[Row]:
    singles = [sites.take(np.array([site])) for site in range(sites.size)]
    all_at_once = lambda: site_signatures(network, runs, sites)
    one_by_one = lambda: [site_signatures(network, runs, single) for single in singles]
    require_agreement({BASELINE: np.concatenate(one_by_one()), "abstraction": all_at_once()}, atol=1e-5)
    programs = [jax.jit(lambda n, r, single=single: site_signatures(n, r, single)) for single in singles[:CLOSED]]
    closed = measure(lambda: [program(network, runs) for program in programs], budget=budget, compiled=True)
    scale = sites.size / CLOSED
    timings = {
        BASELINE: measure(one_by_one, budget=budget, compiled=True),
        "abstraction, all sites at once": measure(all_at_once, budget=budget, compiled=True),
        f"abstraction, one program per site, {CLOSED} of {sites.size} timed and scaled": closed.scaled(scale)._replace(
            seconds_compile=closed.seconds_compile * scale
        ),
    }
    return compare("scaling", f"{sites.size} sites x {PAIRS} pairs, width {WIDTH}", timings, baseline=BASELINE)
