"""Adaptive sampling of interchange masks: draw more often the masks under which a reduced model fails.

Under the target law Pi every kept unit k is swapped with probability p. A proposal q~ swaps it with probability q_k,

    q = (1 - alpha) Pi + alpha q~,      weight Pi / q = 1 / (1 - alpha + alpha q~ / Pi)  <=  W_max = 1 / (1 - alpha)

so weighted losses w z have mean R and y = w z / W_max lies in [0, 1] (CIF: Asiaee, UAI 2026). Two proposals, both with
as many swaps on average as the target, sum_k q_k = p K:

    static     q_k proportional to ||W_:k||, the norm of the unit's outgoing weights
    history    q_k proportional to the failure rate of masks that swap k, under a Beta(1, 1) prior, renewed in blocks

A proposal may depend on trials before it, not on its own: the confidence sequences of `sequences` stay valid. What it
buys is small: it helps a little to refute and costs trials to certify, for weights below W_max waste the range of y.
Uniform sampling is the default elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from abstraction.evaluation.losses import unit_losses, weighted_losses
from abstraction.pytrees import pytree

ALPHA = 0.3
BLOCK = 100
_EDGE = 1e-6


@pytree
class AdaptiveStream:
    """Trials drawn adaptively.

    Attributes:
      masks: which units were swapped, `[T, K]`.
      losses: z in [0, 1], `[T]`.
      weights: Pi / q, `[T]`.
      scaled: w z / W_max, to be tested at m = R / W_max, `[T]`.
    """

    masks: Bool[np.ndarray, "T K"]
    losses: Float[np.ndarray, " T"]
    weights: Float[np.ndarray, " T"]
    scaled: Float[np.ndarray, " T"]


def largest_weight(alpha: float) -> float:
    """Return W_max = 1 / (1 - alpha), the largest weight a share alpha of any proposal can lead to.

    Raises:
      ValueError: alpha is not in [0, 1).
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"got alpha {alpha}, expected a value in [0, 1)")
    return 1 / (1 - alpha)


def water_filled(scores: Float[np.ndarray, " K"], total: float) -> Float[np.ndarray, " K"]:
    """Return probabilities min(1, c s_k) that sum to `total`.

    What units at 1 cannot take is filled into the others in proportion; once all positive scores are at 1, the rest
    is spread evenly over the zeros.

    Raises:
      ValueError: there is no score, one is negative or not finite, or the total is not in [0, K].
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.size:
        raise ValueError(f"got scores of shape {scores.shape}, expected one for each of at least one unit")
    if not (scores.min() >= 0 and np.isfinite(scores).all() and 0 <= total <= len(scores)):
        raise ValueError(f"got scores {scores} and total {total}, expected scores >= 0 and a total in [0, K]")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    remaining = np.cumsum(ranked[::-1])[::-1]
    # With the first j units at 1, c = (total - j) / remaining_j for the others; the first j with c s_j <= 1 is right.
    left = total - np.arange(len(scores))
    fits = np.flatnonzero((remaining > 0) & (left * ranked <= remaining))
    filled = np.ones(len(scores))
    if len(fits):
        full = fits[0]
        filled[full:] = np.minimum(ranked[full:] * (left[full] / remaining[full]), 1.0)
    else:
        zeros = scores[order] == 0
        filled[zeros] = (total - (~zeros).sum()) / max(zeros.sum(), 1)
    return filled[np.argsort(order, kind="stable")]


def proposal(scores: Float[np.ndarray, " K"], probability: float) -> Float[np.ndarray, " K"]:
    """Return swap probabilities q_k: water-filled to p K, and kept off 0 and 1 so that every mask stays possible.

    Raises:
      ValueError: a score is negative or not finite, or p is not in (0, 1).
    """
    _check_probability(probability)
    return np.clip(water_filled(scores, probability * len(scores)), _EDGE, 1 - _EDGE)


def failure_rates(masks: Bool[np.ndarray, "T K"], losses: Float[np.ndarray, " T"]) -> Float[np.ndarray, " K"]:
    """Return the posterior mean loss of trials that swap each unit, (1 + sum z) / (2 + n), under Beta(1, 1).

    Raises:
      ValueError: masks that are not truth values, losses outside [0, 1], or not one loss for each mask.
    """
    masks = _masks(masks)
    losses = unit_losses(losses) if np.size(losses) else np.zeros(0)
    if losses.shape != masks.shape[:1]:
        raise ValueError(f"got losses of shape {losses.shape}, expected one for each of {len(masks)} masks")
    return (1 + losses @ masks) / (2 + masks.sum(axis=0))


def mixture_masks(
    generator: np.random.Generator,
    swaps: Float[np.ndarray, " K"],
    probability: float,
    trials: int,
    alpha: float = ALPHA,
) -> Bool[np.ndarray, "T K"]:
    """Draw masks from q = (1 - alpha) Pi + alpha q~.

    Args:
      generator: source of randomness.
      swaps: the proposal's q_k.
      probability: the target's p.
      trials: masks to draw.
      alpha: share of the proposal.

    Raises:
      ValueError: alpha is not in [0, 1), a probability not in (0, 1), or there are no trials to draw.
    """
    largest_weight(alpha)
    swaps = _swaps(swaps, probability)
    _count(trials, "trials")
    adaptive = generator.random((trials, 1)) < alpha
    return generator.random((trials, len(swaps))) < np.where(adaptive, swaps, probability)


def mixture_weights(
    masks: Bool[np.ndarray, "T K"], swaps: Float[np.ndarray, " K"], probability: float, alpha: float = ALPHA
) -> Float[np.ndarray, " T"]:
    """Return Pi / q of masks, in log space and at most W_max; under q their mean is 1.

    Raises:
      ValueError: alpha is not in [0, 1), a probability not in (0, 1), or masks over other units than the proposal's.
    """
    w_max, swaps, masks = largest_weight(alpha), _swaps(swaps, probability), _masks(masks)
    if masks.shape[1] != len(swaps):
        raise ValueError(f"got masks over {masks.shape[1]} units, expected {len(swaps)}, the units of the proposal")
    if alpha == 0:
        return np.ones(len(masks))
    swapped = np.log(swaps) - np.log(probability)
    stayed = np.log1p(-swaps) - np.log1p(-probability)
    ratio = masks @ (swapped - stayed) + stayed.sum()
    return np.minimum(np.exp(-np.logaddexp(np.log1p(-alpha), np.log(alpha) + ratio)), w_max)


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which masks are drawn: the law they stand for, and the proposal mixed into it.

    Attributes:
      units: K.
      probability: the target's p, in (0, 1).
      scores: norms of the units' outgoing weights, `[K]`, for the static proposal; None for that of the history.
      alpha: share of the proposal, in [0, 1).
      block: trials between renewals of the history.

    Raises:
      ValueError: one of them out of range.
    """

    units: int
    probability: float
    scores: Float[np.ndarray, " K"] | None = None
    alpha: float = ALPHA
    block: int = BLOCK

    def __post_init__(self) -> None:
        _count(self.units, "units")
        _count(self.block, "trials in a block")
        _check_probability(self.probability)
        largest_weight(self.alpha)
        if self.scores is not None and np.shape(self.scores) != (self.units,):
            raise ValueError(
                f"got scores of shape {np.shape(self.scores)}, expected one for each of {self.units} units"
            )

    def swaps(self, masks: Bool[np.ndarray, "T K"], losses: Float[np.ndarray, " T"]) -> Float[np.ndarray, " K"]:
        """Return the proposal's q_k after trials with these masks and losses."""
        scores = failure_rates(masks, losses) if self.scores is None else self.scores
        return proposal(scores, self.probability)


def adaptive_stream(
    generator: np.random.Generator,
    evaluate: Callable[[Bool[np.ndarray, "T K"]], Float[np.ndarray, " T"]],
    sampling: Sampling,
    trials: int,
) -> AdaptiveStream:
    """Draw trials in blocks, from the static proposal of scores or, without scores, from the history's.

    Args:
      generator: source of randomness.
      evaluate: losses in [0, 1] of trials with the given masks, one per mask.
      sampling: the target and the proposal.
      trials: how many to draw.

    Raises:
      ValueError: there are no trials to draw, or `evaluate` returns losses outside [0, 1] or not one per mask.
    """
    _count(trials, "trials")
    masks, losses, weights = np.zeros((0, sampling.units), bool), np.zeros(0), np.zeros(0)
    for start in range(0, trials, sampling.block):
        swaps, size = sampling.swaps(masks, losses), min(sampling.block, trials - start)
        drawn = mixture_masks(generator, swaps, sampling.probability, size, sampling.alpha)
        found = unit_losses(evaluate(drawn))
        if found.shape != (size,):
            raise ValueError(f"got losses of shape {found.shape}, expected one for each of {size} masks")
        masks, losses = np.concatenate([masks, drawn]), np.concatenate([losses, found])
        weights = np.concatenate([weights, mixture_weights(drawn, swaps, sampling.probability, sampling.alpha)])
    return AdaptiveStream(masks, losses, weights, weighted_losses(losses, weights, largest_weight(sampling.alpha)))


def _swaps(swaps: Float[np.ndarray, " K"], probability: float) -> Float[np.ndarray, " K"]:
    _check_probability(probability)
    swaps = np.asarray(swaps, np.float64)
    if not (swaps.ndim == 1 and swaps.size and swaps.min() > 0 and swaps.max() < 1):
        raise ValueError(f"got swaps {swaps}, expected a probability in (0, 1) for each unit")
    return swaps


def _masks(masks: Bool[np.ndarray, "T K"]) -> Bool[np.ndarray, "T K"]:
    masks = np.asarray(masks)
    if masks.ndim != 2 or masks.dtype != bool:
        raise ValueError(f"got masks of shape {masks.shape} and type {masks.dtype}, expected truth values, [T, K]")
    return masks


def _check_probability(probability: float) -> None:
    if not 0 < probability < 1:
        raise ValueError(f"got probability {probability}, expected a value in (0, 1)")


def _count(value: int, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"got {value!r} {what}, expected an integer of at least 1")
