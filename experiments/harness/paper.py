"""Reference numbers of the PLOT paper, `paper.csv`; each stands only beside the network it was measured on.

Their sources: the authors' code run for this project (commit 96dbec5, CPU; seeds 1 to 3 of equality, given adders 0 to
2), their pre-release run, and their notes.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas as pd


class Reference(NamedTuple):
    """A known number, the network it was measured on, and who measured it how."""

    value: float
    network: str
    source: str


@cache
def references() -> dict[tuple[str, str, str, str, str], Reference]:
    """Read all numbers by experiment, method, variable, split and network."""
    frame = pd.read_csv(Path(__file__).with_name("paper.csv"))
    numbers = frame[list(Reference._fields)].itertuples(index=False, name=None)
    names = frame[["experiment", "method", "variable", "split", "network"]].itertuples(index=False, name=None)
    return {name: Reference(*number) for name, number in zip(names, numbers, strict=True)}


def reference(experiment: str, method: str, variable: str, split: str, network: str) -> Reference | None:
    """Look up the number of a method, or of the paper's variant of it, on this network."""
    names = (method, f"{method}-paper", f"{method}-v1")
    found = (references().get((experiment, name, variable, split, network)) for name in names)
    return next((number for number in found if number is not None), None)
