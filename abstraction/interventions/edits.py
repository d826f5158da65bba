"""Edits as data: the few maps an activation can be replaced by.

The interchange of features z = encode(h) between a base state h and a source state s, at weight w per feature:

    h <- h + decode((1 - w) z(h) + w z(s)) - decode(z(h))  =  h + decode(w (z(s) - z(h)))          (PLOT, Sec. 2)

Without a basis this is the interpolation (1 - w) h + w s, exact at w = 0 and w = 1, where h + w (s - h) is not.
Weights are not capped at 1: a strength above 1 extrapolates. What the basis does not span is left untouched.

Every edit is a pytree whose arrays are leaves. At a tap with depth each leaf carries the depth axis in front; the
shapes below are those at one depth. `*N` is a pair and, where the tap has them, its positions. Values of shape `[N, K]`
are a row per pair, the same at all of its positions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from abstraction.checks import places
from abstraction.interventions.bases import Basis
from abstraction.models import Edit
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray


@pytree
class Interchange:
    """Move features from a base state towards a source state.

    Attributes:
      source: states of the source run, `[N, D]`.
      weight: how far to move each feature, `[K]` or `[N, K]`; 0 keeps the base, 1 takes the source.
      basis: the features, or None for the D native coordinates.
    """

    source: AnyArray
    weight: AnyArray
    basis: Basis | None = None

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        if jnp.shape(self.source) != activation.shape:
            # One source would be given to every pair, and one base to every source.
            raise ValueError(
                f"got sources of shape {jnp.shape(self.source)}, expected {activation.shape}, one per base"
            )
        if self.basis is None:
            return _interpolate(activation, self.source, self.weight)
        difference = (self.source - activation) @ self.basis.encoder
        return activation + self.basis.decode(_rows(self.weight, difference) * difference)


@pytree
class Set:
    """Replace the activation by a value (zero, mean or any constant), where `weight` is 1.

    Attributes:
      value: broadcastable to `[N, D]`.
      weight: `[D]`, or None to replace everything.
    """

    value: AnyArray
    weight: AnyArray | None = None

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        value = jnp.broadcast_to(_rows(self.value, activation), activation.shape)
        return value if self.weight is None else _interpolate(activation, value, self.weight)


@pytree
class Add:
    """Add a vector: h <- h + offset. Derivatives at offset 0 are gradients and curvature at the tap.

    Attributes:
      offset: broadcastable to `[N, D]`.
    """

    offset: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        return activation + _rows(self.offset, activation)


@pytree
class Scale:
    """Multiply by a factor: h <- factor h.

    Attributes:
      factor: broadcastable to `[N, D]`.
    """

    factor: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        return activation * _rows(self.factor, activation)


@pytree
class Substitute:
    """Replace the mechanisms of some units by affine maps of others: h_S <- intercept + coefficients h_K   (CMR).

    The same map at every position. Indices out of range are refused where they are known; what JAX traces is not.

    Attributes:
      kept: indices of K, `[K]`.
      replaced: indices of S, `[S]`.
      intercept: `[S]`.
      coefficients: `[S, K]`; zero for constants.
    """

    kept: AnyArray
    replaced: AnyArray
    intercept: AnyArray
    coefficients: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        for what, units in (("kept", self.kept), ("replaced", self.replaced)):
            places(f"{what} units", units, activation.shape[-1])
        values = self.intercept + activation[..., self.kept] @ jnp.asarray(self.coefficients).T
        return activation.at[..., self.replaced].set(values.astype(activation.dtype))


@pytree
class InOrder:
    """Apply edits one after another, each to the result of the one before.

    Two interchanges of the same coordinate compose as successive interpolations, weight 1 - (1 - w1)(1 - w2), and
    not as the sum w1 + w2 that a handle of both sites has.
    """

    edits: tuple[Edit, ...]

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        for edit in self.edits:
            activation = edit(activation)
        return activation


@pytree
class Noise:
    """Add Gaussian noise: h <- h + scale g,  g ~ N(0, 1), independent over examples, positions and coordinates.

    The same key gives the same noise. Example n draws from `fold_in(key, n)`: a batch of other size does not redraw it.

    Attributes:
      key: a typed key; at a tap with depth one per depth, `[L]`.
      scale: the standard deviation, broadcastable to `[N, D]`.
    """

    key: Array
    scale: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        one = lambda row: jax.random.normal(jax.random.fold_in(self.key, row), activation.shape[1:])
        return activation + _rows(self.scale, activation) * jax.vmap(one)(jnp.arange(activation.shape[0]))


@pytree
class Clamp:
    """Keep the activation within bounds: h <- min(max(h, low), high). Infinite bounds are none.

    Attributes:
      low: broadcastable to `[N, D]`.
      high: likewise, nowhere below `low`.
    """

    low: AnyArray
    high: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        return jnp.clip(activation, _rows(self.low, activation), _rows(self.high, activation))


@pytree
class Masked:
    """Let an edit act in some places: h <- edit(h) where the mask is true, h elsewhere, exactly.

    Attributes:
      edit: what to do there.
      mask: truth values, broadcastable to `[N, D]`.
    """

    edit: Edit
    mask: AnyArray

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        mask = _rows(jnp.asarray(self.mask, bool), activation)
        return jnp.where(mask, self.edit(activation), activation)


@pytree
class Renormalised:
    """Give the edited activation the norm that it had: h <- edit(h) |h| / |edit(h)|; a zero stays a zero.

    Norms are over the last axis, in float32. An edit that does nothing still does nothing, to the bit.

    Attributes:
      edit: what to do before.
    """

    edit: Edit

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        edited = self.edit(activation)
        norm = _norm(edited)
        return edited * (_norm(activation) / jnp.where(norm > 0, norm, 1.0)).astype(edited.dtype)


def _norm(activation: Array) -> Array:
    values = activation.astype(jnp.float32)
    # In units of the largest entry, whose square neither overflows nor vanishes; at a zero a root has no derivative.
    most = jax.lax.stop_gradient(jnp.abs(values).max(axis=-1, keepdims=True, initial=0.0))
    unit = jnp.where(most > 0, most, 1.0)
    squares = jnp.square(values / unit).sum(axis=-1, keepdims=True)
    return jnp.where(most > 0, unit * jnp.sqrt(jnp.where(most > 0, squares, 1.0)), 0.0)


def _rows(values: AnyArray, activation: AnyArray) -> Array:
    """Let `[N, K]` be a row per pair at activations with positions, `[N, T, K]`.

    Trailing axes would be aligned otherwise: rows would be positions, in silence where there are as many of both.
    """
    values = jnp.asarray(values)
    missing = activation.ndim - values.ndim
    if values.ndim < 2 or missing <= 0 or all(size == 1 for size in values.shape[:-1]):
        return values
    if values.ndim > 2 or values.shape[0] != activation.shape[0]:
        raise ValueError(
            f"got values of shape {values.shape} for activations {activation.shape}, expected [{values.shape[-1]}], "
            f"[{activation.shape[0]}, {values.shape[-1]}], a row per example, or all axes"
        )
    return values.reshape(values.shape[0], *[1] * missing, values.shape[1])


def _interpolate(start: Array, end: AnyArray, weight: AnyArray) -> Array:
    weight = _rows(weight, start)
    return (1 - weight) * start + weight * end
