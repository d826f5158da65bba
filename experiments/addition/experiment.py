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
from abstraction.evaluation import Repeats, record
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import state_sites
from abstraction.localization import Signature
from abstraction.localization.supports import coordinate_support
from abstraction.models import Network
from abstraction.randomness import host_generator
from abstraction.tasks import addition
from experiments.addition.cost import costs
from experiments.addition.network import BITS, check_checkpoints, trained_adder
from experiments.addition.options import METHODS as NAMES
from experiments.addition.options import Addition, Honesty
from experiments.addition.shown import REPORT
from experiments.harness.meshes import placed
from experiments.harness.methods import Bench, Tell, Tries, rotations, run_search
from experiments.harness.outcomes import kept_pairs
from experiments.harness.progressive import METHODS, Stages, fitted_weights
from experiments.harness.records import RunFolder, Unit
from experiments.harness.results import Results, seed_keys, split_halves
from experiments.harness.running import Experiment
from experiments.harness.stages import CoarseToFine
from experiments.harness.timing import stopwatch

NAME = "addition"
TAP = "hidden"


class Problem(NamedTuple):
    """One network and its pairs."""

    network: Network
    banks: addition.Banks


def run_seed(config: Addition, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Train or read one network, run every method on it, and return the seed's unit."""
    keys = seed_keys(seed, NAMES)
    results = Results(NAME, seed, Repeats(config.control_draws, config.control_shuffles))
    tell("pair banks")
    with stopwatch() as drawing:
        banks = addition.structured_banks(seed, bits=config.backbone.bits, **dataclasses.asdict(config.banks))
    tell("backbone")
    problem = Problem(placed(trained_adder(config.backbone, results, run, tell), config.mesh), banks)
    with stopwatch() as recording:
        bench = make_bench(problem)
    results.took("banks", drawing + recording)
    results.compare(bench)
    results.details["pairs"] = kept_pairs(bench)
    stages = Stages(config, bench, known_values(config))
    for name in config.methods:
        say = lambda text, name=name: tell(f"{name}, {text}")
        say("running")

        def search(part: Results, name: str = name, say: Tell = say) -> None:
            outcome = METHODS[name].run(stages, METHODS[name], keys[name], say)
            part.take(run.path, bench, name, outcome, jax.random.fold_in(keys[name], 1))

        results.part(run, name, search)
    for name in config.honesty:
        say = lambda text, name=name: tell(f"{name} where there is nothing to find, {text}")

        def fail(part: Results, name: Honesty = name, say: Tell = say) -> None:
            run_honesty(stages, problem, name, jax.random.fold_in(keys[name], 2), part, say)

        results.part(run, f"{name}-honesty", fail)
    return results.unit


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


def run_honesty(stages: Stages, problem: Problem, method: Honesty, key: Array, results: Results, tell: Tell) -> None:
    """Run a search where it must fail; what it reaches on test pairs is what its freedom alone is worth."""
    for name, (case, depths) in _nothing_to_find(problem, stages.depths("ours"), key).items():
        bench = make_bench(case)
        tap = bench.tap
        supports = [coordinate_support(tap, v, int(depth), range(tap.width), "full") for v, depth in enumerate(depths)]
        outcome = run_search(bench, key, supports, _tries(stages.config, method), tell)
        tallies = split_halves(bench, judge_alone(case.network, outcome.choice.handles, bench.tests))
        results.tallied(bench, f"control-{name}-{method}", tallies)


def _nothing_to_find(problem: Problem, depths: np.ndarray, key: Array) -> dict[str, tuple[Problem, np.ndarray]]:
    """Make problems without an answer: labels of other pairs, no training, a step before there is a carry."""
    network, banks = problem
    generator = host_generator(jax.random.fold_in(key, 0))
    shuffled = banks._replace(
        fit=shuffle_labels(generator, banks.fit), calibration=shuffle_labels(generator, banks.calibration)
    )
    untrained = Network(network.model, network.model.init(jax.random.fold_in(key, 1)))
    cases = {
        "shuffled-labels": (Problem(network, shuffled), depths),
        "untrained": (Problem(untrained, banks), depths),
    }
    if later := np.flatnonzero(depths > 0).tolist():
        fewer = {role: select_variables(getattr(banks, role), later) for role in ("fit", "calibration", "test")}
        cases["earlier"] = Problem(network, banks._replace(**fewer)), depths[later] - 1
    return cases


def _tries(config: Addition | CoarseToFine, method: Honesty) -> Tries:
    if method == "plot-native-fitted":
        return fitted_weights(config.weights)
    return rotations(config.oblique if method == "plot-oblique-das" else config.das)


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"jax key": seed, "order of the bases (random.Random)": seed}


EXPERIMENT = Experiment(
    NAME,
    Addition,
    run_seed,
    random_seeds,
    REPORT,
    check=lambda config: check_checkpoints(config.backbone, config.seeds),
    costs=costs,
)
