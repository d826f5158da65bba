"""Interventional risk: the expected discrepancy of dense and reduced network under the same intervention.

    R(S, phi) = E_{x, I} D( M_I(x), M^red_I(x) )
    Q(phi)    = E[ g^T delta + |L^T J delta|^2 / 2 ],     delta = phi(a_K) - a_S

R is estimated by running both networks under a law of interventions; Q is its second-order model at the tap, one
Jacobian-vector product for any fold, exact where the suffix is linear and D quadratic.

Source: CMR, arXiv 2602.24266 (interventional risk, second-order expansion).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.evaluation.interchange import Trials, View, interchanged_outputs
from abstraction.interventions.edits import Substitute
from abstraction.models import Model
from abstraction.reduction.curvature import suffix_at
from abstraction.reduction.discrepancies import KL, Discrepancy
from abstraction.reduction.folding import Fold
from abstraction.typing import AnyArray, Outputs, Params


class Risk(NamedTuple):
    """A Monte-Carlo estimate.

    Attributes:
      mean: of the discrepancy.
      error: its standard error.
    """

    mean: float
    error: float


def interventional_risk(
    dense: View,
    reduced: View,
    inputs: AnyArray,
    trials: Trials,
    *,
    discrepancy: Discrepancy = KL,
    labels: AnyArray | None = None,
) -> Risk:
    """Estimate the true risk under any law of interventions, the one the trials were drawn from.

    Args:
      dense: the original network and the units that are kept.
      reduced: the reduced one and the same units in its own numbering.
      inputs: evaluation inputs, `[M, ...]`.
      trials: interchanges.
      discrepancy: D.
      labels: of the inputs, for a labelled discrepancy.
    """
    target, outputs = (interchanged_outputs(each, inputs, trials) for each in (dense, reduced))
    at_base = None if labels is None else jnp.asarray(labels)[np.asarray(trials.base)]
    values = np.asarray(discrepancy.compare(outputs, target, at_base), np.float64)
    return Risk(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf)


def second_order_risk(
    model: Model,
    params: Params,
    inputs: AnyArray,
    fold: Fold,
    *,
    discrepancy: Discrepancy = KL,
    target: Outputs | None = None,
    labels: AnyArray | None = None,
    batch_size: int = 512,
) -> float:
    """Return Q of a fold, observed: curvature and error of the same example, so no independence is assumed.

    Args:
      model: the network that is reduced.
      params: its weights.
      inputs: `[N, ...]`.
      fold: what replaces which units.
      discrepancy: D; its curvature is the generalised Gauss-Newton one.
      target: dense outputs, by default the network's own.
      labels: for a labelled discrepancy.
      batch_size: examples per run.
    """
    total, count = 0.0, len(inputs)
    edit = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)
    for start in range(0, count, batch_size):
        rows = slice(start, start + batch_size)
        part = [None if values is None else jnp.asarray(values[rows]) for values in (target, labels)]
        total += float(_quadratic(model, params, inputs[rows], fold.tap, edit, discrepancy, *part).sum())
    return total / count


@partial(jax.jit, static_argnames=("model", "tap", "discrepancy", "chunk"))
def replacement_effects(
    model: Model,
    params: Params,
    inputs: AnyArray,
    tap: str,
    constants: Float[AnyArray, " D"],
    *,
    discrepancy: Discrepancy = KL,
    labels: Array | None = None,
    chunk: int = 8,
) -> Float[Array, " D"]:
    """Measure what scores predict: the mean discrepancy when one unit at a time is replaced by its constant.

    Args:
      model: the network.
      params: its weights.
      inputs: `[N, ...]`.
      tap: where; at a tap that recurs units are replaced in the recorded states.
      constants: one per unit.
      discrepancy: D.
      labels: for a labelled discrepancy.
      chunk: units at a time.
    """
    suffix = suffix_at(model, params, inputs, tap)

    def effect(unit: tuple[Array, Array]) -> Array:
        index, constant = unit
        chosen = jnp.arange(suffix.activation.shape[-1]) == index
        offset = jnp.where(chosen, constant.astype(suffix.activation.dtype) - suffix.activation, 0.0)
        return discrepancy.compare(suffix.run(offset), suffix.outputs, labels).mean()

    units = (jnp.arange(len(constants)), jnp.asarray(constants))
    return jax.lax.map(effect, units, batch_size=min(chunk, len(constants)))


@partial(jax.jit, static_argnames=("model", "tap", "discrepancy"))
def _quadratic(
    model: Model,
    params: Params,
    inputs: AnyArray,
    tap: str,
    edit: Substitute,
    discrepancy: Discrepancy,
    target: Outputs | None,
    labels: Array | None,
) -> Float[Array, " N"]:
    suffix = suffix_at(model, params, inputs, tap)
    target = suffix.outputs if target is None else target
    delta = edit(suffix.activation).astype(suffix.activation.dtype) - suffix.activation
    _, moved = jax.jvp(suffix.run, (jnp.zeros_like(delta),), (delta,))
    slope = (discrepancy.gradient(suffix.outputs, target, labels) * moved).sum(-1)
    bent = jnp.einsum("ncr,nc->nr", discrepancy.factor(suffix.outputs, target, labels), moved)
    return slope + (bent**2).sum(-1) / 2
