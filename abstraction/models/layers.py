"""The layers a `Sequential` network is made of.

Two of them mix units, `Dense` and `Convolution`: z = W a + b. All others act on each unit (channel) by itself, so a
unit that is constant stays constant through them; where `mixes` is true they are also affine in each unit, with the
same map at every position, so that an affine relation among units is still one behind them.

Arithmetic is Flax's; a layer here is only a name and sizes. Shapes are those of one example, without the batch axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from abstraction.typing import Params

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "tanh": jnp.tanh, "identity": lambda z: z}
PADDINGS = ("SAME", "VALID")

Shape = tuple[int, ...]


@runtime_checkable
class Layer(Protocol):
    """One step of a network; hashable and compared by value."""

    @property
    def name(self) -> str:
        """What its params and its tap are called."""
        ...

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape it turns `shape` into, or raise ValueError."""
        ...

    def module(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module | None:
        """Make the Flax module for inputs of that shape, None where there is nothing to learn."""
        ...

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Run it on a batch of values of that shape."""
        ...


class Unitwise(Layer, Protocol):
    """A layer that acts on each unit by itself."""

    @property
    def mixes(self) -> bool:
        """Whether it is affine in each unit, the same at every position."""
        ...

    def constant(self, shape: Shape, params: Params, values: Array) -> Array:
        """Return what it makes of units that have these values at every position; `params` are the network's."""
        ...


class _Learned:
    """A layer whose arithmetic and arrays are those of a Flax module."""

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Run it on a batch of values of that shape."""
        module: Any = nnx.merge(_graph(self, shape), params)
        return module(value)


class _Fixed:
    """A layer without arrays."""

    def module(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module | None:
        """Return None: nothing to learn."""
        return None


class _Unmoved:
    """A layer that a constant crosses unchanged: it only selects, averages or rearranges positions."""

    def constant(self, shape: Shape, params: Params, values: Array) -> Array:
        """Return the values themselves."""
        return values


@dataclass(frozen=True)
class Dense(_Learned):
    """z = W a + b over the last axis, at every position.

    Attributes:
      name: its params and its tap.
      features: width of the output.
      use_bias: whether b is there.
    """

    name: str
    features: int
    use_bias: bool = True

    def output_shape(self, shape: Shape) -> Shape:
        """Replace the last axis."""
        _require(min(self.features, len(shape)) >= 1, self, shape, "at least one feature and an axis to read")
        return (*shape[:-1], self.features)

    def module(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """Make an `nnx.Linear`."""
        init = _uniform(shape[-1])
        return nnx.Linear(shape[-1], self.features, use_bias=self.use_bias, kernel_init=init, bias_init=init, rngs=rngs)


@dataclass(frozen=True)
class Convolution(_Learned):
    """A convolution over the axes before the last, as many as the kernel has.

    Attributes:
      name: its params and its tap.
      features: channels of the output.
      kernel: window per axis.
      strides: step per axis.
      padding: "VALID", or "SAME" with zeros around the border.
      use_bias: whether it adds a bias.
      bias_map: whether that bias has a value of its own at every position: constants that enter where zeros surround
        the border leave such a one.
    """

    name: str
    features: int
    kernel: Shape = (3, 3)
    strides: Shape = (1, 1)
    padding: str = "VALID"
    use_bias: bool = True
    bias_map: bool = False

    def output_shape(self, shape: Shape) -> Shape:
        """Return the windows that fit and the new channels."""
        if self.padding not in PADDINGS:
            raise ValueError(f"got padding {self.padding!r} in layer {self.name!r}, expected one of {PADDINGS}")
        _require(self.features >= 1, self, shape, "at least one feature")
        if self.padding == "VALID":
            return (*_windows(self, shape, self.kernel, self.strides), self.features)
        _windows(self, shape, (1,) * len(self.kernel), self.strides)
        return (*(-(-size // step) for size, step in zip(shape, self.strides, strict=False)), self.features)

    def module(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """Make an `nnx.Conv`."""
        init = _uniform(shape[-1] * prod(self.kernel))
        return nnx.Conv(
            shape[-1], self.features, self.kernel, self.strides, padding=self.padding, use_bias=self.use_bias,
            kernel_init=init, bias_init=init, rngs=rngs,
        )  # fmt: skip

    def pads(self, shape: Shape) -> bool:
        """Return whether any window reaches over the border of an input of that shape."""
        if self.padding == "VALID":
            return False
        sizes = zip(shape, self.output_shape(shape), self.kernel, self.strides, strict=False)
        return any((after - 1) * step + window > before for before, after, window, step in sizes)


Mixing = Dense | Convolution
"""Layers that mix units: the producers and consumers of taps."""


@dataclass(frozen=True)
class BatchNorm(_Learned):
    """Normalise by stored statistics, which are params: scale (a - mean) / sqrt(var + 1e-5) + bias."""

    name: str
    mixes = True

    def output_shape(self, shape: Shape) -> Shape:
        """Keep the shape."""
        return shape

    def module(self, shape: Shape, rngs: nnx.Rngs) -> nnx.Module:
        """Make an `nnx.BatchNorm` that uses its running averages."""
        return nnx.BatchNorm(shape[-1], use_running_average=True, rngs=rngs)

    def constant(self, shape: Shape, params: Params, values: Array) -> Array:
        """Normalise the values of the units."""
        return self.apply(shape, params[self.name], values[None])[0]


@dataclass(frozen=True)
class Activation(_Fixed):
    """An elementwise function, one of `ACTIVATIONS`."""

    name: str
    function: str = "relu"

    @property
    def mixes(self) -> bool:
        """Only the identity is affine."""
        return self.function == "identity"

    def output_shape(self, shape: Shape) -> Shape:
        """Keep the shape."""
        if self.function not in ACTIVATIONS:
            raise ValueError(f"got activation {self.function!r}, expected one of {sorted(ACTIVATIONS)}")
        return shape

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Apply the function."""
        return ACTIVATIONS[self.function](value)

    def constant(self, shape: Shape, params: Params, values: Array) -> Array:
        """Apply the function to the values of the units."""
        return ACTIVATIONS[self.function](values)


@dataclass(frozen=True)
class MaxPool(_Fixed, _Unmoved):
    """The largest value of each window; windows that do not fit are dropped.

    Attributes:
      name: its tap.
      window: size per axis.
      strides: step per axis, by default the window.
    """

    name: str
    window: Shape = (2, 2)
    strides: Shape | None = None
    mixes = False

    def output_shape(self, shape: Shape) -> Shape:
        """Return the windows that fit and the channels."""
        return (*_windows(self, shape, self.window, self.strides or self.window), shape[-1])

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Pool."""
        return nnx.max_pool(value, self.window, self.strides or self.window)


@dataclass(frozen=True)
class AveragePool(_Fixed, _Unmoved):
    """The mean of each window; windows that do not fit are dropped. Attributes as in `MaxPool`."""

    name: str
    window: Shape = (2, 2)
    strides: Shape | None = None
    mixes = True

    def output_shape(self, shape: Shape) -> Shape:
        """Return the windows that fit and the channels."""
        return (*_windows(self, shape, self.window, self.strides or self.window), shape[-1])

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Pool."""
        return nnx.avg_pool(value, self.window, self.strides or self.window)


@dataclass(frozen=True)
class GlobalAverage(_Fixed, _Unmoved):
    """The mean over all positions."""

    name: str
    mixes = True

    def output_shape(self, shape: Shape) -> Shape:
        """Keep the channels."""
        _require(len(shape) > 1, self, shape, "positions to average over")
        return shape[-1:]

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Average."""
        return value.mean(axis=tuple(range(1, value.ndim - 1)))


@dataclass(frozen=True)
class Flatten(_Fixed):
    """All positions side by side, position by position: unit u at position p becomes p D + u."""

    name: str
    mixes = True

    def output_shape(self, shape: Shape) -> Shape:
        """Multiply the sizes."""
        return (prod(shape),)

    def apply(self, shape: Shape, params: Params, value: Array) -> Array:
        """Flatten."""
        return value.reshape(len(value), -1)

    def constant(self, shape: Shape, params: Params, values: Array) -> Array:
        """Repeat the values of the units for every position."""
        return jnp.tile(values, prod(shape) // values.shape[-1])


def initial_arrays(layer: Layer, shape: Shape, key: Array) -> Params | None:
    """Draw the arrays of a layer, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), or return None where it has none."""
    module = layer.module(shape, nnx.Rngs(key))
    if module is None:
        return None
    arrays = nnx.to_pure_dict(nnx.split(module)[1])
    if isinstance(layer, Convolution) and layer.bias_map:
        return {**arrays, "bias": jnp.broadcast_to(arrays["bias"], layer.output_shape(shape))}
    return arrays


@cache
def _graph(layer: Any, shape: Shape) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: layer.module(shape, nnx.Rngs(0))))[0]


def _uniform(fan_in: int) -> Callable[..., Array]:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def _windows(layer: Layer, shape: Shape, window: Shape, strides: Shape) -> Shape:
    expected = f"{len(window)} positional axes of at least {window} and one of channels, and positive steps {strides}"
    fits = len(shape) == len(window) + 1 and len(strides) == len(window) and min(*window, *strides) >= 1
    _require(fits and all(size >= least for size, least in zip(shape, window, strict=False)), layer, shape, expected)
    return tuple((size - least) // step + 1 for size, least, step in zip(shape[:-1], window, strides, strict=True))


def _require(condition: bool, layer: Layer, shape: Shape, expected: str) -> None:
    if not condition:
        raise ValueError(f"got inputs of shape {shape} for {layer}, expected {expected}")
