"""How weights start: uniformly, within a bound, as in PyTorch."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def uniform_linear(inputs: int, outputs: int, bound: float, rngs: nnx.Rngs) -> nnx.Linear:
    """Make a linear layer whose kernel and bias are U(-bound, bound)."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, rngs=rngs)
