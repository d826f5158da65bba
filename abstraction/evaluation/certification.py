"""Certificates of interventional fidelity F = 1 - R that may be looked at after every trial.

    certified   R <= 1 - F0: the fidelity reaches F0      LCB_t(F) >= F0
    refuted     R > 1 - F0: the fidelity stays below      UCB_t(F) < F0
    undecided   neither within n_max trials (futility)

Betting tests the nulls R > 1 - F0 and R <= 1 - F0 at delta each, by one-sided bets (see `sequences`). Only one of them
can be rejected wrongly, so a verdict is wrong with probability at most delta. "betting-two-sided" is the rule of CIF
(Asiaee, UAI 2026), for comparison: the first t with log K_t(m) >= log(1/delta) and the running mean on the side of the
verdict. Losses scaled to [0, 1] by a largest weight W_max are tested at m = (1 - F0) / W_max.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.evaluation.losses import checked_losses, unit_losses
from abstraction.evaluation.sequences import (
    LIMIT,
    METHODS,
    Bounds,
    crossing_times,
    hoeffding_radii,
    interval,
    log_capitals,
)
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray

CERTIFIED, UNDECIDED, REFUTED = 1, 0, -1
N_MAX = 10_000


@pytree
class Certificate:
    """Where each stream stopped for each threshold.

    Attributes:
      thresholds: fidelities F0, `[C]`.
      verdict: `CERTIFIED`, `REFUTED` or `UNDECIDED`, `[*B, C]`.
      trials: trials looked at: until the verdict, or all of them, `[*B, C]`.
    """

    thresholds: Float[np.ndarray, " C"]
    verdict: Int[np.ndarray, "*B C"]
    trials: Int[np.ndarray, "*B C"]

    @property
    def certified(self) -> Bool[np.ndarray, "*B C"]:
        """Whether the fidelity was shown to reach the threshold."""
        return self.verdict == CERTIFIED

    @property
    def refuted(self) -> Bool[np.ndarray, "*B C"]:
        """Whether the fidelity was shown to lie below the threshold."""
        return self.verdict == REFUTED


class Comparison(NamedTuple):
    """A paired difference of risks R1 - R2.

    Attributes:
      difference: its estimate, `[*B]`.
      bounds: its interval, ends in [-1, 1].
      significant: whether the interval excludes 0.
    """

    difference: Float[np.ndarray, "*B"]
    bounds: Bounds
    significant: Bool[np.ndarray, "*B"]


def certify(
    losses: Float[AnyArray, "*B T"],
    thresholds: Float[np.ndarray, " C"],
    delta: float,
    *,
    w_max: float = 1.0,
    method: str = "betting",
    limit: float = LIMIT,
    n_max: int = N_MAX,
) -> Certificate:
    """Test fidelities against thresholds, stopping each stream at its first verdict.

    Args:
      losses: y in [0, 1] in the order they were drawn, 1 where a network's outputs were not finite; weighted ones
        from `weighted_losses`.
      thresholds: fidelities F0 in (0, 1).
      delta: probability of a wrong verdict, for each threshold by itself.
      w_max: what the losses were divided by, at least 1.
      method: "betting", "betting-two-sided" or "hoeffding".
      limit: largest |lam| of "betting"; see `confidence_sequence`.
      n_max: trials after which to give up; later ones are not looked at.

    Raises:
      ValueError: an argument out of range.
    """
    losses, thresholds = checked_losses(losses, delta), np.asarray(thresholds, np.float64)
    _check(thresholds, w_max, method, limit)
    if isinstance(n_max, bool) or not isinstance(n_max, int | np.integer) or n_max < 1:
        raise ValueError(f"got n_max {n_max}, expected an integer of at least 1")
    losses = losses[..., :n_max]
    means = (1 - thresholds) / w_max
    if method == "betting":
        bets = (-limit, 0.0)
        certified = crossing_times(losses, means, 1 / delta, bets)
        refuted = crossing_times(1 - losses, 1 - means, 1 / delta, bets)
    else:
        below, above = _shown(losses, means, delta, method)
        certified, refuted = _first(below), _first(above)
    stop, trials = np.minimum(certified, refuted), losses.shape[-1]
    verdict = np.where(stop > trials, UNDECIDED, np.where(certified <= refuted, CERTIFIED, REFUTED))
    return Certificate(thresholds, verdict, np.minimum(stop, trials))


def paired_losses(first: Float[AnyArray, "*B T"], second: Float[AnyArray, "*B T"]) -> Float[np.ndarray, "*B T"]:
    """Map paired losses to [0, 1]: y = (Z1 - Z2 + 1) / 2, whose mean is 1/2 where the risks are equal.

    Raises:
      ValueError: losses outside [0, 1], or two numbers of trials: trials are paired, and nothing is repeated.
    """
    ones, others = unit_losses(first), unit_losses(second)
    if ones.shape != others.shape:
        raise ValueError(f"got losses of shapes {ones.shape} and {others.shape}, expected the same trials of both")
    return (ones - others + 1) / 2


def compare_risks(
    first: Float[AnyArray, "*B T"],
    second: Float[AnyArray, "*B T"],
    delta: float,
    *,
    method: str = "betting",
    limit: float = LIMIT,
) -> Comparison:
    """Bound R1 - R2 from losses of two models on the same trials.

    The range of a difference is 2, so Hoeffding's radius doubles; betting profits from trials on which both agree.

    Args:
      first: Z1 in [0, 1].
      second: Z2 in [0, 1], same base, source and mask in each trial.
      delta: probability that the interval ever misses the difference.
      method: as in `confidence_sequence`.
      limit: as in `confidence_sequence`.

    Raises:
      ValueError: losses outside [0, 1] or of different trials, or another argument out of range.
    """
    paired = paired_losses(first, second)
    ends = interval(paired, delta, method=method, limit=limit)
    bounds = Bounds(np.asarray(2 * ends.lower - 1), np.asarray(2 * ends.upper - 1))
    # An interval that has become empty excludes 0 as well: no fixed difference explains the stream.
    significant = np.asarray((bounds.lower > 0) | (bounds.upper < 0))
    return Comparison(np.asarray(2 * paired.mean(axis=-1) - 1), bounds, significant)


def _shown(
    losses: Float[np.ndarray, "*B T"], means: Float[np.ndarray, " C"], delta: float, method: str
) -> tuple[Bool[np.ndarray, "*B T C"], Bool[np.ndarray, "*B T C"]]:
    """Tell after every trial whether the mean was shown to lie below, and above, each candidate."""
    trials = np.arange(1, losses.shape[-1] + 1)
    running = (np.cumsum(losses, axis=-1) / trials)[..., None]
    if method == "hoeffding":
        radii = hoeffding_radii(trials, delta)[:, None]
        return running + radii <= means, running - radii > means
    shown = log_capitals(losses, means, (-LIMIT, LIMIT)) >= np.log(1 / delta)
    return shown & (running <= means), shown & (running > means)


def _first(shown: Bool[np.ndarray, "*B T C"]) -> Int[np.ndarray, "*B C"]:
    """Return the first trial, counted from 1, or one more than there are."""
    return np.where(shown.any(axis=-2), shown.argmax(axis=-2) + 1, shown.shape[-2] + 1)


def _check(thresholds: Float[np.ndarray, " C"], w_max: float, method: str, limit: float) -> None:
    if not (thresholds.ndim == 1 and thresholds.size and thresholds.min() > 0 and thresholds.max() < 1):
        raise ValueError(f"got thresholds {thresholds}, expected fidelities in (0, 1), in one axis")
    if not 1 <= w_max < np.inf:
        raise ValueError(f"got w_max {w_max}, expected a finite number of at least 1")
    if method not in METHODS or not 0 < limit <= 1:
        raise ValueError(f"got method {method!r} and limit {limit}, expected one of {METHODS} and a limit in (0, 1]")
