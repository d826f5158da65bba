"""Record once, patch many.

The source run of a pair does not depend on what is patched, so both runs of a bank are recorded once and reused by
every site, handle, strength and training step. A patched run is a function of the handle alone; mapping it over a
batch of handles is one compiled program, cut into chunks by a memory budget.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from abstraction.interventions.edits import Interchange
from abstraction.interventions.sites import AnyHandle, Handle, LocalHandle
from abstraction.models import Model, Recordable
from abstraction.pytrees import leading_axis, pytree
from abstraction.typing import AnyArray, Outputs, Params

CHUNK_BYTES = 8 * 2**20
"""Activations held at once while handles are mapped: a cache-sized default that also fills an accelerator."""

_WORK = 2**13
"""Activations from which on a handle is worth a step of its own on a CPU."""


@pytree
class Recording:
    """The base and source runs of N pairs.

    Attributes:
      inputs: network inputs of the base runs, `[N, ...]`, and whatever else the model wants for resuming.
      outputs: outputs of the base runs, `[N, C]`.
      base: recorded activations of the base runs by tap, `[L, N, D]`.
      source: recorded activations of the source runs by tap, `[L, N, D]`.
    """

    inputs: Any
    outputs: Array
    base: dict[str, Array]
    source: dict[str, Array]


@partial(jax.jit, static_argnames=("model",))
def factual_outputs(model: Model, params: Params, inputs: Any) -> Outputs:
    """Run the network without any edit."""
    return model.apply(params, inputs)[0]


def record_pairs(
    model: Model, params: Params, base_inputs: Any, source_inputs: Any, *, taps: tuple[str, ...]
) -> Recording:
    """Run base and source once each and keep the activations of `taps`.

    Raises:
      ValueError: an unknown tap, or inputs that the model cannot resume on.
    """
    if isinstance(model, Recordable):
        # Here, where values are known: inside the program they are traced.
        model.check(base_inputs)
        model.check(source_inputs)
    return _recorded_pairs(model, params, base_inputs, source_inputs, taps)


@partial(jax.jit, static_argnames=("model", "taps"))
def _recorded_pairs(
    model: Model, params: Params, base_inputs: Any, source_inputs: Any, taps: tuple[str, ...]
) -> Recording:
    if isinstance(model, Recordable):
        inputs, outputs, base = model.record(params, base_inputs, taps)
        return Recording(inputs, outputs, base, model.record(params, source_inputs, taps)[2])
    outputs, base = model.apply(params, base_inputs, record=taps)
    _, source = model.apply(params, source_inputs, record=taps)
    return Recording(jnp.asarray(base_inputs), outputs, base, source)


def patched_outputs(model: Model, params: Params, recording: Recording, handle: Handle | LocalHandle) -> Outputs:
    """Run the base inputs with one handle's features taken from the source: outputs `[N, C]`.

    A `Handle` runs the whole network, so its depths act in order, each on states the shallower ones have changed. A
    `LocalHandle` edits the recorded base state and resumes there; the two agree on a handle of one depth.
    """
    source = recording.source[handle.tap]
    if isinstance(handle, Handle):
        return model.apply(params, recording.inputs, handle.edits(source))[0]
    depth = jnp.asarray(handle.depth)
    edit = Interchange(source[depth], jnp.asarray(handle.weight), handle.basis)
    states = recording.base[handle.tap]
    return model.resume(params, handle.tap, depth, edit(states[depth]), inputs=recording.inputs, states=states)


@partial(jax.jit, static_argnames=("model",))
def handle_outputs(model: Model, params: Params, recording: Recording, handles: Handle | LocalHandle) -> Array:
    """Run the base inputs once for each of a few handles: outputs `[H, N, C]`."""
    return map_handles(lambda handle: patched_outputs(model, params, recording, handle), handles, chunk=1)


def map_handles(function: Callable[[AnyHandle], Array], handles: AnyHandle, *, chunk: int) -> Array:
    """Apply a function to every handle of a batch, `chunk` of them at a time, inside one program."""
    chunk = min(chunk, leading_axis(handles))
    return jax.lax.map(function, handles, batch_size=chunk if chunk > 1 else None)


def handle_chunk(recording: Recording, tap: str, budget: int = CHUNK_BYTES) -> int:
    """Return how many handles to patch at once so that one layer's activations fit the budget in bytes."""
    _, pairs, width = recording.source[tap].shape
    return max(1, budget // (pairs * width * recording.source[tap].dtype.itemsize))


def resume_chunk(recording: Recording, tap: str) -> int:
    """Return how many handles of one depth to patch at once.

    Under vmap a network that resumes in its middle computes every layer and drops some. One handle at a time it skips
    them, which pays on a CPU as soon as one handle is work enough; an accelerator needs the batch. Work is counted in
    numbers read per layer: those of the tap, and those of what the inputs keep (of prompts, the tokens around it).
    """
    depth, pairs, width = recording.source[tap].shape
    kept = sum(leaf.size for leaf in jax.tree.leaves(recording.inputs)) // depth
    enough = pairs * width + kept >= _WORK
    return 1 if jax.default_backend() == "cpu" and enough else handle_chunk(recording, tap)


def take_pairs(recording: Recording, rows: Int[AnyArray, " B"]) -> Recording:
    """Pick some pairs of a recording."""
    states = jax.tree.map(lambda values: jnp.take(values, rows, axis=1), (recording.base, recording.source))
    inputs = jax.tree.map(lambda values: values[rows], recording.inputs)
    return Recording(inputs, recording.outputs[rows], *states)


def reorder_sources(recording: Recording, order: Int[AnyArray, " N"]) -> Recording:
    """Give pair t the source of pair `order[t]`."""
    source = {name: states[:, order] for name, states in recording.source.items()}
    return Recording(recording.inputs, recording.outputs, recording.base, source)


def stack_handles(handles: Sequence[AnyHandle]) -> AnyHandle:
    """Join single handles of one kind into a batch.

    Raises:
      ValueError: they differ in kind, tap or basis shape.
    """
    if len({jax.tree.structure(handle) for handle in handles}) != 1:
        raise ValueError(f"got {len(handles)} handles of different kinds, expected one kind, tap and basis")
    return jax.tree.map(lambda *leaves: leaves[0].__array_namespace__().stack(leaves), *handles)


def take_handle(handles: AnyHandle, index: int | Int[AnyArray, "..."]) -> AnyHandle:
    """Pick one handle, or several, from a batch."""
    return jax.tree.map(lambda leaf: leaf[index] if isinstance(leaf, Array) else np.asarray(leaf[index]), handles)
