"""Running a program with edits: equation by equation, with the edit at its place and a record kept.

What has no tap inside is bound as it is, so that a run without edits is the user's own. What has is rebuilt: a `scan`
takes the edits of its steps as `xs` and gives their records as `ys`, `checkpoint` and `cond` are written anew, a `jit`
is run in place. A function with a derivative rule of its own (`custom_jvp`, `custom_vjp`, `custom_vmap`) that has a tap
inside is run by its body and differentiated as such.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core
from jaxtyping import Array

from abstraction.models.any_model.program import (
    JITTED,
    REMAT,
    RULED,
    Spot,
    bodies,
    inner_line,
    opened,
    own_info,
    scan_parts,
    spot_of,
    tap_mark,
)
from abstraction.models.taps import Edits, tapped
from abstraction.typing import AnyArray

Records = dict[str, Array]


class Where(NamedTuple):
    """Where in a program some equations are.

    Attributes:
      line: the source line whose inside this is; empty at the top.
      address: the indices by which one comes there.
    """

    line: str = ""
    address: tuple[int, ...] = ()

    def inside(self, index: int, eqn: Any, body: int = 0) -> "Where":
        """Return where a body of one of the equations is."""
        return Where(inner_line(eqn), (*self.address, index, body))


TOP = Where()
"""Where the equations of a whole program are."""


class Changes(NamedTuple):
    """What is written otherwise in a program, by address.

    Attributes:
      shapes: of what an equation gives, where arrays have become narrower.
      offsets: names of edits of what an equation gives.
      marked: whether taps are marked, so that they can be found in what this is a part of.
    """

    shapes: Mapping[tuple[int, ...], tuple[int, ...]] = {}
    offsets: Mapping[tuple[int, ...], str] = {}
    marked: bool = False

    def within(self, address: tuple[int, ...]) -> bool:
        """Tell whether anything below an address changes."""
        size = len(address)
        return any(len(each) > size and each[:size] == address for each in self.shapes)


class Taps(NamedTuple):
    """Which values of a program are taps.

    Attributes:
      name: gives the tap of a value that has a place, or None.
      axes: the axis of examples in the program's own order, by tap.
      units: how many axes at the end are its units, by tap.
      record: those to keep.
      counts: what has been counted, by equations.
      changes: what is written otherwise.
    """

    name: Callable[[Spot], str | None]
    axes: Mapping[str, int]
    units: Mapping[str, int]
    record: frozenset[str]
    counts: dict[tuple[int, Where], dict[str, int]]
    changes: Changes = Changes()

    def of(self, eqn: Any, index: int, where: Where) -> list[str]:
        """Return the edits and records of what an equation gives, in their order."""
        address = (*where.address, index)
        spot = spot_of(eqn, where.line)
        found = (self.changes.offsets.get(address), None if spot is None else self.name(spot._replace(address=address)))
        return [name for name in found if name is not None]

    def occurrences(self, jaxpr: Any, where: Where) -> dict[str, int]:
        """Count how often each tap occurs in one run of some equations."""
        key = (id(jaxpr), where)
        if key not in self.counts:
            total: Counter[str] = Counter()
            for index, eqn in enumerate(jaxpr.eqns):
                total.update(self.inside(eqn, index, where))
                total.update(self.of(eqn, index, where))
            self.counts[key] = dict(total)
        return self.counts[key]

    def inside(self, eqn: Any, index: int, where: Where) -> dict[str, int]:
        """Count how often each tap occurs in one run of what is inside an equation."""
        inside = bodies(eqn)
        if not inside:
            return {}
        found = self.occurrences(opened(inside[0])[0], where.inside(index, eqn))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        return {name: times * count for name, count in found.items()}


def evaluate(
    jaxpr: Any, consts: list[Any], arguments: list[Any], edits: Edits, taps: Taps, where: Where = TOP
) -> tuple[list[Any], Records]:
    """Run equations with edits.

    Args:
      jaxpr: the equations.
      consts: their constants.
      arguments: their inputs.
      edits: by tap; leaves lead with an axis of the tap's occurrences here.
      taps: which values are taps.
      where: where the equations are.

    Returns:
      What they give, and the values of every tap, `[occurrences, N, ..., D]`, examples in front.
    """
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else env[atom]
    records: dict[str, list[Array]] = {}
    seen: Counter[str] = Counter()
    info = own_info(jaxpr)
    for index, eqn in enumerate(jaxpr.eqns):
        values, inside = [read(atom) for atom in eqn.invars], taps.inside(eqn, index, where)
        if inside or taps.changes.within((*where.address, index)):
            outs, found = _rebuilt(_Call(eqn, index, where, taps), values, _slices(edits, seen, inside))
            for name, value in found.items():
                records.setdefault(name, []).append(value)
            seen.update(inside)
        else:
            outs = bound(eqn, values, info, taps.changes.shapes.get((*where.address, index)))
        for name in taps.of(eqn, index, where):
            outs, value = _edited(name, outs[0], edits, seen[name], taps)
            if taps.changes.marked and name in taps.axes and eqn.params.get("name") != tap_mark(name):
                outs = [checkpoint_name(outs[0], tap_mark(name))]
            if name in taps.record:
                records.setdefault(name, []).append(value[None])
            seen[name] += 1
        env |= zip(eqn.outvars, outs, strict=True)
    outputs = [read(atom) for atom in jaxpr.outvars]
    return outputs, {name: jnp.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in records.items()}


def _slices(edits: Edits, seen: Mapping[str, int], inside: Mapping[str, int]) -> Edits:
    """Return the edits of the occurrences that come next; where these are all, as they are, which copies nothing."""

    def part(leaf: AnyArray, start: int, count: int) -> AnyArray:
        return leaf if (start, count) == (0, len(leaf)) else leaf[start : start + count]

    return {
        name: jax.tree.map(partial(part, start=seen[name], count=count), edits[name])
        for name, count in inside.items()
        if name in edits
    }


def _edited(name: str, value: Array, edits: Edits, occurrence: int, taps: Taps) -> tuple[list[Array], Array]:
    """Return a value after its edit, as the program has it, and as a tap, `[N, ..., D]`."""
    pick = lambda leaf: jnp.squeeze(leaf, 0) if len(leaf) == 1 else leaf[occurrence]
    one = {name: jax.tree.map(pick, edits[name])} if name in edits else edits
    if name not in taps.axes:
        return [tapped(name, value, one)], value
    axis, units = taps.axes[name], taps.units[name]
    first = jnp.moveaxis(value, axis, 0)
    edited = seen = jnp.reshape(first, (*first.shape[: first.ndim - units], -1))
    if name in edits:
        edited = tapped(name, seen, one)
        value = jnp.moveaxis(jnp.reshape(edited, first.shape), 0, axis)
    return [value], edited


def bound(eqn: Any, values: list[Any], info: Any, shape: tuple[int, ...] | None = None) -> list[Any]:
    """Run one equation as it is, in the context it was written in, or with a result of another shape."""
    if shape is not None and eqn.primitive.name in _SHAPED:
        return [_SHAPED[eqn.primitive.name](eqn.params, values[0], shape)]
    pairs = [
        (atom, value) for atom, value in zip(eqn.invars, values, strict=True) if not isinstance(atom, core.Literal)
    ]
    unique = dict(pairs)
    alone = core.Jaxpr((), list(unique), list(eqn.outvars), [eqn], eqn.effects, debug_info=info)
    return list(core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*unique.values()))


def _cut(options: Mapping[str, Any], value: Array, shape: tuple[int, ...]) -> Array:
    """Slice as before, whole axes as wide as they are now."""
    starts, steps = options["start_indices"], options["strides"] or (1,) * len(shape)
    limits = [start + (size - 1) * step + 1 for start, size, step in zip(starts, shape, steps, strict=True)]
    return jax.lax.slice(value, starts, limits, steps)


_SHAPED: dict[str, Callable[[Mapping[str, Any], Array, tuple[int, ...]], Array]] = {
    "broadcast_in_dim": lambda options, value, shape: jax.lax.broadcast_in_dim(
        value, shape, options["broadcast_dimensions"]
    ),
    "reshape": lambda options, value, shape: jnp.reshape(value, shape),
    "slice": _cut,
}
"""Operations that say how large their result is."""


class _Call(NamedTuple):
    """An equation with programs inside, and where it is."""

    eqn: Any
    number: int
    where: Where
    taps: Taps

    def run(self, body: Any, branch: int, values: list[Any], edits: Edits) -> tuple[list[Any], Records]:
        """Run one of its bodies."""
        jaxpr, consts = opened(body)
        return evaluate(jaxpr, consts, values, edits, self.taps, self.where.inside(self.number, self.eqn, branch))


def _rebuilt(call: _Call, values: list[Any], edits: Edits) -> tuple[list[Any], Records]:
    kind, options = call.eqn.primitive.name, call.eqn.params
    if kind == "scan":
        return _scan(call, values, edits)
    if kind == "cond":
        index, *operands = values
        branches = [partial(call.run, body, number) for number, body in enumerate(options["branches"])]
        return jax.lax.switch(index, branches, operands, edits)
    if kind not in (*JITTED, *REMAT, *RULED):
        raise ValueError(f"got taps or narrower arrays inside {kind!r}, expected them where it is opened")
    run = partial(call.run, bodies(call.eqn)[0], 0)
    if kind in REMAT:
        run = jax.checkpoint(run, prevent_cse=options["prevent_cse"], policy=options["policy"])
    return run(values, edits)


def _by_step(leaf: Array, length: int) -> Array:
    """Group the occurrences of a scan by its steps; one each stay as they are: XLA would copy what is reshaped."""
    return leaf if len(leaf) == length else jnp.reshape(leaf, (length, -1, *leaf.shape[1:]))


def _scan(call: _Call, values: list[Any], edits: Edits) -> tuple[list[Any], Records]:
    """Write a scan anew, with edits of its steps as `xs`, and their records as `ys`, in the order they run."""
    options = call.eqn.params
    length, backwards = options["length"], options["reverse"]
    first, second = scan_parts(call.eqn)
    shared, carry, slices = values[:first], values[first:second], values[second:]
    turned = lambda leaf: jnp.flip(leaf, 0) if backwards else leaf
    stepwise = jax.tree.map(lambda leaf: turned(_by_step(leaf, length)), edits)
    once = {name for name, edit in edits.items() if all(len(leaf) == length for leaf in jax.tree.leaves(edit))}

    def step(carry: list[Any], each: tuple[list[Any], Edits]) -> tuple[list[Any], tuple[list[Any], Records]]:
        slices, edits = each
        edits = {
            name: jax.tree.map(lambda leaf: leaf[None], edit) if name in once else edit for name, edit in edits.items()
        }
        outs, found = call.run(options["jaxpr"], 0, [*shared, *carry, *slices], edits)
        return outs[: len(carry)], (outs[len(carry) :], found)

    carry, (stacked, found) = jax.lax.scan(
        step, carry, (slices, stepwise), length=length, reverse=backwards, unroll=options["unroll"]
    )
    flat = lambda leaf: jnp.reshape(turned(leaf), (-1, *leaf.shape[2:]))
    return [*carry, *stacked], jax.tree.map(flat, found)
