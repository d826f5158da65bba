"""Skipping what need not be run, also when runs with different needs are batched.

`lax.cond` skips; under vmap over its predicate JAX turns it into a select, for which it copies everything the branches
read once per batch entry: of a network, its weights. Here the branch is taken where any entry needs it, and the entries
that do not keep their value; what the branch closes over stays one copy.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool


def run_if(needed: Bool[Array, ""], function: Callable[[Array], Array], value: Array) -> Array:
    """Return `function(value)` if needed, else `value`, at the cost of neither where no entry of a batch needs it."""
    run = lambda value: jnp.where(needed, function(value), value)
    return jax.lax.cond(_any(needed), run, lambda value: value, value)


@custom_vmap
def _any(needed: Bool[Array, ""]) -> Bool[Array, ""]:
    return needed


@_any.def_vmap
def _any_of_batch(size: int, batched: list[bool], needed: Bool[Array, " B"]) -> tuple[Bool[Array, ""], bool]:
    return needed.any(), False
