"""A control of everything: the same search in a network of the same shape and random weights, which has no variable."""

import dataclasses

import jax

from abstraction.evaluation.judging import judge_alone
from experiments.harness.options import changed
from experiments.harness.progressive import METHODS, Stages
from experiments.harness.results import Results, split_halves
from experiments.ioi.heads import VARIABLE
from experiments.ioi.options import Ioi
from experiments.ioi.subject import Questions, Subject, first_pairs, narrow_bench, whole_vocabulary

SEARCHED = ("full-state", "plot-das")
"""What is tried there: the best full swap, and PLOT-DAS."""


def search_untrained(
    results: Results, subject: Subject, questions: Questions, config: Ioi, position: str, key: jax.Array
) -> None:
    """Search a network of random weights for the token, at the same token of each prompt, on some of the pairs."""
    start, *rest = jax.random.split(key, 1 + len(SEARCHED))
    few = {role: first_pairs(made, config.banks.untrained) for role, made in questions.banks.items()}
    other = subject.untrained(start)
    bench = narrow_bench(other, questions._replace(banks=few), config, VARIABLE, position)
    stages = Stages(changed(config, {"das.restarts": 1}), bench)
    for name, own in zip(SEARCHED, rest, strict=True):
        outcome = METHODS[name].run(stages, METHODS[name], own, lambda text: None)
        judged = whole_vocabulary(bench)
        tallies = split_halves(judged, judge_alone(judged.network, outcome.choice.handles, judged.tests))
        part = dataclasses.replace(results, rows=[])
        part.tallied(judged, f"control-untrained-{name}", tallies)
        results.rows.extend(row for row in part.rows if row.variable != "mean")
