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
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import finite, indices, number, one_of, whole
from abstraction.interventions import InOrder, Interchange, Set
from abstraction.models import Network
from abstraction.models.base import Padded
from abstraction.models.network import check_network
from abstraction.models.taps import NO_EDITS, Edits, check_taps
from abstraction.planning import Program
from abstraction.pytrees import leading_axis, pytree, static
from abstraction.sharding import mesh_of, over, over_rows, shared_rows
from abstraction.typing import AnyArray, Outputs

Replaced = Literal["base", "source"]


@pytree
class View:
    """A network seen from one tap.

    Attributes:
      network: what is run.
      tap: where units are interchanged.
      units: which of the tap's units the K positions of a mask stand for, `[K]`.
      edits: what runs it as a reduced network without compiling it; for a dense or a compiled one nothing.
    """

    network: Network
    tap: str = static()
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


def view(network: Network, tap: str, units: Int[AnyArray, " K"], edits: Edits = NO_EDITS) -> View:
    """See a network from one tap.

    Raises:
      ValueError: weights that are not the model's or not finite, an unknown tap, units that are not there or repeat, or
        edits of unknown taps or without their depth axis.
    """
    check_network(network)
    one_of("tap", tap, sorted(network.taps))
    units = indices(f"units at {tap!r}", units, network.taps[tap].width)
    if not len(units):
        raise ValueError(f"got no units at {tap!r}, expected at least one of 0 to {network.taps[tap].width - 1}")
    check_taps(network.taps, edits, ())
    return View(network, tap, units, edits)


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
      ValueError: fewer than two examples, no unit or trial, or p outside [0, 1].
    """
    number("probability", probability, 0.0, 1.0)
    whole("units", units)
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
      ValueError: fewer than two examples, no group or trial, or a group that is empty, or whose positions are no whole
        numbers from 0, or repeat.
    """
    if not len(groups) or not all(len(group) for group in groups):
        raise ValueError(f"got groups {[list(group) for group in groups[:8]]}, expected one or more, none empty")
    for group in groups:
        indices("a group", group, np.iinfo(np.int32).max)
    base, source = _pairs(generator, examples, trials)
    width = 1 + max(max(group) for group in groups)
    table = np.zeros((len(groups), width), bool)
    for index, group in enumerate(groups):
        table[index, list(group)] = True
    return Trials(base, source, table[generator.integers(len(groups), size=trials)])


def interchanged_outputs(
    view: View,
    inputs: Any,
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
      ValueError: masks of another number of units than the view's, trials of inputs that are not there, inputs that are
        not finite, states that are not those of the inputs, an unknown word, or a batch size below 1.
    """
    one_of("replaced", replaced, get_args(Replaced))
    whole("batch size", batch_size)
    rows = leading_axis(inputs)
    for leaf in jax.tree.leaves(inputs):
        finite("evaluation inputs", leaf)
    count = _check_trials(trials, rows, len(view.units))
    states = recorded_states(view, inputs) if states is None else states
    if states.shape[0] != rows or states.shape[-1] != view.network.taps[view.tap].width:
        raise ValueError(
            f"got states of shape {states.shape}, expected those of {rows} inputs and "
            f"{view.network.taps[view.tap].width} units"
        )
    mesh = mesh_of(view.network.params)
    inputs, states, parts = *over(mesh, None, (jax.tree.map(jnp.asarray, inputs), states)), []
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        # Trials that devices cannot share equally: the last is repeated, and cut in the end.
        rows = np.minimum(np.arange(start, start + shared_rows(mesh, stop - start)), count - 1)
        part = jax.tree.map(lambda values, rows=rows: np.asarray(values)[rows], trials)
        parts.append(trial_program(view, inputs, states, part, replaced)()[: stop - start])
    return over(mesh, None, jnp.concatenate(parts))


def trial_program(view: View, inputs: Any, states: Any, trials: Trials, replaced: Replaced = "base") -> Program:
    """Make the program of `interchanged_outputs` for trials that all go at once."""
    given = view, inputs, states, over_rows(mesh_of(view.network.params), trials)
    return Program(_run, given, {"whole": replaced == "source"})


def _check_trials(trials: Trials, examples: int, units: int) -> int:
    """Return the number of trials T, after a look at what they name."""
    masks = np.asarray(trials.masks)
    if masks.ndim != 2 or masks.shape[1] != units:
        raise ValueError(f"got masks over {masks.shape[-1]} units, expected {units}, the units of the view")
    if masks.dtype != bool or not len(masks):
        raise ValueError(f"got {len(masks)} masks of type {masks.dtype}, expected one or more, of bool")
    for name, rows in (("base", np.asarray(trials.base)), ("source", np.asarray(trials.source))):
        if rows.shape != masks.shape[:1] or rows.dtype.kind not in "iu":
            raise ValueError(f"got {name} rows of shape {rows.shape}, expected integers, {masks.shape[:1]}")
        if rows.min() < 0 or rows.max() >= examples:
            raise ValueError(
                f"got {name} rows from {rows.min()} to {rows.max()}, expected 0 to {examples - 1}, the inputs there are"
            )
    return len(masks)


def bounded_losses(
    dense: Float[AnyArray, "T C"], reduced: Float[AnyArray, "T C"]
) -> dict[str, Float[np.ndarray, " T"]]:
    """Return per trial how far two networks are apart, in [0, 1].

    zero_one    another class          clipped_kl  min(1, KL(p_dense || p_reduced))
    clipped_l2  min(1, ||p_dense - p_reduced||)

    Where an output of either network is not finite, all of them are 1: nothing is known to agree.

    Raises:
      ValueError: outputs that are not `[T, C]`, or of different shapes.
    """
    dense, reduced = (np.asarray(logits, np.float32) for logits in (dense, reduced))
    if dense.shape != reduced.shape or dense.ndim != 2 or not dense.size:
        raise ValueError(f"got outputs of shapes {dense.shape} and {reduced.shape}, expected [T, C] of both networks")
    known = np.asarray(np.isfinite(np.concatenate([dense, reduced], axis=-1)).all(axis=-1))
    dense, reduced = (np.where(known[:, None], logits, 0) for logits in (dense, reduced))
    log_p, log_q = (np.asarray(jax.nn.log_softmax(logits)) for logits in (dense, reduced))
    p, q = np.exp(log_p), np.exp(log_q)
    losses = {
        "zero_one": (dense.argmax(-1) != reduced.argmax(-1)).astype(np.float64),
        "clipped_kl": np.clip((p * (log_p - log_q)).sum(-1), 0.0, 1.0).astype(np.float64),
        "clipped_l2": np.minimum(np.linalg.norm(p - q, axis=-1), 1.0).astype(np.float64),
    }
    return {name: np.where(known, loss, 1.0) for name, loss in losses.items()}


def _pairs(generator: np.random.Generator, examples: int, trials: int) -> tuple[np.ndarray, np.ndarray]:
    whole("trials", trials)
    whole("examples", examples, 2)
    base = generator.integers(examples, size=trials)
    source = (base + generator.integers(1, examples, size=trials)) % examples
    return base.astype(np.int32), source.astype(np.int32)


def recorded_states(view: View, inputs: Any) -> Array:
    """Record the tap of a view on every input: `[M, ..., D]`, or `[M, L, D]` where the tap recurs."""
    mesh = mesh_of(view.network.params)
    return _recorded(view, over_rows(mesh, inputs), mesh)


@partial(jax.jit, static_argnames=("mesh",))
def _recorded(view: View, inputs: Any, mesh: Mesh | None) -> Array:
    states = view.network(inputs, _others(view), record=(view.tap,))[1][view.tap]
    return over(mesh, None, jnp.moveaxis(states, 0, 1) if _recurs(view) else states[0])


@partial(jax.jit, static_argnames=("whole",))
def _run(view: View, inputs: Any, states: Array, trials: Trials, whole: bool) -> Outputs:
    base, source = states[trials.base], states[trials.source]
    chosen = jnp.zeros((len(base), states.shape[-1]), bool).at[:, view.units].set(trials.masks)
    if whole:
        outside = jnp.ones(states.shape[-1], bool).at[view.units].set(False)
        chosen = chosen | (outside & jnp.all(trials.masks, axis=-1, keepdims=True))
    chosen = positioned_masks(view, inputs, trials, chosen, base.shape)
    if _recurs(view):
        # Later states depend on earlier ones, so kept coordinates come from the run itself and not from the record.
        edit = Interchange(jnp.moveaxis(source, 1, 0), jnp.moveaxis(chosen, 1, 0).astype(source.dtype))
    else:
        edit = Set(jnp.where(chosen, source, base)[None])
    own = view.edits.get(view.tap)
    edits = {**view.edits, view.tap: edit if own is None else InOrder((edit, own))}
    return view.network(jax.tree.map(lambda values: values[trials.base], inputs), edits)[0]


def _recurs(view: View) -> bool:
    return view.network.taps[view.tap].depth > 1


def positioned_masks(
    view: View, inputs: Any, trials: Trials, masks: Bool[Array, "T K"], shape: tuple[int, ...]
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
    if isinstance(view.network.model, Padded):
        there = view.network.model.present(inputs, view.tap)
        both = there[trials.base] & there[trials.source]
        masks = masks & (both if len(shape) == 2 else both.reshape(len(masks), *[1] * (len(shape) - 3), -1, 1))
    return jnp.broadcast_to(masks, shape)


def _others(view: View) -> Edits:
    """Keep every edit but the tap's own: what is interchanged is the value before it is overwritten."""
    return {name: edit for name, edit in view.edits.items() if name != view.tap}
