"""Reduction of a language model: fewer MLP units, or fewer heads, in all blocks, without training.

    python -m experiments lm-reduction

One pass over a calibration text gives the statistics of all blocks; every method ranks and replaces by them, so all of
them see the same. Measured on held-out text of two kinds, docstrings of other modules of Python's library and what the
network itself writes: log-perplexity beside the dense network's, KL from it, and how often both choose the same token;
on prompts with an indirect object: how many are still answered, and whether the name that is to be said is still
carried by the residual stream of the last token where it is in the dense network, told by full swaps.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np

from abstraction.evaluation.text import DenseText, dense_text, score_text
from abstraction.models import Network
from abstraction.models.decoder_unrolled import stacked_decoder
from abstraction.models.network import params_digest
from abstraction.reduction import METHODS, Plan, bill, compile_plan
from abstraction.reduction.blocks import (
    Part,
    Spread,
    block_budgets,
    fold_blocks,
    folded_decoder,
    rank_blocks,
    unrolled_network,
)
from abstraction.reduction.compiling import latency
from abstraction.reduction.ranking import Ranking
from abstraction.reduction.text import TextStatistics, text_statistics
from experiments.harness.meshes import parsed_mesh, placed
from experiments.harness.methods import Tell
from experiments.harness.records import RunFolder, Unit, digest
from experiments.harness.report import Report
from experiments.harness.results import Results
from experiments.harness.running import Experiment
from experiments.harness.timing import Time, stopwatch
from experiments.lm_reduction.cost import costs
from experiments.lm_reduction.curves import reduced
from experiments.lm_reduction.exporting import Exports
from experiments.lm_reduction.figures import draw
from experiments.lm_reduction.options import NAME, LmReduction, Text
from experiments.lm_reduction.subject import (
    Indirect,
    Subject,
    indirect_objects,
    load_subject,
    own_rows,
    prompt_rows,
    python_rows,
    recorded,
    swapped,
)
from experiments.lm_reduction.tables import tables

ARRIVED = 0.95
"""The share of full swaps that must be followed where the name is said to be at the last token."""


class Bench(NamedTuple):
    """What every reduced network is tested on.

    Attributes:
      subject: the dense network.
      unrolled: the same in the form that units are removed from.
      tests: held-out texts.
      losses: mean surprise of the dense network on each.
      indirect: prompts with an indirect object.
      block: after which the name is at the last token.
      config: the options.
      results: what has been measured.
      exports: where reduced networks are written, if they are.
    """

    subject: Subject
    unrolled: Network
    tests: dict[str, DenseText]
    losses: dict[str, float]
    indirect: Indirect
    block: int
    config: LmReduction
    results: Results
    exports: Exports | None = None


def run_seed(config: LmReduction, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Reduce a network on every calibration text, and return the seed's unit."""
    results, key = Results(NAME, seed), jax.random.key(seed)
    tell("network and texts")
    subject = load_subject(config.network.model, parsed_mesh(config.mesh))
    run.belongs_to("network", params_digest(subject.network.params))
    calibrations, tests = _texts(config, subject, seed, key)
    bench = _bench(config, subject, tests, results, tell)
    bench = bench._replace(exports=Exports.of(config, subject, run.path / "exported" / f"seed-{seed}"))
    results.details.update(network=subject.name, data=digest({**_named("calibration", calibrations), **tests}), kept={})
    for place, (name, rows) in enumerate(calibrations.items()):
        _calibrated(bench, run, (name, rows), place == 0, key, tell)
    return results.unit


def _calibrated(
    bench: Bench, run: RunFolder, text: tuple[Text, np.ndarray], full: bool, key: jax.Array, tell: Tell
) -> None:
    """Reduce by one calibration text; every method and part of the network is a part of the seed."""
    name, rows = text
    run_on = bench.config.methods if full else bench.config.elsewhere

    @cache
    def statistics() -> tuple[TextStatistics, Time]:
        tell(f"statistics of {name}")
        drawn = sorted({METHODS[method].discrepancy for method in run_on})
        with stopwatch() as elapsed:
            size, own = bench.config.batch_size, jax.random.fold_in(key, 7)
            found = text_statistics(bench.subject.network, rows, own, discrepancies=drawn, batch_size=size)
        return found, elapsed

    bench.results.part(run, f"statistics-{name}", lambda part: part.took(f"statistics-{name}", statistics()[1]))
    for method, part in itertools.product(run_on, bench.config.parts):

        def reduce(own: Results, method: str = method, part: Part = part) -> None:
            _method(bench._replace(results=own), statistics()[0], name, method, part, full, tell)

        bench.results.part(run, f"{name}-{part}-{method}", reduce)


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"order of modules and prompts, PCG64": seed, "written text, draws, random orders, jax key": seed}


def _texts(
    config: LmReduction, subject: Subject, seed: int, key: jax.Array
) -> tuple[dict[Text, np.ndarray], dict[str, np.ndarray]]:
    texts = config.texts
    python, held_out = python_rows(subject, texts, seed)
    # What the network writes for tests is the same for all seeds, as the held-out modules are.
    own_test = own_rows(subject, texts.test, texts.length, jax.random.key(2**20))
    calibrations: dict[Text, np.ndarray] = {}
    for name in config.calibrations:
        if name == "python":
            calibrations[name] = python
        elif name == "own":
            calibrations[name] = own_rows(subject, texts.calibration, texts.length, jax.random.fold_in(key, 3))
        else:
            calibrations[name] = prompt_rows(subject, config, seed)
    return calibrations, {"python": held_out, "own": own_test}


def _named(what: str, arrays: dict[Text, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{what} {name}": values for name, values in arrays.items()}


def _bench(config: LmReduction, subject: Subject, tests: dict[str, np.ndarray], results: Results, tell: Tell) -> Bench:
    """Measure the dense network."""
    tell("the dense network")
    size, dense = config.batch_size, subject.network
    read = {name: dense_text(dense, rows, batch_size=size) for name, rows in tests.items()}
    losses = {}
    for name, text in read.items():
        losses[name] = float(score_text(dense, text, batch_size=size).surprise.mean())
        results.add("dense", "network", name, surprise=losses[name])
    indirect = indirect_objects(subject, config.texts.prompts, results.seed)
    view, pairs = recorded(dense, subject, indirect)
    followed = swapped(view, pairs)
    block = int(np.argmax(followed >= ARRIVED)) if (followed >= ARRIVED).any() else len(followed) - 1
    results.arrays["dense/followed"] = followed.astype(np.float32)
    results.add("dense", "network", "ioi", accuracy=_right(pairs), followed=followed[block], block=block)
    whole = bill(dense, (config.texts.length,), dtype=np.int32)
    seconds = latency(dense, next(iter(tests.values()))[:size], repeats=3) / (size * config.texts.length)
    results.add("dense", "network", "cost", **whole._asdict(), seconds_a_token=seconds)
    return Bench(subject, unrolled_network(dense), read, losses, indirect, block, config, results)


def _right(pairs) -> float:
    """Return the share of base prompts that are answered with the indirect object."""
    expected = np.asarray(pairs.bank.factual)
    return float((np.asarray(pairs.runs.outputs).argmax(-1) == expected).mean())


def _method(
    bench: Bench, statistics: TextStatistics, text: Text, method: str, part: Part, full: bool, tell: Tell
) -> None:
    """Rank the blocks once, and reduce to every budget."""
    config, key = bench.config, jax.random.fold_in(jax.random.key(bench.results.seed), 11)
    keeps = config.keeps if full else (config.elsewhere_keep,)
    tell(f"{text}, {part}, {method}")
    # One budget over all blocks may take more out of one than the same share would.
    least = min(keeps) / 2 if full and "global" in config.spreads else min(keeps)
    with stopwatch() as ranking:
        ranked = list(rank_blocks(bench.unrolled, statistics, part, METHODS[method], share=least, key=key))
    for spread in config.spreads if full else ("uniform",):
        for keep in keeps:
            _reduce(bench, ranked, (text, method, part), keep, spread, ranking)


def _reduce(
    bench: Bench, ranked: Sequence[Ranking], place: tuple[Text, str, Part], keep: float, spread: Spread, ranking: Time
) -> None:
    text, method, part = place
    with stopwatch() as folding:
        plan = fold_blocks(ranked, block_budgets(ranked, keep, spread))
        network = placed(folded_decoder(bench.unrolled, plan), bench.config.mesh)
    row, variable, split = f"{method}", f"{part}-{spread}", f"{text}-keep{keep:g}"
    elapsed = ranking + folding
    bench.results.add(row, variable, split, seconds=elapsed.run, seconds_compile=elapsed.compile)
    _measure(bench, network, row, variable, split)
    kept = [len(fold.kept) for fold in plan.folds]
    bench.results.arrays[f"{row}/{variable}/{split}/kept"] = np.asarray(kept, np.int32)
    if method == bench.config.methods[0]:
        _cost(bench, plan, row, variable, split)


def _measure(bench: Bench, network: Network, row: str, variable: str, split: str) -> None:
    """Let a reduced network predict the held-out texts and answer the prompts."""
    size, values = bench.config.batch_size, {}
    for name, text in bench.tests.items():
        scores = score_text(network, text, batch_size=size)
        values[f"loss_{name}"] = float(scores.surprise.mean()) - bench.losses[name]
        values[f"kl_{name}"] = float(scores.kl.mean())
        values[f"agreement_{name}"] = float(scores.agrees.mean())
    view, pairs = recorded(network, bench.subject, bench.indirect)
    values |= {"accuracy": _right(pairs), "followed": float(swapped(view, pairs, [bench.block])[0])}
    bench.results.add(row, variable, split, **values)


def _cost(bench: Bench, plan: Plan, row: str, variable: str, split: str) -> None:
    """Make the smaller network, and bill it; where blocks have one shape, time it too."""
    smaller, length = compile_plan(bench.unrolled, plan), bench.config.texts.length
    bench.results.add(row, variable, split, **bill(smaller, (length,), dtype=np.int32)._asdict())
    if bench.exports is not None:
        bench.exports.write(smaller, row, variable, split)
    shapes = {(shape.groups, shape.hidden) for shape in smaller.model.blocks}  # pyright: ignore[reportAttributeAccessIssue]
    if len(shapes) != 1 or not smaller.model.blocks[0].even:  # pyright: ignore[reportAttributeAccessIssue]
        return
    stacked, rows = Network(*stacked_decoder(smaller.model, smaller.params)), bench.tests["python"].tokens  # pyright: ignore[reportArgumentType]
    size = bench.config.batch_size
    seconds = latency(stacked, rows[:size], repeats=3) / (size * length)
    bench.results.add(row, variable, split, seconds_a_token=seconds)


EXPERIMENT = Experiment(NAME, LmReduction, run_seed, random_seeds, Report(tables, draw, reduced), costs=costs)
