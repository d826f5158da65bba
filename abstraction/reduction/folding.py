"""Folds: the mechanisms of some units replaced by affine maps of the units that are kept.

    a_S := beta + B a_K                                     (CMR; constants are hard interventions, B = 0)

Where an affine map W a + b reads the tap, a fold is carried out by changing weights alone,

    W_K <- W_K + W_S B,     b <- b + W_S beta,     W_S <- 0,

after which nothing depends on the replaced units and they can be removed. What lies between tap and reader may act on
each unit: a constant crosses any elementwise map, a -> f(a), and an affine relation crosses a -> s a + t, becoming
B' = s_S B / s_K and beta' = s_S beta + t_S - B' t_K. A constant that enters a convolution with zeros around its border
adds to it a map over positions, not a vector. All of it is computed in float64 and stored in the dtype of the weights,
which is refused where it is too narrow for the result.

A reader that starts from zero, the recurrent kernel of a state, lets no constant but 0 pass: there beta is 0.
"""

from functools import reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from abstraction.checks import finite, whole
from abstraction.models import Consumer, Network, Reducible
from abstraction.models.wiring import Path, dotted, find_array, replace_array
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray, Params


@pytree
class Fold:
    """One replacement at one tap; at a tap with depth or positions, the same at each of them.

    Attributes:
      tap: where.
      kept: indices of the K kept units, sorted.
      replaced: indices of the S replaced units, sorted; together with `kept`, all units of the tap.
      intercept: beta, `[S]`.
      coefficients: B, `[S, K]`.
    """

    tap: str = static()
    kept: Int[AnyArray, " K"]
    replaced: Int[AnyArray, " S"]
    intercept: Float[AnyArray, " S"]
    coefficients: Float[AnyArray, "S K"]

    @property
    def width(self) -> int:
        """Units of the tap."""
        return self.kept.shape[0] + self.replaced.shape[0]


def constant_fold(tap: str, width: int, replaced: ArrayLike, values: ArrayLike) -> Fold:
    """Replace units by constants, a_S := c.

    Args:
      tap: where.
      width: units of the tap.
      replaced: indices of S, sorted.
      values: c, `[S]`.

    Raises:
      ValueError: what `affine_fold` refuses.
    """
    whole("width", width)
    replaced = _indices(tap, replaced)
    kept = np.setdiff1d(np.arange(width), replaced)
    return affine_fold(tap, kept, replaced, values, np.zeros((len(replaced), len(kept))), width=width)


def affine_fold(
    tap: str,
    kept: ArrayLike,
    replaced: ArrayLike,
    intercept: ArrayLike,
    coefficients: ArrayLike,
    *,
    width: int | None = None,
) -> Fold:
    """Replace units by affine maps of the others, a_S := beta + B a_K.

    Args:
      tap: where.
      kept: indices of K, sorted.
      replaced: indices of S, sorted.
      intercept: beta, `[S]`.
      coefficients: B, `[S, K]`.
      width: units of the tap; by default as many as there are indices.

    Raises:
      ValueError: the indices are not sorted integers, or are not together 0, ..., width - 1 once each; none is kept; a
        shape does not fit; or a value is not finite.
    """
    kept, replaced = _indices(tap, kept), _indices(tap, replaced)
    width = len(kept) + len(replaced) if width is None else width
    if not np.array_equal(np.sort(np.concatenate([kept, replaced])), np.arange(width)):
        raise ValueError(
            f"got kept units {kept.tolist()} and replaced units {replaced.tolist()} at {tap!r}, "
            f"expected 0 to {width - 1}, each in one of them"
        )
    if not len(kept):
        raise ValueError(f"got no kept unit at {tap!r}, expected at least one of {width}")
    intercept, coefficients = _floats(tap, intercept), _floats(tap, coefficients)
    shapes, expected = (intercept.shape, coefficients.shape), ((len(replaced),), (len(replaced), len(kept)))
    if shapes != expected:
        raise ValueError(f"got intercept and coefficients of shapes {shapes} at {tap!r}, expected {expected}")
    return Fold(tap, kept.astype(np.int32), replaced.astype(np.int32), intercept, coefficients)


def fold_params(network: Network, fold: Fold) -> Network:
    """Fold the replaced units into every reader of the tap; shapes stay, but for a bias where there was none.

    The result is the network under the fold, whatever the replaced units compute: their rows are zero.

    Raises:
      ValueError: the fold is not exact here, does not fit the tap or the weights, or its result is out of the range of
        the weights' dtype; says why.
    """
    check_fold(network, fold)
    model, params = reducible(network), network.params
    for consumer in model.consumers(fold.tap):
        intercept, coefficients = _carried(params, fold, consumer)
        if intercept.any() and (find_array(params, consumer.bias) is None or consumer.plane is not None):
            model, params = model.with_biases(params, fold.tap)
        params = _folded(params, fold, consumer, intercept, coefficients)
    return Network(model, params)


def obstacle(network: Network, fold: Fold) -> str:
    """Say why a fold cannot be compiled exactly; empty where it can."""
    model, kept = network.model, np.asarray(fold.kept)
    if not isinstance(model, Reducible):
        return f"{type(model).__name__} does not tell what reads its taps"
    try:
        check_fold(network, fold)
        for consumer in model.consumers(fold.tap):
            _carried(network.params, fold, consumer)
        jax.eval_shape(lambda params: model.narrowed(params, fold.tap, kept)[1], network.params)
    except ValueError as error:
        return str(error)
    return ""


def reducible(network: Network) -> Reducible:
    """Return the model of a network that units can be removed from.

    Raises:
      ValueError: it does not tell what reads its taps.
    """
    model: Any = network.model
    if not hasattr(model, "consumers"):
        raise ValueError(f"got {type(model).__name__}, which does not tell what reads its taps; expected `consumers`")
    return model


def starts_at_zero(network: Network, tap: str) -> bool:
    """Tell whether a reader of a tap lets no constant pass, so that folds have to go through the origin."""
    if not isinstance(network.model, Reducible):
        return False
    try:
        consumers = network.model.consumers(tap)
    except ValueError:  # its units cannot be removed; a patch replaces them all the same
        return False
    return any(not passage.shifts for consumer in consumers for passage in consumer.passages)


def check_fold(network: Network, fold: Fold) -> None:
    """Refuse a fold that does not fit its tap, also one that was not made by `affine_fold`.

    Raises:
      ValueError: the tap is unknown or of another width, or what `affine_fold` refuses.
    """
    if fold.tap not in network.taps:
        raise ValueError(f"got a fold at {fold.tap!r}, expected a tap among {sorted(network.taps)}")
    width = network.taps[fold.tap].width
    if fold.width != width:
        raise ValueError(f"got a fold of {fold.width} units at {fold.tap!r}, expected one of {width}")
    affine_fold(fold.tap, fold.kept, fold.replaced, fold.intercept, fold.coefficients, width=width)


def _carried(
    params: Params, fold: Fold, consumer: Consumer
) -> tuple[Float[np.ndarray, "P S"], Float[np.ndarray, "P S K"]]:
    """Return beta and B as they arrive at a consumer, for each of the P positions flattened into its input."""
    kept, replaced = np.asarray(fold.kept), np.asarray(fold.replaced)
    intercept, coefficients = np.asarray(fold.intercept, float), np.asarray(fold.coefficients, float)
    for passage in consumer.passages:
        if coefficients.any() and not passage.mixes:
            raise ValueError(f"an affine map of kept units does not pass {passage.name}")
        if intercept.any() and not passage.shifts:
            raise ValueError(f"a constant other than 0 does not pass {passage.name}")

    def through(values: Array) -> Array:
        return reduce(lambda value, passage: passage.function(params, value), consumer.passages, values)

    constants = np.zeros(fold.width)
    constants[replaced] = intercept
    with jax.enable_x64(True):
        values = np.asarray(through(jnp.asarray(constants))).reshape(-1, fold.width)[:, replaced]
        if not coefficients.any():
            return values, np.zeros((len(values), *coefficients.shape))
        ends = jax.jvp(through, (jnp.zeros(fold.width),), (jnp.ones(fold.width),))
        shift, scale = (np.asarray(end).reshape(-1, fold.width) for end in ends)
    lost = (scale[:, kept] == 0).any(axis=0) & coefficients.any(axis=0)
    if lost.any():
        raise ValueError(f"kept units {kept[lost].tolist()} are lost on the way to {dotted(consumer.kernel)}: scale 0")
    safe = np.where(scale[:, kept] == 0, 1.0, scale[:, kept])
    coefficients = scale[:, replaced, None] * coefficients / safe[:, None, :]
    return values - np.einsum("psk,pk->ps", coefficients, shift[:, kept]), coefficients


def _folded(
    params: Params,
    fold: Fold,
    consumer: Consumer,
    intercept: Float[np.ndarray, "P S"],
    coefficients: Float[np.ndarray, "P S K"],
) -> Params:
    """Return params after W_K += W_S B, b += W_S beta, W_S = 0 at one consumer."""
    kernel: Any = find_array(params, consumer.kernel)
    if kernel is None or prod(kernel.shape[axis] for axis in consumer.axes) != len(intercept) * fold.width:
        found = "no kernel" if kernel is None else f"a kernel of shape {kernel.shape}"
        raise ValueError(
            f"got {found} at {dotted(consumer.kernel)}, expected one that reads {len(intercept) * fold.width} values"
        )
    front = tuple(range(len(consumer.axes)))
    moved = np.moveaxis(np.asarray(kernel, float), consumer.axes, front)
    rest = moved.shape[len(front) :]
    rows = moved.reshape(len(intercept), fold.width, -1).copy()
    kept, replaced = np.asarray(fold.kept), np.asarray(fold.replaced)
    removed = rows[:, replaced]
    rows[:, kept] += coefficients.mT @ removed
    rows[:, replaced] = 0
    changed = np.moveaxis(rows.reshape(moved.shape), front, consumer.axes)
    if intercept.any():
        others = [axis for axis in range(kernel.ndim) if axis not in consumer.axes]
        summed = tuple(others.index(axis) for axis in consumer.summed)
        offset = np.tensordot(intercept, removed, 2).reshape(rest).sum(axis=summed)
        if consumer.plane is not None:
            values = np.zeros(fold.width)
            values[replaced] = intercept[0]
            with jax.enable_x64(True):
                offset = np.asarray(consumer.plane(params, jnp.asarray(values)))
        bias: Any = find_array(params, consumer.bias)
        params = replace_array(params, consumer.bias, _like(consumer.bias, np.asarray(bias, float) + offset, bias))
    return replace_array(params, consumer.kernel, _like(consumer.kernel, changed, kernel))


def _like(path: Path, value: np.ndarray, like: AnyArray) -> AnyArray:
    """Return an array of the dtype, and of the library, of another.

    Raises:
      ValueError: the dtype is too narrow for its values.
    """
    largest, most = float(np.abs(value).max(initial=0.0)), float(jnp.finfo(like.dtype).max)
    if not largest <= most:
        raise ValueError(
            f"got a fold that makes {dotted(path)} as large as {largest:g}, expected at most {most:g}, the range of "
            f"its {like.dtype}; give the weights a wider type"
        )
    value = value.astype(like.dtype)
    return value if isinstance(like, np.ndarray) else jnp.asarray(value)


def _indices(tap: str, values: ArrayLike) -> Int[np.ndarray, " U"]:
    index = np.asarray(values)
    if index.ndim != 1 or (index.size and not np.issubdtype(index.dtype, np.integer)) or (np.diff(index) <= 0).any():
        raise ValueError(f"got indices {index.tolist()} at {tap!r}, expected a sorted list of integers, each once")
    return index if index.size else index.astype(np.int32)


def _floats(tap: str, values: ArrayLike) -> np.ndarray:
    values = finite(f"values in the fold at {tap!r}", values)
    return values if np.issubdtype(values.dtype, np.floating) else values.astype(float)
