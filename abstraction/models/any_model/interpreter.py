"""Running a program with edits: equation by equation, with the edit at its place and a record kept.

What has no tap inside is bound as it is, so that a run without edits is the user's own. What has is rebuilt: a `scan`
takes the edits of its steps as `xs` and gives their records as `ys`, `checkpoint` and `cond` are written anew, a `jit`
is run in place. A function with a derivative rule of its own (`custom_jvp`, `custom_vjp`, `custom_vmap`) that has a tap
inside is run by its body and differentiated as such.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array

from abstraction.models.any_model.program import JITTED, REMAT, RULED, Spot, bodies, inner_line, opened, spot_of
from abstraction.models.taps import Edits, tapped

Records = dict[str, Array]


class Taps(NamedTuple):
    """Which values of a program are taps.

    Attributes:
      name: gives the tap of a value that has a place, or None.
      axes: the axis of examples in the program's own order, by tap.
      units: how many axes at the end are its units, by tap.
      record: those to keep.
      counts: what has been counted, by equations.
    """

    name: Callable[[Spot], str | None]
    axes: Mapping[str, int]
    units: Mapping[str, int]
    record: frozenset[str]
    counts: dict[tuple[int, str], dict[str, int]]

    def of(self, eqn: Any, enclosing: str) -> str | None:
        """Return the tap that an equation gives the value of, or None."""
        spot = spot_of(eqn, enclosing)
        return None if spot is None else self.name(spot)

    def occurrences(self, jaxpr: Any, enclosing: str) -> dict[str, int]:
        """Count how often each tap occurs in one run of some equations."""
        key = (id(jaxpr), enclosing)
        if key not in self.counts:
            total: dict[str, int] = {}
            for eqn in jaxpr.eqns:
                for name, times in self.inside(eqn).items():
                    total[name] = total.get(name, 0) + times
                if (name := self.of(eqn, enclosing)) is not None:
                    total[name] = total.get(name, 0) + 1
            self.counts[key] = total
        return self.counts[key]

    def inside(self, eqn: Any) -> dict[str, int]:
        """Count how often each tap occurs in one run of what is inside an equation."""
        inside = bodies(eqn)
        if not inside:
            return {}
        found = self.occurrences(opened(inside[0])[0], inner_line(eqn))
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        return {name: times * count for name, count in found.items()}


def evaluate(
    jaxpr: Any, consts: list[Any], arguments: list[Any], edits: Edits, taps: Taps, enclosing: str = ""
) -> tuple[list[Any], Records]:
    """Run equations with edits.

    Args:
      jaxpr: the equations.
      consts: their constants.
      arguments: their inputs.
      edits: by tap; leaves lead with an axis of the tap's occurrences here.
      taps: which values are taps.
      enclosing: the source line whose inside this is.

    Returns:
      What they give, and the values of every tap, `[occurrences, N, ..., D]`, examples in front.
    """
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else env[atom]
    records: dict[str, list[Array]] = {}
    seen: Counter[str] = Counter()
    info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)  # whose it is, for a part of it
    for eqn in jaxpr.eqns:
        values, inside = [read(atom) for atom in eqn.invars], taps.inside(eqn)
        if inside:
            outs, found = _rebuilt(eqn, values, _slices(edits, seen, inside), taps)
            for name, value in found.items():
                records.setdefault(name, []).append(value)
            seen.update(inside)
        else:
            outs = _bound(eqn, values, info)
        if (name := taps.of(eqn, enclosing)) is not None:
            outs, value = _edited(name, outs[0], edits, seen[name], taps)
            if name in taps.record:
                records.setdefault(name, []).append(value[None])
            seen[name] += 1
        env |= zip(eqn.outvars, outs, strict=True)
    outputs = [read(atom) for atom in jaxpr.outvars]
    return outputs, {name: jnp.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in records.items()}


def _slices(edits: Edits, seen: Mapping[str, int], inside: Mapping[str, int]) -> Edits:
    """Return the edits of the occurrences that come next."""
    return {
        name: jax.tree.map(lambda leaf, at=seen[name], count=count: leaf[at : at + count], edits[name])
        for name, count in inside.items()
        if name in edits
    }


def _edited(name: str, value: Array, edits: Edits, occurrence: int, taps: Taps) -> tuple[list[Array], Array]:
    """Return a value after its edit, as the program has it, and as a tap, `[N, ..., D]`."""
    axis, units = taps.axes[name], taps.units[name]
    first = jnp.moveaxis(value, axis, 0)
    seen = jnp.reshape(first, (*first.shape[: first.ndim - units], -1))
    if name not in edits:
        return [value], seen
    edited = tapped(name, seen, {name: jax.tree.map(lambda leaf: leaf[occurrence], edits[name])})
    return [jnp.moveaxis(jnp.reshape(edited, first.shape), 0, axis)], edited


def _bound(eqn: Any, values: list[Any], info: Any) -> list[Any]:
    """Run one equation as it is, in the context it was written in."""
    pairs = [
        (atom, value) for atom, value in zip(eqn.invars, values, strict=True) if not isinstance(atom, core.Literal)
    ]
    unique = dict(pairs)
    alone = core.Jaxpr((), list(unique), list(eqn.outvars), [eqn], eqn.effects, debug_info=info)
    return list(core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*unique.values()))


def _rebuilt(eqn: Any, values: list[Any], edits: Edits, taps: Taps) -> tuple[list[Any], Records]:
    kind = eqn.primitive.name
    if kind == "scan":
        return _scan(eqn, values, edits, taps)
    if kind == "cond":
        return _switch(eqn, values, edits, taps)
    jaxpr, consts = opened(bodies(eqn)[0])
    run = lambda values, edits: evaluate(jaxpr, consts, values, edits, taps, inner_line(eqn))
    if kind in REMAT:
        return jax.checkpoint(run, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])(values, edits)
    if kind not in (*JITTED, *RULED):
        raise ValueError(f"got taps {sorted(taps.inside(eqn))} inside {kind!r}, expected them where it is opened")
    return run(values, edits)


def _scan(eqn: Any, values: list[Any], edits: Edits, taps: Taps) -> tuple[list[Any], Records]:
    """Write a scan anew, with edits of its steps as `xs`, and their records as `ys`, in the order they run."""
    options, (jaxpr, consts) = eqn.params, opened(eqn.params["jaxpr"])
    length, backwards = options["length"], options["reverse"]
    first, second = _scan_parts(eqn, jaxpr)
    shared, carry, slices = values[:first], values[first:second], values[second:]
    turned = lambda leaf: jnp.flip(leaf, 0) if backwards else leaf
    stepwise = jax.tree.map(lambda leaf: turned(jnp.reshape(leaf, (length, -1, *leaf.shape[1:]))), edits)

    def step(carry: list[Any], each: tuple[list[Any], Edits]) -> tuple[list[Any], tuple[list[Any], Records]]:
        slices, edits = each
        outs, found = evaluate(jaxpr, consts, [*shared, *carry, *slices], edits, taps, inner_line(eqn))
        return outs[: len(carry)], (outs[len(carry) :], found)

    carry, (stacked, found) = jax.lax.scan(
        step, carry, (slices, stepwise), length=length, reverse=backwards, unroll=options["unroll"]
    )
    flat = lambda leaf: jnp.reshape(turned(leaf), (-1, *leaf.shape[2:]))
    return [*carry, *stacked], jax.tree.map(flat, found)


def _scan_parts(eqn: Any, body: Any) -> tuple[int, int]:
    """Return where the carry of a scan begins and ends among its inputs.

    Versions of JAX say it in their own ways. In all of them what is sliced, and what is stacked, has an axis more
    outside of the body than inside.
    """
    sliced, stacked = (
        sum(len(outer.aval.shape) > len(inner.aval.shape) for outer, inner in zip(whole, part, strict=True))
        for whole, part in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
    )
    end = len(eqn.invars) - sliced
    return end - (len(eqn.outvars) - stacked), end


def _switch(eqn: Any, values: list[Any], edits: Edits, taps: Taps) -> tuple[list[Any], Records]:
    """Write a conditional anew, all of whose branches have the taps."""
    index, *operands = values
    line = inner_line(eqn)

    def branch(body: Any) -> Callable[[list[Any], Edits], tuple[list[Any], Records]]:
        jaxpr, consts = opened(body)
        return lambda operands, edits: evaluate(jaxpr, consts, operands, edits, taps, line)

    return jax.lax.switch(index, [branch(body) for body in eqn.params["branches"]], operands, edits)
