"""Losses in [0, 1], the stuff certificates are made of: checked where they enter.

Whoever makes losses from outputs gives a trial whose outputs are not finite the loss 1: a network that says nothing was
never shown to be faithful. A loss that is itself not a number is a mistake, and is refused, as is one outside [0, 1]:
clipped, it would bound another risk than the one that was asked for.
"""

import numpy as np
from jaxtyping import Float

from abstraction.typing import AnyArray


def unit_losses(losses: AnyArray) -> Float[np.ndarray, "*B T"]:
    """Return losses in float64.

    Raises:
      ValueError: there are none, or one lies outside [0, 1] or is not a number.
    """
    losses = np.asarray(losses)
    if losses.dtype.kind not in "biuf" or not losses.ndim:
        raise ValueError(f"got losses of shape {losses.shape} and type {losses.dtype}, expected streams of numbers")
    losses = losses.astype(np.float64)
    if not losses.size or not (losses.min() >= 0 and losses.max() <= 1):
        found = f"{losses.min()} to {losses.max()}" if losses.size else "none"
        raise ValueError(f"got losses {found}, expected at least one and all of them in [0, 1]")
    return losses


def checked_losses(losses: AnyArray, delta: float) -> Float[np.ndarray, "*B T"]:
    """Return the losses in float64.

    Raises:
      ValueError: there are none, one lies outside [0, 1] or is not a number, or delta is not in (0, 1).
    """
    losses = unit_losses(losses)
    check_delta(delta)
    return losses


def weighted_losses(
    losses: Float[np.ndarray, "*B T"], weights: Float[np.ndarray, "*B T"], w_max: float
) -> Float[np.ndarray, "*B T"]:
    """Scale importance-weighted losses to [0, 1]: y = w z / W_max, whose mean is R / W_max.

    Args:
      losses: z in [0, 1].
      weights: w = Pi / q in [0, W_max], one for each loss.
      w_max: the largest weight there can be, at least 1, for the mean of all is 1.

    Raises:
      ValueError: a loss outside [0, 1], a weight that is negative, above `w_max` or not a number, or another number
        of weights than of losses.
    """
    losses, weights = unit_losses(losses), np.asarray(weights, np.float64)
    if losses.shape != weights.shape:
        raise ValueError(f"got weights of shape {weights.shape}, expected {losses.shape}: one for each loss")
    if not 1 <= w_max < np.inf:
        raise ValueError(f"got w_max {w_max}, expected a finite number of at least 1")
    if not (weights.min() >= 0 and weights.max() <= w_max * (1 + 1e-12)):
        raise ValueError(f"got weights {weights.min()} to {weights.max()}, expected values in [0, w_max={w_max}]")
    return np.minimum(losses * weights / w_max, 1.0)


def check_delta(delta: float) -> None:
    """Check an error probability.

    Raises:
      ValueError: it is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"got delta {delta}, expected a value in (0, 1)")
