"""Operations of a program, counted from what JAX traced: nothing is compiled or run.

    A B of M x K and K x N                2 M K N
    a convolution                         2 outputs (kernel entries that one output reads)
    Cholesky, LU, QR of N x N             N^3 / 3,  2 N^3 / 3,  4 N^3 / 3       (of M x N: M N^2 in place of N^3)
    a triangular solve with M right sides N^2 M
    eigenvectors of a symmetric N x N     9 N^3

A scan counts its body as often as it runs, a condition its dearest branch, a loop whose end is not known its body once:
of a search that is one epoch. What is not a product of matrices is left out, as it is of model FLOPs everywhere.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax

from abstraction.planning import Program

_CUBES = {"cholesky": 1 / 3, "eigh": 9.0}


def count_operations(program: Program) -> float:
    """Return the operations of a program; of arrays or shapes alike."""
    traced = program.function.trace(*program.arguments, **program.options)
    return _of(traced.jaxpr.jaxpr)


def _of(jaxpr: Any) -> float:
    return sum((_of_one(equation) for equation in jaxpr.eqns), 0.0)


def _of_one(equation: Any) -> float:
    name, parts = equation.primitive.name, [_of(part) for part in _parts(equation)]
    if name == "cond":
        return max(parts, default=0.0)
    if parts:
        return sum(parts) * (equation.params.get("length", 1) if name == "scan" else 1)
    shapes = [tuple(variable.aval.shape) for variable in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2.0 * _size(equation) * math.prod(shapes[0][axis] for axis in contracted)
    if name == "conv_general_dilated":
        output = equation.params["dimension_numbers"].rhs_spec[0]
        return 2.0 * _size(equation) * math.prod(shapes[1]) / shapes[1][output]
    return _of_solver(name, shapes)


def _of_solver(name: str, shapes: list[tuple[int, ...]]) -> float:
    if name in _CUBES:
        return _CUBES[name] * math.prod(shapes[0]) * shapes[0][-1]
    if name in ("lu", "geqrf", "householder_product", "qr"):
        *batch, rows, columns = shapes[0]
        least = min(rows, columns)
        share = 1 / 3 if name == "lu" else 2 / 3
        return 2 * share * math.prod(batch) * max(rows, columns) * least**2
    if name == "triangular_solve":
        return float(math.prod(shapes[1]) * shapes[0][-1])
    return 0.0


def _size(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _parts(equation: Any) -> Iterator[Any]:
    """Yield the programs inside an equation; of a rule for derivatives, what it is a rule for alone."""
    for name, value in equation.params.items():
        if name in ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "cond_jaxpr"):
            continue
        for leaf in jax.tree.leaves(value, is_leaf=lambda each: hasattr(each, "eqns") or hasattr(each, "jaxpr")):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield inner
