"""Two back-ends of one plan: run the original network under it, or make the smaller network it stands for.

    patch(model, plan)                   edits: the ORIGINAL network, the units of S overwritten by beta + B a_K
    compile_plan(model, params, plan)    a smaller network: folded into its readers, then the units of S removed

Wherever the second is possible both compute the same function. It is refused, not approximated, where a fold does not
reach an affine reader: an affine map before a nonlinearity, a state that starts elsewhere, half an attention head.
Also here: what a network costs, in parameters, multiply-adds and seconds.
"""

import time
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.interventions.edits import Substitute
from abstraction.models import Edits, Model, Reducible
from abstraction.reduction.folding import Fold, Reduced, fold_params, obstacle, require_width
from abstraction.reduction.plans import Plan
from abstraction.typing import AnyArray, Params


class Bill(NamedTuple):
    """What a network costs.

    Attributes:
      parameters: numbers stored.
      multiply_adds: products summed in matrix products and convolutions, per example; those with zeros around a border
        count.
    """

    parameters: int
    multiply_adds: int


def patch(model: Model, plan: Plan) -> Edits:
    """Return the edits that put a plan into force in the original network, at every depth of its taps.

    Raises:
      ValueError: a fold does not fit its tap.
    """
    return {fold.tap: _substitute(model, fold) for fold in plan.folds}


def compile_plan(model: Model, params: Params, plan: Plan) -> Reduced:
    """Make the smaller network that a plan stands for.

    Args:
      model: the original network.
      params: its weights; left as they are.
      plan: folds in the original numbering of their taps.

    Returns:
      The network without the replaced units, and its weights.

    Raises:
      ValueError: a fold is not exact in this network, or units of one layer are folded at two taps; says why, and that
        `patch` runs the plan all the same.
    """
    for fold in plan.folds:
        require_width(model, fold)
    reduced: Any = model
    for fold in plan.folds:
        why = obstacle(reduced, params, fold)
        if reduced.taps[fold.tap].width != model.taps[fold.tap].width:
            why = "units of the same layer are already folded at an earlier tap"
        if why:
            raise ValueError(
                f"got a fold at {fold.tap!r} that cannot be compiled exactly: {why}; "
                "patch(model, plan) gives edits that run it in the original network"
            )
        reduced, params = _without(reduced, params, fold)
    return Reduced(reduced, params)


def bill(model: Model, params: Params, inputs_shape: tuple[int, ...], *, dtype: Any = jnp.float32) -> Bill:
    """Count parameters, and the multiply-adds of one example.

    Products are read off the traced program, so that every model is counted alike and on every device; in a scan they
    count once per step, in a choice the dearest branch counts, and a while loop counts as one turn.

    Args:
      model: the network.
      params: its weights.
      inputs_shape: of one example, without the batch axis.
      dtype: of the inputs; tokens are integers.
    """
    example = jax.ShapeDtypeStruct((1, *inputs_shape), dtype)
    traced = jax.make_jaxpr(lambda params, inputs: model.apply(params, inputs)[0])(params, example)
    return Bill(sum(leaf.size for leaf in jax.tree.leaves(params)), _multiply_adds(traced.jaxpr))


def latency(model: Model, params: Params, inputs: AnyArray, *, repeats: int = 20) -> float:
    """Return the median seconds of a compiled, warmed-up forward pass on a batch."""
    run = jax.jit(lambda params, inputs: model.apply(params, inputs)[0])
    params, inputs = jax.device_put((params, inputs))
    jax.block_until_ready(run(params, inputs))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(params, inputs))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _substitute(model: Model, fold: Fold) -> Substitute:
    require_width(model, fold)
    edit = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)
    depth = model.taps[fold.tap].depth
    if depth is None:
        return edit
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (depth, *leaf.shape)), edit)


def _without(model: Reducible, params: Params, fold: Fold) -> Reduced:
    model, params = fold_params(model, params, fold)
    return Reduced(*model.narrowed(params, fold.tap, np.asarray(fold.kept)))


def _multiply_adds(program: Any) -> int:
    """Sum output size times contracted length over the products of a traced program, and of those inside it."""
    total = 0
    for equation in program.eqns:
        name, inner = equation.primitive.name, [_multiply_adds(part) for part in _programs(equation.params)]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += equation.outvars[0].aval.size * prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            total += equation.outvars[0].aval.size * (kernel.size // features)
        elif name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (equation.params["length"] if name == "scan" else 1)
    return total


def _programs(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs among the parameters of an equation, closed or not."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part
