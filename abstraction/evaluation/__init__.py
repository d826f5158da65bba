"""How well a handle plays its variable: accuracy, intervals, controls."""

from abstraction.evaluation.confidence import binomial_interval, mean_interval
from abstraction.evaluation.controls import full_state_handles, identity_handle, random_subspaces, shuffled_order
from abstraction.evaluation.iia import Tally, tally_handles, unique_handles
from abstraction.evaluation.judging import Controls, Tests, judge, judge_controls
from abstraction.evaluation.metrics import accuracy, balanced_accuracy
from abstraction.evaluation.readouts import CLASSES, Bits, Classes, Readout

__all__ = [
    "CLASSES",
    "Bits",
    "Classes",
    "Controls",
    "Readout",
    "Tally",
    "Tests",
    "accuracy",
    "balanced_accuracy",
    "binomial_interval",
    "full_state_handles",
    "identity_handle",
    "judge",
    "judge_controls",
    "mean_interval",
    "random_subspaces",
    "shuffled_order",
    "tally_handles",
    "unique_handles",
]
