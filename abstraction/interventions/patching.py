"""Record once, patch many.

The source run of a pair does not depend on what is patched, so both runs of a bank are recorded once and reused by
every site, handle, strength and training step. A patched run is a function of the handle alone; mapping it over a
batch of handles is one compiled program, cut into chunks of as many as pay, of which so many as fit the device.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from abstraction.checks import places
from abstraction.interventions.edits import Interchange
from abstraction.interventions.handles import Handle
from abstraction.models import Network
from abstraction.models.base import Recordable
from abstraction.models.meshes import split_inputs
from abstraction.planning import At, Program, fitting_chunk
from abstraction.pytrees import leading_axis, pytree
from abstraction.sharding import (
    CANDIDATES,
    PAIRS,
    check_share,
    devices_along,
    mesh_of,
    over,
    over_rows,
    run_candidates,
    run_rows,
    shared_rows,
)
from abstraction.typing import AnyArray, Outputs

CHUNK_BYTES = 8 * 2**20
"""Activations of one layer that pay while handles are mapped: they stay in the cache of a CPU, and an accelerator has
enough to do. Of tokens D wide in b bytes they are 2^23 / (D b) rows of a matrix product, 1,820 of Gemma-2-2B's, and
some 300 are as many as it takes (989 TFLOP/s over 3.35 TB/s of an H100, 197 over .82 of a TPU v5e)."""

_WORK = 2**13
"""Activations from which on a handle is worth a step of its own on a CPU."""


@pytree
class Runs:
    """The base and source runs of N pairs.

    Attributes:
      inputs: network inputs of the base runs, `[N, ...]`, and whatever else the model wants for resuming.
      outputs: outputs of the base runs, `[N, C]`.
      base: recorded activations of the base runs by tap, `[L, N, ..., D]`.
      source: recorded activations of the source runs by tap, `[L, N, ..., D]`.
    """

    inputs: Any
    outputs: Array
    base: dict[str, Array]
    source: dict[str, Array]


def factual_outputs(network: Network, inputs: Any) -> Outputs:
    """Run the network without any edit; devices of a mesh share the inputs, and all have the outputs."""
    mesh = mesh_of(network.params)
    return _outputs(network, over_rows(mesh, inputs), mesh)


@partial(jax.jit, static_argnames=("mesh",))
def _outputs(network: Network, inputs: Any, mesh: Mesh | None) -> Outputs:
    return over(mesh, None, network(inputs)[0])


def run_pairs(network: Network, base_inputs: Any, source_inputs: Any, *, taps: tuple[str, ...]) -> Runs:
    """Run base and source once each and keep the activations of `taps`.

    Args:
      network: the network.
      base_inputs: inputs of the base runs, an array or a pytree of arrays that share their leading axis N.
      source_inputs: inputs of the source runs, likewise.
      taps: the activations to keep.

    Raises:
      ValueError: an unknown tap, other numbers of bases and sources, or inputs that the model cannot resume on.
    """
    if unknown := [tap for tap in taps if tap not in network.taps]:
        raise ValueError(f"got taps {unknown} to record, expected some of {sorted(network.taps)}")
    sizes = leading_axis(base_inputs), leading_axis(source_inputs)
    if sizes[0] != sizes[1]:
        raise ValueError(f"got {sizes[0]} base and {sizes[1]} source inputs, expected one of each per pair")
    if isinstance(network.model, Recordable):
        # Here, where values are known: inside the program they are traced.
        network.model.check(base_inputs)
        network.model.check(source_inputs)
    mesh = mesh_of(network.params)
    check_share("pairs", sizes[0], mesh)
    at = partial(recording_program, network, base_inputs, source_inputs, taps)
    whole = at(None)
    kept = whole.function.trace(*whole.arguments, **whole.options).jaxpr.out_avals  # the trace that is then compiled
    one = sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept) // max(sizes[0], 1)
    # On a mesh each device runs its own rows, so many of them at a time.
    rows = shared_rows(mesh, sizes[0]) // shared_rows(mesh, 1)
    return split_pairs(mesh, at(fitting_chunk(at, rows, one))())


def split_pairs(mesh: Mesh | None, runs: Runs) -> Runs:
    """Split the pairs of runs among the devices of `pairs`; those of `candidates` all have them."""
    if mesh is None:
        return runs
    parts = over(mesh, PAIRS, runs.outputs), over(mesh, PAIRS, (runs.base, runs.source), axis=1)
    # Of runs that are shapes alone this says where they would be.
    leaves = jax.tree.leaves((split_inputs(mesh, runs.inputs), *parts))
    return jax.tree.unflatten(jax.tree.structure(runs), leaves)


def recording_program(
    network: Network, base_inputs: Any, source_inputs: Any, taps: tuple[str, ...], batch: int | None
) -> Program:
    """Make the program of `run_pairs`, `batch` pairs of each device at a time; None for all."""
    mesh = mesh_of(network.params)
    rows = shared_rows(mesh, leading_axis(base_inputs)) // shared_rows(mesh, 1)
    batch = None if batch is None or batch >= rows else batch
    given = network, *over_rows(mesh, (base_inputs, source_inputs))
    return Program(_run_pairs, given, {"taps": taps, "batch": batch, "mesh": mesh})


@partial(jax.jit, static_argnames=("taps", "batch", "mesh"))
def _run_pairs(
    network: Network,
    base_inputs: Any,
    source_inputs: Any,
    taps: tuple[str, ...],
    batch: int | None = None,
    mesh: Mesh | None = None,
) -> Runs:
    run = lambda network, sides: _flat(_run_batches(network, sides, taps, batch))
    flat, states = run_rows(mesh, run, (base_inputs, source_inputs), given=(network,), out=(0, 1))
    return Runs(*flat, *states)


def _flat(runs: Runs) -> tuple[tuple[Any, Array], tuple[dict[str, Array], dict[str, Array]]]:
    """Return what leads with N, and what has it next."""
    return (runs.inputs, runs.outputs), (runs.base, runs.source)


def _run_batches(network: Network, sides: tuple[Any, Any], taps: tuple[str, ...], batch: int | None) -> Runs:
    """Run all pairs, `batch` of them at most at a time."""
    run = lambda sides: _run_batch(network, sides[0], sides[1], taps)
    if batch is None:
        return run(sides)
    sides = jax.tree.map(jnp.asarray, sides)
    count, kept = leading_axis(sides), jax.eval_shape(run, sides)

    def step(index: Array, runs: Runs) -> Runs:
        # The last batch may reach back into the one before it: dynamic slices clamp, and what it writes is there.
        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * batch, batch)
        put = lambda axis: lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, index * batch, axis)
        part = run(jax.tree.map(cut, sides))
        inputs, outputs = jax.tree.map(put(0), (runs.inputs, runs.outputs), (part.inputs, part.outputs))
        base, source = jax.tree.map(put(1), (runs.base, runs.source), (part.base, part.source))
        return Runs(inputs, outputs, base, source)

    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)
    return jax.lax.fori_loop(0, -(-count // batch), step, empty)


def _run_batch(network: Network, base_inputs: Any, source_inputs: Any, taps: tuple[str, ...]) -> Runs:
    model = network.model
    if isinstance(model, Recordable):
        inputs, outputs, base = model.record(network.params, base_inputs, taps)
        return Runs(inputs, outputs, base, model.record(network.params, source_inputs, taps)[2])
    outputs, base = network(base_inputs, record=taps)
    _, source = network(source_inputs, record=taps)
    return Runs(jax.tree.map(jnp.asarray, base_inputs), outputs, base, source)


def patched_outputs(network: Network, runs: Runs, handle: Handle) -> Outputs:
    """Run the base inputs with one handle's features taken from the source: outputs `[N, C]`.

    A handle without a depth runs the whole network, so its depths act in order, each on states the shallower ones have
    changed. One with a depth edits the recorded base state and resumes there, where its tap resumes; the two agree.
    """
    if handle.tap not in runs.source:
        raise ValueError(f"got a handle of tap {handle.tap!r}, expected a recorded tap: {sorted(runs.source)}")
    source = runs.source[handle.tap]
    if handle.depth is None or not network.taps[handle.tap].resumes:
        return network(runs.inputs, handle.edits(source))[0]
    depth = jnp.asarray(handle.depth)
    edit = Interchange(source[depth], jnp.asarray(handle.weight), handle.basis)
    states = runs.base[handle.tap]
    edited = edit(states[depth]).astype(states.dtype)  # an edit computes in float32, a network perhaps in bfloat16
    return network.resume(handle.tap, depth, edited, inputs=runs.inputs, states=states)


@jax.jit
def handle_outputs(network: Network, runs: Runs, handles: Handle) -> Array:
    """Run the base inputs once for each of a few handles: outputs `[H, N, C]`."""
    return map_handles(lambda handle: patched_outputs(network, runs, handle), handles, chunk=1)


def map_handles(
    function: Callable[..., Any],
    handles: Any,
    *,
    chunk: int,
    given: tuple[Any, ...] = (),
    mesh: Mesh | None = None,
) -> Any:
    """Apply a function to every handle of a batch, or every site, `chunk` of them at most at a time, in one program.

    On a mesh each device of `candidates` maps its own share; there the function must close over no array, and is called
    with those that are `given` before the handle.
    """
    share = -(-leading_axis(handles) // devices_along(mesh, CANDIDATES))
    chunk = min(chunk, share)
    mapped = lambda *arrays: _map_handles(partial(function, *arrays[:-1]), arrays[-1], chunk=chunk)
    return run_candidates(mesh, mapped, handles, given=given, of=chunk)


def _map_handles(function: Callable[[Any], Any], handles: Any, *, chunk: int) -> Any:
    count = leading_axis(handles)
    chunk = -(-count // -(-count // chunk))
    if chunk == 1:
        return jax.lax.map(function, handles)
    # Chunks of one size: a shorter one at the end would be compiled, and run, beside them.
    rows = jnp.minimum(jnp.arange(-(-count // chunk) * chunk), count - 1)
    padded = handles if len(rows) == count else jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], handles)
    return jax.tree.map(lambda leaf: leaf[:count], jax.lax.map(function, padded, batch_size=chunk))


def handle_chunk(runs: Runs, tap: str, budget: int = CHUNK_BYTES) -> int:
    """Return how many handles to patch at once so that one layer's activations fit the budget in bytes."""
    source = runs.source[tap]
    return max(1, budget // max(math.prod(source.shape[1:]) * source.dtype.itemsize, 1))


def planned_chunk(
    at: At,
    network: Network,
    runs: Runs,
    tap: str,
    depths: Int[AnyArray, " H"] | None = None,
    *,
    most: int | None = None,
) -> int:
    """Return how many handles to patch at once: as many as pay, of which so many as fit the device.

    Args:
      at: makes the program that patches them, for some size of chunk.
      network: the network.
      runs: the pairs.
      tap: where.
      depths: of the handles, in their order; None where nothing is known.
      most: at most so many; None for what `resume_chunk` says.

    Raises:
      ValueError: a single one does not fit.
    """
    allowed = (lambda bound: resume_chunk(runs, tap, depths, bound)) if most is None else int
    wanted, guess = resume_chunk(runs, tap, depths) if most is None else most, patched_bytes(network, runs, tap)
    return fitting_chunk(at, wanted, runs.outputs.shape[0] * guess, allowed=allowed)


def patched_bytes(network: Network, runs: Runs, tap: str) -> int:
    """Guess the bytes that one patched pair holds: its states, as wide as the widest of the network's parameters."""
    widest = max((size for leaf in jax.tree.leaves(network.params) for size in np.shape(leaf)), default=1)
    return 4 * math.prod(runs.source[tap].shape[2:-1]) * max(widest, runs.outputs.shape[1])


def resume_chunk(runs: Runs, tap: str, depths: Int[AnyArray, " H"] | None = None, bound: int | None = None) -> int:
    """Return how many handles, each of one depth, to patch at once.

    Where it pays to skip layers, those that are patched together have to be of one depth: as many as fit, of handles
    that come depth by depth, equally many of each.

    Args:
      runs: the pairs.
      tap: where.
      depths: of the handles, in their order; None where nothing is known.
      bound: no more than so many fit; None where nothing is known.
    """
    most = handle_chunk(runs, tap)
    most = most if bound is None else min(most, bound)
    if not pays_to_skip(runs, tap, runs.outputs.shape[0]):
        return most
    if depths is None or not len(depths):
        return 1
    starts = np.flatnonzero(np.diff(np.asarray(depths), prepend=-1))
    together = int(np.gcd.reduce(np.diff(np.append(starts, len(depths)))))
    return max(count for count in range(1, together + 1) if together % count == 0 and count <= most)


def pays_to_skip(runs: Runs, tap: str, pairs: int) -> bool:
    """Tell whether handles are better run apart, on so many of the pairs, so that each skips the layers before it.

    Under vmap a network that resumes in its middle computes every layer and drops some. One handle at a time it skips
    them, which pays on a CPU as soon as one handle is work enough; an accelerator needs the batch. Work is counted in
    numbers read per layer: those of the tap, and those of what the inputs keep (of prompts, the tokens around it).
    """
    source = runs.source[tap]
    kept = sum(leaf.size for leaf in jax.tree.leaves(runs.inputs)) // source.shape[0]
    work = (math.prod(source.shape[1:]) + kept) * pairs // runs.outputs.shape[0]
    return jax.default_backend() == "cpu" and work >= _WORK


def take_pairs(runs: Runs, rows: Int[AnyArray, " B"]) -> Runs:
    """Pick some pairs.

    Raises:
      ValueError: a row is not a whole number of 0 to N - 1; rows that JAX traces cannot be checked.
    """
    places("rows", rows, runs.outputs.shape[0])
    mesh = mesh_of(runs.outputs)
    check_share("rows", len(rows), mesh)
    return split_pairs(mesh, _take_pairs(runs, jnp.asarray(rows)))


@jax.jit
def _take_pairs(runs: Runs, rows: Int[Array, " B"]) -> Runs:
    states = jax.tree.map(lambda values: jnp.take(values, rows, axis=1), (runs.base, runs.source))
    inputs = jax.tree.map(lambda values: values[rows], runs.inputs)
    return Runs(inputs, runs.outputs[rows], *states)


def reorder_sources(runs: Runs, order: Int[AnyArray, " N"]) -> Runs:
    """Give pair t the source of pair `order[t]`.

    Raises:
      ValueError: there is not one pair for each, or one is not there; an order that JAX traces cannot be checked.
    """
    count = runs.outputs.shape[0]
    places("pairs to take sources from", order, count)
    if np.shape(order) != (count,):
        raise ValueError(f"got an order of shape {np.shape(order)}, expected ({count},), a pair for each")
    source = over(mesh_of(runs.outputs), PAIRS, _reordered(runs.source, jnp.asarray(order)), axis=1)
    return Runs(runs.inputs, runs.outputs, runs.base, source)


@jax.jit
def _reordered(states: dict[str, Array], order: Int[Array, " N"]) -> dict[str, Array]:
    return {name: values[:, order] for name, values in states.items()}
