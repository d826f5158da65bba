"""Interventional risk: the expected discrepancy of dense and reduced network under the same intervention.

    R(S, phi) = E_{x, I} D( M_I(x), M^red_I(x) )
    Q(phi)    = E[ g^T delta + |L^T J delta|^2 / 2 ],     delta = phi(a_K) - a_S

R is estimated by running both networks under a law of interventions; Q is its second-order model at the tap, one
Jacobian-vector product for any fold, exact where the suffix is linear and D quadratic.

Source: CMR, arXiv 2602.24266 (interventional risk, second-order expansion).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import finite, one_of, whole
from abstraction.evaluation.interchange import Trials, View, interchanged_outputs
from abstraction.interventions.edits import Substitute
from abstraction.models import Network
from abstraction.reduction.calibration import (
    Calibration,
    batches,
    calibration_of,
    check_calibration,
    shared_calibration,
)
from abstraction.reduction.curvature import bend_at, gradient_at, suffix_at
from abstraction.reduction.discrepancies import KL, Discrepancy
from abstraction.reduction.folding import Fold, check_fold
from abstraction.sharding import mesh_of, over
from abstraction.typing import AnyArray


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

    Raises:
      ValueError: what `interchanged_outputs` refuses, labels that are missing, or outputs that are not finite.
    """
    if discrepancy.labelled and labels is None:
        raise ValueError(f"got no labels, expected labels for the discrepancy {discrepancy.name!r}")
    target, outputs = (interchanged_outputs(each, inputs, trials) for each in (dense, reduced))
    finite("outputs of the dense network", target)
    finite("outputs of the reduced network", outputs)
    at_base = None if labels is None else jnp.asarray(labels)[np.asarray(trials.base)]
    values = np.asarray(discrepancy.compare(outputs, target, at_base), np.float64)
    return Risk(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf)


def second_order_risk(
    network: Network, inputs: Any, fold: Fold, *, discrepancy: Discrepancy = KL, batch_size: int = 512
) -> float:
    """Return Q of a fold, observed: curvature and error of the same example, so no independence is assumed.

    Args:
      network: what is reduced.
      inputs: `[N, ...]`, or a `Calibration` with labels and dense outputs, by default the network's own.
      fold: what replaces which units.
      discrepancy: D; its curvature is the generalised Gauss-Newton one.
      batch_size: examples per run.

    Raises:
      ValueError: what `check_calibration` refuses, or a fold that does not fit its tap.
    """
    calibration = calibration_of(inputs)
    check_fold(network, fold)
    check_calibration(network, calibration, discrepancy)
    whole("batch size", batch_size)
    total = 0.0
    edit = Substitute(fold.kept, fold.replaced, fold.intercept, fold.coefficients)
    for batch in batches(calibration, batch_size, mesh_of(network.params)):
        total += float(_quadratic(network, batch, fold.tap, edit, discrepancy).sum())
    return total / calibration.rows


def replacement_effects(
    network: Network,
    inputs: Any,
    tap: str,
    constants: Float[AnyArray, " D"],
    *,
    discrepancy: Discrepancy = KL,
    chunk: int = 8,
) -> Float[Array, " D"]:
    """Measure what scores predict: the mean discrepancy when one unit at a time is replaced by its constant.

    Args:
      network: what is reduced.
      inputs: `[N, ...]`, or a `Calibration` with labels.
      tap: where; at a tap that recurs units are replaced in the recorded states.
      constants: one per unit.
      discrepancy: D.
      chunk: units at a time.

    Raises:
      ValueError: what `check_calibration` refuses, an unknown tap, or not one finite constant per unit.
    """
    calibration = calibration_of(inputs)._replace(target=None)
    one_of("tap", tap, sorted(network.taps))
    check_calibration(network, calibration, discrepancy)
    whole("chunk", chunk)
    if finite("constants", constants).shape != (network.taps[tap].width,):
        raise ValueError(f"got constants of shape {np.shape(constants)}, expected one of each unit of {tap!r}")
    constants = over(mesh_of(network.params), None, jnp.asarray(constants))
    return _effects(network, shared_calibration(network, calibration), tap, constants, discrepancy, chunk)


@partial(jax.jit, static_argnames=("tap", "discrepancy", "chunk"))
def _effects(
    network: Network, calibration: Calibration, tap: str, constants: Array, discrepancy: Discrepancy, chunk: int
) -> Float[Array, " D"]:
    suffix = suffix_at(network, calibration.inputs, tap)
    labels = None if calibration.labels is None else jnp.asarray(calibration.labels)

    def effect(unit: tuple[Array, Array]) -> Array:
        index, constant = unit
        chosen = jnp.arange(suffix.activation.shape[-1]) == index
        offset = jnp.where(chosen, constant.astype(suffix.activation.dtype) - suffix.activation, 0.0)
        return discrepancy.compare(suffix.run(offset), suffix.outputs, labels).mean()

    units = (jnp.arange(len(constants)), constants)
    return jax.lax.map(effect, units, batch_size=min(chunk, len(constants)))


@partial(jax.jit, static_argnames=("tap", "discrepancy"))
def _quadratic(
    network: Network, batch: Calibration, tap: str, edit: Substitute, discrepancy: Discrepancy
) -> Float[Array, " N"]:
    suffix = suffix_at(network, batch.inputs, tap)
    delta = edit(suffix.activation).astype(suffix.activation.dtype) - suffix.activation
    _, moved = jax.jvp(suffix.run, (jnp.zeros_like(delta),), (delta,))
    slope = (gradient_at(suffix, batch, discrepancy) * moved).sum(-1)
    return slope + (moved * bend_at(suffix, batch, discrepancy).product(moved)).sum(-1) / 2
