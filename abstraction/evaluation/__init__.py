"""How well a handle plays its variable, and a reduced network the dense one: IIA, intervals, controls, certificates."""

from abstraction.evaluation.certification import Certificate, certify
from abstraction.evaluation.confidence import binomial_interval, mean_interval
from abstraction.evaluation.controls import full_state_handles, identity_handle
from abstraction.evaluation.iia import Tally, tally_handles
from abstraction.evaluation.interchange import bernoulli_trials, interchanged_outputs
from abstraction.evaluation.judging import Repeats, Score, judge
from abstraction.evaluation.metrics import accuracy
from abstraction.evaluation.readouts import CLASSES, Bits, Classes, Readout
from abstraction.evaluation.recording import Recorded, record
from abstraction.evaluation.sequences import confidence_sequence

__all__ = [
    "CLASSES",
    "Bits",
    "Certificate",
    "Classes",
    "Readout",
    "Recorded",
    "Repeats",
    "Score",
    "Tally",
    "accuracy",
    "bernoulli_trials",
    "binomial_interval",
    "certify",
    "confidence_sequence",
    "full_state_handles",
    "identity_handle",
    "interchanged_outputs",
    "judge",
    "mean_interval",
    "record",
    "tally_handles",
]
