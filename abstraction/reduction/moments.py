"""What one streaming pass over calibration inputs keeps of a tap: moments and curvature, merged exactly.

    mean, covariance      of the activation, over examples and positions that are not padding
    G_e = -E[g a],  G_k = E[g]
    H_ee = E[a H a],  H_ek = -E[a H 1],  H_kk = E[1 H 1]        per unit, positions summed
    hessian = E[sum over positions of J^T L L^T J]              D x D, what an affine fold's error is weighed with

Batches merge as sets of numbers do: n = n_a + n_b, C = (n_a C_a + n_b C_b) / n + (n_a n_b / n^2) d d^T with d the
difference of the means (Chan, Golub and LeVeque). Networks run in their own precision; sums are float64. Nothing of
size N x D x D is ever in memory, nor of classes by classes (`streaming`).

Under an intervention law kept units are interchanged, each with probability p, and replaced ones keep their
base value. With Sig the covariance, averaged over the law's strengths p:

    Cov(a_S, a_K) = E[1 - p] Sig_SK        Cov(a_K) = E[(1-p)^2 + p^2] Sig_KK + E[2 p (1-p)] diag(Sig_KK)

Where a reader starts from zero, a recurrent state, no constant passes it, so folds go through the origin: what counts
are second moments about zero. Interchanges do not move means, so each of the above gains mu mu^T, and means are 0.
"""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import finite, number, one_of
from abstraction.models import Network
from abstraction.pytrees import pytree
from abstraction.reduction.calibration import Calibration, batches, calibration_of, check_calibration
from abstraction.reduction.curvature import replacement_hessian
from abstraction.reduction.discrepancies import KL, Discrepancy
from abstraction.reduction.streaming import Curved, Local, local_curvature
from abstraction.sharding import mesh_of, on_host
from abstraction.typing import AnyArray

Curvature = Literal["ggn", "fisher", "hessian"]
"""Generalised Gauss-Newton, its Monte-Carlo estimate (for many classes), or the full Hessian of the units."""


@pytree
class Statistics:
    """Moments and curvature of one tap; see the module's first lines.

    Attributes:
      count: examples N, not positions.
      positions: positions per example, padding left out; where prompts differ in length, on average.
      mean: `[D]`.
      covariance: `[D, D]`, over examples and positions, divided by their number.
      gradient_eps: G_e, `[D]`.
      gradient_kappa: G_k, `[D]`.
      eps_eps: diagonal of H_ee, `[D]`.
      eps_kappa: diagonal of H_ek, `[D]`.
      kappa_kappa: diagonal of H_kk, `[D]`.
      hessian: `[D, D]`.
      low: smallest activation of each unit, `[D]`.
      high: largest, `[D]`.
    """

    count: Float[AnyArray, ""]
    positions: Float[AnyArray, ""]
    mean: Float[AnyArray, " D"]
    covariance: Float[AnyArray, "D D"]
    gradient_eps: Float[AnyArray, " D"]
    gradient_kappa: Float[AnyArray, " D"]
    eps_eps: Float[AnyArray, " D"]
    eps_kappa: Float[AnyArray, " D"]
    kappa_kappa: Float[AnyArray, " D"]
    hessian: Float[AnyArray, "D D"]
    low: Float[AnyArray, " D"]
    high: Float[AnyArray, " D"]

    @property
    def width(self) -> int:
        """Units D."""
        return len(self.mean)

    @property
    def variance(self) -> Float[AnyArray, " D"]:
        """Variance of each unit."""
        return np.diagonal(self.covariance)


@pytree
class LawMoments:
    """Second moments of a tap under an intervention law; see the module's first lines.

    Attributes:
      mean: `[D]`; interchanges do not move it. 0 where folds go through the origin; the others are then about 0 too.
      target: Sig, the covariance of replaced units, `[D, D]`.
      cross: E[1 - p] Sig, the covariance of replaced with kept units, `[D, D]`.
      regressor: covariance of kept units, with the ridge on its diagonal, `[D, D]`.
    """

    mean: Float[AnyArray, " D"]
    target: Float[AnyArray, "D D"]
    cross: Float[AnyArray, "D D"]
    regressor: Float[AnyArray, "D D"]


def collect_statistics(
    network: Network,
    inputs: Any,
    tap: str,
    *,
    discrepancy: Discrepancy = KL,
    curvature: Curvature = "ggn",
    key: Array | None = None,
    batch_size: int = 512,
) -> Statistics:
    """Run the calibration inputs once and keep moments and curvature of a tap.

    Args:
      network: the network to reduce.
      inputs: calibration inputs `[N, ...]`, or a `Calibration` with labels and targets.
      tap: where.
      discrepancy: D, whose curvature is taken.
      curvature: how the second derivatives are found; `hessian` costs 2 D Hessian-vector products a batch.
      key: randomness of `fisher`, which draws one class per example.
      batch_size: examples per run, at most.

    Raises:
      ValueError: what `check_calibration` refuses; the tap or a word is unknown; labels or a key are missing; or
        activations or curvature are not finite.
    """
    calibration = calibration_of(inputs)
    one_of("tap", tap, sorted(network.taps))
    one_of("curvature", curvature, get_args(Curvature))
    check_calibration(network, calibration, discrepancy)
    if curvature == "fisher" and discrepancy.bending is not KL.bending:
        raise ValueError(f"got curvature 'fisher' for {discrepancy.name!r}, expected a softmax: 'kl' or 'ce'")
    if curvature == "fisher" and key is None:
        raise ValueError("got no key, expected one for curvature 'fisher', which draws classes")
    calibration = calibration if discrepancy.labelled else calibration._replace(labels=None)
    parts = []
    for step, batch in enumerate(batches(calibration, batch_size, mesh_of(network.params))):
        drawn = jax.random.fold_in(key, step) if key is not None and curvature == "fisher" else None
        local, curved = local_curvature(network, batch, tap, discrepancy, drawn)
        _require_finite(tap, local.activation, step)
        with jax.enable_x64(True):
            part = on_host(_statistics(local, curved))
        parts.append(_with_full_hessian(part, network, batch, tap, discrepancy) if curvature == "hessian" else part)
    total = reduce(merge_statistics, parts)
    check_statistics(total)
    return total


def check_statistics(statistics: Statistics) -> None:
    """Refuse statistics that are not finite, or not all of one tap.

    Raises:
      ValueError: naming the moment.
    """
    for name in statistics.__dataclass_fields__:
        values = finite(f"{name} of the tap", getattr(statistics, name))
        if values.ndim and set(values.shape) != {statistics.width}:
            raise ValueError(f"got {name} of shape {values.shape}, expected units of one tap, {statistics.width}")


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """Join the statistics of two disjoint sets of examples, exactly.

    Raises:
      ValueError: they are of taps of different widths.
    """
    if first.width != second.width:
        raise ValueError(f"got statistics of {first.width} and of {second.width} units, expected those of one tap")
    count = np.asarray(first.count + second.count)
    weight = second.count / count
    average = lambda weight: lambda a, b: np.asarray((1 - weight) * a + weight * b)
    joined = jax.tree.map(average(weight), first, second)
    # States are counted position by position, and prompts may differ in length.
    share = weight * second.positions / joined.positions
    difference = second.mean - first.mean
    spread = share * (1 - share) * np.outer(difference, difference)
    return Statistics(
        **{name: getattr(joined, name) for name in _AVERAGED},
        count=count,
        mean=average(share)(first.mean, second.mean),
        covariance=average(share)(first.covariance, second.covariance) + spread,
        low=np.minimum(first.low, second.low),
        high=np.maximum(first.high, second.high),
    )


_AVERAGED = (
    "positions", "gradient_eps", "gradient_kappa", "eps_eps", "eps_kappa", "kappa_kappa", "hessian",
)  # fmt: skip


def about_origin(statistics: Statistics) -> Statistics:
    """Take second moments about zero in place of the covariance, for folds through the origin; the mean becomes 0."""
    mean = np.asarray(statistics.mean, np.float64)
    second = np.asarray(statistics.covariance, np.float64) + np.outer(mean, mean)
    return dataclasses.replace(statistics, mean=np.zeros_like(mean), covariance=second)


def law_moments(
    statistics: Statistics, law: Sequence[float] = (0.0,), *, ridge: float = 1e-4, origin: bool = False
) -> LawMoments:
    """Return the moments of a tap under Bernoulli interchanges of its kept units.

    Args:
      statistics: of the tap.
      law: interchange probabilities p, weighed equally; `(0.0,)` is observation.
      origin: take them about zero, for folds through the origin.

    Raises:
      ValueError: a probability outside [0, 1], a ridge that is no number from 0, or statistics that are not finite.
    """
    check_law(law)
    number("ridge", ridge)
    check_statistics(statistics)
    p = np.asarray(law, np.float64)
    covariance, mean = np.asarray(statistics.covariance, np.float64), np.asarray(statistics.mean, np.float64)
    variance = np.diag(np.diag(covariance))
    both, one, stays = ((1 - p) ** 2 + p**2).mean(), (2 * p * (1 - p)).mean(), (1 - p).mean()
    if not origin:
        return LawMoments(mean, covariance, stays * covariance, both * covariance + (one + ridge) * variance)
    moved = np.outer(mean, mean)
    second = covariance + moved
    # Two units of one kept state come from one input, or each from its own: then only their means are shared.
    regressor = second + one * (variance - covariance) + ridge * np.diag(np.diag(second))
    cross = second if stays == 1 else stays * covariance + moved
    return LawMoments(np.zeros_like(mean), second, cross, regressor)


def check_law(law: Sequence[float]) -> None:
    """Refuse a law that is not one or more probabilities.

    Raises:
      ValueError: that.
    """
    if isinstance(law, str) or np.ndim(law) != 1 or not len(law):
        raise ValueError(f"got law {law!r}, expected one or more probabilities in [0, 1]")
    for probability in law:
        number("probability of a law", probability, 0.0, 1.0)


@jax.jit
def _statistics(local: Local, curved: Curved) -> Statistics:
    count, _, width = local.activation.shape
    activation, gradient = (values.astype(jnp.float64) for values in (local.activation, local.gradient))
    states, counted = activation.reshape(-1, width), local.there.reshape(-1, 1)
    total = counted.sum(dtype=jnp.float64)
    mean = jnp.where(counted, states, 0).sum(0) / total
    centred = jnp.where(counted, states - mean, 0)
    per_example = lambda values: values.sum((0, 1)) / count
    return Statistics(
        count=jnp.float64(count),
        positions=total / count,
        mean=mean,
        covariance=centred.T @ centred / total,
        gradient_eps=per_example(-gradient * activation),
        gradient_kappa=per_example(gradient),
        eps_eps=curved.eps_eps / count,
        eps_kappa=curved.eps_kappa / count,
        kappa_kappa=curved.kappa_kappa / count,
        hessian=curved.hessian / count,
        low=jnp.where(counted, states, jnp.inf).min(0),
        high=jnp.where(counted, states, -jnp.inf).max(0),
    )


def _with_full_hessian(
    part: Statistics, network: Network, batch: Calibration, tap: str, discrepancy: Discrepancy
) -> Statistics:
    """Put the units' diagonals of the full Hessian in place of those of the GGN."""
    hessian = on_host(replacement_hessian(network, batch, tap, discrepancy)[1])
    blocks = np.asarray(hessian, np.float64).reshape(2, part.width, 2, part.width)
    eps_eps, eps_kappa, kappa_kappa = (np.diagonal(blocks[i, :, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    return dataclasses.replace(part, eps_eps=eps_eps, eps_kappa=eps_kappa, kappa_kappa=kappa_kappa)


def _require_finite(tap: str, activation: Array, step: int) -> None:
    finite = on_host(jnp.isfinite(activation).all(axis=(1, 2)))
    if not finite.all():
        raise ValueError(
            f"got activations of {tap!r} that are not finite for {(~finite).sum()} of {len(finite)} inputs in batch "
            f"{step}, expected finite numbers; look at the inputs and the parameters"
        )
