"""A network that is a chain of layers, each with a tap of its own, and that units can be removed from.

    a_0 = inputs,   a_i = layer_i(a_{i-1}),   logits = a_n

Params are `{layer name: {array name: array}}`. Every tap occurs once, [1, N, D]; convolutional ones have positions,
[1, N, H, W, D]. A tap's units come out of one mixing layer (dense, convolution), its *producer*, and are read by the
next one, its *consumer*; what lies between acts on each unit by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.models.layers import Convolution, Dense, Layer, Mixing, Shape, Unitwise, initial_arrays
from abstraction.models.taps import NO_EDITS, Edits, Tap, at_depth, check_resume, check_taps, tapped
from abstraction.models.wiring import Consumer, Passage, check_kept, take_units
from abstraction.typing import AnyArray, Outputs, Params

_RESERVED = ("inputs", "logits")


@dataclass(frozen=True)
class Sequential:
    """A chain of layers; implements `abstraction.models.Reducible`.

    Attributes:
      inputs: shape of one example, without the batch axis.
      layers: in the order they run.
    """

    inputs: Shape
    layers: tuple[Layer, ...]

    @property
    def taps(self) -> Mapping[str, Tap]:
        """`inputs`, the output of every layer by its name, and `logits`, the output of the last."""
        names = ["inputs", *(layer.name for layer in self.layers), "logits"]
        sizes = dict(zip(names, (self.inputs, *self._outputs, self._outputs[-1]), strict=True))
        about = {"inputs": "the network's input", "logits": "the network's output"}
        return {
            name: Tap(name, shape[-1], 1, about.get(name, "after this layer"), name not in _RESERVED)
            for name, shape in sizes.items()
        }

    def init(self, key: Array) -> Params:
        """Draw parameters, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

        Raises:
          ValueError: names repeat, or a layer does not fit what comes before it.
        """
        self._check()
        return _initial(self, key)

    def apply(
        self, params: Params, inputs: Float[AnyArray, "*N I"], edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`.

        Raises:
          ValueError: the inputs have another shape, or what `Model.apply` refuses.
        """
        check_taps(self.taps, edits, record)
        if np.shape(inputs)[1:] != self.inputs:
            raise ValueError(
                f"got inputs of shape {np.shape(inputs)}, expected (N, {', '.join(map(str, self.inputs))})"
            )
        edits = at_depth(edits, 0)
        value = tapped("inputs", jnp.asarray(inputs), edits)
        recorded = {"inputs": value}
        for index in range(len(self.layers)):
            value = recorded[self.layers[index].name] = self._step(index, params, value, edits)
        recorded["logits"] = value
        return value, {name: recorded[name][None] for name in record}

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "*N D"],
        *,
        inputs: AnyArray,
        states: Array,
    ) -> Outputs:
        """Run the layers after a tap, which is all that matters: it occurs once. See `Model.resume`."""
        check_resume(self.taps, tap, depth, activation)
        names = [layer.name for layer in self.layers]
        for index in range(names.index(tap) + 1, len(names)):
            activation = self._step(index, params, activation, NO_EDITS)
        return activation

    def consumers(self, tap: str) -> tuple[Consumer, ...]:
        """Return the layer that reads the units of a tap; see `Reducible.consumers`."""
        _, at, last = self._reach(tap)
        layer, shape = self._mixing(last), self._shapes[last]
        passages = tuple(self._passage(index) for index in range(at + 1, last))
        kernel, bias = (layer.name, "kernel"), (layer.name, "bias")
        if isinstance(layer, Dense):
            return (Consumer(kernel, bias, passages=passages),)
        window = tuple(range(len(layer.kernel)))
        plane = partial(_plane, layer, shape) if layer.pads(shape) else None
        return (Consumer(kernel, bias, (len(window),), window, passages, plane),)

    def with_biases(self, params: Params, tap: str) -> tuple["Sequential", Params]:
        """Give the layer that reads a tap a bias, of every position where it pads; see `Reducible.with_biases`."""
        last = self._reach(tap)[-1]
        layer, shape = self._mixing(last), self._shapes[last]
        mapped = isinstance(layer, Convolution) and layer.pads(shape)
        arrays = params[layer.name]
        if layer.use_bias and (not mapped or layer.bias_map):  # pyright: ignore[reportAttributeAccessIssue]
            return self, params
        space = arrays["kernel"].__array_namespace__()
        bias = arrays["bias"] if layer.use_bias else space.zeros(layer.features, arrays["kernel"].dtype)
        bias = space.broadcast_to(bias, layer.output_shape(shape)) if mapped else bias
        changes = {"use_bias": True, **({"bias_map": True} if mapped else {})}
        return self._with({last: replace(layer, **changes)}), {**params, layer.name: {**arrays, "bias": bias}}

    def narrowed(self, params: Params, tap: str, kept: Int[np.ndarray, " K"]) -> tuple["Sequential", Params]:
        """Remove the other units of a tap; see `Reducible.narrowed`."""
        first, _, last = self._reach(tap)
        producer, width = self._mixing(first), self._outputs[first][-1]
        kept = check_kept(tap, kept, width)
        narrow = dict(params)
        for index in range(first, last):
            name = self.layers[index].name
            if name in params:
                narrow[name] = {key: take_units(array, kept, width) for key, array in params[name].items()}
        consumer = self._mixing(last)
        kernel = params[consumer.name]["kernel"]
        narrow[consumer.name] = {**params[consumer.name], "kernel": take_units(kernel, kept, width, axis=-2)}
        return self._with({first: replace(producer, features=len(kept))}), narrow

    def params_from_torch(self, arrays: Mapping[str, np.ndarray]) -> Params:
        """Convert the arrays of a PyTorch checkpoint of dense layers (`fc1.weight` [out, in], `fc1.bias`).

        Raises:
          ValueError: another layer has arrays, or an array is missing, unknown, or of another shape.
        """
        params = self.init(jax.random.key(0))
        other = [layer.name for layer in self.layers if layer.name in params and not isinstance(layer, Dense)]
        if other:
            raise ValueError(f"got layers {other} with arrays of their own, expected dense ones alone")
        names = {"weight": "kernel", "bias": "bias"}
        expected = {
            f"{layer}.{theirs}": (layer, ours)
            for layer in params
            for theirs, ours in names.items()
            if ours in params[layer]
        }
        missing, unknown = sorted(set(expected) - set(arrays)), sorted(set(arrays) - set(expected))
        if missing or unknown:
            raise ValueError(f"got unknown arrays {unknown} and missed {missing}, expected {sorted(expected)}")
        for name, (layer, ours) in expected.items():
            value, like = jnp.asarray(np.asarray(arrays[name]).T), params[layer][ours]
            if value.shape != like.shape:
                raise ValueError(f"got {name!r} of shape {np.shape(arrays[name])}, expected {like.shape[::-1]}")
            params[layer][ours] = value.astype(like.dtype)
        return params

    def _step(self, index: int, params: Params, value: Array, edits: Edits) -> Array:
        layer = self.layers[index]
        value = tapped(layer.name, layer.apply(self._shapes[index], params.get(layer.name), value), edits)
        return tapped("logits", value, edits) if index == len(self.layers) - 1 else value

    def _reach(self, tap: str) -> tuple[int, int, int]:
        """Return the producer of a tap's units, the tap itself, and the consumer, as indices of layers."""
        names = [layer.name for layer in self.layers]
        if tap in _RESERVED or tap not in names:
            raise ValueError(f"got tap {tap!r}, which has no reader or no producer; expected one of {names[:-1]}")
        at = names.index(tap)
        mixing = [index for index, layer in enumerate(self.layers) if isinstance(layer, Mixing)]
        first = max((index for index in mixing if index <= at), default=None)
        last = min((index for index in mixing if index > at), default=None)
        if first is None or last is None:
            lacks = "comes before any layer that mixes units" if first is None else "is read by the output alone"
            raise ValueError(f"got tap {tap!r}, which {lacks}, expected one between two such layers")
        if self._outputs[at][-1] != self._outputs[first][-1]:
            raise ValueError(
                f"got tap {tap!r}, which holds {names[first]!r} position by position, so its units have no producer "
                "apart, expected one before positions are flattened"
            )
        return first, at, last

    def _passage(self, index: int) -> Passage:
        layer, shape = cast(Unitwise, self.layers[index]), self._shapes[index]
        return Passage(f"{type(layer).__name__} {layer.name!r}", partial(layer.constant, shape), mixes=layer.mixes)

    def _mixing(self, index: int) -> Mixing:
        return cast(Mixing, self.layers[index])

    def _with(self, layers: Mapping[int, Layer]) -> "Sequential":
        return replace(self, layers=tuple(layers.get(index, layer) for index, layer in enumerate(self.layers)))

    def _check(self) -> None:
        names = [*_RESERVED, *(layer.name for layer in self.layers)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if not self.inputs or not all(isinstance(size, int | np.integer) and size >= 1 for size in self.inputs):
            raise ValueError(f"got inputs of shape {self.inputs}, expected sizes of at least 1")
        if repeated or not self.layers:
            raise ValueError(f"got layer names {names[2:]}, expected at least one, distinct and none of {_RESERVED}")

    @cached_property
    def _outputs(self) -> tuple[Shape, ...]:
        self._check()
        shapes = [self.inputs]
        for layer in self.layers:
            shapes.append(layer.output_shape(shapes[-1]))
        return tuple(shapes[1:])

    @property
    def _shapes(self) -> tuple[Shape, ...]:
        return (self.inputs, *self._outputs[:-1])


@partial(jax.jit, static_argnames=("config",))
def _initial(config: Sequential, key: Array) -> Params:
    arrays = {
        layer.name: initial_arrays(layer, shape, jax.random.fold_in(key, index))
        for index, (layer, shape) in enumerate(zip(config.layers, config._shapes, strict=True))
    }
    return {name: value for name, value in arrays.items() if value is not None}


def _plane(layer: Convolution, shape: Shape, params: Params, values: Array) -> Array:
    """Return the convolution, without bias, of inputs that have these values at every position."""
    plane = jnp.broadcast_to(values, (1, *shape))
    return replace(layer, use_bias=False, bias_map=False).apply(shape, {"kernel": params[layer.name]["kernel"]}, plane)[
        0
    ]
