"""Several devices as one mesh, and work laid out along it.

    pairs        examples: pairs of a bank, calibration inputs, trials
    candidates   what is tried on them: sites, handles, searches
    model        a decoder's own arrays: heads, units of its MLPs, its vocabulary

A mesh is given once, by putting a network's weights on it (`abstraction.models.on_mesh`). Computation follows data:
what runs that network finds the mesh on its weights and lays its own axis out along it. Weights on no mesh run as ever.
Along `pairs` and `model` XLA splits each operation; along `candidates` every device runs the program of its own share
(`jax.shard_map`), so that a loop over sites is shorter on each and skips what its own sites skip.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from abstraction.checks import whole
from abstraction.pytrees import leading_axis

AXES = PAIRS, CANDIDATES, MODEL = "pairs", "candidates", "model"
_ROWS = (PAIRS, CANDIDATES)
"""Where nothing is tried on examples, all devices but those of one model share them."""


def device_mesh(pairs: int = 1, candidates: int = 1, model: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Make a mesh of the first devices there are.

    Args:
      pairs: devices that pairs are split among.
      candidates: devices that sites, handles or searches are split among.
      model: devices that the network's own arrays are split among.
      devices: which, by default all that JAX sees.

    Raises:
      ValueError: a size below 1, or more devices than there are.
    """
    sizes = dict(zip(AXES, (pairs, candidates, model), strict=True))
    for name, size in sizes.items():
        whole(f"devices along {name!r}", size)
    there, count = list(jax.devices() if devices is None else devices), pairs * candidates * model
    if count > len(there):
        raise ValueError(
            f"got a mesh of {' x '.join(f'{name}={size}' for name, size in sizes.items())}, {count} devices, expected "
            f"at most {len(there)}, those there are"
        )
    return Mesh(np.array(there[:count]).reshape(tuple(sizes.values())), AXES)


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh that arrays lie on, None where that is none of `device_mesh`."""
    for leaf in jax.tree.leaves(tree):
        where = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
        if isinstance(where, NamedSharding) and isinstance(where.mesh, Mesh) and where.mesh.axis_names == AXES:
            return where.mesh
    return None


def devices_along(mesh: Mesh | None, *axes: str) -> int:
    """Return how many devices share what is laid out along some axes; 1 without a mesh."""
    return 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in axes]))


def check_share(what: str, count: int, mesh: Mesh | None) -> None:
    """Refuse numbers of examples that devices cannot share equally: padded pairs would be counted, and drawn.

    Raises:
      ValueError: says what they should be a multiple of.
    """
    if count % devices_along(mesh, PAIRS):
        raise ValueError(
            f"got {count} {what}, expected a multiple of {devices_along(mesh, PAIRS)}, the devices of 'pairs'"
        )


def over(mesh: Mesh | None, name: str | None, tree: Any, axis: int = 0) -> Any:
    """Split an axis of arrays among the devices of `pairs` or `candidates`; with None every device has all.

    Within a program too. Arrays are as they are without a mesh.
    """
    if mesh is None:
        return tree
    where = NamedSharding(mesh, PartitionSpec(*[None] * axis, name) if name else PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, where), tree)


def put(leaf: Any, where: NamedSharding) -> Any:
    """Lay an array out, within a program or outside of one, or say of a shape that it is so.

    Of devices that are not there, which one can only compile for, an array becomes its shape. Where other processes
    have some of the devices, every process gives its own part of an array that all of them have.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct) or not (isinstance(leaf, Tracer) or _is_there(where.mesh)):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    if isinstance(leaf, Tracer):
        return jax.lax.with_sharding_constraint(leaf, where)
    if where.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        return jax.device_put(leaf, where)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(leaf), where), impl=jax.random.key_impl(leaf))
    here = np.asarray(leaf)
    return jax.make_array_from_callback(here.shape, where, lambda index: here[index])


def to_device(tree: Any) -> Any:
    """Send arrays of the host to the device, or to all devices of the mesh that others of them lie on; those stay."""
    mesh = mesh_of(tree)
    where = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    if where is None or where.is_fully_addressable:
        return jax.device_put(tree)
    there = lambda leaf: isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    return jax.tree.map(lambda leaf: leaf if there(leaf) else put(leaf, where), tree)


def on_host(tree: Any) -> Any:
    """Return arrays as the host's; those that several processes have parts of are put together in each of them."""
    return jax.device_get(jax.tree.map(_whole, tree))


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    where: Any = leaf.sharding
    return jax.device_put(leaf, NamedSharding(where.mesh, PartitionSpec()))


@cache
def _is_there(mesh: Any) -> bool:
    first = mesh.devices.flat[0]
    return first in jax.devices() or first in jax.devices("cpu")


def over_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Split the first axis of arrays among all devices but those of one model.

    As they are without a mesh; where the number does not divide, every device has all: these are rests of few rows.
    """
    if mesh is None:
        return tree
    divides = leading_axis(tree) == shared_rows(mesh, leading_axis(tree))
    where = NamedSharding(mesh, PartitionSpec(_ROWS) if divides else PartitionSpec())
    return jax.tree.map(lambda leaf: put(leaf, where), tree)


def shared_rows(mesh: Mesh | None, count: int) -> int:
    """Return the next number of rows that all devices but those of one model share equally."""
    shares = devices_along(mesh, *_ROWS)
    return -(-count // shares) * shares


def run_rows(mesh: Mesh | None, function: Callable[..., Any], rows: Any, *, given: tuple[Any, ...], out: Any) -> Any:
    """Run a function of examples, each device on its own: what loops over them loops over few.

    Args:
      mesh: where.
      function: of what is given, and examples that lead with N, to arrays that have them at the axes of `out`;
        examples do not interact.
      rows: the examples; where their number does not divide, the last is repeated and what it gives is cut.
      given: what every device has: arrays must come this way, those that a function closes over know another mesh.
      out: at which axis the result has its examples, a tree prefix of whole numbers.
    """
    shares = devices_along(mesh, *_ROWS)
    if mesh is None or shares == 1:
        return function(*given, rows)
    count = leading_axis(rows)
    rows = _padded(rows, shared_rows(mesh, count))
    specs = jax.tree.map(lambda axis: PartitionSpec(*[None] * axis, _ROWS), out)
    own = (*[PartitionSpec()] * len(given), PartitionSpec(_ROWS))
    split = jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=specs, axis_names=set(_ROWS), check_vma=False)
    cut = lambda axis, tree: jax.tree.map(lambda leaf: jax.lax.slice_in_dim(leaf, 0, count, axis=axis), tree)
    return jax.tree.map(cut, out, split(*given, rows))


def run_candidates(
    mesh: Mesh | None, function: Callable[..., Any], batch: Any, *, given: tuple[Any, ...] = (), of: int = 1
) -> Any:
    """Run a function of a batch of candidates, each device on its own ones, equally many.

    Args:
      mesh: where; without one, or with one device along `candidates`, the function has the whole batch.
      function: of what is given, and a batch, to results that lead with its axis; candidates do not interact.
      batch: arrays that lead with the number of candidates; the last is repeated until there are enough.
      given: see `run_rows`.
      of: a device's share is a multiple of this.
    """
    shares = devices_along(mesh, CANDIDATES)
    if mesh is None or shares == 1:
        return function(*given, batch)
    count = leading_axis(batch)
    share = -(-count // (shares * of)) * of
    spec = PartitionSpec(CANDIDATES)
    own = (*[PartitionSpec()] * len(given), spec)
    split = jax.shard_map(function, mesh=mesh, in_specs=own, out_specs=spec, axis_names={CANDIDATES}, check_vma=False)
    return jax.tree.map(lambda leaf: leaf[:count], split(*given, _padded(batch, share * shares)))


def _padded(tree: Any, size: int) -> Any:
    count = leading_axis(tree)
    if size == count:
        return tree
    rows = np.minimum(np.arange(size), count - 1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], tree)
