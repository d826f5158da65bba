"""Distances between signatures: what transport costs, C_ij = d(u_i, v_j)  (PLOT, Sec. 3.1)."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import one_of, whole
from abstraction.typing import AnyArray

CostMetric = Literal["sq_l2", "l1", "cosine"]


def transport_cost(
    abstract: Float[AnyArray, "V F"],
    neural: Float[AnyArray, "S F"],
    *,
    metric: CostMetric = "sq_l2",
    unit: bool = False,
    blocks: int = 1,
) -> Float[Array, "V S"]:
    """Return the distance of every variable's signature to every site's.

    Args:
      abstract: signatures u of the variables.
      neural: signatures v of the sites.
      metric: `sq_l2` |u - v|^2, `l1` |u - v|_1, or `cosine` 1 - cos(u, v).
      unit: divide each signature by its Euclidean norm first (norms below 1e-30 count as 1e-30).
      blocks: centre and divide by their norm this many equal parts of each signature, one per family, instead.

    Raises:
      ValueError: an unknown metric, signatures of unequal length or not finite, or that cannot be parted so.
    """
    one_of("cost metric", metric, get_args(CostMetric))
    whole("blocks of signatures", blocks)
    _check_pair(abstract, neural)
    if abstract.shape[1] % blocks:
        raise ValueError(f"got {blocks} blocks of signatures of length {abstract.shape[1]}, expected a divisor")
    if blocks > 1:
        abstract, neural = centred_blocks(abstract, blocks), centred_blocks(neural, blocks)
    return _transport_cost(abstract, neural, metric, unit)


def _check_pair(abstract: AnyArray, neural: AnyArray) -> None:
    shapes = np.shape(abstract), np.shape(neural)
    if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1] or 0 in (*shapes[0], *shapes[1]):
        raise ValueError(f"got signatures of shapes {shapes[0]} and {shapes[1]}, expected [V, F] and [S, F]")
    for what, values in (("variables", abstract), ("sites", neural)):
        if broken := np.flatnonzero(~np.isfinite(np.asarray(values)).all(axis=1)).tolist():
            raise ValueError(f"got signatures of {what} {broken[:8]} that are not finite, expected finite numbers")


@partial(jax.jit, static_argnames=("metric", "unit"))
def _transport_cost(abstract: AnyArray, neural: AnyArray, metric: CostMetric, unit: bool) -> Float[Array, "V S"]:
    if metric == "cosine":
        return 1 - _cosine(abstract, neural)
    if unit:
        abstract, neural = _unit(abstract), _unit(neural)
    power = jnp.square if metric == "sq_l2" else jnp.abs
    return jax.vmap(lambda u: jax.lax.map(lambda v: power(u - v).sum(), neural))(abstract)


def cosine_similarity(abstract: Float[AnyArray, "V F"], neural: Float[AnyArray, "S F"]) -> Float[Array, "V S"]:
    """Return the cosine of the angle between signatures; 0 where one is zero.

    Raises:
      ValueError: signatures of unequal length, or not finite.
    """
    _check_pair(abstract, neural)
    return _cosine(abstract, neural)


@jax.jit
def _cosine(abstract: AnyArray, neural: AnyArray) -> Float[Array, "V S"]:
    return _unit(abstract) @ _unit(neural).T


@partial(jax.jit, static_argnames=("blocks",))
def centred_blocks(signatures: Float[AnyArray, "S F"], blocks: int) -> Float[Array, "S F"]:
    """Centre equal parts of each signature and divide them by their norm.

    Parts below 1e-5 of the largest are rounding noise, which must not be blown up: they become zero.
    """
    parts = jnp.asarray(signatures).reshape(*signatures.shape[:-1], blocks, -1)
    parts = parts - parts.mean(axis=-1, keepdims=True)
    norm = jnp.linalg.norm(parts, axis=-1, keepdims=True)
    floor = jnp.maximum(1e-5 * norm.max(), 1e-30)
    return jnp.where(norm > floor, parts / jnp.maximum(norm, floor), 0.0).reshape(signatures.shape)


def _unit(signatures: Float[AnyArray, "S F"]) -> Float[Array, "S F"]:
    signatures = jnp.asarray(signatures)
    return signatures / jnp.maximum(jnp.linalg.norm(signatures, axis=-1, keepdims=True), 1e-30)
