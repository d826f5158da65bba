"""The values of a program and who reads them, whatever functions and scans they are inside of.

Calls are written out where they are made, so that a function used twice has values of its own each time. Of a scan the
body is written once, between links: `scan_slice` (a step's part of `xs`), `scan_carry` and `scan_stack` (its part of
`ys`). An equation has an address, the indices by which `interpreter.evaluate` comes to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jax.extend import core

from abstraction.models.any_model.program import JITTED, REMAT, RULED, bodies, line_of, opened, own_info, scan_parts

Address = tuple[int, ...]


@dataclass(eq=False, repr=False)
class Value:
    """An array of a program.

    Attributes:
      shape: its shape.
      source: `param`, `input`, `constant`, or `equation`.
      number: which leaf of the params it is.
      maker: the equation that gives it.
      readers: equations that read it.
      fixed: whether it follows from params and constants alone.
      data: what it is, of a constant.
    """

    shape: tuple[int, ...]
    source: str
    number: int = -1
    maker: "Equation | None" = None
    readers: list["Equation"] = field(default_factory=list)
    fixed: bool = True
    data: Any = None


@dataclass(eq=False, repr=False)
class Equation:
    """An operation of a program.

    Attributes:
      name: the primitive, or a link of a scan.
      options: its parameters.
      operands: what it reads.
      results: what it gives.
      address: where it is; empty for a link.
      line: the user's source line, for people.
      steps: the lengths of the scans it is inside of, outermost first.
      eqn: JAX's own.
      info: whose it is, as `interpreter.bound` is told.
    """

    name: str
    options: dict[str, Any]
    operands: list[Value]
    results: list[Value]
    address: Address
    line: str
    steps: tuple[int, ...]
    eqn: Any
    info: Any


@dataclass(eq=False, repr=False)
class Graph:
    """A program written out.

    Attributes:
      params: a value for each leaf of the params.
      equations: in the order in which they run.
      outputs: what it returns.
    """

    params: list[Value]
    equations: list[Equation]
    outputs: list[Value]


def graph_of(closed: Any, params: int) -> Graph:
    """Write out a closed program whose first inputs are so many leaves of params."""
    arguments = [
        Value(tuple(var.aval.shape), "param" if index < params else "input", index, fixed=index < params)
        for index, var in enumerate(closed.jaxpr.invars)
    ]
    graph = Graph(arguments[:params], [], [])
    graph.outputs = _Writer(graph).write(closed, arguments, _Scope())
    return graph


class _Scope(NamedTuple):
    """Where equations are: address, lengths of the scans around, the line that calls them, whose they are."""

    address: Address = ()
    steps: tuple[int, ...] = ()
    line: str = ""
    info: Any = None


class _Writer:
    """Writes programs into a graph."""

    def __init__(self, graph: Graph):
        self.graph = graph

    def write(self, body: Any, arguments: Sequence[Value], scope: _Scope) -> list[Value]:
        """Write one program, given the values of its inputs, and return those it gives."""
        jaxpr, consts = opened(body)
        constant = lambda atom, data: Value(tuple(getattr(atom.aval, "shape", ())), "constant", data=data)
        env = {var: constant(var, data) for var, data in zip(jaxpr.constvars, consts, strict=True)}
        env |= dict(zip(jaxpr.invars, arguments, strict=True))
        read = lambda atom: constant(atom, atom.val) if isinstance(atom, core.Literal) else env[atom]
        for index, eqn in enumerate(jaxpr.eqns):
            operands, kind, inside = [read(atom) for atom in eqn.invars], eqn.primitive.name, bodies(eqn)
            # A cached function of JAX keeps no line of the user's: what calls it has one.
            here = scope._replace(
                address=(*scope.address, index), line=line_of(eqn)[0] or scope.line, info=own_info(jaxpr)
            )
            if kind in (*JITTED, *REMAT, *RULED) and inside:
                results = self.write(inside[0], operands, here._replace(address=(*here.address, 0)))
            elif kind == "scan":
                results = self.scan(eqn, operands, here)
            else:
                results = self.add(kind, eqn, operands, [tuple(var.aval.shape) for var in eqn.outvars], here)
            env |= zip(eqn.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def scan(self, eqn: Any, operands: list[Value], scope: _Scope) -> list[Value]:
        """Write the body of a scan once, between links."""
        options, within = eqn.params, scope._replace(steps=(*scope.steps, eqn.params["length"]))
        first, second = scan_parts(eqn)
        link = lambda name, value, shape: self.add(name, eqn, [value], [shape], within._replace(address=()))[0]
        carried = [link("scan_carry", value, value.shape) for value in operands[first:second]]
        slices = [link("scan_slice", value, value.shape[1:]) for value in operands[second:]]
        body = within._replace(address=(*scope.address, 0))
        outs = self.write(options["jaxpr"], [*operands[:first], *carried, *slices], body)
        last = [link("scan_carry", value, value.shape) for value in outs[: len(carried)]]
        return [
            *last,
            *(link("scan_stack", value, (options["length"], *value.shape)) for value in outs[len(carried) :]),
        ]

    def add(
        self, name: str, eqn: Any, operands: list[Value], shapes: list[tuple[int, ...]], scope: _Scope
    ) -> list[Value]:
        """Add an equation and return its results."""
        fixed = all(value.fixed for value in operands)
        results = [Value(shape, "equation", fixed=fixed) for shape in shapes]
        equation = Equation(
            name, dict(eqn.params), operands, results, scope.address, scope.line, scope.steps, eqn, scope.info
        )
        for value in results:
            value.maker = equation
        for value in operands:
            value.readers.append(equation)
        self.graph.equations.append(equation)
        return results
