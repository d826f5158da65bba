"""Certified interventional fidelity of reduced networks: F = 1 - R, R the rate at which dense and reduced differ.

    python -m experiments certify --network.checkpoint ../shared/data/mnist_mlp_seed0.npz

Reduces the second hidden layer of a digit classifier (CMR, arXiv 2602.24266, beside the methods it is compared with)
on calibration images of the training set, and interchanges its kept units between test images, each with probability
p (CIF: Asiaee, UAI 2026). Six studies, a table each: trials to certify or refute a fidelity, by betting and by
Hoeffding, with independent and with adaptively drawn trials; paired differences of methods on the same trials; three
measures of disagreement; coverage of the confidence sequences; adaptive sampling; margin certificates.

Expected with the published network: its columns stand beside ours and agree but for the draws, IIA within .01; all
units kept certify after 64, 125 and 613 trials by betting, 889 and 4172 by Hoeffding; `cip-const` never certifies.
Two minutes per seed on two cores. Nothing is chosen by what is measured here, so test images are used freely.
"""

import dataclasses
import itertools
from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Array

from abstraction.evaluation.certification import certify, compare_risks
from abstraction.evaluation.margins import certified_margins, margin_bounds
from abstraction.evaluation.proposals import largest_weight
from abstraction.evaluation.sequences import LIMIT, confidence_sequence, hoeffding_radii, interval, log_capitals
from abstraction.models import Network
from abstraction.randomness import host_generator
from abstraction.reduction import METHODS, Calibration
from abstraction.tasks.mnist import calibration_rows
from experiments.certify import curves, figures, tables
from experiments.certify.bench import NAME, Bench, Networks, split_name
from experiments.certify.cases import ADAPTIVE_CASES
from experiments.certify.cost import costs
from experiments.certify.options import STUDIES, Certify, Study
from experiments.certify.published import NETWORK
from experiments.harness.meshes import placed
from experiments.harness.methods import Tell
from experiments.harness.records import Row, RunFolder, Unit
from experiments.harness.report import Report
from experiments.harness.results import Results
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch
from experiments.reduction.digits import loaded_digits, network, trained_network

CONFIDENCES = ("betting", "hoeffding")
GAMES = {"betting": (-LIMIT, 0.0), "betting-two-sided": (-LIMIT, LIMIT)}
"""Ranges of the bets: ours, one per side with half of delta, and the published one."""
METRICS = ("zero_one", "clipped_kl", "clipped_l2")
_TRACED = 400


Result = tuple[list[Row], dict[str, np.ndarray]]


def run_seed(config: Certify, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Train or load one network, run every study on it, and return the seed's unit."""
    data = loaded_digits(config.data, tell)
    digits = data.digits
    count = config.calibration_images
    chosen = calibration_rows(len(digits.train_images), count, seed=seed)
    params, known, made_from = trained_network(config.network, data, seed, run, tell)
    # The training has the first two keys of this seed: a longer split begins with those of a shorter one.
    reducing, *study_keys = jax.random.split(jax.random.key(seed), 3 + len(STUDIES))[2:]
    keys = dict(zip(STUDIES, study_keys, strict=True))
    calibration = Calibration(digits.train_images[chosen], digits.train_labels[chosen])
    dense = placed(Network(network(config.network, data), params), config.mesh)
    networks = Networks(dense, calibration, reducing)
    bench = Bench(config, networks, digits.test_images, seed, tell)
    results = Results(NAME, seed)
    results.rows.extend(bench.rows("output", "network", "test", **known))
    for study in config.studies:
        told = dataclasses.replace(bench, tell=lambda text, study=study: tell(f"{study}, {text}"))

        def measure(part: Results, study: Study = study, told: Bench = told) -> None:
            with stopwatch() as elapsed:
                found, traces = _STUDIES[study](told, keys[study])
            times = bench.rows("output", study, "test", seconds=elapsed.run, seconds_compile=elapsed.compile)
            part.rows.extend(found + times)
            part.arrays.update(traces)
            part.details["warnings"] = networks.warnings

        results.part(run, study, measure)
    about = {
        "images": data.name,
        "width": networks.width,
        "calibration": count,
        "evaluation": len(digits.test_images),
        "published": made_from["data"] == NETWORK,
    }
    results.details.update({**made_from, NAME: about, "options": dataclasses.asdict(config)})
    return results.unit


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"jax key": seed, "calibration rows": seed}


def _certification(bench: Bench, key: Array) -> Result:
    config, rows = bench.config, []
    shown = (bench.units(config.paired.keep), config.probabilities[0])
    traced: dict[str, np.ndarray] = {}
    for method, keep in itertools.product(config.methods, [bench.units(keep) for keep in config.keeps]):
        bench.tell(f"{method}, {keep} units")
        pair, count = bench.networks.pair(method, keep), config.trials
        generators = {p: _generator(key, method, keep, p) for p in config.probabilities}
        independent = [bench.trials(generator, keep, p, count) for p, generator in generators.items()]
        by_norms = [bench.by_norms(generator, pair, p, count) for p, generator in generators.items()]
        losses = bench.zero_one(pair, *independent, *(trials for trials, _ in by_norms))
        for place, (p, generator) in enumerate(generators.items()):
            weighted = bench.scaled(losses[len(generators) + place], by_norms[place][1])
            streams = {"iid": (losses[place], 1.0), "adaptive": (weighted, largest_weight(config.alpha))}
            for sampling, (stream, largest) in streams.items():
                rows += _decisions(bench, method, split_name(keep, p, sampling), stream, largest, generator)
            if (keep, p) == shown:
                traced[method] = losses[place]
    return rows, _traces(config, traced, split_name(*shown))


def _decisions(
    bench: Bench, method: str, split: str, stream: np.ndarray, largest: float, generator: np.random.Generator
) -> list[Row]:
    """Certify one stream at every fidelity, in several orders."""
    config = bench.config
    ends = interval(stream, config.delta, running=False)
    risks = np.array([stream.mean(), ends.upper, ends.lower]) * largest
    iia, low, high = np.clip(1 - risks, 0.0, 1.0)
    rows = bench.rows("certification", method, split, iia=iia, low=low, high=high)
    orders = np.stack([stream, *(generator.permutation(stream) for _ in range(config.orders - 1))])
    for confidence in CONFIDENCES:
        certificate = certify(
            orders,
            np.array(config.fidelities),
            config.delta,
            w_max=largest,
            method=confidence,
            n_max=config.trials,
        )
        for place, fidelity in enumerate(config.fidelities):
            name = f"{split}-{confidence}-F{fidelity:g}"
            decided = (certificate.trials[:, place], certificate.verdict[:, place])
            rows += bench.rows("certification", method, name, **_to_stop(*decided))
    return rows


def _to_stop(trials: np.ndarray, verdicts: np.ndarray) -> dict[str, float]:
    """Sum up streams: quartiles of the trials they took, and the mean verdict (1 certified, -1 refuted)."""
    first, median, third = np.percentile(trials, (25, 50, 75))
    return {"trials": median, "trials_q1": first, "trials_q3": third, "verdict": verdicts.mean()}


def _traces(config: Certify, losses: dict[str, np.ndarray], split: str) -> dict[str, np.ndarray]:
    """Bound the fidelity after some trials, `[2, times]` per method and sequence."""
    if not losses:
        return {}
    times = np.unique(np.geomspace(1, config.trials, _TRACED).round().astype(np.int64))
    arrays = {"trace/trials": times}
    for confidence in CONFIDENCES:
        bounds = confidence_sequence(np.stack(list(losses.values())), config.delta, method=confidence)
        for place, method in enumerate(losses):
            ends = [1 - bounds.upper[place], 1 - bounds.lower[place]]
            arrays[f"trace/{method}/{split}/{confidence}"] = np.stack(ends)[:, times - 1]
    return arrays


def _paired(bench: Bench, key: Array) -> Result:
    config, options = bench.config, bench.config.paired
    keep, rows = bench.units(options.keep), []
    trials = bench.trials(host_generator(key), keep, options.probability, config.trials)
    split = split_name(keep, options.probability)
    losses = {}
    for method in config.methods:
        bench.tell(method)
        losses[method] = bench.losses(bench.networks.pair(method, keep), trials)["zero_one"]
        rows += bench.rows("paired", method, split, risk=losses[method].mean())
    pairs = list(itertools.combinations(config.methods, 2))
    first, second = (np.stack([losses[names[side]] for names in pairs]) for side in (0, 1))
    for confidence in CONFIDENCES:
        compared = compare_risks(first, second, config.delta, method=confidence)
        for place, names in enumerate(pairs):
            rows += bench.rows(
                "paired",
                ":".join(names),
                f"{split}-{confidence}",
                difference=compared.difference[place],
                low=compared.bounds.lower[place],
                high=compared.bounds.upper[place],
                radius=compared.bounds.radius[place],
                significant=compared.significant[place],
            )
    return rows, {}


def _sensitivity(bench: Bench, key: Array) -> Result:
    config, options = bench.config, bench.config.sensitivity
    keep, rows = bench.units(options.keep), []
    radius = float(hoeffding_radii(config.trials, config.delta))
    for method, probability in itertools.product(options.methods, options.probabilities):
        bench.tell(f"{method}, p = {probability:g}")
        generator = _generator(key, method, keep, probability)
        trials = bench.trials(generator, keep, probability, config.trials)
        losses = bench.losses(bench.networks.pair(method, keep), trials)
        streams = np.stack([losses[metric] for metric in METRICS])
        ends = interval(streams, config.delta, running=False)
        for place, metric in enumerate(METRICS):
            rows += bench.rows(
                "sensitivity",
                method,
                split_name(keep, probability, metric),
                fidelity=1 - streams[place].mean(),
                low=1 - ends.upper[place],
                high=1 - ends.lower[place],
                radius=radius,
            )
    return rows, {}


def _coverage(bench: Bench, key: Array) -> Result:
    options = bench.config.coverage
    keep = bench.units(options.keep)
    pair, generator = bench.networks.pair(options.method, keep), host_generator(key)
    split, rows = split_name(keep, options.probability), []
    for sampling, draw in (("iid", bench.independent), ("adaptive", bench.static)):
        bench.tell(f"{options.pool} trials, {sampling}")
        pool = draw(generator, pair, options.probability, options.pool)
        largest = 1.0 if sampling == "iid" else largest_weight(bench.config.alpha)
        rows += bench.rows("coverage", options.method, f"{split}-{sampling}", risk=pool.mean() * largest)
        streams = pool[generator.integers(len(pool), size=(options.repetitions, options.trials))]
        peeks = {sampling: slice(-1, None), f"{sampling}-peeking": slice(options.every - 1, None, options.every)}
        for name, looks in peeks.items():
            for (confidence, level), missed in _misses(streams, float(pool.mean()), options.levels, looks).items():
                protocol = f"{split}-{name}-{confidence}-delta{level:g}"
                rows += bench.rows("coverage", options.method, protocol, coverage=1 - missed.mean())
    return rows, {}


def _misses(
    streams: np.ndarray, mean: float, levels: Iterable[float], looks: slice
) -> dict[tuple[str, float], np.ndarray]:
    """Tell which streams exclude their mean at one of the looks, by sequence and level."""
    trials = np.arange(1, streams.shape[1] + 1)[looks]
    running = (np.cumsum(streams, axis=1) / np.arange(1, streams.shape[1] + 1))[:, looks]
    # A martingale per side: the mean is excluded when either has grown enough.
    sides = ((streams, mean), (1 - streams, 1 - mean))
    capitals = {
        name: [log_capitals(side, np.array([at]), bets)[:, looks, 0].max(axis=1) for side, at in sides]
        for name, bets in GAMES.items()
    }
    missed = {}
    for level in levels:
        radii = hoeffding_radii(trials, level)
        missed["hoeffding", level] = (abs(running - mean) > radii).any(axis=1)
        missed["betting", level] = np.maximum(*capitals["betting"]) >= np.log(2 / level)
        missed["betting-two-sided", level] = capitals["betting-two-sided"][0] >= np.log(1 / level)
    return missed


def _adaptive(bench: Bench, key: Array) -> Result:
    config, options, rows = bench.config, bench.config.adaptive, []
    largest = largest_weight(config.alpha)
    for name, case in ADAPTIVE_CASES.items():
        keep = bench.units(case.keep)
        pair = bench.networks.pair(case.method, keep)
        generator = _generator(key, case.method, keep, case.probability)
        bench.tell(f"{case.method}, {keep} units")
        shape = (options.repetitions, options.trials)
        drawn = [
            draw(generator, pair, case.probability, shape[0] * shape[1]) for draw in (bench.independent, bench.static)
        ]
        by_failures = [bench.history(generator, pair, case.probability, shape[1]) for _ in range(shape[0])]
        streams = {"iid": drawn[0].reshape(shape), "static": drawn[1].reshape(shape), "history": np.stack(by_failures)}
        for sampling, losses in streams.items():
            w_max = 1.0 if sampling == "iid" else largest
            certificate = certify(losses, np.array([case.fidelity]), config.delta, w_max=w_max)
            split = split_name(keep, case.probability, name, sampling, f"F{case.fidelity:g}")
            found = _to_stop(certificate.trials[:, 0], certificate.verdict[:, 0])
            rows += bench.rows("adaptive", case.method, split, **found, iia=1 - w_max * losses.mean())
    return rows, {}


def _margins(bench: Bench, key: Array) -> Result:
    config, method, rows = bench.config, bench.config.margins.method, []
    keeps = [bench.units(keep) for keep in config.keeps]
    for keep, probability in itertools.product(keeps, config.margins.probabilities):
        bench.tell(f"{method}, {keep} units, p = {probability:g}")
        trials = bench.trials(_generator(key, method, keep, probability), keep, probability, config.trials)
        outputs = bench.outputs(bench.networks.pair(method, keep), trials)
        bounds, certified = margin_bounds(*outputs), certified_margins(*outputs, config.delta)
        rows += bench.rows(
            "margins",
            method,
            split_name(keep, probability),
            disagreement=bounds.disagreement,
            plain=bounds.best_plain,
            centred=bounds.best_centred,
            per_sample=bounds.per_sample,
            certified_plain=certified.plain,
            certified_centred=certified.centred,
            certified_per_sample=certified.per_sample,
        )
    return rows, {}


def _generator(key: Array, method: str, keep: int, probability: float) -> np.random.Generator:
    """Return a generator that does not depend on what else is run."""
    for value in (list(METHODS).index(method), keep, round(probability * 1e6)):
        key = jax.random.fold_in(key, value)
    return host_generator(key)


_STUDIES = {
    "certification": _certification,
    "paired": _paired,
    "sensitivity": _sensitivity,
    "coverage": _coverage,
    "adaptive": _adaptive,
    "margins": _margins,
}
EXPERIMENT = Experiment(
    NAME, Certify, run_seed, random_seeds, Report(tables.tables, figures.draw, curves.reduced), costs=costs
)
