"""Mechanism reduction of a digit classifier (CMR, arXiv 2602.24266; trials as in CIF, UAI 2026).

    python -m experiments reduction --network.checkpoint ../shared/data/mnist_mlp_seed0.npz

A network of two hidden layers is reduced on some training images by every method, the last hidden layer alone and both
layers in one call, and compared with the dense network on all test images: accuracy, agreement, KL, and
interchange-intervention accuracy under random interchanges of kept units. Expected on the published checkpoint with
512 units, IIA at p = .1 and accuracy: keep 128 .990 and .982, keep 32 .966 and .980; the authors' best are .957 and
.970, .823 and .892.

Every trial of a budget is the same for every method (which inputs, which positions of the mask). Controls of a row: the
reduced network under no intervention while the dense one is intervened on (`ignored`), and under an interchange with
another source (`shuffled`); identity is the agreement without intervention, and `random` a random choice of units.
"""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.evaluation import accuracy, bernoulli_trials, binomial_interval, interchanged_outputs
from abstraction.evaluation.interchange import Trials, bounded_losses, recorded_states, view
from abstraction.evaluation.sequences import interval
from abstraction.interventions import factual_outputs
from abstraction.models import Network
from abstraction.reduction import METHODS, Calibration, Reduction, bill, reduce_network
from abstraction.reduction.compiling import latency
from abstraction.reduction.discrepancies import KL, LOGIT
from abstraction.reduction.pipeline import replace_units
from abstraction.reduction.ranking import rank_units
from abstraction.reduction.risk import replacement_effects
from abstraction.reduction.scores import constant_risk
from abstraction.tasks.mnist import calibration_rows
from experiments.harness.meshes import placed
from experiments.harness.methods import Tell
from experiments.harness.records import RunFolder, Unit
from experiments.harness.report import Report
from experiments.harness.results import Results
from experiments.harness.running import Experiment
from experiments.harness.timing import Time, stopwatch
from experiments.reduction import digits
from experiments.reduction.cost import costs
from experiments.reduction.curves import reduced
from experiments.reduction.figures import draw
from experiments.reduction.options import Reduction as Options
from experiments.reduction.options import budgets
from experiments.reduction.tables import tables

NAME = "reduction"
FIRST, LAST = "hidden1", "hidden2"
BOTH = "both"
LATENCY_ROWS = 256


class Bench(NamedTuple):
    """What every method is run and tested on.

    Attributes:
      network: the dense network.
      calibration: training images, their labels, and the dense outputs.
      images: test images.
      labels: theirs; only measurements read them.
      outputs: dense outputs on the test images.
      config: the options.
      results: what has been measured.
    """

    network: Network
    calibration: Calibration
    images: np.ndarray
    labels: np.ndarray
    outputs: np.ndarray
    config: Options
    results: Results


def run_seed(config: Options, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Reduce one network by every method, and return the seed's unit."""
    tell("images")
    data, results = digits.loaded_digits(config.data, tell), Results(NAME, seed)
    tell("network")
    params, known, details = digits.trained_network(config.network, data, seed, run, tell)
    network = placed(Network(digits.network(config.network, data), params), config.mesh)
    bench = _bench(config, network, data, results)
    dense, width = bill(bench.network, bench.images.shape[1:]), bench.network.taps[LAST].width
    results.add("dense", "network", "test", **known, parameters=dense.parameters, multiply_adds=dense.multiply_adds)
    results.add("dense", "network", "test", latency=latency(bench.network, bench.images[:LATENCY_ROWS]))
    results.details.update(data=details["data"], images=data.name, width=width, warnings={}, kept={})
    keeps = budgets("--keeps", config.keeps, width)
    for method in config.methods:
        tell(method)
        reduce = lambda part, method=method: _last_layer(bench._replace(results=part), method, keeps, run)
        results.part(run, method, reduce)
    for method in config.both_methods:
        for keep in budgets("--both-keeps", config.both_keeps, width):
            tell(f"{method}, both layers to {keep}")
            both = lambda part, method=method, keep=keep: _both_layers(bench._replace(results=part), method, keep, run)
            results.part(run, f"{method}-both-keep{keep}", both)
    tell("scores against effects")
    results.arrays.update(_effects(bench))
    return results.unit


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"network, jax key": seed, "calibration images, MT19937": seed, "trials": seed, "methods, jax key": seed}


def _bench(config: Options, network: Network, data: digits.LoadedDigits, results: Results) -> Bench:
    images, tests = data.digits.train_images, data.digits
    rows = calibration_rows(len(images), min(config.calibration, len(images)), seed=results.seed)
    inputs, labels = images[rows], data.digits.train_labels[rows].astype(np.int32)
    calibration = Calibration(inputs, labels, factual_outputs(network, inputs))
    outputs = np.asarray(factual_outputs(network, tests.test_images))
    return Bench(network, calibration, tests.test_images, tests.test_labels, outputs, config, results)


def _last_layer(bench: Bench, method: str, keeps: list[int], run: RunFolder) -> None:
    """Rank once, reduce to every budget, and measure."""
    key, results = jax.random.key(bench.results.seed), bench.results
    with stopwatch() as ranking_time:
        ranking = rank_units(bench.network, bench.calibration, LAST, METHODS[method], key=key)
    if ranking.warning is not None:
        results.details.setdefault("warnings", {})[method] = ranking.warning
    results.arrays[f"{method}/scores"] = np.asarray(ranking.scores, np.float32)
    for keep in keeps:
        with stopwatch() as elapsed, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # in the notes, and under the table
            reduction = replace_units(ranking, keep, key=key)
            jax.block_until_ready(reduction.network.params)
        _measure(bench, method, LAST, keep, reduction, ranking_time + elapsed)
        results.arrays[f"{method}/keep{keep}/kept"] = np.asarray(reduction.plan.folds[0].kept, np.int32)
        _interchange(bench, method, LAST, LAST, keep, reduction)
        _store(run, results.seed, f"{method}-keep{keep}", reduction)


def _both_layers(bench: Bench, method: str, keep: int, run: RunFolder) -> None:
    key = jax.random.key(bench.results.seed)
    with stopwatch() as elapsed, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reduction = reduce_network(
            bench.network,
            bench.calibration,
            {FIRST: keep, LAST: keep},
            METHODS[method],
            key=key,
        )
        jax.block_until_ready(reduction.network.params)
    _measure(bench, method, BOTH, keep, reduction, elapsed)
    for tap in (FIRST, LAST):
        _interchange(bench, method, f"{BOTH}-{tap}", tap, keep, reduction)
    _store(run, bench.results.seed, f"{method}-both-keep{keep}", reduction)


def _measure(bench: Bench, method: str, variable: str, keep: int, reduction: Reduction, elapsed: Time) -> None:
    """Compare without interventions."""
    outputs = np.asarray(factual_outputs(reduction.network, bench.images))
    smaller = bill(reduction.network, bench.images.shape[1:])
    losses = bounded_losses(bench.outputs, outputs)["zero_one"]
    compared = (jnp.asarray(outputs), jnp.asarray(bench.outputs), None)
    ends = interval(losses, bench.config.delta, running=False)
    bench.results.add(
        method,
        variable,
        f"keep{keep}",
        accuracy=accuracy(outputs.argmax(-1), bench.labels),
        agreement=1 - losses.mean(),
        agreement_low=1 - float(ends.upper),
        agreement_high=1 - float(ends.lower),
        kl=float(KL.compare(*compared).mean()),
        distortion=float(LOGIT.compare(*compared).mean()),
        risk=sum(risk or 0.0 for risk in reduction.plan.risks),
        parameters=smaller.parameters,
        multiply_adds=smaller.multiply_adds,
        seconds=elapsed.run,
        seconds_compile=elapsed.compile,
    )
    if method == bench.config.methods[0]:
        seconds = latency(reduction.network, bench.images[:LATENCY_ROWS])
        bench.results.add(method, variable, f"keep{keep}", latency=seconds)


def _interchange(bench: Bench, method: str, variable: str, tap: str, keep: int, reduction: Reduction) -> None:
    """Compare under interventions at one tap, at every strength, beside the controls."""
    kept = next(np.asarray(fold.kept) for fold in reduction.plan.folds if fold.tap == tap)
    dense, smaller = view(bench.network, tap, kept), reduction.view(tap)
    dense_states, states = (recorded_states(each, bench.images) for each in (dense, smaller))
    idle = np.asarray(factual_outputs(reduction.network, bench.images))
    for p in bench.config.probabilities:
        generator = np.random.default_rng([bench.results.seed, keep, round(1e6 * p)])
        trials = bernoulli_trials(
            generator, examples=len(bench.images), units=keep, probability=p, trials=bench.config.trials
        )
        elsewhere = Trials(trials.base, np.roll(trials.source, 1), trials.masks)
        expected = np.asarray(interchanged_outputs(dense, bench.images, trials, states=dense_states))
        outputs = {
            method: interchanged_outputs(smaller, bench.images, trials, states=states),
            f"control-ignored-{method}": idle[trials.base],
            f"control-shuffled-{method}": interchanged_outputs(smaller, bench.images, elsewhere, states=states),
        }
        losses = {name: bounded_losses(expected, np.asarray(each)) for name, each in outputs.items()}
        missed = np.stack([each["zero_one"] for each in losses.values()])
        ends = interval(missed, bench.config.delta, running=False)
        split = f"keep{keep}-p{p:g}"
        for row, name in enumerate(losses):
            values = {"iia": 1 - missed[row].mean(), "iia_low": 1 - ends.upper[row], "iia_high": 1 - ends.lower[row]}
            bench.results.add(name, variable, split, **values, pairs=len(trials.base))
        clipped = {metric: losses[method][metric].mean() for metric in ("clipped_kl", "clipped_l2")}
        bench.results.add(
            method, variable, split, **clipped, **_followed(bench.outputs[trials.base], expected, missed[0])
        )


def _followed(before: np.ndarray, after: np.ndarray, missed: np.ndarray) -> dict[str, float]:
    """Return how often the dense network changes its class, and how often the reduced one then chooses the same."""
    changed = before.argmax(-1) != after.argmax(-1)
    if not changed.any():
        return {"changed": 0.0}
    hits = int((changed & (missed == 0)).sum())
    low, high = binomial_interval(hits, int(changed.sum()))
    share = {"followed": hits / changed.sum(), "followed_low": float(low), "followed_high": float(high)}
    return {"changed": changed.mean(), **share}


def _effects(bench: Bench) -> dict[str, np.ndarray]:
    """Set the curvature score of each unit of the last layer beside what replacing it really does."""
    ranking = rank_units(bench.network, bench.calibration, LAST, METHODS["kl-const"])
    best = constant_risk(ranking.statistics)
    effects = replacement_effects(ranking.network, bench.calibration.inputs, LAST, best.constant)
    return {
        "effects/score": best.score.astype(np.float32),
        "effects/measured": np.asarray(effects, np.float32),
        "effects/variance": np.asarray(ranking.statistics.variance, np.float32),
    }


def _store(run: RunFolder, seed: int, name: str, reduction: Reduction) -> None:
    """Keep the reduced network: its plan, and its weights by name."""
    folder = run.path / "networks" / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    reduction.plan.save(folder / f"{name}.plan.safetensors")
    run.write_params(folder / f"{name}.params.safetensors", reduction.network.params)


EXPERIMENT = Experiment(NAME, Options, run_seed, random_seeds, Report(tables, draw, reduced), costs=costs)
