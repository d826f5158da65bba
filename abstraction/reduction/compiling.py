"""Two back-ends of one plan: run the original network under it, or make the smaller network it stands for.

    patch(network, plan)           edits: the ORIGINAL network, the units of S overwritten by beta + B a_K
    compile_plan(network, plan)    a smaller network: folded into its readers, then the units of S removed

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

from abstraction.checks import whole
from abstraction.interventions.edits import Substitute
from abstraction.models import Network, on_mesh
from abstraction.models.network import check_network
from abstraction.models.taps import Edits
from abstraction.reduction.folding import Fold, check_fold, fold_params, obstacle, reducible
from abstraction.reduction.plans import Plan
from abstraction.sharding import mesh_of


class Bill(NamedTuple):
    """What a network costs.

    Attributes:
      parameters: numbers stored.
      multiply_adds: products summed in matrix products and convolutions, per example; those with zeros around a border
        count.
    """

    parameters: int
    multiply_adds: int


def patch(network: Network, plan: Plan) -> Edits:
    """Return the edits that put a plan into force in the original network, at every depth of its taps.

    Raises:
      ValueError: a fold does not fit its tap.
    """
    return {fold.tap: _substitute(network, fold) for fold in plan.folds}


def compile_plan(network: Network, plan: Plan) -> Network:
    """Make the smaller network that a plan stands for.

    Args:
      network: the original one; left as it is.
      plan: folds in the original numbering of their taps.

    Returns:
      The network without the replaced units, on the mesh of the original one.

    Raises:
      ValueError: weights that are not the model's; a fold that does not fit its tap, is not exact in this network, or
        whose result is out of the range of the weights' dtype; units of one layer folded at two taps. Says why, and
        that `patch` runs the plan all the same.
    """
    check_network(network)
    for fold in plan.folds:
        check_fold(network, fold)
    reduced = network
    for fold in plan.folds:
        why = obstacle(reduced, fold)
        if reduced.taps[fold.tap].width != network.taps[fold.tap].width:
            why = "units of the same layer are already folded at an earlier tap"
        if why:
            raise ValueError(
                f"got a fold at {fold.tap!r} that cannot be compiled exactly: {why}; expected one that can, or the "
                "backend 'patch': patch(network, plan) gives edits that run it in the original network"
            )
        folded = fold_params(reduced, fold)
        reduced = Network(*reducible(folded).narrowed(folded.params, fold.tap, np.asarray(fold.kept)))
    mesh = mesh_of(network.params)
    return reduced if mesh is None else on_mesh(reduced, mesh)


def bill(network: Network, inputs_shape: tuple[int, ...], *, dtype: Any = jnp.float32) -> Bill:
    """Count parameters, and the multiply-adds of one example.

    Products are read off the traced program, so that every model is counted alike and on every device; in a scan they
    count once per step, in a choice the dearest branch counts, and a while loop counts as one turn.

    Args:
      network: the network.
      inputs_shape: of one example, without the batch axis.
      dtype: of the inputs; tokens are integers.

    Raises:
      ValueError: weights that are not the model's, or inputs that it does not take.
    """
    check_network(network)
    for size in inputs_shape:
        whole("size of an input", size)
    example = jax.ShapeDtypeStruct((1, *inputs_shape), dtype)
    try:
        traced = jax.make_jaxpr(lambda params, inputs: network.model.apply(params, inputs)[0])(network.params, example)
    except TypeError as error:
        raise ValueError(
            f"got inputs of shape {inputs_shape} and type {dtype}, expected what {network.model} takes: {error}"
        ) from error
    return Bill(sum(leaf.size for leaf in jax.tree.leaves(network.params)), _multiply_adds(traced.jaxpr))


def latency(network: Network, inputs: Any, *, repeats: int = 20) -> float:
    """Return the median seconds of a compiled, warmed-up forward pass on a batch.

    Raises:
      ValueError: no repeat.
    """
    whole("repeats", repeats)
    run = jax.jit(lambda params, inputs: network.model.apply(params, inputs)[0])
    params, inputs = jax.device_put((network.params, inputs))
    jax.block_until_ready(run(params, inputs))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(params, inputs))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def _substitute(network: Network, fold: Fold) -> Substitute:
    check_fold(network, fold)
    edit = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)
    depth = network.taps[fold.tap].depth
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (depth, *leaf.shape)), edit)


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
