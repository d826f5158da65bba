"""What one streaming pass over calibration inputs keeps of a tap: moments and curvature, merged exactly.

    mean, covariance      of the activation, over examples and positions that are not padding
    G_e = -E[g a],  G_k = E[g]
    H_ee = E[a H a],  H_ek = -E[a H 1],  H_kk = E[1 H 1]        per unit, positions summed (spec B.3)
    hessian = E[sum over positions of J^T L L^T J]              D x D, what an affine fold's error is weighed with

Batches merge as sets of numbers do: n = n_a + n_b, C = (n_a C_a + n_b C_b) / n + (n_a n_b / n^2) d d^T with d the
difference of the means (Chan, Golub and LeVeque). Networks run in their own precision; sums are float64. Nothing of
size N x D x D is ever in memory.

Under an intervention law (spec B.8) kept units are interchanged, each with probability p, and replaced ones keep their
base value. With Sig the covariance, averaged over the law's strengths p:

    Cov(a_S, a_K) = E[1 - p] Sig_SK        Cov(a_K) = E[(1-p)^2 + p^2] Sig_KK + E[2 p (1-p)] diag(Sig_KK)
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from abstraction.models import Model
from abstraction.models.base import present
from abstraction.pytrees import leading_axis, pytree
from abstraction.reduction.curvature import pull, replacement_hessian, suffix_at
from abstraction.reduction.discrepancies import KL, Discrepancy
from abstraction.typing import AnyArray, Outputs, Params

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
    """Second moments of a tap under an intervention law (spec B.8); see the module's first lines.

    Attributes:
      mean: `[D]`; interchanges do not move it.
      target: Sig, the covariance of replaced units, `[D, D]`.
      cross: E[1 - p]; the covariance of replaced with kept units is `cross * target`.
      regressor: covariance of kept units, with the ridge on its diagonal, `[D, D]`.
    """

    mean: Float[AnyArray, " D"]
    target: Float[AnyArray, "D D"]
    cross: Float[AnyArray, ""]
    regressor: Float[AnyArray, "D D"]


def collect_statistics(
    model: Model,
    params: Params,
    inputs: AnyArray,
    tap: str,
    *,
    discrepancy: Discrepancy = KL,
    target: AnyArray | None = None,
    labels: AnyArray | None = None,
    curvature: Curvature = "ggn",
    draws: int = 1,
    key: Array | None = None,
    batch_size: int = 512,
) -> Statistics:
    """Run the calibration inputs once and keep moments and curvature of a tap.

    Args:
      model: the network to reduce.
      params: its parameters.
      inputs: calibration inputs, `[N, ...]`.
      tap: where.
      discrepancy: D, whose curvature is taken.
      target: outputs of the dense network `[N, C]`, by default the network's own.
      labels: what a labelled discrepancy reads, `[N]` or `[N, C]`.
      curvature: how the second derivatives are found; `hessian` costs 2 D Hessian-vector products a batch.
      draws: classes drawn per example by `fisher`.
      key: randomness of `fisher`.
      batch_size: examples per run, at most.

    Raises:
      ValueError: labels are missing, an argument is unknown, or activations are not finite.
    """
    if curvature not in get_args(Curvature):
        raise ValueError(f"got curvature {curvature!r}, expected one of {get_args(Curvature)}")
    if discrepancy.labelled and labels is None:
        raise ValueError(f"got no labels, expected labels for the discrepancy {discrepancy.name!r}")
    if curvature == "fisher" and discrepancy.factor is not KL.factor:
        raise ValueError(f"got curvature 'fisher' for {discrepancy.name!r}, expected a softmax: 'kl' or 'ce'")
    if curvature == "fisher" and key is None:
        raise ValueError("got no key, expected one for curvature 'fisher', which draws classes")
    data = {"inputs": inputs, "target": target, "labels": labels if discrepancy.labelled else None}
    total: Statistics | None = None
    for step, batch in enumerate(_batches(data, batch_size)):
        drawn = None if key is None else jax.random.fold_in(key, step)
        local = _local(model, params, tap, discrepancy, curvature == "fisher", draws, drawn, **batch)
        _require_finite(tap, local[0], step)
        with jax.enable_x64(True):
            part = jax.tree.map(np.asarray, _sums(*local))
        if curvature == "hessian":
            part = _with_full_hessian(part, model, params, tap, discrepancy, **batch)
        total = part if total is None else merge_statistics(total, part)
    if total is None:
        raise ValueError("got no calibration inputs, expected at least one")
    return total


def merge_statistics(first: Statistics, second: Statistics) -> Statistics:
    """Join the statistics of two disjoint sets of examples, exactly."""
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


def law_moments(statistics: Statistics, law: Sequence[float] = (0.0,), *, ridge: float = 1e-4) -> LawMoments:
    """Return the moments of a tap under Bernoulli interchanges of its kept units.

    Args:
      statistics: of the tap.
      law: interchange probabilities p, weighed equally; `(0.0,)` is observation.
      ridge: added to the diagonal, relative to the variances, so that rescaling a unit changes nothing.

    Raises:
      ValueError: a probability outside [0, 1], or a negative ridge.
    """
    p = np.asarray(law, np.float64)
    if not len(p) or p.min() < 0 or p.max() > 1 or ridge < 0:
        raise ValueError(f"got law {tuple(law)} and ridge {ridge}, expected probabilities in [0, 1] and ridge >= 0")
    covariance = np.asarray(statistics.covariance, np.float64)
    variance = np.diag(np.diag(covariance))
    both, one = ((1 - p) ** 2 + p**2).mean(), (2 * p * (1 - p)).mean()
    regressor = both * covariance + (one + ridge) * variance
    return LawMoments(np.asarray(statistics.mean, np.float64), covariance, np.asarray((1 - p).mean()), regressor)


@partial(jax.jit, static_argnames=("model", "tap", "discrepancy", "fisher", "draws"))
def _local(
    model: Model,
    params: Params,
    tap: str,
    discrepancy: Discrepancy,
    fisher: bool,
    draws: int,
    key: Any,
    inputs: Array,
    target: Outputs | None,
    labels: Array | None,
) -> tuple[Array, Array, Array, Array]:
    """Return activation and gradient `[N, P, D]`, curvature rows `[R, N, P, D]`, where there is no padding `[N, P]`."""
    suffix = suffix_at(model, params, inputs, tap)
    target = suffix.outputs if target is None else target
    if fisher:
        p = jax.nn.softmax(suffix.outputs)
        drawn = jax.random.categorical(key, suffix.outputs, shape=(draws, len(p)))
        factors = (p - jax.nn.one_hot(drawn, p.shape[-1], dtype=p.dtype)) / jnp.sqrt(draws).astype(p.dtype)
    else:
        factors = jnp.moveaxis(discrepancy.factor(suffix.outputs, target, labels), -1, 0)
    gradient = discrepancy.gradient(suffix.outputs, target, labels)
    pulled = pull(suffix, jnp.concatenate([gradient[None], factors]))
    return suffix.activation, pulled[0], pulled[1:], present(model, inputs, tap, suffix.activation.shape[1])


@jax.jit
def _sums(
    activation: Float[Array, "N P D"],
    gradient: Float[Array, "N P D"],
    rows: Float[Array, "R N P D"],
    there: Bool[Array, "N P"],
) -> Statistics:
    count, _, width = activation.shape
    flat = rows.reshape(-1, width)
    hessian = jnp.matmul(flat.T, flat, precision=jax.lax.Precision.HIGHEST).astype(jnp.float64) / count
    activation, gradient, rows = (values.astype(jnp.float64) for values in (activation, gradient, rows))
    states, counted = activation.reshape(-1, width), there.reshape(-1, 1)
    total = counted.sum(dtype=jnp.float64)
    mean = jnp.where(counted, states, 0).sum(0) / total
    centred = jnp.where(counted, states - mean, 0)
    eps, kappa = -(rows * activation).sum(2), rows.sum(2)
    per_example = lambda values: values.sum((0, 1)) / count
    return Statistics(
        count=jnp.float64(count),
        positions=total / count,
        mean=mean,
        covariance=centred.T @ centred / total,
        gradient_eps=per_example(-gradient * activation),
        gradient_kappa=per_example(gradient),
        eps_eps=per_example(eps**2),
        eps_kappa=per_example(eps * kappa),
        kappa_kappa=per_example(kappa**2),
        hessian=hessian,
        low=jnp.where(counted, states, jnp.inf).min(0),
        high=jnp.where(counted, states, -jnp.inf).max(0),
    )


def _with_full_hessian(
    part: Statistics,
    model: Model,
    params: Params,
    tap: str,
    discrepancy: Discrepancy,
    inputs: Array,
    target: Outputs | None,
    labels: Array | None,
) -> Statistics:
    """Put the units' diagonals of the full Hessian in place of those of the GGN."""
    target = model.apply(params, inputs)[0] if target is None else target
    _, hessian = replacement_hessian(model, params, inputs, tap, discrepancy, target, labels)
    blocks = np.asarray(hessian, np.float64).reshape(2, part.width, 2, part.width)
    eps_eps, eps_kappa, kappa_kappa = (np.diagonal(blocks[i, :, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
    values = {name: getattr(part, name) for name in part.__dataclass_fields__}
    return Statistics(**{**values, "eps_eps": eps_eps, "eps_kappa": eps_kappa, "kappa_kappa": kappa_kappa})


def _batches(data: dict[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """Cut arrays into batches of almost equal size, so that as few shapes as possible are compiled."""
    if batch_size < 1:
        raise ValueError(f"got batch size {batch_size}, expected at least 1")
    rows = leading_axis({name: values for name, values in data.items() if values is not None})
    parts = max(1, -(-rows // batch_size))
    edges = np.linspace(0, rows, parts + 1).round().astype(int)
    for start, stop in pairwise(edges):
        if stop > start:
            yield {name: None if values is None else jnp.asarray(values[start:stop]) for name, values in data.items()}


def _require_finite(tap: str, activation: Array, step: int) -> None:
    finite = np.asarray(jnp.isfinite(activation).all(axis=(1, 2)))
    if not finite.all():
        raise ValueError(
            f"got activations of {tap!r} that are not finite for {(~finite).sum()} of {len(finite)} inputs in batch "
            f"{step}, expected finite numbers; look at the inputs and the parameters"
        )
