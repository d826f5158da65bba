"""Confidence intervals for rates and for means over seeds."""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import special

LEVEL = 0.95
Counts: TypeAlias = int | float | np.generic | np.ndarray


def binomial_interval(
    hits: Counts, trials: Counts, level: float = LEVEL
) -> tuple[Float[np.ndarray, "*H"], Float[np.ndarray, "*H"]]:
    """Return the Clopper-Pearson interval of a success probability.

        low = BetaInv(a/2; k, n - k + 1),   high = BetaInv(1 - a/2; k + 1, n - k),   a = 1 - level

    Exact: the coverage is at least `level` for every probability, also next to 0 and 1 where most IIAs lie. It
    assumes independent trials; pairs that share inputs are not, and then it is too narrow.

    Args:
      hits: successes k, 0 <= k <= n.
      trials: trials n; with n = 0 the interval is [0, 1].
      level: coverage, in (0, 1).

    Raises:
      ValueError: counts or level out of range, or not numbers.
    """
    hits, trials = np.asarray(hits, float), np.asarray(trials, float)
    if not (np.all((hits >= 0) & (hits <= trials) & np.isfinite(trials)) and 0 < level < 1):
        raise ValueError(
            f"got hits {hits} of trials {trials} at level {level}, expected 0 <= hits <= trials, 0 < level < 1"
        )
    tail = (1 - level) / 2
    misses = trials - hits
    low = np.where(hits > 0, special.betaincinv(np.maximum(hits, 1), misses + 1, tail), 0.0)
    high = np.where(misses > 0, special.betaincinv(hits + 1, np.maximum(misses, 1), 1 - tail), 1.0)
    return low, high


def standard_error(hits: Counts, trials: Counts) -> Float[np.ndarray, "*H"]:
    """Return the standard deviation of a success probability under a uniform prior, which no count makes zero.

        p = (k + 1) / (n + 2),   error = sqrt(p (1 - p) / (n + 3))

    Args:
      hits: successes k, 0 <= k <= n.
      trials: trials n.
    """
    hits, trials = np.asarray(hits, float), np.asarray(trials, float)
    rate = (hits + 1) / (trials + 2)
    return np.asarray(np.sqrt(rate * (1 - rate) / (trials + 3)))


def mean_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the Student t interval of a mean over independent runs.

    Infinite for fewer than two runs, and NaN where the value of a run is NaN, which is how what was not measured is
    written.

    Raises:
      ValueError: values not in one axis, or level outside (0, 1).
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not 0 < level < 1:
        raise ValueError(f"got values of shape {values.shape} at level {level}, expected a list and 0 < level < 1")
    if len(values) < 2:
        return -np.inf, np.inf
    reach = special.stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def moments_interval(
    mean: np.ndarray, deviation: np.ndarray, count: np.ndarray, level: float = LEVEL
) -> tuple[Float[np.ndarray, "*H"], Float[np.ndarray, "*H"]]:
    """Return the Student t intervals of many means, of which the standard deviations are known.

        mean +- t(1 - a/2; n - 1) s / sqrt(n),   a = 1 - level

    Args:
      mean: of n numbers each.
      deviation: their standard deviations s, of n - 1 degrees of freedom.
      count: n; infinite intervals for fewer than two.
      level: coverage, in (0, 1).

    Raises:
      ValueError: arrays that have no shape in common, or a level out of range.
    """
    try:
        mean, deviation, count = np.broadcast_arrays(*(np.asarray(each, float) for each in (mean, deviation, count)))
    except ValueError as error:
        raise ValueError(f"got means, deviations and counts that do not fit, expected one shape: {error}") from error
    if not 0 < level < 1:
        raise ValueError(f"got level {level}, expected 0 < level < 1")
    several = np.maximum(count, 2)
    reach = special.stdtrit(several - 1, (1 + level) / 2) * deviation / np.sqrt(several)
    reach = np.where(count > 1, reach, np.inf)
    return mean - reach, mean + reach
