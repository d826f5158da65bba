"""Which axes of a program are the units of a tap, and who reads them: foldability, read off the equations.

Units of a tap come out of maps whose kernels have an axis for them, pass through what acts on each by itself, and are
read by maps that sum over them. All axes that are the same units are found by following the tap's axis through every
equation, in both directions. The units can be removed if that ends at parameters alone:

    kernel [in, D] -> pre [.., D] -> tap [.., D] -> what acts on each unit -> sum over D with kernel [D, out]

and is refused, with the equation that stands in the way, where they are mixed (a norm over units), carried from step to
step, split into heads, combined with another activation, summed together with a further axis, read by a kernel for each
place of one, or read before the tap.

Source: CMR, arXiv 2602.24266, folding into affine consumers.
"""

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

from abstraction.models.any_model.graph import Equation, Graph, Value
from abstraction.models.any_model.program import tap_mark

AFFINE = {
    "add", "sub", "neg", "mul", "div", "convert_element_type", "copy", "name", "stop_gradient", "add_any", "reshape",
    "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "scan_stack", "scan_slice", "optimization_barrier",
    "reduce_precision", "select_n", "slice",
}  # fmt: skip
UNITWISE = AFFINE | {
    "max", "min", "pow", "integer_pow", "square", "abs", "sign", "exp", "exp2", "log", "log1p", "expm1", "tanh", "sqrt",
    "logistic", "erf", "erfc", "rsqrt", "cbrt", "sin", "cos", "floor", "ceil", "round", "clamp", "rem", "is_finite",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "sinh", "cosh", "asinh", "acosh", "atanh", "erf_inv",
}  # fmt: skip
_PAIRWISE = UNITWISE - {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice"} - {
    "scan_stack", "scan_slice",
}  # fmt: skip


class Axis(NamedTuple):
    """Where units are in a value: an axis of `repeats` positions times D units, these innermost."""

    place: int
    repeats: int = 1


class Reader(NamedTuple):
    """A map that sums over the units of a tap.

    Attributes:
      equation: its product or convolution.
      activation: which operand has the units.
      kernel: which operand is the kernel.
    """

    equation: Equation
    activation: int
    kernel: int


@dataclass(eq=False, repr=False)
class Units:
    """All that is the units of a tap in a program.

    Attributes:
      tap: the tap's value.
      axes: where they are, by value.
      after: values that follow from the tap, before any reader.
      readers: who sums over them.
    """

    tap: Value
    axes: dict[Value, Axis]
    after: set[Value] = field(default_factory=set)
    readers: list[Reader] = field(default_factory=list)


class Obstacle(ValueError):
    """An equation that stands in the way."""


def stop(equation: Equation | None, why: str) -> Obstacle:
    """Say which equation stands in the way, and how."""
    where = "" if equation is None else f" ({equation.name} at {equation.line or 'an unknown line'})"
    return Obstacle(f"its units {why}{where}")


def tap_value(graph: Graph, name: str) -> Value:
    """Return the value that is marked as a tap.

    Raises:
      Obstacle: there are several, of a tap of several places.
    """
    there = [
        equation.results[0]
        for equation in graph.equations
        if equation.name == "name" and equation.options["name"] == tap_mark(name)
    ]
    if len(there) != 1:
        raise Obstacle(f"it is at {len(there)} places, whose units are apart: make a tap of each")
    return there[0]


def units_of(graph: Graph, name: str, axis: int) -> Units:
    """Follow the units of a tap through a program.

    Args:
      graph: the program.
      name: the tap.
      axis: the axis of its units in the program's own order.

    Raises:
      Obstacle: an equation stands in the way of removing them.
    """
    tap = tap_value(graph, name)
    units = Units(tap, {tap: Axis(axis)})
    _follow_after(units)
    queue = [tap]
    while queue:
        value = queue.pop()
        for equation in [*value.readers, *([value.maker] if value.maker is not None else [])]:
            for other, there in _related(equation, value, units):
                if other not in units.axes:
                    units.axes[other] = there
                    queue.append(other)
                elif units.axes[other] != there:
                    raise stop(equation, "are on two axes of one array")
    _check(graph, units)
    return units


def _follow_after(units: Units) -> None:
    """Find the values that follow from the tap, up to its readers."""
    queue, units.after = [units.tap], {units.tap}
    while queue:
        for equation in queue.pop().readers:
            if equation.name not in ("dot_general", "conv_general_dilated"):
                fresh = [value for value in equation.results if value not in units.after]
                units.after.update(fresh)
                queue.extend(fresh)


def _check(graph: Graph, units: Units) -> None:
    """Refuse units that are somewhere they cannot be removed from."""
    for value, axis in units.axes.items():
        if value.source == "input":
            raise stop(None, "are those of the network's inputs")
        if value.source == "constant" and axis.place < len(value.shape) and value.shape[axis.place] != 1:
            raise stop(value.readers[0] if value.readers else None, "are on an axis of a constant of the program")
        if value in graph.outputs:
            raise stop(value.maker, "are those of the network's outputs")
        maker = value.maker
        if maker is not None and value in units.after and value is not units.tap:
            others = [each for each in maker.operands if each not in units.after and not each.fixed]
            if others:
                raise stop(maker, "are combined with another activation before a map reads them")
    if not units.readers:
        raise stop(None, "are read by no map that has a kernel")


def _related(equation: Equation, value: Value, units: Units) -> list[tuple[Value, Axis]]:
    """Return where else an equation puts the units of one of its values."""
    axis = units.axes[value]
    if equation.name in _PAIRWISE:
        rank, size = len(value.shape), value.shape[axis.place]
        values = [each for each in (*equation.operands, *equation.results) if len(each.shape) == rank]
        return [(each, axis) for each in values if each.shape[axis.place] == size]  # a size of 1 is spread
    rule = _RULES.get(equation.name)
    if rule is not None:
        return rule(equation, value, axis, units)
    if equation.name.startswith(("reduce_", "cum", "arg")):
        return _reduced(equation, value, axis, units)
    raise stop(equation, "go through an operation that may mix them")


def _product(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    (contracted, batched) = equation.options["dimension_numbers"]
    left, right = equation.operands
    if value in equation.results:
        return _product_result(equation, axis)
    if left is right:
        raise stop(equation, "are multiplied with themselves")
    side = 0 if value is left else 1
    other = right if side == 0 else left
    if axis.place in batched[side]:
        raise stop(equation, "are not summed over by the map that reads them")
    if axis.place in contracted[side]:
        kernel = 1 - side if not value.fixed else side
        _read(units, equation, 1 - kernel, kernel)
        if len(contracted[side]) > 1:
            raise stop(equation, "are summed together with a further axis, expected a kernel that sums over them alone")
        if batched[side]:
            raise stop(equation, "are read with another kernel at each place of a further axis, expected one kernel")
        return [(other, Axis(contracted[1 - side][list(contracted[side]).index(axis.place)], axis.repeats))]
    free = [index for index in range(len(value.shape)) if index not in (*contracted[side], *batched[side])]
    before = len(batched[0]) + (0 if side == 0 else _free(left, contracted[0], batched[0]))
    return [(equation.results[0], Axis(before + free.index(axis.place), axis.repeats))]


def _product_result(equation: Equation, axis: Axis) -> list[tuple[Value, Axis]]:
    """Follow the units from what a product gives to the operand whose axis they are."""
    (contracted, batched) = equation.options["dimension_numbers"]
    left = equation.operands[0]
    first, batch = _free(left, contracted[0], batched[0]), len(batched[0])
    if axis.place < batch:
        raise stop(equation, "are an axis that both factors of a product have")
    side, place = (0, axis.place - batch) if axis.place < batch + first else (1, axis.place - batch - first)
    operand = equation.operands[side]
    if not operand.fixed:
        raise stop(equation, "come out of a product of two activations, or out of the one that is not its kernel")
    free = [index for index in range(len(operand.shape)) if index not in (*contracted[side], *batched[side])]
    return [(operand, Axis(free[place], axis.repeats))]


def _free(value: Value, *taken: tuple[int, ...]) -> int:
    return len(value.shape) - sum(map(len, taken))


def _convolution(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    numbers, (image, kernel) = equation.options["dimension_numbers"], equation.operands
    if equation.options["feature_group_count"] != 1 or equation.options["batch_group_count"] != 1:
        raise stop(equation, "are read by a convolution in groups")
    ends = {
        (0, numbers.lhs_spec[1]): (kernel, numbers.rhs_spec[1]),
        (1, numbers.rhs_spec[1]): (image, numbers.lhs_spec[1]),
        (1, numbers.rhs_spec[0]): (equation.results[0], numbers.out_spec[1]),
        (2, numbers.out_spec[1]): (kernel, numbers.rhs_spec[0]),
    }
    place = 2 if value in equation.results else (0 if value is image else 1)
    if (place, axis.place) not in ends:
        raise stop(equation, "are positions of a convolution")
    if (place, axis.place) in ((0, numbers.lhs_spec[1]), (1, numbers.rhs_spec[1])):
        _read(units, equation, 0, 1)
    other, index = ends[place, axis.place]
    return [(other, Axis(index, axis.repeats))]


def _read(units: Units, equation: Equation, activation: int, kernel: int) -> None:
    """Note a reader."""
    if not equation.operands[kernel].fixed:
        raise stop(equation, "are summed in a product of two activations")
    if equation.operands[activation] not in units.after:
        raise stop(equation, "are read before the tap as well")
    if all(reader.equation is not equation for reader in units.readers):
        units.readers.append(Reader(equation, activation, kernel))


def _broadcast(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    (operand, result), places = (equation.operands[0], equation.results[0]), equation.options["broadcast_dimensions"]
    if value is operand:
        return [(result, Axis(places[axis.place], axis.repeats))]
    if axis.place not in places:
        return []  # the same for every unit: as many of them as there are left
    source = places.index(axis.place)
    return [(operand, Axis(source, axis.repeats))] if operand.shape[source] == result.shape[axis.place] else []


def _transposed(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    order = equation.options["permutation"]
    if value is equation.operands[0]:
        return [(equation.results[0], Axis(order.index(axis.place), axis.repeats))]
    return [(equation.operands[0], Axis(order[axis.place], axis.repeats))]


def _reshaped(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    """Follow units that stay an axis, or are flattened together with the positions before them, or back."""
    operand, result = equation.operands[0], equation.results[0]
    other = result if value is operand else operand
    after = prod(value.shape[axis.place + 1 :])
    width = units.tap.shape[units.axes[units.tap].place]
    total = 1
    for index in reversed(range(len(other.shape))):
        if total == after and other.shape[index] != 1 and other.shape[index] % width == 0:
            return [(other, Axis(index, other.shape[index] // width))]
        total *= other.shape[index]
    raise stop(equation, "are split or merged with what comes after them")


def _squeezed(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    gone = equation.options["dimensions"]
    left = [index for index in range(len(equation.operands[0].shape)) if index not in gone]
    if value is equation.operands[0]:
        return [(equation.results[0], Axis(left.index(axis.place), axis.repeats))]
    return [(equation.operands[0], Axis(left[axis.place], axis.repeats))]


def _reduced(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    """Follow units past a sum or a maximum over other axes; windows of one unit count as such."""
    if "window_dimensions" in equation.options:
        if equation.options["window_dimensions"][axis.place] != 1:
            raise stop(equation, "are mixed by a window over them")
        return [(each, axis) for each in (equation.operands[0], equation.results[0])]
    gone = equation.options.get("axes", ())
    left = [index for index in range(len(equation.operands[0].shape)) if index not in gone]
    if value in equation.results:
        return [(equation.operands[0], Axis(left[axis.place], axis.repeats))]
    if axis.place in gone or "axis" in equation.options:
        raise stop(equation, "are mixed by a sum or a maximum over them")
    return [(result, Axis(left.index(axis.place), axis.repeats)) for result in equation.results]


def _sliced(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    operand, result = equation.operands[0], equation.results[0]
    if operand.shape[axis.place] != result.shape[axis.place]:
        raise stop(equation, "are cut apart")
    return [(operand, axis), (result, axis)]


def _carried(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    raise stop(equation, "are carried from step to step of a scan")


def _step(equation: Equation, value: Value, axis: Axis, units: Units) -> list[tuple[Value, Axis]]:
    """Follow units between a scan and its steps."""
    inner, outer = equation.results[0], equation.operands[0]
    if equation.name == "scan_stack":
        inner, outer = outer, inner
    if value is inner:
        return [(outer, Axis(axis.place + 1, axis.repeats))]
    if axis.place == 0:
        raise stop(equation, "are the steps of a scan")
    return [(inner, Axis(axis.place - 1, axis.repeats))]


_RULES = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
    "transpose": _transposed,
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "slice": _sliced,
    "scan_carry": _carried,
    "scan_slice": _step,
    "scan_stack": _step,
}
