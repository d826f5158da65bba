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

from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from abstraction.evaluation import Repeats
from abstraction.models import TokenView
from abstraction.models.network import params_digest
from abstraction.tasks.symbols import LETTERS
from experiments.harness.explaining import Costs, Seen, decoder_case, searches
from experiments.harness.meshes import parsed_mesh
from experiments.harness.methods import Bench, Tell
from experiments.harness.progressive import METHODS, Stages
from experiments.harness.records import RunFolder, Unit, digest
from experiments.harness.report import Report
from experiments.harness.results import Results, seed_keys
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch
from experiments.harness.valid import require
from experiments.mcqa.cost import VARIABLES, Shape, explanation, memory
from experiments.mcqa.figures import draw
from experiments.mcqa.grids import VARIANTS, for_width
from experiments.mcqa.judging import add_scorers, layer_sweep, write_mib, written_pairs
from experiments.mcqa.network import retrain as retrain_network
from experiments.mcqa.options import METHODS as NAMES
from experiments.mcqa.options import POSITIONS, Mcqa
from experiments.mcqa.subject import ROLES, Questions, Subject, load_shape, load_subject, make_bench, make_questions
from experiments.mcqa.tables import tables

NAME = "mcqa"


def run_seed(config: Mcqa, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Load the network, run every method on one seed's pairs, and return the seed's unit."""
    keys, results = seed_keys(seed, NAMES), Results(NAME, seed, Repeats(config.control_draws, config.control_shuffles))
    tell("network")
    subject = load_subject(config.network, parsed_mesh(config.mesh))
    run.belongs_to("network", params_digest(subject.network.params))
    config = for_width(config, subject.decoder.config.width, subject.decoder.config.depth)
    tell("pairs")
    with stopwatch() as making:
        questions = make_questions(config.banks, subject, seed)
    tell("recording")
    with stopwatch() as recording:
        bench = make_bench(subject, questions, config)
    results.took("banks", making)
    results.took("recording", recording)
    results.compare(bench)
    network = describe(subject, questions)
    known = {name: network[name] for name in ("accuracy", "width", "depth", "tokens")}
    results.add("backbone", "output", "validation", **known)
    results.details.update(data=data_digest(questions), network=network)
    results.details["pairs"] = written_pairs(bench, subject, questions, config)
    stages = Stages(config, bench, protocols=VARIANTS)
    for name in config.methods:
        say = lambda text, name=name: tell(f"{name}, {text}")
        say("running")

        def search(part: Results, name: str = name, say: Tell = say) -> None:
            outcome = METHODS[name].run(stages, METHODS[name], keys[name], say)
            part.take(run.path, bench, name, outcome, jax.random.fold_in(keys[name], 1))
            add_scorers(part, bench, subject, outcome.choice.handles, name)

        results.part(run, name, search)
    tell("sweep of layers and positions")
    results.arrays["sweep"], results.arrays["sweep_got"] = layer_sweep(subject, questions, config)
    results.details.update(positions=list(POSITIONS), sweep_pairs=questions.banks["test"].bank.size)
    results.details["memory"] = held_memory(config, subject, questions, bench)
    write_mib(run.path / "mib", subject, questions, results)
    return results.unit


def instead(config: Mcqa) -> bool:
    """Train the small decoder again, where that is asked for.

    Raises:
      ValueError: there is no --out to train into.
    """
    if config.retrain:
        require("--out", config.out, config.out is not None, "the folder to write the network of --retrain to")
        retrain_network(cast(Path, config.out))
    return config.retrain


def costs(config: Mcqa) -> Costs:
    """Return what a run is counted to cost, stage by stage, and what it asks of the network."""
    shape = load_shape(config)
    wide = for_width(config, shape.decoder.width, shape.decoder.depth)
    sizes = [getattr(config.banks, role) for role in ROLES]
    depth, width = shape.decoder.depth, shape.decoder.width
    found = [
        searches("PLOT-DAS", wide.das, VARIABLES, width),
        searches("Full DAS", wide.das, VARIABLES * depth, width, depth),
    ]
    seen = Seen(shape.decoder, shape.tokens, shape.window, len(LETTERS))
    return Costs([decoder_case("mcqa", seen, (config.banks.fit, sum(sizes)), found)], explanation(wide, shape))


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


EXPERIMENT = Experiment(NAME, Mcqa, run_seed, random_seeds, Report(tables, draw), instead=instead, costs=costs)
