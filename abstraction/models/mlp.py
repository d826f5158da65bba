"""A multilayer perceptron with depth as a scan axis.

    z_0 = x W_in + b_in,   h_l = phi(z_l),   z_{l+1} = h_l W_l + b_l,   logits = h_{L-1} W_out + b_out

Taps: `preactivation` (z) and `hidden` (h), each L x D, and `inputs`, `logits`, once. Weights and biases start as
U(-1/sqrt(fan_in), 1/sqrt(fan_in)), the law of the paper's backbones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from abstraction.models.initialization import uniform_linear
from abstraction.models.layers import ACTIVATIONS
from abstraction.models.taps import NO_EDITS, Edits, Tap, at_depth, check_resume, check_taps, tapped, tapped_once
from abstraction.typing import AnyArray, Outputs, Params

_PER_LAYER = ("preactivation", "hidden")


@dataclass(frozen=True)
class MLP:
    """An MLP of `depth` hidden layers of equal width; implements `abstraction.models.Model`.

    Attributes:
      inputs: input features.
      width: units D per hidden layer.
      depth: hidden layers L, at least 1.
      outputs: logits C.
      activation: one of `ACTIVATIONS`.
    """

    inputs: int
    width: int
    depth: int
    outputs: int
    activation: str = "relu"

    @property
    def taps(self) -> Mapping[str, Tap]:
        """`inputs`, `preactivation`, `hidden`, `logits`."""
        taps = (
            Tap("inputs", self.inputs, about="the network's input"),
            Tap("preactivation", self.width, self.depth, "hidden units before the nonlinearity", resumes=True),
            Tap("hidden", self.width, self.depth, "hidden units after the nonlinearity", resumes=True),
            Tap("logits", self.outputs, about="the network's output"),
        )
        return {tap.name: tap for tap in taps}

    def init(self, key: Array) -> Params:
        """Draw parameters.

        Raises:
          ValueError: a size is below 1, or the activation is unknown.
        """
        sizes = (self.inputs, self.width, self.depth, self.outputs)
        if not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
            raise ValueError(f"got sizes {sizes} of (inputs, width, depth, outputs), expected each to be at least 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"got activation {self.activation!r}, expected one of {sorted(ACTIVATIONS)}")
        return _initial(self, key)

    def apply(
        self,
        params: Params,
        inputs: Float[AnyArray, "N inputs"],
        edits: Edits = NO_EDITS,
        record: Sequence[str] = (),
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`.

        Raises:
          ValueError: the inputs have another shape, or what `Model.apply` refuses.
        """
        check_taps(self.taps, edits, record)
        if np.shape(inputs)[1:] != (self.inputs,):
            raise ValueError(f"got inputs of shape {np.shape(inputs)}, expected (N, {self.inputs})")
        network = self._network(params)
        inputs, read = tapped_once("inputs", jnp.asarray(inputs), edits)
        per_layer = {name: edit for name, edit in edits.items() if name in _PER_LAYER}
        first, rest = at_depth(per_layer, 0), at_depth(per_layer, slice(1, None))

        hidden, layer = self._layer(network.stem, inputs, first, record)
        layers = jax.tree.map(lambda value: value[None], layer)
        if network.blocks is not None:
            graph, weights = nnx.split(network.blocks)

            def step(hidden: Array, inputs: tuple) -> tuple[Array, dict[str, Array]]:
                weights, edits = inputs
                return self._layer(nnx.merge(graph, weights), hidden, edits, record)

            hidden, others = jax.lax.scan(step, hidden, (weights, rest))
            layers = jax.tree.map(lambda one, many: jnp.concatenate([one, many]), layers, others)
        logits, emitted = tapped_once("logits", network.head(hidden), edits)
        recorded = {**layers, "inputs": read, "logits": emitted}
        return logits, {name: recorded[name] for name in record}

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N D"],
        *,
        inputs: Float[AnyArray, "N inputs"],
        states: Float[Array, "L N D"],
    ) -> Outputs:
        """Run from `preactivation` or `hidden` at one depth, which is all that matters; see `Model.resume`."""
        check_resume(self.taps, tap, depth, activation)
        network = self._network(params)
        hidden = activation if tap == "hidden" else ACTIVATIONS[self.activation](activation)
        if network.blocks is not None:
            graph, weights = nnx.split(network.blocks)

            def step(hidden: Array, inputs: tuple) -> tuple[Array, None]:
                index, weights = inputs
                run = lambda h: self._layer(nnx.merge(graph, weights), h, NO_EDITS, ())[0]
                return jax.lax.cond(index > depth, run, lambda h: h, hidden), None

            hidden, _ = jax.lax.scan(step, hidden, (jnp.arange(1, self.depth), weights))
        return network.head(hidden)

    def _layer(
        self, linear: nnx.Linear, inputs: Array, edits: Edits, record: Sequence[str]
    ) -> tuple[Array, dict[str, Array]]:
        preactivation = tapped("preactivation", linear(inputs), edits)
        hidden = tapped("hidden", ACTIVATIONS[self.activation](preactivation), edits)
        values = {"preactivation": preactivation, "hidden": hidden}
        return hidden, {name: value for name, value in values.items() if name in record}

    def _network(self, params: Params) -> "_Network":
        return nnx.merge(self._graph, params)

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: _Network(self, nnx.Rngs(0))))[0]


@partial(jax.jit, static_argnames=("config",))
def _initial(config: MLP, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.split(_Network(config, nnx.Rngs(key)))[1])


class _Network(nnx.Module):
    """Parameters of an MLP: `stem`, `blocks` (stacked over depth, or None) and `head`."""

    def __init__(self, config: MLP, rngs: nnx.Rngs):
        self.stem = uniform_linear(config.inputs, config.width, config.inputs**-0.5, rngs)
        stack = nnx.split_rngs(splits=config.depth - 1)(
            nnx.vmap(lambda rngs: uniform_linear(config.width, config.width, config.width**-0.5, rngs))
        )
        self.blocks = stack(rngs) if config.depth > 1 else None
        self.head = uniform_linear(config.width, config.outputs, config.width**-0.5, rngs)
