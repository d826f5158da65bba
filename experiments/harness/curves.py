"""What a reduction run says on its page: lines of what is lost by what is kept, and where units were kept."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from abstraction.evaluation import mean_interval
from experiments.harness.metrics import Metrics


class Point(NamedTuple):
    """One reduced network, or the mean of one per seed.

    Attributes:
      share: of the units, 0 to 1.
      value: what was measured; low, high: its interval, NaN where there is none.
      units: the share in words, `64 of 128 units`.
      note: what else is to be said of it.
    """

    share: float
    value: float
    low: float = np.nan
    high: float = np.nan
    units: str = ""
    note: str = ""


class Curves(NamedTuple):
    """One measure of reduced networks, a line per method.

    Attributes:
      group: what was reduced.
      what: the measure, with its unit.
      lines: the points of every method, by its name.
      ours: methods that are no rivals of each other; the first that ran speaks.
      lot: the control, which keeps units by lot.
      lower: whether less is better; otherwise a network loses what it is below the dense one.
      dense: the dense network's value, NaN where it is not known.
      spoken: whether the verdicts are of this measure.
      certified: whether the intervals are certificates.
    """

    group: str
    what: str
    lines: Mapping[str, Sequence[Point]]
    ours: tuple[str, ...] = ()
    lot: str = "random"
    lower: bool = True
    dense: float = np.nan
    spoken: bool = False
    certified: bool = False


class KeptMap(NamedTuple):
    """How much of every block each method keeps: a count for each method and block, and the whole of a block."""

    title: str
    methods: Sequence[str]
    counts: np.ndarray
    whole: int


class Reduced(NamedTuple):
    """What the page of a reduction run draws beside its tables."""

    curves: Sequence[Curves]
    kept: Sequence[KeptMap] = ()


def seeds_point(metrics: Metrics, place: tuple[str, str, str], name: str, share: float, units: str) -> Point | None:
    """Return the mean of a measure over seeds with Student's interval of it, where there are several.

    Args:
      metrics: rows of the run.
      place: method, variable and split.
      name: the measure.
      share: of the units kept.
      units: the same in words.

    Returns:
      Nothing where it was not measured.
    """
    values = metrics.values(*place, name)
    if not len(values):
        return None
    low, high = mean_interval(values) if len(values) > 1 else (np.nan, np.nan)
    return Point(share, float(values.mean()), low, high, units)
