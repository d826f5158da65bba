"""Binary addition, the second benchmark of the PLOT paper: coarse to fine.

    python -m experiments addition --seeds 0:5

Trains one GRU per seed to add two 4-bit numbers, or reads it (`--backbone.checkpoints DIR`), finds the carries C1, C2,
C3 in it by every method, and tests each frozen handle once, beside its controls. The score is the combined IIA, the
mean of the accuracies on pairs that must change the output and on those that must not; its halves are the splits
`test-sensitive` and `test-invariant`. Expected: `plot-native-fitted` above .94, `plot-das` above .987,
`plot-oblique-das` above .993; the authors' code gives .751 (PLOT-native), .927 (PLOT-PCA) and .984 (PLOT-DAS).

Rows named `*-v1` and `*-v4` are the paper's variants of May and October 2026. Controls of a search, rows named
`control-shuffled-labels-*`, `control-earlier-*` and `control-untrained-*`: the same search on labels of other pairs,
one step before the carry is computed, and in a network that was never trained.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.causal.pairs import select_variables, shuffle_labels
from abstraction.evaluation import record
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import state_sites
from abstraction.localization import Signature
from abstraction.localization.supports import coordinate_support
from abstraction.models import Network
from abstraction.randomness import host_generator
from abstraction.tasks import addition
from experiments.addition.network import BITS, gru, trained_adder
from experiments.addition.options import ADDITION_METHODS, Addition, Honesty, quick
from experiments.harness.checks import check_addition
from experiments.harness.methods import (
    Bench,
    Outcome,
    control_rows,
    keep_choice,
    split_halves,
    tally_rows,
    test_outcome,
)
from experiments.harness.progressive import Options, Report, Stages, run_method, subspace_search, weight_search
from experiments.harness.records import Row, RunFolder, Unit
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch

NAME = "addition"
TAP = "hidden"


class Problem(NamedTuple):
    """One network and its pairs."""

    network: Network
    banks: addition.Banks


def run_seed(config: Addition, seed: int, run: RunFolder, report: Callable[[str], None]) -> Unit:
    """Train or read one network, run every method on it, and return the seed's unit."""
    keys = dict(zip(ADDITION_METHODS, jax.random.split(jax.random.key(seed), len(ADDITION_METHODS)), strict=True))
    report(f"seed {seed}: pair banks")
    with stopwatch() as drawing:
        banks = addition.structured_banks(seed, bits=config.backbone.bits, **dataclasses.asdict(config.banks))
    report(f"seed {seed}: backbone")
    params, known, details = trained_adder(config.backbone, seed, run, report)
    rows = [Row(NAME, "backbone", "output", "validation", name, seed, value) for name, value in known.items()]
    details["backbone"] = known
    problem = Problem(Network(gru(config.backbone), params), banks)
    with stopwatch() as recording:
        bench = make_bench(problem)
    times = {"seconds": (drawing + recording).run, "seconds_compile": (drawing + recording).compile}
    rows += [Row(NAME, "banks", "mean", "test", name, seed, value) for name, value in times.items()]
    rows += control_rows(bench, NAME, seed)
    stages, arrays = Stages(config, bench, known_values(config)), {}
    for method in config.methods:
        say = lambda text, method=method: report(f"seed {seed}: {method}, {text}")
        say("running")
        outcome = run_method(stages, method, keys[method], say)
        tested = test_outcome(
            bench, outcome, experiment=NAME, method=method, seed=seed, key=jax.random.fold_in(keys[method], 1),
            draws=config.control_draws, shuffles=config.control_shuffles,
        )  # fmt: skip
        keep_choice(run.path, bench, outcome.choice, f"{method}-seed-{seed}")
        rows += tested[0]
        details[method] = tested[1]
        arrays |= tested[2]
    for method in config.honesty:
        say = lambda text, method=method: report(f"seed {seed}: {method} where there is nothing to find, {text}")
        rows += honesty_rows(stages, problem, method, jax.random.fold_in(keys[method], 2), seed, say)
    return Unit(f"seed-{seed}", rows, details, arrays)


def known_values(config: Addition) -> Callable[[PairBank, str], tuple[np.ndarray, np.ndarray]]:
    """Return each carry's value on the bases of a bank, and what is known beside it."""

    def known(bank: PairBank, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = addition.adder(config.backbone.bits).run(bank.base)
        others = [np.asarray(values[other]) for other in addition.known_with(name)]
        return np.asarray(values[name]), np.stack(others, axis=-1)

    return known


def make_bench(problem: Problem) -> Bench:
    """Record all banks of a problem."""
    network, banks = problem
    tap = network.taps[TAP]
    encode = lambda setting: addition.encode(setting, tap.depth)
    recorded = lambda bank: record(network, encode, bank, tap=TAP, readout=BITS)
    families = np.arange(banks.fit.size) % len(banks.families)
    bench = Bench(
        network,
        state_sites(tap),
        recorded(banks.fit),
        recorded(banks.calibration),
        {"test": recorded(banks.test)},
        Signature("bit_delta", unit=True, families=families),
        halves=True,
    )
    jax.block_until_ready(bench.fit.runs.outputs)
    return bench


def honesty_rows(stages: Stages, problem: Problem, method: Honesty, key: Array, seed: int, report: Report) -> list[Row]:
    """Run a search where it must fail; what it reaches on test pairs is what its freedom alone is worth."""
    depths, (network, banks) = stages.depths("ours"), problem
    generator = host_generator(jax.random.fold_in(key, 0))
    shuffled = banks._replace(
        fit=shuffle_labels(generator, banks.fit), calibration=shuffle_labels(generator, banks.calibration)
    )
    untrained = Network(network.model, network.model.init(jax.random.fold_in(key, 1)))
    later = np.flatnonzero(depths > 0).tolist()
    cases = {
        "shuffled-labels": (Problem(network, shuffled), depths),
        "untrained": (Problem(untrained, banks), depths),
    }
    if len(later):
        fewer = banks._replace(
            fit=select_variables(banks.fit, later),
            calibration=select_variables(banks.calibration, later),
            test=select_variables(banks.test, later),
        )
        cases["earlier"] = Problem(network, fewer), depths[later] - 1
    rows = []
    for name, (case, places) in cases.items():
        bench = make_bench(case)
        outcome = _search_at(stages.config, bench, method, places, key, report)
        tallies = split_halves(bench, judge_alone(case.network, outcome.choice.handles, bench.tests))
        for split, tally in tallies.items():
            rows += tally_rows(bench, tally, NAME, f"control-{name}-{method}", split, seed)
    return rows


def _search_at(
    config: Options, bench: Bench, method: Honesty, depths: np.ndarray, key: Array, report: Report
) -> Outcome:
    tap = bench.tap
    supports = [coordinate_support(tap, v, int(depth), range(tap.width), "full") for v, depth in enumerate(depths)]
    if method == "plot-native-fitted":
        return weight_search(config, bench, key, supports, report)
    options = config.oblique if method == "plot-oblique-das" else config.das
    return subspace_search(bench, key, options, supports, report)


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"jax key": seed, "order of the bases (random.Random)": seed}


EXPERIMENT = Experiment(NAME, run_seed, random_seeds, check_addition, quick)
