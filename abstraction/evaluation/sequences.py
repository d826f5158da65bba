"""Confidence sequences: intervals for the mean of losses in [0, 1] that hold at all times at once.

Hoeffding, spending delta_n = 6 delta / (pi^2 n^2) on trial n:

    b_n = scale sqrt(log(2 / delta_n) / (2n))

Betting against every candidate mean m (Waudby-Smith & Ramdas 2024, Online Newton Step bets):

    K_t = K_{t-1} (1 + lam_t (y_t - m)),   q = (y_t - m) / (1 + lam_t (y_t - m)),   A_t = A_{t-1} + q^2
    lam_{t+1} = clip(lam_t + eta q / A_t, low, high),   eta = 2 / (2 - ln 3),   K_0 = A_0 = 1,  lam_1 = 0

If the mean is m, K is a nonnegative martingale, so it ever reaches 1/delta with probability at most delta. With
lam <= 0 the same holds for every mean >= m: what such a bet rejects lies above the mean. Both one-sided sets at delta/2
make the interval; only upper ends are computed, since a lower end is one minus the upper end of 1 - y.

A candidate that was rejected once stays out, so intervals only narrow, and the whole sequence follows from one number
per candidate: the trial of its first rejection. K need not be monotone in m, so an end is the candidate next to the
outermost one still in, on its outer side: never the untested end of a bisection, which after thousands of zeros
would shrink the interval to the point 0.
"""

from math import ceil, log

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from abstraction.evaluation.losses import check_delta, checked_losses, unit_losses
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray

METHODS = ("betting", "betting-two-sided", "hoeffding")
LIMIT = 0.5
_ETA = 2 / (2 - log(3))
_TOLERANCE = 5e-6
_NEAREST = 1e-6
_EDGE = np.geomspace(_NEAREST, 1e-2, 17)
_LATTICE = np.concatenate([_EDGE, np.linspace(0.03, 0.97, 31), 1 - _EDGE[::-1]])


@pytree
class Bounds:
    """Ends of intervals: `[*B, T]` after every trial, `[*B]` after the last one.

    Attributes:
      lower: lower ends.
      upper: upper ends; below `lower` where no mean is left, which has probability delta while the mean is fixed.
    """

    lower: Float[np.ndarray, "*B"]
    upper: Float[np.ndarray, "*B"]

    @property
    def radius(self) -> Float[np.ndarray, "*B"]:
        """Half the width."""
        return np.asarray((self.upper - self.lower) / 2)


def hoeffding_radii(trials: int | Int[np.ndarray, "*T"], delta: float, scale: float = 1.0) -> Float[np.ndarray, "*T"]:
    """Return b_n, valid at all n at once.

    Args:
      trials: n, at least 1.
      delta: probability that any of the intervals misses the mean.
      scale: range of the losses: W_max for weighted losses, 2 for differences.

    Raises:
      ValueError: trials below 1, delta outside (0, 1), or a scale that is not positive and finite.
    """
    n = np.asarray(trials, float)
    check_delta(delta)
    if not (n.size and np.isfinite(n).all() and n.min() >= 1 and 0 < scale < np.inf):
        raise ValueError(f"got trials {trials} and scale {scale}, expected n >= 1 and a positive finite scale")
    return np.asarray(scale * np.sqrt(np.log(np.pi**2 * n**2 / (3 * delta)) / (2 * n)))


def fixed_radius(trials: int, delta: float) -> float:
    """Return Hoeffding's radius sqrt(log(2/delta) / (2n)), valid at one n chosen in advance.

    Raises:
      ValueError: trials below 1, or delta outside (0, 1).
    """
    check_delta(delta)
    if not 1 <= trials < np.inf:
        raise ValueError(f"got {trials} trials, expected at least 1")
    return float(np.sqrt(log(2 / delta) / (2 * trials)))


def fixed_trials(half_width: float, delta: float) -> int:
    """Return the n at which `fixed_radius` is at most `half_width`.

    Raises:
      ValueError: a half width that is not positive and finite, or delta outside (0, 1).
    """
    check_delta(delta)
    if not 0 < half_width < np.inf:
        raise ValueError(f"got half width {half_width}, expected a positive finite number")
    return ceil(log(2 / delta) / (2 * half_width**2))


def confidence_sequence(
    losses: Float[AnyArray, "*B T"],
    delta: float,
    *,
    method: str = "betting",
    limit: float = LIMIT,
    candidates: int = 448,
) -> Bounds:
    """Bound the mean after every trial of every stream.

    The ends only narrow and are rounded outwards, to candidates whose distances from the stream's mean are geometric:
    with 448 of them, by about one percent of the distance.

    Args:
      losses: y in [0, 1], in the order they were drawn.
      delta: probability that the interval ever misses the mean.
      method: "betting" (two one-sided bets), "betting-two-sided" (one bet with lam in [-1/2, 1/2]) or "hoeffding".
      limit: largest |lam| of the one-sided bets, at most 1 and fixed in advance. Above 1/2, streams far from a
        candidate reject it sooner (without losses up to twice as soon), streams close to it later.
      candidates: candidate means next to each end, beside a fixed lattice.

    Returns:
      `[*B, T]` in float64; the upper end is 1 only while 1 - 1e-6 is still in, the lower end 0 only while 1e-6 is.

    Raises:
      ValueError: losses outside [0, 1], or another argument out of range.
    """
    losses = checked_losses(losses, delta)
    if isinstance(candidates, bool) or candidates != int(candidates) or candidates < 1:
        raise ValueError(f"got {candidates} candidates, expected an integer of at least 1")
    if method == "hoeffding":
        means = np.cumsum(losses, axis=-1) / np.arange(1, losses.shape[-1] + 1)
        radii = hoeffding_radii(np.arange(1, losses.shape[-1] + 1), delta)
        lower = np.maximum.accumulate(np.maximum(means - radii, 0.0), axis=-1)
        return Bounds(lower, np.minimum.accumulate(np.minimum(means + radii, 1.0), axis=-1))
    bets, level = _game(method, delta, limit)
    streams = np.stack([1 - losses, losses]).reshape(-1, losses.shape[-1])
    ends = _upper_ends(streams, bets, level, candidates).reshape(2, *losses.shape)
    return Bounds(1 - ends[0], ends[1])


def interval(
    losses: Float[AnyArray, "*B T"],
    delta: float,
    *,
    method: str = "betting",
    limit: float = LIMIT,
    running: bool = True,
) -> Bounds:
    """Bound the mean after the last trial: `confidence_sequence` there, but found by zooming in, to 5e-6.

    Args:
      losses: y in [0, 1].
      delta: probability that the interval misses the mean.
      method: as for `confidence_sequence`.
      limit: likewise.
      running: intersect with the intervals after all earlier trials. It narrows the interval; one that looks at the
        last trial alone always lies around the sample mean, which suits a table.

    Returns:
      `[*B]` in float64.

    Raises:
      ValueError: losses outside [0, 1], or another argument out of range.
    """
    losses = checked_losses(losses, delta)
    if method == "hoeffding" and not running:
        radius = float(hoeffding_radii(losses.shape[-1], delta))
        return Bounds(np.maximum(losses.mean(-1) - radius, 0.0), np.minimum(losses.mean(-1) + radius, 1.0))
    if method == "hoeffding":
        bounds = confidence_sequence(losses, delta, method=method)
        return Bounds(np.asarray(bounds.lower[..., -1]), np.asarray(bounds.upper[..., -1]))
    bets, level = _game(method, delta, limit)
    ends = _last_upper_end(np.stack([1 - losses, losses]), bets, level, running)
    return Bounds(np.asarray(1 - ends[0]), np.asarray(ends[1]))


def upper_bound(losses: Float[AnyArray, "*B T"], delta: float, *, limit: float = LIMIT) -> Float[np.ndarray, "*B"]:
    """Bound the mean from above only, by one-sided bets at the full delta; otherwise like `interval`.

    Raises:
      ValueError: losses outside [0, 1], or another argument out of range.
    """
    losses = checked_losses(losses, delta)
    bets, _ = _game("betting", delta, limit)
    return _last_upper_end(losses, bets, 1 / delta)


def crossing_times(
    losses: Float[np.ndarray, "*B T"],
    means: Float[np.ndarray, "*M C"],
    level: float,
    bets: tuple[float, float],
    *,
    running: bool = True,
) -> Int[np.ndarray, "*B C"]:
    """Find the trial at which the capital against each candidate mean first reaches a level.

    Args:
      losses: y in [0, 1].
      means: candidates m in [0, 1], `[C]` for all streams or `[*B, C]`.
      level: 1/delta rejects with error probability delta.
      bets: the range of lam: (-limit, 0) rejects m as too high, (0, limit) as too low.
      running: a candidate once rejected stays so; otherwise it is forgiven as soon as its capital falls again.

    Returns:
      Trials counted from 1; T + 1 where the level is not reached.

    Raises:
      ValueError: losses or means outside [0, 1], means of other streams, a level that is not above 1, or bets that
        could lose more than there is.
    """
    losses, means = unit_losses(losses), np.asarray(means, np.float64)
    _check_bets(means, level, bets)
    if means.ndim > 1 and means.shape[:-1] != losses.shape[:-1]:
        raise ValueError(f"got means of shape {means.shape}, expected candidates for streams {losses.shape[:-1]}")
    shape = (*losses.shape[:-1], means.shape[-1])
    with jax.enable_x64(True):
        times = _crossing_times(
            losses.reshape(-1, losses.shape[-1]),
            np.broadcast_to(means, shape).reshape(-1, means.shape[-1]),
            *(np.float64(value) for value in (level, *bets)),
            np.bool_(running),
        )
        return np.asarray(times).reshape(shape)


def log_capitals(
    losses: Float[np.ndarray, "*B T"], means: Float[np.ndarray, " C"], bets: tuple[float, float]
) -> Float[np.ndarray, "*B T C"]:
    """Return log K_t(m) after every trial, for a few candidates m.

    Raises:
      ValueError: losses or means outside [0, 1], or bets that could lose more than there is.
    """
    losses, means = unit_losses(losses), np.asarray(means, np.float64)
    _check_bets(means, 2.0, bets)
    with jax.enable_x64(True):
        flat = losses.reshape(-1, losses.shape[-1])
        traces = np.asarray(_log_capitals(flat, means, *(np.float64(value) for value in bets)))
    return np.moveaxis(traces, 0, 1).reshape(*losses.shape, len(means))


def _check_bets(means: Float[np.ndarray, "*M C"], level: float, bets: tuple[float, float]) -> None:
    if not (means.size and means.min() >= 0 and means.max() <= 1 and 1 < level < np.inf):
        raise ValueError(f"got means {means} and level {level}, expected candidates in [0, 1] and a level above 1")
    if not -1 <= bets[0] <= 0 <= bets[1] <= 1:
        raise ValueError(f"got bets {bets}, expected a range around 0 within [-1, 1]")


def _game(method: str, delta: float, limit: float) -> tuple[tuple[float, float], float]:
    """Return the range of the bets and the capital that rejects, for one end of an interval."""
    if method not in METHODS or not 0 < limit <= 1:
        raise ValueError(f"got method {method!r} and limit {limit}, expected one of {METHODS} and a limit in (0, 1]")
    return ((-limit, 0.0), 2 / delta) if method == "betting" else ((-LIMIT, LIMIT), 1 / delta)


def _upper_ends(
    losses: Float[np.ndarray, "B T"], bets: tuple[float, float], level: float, candidates: int
) -> Float[np.ndarray, "B T"]:
    means = _candidates(losses, level, candidates, _LATTICE)
    times = _rejections(losses, means, level, bets)
    # The last trial at which a candidate or one above it was still in; it falls with the candidate.
    lasting = np.maximum.accumulate(times[:, ::-1], axis=1)
    trials = np.arange(1, losses.shape[1] + 1)
    inside = [means.shape[1] - np.searchsorted(row, trials, side="right") for row in lasting]
    return np.take_along_axis(_closed(means, 1.0), np.stack(inside), axis=1)


def _last_upper_end(
    losses: Float[np.ndarray, "*B T"], bets: tuple[float, float], level: float, running: bool = True
) -> Float[np.ndarray, "*B"]:
    streams = losses.reshape(-1, losses.shape[-1])
    means = _candidates(streams, level, 24, _LATTICE[::4])
    fractions = np.arange(means.shape[1]) / means.shape[1]
    outer, width = np.ones(len(streams)), 1.0
    while width > _TOLERANCE:
        inside = _rejections(streams, means, level, bets, running) > streams.shape[1]
        # One past the outermost candidate that is in; 0 where none is.
        past = np.where(inside.any(axis=1), means.shape[1] - inside[:, ::-1].argmax(axis=1), 0)[:, None]
        outer = np.take_along_axis(_closed(means, outer), past, axis=1)[:, 0]
        inner = np.take_along_axis(means, np.maximum(past - 1, 0), axis=1)[:, 0]
        width = (outer - inner).max()
        means = inner[:, None] + (outer - inner)[:, None] * fractions
    return outer.reshape(losses.shape[:-1])


def _rejections(
    losses: Float[np.ndarray, "B T"],
    means: Float[np.ndarray, "B C"],
    level: float,
    bets: tuple[float, float],
    running: bool = True,
) -> Int[np.ndarray, "B C"]:
    """Return when candidates were rejected as too high.

    A two-sided bet also rejects what is too low. That says nothing about the upper end, and counting it would let all
    that is left slip between two candidates.
    """
    times, trials = crossing_times(losses, means, level, bets, running=running), losses.shape[1]
    if bets[1] <= 0:
        return times
    averages = np.cumsum(losses, axis=1) / np.arange(1, trials + 1)
    too_low = np.take_along_axis(averages, np.minimum(times, trials) - 1, axis=1) > means
    return np.where(too_low, trials + 1, times)


def _candidates(
    losses: Float[np.ndarray, "B T"], level: float, count: int, lattice: Float[np.ndarray, " G"]
) -> Float[np.ndarray, "B C"]:
    """Return increasing means: a lattice and geometric distances above the stream's mean.

    The smallest distance is half of what the best constant bet could tell apart, so no end of a stationary stream is
    closer; the ends of others are rounded to the lattice.
    """
    mean, variance, trials = losses.mean(axis=1), losses.var(axis=1), losses.shape[1]
    nearest = np.maximum(np.sqrt(2 * variance * log(level) / trials), log(level) / trials) / 2
    furthest = np.maximum(1 - mean, nearest)
    steps = nearest[:, None] * (furthest / nearest)[:, None] ** np.linspace(0, 1, count)
    fixed = np.broadcast_to(lattice, (len(losses), len(lattice)))
    return np.sort(np.clip(np.concatenate([mean[:, None] + steps, fixed], axis=1), _NEAREST, 1 - _NEAREST), axis=1)


def _closed(means: Float[np.ndarray, "B C"], end: float | Float[np.ndarray, " B"]) -> Float[np.ndarray, "B C+1"]:
    return np.concatenate([means, np.broadcast_to(end, len(means))[:, None]], axis=1)


@jax.jit
def _crossing_times(
    losses: Array, means: Array, level: Array, low: Array, high: Array, running: Bool[AnyArray, ""]
) -> Int[Array, "B C"]:
    never = losses.shape[1] + 1

    def trial(state: tuple, step: tuple) -> tuple[tuple, None]:
        (capital, bet, energy, times), (index, loss) = state, step
        gain, bet, energy = _wager(bet, energy, loss[:, None] - means, low, high)
        # Products, not logs: bets that learn lose little against not betting (1e-3 at worst was seen), and a capital
        # that overflows was rejected long before.
        capital = capital * gain
        forgiven = jnp.where(running, times, never)
        return (capital, bet, energy, jnp.where(capital >= level, jnp.minimum(times, index), forgiven)), None

    ones = jnp.ones_like(means)
    start = (ones, 0 * ones, ones, jnp.full(means.shape, never))
    (_, _, _, times), _ = jax.lax.scan(trial, start, (jnp.arange(1, never), losses.T))
    return times


@jax.jit
def _log_capitals(losses: Array, means: Array, low: Array, high: Array) -> Float[Array, "T B C"]:
    def trial(state: tuple, loss: Array) -> tuple[tuple, Array]:
        total, bet, energy = state
        gain, bet, energy = _wager(bet, energy, loss[:, None] - means, low, high)
        total = total + jnp.log(gain)
        return (total, bet, energy), total

    ones = jnp.ones((losses.shape[0], means.shape[0]))
    return jax.lax.scan(trial, (0 * ones, 0 * ones, ones), losses.T)[1]


def _wager(bet: Array, energy: Array, surprise: Array, low: Array, high: Array) -> tuple[Array, Array, Array]:
    """Return the factor on the capital, the next bet and the energy A, given y - m."""
    gain = 1 + bet * surprise
    # Written with a reciprocal: as one of two plain divisions the loop takes 1.7 times as long.
    gradient = surprise * (1 / gain)
    energy = energy + gradient**2
    return gain, jnp.clip(bet + _ETA * gradient / energy, low, high), energy
