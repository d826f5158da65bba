"""Multiple choice about colours (MCQA, CopyColors), the main benchmark of the PLOT paper.

    python -m experiments mcqa                                         # a small decoder that ships with the project
    python -m experiments mcqa --network.model google/gemma-2-2b       # a model of yours (extra `hub`)
    python -m experiments mcqa --explain                               # what it would cost, and stop

Finds the answer pointer and the answer in the residual stream at the last token by every method, and tests each frozen
handle once, beside its controls. The score is the combined IIA, the mean of the accuracies on pairs that must change
the output and on those that must not, by the strict scorer: the largest logit of the whole vocabulary must be the right
letter. Rows named `*-v1` and `*-v4` are the paper's variants of May and October 2026. Published, on Gemma-2-2B and one
A40: Full DAS .896 in 509.6 minutes, PLOT-DAS .875 in 25.3.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from abstraction.models import TokenView
from experiments.harness.checks import check_mcqa
from experiments.harness.methods import Bench, control_rows, keep_choice, test_outcome
from experiments.harness.printing import show_parts
from experiments.harness.progressive import Stages, run_method
from experiments.harness.records import Row, RunFolder, Unit, digest
from experiments.harness.running import Experiment
from experiments.harness.timing import Time, stopwatch
from experiments.mcqa.cost import Shape, memory
from experiments.mcqa.cost import table as explanation
from experiments.mcqa.judging import layer_sweep, scorer_rows, write_mib
from experiments.mcqa.network import retrain as retrain_network
from experiments.mcqa.options import MCQA_METHODS, VARIANTS, Mcqa, for_width, quick
from experiments.mcqa.subject import Questions, Subject, load_shape, load_subject, make_bench, make_questions

NAME = "mcqa"


def run_seed(config: Mcqa, seed: int, run: RunFolder, report: Callable[[str], None]) -> Unit:
    """Load the network, run every method on one seed's pairs, and return the seed's unit."""
    keys = dict(zip(MCQA_METHODS, jax.random.split(jax.random.key(seed), len(MCQA_METHODS)), strict=True))
    report(f"seed {seed}: network")
    subject = load_subject(config.network)
    config = for_width(config, subject.decoder.config.width, subject.decoder.config.depth)
    report(f"seed {seed}: pairs")
    with stopwatch() as making:
        questions = make_questions(config.banks, subject, seed)
    report(f"seed {seed}: recording")
    with stopwatch() as recording:
        bench = make_bench(subject, questions, config)
    rows = [*_network_rows(subject, questions, making, recording, seed), *control_rows(bench, NAME, seed)]
    details: dict[str, Any] = {"data": data_digest(questions), "network": describe(subject, questions)}
    stages = Stages(config, bench, protocols=VARIANTS)
    arrays: dict[str, np.ndarray] = {}
    chosen = {}
    for method in config.methods:
        say = lambda text, method=method: report(f"seed {seed}: {method}, {text}")
        say("running")
        outcome = run_method(stages, method, keys[method], say)
        tested = test_outcome(
            bench, outcome, experiment=NAME, method=method, seed=seed, key=jax.random.fold_in(keys[method], 1),
            draws=config.control_draws, shuffles=config.control_shuffles,
        )  # fmt: skip
        more, hits = scorer_rows(bench, subject, questions, outcome.choice.handles, method, seed)
        rows += [*tested[0], *more]
        keep_choice(run.path, bench, outcome.choice, f"{method}-seed-{seed}")
        details[method] = tested[1]
        arrays |= {**tested[2], f"{method}/hits": hits}
        chosen[method] = outcome.choice.handles, hits
    report(f"seed {seed}: sweep of layers and positions")
    arrays["sweep"], details["positions"] = layer_sweep(subject, questions, config)
    details["memory"] = held_memory(config, subject, questions, bench)
    write_mib(run.path / "mib", subject, questions, chosen, seed)
    return Unit(f"seed-{seed}", rows, details, arrays)


def explain(config: Mcqa) -> None:
    """Print what a run would cost."""
    config = quick(config) if config.quick else config
    check_mcqa(config)
    shape = load_shape(config)
    show_parts(explanation(for_width(config, shape.decoder.width, shape.decoder.depth), shape))


def retrain(config: Mcqa) -> None:
    """Train the small decoder again.

    Raises:
      ValueError: there is no --out.
    """
    if config.out is None:
        raise ValueError("got --retrain without --out, expected the folder to write the network to")
    retrain_network(config.out)


def describe(subject: Subject, questions: Questions) -> dict[str, Any]:
    """Say which network this is."""
    shape = subject.decoder.config
    parameters = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(subject.network.params))
    return {
        "name": subject.name,
        "parameters": parameters,
        "width": shape.width,
        "depth": shape.depth,
        "tokens": questions.length,
        "accuracy": questions.accuracy,
    }


def held_memory(config: Mcqa, subject: Subject, questions: Questions, bench: Bench) -> dict[str, float]:
    """Return the estimate of `--explain` and, where the device tells, the peak; both in bytes."""
    model = bench.network.model
    window = model.window if isinstance(model, TokenView) else 1
    held = memory(config, Shape(subject.decoder.config, questions.length, window))
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"estimated": float(sum(held.values()))} | ({} if peak is None else {"peak": float(peak)})


def data_digest(questions: Questions) -> str:
    """Return the SHA-256 of all pairs."""
    arrays = {
        f"{name}/{side}/{variable}": values
        for name, bank in questions.banks.items()
        for side, setting in (("base", bank.bank.base), ("source", bank.bank.source))
        for variable, values in setting.items()
    }
    return digest(arrays)


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"jax key": seed, "pairs": seed}


def _network_rows(subject: Subject, questions: Questions, making: Time, recording: Time, seed: int) -> list[Row]:
    shape = subject.decoder.config
    known = {"accuracy": questions.accuracy, "width": shape.width, "depth": shape.depth, "tokens": questions.length}
    rows = [Row(NAME, "backbone", "output", "validation", name, seed, float(value)) for name, value in known.items()]
    for name, elapsed in (("banks", making), ("recording", recording)):
        rows.append(Row(NAME, name, "mean", "test", "seconds", seed, elapsed.run))
        rows.append(Row(NAME, name, "mean", "test", "seconds_compile", seed, elapsed.compile))
    return rows


EXPERIMENT = Experiment(NAME, run_seed, random_seeds, check_mcqa, quick)
