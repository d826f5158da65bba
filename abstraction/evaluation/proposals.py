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

import numpy as np
from jaxtyping import Bool, Float

from abstraction.evaluation.sequences import weighted_losses
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
    """Return W_max = 1 / (1 - alpha).

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
      ValueError: a score is negative, or the total is not in [0, K].
    """
    scores = np.asarray(scores, np.float64)
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
    """Return swap probabilities q_k: water-filled to p K, and kept off 0 and 1 so that every mask stays possible."""
    return np.clip(water_filled(scores, probability * len(scores)), _EDGE, 1 - _EDGE)


def failure_rates(masks: Bool[np.ndarray, "T K"], losses: Float[np.ndarray, " T"]) -> Float[np.ndarray, " K"]:
    """Return the posterior mean loss of trials that swap each unit, (1 + sum z) / (2 + n), under Beta(1, 1)."""
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
    """
    adaptive = generator.random((trials, 1)) < alpha
    return generator.random((trials, len(swaps))) < np.where(adaptive, swaps, probability)


def mixture_weights(
    masks: Bool[np.ndarray, "T K"], swaps: Float[np.ndarray, " K"], probability: float, alpha: float = ALPHA
) -> Float[np.ndarray, " T"]:
    """Return Pi / q of masks, in log space and at most W_max; under q their mean is 1.

    Raises:
      ValueError: alpha is not in [0, 1), or a probability not in (0, 1).
    """
    w_max = largest_weight(alpha)
    if not (0 < probability < 1 and swaps.min() > 0 and swaps.max() < 1):
        raise ValueError(f"got probability {probability} and swaps {swaps}, expected values in (0, 1)")
    if alpha == 0:
        return np.ones(len(masks))
    swapped = np.log(swaps) - np.log(probability)
    stayed = np.log1p(-swaps) - np.log1p(-probability)
    ratio = masks @ (swapped - stayed) + stayed.sum()
    return np.minimum(np.exp(-np.logaddexp(np.log1p(-alpha), np.log(alpha) + ratio)), w_max)


def adaptive_stream(
    generator: np.random.Generator,
    evaluate: Callable[[Bool[np.ndarray, "T K"]], Float[np.ndarray, " T"]],
    scores: Float[np.ndarray, " K"] | None,
    units: int,
    probability: float,
    trials: int,
    *,
    alpha: float = ALPHA,
    block: int = BLOCK,
) -> AdaptiveStream:
    """Draw trials in blocks, from the static proposal of `scores` or, without scores, from the history's.

    Args:
      generator: source of randomness.
      evaluate: losses in [0, 1] of trials with the given masks, one per mask.
      scores: norms of the units' outgoing weights, `[K]`, or None.
      units: K.
      probability: the target's p.
      trials: how many to draw.
      alpha: share of the proposal.
      block: trials between renewals of the history.
    """
    masks, losses, weights = np.zeros((0, units), bool), np.zeros(0), np.zeros(0)
    for start in range(0, trials, block):
        swaps = proposal(failure_rates(masks, losses) if scores is None else scores, probability)
        drawn = mixture_masks(generator, swaps, probability, min(block, trials - start), alpha)
        masks = np.concatenate([masks, drawn])
        losses = np.concatenate([losses, np.asarray(evaluate(drawn), np.float64)])
        weights = np.concatenate([weights, mixture_weights(drawn, swaps, probability, alpha)])
    return AdaptiveStream(masks, losses, weights, weighted_losses(losses, weights, largest_weight(alpha)))
