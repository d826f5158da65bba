"""Gates: weights of features that learn which features, or how many, an interchange takes.

    sigmoid    w_k = sigmoid(a_k / T),  at the end [a_k > 0]                                  (Davies et al. 2023, DBM)
    boundary   w_k = sigmoid((k + 1/2 - low) / T) sigmoid((high - k - 1/2) / T),  k = 0..K-1    (Wu et al. 2023)

A gate is the weight of an `Interchange`: its scores, its boundaries and its temperature are values, and differentiable.
As T falls a boundary gate becomes 1 on the features `low` to `high` - 1 and 0 elsewhere. Wu et al. put the boundaries
on the features and not between them, without the halves: the first feature then never counts for more than 1/2 at
low = 0. `compat` reproduces that.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstraction.checks import flag, whole
from abstraction.models.positions import known_values
from abstraction.typing import AnyArray

Number = float | int | AnyArray


def sigmoid_gate(scores: Float[AnyArray, "*K"], temperature: Number) -> Float[Array, "*K"]:
    """Weight each feature by sigmoid(score / T).

    Args:
      scores: one per feature.
      temperature: T, above 0.

    Raises:
      ValueError: a temperature, if it is known, that is not a positive finite number.
    """
    _check_temperature(temperature)
    return jax.nn.sigmoid(jnp.asarray(scores) / temperature)


def hard_gate(scores: Float[AnyArray, "*K"]) -> Float[Array, "*K"]:
    """Weight 1 where the sigmoid gate is above 1/2, at any temperature, and 0 elsewhere."""
    scores = jnp.asarray(scores)
    return (scores > 0).astype(scores.dtype)


def boundary_gate(
    high: Number, count: int, temperature: Number, *, low: Number | None = None, compat: bool = False
) -> Float[Array, " K"]:
    """Weight the features between two boundaries.

    Args:
      high: where they end, as a number of features; K for all.
      count: K.
      temperature: T, above 0.
      low: where they begin; None has no lower boundary, and a gate that is at least 1/2 on the first `high` features.
      compat: boundaries on the features, and a lower one at 0 where none is given, as in Wu et al.

    Returns:
      Weights in 0..1.

    Raises:
      ValueError: no features, or a temperature, if it is known, that is not a positive finite number.
    """
    flag("compat", compat)
    _check_temperature(temperature)
    spots = jnp.arange(whole("features", count)) + (0.0 if compat else 0.5)
    upper = jax.nn.sigmoid((high - spots) / temperature)
    if low is None and not compat:
        return upper
    return jax.nn.sigmoid((spots - (0.0 if low is None else low)) / temperature) * upper


def _check_temperature(temperature: Number) -> None:
    known = known_values(temperature)
    if known is not None and not (known.ndim == 0 and known.dtype.kind in "iuf" and 0 < known < jnp.inf):
        raise ValueError(f"got temperature {known.tolist()}, expected a positive finite number")
