"""A wrapped model as one that units can be removed from, without a declaration: `consumers` is read off its program.

    narrowed       the program is written anew with narrower arrays: wherever an equation gives the units of a tap, it
                   gives those that are kept; the params lose the others
    with_biases    the program is written anew with an offset added to what each reader gives

Both are functions of params and inputs again, in which every tap is marked, so they are wrapped as the user's own is.

Source: CMR, arXiv 2602.24266, folding into affine consumers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int

from abstraction.models.any_model.graph import Equation, Graph, Value, graph_of
from abstraction.models.any_model.interpreter import Changes, Taps, bound, evaluate
from abstraction.models.any_model.program import tap_mark, trace
from abstraction.models.any_model.units import AFFINE, Axis, Obstacle, Reader, Units, units_of
from abstraction.models.wiring import Consumer, Passage, find_array
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray, Params

OFFSETS = "offsets"
_THROUGH = {"transpose", "reshape", "convert_element_type", "scan_slice", "copy", "name", "stop_gradient", "squeeze"}
"""What a kernel may pass on its way from the params to its reader: nothing that changes its numbers."""


@pytree
class Shift:
    """Add an offset to what a reader gives."""

    offset: AnyArray

    def __call__(self, value: Array) -> Array:
        return value + self.offset


@dataclass(frozen=True, repr=False)
class Reading:
    """The program of a wrapped model, written out, with the units of one of its taps.

    Attributes:
      closed: its equations, with all taps marked.
      outputs: structure of what it gives.
      graph: its values.
      units: those of the tap.
      paths: of every leaf of the params.
    """

    closed: Any
    outputs: Any
    graph: Graph
    units: Units
    paths: list[tuple[Any, ...]]


def reading(model: Any, tap: str, params: Params, inputs: Any) -> Reading:
    """Write out a wrapped model and find the units of a tap.

    Raises:
      ValueError: an equation stands in the way; names it.
    """
    place = dict(model.places)[tap]
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), (params, inputs))
    program = trace(lambda params, inputs: model.run(params, inputs, marked=True)[0], *shapes)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    graph = graph_of(program.closed, len(leaves))
    try:
        if place.units != 1:
            raise Obstacle(f"its units are {place.units} axes together, expected one")
        value = [each for each in graph.equations if each.name == "name" and each.options["name"] == tap_mark(tap)]
        axis = len(value[0].results[0].shape) - 1 if value else 0
        if dict(model.examples)[tap] == axis:
            axis -= 1
        units = units_of(graph, tap, axis)
    except Obstacle as why:
        raise ValueError(f"got tap {tap!r}, whose units cannot be removed: {why}") from None
    paths = [tuple(_part(part) for part in path) for path, _ in leaves]
    return Reading(program.closed, program.outputs, graph, units, paths)


def _part(part: Any) -> Any:
    """Return what a dict or a list finds one part of a path by."""
    for name in ("key", "idx", "name"):
        if hasattr(part, name):
            return getattr(part, name)
    raise ValueError(f"got params with {part!r} in a path, expected dicts, lists and named fields")


def consumers_of(model: Any, tap: str) -> tuple[Consumer, ...]:
    """Return what reads the units of a tap; see `Reducible.consumers`."""
    found = reading(model, tap, model.param_shapes(), model.example())
    _check_kernels(found, tap)
    return tuple(_consumer(found, tap, number, reader) for number, reader in enumerate(found.units.readers))


def _check_kernels(found: Reading, tap: str) -> None:
    """Refuse a kernel that reads the units twice: what folds into it for one reader is gone for the other."""
    lines: dict[int, str] = {}
    for reader in found.units.readers:
        number = _leaf(reader.equation.operands[reader.kernel], reader.equation).number
        if number in lines:
            twice = f"{lines[number]} and {reader.equation.line}"
            raise ValueError(
                f"got tap {tap!r}, whose units cannot be removed: one kernel reads them twice, at {twice}; expected a "
                "kernel for each reader"
            )
        lines[number] = reader.equation.line


def _used_elsewhere(found: Reading, leaf: Value, reader: Equation) -> list[str]:
    """Return the lines of other equations that a leaf of the params reaches: a tied kernel is more than a reader's."""
    reached, lines = {leaf}, []
    for equation in found.graph.equations:
        if equation is reader or not any(value in reached for value in equation.operands):
            continue
        if equation.name in _THROUGH:
            reached.update(equation.results)
        else:
            lines.append(equation.line)
    return lines


def _consumer(found: Reading, tap: str, number: int, reader: Reader) -> Consumer:
    kernel = reader.equation.operands[reader.kernel]
    leaf = _leaf(kernel, reader.equation)
    axis = found.units.axes[leaf]
    summed, plane = (), None
    if reader.equation.name == "conv_general_dilated":
        numbers = reader.equation.options["dimension_numbers"]
        summed = tuple(index for index in range(len(leaf.shape)) if index not in numbers.rhs_spec[:2])
        if any(map(any, reader.equation.options["padding"])):
            plane = partial(_plane, found, reader)
    operand = reader.equation.operands[reader.activation]
    passages = (_passage(found, operand),) if operand is not found.units.tap else ()
    if elsewhere := _used_elsewhere(found, leaf, reader.equation):
        # Constants leave the kernel as it is; an affine map would change what else it does.
        passages = (*passages, Passage(f"a kernel that is used at {elsewhere[0]} too", mixes=False))
    bias = (OFFSETS, f"{tap}.{number}")
    return Consumer(found.paths[leaf.number], bias, (axis.place,), summed, passages, plane)


def _leaf(kernel: Value, reader: Equation) -> Value:
    """Return the leaf of the params that a kernel is.

    Raises:
      ValueError: it is computed from params rather than being one.
    """
    value = kernel
    while value.source == "equation":
        maker = value.maker
        if maker is None or maker.name not in _THROUGH:
            raise ValueError(f"got a reader at {reader.line} whose kernel is computed, expected one of the params")
        value = maker.operands[0]
    if value.source != "param":
        raise ValueError(f"got a reader at {reader.line} whose kernel is a constant, expected one of the params")
    return value


def _between(found: Reading, operand: Value) -> list[Equation]:
    """Return the equations from a tap to a reader's operand."""
    equations: list[Equation] = []
    queue = [operand]
    while queue:
        value = queue.pop()
        if value is found.units.tap or value not in found.units.after or value.maker is None:
            continue
        if value.maker not in equations:
            equations.append(value.maker)
            queue.extend(value.maker.operands)
    return equations


def _passage(found: Reading, operand: Value) -> Passage:
    """Say what lies between a tap and a reader's operand: one passage for all of it."""
    equations = [each for each in _between(found, operand) if each.name not in ("name", "convert_element_type")]
    lines = list(dict.fromkeys(f"{each.name} at {each.line}" for each in reversed(equations)))
    mixes = all(_is_affine(each, found.units) for each in equations)
    return Passage("; ".join(lines) or "a change of type", partial(_through, found, operand), mixes=mixes)


def _is_affine(equation: Equation, units: Units) -> bool:
    after = [index for index, value in enumerate(equation.operands) if value in units.after]
    if equation.name in ("mul", "select_n"):
        return len(after) == 1 and (equation.name == "mul" or after != [0])
    if equation.name == "div":
        return after == [0]
    return equation.name in AFFINE or equation.name in ("reduce_sum", "reduce_window_sum")


def _through(found: Reading, operand: Value, params: Params, values: Array) -> Array:
    """Return what units that are constant over positions are when a reader has them, `[D]` or `[P D]`."""
    units, axis = found.units, found.units.axes[operand]
    arrived = _value(found, operand, params, _spread(units.tap, units.axes[units.tap], values))
    rows = jnp.moveaxis(arrived, axis.place, -1).reshape(-1, operand.shape[axis.place])
    if not isinstance(rows, Tracer) and not np.allclose(rows, rows[:1], rtol=1e-5, atol=1e-6):
        raise ValueError("a constant arrives as another at other positions (zeros around a border, or a mask)")
    return rows[0].astype(values.dtype).reshape((axis.repeats, -1) if axis.repeats > 1 else (-1,))


def _spread(value: Value, axis: Axis, units: Array) -> Array:
    """Put units at every position of a value, in its own type."""
    shape = [1] * len(value.shape)
    shape[axis.place] = value.shape[axis.place]
    kind = value.maker.eqn.outvars[0].aval.dtype if value.maker is not None else units.dtype
    return jnp.broadcast_to(units.astype(kind).reshape(shape), value.shape)


def _value(found: Reading, value: Value, params: Params, tap: Array) -> Any:
    """Compute a value from that of a tap and the params."""
    known: dict[int, Any] = {id(found.units.tap): tap}

    def compute(value: Value) -> Any:
        if id(value) not in known:
            known[id(value)] = made(value)
        return known[id(value)]

    def made(value: Value) -> Any:  # versions of JAX have their own constants
        if value.source == "param":
            return jnp.asarray(find_array(params, found.paths[value.number]))
        if value.source == "constant":
            return value.data
        maker = value.maker
        if maker is None or not maker.address:
            raise ValueError("what lies between differs from step to step of a scan, expected the same for all")
        return bound(maker.eqn, [compute(each) for each in maker.operands], maker.info)[maker.results.index(value)]

    return compute(value)


def _plane(found: Reading, reader: Reader, params: Params, values: Array) -> Array:
    """Return a convolution, without bias, of inputs that have these values at every position."""
    image, kernel = reader.equation.operands[reader.activation], reader.equation.operands[reader.kernel]
    arrays = [_spread(image, found.units.axes[image], values), _value(found, kernel, params, values)]
    examples = reader.equation.options["dimension_numbers"].out_spec[0]
    return jnp.take(bound(reader.equation.eqn, arrays, reader.equation.info)[0], 0, axis=examples)


@dataclass(frozen=True)
class Narrowed:
    """A wrapped model with fewer units at a tap, as a function of its params and inputs.

    Attributes:
      model: the model before.
      tap: where.
      width: how many units are left.
    """

    model: Any
    tap: str
    width: int

    def __call__(self, params: Params, inputs: Any) -> Any:
        found = reading(self.model, self.tap, self.model.param_shapes(), inputs)
        shapes = {}
        for equation in found.graph.equations:
            value = equation.results[0] if len(equation.results) == 1 else None
            if value is not None and equation.address and (axis := found.units.axes.get(value)) is not None:
                shape = list(value.shape)
                shape[axis.place] = axis.repeats * self.width
                shapes[equation.address] = tuple(shape)
        return _written_anew(found, params, inputs, Changes(shapes), {})


@dataclass(frozen=True)
class WithOffsets:
    """A wrapped model with an offset added to what each reader of a tap gives.

    Attributes:
      model: the model before.
      tap: whose readers.
    """

    model: Any
    tap: str

    def __call__(self, params: Params, inputs: Any) -> Any:
        own = _without_offsets(params, self.tap)
        found = reading(self.model, self.tap, own, inputs)
        names, edits = {}, {}
        for number, reader in enumerate(found.units.readers):
            name = f"{self.tap}.{number}"
            names[reader.equation.address] = f"{OFFSETS}:{name}"
            edits[f"{OFFSETS}:{name}"] = Shift(_stacked(reader, params[OFFSETS][name]))
        return _written_anew(found, own, inputs, Changes(offsets=names), edits)


def _written_anew(found: Reading, params: Params, inputs: Any, changes: Changes, edits: dict[str, Any]) -> Any:
    taps = Taps(lambda spot: None, {}, {}, frozenset(), {}, changes)
    arguments = jax.tree.leaves((params, inputs))
    outs, _ = evaluate(found.closed.jaxpr, list(found.closed.consts), arguments, edits, taps)
    return jax.tree.unflatten(found.outputs, outs)


def _without_offsets(params: Params, tap: str) -> Params:
    left = {name: value for name, value in params[OFFSETS].items() if name.rpartition(".")[0] != tap}
    rest = {name: value for name, value in params.items() if name != OFFSETS}
    return {**rest, OFFSETS: left} if left else rest


def _offset_shape(reader: Reader) -> tuple[int, ...]:
    """Return the shape of a reader's offset: the axes of its kernel that it gives, led by the steps of a scan."""
    equation = reader.equation
    leaf = _leaf(equation.operands[reader.kernel], equation)
    kernel = equation.operands[reader.kernel]
    steps = leaf.shape[: len(equation.steps)] if _is_stepwise(kernel) else ()
    if equation.name == "conv_general_dilated":
        numbers = equation.options["dimension_numbers"]
        if any(map(any, equation.options["padding"])):
            plane = equation.results[0].shape
            return (*steps, *(size for index, size in enumerate(plane) if index != numbers.out_spec[0]))
        return (*steps, kernel.shape[numbers.rhs_spec[0]])
    return (*steps, *_free(reader))


def _free(reader: Reader) -> tuple[int, ...]:
    contracted, batched = reader.equation.options["dimension_numbers"]
    kernel = reader.equation.operands[reader.kernel].shape
    taken = (*contracted[reader.kernel], *batched[reader.kernel])
    return tuple(size for index, size in enumerate(kernel) if index not in taken)


def _is_stepwise(kernel: Value) -> bool:
    value = kernel
    while value.maker is not None:
        if value.maker.name == "scan_slice":
            return True
        value = value.maker.operands[0]
    return False


def _stacked(reader: Reader, offset: Array) -> Array:
    """Lay an offset out as what its reader gives, once for every step of the scans it is in."""
    equation, steps = reader.equation, prod(reader.equation.steps)
    stepwise = _is_stepwise(equation.operands[reader.kernel])
    rest = offset.shape[len(equation.steps) :] if stepwise else offset.shape
    rank = len(equation.results[0].shape)
    if equation.name == "conv_general_dilated":
        numbers = equation.options["dimension_numbers"]
        place = 1 if len(rest) == 1 else 0
        shape = [1] * rank
        if place:
            shape[numbers.out_spec[1]] = rest[0]
        else:
            shape = list(equation.results[0].shape)
            shape[numbers.out_spec[0]] = 1
    else:
        contracted, batched = equation.options["dimension_numbers"]
        other = equation.operands[1 - reader.kernel].shape
        after = len(other) - len(contracted[1 - reader.kernel]) - len(batched[1 - reader.kernel])
        shape = [1] * (rank - len(rest) - (after if reader.kernel == 0 else 0)) + list(rest)
        shape += [1] * (rank - len(shape))
    laid = jnp.reshape(offset, (-1, *shape))
    return jnp.broadcast_to(laid, (steps, *shape)) if not stepwise else laid


def zero_offsets(model: Any, tap: str, params: Params) -> dict[str, Array]:
    """Return offsets of 0 for every reader of a tap.

    Raises:
      ValueError: params that are no dict, where there is no room for them.
    """
    if not isinstance(params, dict):
        raise ValueError(
            f"got params {type(params).__name__}, expected a dict, to put the readers' offsets beside them"
        )
    found = reading(model, tap, params, model.example())
    kind = lambda reader: reader.equation.eqn.outvars[0].aval.dtype
    return {
        f"{tap}.{number}": jnp.zeros(_offset_shape(reader), kind(reader))
        for number, reader in enumerate(found.units.readers)
    }


def kept_params(model: Any, tap: str, params: Params, kept: Int[np.ndarray, " K"], take: Callable[..., Any]) -> Params:
    """Return params without the other units of a tap."""
    found = reading(model, tap, params, model.example())
    leaves, tree = jax.tree.flatten(params)
    width = model.taps[tap].width
    for value in found.graph.params:
        if (axis := found.units.axes.get(value)) is not None:
            leaves[value.number] = take(leaves[value.number], kept, width, axis.place)
    return jax.tree.unflatten(tree, leaves)
