"""Interchange trials: does a reduced network do what the dense one does, when units are intervened on?

A trial takes a base and a source input and a mask over the kept units; the masked units take the value they have on the
source, in either network its own. In the dense network the replaced units keep their base value; in the reduced one
they are computed from the hybrid. Each unit is masked independently with probability p (Bernoulli law), or one at a
time, or group by group; p = 0 is observation. Interchange-intervention accuracy is the share of trials in which both
networks choose the same class. The estimand is uniform over ordered pairs of different inputs of the evaluation set.

Source: CIF (Asiaee, UAI 2026), Sec. on interchange interventions; CMR, arXiv 2602.24266.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from abstraction.interventions import InOrder, Interchange, Set
from abstraction.models import NO_EDITS, Edits, Model, Padded
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray, Outputs, Params

Replaced = Literal["base", "source"]


@pytree
class View:
    """A network seen from one tap.

    Attributes:
      model: the network.
      tap: where units are interchanged.
      params: its weights.
      units: which of the tap's units the K positions of a mask stand for, `[K]`.
      edits: what runs it as a reduced network without compiling it; for a dense or a compiled one nothing.
    """

    model: Model = static()
    tap: str = static()
    params: Params
    units: Int[AnyArray, " K"]
    edits: Edits


@pytree
class Trials:
    """T interchanges.

    Attributes:
      base: rows of the evaluation inputs, `[T]`.
      source: other rows, `[T]`.
      masks: which of the kept units take the source's value, `[T, K]`.
    """

    base: Int[AnyArray, " T"]
    source: Int[AnyArray, " T"]
    masks: Bool[AnyArray, "T K"]


def view(model: Model, params: Params, tap: str, units: Int[AnyArray, " K"], edits: Edits = NO_EDITS) -> View:
    """See a network from one tap.

    Raises:
      ValueError: unknown tap, or units that are not there.
    """
    if tap not in model.taps:
        raise ValueError(f"got tap {tap!r}, expected one of {sorted(model.taps)}")
    units, width = np.asarray(units, np.int32), model.taps[tap].width
    if not len(units) or units.min() < 0 or units.max() >= width:
        raise ValueError(f"got units {units.tolist()[:8]} at {tap!r}, expected at least one of 0 to {width - 1}")
    return View(model, tap, params, units, edits)


def bernoulli_trials(
    generator: np.random.Generator, *, examples: int, units: int, probability: float, trials: int
) -> Trials:
    """Draw trials in which every unit is masked with the same probability.

    Args:
      generator: randomness.
      examples: rows of the evaluation inputs.
      units: kept units K.
      probability: p; 0 is observation.
      trials: T.

    Raises:
      ValueError: fewer than two examples, or p outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"got probability {probability}, expected one in [0, 1]")
    base, source = _pairs(generator, examples, trials)
    return Trials(base, source, generator.random((trials, units)) < probability)


def group_trials(
    generator: np.random.Generator, *, examples: int, groups: Sequence[Sequence[int]], trials: int
) -> Trials:
    """Draw trials that interchange one group of kept units each; groups of one unit are single-unit interchanges.

    Args:
      generator: randomness.
      examples: rows of the evaluation inputs.
      groups: positions among the kept units, 0 to K - 1.
      trials: T.

    Raises:
      ValueError: fewer than two examples, or no group.
    """
    if not len(groups):
        raise ValueError("got no groups, expected at least one")
    base, source = _pairs(generator, examples, trials)
    width = 1 + max(max(group) for group in groups)
    table = np.zeros((len(groups), width), bool)
    for index, group in enumerate(groups):
        table[index, list(group)] = True
    return Trials(base, source, table[generator.integers(len(groups), size=trials)])


def interchanged_outputs(
    view: View,
    inputs: AnyArray,
    trials: Trials,
    *,
    states: Array | None = None,
    replaced: Replaced = "base",
    batch_size: int = 2048,
) -> Outputs:
    """Run a network under every trial: outputs `[T, C]`.

    Args:
      view: the network, and which of its units are interchanged.
      inputs: evaluation inputs, `[M, ...]`; each runs once, whatever the number of trials.
      trials: which inputs, which units.
      states: what `recorded_states` returns, where it is known already.
      replaced: where units that are not in the view take their value from; "source" moves a whole state where all of
        the units are masked.
      batch_size: trials at a time.

    Raises:
      ValueError: masks of another number of units than the view's.
    """
    count, width = np.shape(trials.masks)
    if width != len(view.units):
        raise ValueError(f"got masks over {width} units, expected {len(view.units)}, the units of the view")
    states = recorded_states(view, inputs) if states is None else states
    inputs = jnp.asarray(inputs)
    parts = []
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        part = jax.tree.map(lambda values, rows=rows: np.asarray(values[rows]), trials)
        parts.append(_run(view, inputs, states, part, replaced == "source"))
    return jnp.concatenate(parts)


def bounded_losses(
    dense: Float[AnyArray, "T C"], reduced: Float[AnyArray, "T C"]
) -> dict[str, Float[np.ndarray, " T"]]:
    """Return per trial how far two networks are apart, in [0, 1].

    zero_one    another class          clipped_kl  min(1, KL(p_dense || p_reduced))
    clipped_l2  min(1, ||p_dense - p_reduced||)
    """
    dense, reduced = (np.asarray(logits, np.float32) for logits in (dense, reduced))
    log_p, log_q = (np.asarray(jax.nn.log_softmax(logits)) for logits in (dense, reduced))
    p, q = np.exp(log_p), np.exp(log_q)
    return {
        "zero_one": (dense.argmax(-1) != reduced.argmax(-1)).astype(np.float64),
        "clipped_kl": np.clip((p * (log_p - log_q)).sum(-1), 0.0, 1.0).astype(np.float64),
        "clipped_l2": np.minimum(np.linalg.norm(p - q, axis=-1), 1.0).astype(np.float64),
    }


def _pairs(generator: np.random.Generator, examples: int, trials: int) -> tuple[np.ndarray, np.ndarray]:
    if examples < 2 or trials < 1:
        raise ValueError(f"got {trials} trials over {examples} examples, expected at least 1 over at least 2")
    base = generator.integers(examples, size=trials)
    source = (base + generator.integers(1, examples, size=trials)) % examples
    return base.astype(np.int32), source.astype(np.int32)


@jax.jit
def recorded_states(view: View, inputs: AnyArray) -> Array:
    """Record the tap of a view on every input: examples lead, also where the tap recurs."""
    states = view.model.apply(view.params, inputs, _others(view), record=(view.tap,))[1][view.tap]
    return states if view.model.taps[view.tap].depth is None else jnp.moveaxis(states, 0, 1)


@partial(jax.jit, static_argnames=("whole",))
def _run(view: View, inputs: Array, states: Array, trials: Trials, whole: bool) -> Outputs:
    recurs = view.model.taps[view.tap].depth is not None
    base, source = states[trials.base], states[trials.source]
    chosen = jnp.zeros((len(base), states.shape[-1]), bool).at[:, view.units].set(trials.masks)
    if whole:
        outside = jnp.ones(states.shape[-1], bool).at[view.units].set(False)
        chosen = chosen | (outside & jnp.all(trials.masks, axis=-1, keepdims=True))
    chosen = positioned_masks(view, inputs, trials, chosen, base.shape)
    if recurs:
        # Later states depend on earlier ones, so kept coordinates come from the run itself and not from the record.
        edit = Interchange(jnp.moveaxis(source, 1, 0), jnp.moveaxis(chosen, 1, 0).astype(source.dtype))
    else:
        edit = Set(jnp.where(chosen, source, base))
    own = view.edits.get(view.tap)
    edits = {**view.edits, view.tap: edit if own is None else InOrder((edit, own))}
    return view.model.apply(view.params, inputs[trials.base], edits)[0]


def positioned_masks(
    view: View, inputs: Array, trials: Trials, masks: Bool[Array, "T K"], shape: tuple[int, ...]
) -> Bool[Array, "T ... K"]:
    """Lay masks over all positions at which neither the base nor the source of a trial is padding.

    Args:
      view: the network and its tap.
      inputs: evaluation inputs.
      trials: which of them.
      masks: of each trial.
      shape: of the states that are interchanged, `[T, ..., K]`.
    """
    masks = masks.reshape(len(masks), *[1] * (len(shape) - 2), -1)
    if isinstance(view.model, Padded):
        there = view.model.present(inputs, view.tap)
        both = there[trials.base] & there[trials.source]
        masks = masks & (both if len(shape) == 2 else both.reshape(len(masks), *[1] * (len(shape) - 3), -1, 1))
    return jnp.broadcast_to(masks, shape)


def _others(view: View) -> Edits:
    """Keep every edit but the tap's own: what is interchanged is the value before it is overwritten."""
    return {name: edit for name, edit in view.edits.items() if name != view.tap}
