"""Refits: fit what reads the reduced taps again, to the dense network's outputs under interventions.

    minimise  mean over taps of E_{x, I} KL( softmax(M_I(x)) || softmax(M^red_I(x)) ) + ridge * sum_kj (sd_k dW_kj)^2

over kernels and biases of what reads the taps (`head`), or the biases alone (`bias`); dW is the change of a kernel and
sd the standard deviation of the unit it reads. Where one tap that feeds the logits is reduced this is convex: constants
act there only through the C numbers of the bias (spec B.4), affine folds only through a linear readout of the kept
units. The pairs are the calibration inputs with kept units interchanged under the law; only the dense network's outputs
are fitted, no labels, and no weights but the readers'.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from abstraction.evaluation.interchange import (
    Trials,
    View,
    interchanged_outputs,
    positioned_masks,
    recorded_states,
    view,
)
from abstraction.interventions import Set
from abstraction.models import Consumer, Model
from abstraction.models.base import present
from abstraction.models.wiring import find_array, replace_array
from abstraction.reduction.discrepancies import KL
from abstraction.reduction.folding import Reduced
from abstraction.typing import AnyArray, Outputs, Params

Refit = Literal["bias", "head"]
PASSES = 3


class Refitted(NamedTuple):
    """A refitted network.

    Attributes:
      network: with the refitted weights.
      before: mean KL before.
      after: mean KL after.
      steps: L-BFGS steps taken.
    """

    network: Reduced
    before: float
    after: float
    steps: int


def refit_readers(
    kind: Refit,
    dense: Sequence[View],
    reduced: Reduced,
    inputs: AnyArray,
    *,
    law: Sequence[float],
    generator: np.random.Generator,
    ridge: float = 1e-3,
    steps: int = 50,
) -> Refitted:
    """Refit what reads the reduced taps, all of it together; so are all pairs, in memory and in every step.

    Args:
      kind: `bias` or `head` (kernel and bias).
      dense: the original network, at each reduced tap, with the units that are kept.
      reduced: the compiled network; at the same taps it has these units only.
      inputs: calibration inputs.
      law: interchange probabilities; the inputs are passed over a few times for each.
      generator: draws sources and masks.
      ridge: pull towards the folded kernels.
      steps: L-BFGS steps at most.

    Raises:
      ValueError: an unknown kind, or a tap with depth, whose readers are not run once.
    """
    if kind not in get_args(Refit):
        raise ValueError(f"got refit {kind!r}, expected one of {get_args(Refit)}")
    model, params = reduced
    start: dict[Any, AnyArray] = {}
    pulls: dict[Any, Array] = {}
    trials = _trials(len(inputs), dense, law, generator)
    hybrids, targets = {}, {}
    for each in dense:
        if each.model.taps[each.tap].depth is not None:
            raise ValueError(f"got a refit at {each.tap!r}, which recurs; expected a tap without depth, or refit=None")
        hybrids[each.tap] = _hybrids(each, reduced, inputs, trials[each.tap])
        targets[each.tap] = interchanged_outputs(each, inputs, trials[each.tap])
        if any(find_array(params, consumer.bias) is None for consumer in model.consumers(each.tap)):
            model, params = model.with_biases(params, each.tap)
        spread = _spread(each, inputs, trials[each.tap], hybrids[each.tap])
        for consumer in model.consumers(each.tap):
            start[consumer.bias] = find_array(params, consumer.bias)
            pulls[consumer.bias] = jnp.zeros(())
            if kind == "head":
                start[consumer.kernel] = find_array(params, consumer.kernel)
                pulls[consumer.kernel] = jnp.sqrt(ridge) * _per_input(consumer, start[consumer.kernel], spread)
    paths = tuple(start)
    weights = tuple(jnp.asarray(start[path]) for path in paths)
    pull = tuple(pulls[path] for path in paths)
    bases = {tap: drawn.base for tap, drawn in trials.items()}
    fitted = _descend(
        model, paths, params, weights, pull, jnp.asarray(inputs), bases, hybrids, targets, jnp.int32(steps)
    )
    for path, value in zip(paths, fitted[0], strict=True):
        params = replace_array(params, path, value)
    return Refitted(Reduced(model, params), float(fitted[1]), float(fitted[2]), int(fitted[3]))


def _trials(
    count: int, dense: Sequence[View], law: Sequence[float], generator: np.random.Generator
) -> dict[str, Trials]:
    """Draw interchanges at every tap: each input as a base, a few times for each probability."""
    drawn = {}
    for each in dense:
        sources = [(np.arange(count) + generator.integers(1, count, count)) % count for _ in law for _ in range(PASSES)]
        masks = [generator.random((count, len(each.units))) < p for p in law for _ in range(PASSES)]
        base = np.tile(np.arange(count), len(sources)).astype(np.int32)
        drawn[each.tap] = Trials(base, np.concatenate(sources).astype(np.int32), np.concatenate(masks))
    return drawn


def _hybrids(dense: View, reduced: Reduced, inputs: AnyArray, trials: Trials) -> Array:
    """Return the values of a reduced tap with some units interchanged, `[T, ..., K]`."""
    own = view(reduced.model, reduced.params, dense.tap, np.arange(len(dense.units)))
    states = recorded_states(own, inputs)
    base, source = states[trials.base], states[trials.source]
    mask = positioned_masks(own, jnp.asarray(inputs), trials, jnp.asarray(trials.masks), base.shape)
    return jnp.where(mask, source, base)


def _spread(dense: View, inputs: AnyArray, trials: Trials, values: Array) -> Float[np.ndarray, " K"]:
    """Return the standard deviation of each unit, padding left out."""
    flat = np.asarray(values).reshape(len(values), -1, values.shape[-1])
    there = np.asarray(present(dense.model, jnp.asarray(inputs), dense.tap, flat.shape[1]))
    return flat[there[trials.base]].std(0)


def _per_input(consumer: Consumer, kernel: AnyArray, spread: Float[np.ndarray, " K"]) -> Array:
    """Spread the units' standard deviations over the kernel, whose innermost input axis holds them."""
    axis = consumer.axes[-1]
    tiled = np.tile(spread, kernel.shape[axis] // len(spread))
    return jnp.asarray(tiled.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)]), kernel.dtype)


@partial(jax.jit, static_argnames=("model", "paths"))
def _descend(
    model: Model,
    paths: tuple[tuple[str, ...], ...],
    params: Params,
    start: tuple[Array, ...],
    pull: tuple[Array, ...],
    inputs: Array,
    bases: dict[str, Int[Array, " T"]],
    hybrids: dict[str, Array],
    targets: dict[str, Outputs],
    steps: Array,
) -> tuple[tuple[Array, ...], Array, Array, Array]:
    def divergence(weights: tuple[Array, ...]) -> Array:
        changed = params
        for path, value in zip(paths, weights, strict=True):
            changed = replace_array(changed, path, value)
        total = jnp.zeros((), start[0].dtype)
        for tap, values in hybrids.items():
            # What comes before the tap matters where something passes it by, a residual stream; else it is not run.
            outputs = model.apply(changed, inputs[bases[tap]], {tap: Set(values)})[0]
            total += KL.compare(outputs, targets[tap], None).mean() / len(hybrids)
        return total

    def objective(weights: tuple[Array, ...]) -> Array:
        moved = zip(weights, start, pull, strict=True)
        return divergence(weights) + sum(((scale * (value - first)) ** 2).sum() for value, first, scale in moved)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: tuple) -> tuple:
        weights, state, taken, _ = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = optimizer.update(gradient, state, weights, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(weights, updates), state, taken + 1, optax.tree.norm(gradient)

    going = lambda carry: (carry[2] < steps) & (carry[3] > 1e-5)
    weights, _, taken, _ = jax.lax.while_loop(
        going, step, (start, optimizer.init(start), jnp.int32(0), jnp.asarray(jnp.inf, start[0].dtype))
    )
    return weights, divergence(start), divergence(weights), taken
