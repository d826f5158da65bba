"""How well a handle plays its variable: accuracy, intervals, controls."""

from abstraction.evaluation.confidence import binomial_interval, mean_interval
from abstraction.evaluation.controls import full_state_handles, identity_handle, random_subspaces, shuffled_order
from abstraction.evaluation.iia import Tally, cross_entropy, tally_handles, top_class, unique_handles
from abstraction.evaluation.judging import Controls, Tests, judge, judge_controls
from abstraction.evaluation.metrics import accuracy, balanced_accuracy

__all__ = [
    "Controls",
    "Tally",
    "Tests",
    "accuracy",
    "balanced_accuracy",
    "binomial_interval",
    "cross_entropy",
    "full_state_handles",
    "identity_handle",
    "judge",
    "judge_controls",
    "mean_interval",
    "random_subspaces",
    "shuffled_order",
    "tally_handles",
    "top_class",
    "unique_handles",
]
