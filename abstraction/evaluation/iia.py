"""Interchange-intervention accuracy (IIA).

    IIA_i = fraction of pairs whose patched output decodes to y(b; Z_i <- z_i(s))           (Geiger et al. 2021)

counted apart on the pairs that are active for the variable (sensitive) and on those that are not (invariant). Their
mean is the combined score. Counts are kept rather than rates, so banks pool by addition and intervals need nothing
else.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from abstraction.causal import PairBank
from abstraction.evaluation.readouts import CLASSES, Readout
from abstraction.interventions import Handle, LocalHandle, Recording, handle_chunk, patched_outputs, resume_chunk
from abstraction.models import Model
from abstraction.pytrees import leading_axis, pytree
from abstraction.typing import AnyArray, Params

SENSITIVE, INVARIANT = 0, 1
_BLOCK = 1024
_BLOCK_BYTES = 64 * 2**20


@pytree
class Tally:
    """Counts for H handles, `[H, 2]` each: column 0 over sensitive pairs, column 1 over invariant pairs.

    Controls hold means of counts over repetitions.

    Attributes:
      hits: pairs whose prediction is the label.
      pairs: pairs that count.
      loss: sum of the per-pair loss.
    """

    hits: Real[np.ndarray, "*H 2"]
    pairs: Real[np.ndarray, "*H 2"]
    loss: Float[np.ndarray, "*H 2"]

    def __add__(self, other: "Tally") -> "Tally":
        return jax.tree.map(np.add, self, other)

    def __getitem__(self, index: object) -> "Tally":
        return jax.tree.map(lambda leaf: leaf[index], self)

    @property
    def iia(self) -> Float[np.ndarray, "*H 2"]:
        """Accuracy per half; NaN where a half has no pairs."""
        return _ratio(self.hits, self.pairs)

    @property
    def combined(self) -> Float[np.ndarray, "*H"]:
        """Mean of the halves that have pairs."""
        return _mean_of_halves(self.iia)

    @property
    def mean_loss(self) -> Float[np.ndarray, "*H"]:
        """Mean over the halves of the mean loss per pair."""
        return _mean_of_halves(_ratio(self.loss, self.pairs))


def tally_handles(
    model: Model,
    params: Params,
    recording: Recording,
    bank: PairBank,
    handles: Handle | LocalHandle,
    variable: Int[np.ndarray, " H"],
    *,
    readout: Readout = CLASSES,
) -> Tally:
    """Count hits of many handles on one bank.

    Handles go through one compiled program in blocks of fixed size, whatever their number.

    Args:
      model: the network.
      params: its weights.
      recording: the bank's base and source runs, in the bank's order.
      bank: labels and masks.
      handles: a batch of H handles.
      variable: which variable of the bank each handle stands for, `[H]`.
      readout: how outputs meet labels.

    Raises:
      ValueError: recording and bank differ in size, or a variable index is out of range.
    """
    count = leading_axis(handles)
    variable = np.broadcast_to(np.asarray(variable, np.int32), (count,))
    if recording.outputs.shape[0] != bank.size:
        raise ValueError(f"got a recording of {recording.outputs.shape[0]} pairs, expected the bank's {bank.size}")
    if count and not 0 <= variable.min() <= variable.max() < len(bank.variables):
        raise ValueError(f"got variable indices up to {variable.max()}, expected 0 to {len(bank.variables) - 1}")
    block = _block_size(handles)
    masks = np.stack([bank.eligible & bank.active, bank.eligible & ~bank.active], axis=1)
    most = resume_chunk if isinstance(handles, LocalHandle) else handle_chunk
    chunk = min(most(recording, handles.tap), block)
    parts = []
    for start in range(0, count, block):
        part = jax.tree.map(lambda leaf, start=start: _padded(leaf[start : start + block], block), handles)
        hits, loss = _tally_block(
            model, params, recording, bank.labels, masks, part, _padded(variable[start : start + block], block),
            np.int32(min(block, count - start)), readout=readout, chunk=chunk,
        )  # fmt: skip
        parts.append((np.asarray(hits), np.asarray(loss)))
    hits, loss = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    return Tally(hits, masks.sum(axis=-1)[variable], loss)


@partial(jax.jit, static_argnames=("model", "readout", "chunk"))
def _tally_block(
    model: Model,
    params: Params,
    recording: Recording,
    labels: Int[Array, "V N"],
    masks: Bool[Array, "V 2 N"],
    handles: Handle | LocalHandle,
    variable: Int[Array, " H"],
    count: Int[Array, ""],
    *,
    readout: Readout,
    chunk: int,
) -> tuple[Int[Array, "H 2"], Float[Array, "H 2"]]:
    """Tally the first `count` handles of a block; the rest is padding and costs nothing."""

    def one(handle: Handle | LocalHandle, variable: Array) -> tuple[Array, Array]:
        outputs = patched_outputs(model, params, recording, handle)
        hit = readout.decode(outputs) == labels[variable]
        loss = readout.loss(outputs, labels[variable])
        mask = masks[variable]
        return (mask & hit).sum(axis=-1, dtype=jnp.int32), (mask * loss).sum(axis=-1, dtype=jnp.float32)

    def step(index: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last chunk may reach back into the one before it: dynamic slices clamp, and recomputing is harmless.
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * chunk, chunk), (handles, variable))
        # A batch of one is no batch: there the network skips what it need not run.
        run = (
            jax.vmap(one)
            if chunk > 1
            else lambda *single: jax.tree.map(
                lambda value: value[None], one(*jax.tree.map(lambda leaf: leaf[0], single))
            )
        )
        return jax.tree.map(
            lambda total, new: jax.lax.dynamic_update_slice_in_dim(total, new, index * chunk, axis=0),
            totals,
            run(*part),
        )

    size = variable.shape[0]
    empty = (jnp.zeros((size, 2), jnp.int32), jnp.zeros((size, 2), jnp.float32))
    return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, step, empty)


def unique_handles(
    handles: Handle, variable: Int[np.ndarray, " H"]
) -> tuple[Handle, Int[np.ndarray, " U"], Int[np.ndarray, " H"]]:
    """Drop repetitions of the same native handle for the same variable, so that each is evaluated once.

    Weights are rounded to multiples of 2^-20 first, so that handles that differ by rounding error are one.

    Returns:
      The U distinct handles, the variable of each, and for each given handle the index of its equal among them.

    Raises:
      ValueError: the handles have a basis, so that weights alone do not identify them.
    """
    if handles.basis is not None:
        raise ValueError("got handles with a basis, expected native handles, which their weights identify")
    weight = np.round(np.asarray(handles.weight) * 2.0**20) / 2.0**20 + 0.0
    table = np.concatenate([variable[:, None], weight.reshape(len(weight), -1)], axis=1).astype(np.float32)
    rows = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    distinct = weight[first].astype(np.float32)
    return Handle(distinct, None, handles.tap), variable[first], inverse.reshape(-1)


def _block_size(handles: Handle | LocalHandle) -> int:
    """Return how many handles go into one call: a power of two, so that few programs serve all counts."""
    one = sum(leaf.nbytes // max(len(leaf), 1) for leaf in jax.tree.leaves(handles))
    return min(_BLOCK, 2 ** int(np.log2(max(_BLOCK_BYTES // max(one, 1), 1))))


def _padded(leaf: AnyArray, size: int) -> AnyArray:
    if len(leaf) == size:
        return leaf
    numpy = leaf.__array_namespace__()
    return numpy.concatenate([leaf, numpy.zeros((size - len(leaf), *leaf.shape[1:]), leaf.dtype)])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean_of_halves(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    return np.where(present, values, 0.0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
