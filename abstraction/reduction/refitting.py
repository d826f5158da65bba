"""Refits: fit what reads the reduced taps again, to the dense network's outputs under interventions.

    minimise  mean over taps of E_{x, I} KL( softmax(M_I(x)) || softmax(M^red_I(x)) ) + ridge * sum_kj (sd_k dW_kj)^2

over kernels and biases of what reads the taps (`head`), or the biases alone (`bias`); dW is the change of a kernel and
sd the standard deviation of the unit it reads. Where one tap that feeds the logits is reduced this is convex: constants
act there only through the C numbers of the bias, affine folds only through a linear readout of the kept
units. The pairs are the calibration inputs with kept units interchanged under the law; only the dense network's outputs
are fitted, no labels, and no weights but the readers'.

A tap that recurs reads itself: its readers move the states that are interchanged, so both runs of a pair are run again
in every step, and gradients go through time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import finite, number, one_of, whole
from abstraction.evaluation.interchange import (
    Trials,
    View,
    interchanged_outputs,
    positioned_masks,
    recorded_states,
    view,
)
from abstraction.interventions import Interchange, Set
from abstraction.models import Consumer, Network, on_mesh
from abstraction.models.base import present
from abstraction.models.taps import Edits
from abstraction.models.wiring import find_array, replace_array
from abstraction.pytrees import leading_axis, pytree
from abstraction.reduction.discrepancies import KL
from abstraction.reduction.folding import reducible
from abstraction.reduction.moments import check_law
from abstraction.sharding import mesh_of, on_host, over, over_rows
from abstraction.typing import AnyArray, Outputs

RefitKind = Literal["bias", "head"]
MIXTURE = (0.0, 0.1, 0.2)
"""Interchange strengths that folds are made for, weighed equally: observation and mild interventions."""
PASSES = 3


@dataclass(frozen=True)
class Refit:
    """What is refitted, and how; checked when it is built.

    Attributes:
      kind: `bias` or `head` (kernel and bias).
      law: interchange probabilities; the inputs are passed over a few times for each.
      ridge: pull towards the folded kernels.
      steps: L-BFGS steps at most.
    """

    kind: RefitKind = "head"
    law: tuple[float, ...] = MIXTURE
    ridge: float = 1e-3
    steps: int = 50

    def __post_init__(self) -> None:
        one_of("refit", self.kind, get_args(RefitKind))
        check_law(self.law)
        number("ridge", self.ridge)
        whole("steps", self.steps, 0)


class Refitted(NamedTuple):
    """A refitted network.

    Attributes:
      network: with the refitted weights.
      before: mean KL before.
      after: mean KL after.
      steps: L-BFGS steps taken.
    """

    network: Network
    before: float
    after: float
    steps: int


@pytree
class _Swap:
    """The interchanges of one tap that a network is fitted under.

    Attributes:
      base: rows of the inputs, `[T]`.
      source: other rows, `[T]`.
      masks: units that are interchanged, as the tap's states, `[T, ..., K]`.
      values: the tap's value under them, `[T, ..., K]`; None where it recurs, and moves with its readers.
      target: outputs of the dense network, `[T, C]`.
    """

    base: Int[AnyArray, " T"]
    source: Int[AnyArray, " T"]
    masks: Bool[Array, "T ... K"]
    values: Array | None
    target: Outputs


def refit_readers(
    refit: Refit, dense: Sequence[View], reduced: Network, inputs: Any, *, generator: np.random.Generator
) -> Refitted:
    """Refit what reads the reduced taps, all of it together; so are all pairs, in memory and in every step.

    Args:
      refit: what, and how.
      dense: the original network, at each reduced tap, with the units that are kept.
      reduced: the compiled network; at the same taps it has these units only.
      inputs: calibration inputs.
      generator: draws sources and masks.

    Raises:
      ValueError: fewer than two inputs, no tap, units that are not those of the reduced network, or a loss that is not
        finite.
    """
    rows = leading_axis(inputs)
    if rows < 2 or not dense:
        raise ValueError(f"got a refit of {len(dense)} taps on {rows} inputs, expected 1 tap and 2 inputs at least")
    trials = _trials(rows, dense, refit.law, generator)
    start: dict[Any, AnyArray] = {}
    pulls: dict[Any, Array] = {}
    swaps = {}
    for each in dense:
        swaps[each.tap], spread = _swap(each, reduced, inputs, trials[each.tap])
        reduced = _with_biases(reduced, each.tap)
        for consumer in reducible(reduced).consumers(each.tap):
            start[consumer.bias] = find_array(reduced.params, consumer.bias)
            pulls[consumer.bias] = jnp.zeros(())
            if refit.kind == "head":
                start[consumer.kernel] = find_array(reduced.params, consumer.kernel)
                pulls[consumer.kernel] = jnp.sqrt(refit.ridge) * _per_input(consumer, start[consumer.kernel], spread)
    paths, mesh = tuple(start), mesh_of(reduced.params)
    readers = tuple(jnp.asarray(start[path]) for path in paths), tuple(pulls[path] for path in paths)
    arrays, readers = over(mesh, None, (jax.tree.map(jnp.asarray, inputs), readers))
    swaps = {tap: over_rows(mesh, swap) for tap, swap in swaps.items()}
    fitted, before, after, steps = _descend(reduced, paths, readers, arrays, swaps, np.int32(refit.steps))
    finite("a KL after the refit", after)
    params = reduced.params
    for path, value in zip(paths, fitted, strict=True):
        params = replace_array(params, path, value)
    return Refitted(Network(reduced.model, params), float(before), float(after), int(steps))


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


def _swap(dense: View, reduced: Network, inputs: Any, trials: Trials) -> tuple[_Swap, Float[np.ndarray, " K"]]:
    """Run both networks under interchanges; return what is fitted and the standard deviation of each unit."""
    own = view(reduced, dense.tap, np.arange(len(dense.units)))
    states = recorded_states(own, inputs)
    if states.shape[-1] != len(dense.units):
        raise ValueError(
            f"got {len(dense.units)} kept units at {dense.tap!r}, expected {states.shape[-1]}, those of the network"
        )
    base, source = states[trials.base], states[trials.source]
    masks = positioned_masks(own, jax.tree.map(jnp.asarray, inputs), trials, jnp.asarray(trials.masks), base.shape)
    values, recurs = jnp.where(masks, source, base), reduced.taps[dense.tap].depth > 1
    target = interchanged_outputs(dense, inputs, trials)
    swap = _Swap(trials.base, trials.source, masks, None if recurs else values, target)
    return swap, _spread(dense, inputs, trials, values)


def _spread(dense: View, inputs: Any, trials: Trials, values: Array) -> Float[np.ndarray, " K"]:
    """Return the standard deviation of each unit, padding left out."""
    flat = on_host(values).reshape(len(values), -1, values.shape[-1])
    inputs = jax.tree.map(jnp.asarray, inputs)
    there = np.asarray(present(dense.network.model, inputs, dense.tap, flat.shape[1]))
    return flat[there[trials.base]].std(0)


def _with_biases(network: Network, tap: str) -> Network:
    """Give every reader of a tap a bias, where one has none."""
    model = reducible(network)
    if all(find_array(network.params, consumer.bias) is not None for consumer in model.consumers(tap)):
        return network
    mesh, biased = mesh_of(network.params), Network(*model.with_biases(network.params, tap))
    return biased if mesh is None else on_mesh(biased, mesh)


def _per_input(consumer: Consumer, kernel: AnyArray, spread: Float[np.ndarray, " K"]) -> Array:
    """Spread the units' standard deviations over the kernel, whose innermost input axis holds them."""
    axis = consumer.axes[-1]
    tiled = np.tile(spread, kernel.shape[axis] // len(spread))
    return jnp.asarray(tiled.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)]), kernel.dtype)


def _edits(network: Network, inputs: Any, tap: str, swap: _Swap) -> Edits:
    """Return the edits that put the interchanges of a tap into force."""
    if swap.values is not None:
        return {tap: Set(swap.values[None])}
    states = network(inputs, record=(tap,))[1][tap]
    return {tap: Interchange(states[:, swap.source], jnp.moveaxis(swap.masks, 1, 0).astype(states.dtype))}


@partial(jax.jit, static_argnames=("paths",))
def _descend(
    network: Network,
    paths: tuple[tuple[str, ...], ...],
    readers: tuple[tuple[Array, ...], tuple[Array, ...]],
    inputs: Any,
    swaps: dict[str, _Swap],
    steps: Array,
) -> tuple[tuple[Array, ...], Array, Array, Array]:
    """Descend from the readers' weights, pulled back by the second of `readers`; return weights, losses and steps."""
    start, pull = readers

    def divergence(weights: tuple[Array, ...]) -> Array:
        changed = network.params
        for path, value in zip(paths, weights, strict=True):
            changed = replace_array(changed, path, value)
        refitted, total = Network(network.model, changed), jnp.zeros((), start[0].dtype)
        for tap, swap in swaps.items():
            # What comes before the tap matters where something passes it by, a residual stream; else it is not run.
            bases = jax.tree.map(lambda values, rows=swap.base: values[rows], inputs)
            outputs = refitted(bases, _edits(refitted, inputs, tap, swap))[0]
            total += KL.compare(outputs, swap.target, None).mean() / len(swaps)
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
