"""Published and executed reference numbers, with where each comes from.

The tables of the PLOT paper itself are not in its repository; what is known is a pre-release run of the authors and
the authors' code executed for this project (commit 96dbec5, PyTorch, CPU), which picks eps by test accuracy.
"""

from typing import NamedTuple


class Reference(NamedTuple):
    """One known number.

    Attributes:
      value: the number.
      source: where it was measured.
    """

    value: float
    source: str


EXECUTED = "authors' code executed, seeds 1-3, eps picked on test"
RELEASED = "authors' pre-release run, seed 42"

REFERENCES: dict[tuple[str, str, str, str], Reference] = {
    ("heq", "plot-ot-paper", "mean", "test"): Reference(0.9928, EXECUTED),
    ("heq", "plot-ot-paper", "mean", "test-invariant"): Reference(0.973, EXECUTED),
    ("heq", "das-paper", "mean", "test"): Reference(0.9950, EXECUTED),
    ("heq", "das-paper", "mean", "test-invariant"): Reference(1.0, EXECUTED),
    ("heq", "plot-ot-paper", "wx", "test"): Reference(0.990, RELEASED),
    ("heq", "plot-ot-paper", "yz", "test"): Reference(0.996, RELEASED),
    ("heq", "plot-uot-paper", "wx", "test"): Reference(0.990, RELEASED),
    ("heq", "plot-uot-paper", "yz", "test"): Reference(0.996, RELEASED),
    ("heq", "plot-uot-paper", "mean", "test"): Reference(0.993, RELEASED),
    ("heq", "das-paper", "wx", "test"): Reference(0.994, RELEASED),
    ("heq", "das-paper", "yz", "test"): Reference(0.998, RELEASED),
}

SAME_METHOD = {"plot-ot": "plot-ot-paper", "plot-uot": "plot-uot-paper", "das": "das-paper"}
"""Our variants are compared with the number of the paper's."""


def reference(experiment: str, method: str, variable: str, split: str) -> Reference | None:
    """Look up the known number for a table cell."""
    return REFERENCES.get((experiment, SAME_METHOD.get(method, method), variable, split))
