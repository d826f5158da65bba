"""Rows of a run, looked up by what they measure."""

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from abstraction.evaluation import binomial_interval, mean_interval
from experiments.harness.records import Row

IDENTITY = "control-identity"
"""The row of doing nothing."""


class Rate(NamedTuple):
    """An accuracy: its mean over seeds, the ends of its interval, and the lowest seed."""

    mean: float
    low: float
    high: float
    worst: float


class Metrics:
    """Rows of a run, looked up by what they measure."""

    def __init__(self, rows: Iterable[Row]):
        rows = list(rows)
        self.methods = list(dict.fromkeys(row.method for row in rows))
        self.variables = list(dict.fromkeys(row.variable for row in rows if row.metric == "iia"))
        self.seeds = list(dict.fromkeys(row.seed for row in rows))
        self._values: dict[tuple[str, str, str, str], dict[int, float]] = defaultdict(dict)
        for row in rows:
            self._values[row.method, row.variable, row.split, row.metric][row.seed] = row.value

    def tested(self) -> list[str]:
        """Return the methods with a score of their own: all but the controls of one method."""
        named = [method for method in self.methods if method == IDENTITY or not method.startswith("control-")]
        return [method for method in named if len(self.values(method, "mean", "test", "iia"))]

    def measured(self) -> list[tuple[str, str, str, str]]:
        """Return (method, variable, split, metric) of everything that was measured."""
        return list(self._values)

    def values(self, method: str, variable: str, split: str, metric: str) -> np.ndarray:
        """Return one value per seed, in the order of the seeds; empty where nothing was measured."""
        return np.array(list(self._values.get((method, variable, split, metric), {}).values()))

    def mean(self, method: str, variable: str, split: str, metric: str) -> float:
        """Return the mean over seeds, NaN where nothing was measured."""
        values = self.values(method, variable, split, metric)
        return float(values.mean()) if len(values) else float("nan")

    def rate(self, method: str, variable: str, split: str) -> Rate | None:
        """Return an accuracy with its interval: the wider of the pooled binomial one and Student's t over seeds.

        A split reported with its two halves is their mean, and its binomial bounds are the means of theirs. Where not
        every variable has both halves, the bounds of the mean are the means of the variables'.
        """
        accuracy = self.values(method, variable, split, "iia")
        if not len(accuracy):
            return None
        owners = [v for v in self.variables if v != "mean" and len(self.values(method, v, split, "iia"))]
        lopsided = len({tuple(self._parts(method, v, split)) for v in owners}) > 1
        if variable == "mean" and lopsided:
            low, high = np.mean([self._bounds(method, owner, split) for owner in owners], axis=0)
        else:
            low, high = self._bounds(method, variable, split)
        if len(accuracy) > 1:
            t_low, t_high = mean_interval(accuracy)
            low, high = min(low, t_low), max(high, t_high)
        return Rate(float(accuracy.mean()), max(float(low), 0.0), min(float(high), 1.0), float(accuracy.min()))

    def _parts(self, method: str, variable: str, split: str) -> list[str]:
        """Return the two halves of a split, or the split where it is not reported in halves."""
        halves = [f"{split}-sensitive", f"{split}-invariant"]
        return halves if all(len(self.values(method, variable, half, "iia")) for half in halves) else [split]

    def _bounds(self, method: str, variable: str, split: str) -> np.ndarray:
        return np.mean([self._pooled(method, variable, part) for part in self._parts(method, variable, split)], axis=0)

    def _pooled(self, method: str, variable: str, split: str) -> tuple[float, float]:
        accuracy, pairs = (self.values(method, variable, split, name) for name in ("iia", "pairs"))
        low, high = binomial_interval((accuracy * pairs).sum(), pairs.sum())
        return float(low), float(high)
