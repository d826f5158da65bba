"""What `growth` measures: every driver at sizes over two decades, one axis at a time, all else fixed.

Networks are random and so are the pairs: no cost depends on the values. An MLP of one layer where the width grows, so
that what the network itself does grows with the width and not with its square.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from abstraction.causal import PairBank
from abstraction.evaluation import Recorded, record, tally_handles
from abstraction.interventions import Handle, unit_sites
from abstraction.interventions.patching import handle_outputs
from abstraction.localization import CutMenu, Rotation, SearchConfig, Signature, candidate_grid, measure_effects
from abstraction.localization.couplings import relative_epsilons, sinkhorn_couplings
from abstraction.localization.cutting import handle_grid
from abstraction.localization.searching import train_candidates
from abstraction.localization.supports import full_supports
from abstraction.models import MLP, Activation, Dense, Network, Sequential
from abstraction.reduction.elimination import eliminate
from abstraction.reduction.moments import collect_statistics, law_moments

TAP, INPUTS = "hidden", 16
DECADES = (100, 316, 1000, 3162, 10_000)
FROM_10 = tuple(size // 10 for size in DECADES)

Call = Callable[[], Any]


class Axis(NamedTuple):
    """One driver along one axis.

    Attributes:
      driver: what is called.
      axis: what grows.
      fixed: what does not.
      power: the growth that the mathematics has, as a power of the size.
      sizes: at least two decades of them.
      make: makes the call for a size.
    """

    driver: str
    axis: str
    fixed: str
    power: int
    sizes: tuple[int, ...]
    make: Callable[[int], Call]


@cache
def pairs(count: int, *, width: int = 64, depth: int = 1, classes: int = 2) -> tuple[Network, Recorded]:
    """Draw a network and record pairs of one variable."""
    model = MLP(INPUTS, width, depth, classes)
    network = Network(model, model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    base, source = rng.standard_normal((2, count, INPUTS)).astype(np.float32)
    labels, factual = rng.integers(2, size=(2, count)).astype(np.int32)
    bank = PairBank({"x": base}, {"x": source}, factual, labels[None], np.ones((1, count), bool), ("variable",), "fit")
    return network, record(network, lambda setting: setting["x"], bank, tap=TAP)


def effects(sites: int = 64, count: int = 256, classes: int = 2, memory: int = 2**26) -> Call:
    """Measure effects of unit sites, each as often as it takes."""
    network, fit = pairs(count, classes=classes)
    units = unit_sites(network.taps[TAP])
    bank = units.take(np.arange(sites) % units.size)
    return lambda: measure_effects(network, fit, bank, Signature(memory=memory)).cost


def tally(handles: int = 100, count: int = 256, width: int = 64) -> Call:
    """Count hits of random handles in native coordinates."""
    network, fit = pairs(count, width=width)
    weight = np.random.default_rng(0).random((handles, width), np.float32)
    every = Handle(TAP, weight, None, np.zeros(handles, np.int32))
    variable = np.zeros(handles, int)
    return lambda: tally_handles(network, fit, every, variable).combined


def cut(sites: int) -> Call:
    """Cut 10 plans at 4 sizes and 4 strengths."""
    network, _ = pairs(256)
    units = unit_sites(network.taps[TAP])
    bank = units.take(np.arange(sites) % units.size)
    plan = np.random.default_rng(0).random((10, 1, sites), np.float32)
    menu = CutMenu((1, 2, 4, 8), (0.5, 1.0, 1.5, 2.0))
    axes = (("epsilon", tuple(range(10))),)
    return lambda: handle_grid(plan, plan[0], bank, axes, menu).weight


def couple(sites: int) -> Call:
    """Solve two variables by this many sites at seven eps."""
    cost = np.random.default_rng(0).random((2, sites), np.float32)
    scopes = np.ones((1, sites), bool)
    epsilons = relative_epsilons(cost, scopes, (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0))
    return lambda: sinkhorn_couplings(cost, epsilons, scopes, iterations=200).plan


def train(candidates: int = 24, count: int = 1280, width: int = 64, rank: int = 4) -> Call:
    """Train rotations, one pass over the pairs in batches of 64."""
    network, fit = pairs(count, width=width)
    tap = network.taps[TAP]
    grid = candidate_grid(
        jax.random.key(0), tap, full_supports(tap, range(1)), ranks=(rank,), learning_rates=(1e-2,), restarts=candidates
    )
    config = SearchConfig(batch_size=64, max_epochs=1, min_epochs=1, patience=1)
    run = partial(train_candidates, jax.random.key(1), network, fit, grid, Rotation(), config)
    return lambda: run().curve


def resume(depth: int) -> Call:
    """Run 8 handles of the first layer through all later ones."""
    network, fit = pairs(256, depth=depth)
    weight = np.random.default_rng(0).random((8, 64), np.float32)
    handles = Handle(TAP, weight, None, np.zeros(8, np.int32))
    return lambda: handle_outputs(network, fit.runs, handles)


def curvature(units: int = 64, classes: int = 10, examples: int = 64) -> Call:
    """Measure moments and exact Gauss-Newton curvature of one hidden layer."""
    model = Sequential((INPUTS,), (Dense("one", units), Activation(TAP, "relu"), Dense("two", classes)))
    network = Network(model, model.init(jax.random.key(0)))
    inputs = np.random.default_rng(0).standard_normal((examples, INPUTS)).astype(np.float32)
    return lambda: collect_statistics(network, inputs, TAP).hessian


def elimination(units: int) -> Call:
    """Remove all units but one, at full rank."""
    model = Sequential((INPUTS,), (Dense("one", units), Activation(TAP, "relu"), Dense("two", 2)))
    network = Network(model, model.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    moments = law_moments(collect_statistics(network, rng.standard_normal((512, INPUTS)).astype(np.float32), TAP))
    root = rng.standard_normal((units, units)) / units**0.5
    return lambda: eliminate(root @ root.T, moments, keep=1).increases


AXES = (
    Axis("measure_effects", "sites", "256 pairs, width 64", 1, DECADES, lambda size: effects(sites=size)),
    Axis("measure_effects", "pairs", "64 sites, width 64", 1, DECADES, lambda size: effects(count=size)),
    Axis(
        "measure_effects", "vocabulary", "64 sites, 64 pairs", 1, (500, 1581, 5000, 15_811, 50_257),
        lambda size: effects(count=64, classes=size),
    ),
    Axis("tally_handles", "candidates", "256 pairs, width 64", 1, DECADES, lambda size: tally(handles=size)),
    Axis("tally_handles", "pairs", "100 handles, width 64", 1, DECADES, lambda size: tally(count=size)),
    Axis("tally_handles", "width", "100 handles, 256 pairs", 1, FROM_10, lambda size: tally(width=size)),
    Axis("handle_grid", "sites", "160 handles, width 64", 1, DECADES, cut),
    Axis("sinkhorn_couplings", "sites", "2 variables, 7 eps, 200 iterations", 1, DECADES, couple),
    Axis(
        "train_candidates", "candidates", "width 64, rank 4, 20 batches of 64 pairs", 1, (8, 24, 80, 240, 800),
        lambda size: train(candidates=size),
    ),
    Axis(
        "train_candidates", "pairs", "24 rotations, width 64, rank 4, batches of 64", 1,
        (128, 384, 1280, 3840, 12_800), lambda size: train(count=size),
    ),
    Axis(
        "train_candidates", "width", "4 rotations of rank 4, 20 batches of 64", 1, (16, 64, 230, 768, 2304),
        lambda size: train(candidates=4, width=size),
    ),
    Axis("resume", "depth", "8 handles, 256 pairs, width 64", 1, (4, 12, 40, 120, 400), resume),
    Axis("collect_statistics", "units", "10 classes, 64 examples", 2, (32, 96, 320, 960, 3200), curvature),
    Axis(
        "collect_statistics", "classes", "64 units, 64 examples", 1, FROM_10, lambda size: curvature(classes=size)
    ),
    Axis(
        "collect_statistics", "vocabulary", "32 units, 8 examples", 1, (500, 1581, 5000, 15_811, 50_257),
        lambda size: curvature(32, size, 8),
    ),
    Axis("eliminate", "units", "full rank, all but one removed", 3, (20, 60, 200, 600, 2000), elimination),
)  # fmt: skip
