"""Curvature of a tap, a few classes or a few units at a time: nothing of classes by classes, or by units, is made.

With J = dF/de the Jacobian of one example's outputs in its activation `[P, D]`, and B = L L^T the Hessian of the
discrepancy in the outputs, G = J^T B J is what an example adds. It is summed by whichever side is thinner:

    classes   C rows of L^T J, one pull a class:            G = sum_r row_r row_r^T
    units     P D columns J^T B J e, one push and one pull: G e                            (where P D < C)

In memory are the rows or columns of one chunk, and the sums. A network runs in its own precision; sums are float64.
Each chunk runs the network up to its outputs once more: a share of about one in the number of its pulls.

Source: CMR, arXiv 2602.24266 (second-order interventional risk); the order of summation is ours.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from abstraction.models import Network
from abstraction.models.base import present
from abstraction.planning import Program
from abstraction.pytrees import pytree
from abstraction.reduction.calibration import Calibration
from abstraction.reduction.curvature import bend_at, gradient_at, pull, suffix_at
from abstraction.reduction.discrepancies import Discrepancy
from abstraction.sharding import mesh_of, run_rows
from abstraction.typing import AnyArray

_NUMBERS = {True: 2**22, False: 2**28}
"""Numbers that one chunk may hold, on a CPU and elsewhere: 16 MiB and 1 GiB of float32."""


class Local(NamedTuple):
    """What one batch says of a tap, but for its curvature.

    Attributes:
      activation: `[N, P, D]`.
      gradient: of the discrepancy, `[N, P, D]`.
      there: where there is no padding, `[N, P]`.
    """

    activation: Float[Array, "N P D"]
    gradient: Float[Array, "N P D"]
    there: Bool[Array, "N P"]


@pytree
class Curved:
    """Sums over examples of a_j H_jj a_j, -a_j H_jj 1 and 1 H_jj 1, `[D]`, and of G within positions, `[D, D]`."""

    eps_eps: Float[AnyArray, " D"]
    eps_kappa: Float[AnyArray, " D"]
    kappa_kappa: Float[AnyArray, " D"]
    hessian: Float[AnyArray, "D D"]


def local_curvature(
    network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy, key: Array | None = None
) -> tuple[Local, Curved]:
    """Return what a batch says of a tap, and the sums of its Gauss-Newton curvature in float64.

    With a key the curvature is that of one drawn class an example: the Fisher estimate.
    """
    activation, outputs = jax.eval_shape(partial(_seen, tap=tap), network, batch)
    (count, positions, width), classes = activation.shape, outputs.shape[-1]
    if key is not None:
        local, rows = _drawn(key, network, batch, tap, discrepancy)
        return local, _added(_add_rows, _zeros(width), local.activation, rows)
    units, chunks = positions * width < classes, _chunks(count, positions * width, classes)
    add, mesh = _add_columns if units else _add_rows, mesh_of(network.params)
    at = partial(_program, network, batch, {"tap": tap, "discrepancy": discrepancy, "mesh": mesh}, units)
    local, found = at(chunks[0])()
    sums = _added(add, _zeros(width), local.activation, found, chunks[0])
    for indices in chunks[1:]:
        sums = _added(add, sums, local.activation, at(indices)()[1], indices)
    return local, _symmetric(sums) if units else sums


def curvature_programs(network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy) -> tuple[Program, int]:
    """Make the first program of `local_curvature`, and say how many of them there are."""
    activation, outputs = jax.eval_shape(partial(_seen, tap=tap), network, batch)
    (count, positions, width), classes = activation.shape, outputs.shape[-1]
    chunks, mesh = _chunks(count, positions * width, classes), mesh_of(network.params)
    given = {"tap": tap, "discrepancy": discrepancy, "mesh": mesh}
    return _program(network, batch, given, positions * width < classes, chunks[0]), len(chunks)


def _chunks(count: int, units: int, classes: int) -> Int[np.ndarray, "C b"]:
    """Cut classes, or units where they are fewer, into chunks of one size; those beyond the last count nothing."""
    steps = min(units, classes)
    chunk = min(steps, max(1, _NUMBERS[jax.default_backend() == "cpu"] // (count * max(units, classes))))
    return np.arange(-(-steps // chunk) * chunk, dtype=np.int32).reshape(-1, chunk)


def _program(network: Network, batch: Calibration, given: dict[str, Any], units: bool, indices: Any) -> Program:
    return Program(_columns if units else _rows, (network, batch), {**given, "indices": jax.device_put(indices)})


def _seen(network: Network, batch: Calibration, *, tap: str) -> tuple[Array, Array]:
    suffix = suffix_at(network, batch.inputs, tap)
    return suffix.activation, suffix.outputs


def _zeros(width: int) -> Curved:
    return Curved(np.zeros(width), np.zeros(width), np.zeros(width), np.zeros((width, width)))


def _symmetric(sums: Curved) -> Curved:
    """Undo the rounding by which a column at j differs at i from that at i."""
    hessian = np.asarray(sums.hessian)
    return dataclasses.replace(sums, hessian=(hessian + hessian.T) / 2)


def _added(add: Callable[..., Curved], *values: Any) -> Curved:
    with jax.enable_x64(True):
        return add(*values)


def _by_example(some: Callable[..., tuple[Local, Array]]) -> Callable[..., tuple[Local, Array]]:
    """Compile what returns some rows or columns of every example; on a mesh each device has its own examples."""

    @partial(jax.jit, static_argnames=("tap", "discrepancy", "mesh"))
    def program(
        network: Network,
        batch: Calibration,
        tap: str,
        discrepancy: Discrepancy,
        indices: Int[Array, " b"],
        mesh: Mesh | None = None,
    ) -> tuple[Local, Float[Array, "b N P D"]]:
        own = lambda network, indices, batch: some(network, batch, tap, discrepancy, indices)
        return run_rows(mesh, own, batch, given=(network, indices), out=(0, 1))

    return program


@_by_example
def _rows(
    network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy, classes: Int[Array, " b"]
) -> tuple[Local, Float[Array, "b N P D"]]:
    """Return some rows of L^T J; those beyond the last class are 0."""
    suffix = suffix_at(network, batch.inputs, tap)
    last = suffix.outputs.shape[-1] - 1
    columns = bend_at(suffix, batch, discrepancy).columns(jnp.minimum(classes, last))
    columns = jnp.where((classes <= last)[:, None, None], columns, 0)
    pulled = pull(suffix, jnp.concatenate([gradient_at(suffix, batch, discrepancy)[None], columns]))
    return _local(network, batch, tap, suffix.activation, pulled[0]), pulled[1:]


@_by_example
def _columns(
    network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy, units: Int[Array, " b"]
) -> tuple[Local, Float[Array, "b N P D"]]:
    """Return some columns of J^T B J of every example; those beyond the last unit and position are 0."""
    suffix = suffix_at(network, batch.inputs, tap)
    shape = suffix.activation.shape
    bend, push = bend_at(suffix, batch, discrepancy), jax.linearize(suffix.run, jnp.zeros_like(suffix.activation))[1]
    # One hot beyond the end is 0 everywhere.
    along = jax.nn.one_hot(units, shape[1] * shape[2], dtype=suffix.activation.dtype).reshape(-1, *shape[1:])
    bent = jax.vmap(lambda one: bend.product(push(jnp.broadcast_to(one, shape))))(along)
    pulled = pull(suffix, jnp.concatenate([gradient_at(suffix, batch, discrepancy)[None], bent]))
    return _local(network, batch, tap, suffix.activation, pulled[0]), pulled[1:]


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def _drawn(
    key: Array, network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy
) -> tuple[Local, Float[Array, "1 N P D"]]:
    """Return the row of a class drawn from the outputs of each example."""
    suffix = suffix_at(network, batch.inputs, tap)
    p = jax.nn.softmax(suffix.outputs)
    drawn = jax.random.categorical(key, suffix.outputs, shape=(1, len(p)))
    factors = p - jax.nn.one_hot(drawn, p.shape[-1], dtype=p.dtype)
    pulled = pull(suffix, jnp.concatenate([gradient_at(suffix, batch, discrepancy)[None], factors]))
    return _local(network, batch, tap, suffix.activation, pulled[0]), pulled[1:]


def _local(network: Network, batch: Calibration, tap: str, activation: Array, gradient: Array) -> Local:
    return Local(activation, gradient, present(network.model, batch.inputs, tap, activation.shape[1]))


@partial(jax.jit, donate_argnames=("sums",))
def _add_rows(
    sums: Curved,
    activation: Float[Array, "N P D"],
    rows: Float[Array, "b N P D"],
    indices: Int[Array, " b"] | None = None,
) -> Curved:
    """Add squares of rows: of what each sums to over positions, and within positions by one product."""
    # Examples come first, so that devices may share them in one product; einsum over three axes loses a digit.
    flat = jnp.moveaxis(rows, 1, 0).reshape(-1, rows.shape[-1])
    hessian = jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST).astype(jnp.float64)
    activation, rows = activation.astype(jnp.float64), rows.astype(jnp.float64)
    eps, kappa = -(rows * activation).sum(2), rows.sum(2)
    total = lambda values: values.sum((0, 1))
    new = Curved(total(eps**2), total(eps * kappa), total(kappa**2), hessian)
    return jax.tree.map(jnp.add, sums, new)


@partial(jax.jit, donate_argnames=("sums",))
def _add_columns(
    sums: Curved, activation: Float[Array, "N P D"], columns: Float[Array, "b N P D"], indices: Int[Array, " b"]
) -> Curved:
    """Add columns: each is that of one unit at one position, and H_jj its part at that unit, over positions."""
    positions, width = columns.shape[2:]
    # Indices beyond the end have columns of 0, wherever they are added.
    unit, position = indices % width, indices // width % positions
    place = jnp.arange(len(indices))
    hessian = jnp.asarray(sums.hessian).at[:, unit].add(columns[place, :, position].astype(jnp.float64).sum(1).T)
    own = jnp.moveaxis(columns[place, :, :, unit].astype(jnp.float64), 0, -1)  # [N, P, b]
    states = activation.astype(jnp.float64)[:, :, unit]
    here = jnp.moveaxis(activation.astype(jnp.float64)[:, position, unit], 0, -1)  # [b, N]
    moved = (own * states).sum(1).T
    total = lambda old, values: jnp.asarray(old).at[unit].add(values.sum(-1))
    return Curved(
        total(sums.eps_eps, here * moved),
        total(sums.eps_kappa, -moved),
        total(sums.kappa_kappa, own.sum(1).T),
        hessian,
    )
