"""A gated recurrent network that emits one bit per step and one more at the end, with time as the depth axis.

    r_t = sigmoid(x_t W_r + b_r + h_{t-1} U_r + c_r)         reset
    z_t = sigmoid(x_t W_z + b_z + h_{t-1} U_z + c_z)         update
    n_t = tanh(x_t W_n + b_n + r_t (h_{t-1} U_n + c_n))      candidate
    h_t = (1 - z_t) n_t + z_t h_{t-1},   h_{-1} = 0
    logits = (h_0 w + v, ..., h_{L-1} w + v, h_{L-1} w' + v')

The gates are those of PyTorch's GRUCell, in its order r, z, n. Taps: `inputs`, `hidden` (L x D), `logits`. An edit of
`hidden` at step t changes the output bit read there and every later step.

Units of `hidden` can be removed (`abstraction.models.Reducible`). They are read by the recurrent kernel and both heads,
which are affine; the leak z_t h_{t-1} is elementwise and goes with its unit. The state starts at 0, so only an affine
map that sends a zero state to zero describes the replaced units at every step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from abstraction.models.initialization import uniform_linear
from abstraction.models.taps import NO_EDITS, Edits, Tap, check_resume, check_taps, tapped, tapped_once
from abstraction.models.wiring import Consumer, Passage, check_kept, find_array, replace_array, take_units
from abstraction.typing import AnyArray, Outputs, Params

_TORCH_NAMES = {
    "cell.weight_ih": ("cell", "inputs", "kernel"),
    "cell.bias_ih": ("cell", "inputs", "bias"),
    "cell.weight_hh": ("cell", "state", "kernel"),
    "cell.bias_hh": ("cell", "state", "bias"),
    "sum_head.weight": ("step", "kernel"),
    "sum_head.bias": ("step", "bias"),
    "final_carry_head.weight": ("final", "kernel"),
    "final_carry_head.bias": ("final", "bias"),
}
_CONSUMERS = tuple(
    Consumer((*path, "kernel"), (*path, "bias"), passages=passages)
    for path, passages in (
        (("cell", "state"), (Passage("the first step, whose state is 0", shifts=False),)),
        (("step",), ()),
        (("final",), ()),
    )
)


@dataclass(frozen=True)
class GRU:
    """A GRU of `depth` steps that emits `depth + 1` logits; implements `abstraction.models.Reducible`.

    Attributes:
      inputs: features read per step.
      width: state size D.
      depth: steps L.
    """

    inputs: int
    width: int
    depth: int

    @property
    def taps(self) -> Mapping[str, Tap]:
        """`inputs`, `hidden`, `logits`."""
        taps = (
            Tap("inputs", self.inputs, self.depth, "what is read at each step"),
            Tap("hidden", self.width, self.depth, "the state after each step", resumes=True),
            Tap("logits", self.depth + 1, about="one logit per step and a final one"),
        )
        return {tap.name: tap for tap in taps}

    def init(self, key: Array) -> Params:
        """Draw parameters, U(-1/sqrt(width), 1/sqrt(width)).

        Raises:
          ValueError: a size is below 1.
        """
        sizes = (self.inputs, self.width, self.depth)
        if not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
            raise ValueError(f"got sizes {sizes} of (inputs, width, depth), expected each to be at least 1")
        return _initial(self, key)

    def apply(
        self, params: Params, inputs: Float[AnyArray, "N L I"], edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`.

        Raises:
          ValueError: the inputs do not have `depth` steps, or what `Model.apply` refuses.
        """
        check_taps(self.taps, edits, record)
        network = self._network(params)
        steps = self._steps(inputs)
        per_step = {name: edit for name, edit in edits.items() if name != "logits"}

        def step(state: Array, slices: tuple[Array, Edits]) -> tuple[Array, tuple[Array, Array]]:
            read, edits = slices
            read = tapped("inputs", read, edits)
            state = tapped("hidden", network.cell(read, state), edits)
            return state, (read, state)

        start = jnp.zeros((steps.shape[1], self.width), steps.dtype)
        _, (read, states) = jax.lax.scan(step, start, (steps, per_step))
        logits, emitted = tapped_once("logits", network.logits(states), edits)
        recorded = {"inputs": read, "hidden": states, "logits": emitted}
        return logits, {name: recorded[name] for name in record}

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N D"],
        *,
        inputs: Float[AnyArray, "N L I"],
        states: Float[Array, "L N D"],
    ) -> Outputs:
        """Run from the state after one step; earlier bits are read off the recorded states. See `Model.resume`."""
        check_resume(self.taps, tap, depth, activation)
        network = self._network(params)

        def step(state: Array, slices: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            index, read, recorded = slices
            given = jnp.where(index < depth, recorded, activation)
            state = jnp.where(index > depth, network.cell(read, state), given)
            return state, state

        slices = (jnp.arange(self.depth), self._steps(inputs), states)
        # Unrolled, the gradient keeps no stacks of what each step saved: half the time of a search.
        _, after = jax.lax.scan(step, jnp.zeros_like(activation), slices, unroll=True)
        return network.logits(after)

    def consumers(self, tap: str) -> tuple[Consumer, ...]:
        """Return the readers of `hidden`: the recurrent kernel and both heads; see `Reducible.consumers`."""
        if tap != "hidden":
            raise ValueError(f"got tap {tap!r}, whose units cannot be removed, expected 'hidden'")
        return _CONSUMERS

    def with_biases(self, params: Params, tap: str) -> tuple["GRU", Params]:
        """Return the network as it is: all its maps have biases."""
        return self, params

    def narrowed(self, params: Params, tap: str, kept: Int[np.ndarray, " K"]) -> tuple["GRU", Params]:
        """Remove the other units of `hidden`, with their columns in all three gates; see `Reducible.narrowed`."""
        kept = check_kept(tap, kept, self.width)
        for consumer in self.consumers(tap):
            kernel = find_array(params, consumer.kernel)
            params = replace_array(params, consumer.kernel, take_units(kernel, kept, self.width, axis=0))
        gates = jax.tree.map(lambda array: take_units(array, kept, self.width), params["cell"])
        return replace(self, width=len(kept)), {**params, "cell": gates}

    def params_from_torch(self, arrays: Mapping[str, np.ndarray]) -> Params:
        """Convert the arrays of a PyTorch checkpoint (`cell.weight_ih`, ..., gate order r, z, n).

        Raises:
          ValueError: an array is missing, unknown, or of another shape.
        """
        params = self.init(jax.random.key(0))
        missing, unknown = sorted(set(_TORCH_NAMES) - set(arrays)), sorted(set(arrays) - set(_TORCH_NAMES))
        if missing or unknown:
            raise ValueError(f"got unknown arrays {unknown} and missed {missing}, expected {sorted(_TORCH_NAMES)}")
        for name, path in _TORCH_NAMES.items():
            *parents, leaf = path
            target = params
            for part in parents:
                target = target[part]
            value = jnp.asarray(np.asarray(arrays[name]).T)
            if value.shape != target[leaf].shape:
                raise ValueError(
                    f"got {name!r} of shape {np.shape(arrays[name])}, expected {target[leaf].shape[::-1]} for a GRU of "
                    f"width {self.width} with {self.inputs} inputs"
                )
            target[leaf] = value.astype(target[leaf].dtype)
        return params

    def _steps(self, inputs: AnyArray) -> Float[Array, "L N I"]:
        if np.ndim(inputs) != 3 or np.shape(inputs)[1:] != (self.depth, self.inputs):
            raise ValueError(f"got inputs of shape {np.shape(inputs)}, expected (N, {self.depth}, {self.inputs})")
        return jnp.swapaxes(jnp.asarray(inputs), 0, 1)

    def _network(self, params: Params) -> "_Network":
        return nnx.merge(self._graph, params)

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: _Network(self, nnx.Rngs(0))))[0]


@partial(jax.jit, static_argnames=("config",))
def _initial(config: GRU, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.split(_Network(config, nnx.Rngs(key)))[1])


class _Cell(nnx.Module):
    """One step; `inputs` and `state` hold the three gates side by side in the order r, z, n."""

    def __init__(self, config: GRU, rngs: nnx.Rngs):
        bound = config.width**-0.5
        self.inputs = uniform_linear(config.inputs, 3 * config.width, bound, rngs)
        self.state = uniform_linear(config.width, 3 * config.width, bound, rngs)

    def __call__(self, inputs: Float[Array, "N I"], state: Float[Array, "N D"]) -> Float[Array, "N D"]:
        read, kept = (jnp.split(linear, 3, axis=-1) for linear in (self.inputs(inputs), self.state(state)))
        reset, update = jax.nn.sigmoid(read[0] + kept[0]), jax.nn.sigmoid(read[1] + kept[1])
        candidate = jnp.tanh(read[2] + reset * kept[2])
        return (1 - update) * candidate + update * state


class _Network(nnx.Module):
    """Parameters of a GRU: `cell`, the head read at each `step`, and the `final` head."""

    def __init__(self, config: GRU, rngs: nnx.Rngs):
        self.cell = _Cell(config, rngs)
        self.step = uniform_linear(config.width, 1, config.width**-0.5, rngs)
        self.final = uniform_linear(config.width, 1, config.width**-0.5, rngs)

    def logits(self, states: Float[Array, "L N D"]) -> Float[Array, "N L+1"]:
        """Read every step's bit, and the last carry off the last state."""
        bits = jnp.concatenate([self.step(states)[..., 0], self.final(states[-1:])[..., 0]])
        return bits.T
