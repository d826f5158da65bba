"""Features of an activation that need not be linear: an edit sees features, and what they do not say is kept.

    z = encode(h),   z' = edit(z),   h <- h + decode(z') - decode(z)  =  decode(z') + e,   e = h - decode(encode(h))

So an edit that does nothing to the features does nothing to the activation, to the bit, however badly the features
reconstruct it: the error term e stays. A `Basis` is such a map, `SparseAutoencoder` in `autoencoders.py` another, and
`Invertible` makes one of any pair of functions.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import finite, kind, number, whole
from abstraction.models import Edit
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray


@runtime_checkable
class FeatureMap(Protocol):
    """K features of a D-dimensional activation: a pytree, whose leaves lead with the depth axis where there is one."""

    @property
    def count(self) -> int:
        """The number of features K."""
        ...

    def encode(self, activation: Array) -> Array:
        """Read the features, `[..., D]` to `[..., K]`."""
        ...

    def shift(self, before: Array, after: Array) -> Array:
        """Return decode(after) - decode(before), `[..., K]` to `[..., D]`: 0, to the bit, of equal features."""
        ...


@pytree
class InFeatures:
    """Let an edit see features: h <- h + decode(edit(encode(h))) - decode(encode(h)).

    Attributes:
      features: a `FeatureMap`.
      edit: sees `[N, ..., K]`.
    """

    features: Any
    edit: Edit

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        before = self.features.encode(activation)
        return activation + self.features.shift(before, self.edit(before)).astype(activation.dtype)


@pytree
class Invertible:
    """Any invertible map as features; build it with `invertible`.

    Attributes:
      forward: `(params, h) -> z`, on the last axis.
      backward: `(params, z) -> h`.
      width: K.
      params: what both read, a pytree of arrays.
    """

    forward: Callable[[Any, Array], Array] = static()
    backward: Callable[[Any, Array], Array] = static()
    width: int = static()
    params: Any

    @property
    def count(self) -> int:
        """The number of features K."""
        return self.width

    def encode(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N K"]:
        """Read the features."""
        return self.forward(self.params, activation)

    def decode(self, features: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Write features back."""
        return self.backward(self.params, features)

    def shift(self, before: Float[Array, "*N K"], after: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Return decode(after) - decode(before)."""
        return self.decode(after) - self.decode(before)


def invertible(
    forward: Callable[[Any, Array], Array],
    backward: Callable[[Any, Array], Array],
    params: Any,
    *,
    sample: Float[AnyArray, "N D"],
    tolerance: float = 1e-3,
) -> Invertible:
    """Make features of a pair of functions, which are looked at on a sample first.

    Args:
      forward: `(params, h) -> z`, on the last axis; hashable, as a function of a module is: another one recompiles.
      backward: its inverse, `(params, z) -> h`.
      params: arrays at one depth.
      sample: activations.
      tolerance: how far backward(forward(h)) may be from h, in units of the largest entry of the sample.

    Raises:
      ValueError: functions that are none or that cannot be hashed, or that are not inverse to each other.
    """
    for what, function in (("forward", forward), ("backward", backward)):
        kind(what, function, Callable)  # pyright: ignore[reportArgumentType]
        try:
            hash(function)
        except TypeError as error:
            raise ValueError(f"got {what} {function!r} without a hash, expected a plain function") from error
    states, most = finite("sample", sample), number("tolerance", tolerance)
    if states.ndim != 2 or not states.size:
        raise ValueError(f"got a sample of shape {states.shape}, expected [N, D], at least one activation")
    features = forward(params, jnp.asarray(states))
    if features.ndim != 2 or len(features) != len(states):
        raise ValueError(f"got features of shape {features.shape} of {states.shape}, expected [{len(states)}, K]")
    back = np.asarray(backward(params, features))
    error = np.abs(back - states).max() if back.shape == states.shape else np.inf
    if not error <= most * max(np.abs(states).max(), np.finfo(np.float32).tiny):
        raise ValueError(f"got functions that are {error:.3g} from inverse on the sample, expected at most {most:g}")
    return Invertible(forward, backward, whole("features", features.shape[-1]), params)


def encoded(features: FeatureMap, states: Float[AnyArray, "L N ... D"]) -> Array:
    """Read the features of recorded states, `[L, N, ..., K]`; every leaf of `features` leads with L."""
    return jax.vmap(lambda one, state: one.encode(state))(features, jnp.asarray(states))
