"""Interchange-intervention accuracy (IIA).

    IIA_i = fraction of pairs whose patched output decodes to y(b; Z_i <- z_i(s))           (Geiger et al. 2021)

counted apart on the pairs that are active for the variable (sensitive) and on those that are not (invariant). Their
mean is the combined score. Counts are kept rather than rates, so banks pool by addition and intervals need nothing
else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Real

from abstraction.causal import PairBank
from abstraction.evaluation.confidence import LEVEL, binomial_interval, standard_error
from abstraction.evaluation.readouts import Readout, scored
from abstraction.evaluation.recording import Recorded, check_recorded
from abstraction.interventions import Handle
from abstraction.interventions.handles import at_one_depth, check_handles
from abstraction.interventions.patching import Runs, handle_chunk, patched_outputs, planned_chunk, resume_chunk
from abstraction.models import Network
from abstraction.models.network import on_device
from abstraction.planning import Program
from abstraction.pytrees import pytree
from abstraction.sharding import CANDIDATES, devices_along, mesh_of, on_host, over, run_candidates
from abstraction.typing import AnyArray

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

    def half(self, column: int) -> "Tally":
        """Keep the counts of one half, sensitive or invariant, and none of the other."""
        keep = np.arange(2) == column
        return jax.tree.map(lambda leaf: leaf * keep, self)

    @property
    def iia(self) -> Float[np.ndarray, "*H 2"]:
        """Accuracy per half; NaN where a half has no pairs."""
        return _ratio(self.hits, self.pairs)

    @property
    def combined(self) -> Float[np.ndarray, "*H"]:
        """Mean of the halves that have pairs; NaN where there are none."""
        return _mean_of_halves(self.iia)

    @property
    def mean_loss(self) -> Float[np.ndarray, "*H"]:
        """Mean over halves of the mean loss per pair; infinite where an output was not finite, NaN without pairs."""
        return _mean_of_halves(_ratio(self.loss, self.pairs))

    def interval(self, level: float = LEVEL) -> tuple[Float[np.ndarray, "*H"], Float[np.ndarray, "*H"]]:
        """Bounds of the combined score: means over the halves that have pairs of their Clopper-Pearson bounds."""
        bounds = binomial_interval(self.hits, self.pairs, level)
        low, high = (_mean_of_halves(np.where(self.pairs > 0, bound, np.nan)) for bound in bounds)
        return low, high

    @property
    def error(self) -> Float[np.ndarray, "*H"]:
        """Standard error of the combined score, the mean of the halves that have pairs: no hits or all leave some."""
        there = self.pairs > 0
        squares = np.where(there, standard_error(self.hits, self.pairs) ** 2, 0.0).sum(axis=-1)
        return np.sqrt(squares) / np.maximum(there.sum(axis=-1), 1)


def tally_handles(network: Network, recorded: Recorded, handles: Handle, variable: Int[np.ndarray, " H"]) -> Tally:
    """Count hits of many handles on one bank.

    Handles go through one compiled program in blocks of fixed size, whatever their number. Handles that each act at
    one depth resume the network there. An output that is not finite is a miss, and its loss infinite.

    Args:
      network: the network.
      recorded: the pairs, as it runs them.
      handles: a batch of H handles.
      variable: which variable of the bank each handle stands for, `[H]`.

    Raises:
      ValueError: handles that do not fit their tap, or a variable index that is not one.
    """
    if handles.tap not in recorded.runs.source:
        raise ValueError(f"got handles of tap {handles.tap!r}, expected a recorded one: {sorted(recorded.runs.source)}")
    check_recorded(recorded, network)
    count, bank = check_handles(handles, network.taps[handles.tap]), recorded.bank
    variable = _variables(variable, count, bank)
    handles = at_one_depth(handles)
    network, masks, shares = on_device(network), _halves(bank), devices_along(mesh_of(network.params), CANDIDATES)
    block = _block_size(handles, shares)
    local = handles.depth is not None and network.taps[handles.tap].resumes
    most = -(-min((resume_chunk if local else handle_chunk)(recorded.runs, handles.tap), block) // shares)
    at = partial(tally_program, network, recorded, (handles, variable), 0)
    chunk = planned_chunk(at, network, recorded.runs, handles.tap, most=most)
    parts = [tally_program(network, recorded, (handles, variable), start, chunk)() for start in range(0, count, block)]
    hits, loss = (np.concatenate(part)[:count] for part in zip(*on_host(parts), strict=True))
    return Tally(hits, masks.sum(axis=-1)[variable], loss)


def tally_program(
    network: Network, recorded: Recorded, batch: tuple[Handle, Int[np.ndarray, " H"]], start: int, chunk: int
) -> Program:
    """Make the program of `tally_handles` for one block of handles and their variables, from `start` on."""
    mesh, bank, count = mesh_of(network.params), recorded.bank, len(batch[1])
    block = _block_size(batch[0], devices_along(mesh, CANDIDATES))
    part = jax.tree.map(lambda leaf: _padded(leaf[start : start + block], block), batch)
    own = over(mesh, None, ((bank.labels, _halves(bank)), part, np.int32(min(block, count - start))))
    return Program(_tally_block, (network, recorded.runs, *own), {"counting": _Counting(recorded.readout, chunk, mesh)})


def _halves(bank: PairBank) -> Bool[np.ndarray, "V 2 N"]:
    """Return which pairs count as sensitive, and which as invariant."""
    return np.stack([bank.eligible & bank.active, bank.eligible & ~bank.active], axis=1)


def _variables(variable: Int[np.ndarray, " H"], count: int, bank: PairBank) -> Int[np.ndarray, " H"]:
    values = np.asarray(variable)
    if not np.issubdtype(values.dtype, np.integer) or values.shape not in ((), (count,)):
        raise ValueError(
            f"got variables of shape {values.shape} and type {values.dtype}, expected a whole number for each of "
            f"{count} handles"
        )
    if values.size and not 0 <= values.min() <= values.max() < len(bank.variables):
        raise ValueError(
            f"got variable indices {values.min()} to {values.max()}, expected 0 to {len(bank.variables) - 1}"
        )
    return np.broadcast_to(values.astype(np.int32), (count,))


class _Counting(NamedTuple):
    """What a program that counts is compiled for."""

    readout: Readout
    chunk: int
    mesh: Mesh | None


@partial(jax.jit, static_argnames=("counting",))
def _tally_block(
    network: Network,
    runs: Runs,
    known: tuple[Int[Array, "V N"], Bool[Array, "V 2 N"]],
    batch: tuple[Handle, Int[Array, " H"]],
    count: Int[Array, ""],
    counting: _Counting,
) -> tuple[Int[Array, "H 2"], Float[Array, "H 2"]]:
    """Tally the first `count` handles of a block; the rest is padding and costs nothing.

    Devices of `candidates` take handles in turn, so that few of them are shared as well as many.
    """
    readout, chunk, mesh = counting
    shares, given = devices_along(mesh, CANDIDATES), (network, runs, *known)

    def one(given: tuple[Any, ...], handle: Handle, variable: Array) -> tuple[Array, Array]:
        network, runs, labels, masks = given
        outputs = patched_outputs(network, runs, handle)
        hit, loss = scored(readout, outputs, labels[variable])
        mask = masks[variable]
        summed = jnp.where(mask, loss, 0.0).sum(axis=-1, dtype=jnp.float32)
        return (mask & hit).sum(axis=-1, dtype=jnp.int32), summed

    def all_of(given: tuple[Any, ...], batch: tuple[Handle, Array], count: Array) -> tuple[Array, Array]:
        return _counted(partial(one, given), batch, count, chunk)

    if shares == 1:
        return all_of(given, batch, count)
    dealt = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, shares, *leaf.shape[1:]), 1, 0), batch)
    counts = (count - jnp.arange(shares) + shares - 1) // shares
    first, back = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), lambda leaf: leaf[None]
    own = lambda given, share: jax.tree.map(back, all_of(given, *first(share)))
    found = run_candidates(mesh, own, (dealt, counts), given=(given,))
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, 2), found)


def _counted(
    one: Callable[[Handle, Array], tuple[Array, Array]], batch: tuple[Handle, Array], count: Array, chunk: int
) -> tuple[Int[Array, "H 2"], Float[Array, "H 2"]]:
    """Count the first handles of a batch, a chunk at a time."""

    def step(index: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last chunk may reach back into the one before it: dynamic slices clamp, and recomputing is harmless.
        part = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index * chunk, chunk), batch)
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

    size = batch[1].shape[0]
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
      ValueError: the handles have a basis or a depth, so that weights alone do not identify them, or there is not a
        variable for each.
    """
    if handles.basis is not None or handles.depth is not None:
        raise ValueError("got handles with a basis or a depth, expected native handles, which their weights identify")
    weight, variable = np.asarray(handles.weight, np.float64), np.asarray(variable)
    if weight.ndim != 3 or variable.shape != (len(weight),) or variable.dtype.kind not in "iu":
        raise ValueError(
            f"got weights of shape {weight.shape} and variables of shape {variable.shape} and type {variable.dtype}, "
            "expected [H, L, K] and a whole number for each handle"
        )
    weight = np.round(weight * 2.0**20) / 2.0**20 + 0.0
    table = np.concatenate([variable[:, None], weight.reshape(len(weight), -1)], axis=1).astype(np.float32)
    rows = table.view(np.dtype((np.void, table.dtype.itemsize * table.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    distinct = Handle(handles.tap, weight[first].astype(np.float32))
    return distinct, variable[first], inverse.reshape(-1)


def _block_size(handles: Handle, shares: int) -> int:
    """Return how many handles go into one call: a power of two, so that few programs serve all counts.

    Where devices share them, the next number that they share equally.
    """
    one = sum(leaf.nbytes // max(len(leaf), 1) for leaf in jax.tree.leaves(handles))
    block = min(_BLOCK, 2 ** int(np.log2(max(_BLOCK_BYTES // max(one, 1), 1))))
    return -(-block // shares) * shares


def _padded(leaf: AnyArray, size: int) -> AnyArray:
    if len(leaf) == size:
        return leaf
    numpy = leaf.__array_namespace__()
    return numpy.concatenate([leaf, numpy.zeros((size - len(leaf), *leaf.shape[1:]), leaf.dtype)])


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _mean_of_halves(values: np.ndarray) -> np.ndarray:
    present = ~np.isnan(values)
    mean = np.where(present, values, 0.0).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return np.where(present.any(axis=-1), mean, np.nan)
