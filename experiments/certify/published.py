"""Published numbers of certified interventional fidelity (CIF, UAI 2026), in the form of a run's.

The network is the MNIST network of 784-512-512-10 units and seed 0, the site its second hidden layer, reduced by
`cip-affine` and `cip-const` (affine and constant replacement after the curvature score on labels), `vbp`
(variance-based pruning, means) and `random`. Another network, such as one that is trained here, has other numbers.

`published.csv` names methods, studies, splits and metrics as `metrics.csv` does, and where each number is from. Trials
are infinite where 10,000 certified nothing; those of the adaptive study are medians and quartiles of five streams of at
most 5,000. Published bets are two-sided. All 512 units give an IIA of 1.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.harness.records import Row

TRIALS, COVERAGE_TRIALS, LEVEL, ALPHA = 10_000, 2000, 0.05, 0.3
FIDELITIES = (0.9, 0.95, 0.99)

NETWORK = "dfb4a99c2012fa2436d7fa560654788b73c642a1cb7e778ef3059fed0818ce6b"
"""Digest of the parameters of the network these numbers are of."""


class Estimate(NamedTuple):
    """An IIA: the point value of independent trials, its betting interval, the point value of adaptive trials."""

    value: float
    low: float
    high: float
    adaptive: float


def _rows() -> Iterator[Row]:
    """Read the file; a pair of methods is given in both orders."""
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            what = line["method"], line["variable"], line["split"], line["metric"]
            row = Row("certify", *what, 0, float(line["value"]))
            yield row
            if ":" in row.method:
                value = -row.value if row.metric == "difference" else row.value
                yield row._replace(method=":".join(reversed(row.method.split(":"))), value=value)


def _estimates() -> dict[tuple[str, int, float], Estimate]:
    """Gather the four numbers of every cell."""
    found: dict[tuple[str, int, float], dict[str, float]] = defaultdict(dict)
    for row in ROWS:
        cell = re.fullmatch(r"keep(\d+)-p([\d.]+)-(iid|adaptive)", row.split)
        if row.variable == "certification" and cell is not None:
            name = "adaptive" if cell[3] == "adaptive" else {"iia": "value"}.get(row.metric, row.metric)
            found[row.method, int(cell[1]), float(cell[2])][name] = row.value
    return {key: Estimate(**numbers) for key, numbers in found.items()}


ROWS = list(_rows())
IIA = _estimates()
"""By method, kept units and p."""
