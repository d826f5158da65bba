"""Exact greedy elimination: which unit costs least to fold into those that stay, one after another.

Replaced units S keep their base value u, kept units K carry v (interchanged under a law, or v = u), and an affine fold
predicts what S sent to the next layer from v_K. Weighed with the curvature H = V^T V at the tap, the error left is

    D(K) = tr(V_S Sig_SS V_S^T) - tr(A Om_KK^-1 A^T),     A = V_S C_SK,   C = E[1-p] Sig,   Om = Cov(v)

At every step each unit's increase of D is known in closed form. With P = Om^-1 over the live units, U = P C, Q = C P C:

    D(K \\ j) - D(K) = 2 V_j . (V_S Sig_Sj) + |V_j|^2 Sig_jj                     what S now also loses
                      + |(A P)_j|^2 / P_jj                                       what j explained of it
                      - 2 V_j . (A P' C)_j - |V_j|^2 (Q_jj - U_jj^2 / P_jj)      what the others explain of j

and all matrices change by rank one. Observed without intervention (v = u) this is the optimal brain surgeon's
|V_j|^2 / P_jj on folded weights (spec B.6); the general form is ours. Increases sum exactly to D of the final set, so
one run gives the order and the risk of every budget.

All of it is one pivoted, partial Cholesky factorisation of [[P, U], [U^T, Q]]. The matrix is never updated: only its
diagonal is kept, and two rows are rebuilt from the factors so far when their unit goes. float64.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import linalg

from abstraction.checks import finite, whole
from abstraction.reduction.moments import LawMoments
from abstraction.typing import AnyArray


class Path(NamedTuple):
    """The order in which units go, and what each step adds to the risk.

    Attributes:
      order: units in the order of removal, `[T]`.
      increases: what each removal adds to D, `[T]`; half of it is nats for kl, squared logits for logit distortion.
      width: units before the first removal.
    """

    order: Int[np.ndarray, " T"]
    increases: Float[np.ndarray, " T"]
    width: int

    def kept(self, keep: int) -> Int[np.ndarray, " K"]:
        """Return the units that stay when `keep` of them do, sorted.

        Raises:
          ValueError: the path does not go that far.
        """
        self._check(keep)
        return np.setdiff1d(np.arange(self.width), self.order[: self.width - keep])

    def risk(self, keep: int) -> float:
        """Return D of that set, twice the second-order risk."""
        self._check(keep)
        return float(self.increases[: self.width - keep].sum())

    def _check(self, keep: int) -> None:
        least = self.width - len(self.order)
        whole("keep", keep, max(least, 1), self.width)


def eliminate(hessian: Float[AnyArray, "D D"], moments: LawMoments, *, keep: int) -> Path:
    """Remove units one by one until `keep` are left, each time the one that adds least to D.

    Units of variance 0 cost nothing and go first; ties go to the lower index.

    Args:
      hessian: curvature at the tap, or any positive semidefinite metric, `[D, D]`; D is in units of its quadratic form.
      moments: of the tap, under the law folds are fitted for.
      keep: units to keep at least.

    Raises:
      ValueError: `keep` is not in [1, D], or the metric is not finite.
    """
    width = check_moments(moments)
    whole("keep", keep, 1, width)
    metric = metric_root(hessian)
    if metric.shape[1] != width:
        raise ValueError(f"got a curvature of {metric.shape[1]} units, expected {width}, those of the moments")
    if keep == width:
        return Path(np.zeros(0, int), np.zeros(0), width)
    dead = constant_units(moments)
    regressor = np.where(dead[:, None] | dead[None, :], 0.0, moments.regressor) + np.diag(dead.astype(float))
    target = np.where(dead[:, None] | dead[None, :], 0.0, moments.target)
    cross = np.where(dead[:, None] | dead[None, :], 0.0, moments.cross)
    factor = cholesky(regressor)
    inverse = linalg.cho_solve(factor, np.eye(width))
    explained = linalg.cho_solve(factor, cross)
    joint = np.block([[inverse, explained], [explained.T, cross @ explained]])
    with jax.enable_x64(True):
        order, increases = _eliminate(metric, target, joint, width - keep)
        return Path(np.asarray(order), np.asarray(increases), width)


def metric_root(hessian: Float[AnyArray, "D D"], *, tolerance: float = 1e-6) -> Float[np.ndarray, "R D"]:
    """Return V with V^T V = H, as few rows as H has eigenvalues above `tolerance` times the largest.

    Raises:
      ValueError: H is not finite.
    """
    hessian = finite("a curvature", hessian).astype(np.float64)
    if hessian.ndim != 2 or len(set(hessian.shape)) != 1:
        raise ValueError(f"got a curvature of shape {hessian.shape}, expected units by units")
    scale = np.sqrt(np.maximum(np.diagonal(hessian), 0.0))
    unit = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(hessian / np.outer(unit, unit))
    used = values > max(values.max(initial=0.0), 0.0) * tolerance
    if not used.any():
        return np.zeros((1, len(hessian)))
    return (vectors[:, used] * np.sqrt(values[used])).T * unit


def eliminate_constants(metric: Float[AnyArray, "D D"], covariance: Float[AnyArray, "D D"], *, keep: int) -> Path:
    """Remove units one by one, each replaced by its mean: D(S) = tr(V_S Sig_SS V_S^T), increases G_jj + 2 sum_S G_ij.

    Args:
      metric: H at the tap, `[D, D]`.
      covariance: Sig, `[D, D]`.
      keep: units to keep.

    Raises:
      ValueError: `keep` is not in [1, D], or curvature or covariance are not finite or do not fit each other.
    """
    metric, covariance = finite("a curvature", metric), finite("a covariance", covariance)
    if metric.shape != covariance.shape or metric.ndim != 2 or len(set(metric.shape)) != 1:
        raise ValueError(
            f"got curvature and covariance of shapes {metric.shape} and {covariance.shape}, expected units by units"
        )
    gram = metric.astype(np.float64) * covariance.astype(np.float64)
    width = len(gram)
    whole("keep", keep, 1, width)
    with jax.enable_x64(True):
        order, increases = _eliminate_constants(gram, width - keep)
        return Path(np.asarray(order), np.asarray(increases), width)


def check_moments(moments: LawMoments) -> int:
    """Return the number of units D of moments.

    Raises:
      ValueError: they are not finite, or of different numbers of units.
    """
    width = finite("a mean", moments.mean).shape[0]
    for name in ("target", "cross", "regressor"):
        if finite(f"moments {name!r}", getattr(moments, name)).shape != (width, width):
            shape = np.shape(getattr(moments, name))
            raise ValueError(f"got moments {name!r} of shape {shape}, expected {(width, width)}")
    return width


def cholesky(covariance: Float[AnyArray, "K K"]) -> tuple[np.ndarray, bool]:
    """Factorise a covariance, for `scipy.linalg.cho_solve`.

    Raises:
      ValueError: it is singular: units that copy each other, or fewer examples than units, and no ridge.
    """
    try:
        factor, lower = linalg.cho_factor(np.asarray(covariance, np.float64))
    except (linalg.LinAlgError, ValueError) as error:
        raise ValueError(
            f"got a covariance of {len(covariance)} units that cannot be solved ({error}), expected positive definite"
            "; give more calibration inputs or a larger ridge"
        ) from error
    return factor, bool(lower)  # a NumPy scalar from SciPy 1.18 on


def constant_units(moments: LawMoments) -> Bool[np.ndarray, " D"]:
    """Tell units that do not vary: their variance is below the rounding of their mean square."""
    variance = np.diagonal(moments.target)
    return variance <= 1e-12 * (variance + np.asarray(moments.mean) ** 2)


class _State(NamedTuple):
    """Running diagonals and products; see `_eliminate`."""

    live: Array
    diagonal: Array
    explained: Array
    lost: Array
    predictor: Array
    predicted: Array
    factors: Array
    order: Array
    increases: Array


@partial(jax.jit, static_argnames=("steps",))
def _eliminate(
    metric: Float[Array, "R D"], target: Float[Array, "D D"], joint: Float[Array, "M M"], steps: int
) -> tuple[Int[Array, " T"], Float[Array, " T"]]:
    """Pivot `joint` = [[P, U], [U^T, Q]] on the units of its first half: a partial Cholesky factorisation.

    predictor is A P, predicted A P C, lost V_j . (V_S Sig_Sj), explained the diagonal of U, diagonal that of `joint`.
    """
    width = metric.shape[1]
    gram = metric.T @ metric
    norms = jnp.diagonal(gram)

    def step(t: Array, state: _State) -> _State:
        pivot = jnp.where(state.live, state.diagonal[:width], 1.0)
        aligned = (metric * (state.predicted - state.predictor * (state.explained / pivot))).sum(0)
        unexplained = jnp.diagonal(target) - state.diagonal[width:] + state.explained**2 / pivot
        increase = 2 * state.lost + norms * unexplained + (state.predictor**2).sum(0) / pivot - 2 * aligned
        j = jnp.argmin(jnp.where(state.live, increase, jnp.inf))
        live = state.live.at[j].set(False)
        columns = joint[jnp.stack([j, width + j])] - state.factors[:, jnp.stack([j, width + j])].T @ state.factors
        factor = columns[0] / jnp.sqrt(pivot[j])
        solved, crossed = jnp.split(columns[1] - factor[width + j] * factor, 2)
        inverse, cross = jnp.split(factor, 2)
        gone = jnp.outer(state.predictor[:, j] / inverse[j], factor)
        predictor = state.predictor - gone[:, :width] + jnp.outer(metric[:, j], solved)
        return _State(
            live,
            state.diagonal - factor**2,
            state.explained - inverse * cross,
            state.lost + gram[j] * target[j],
            jnp.where(live, predictor, 0.0),
            state.predicted - gone[:, width:] + jnp.outer(metric[:, j], crossed),
            state.factors.at[t].set(factor),
            state.order.at[t].set(j),
            state.increases.at[t].set(increase[j]),
        )

    zeros = lambda *shape: jnp.zeros(shape, metric.dtype)
    start = _State(
        live=jnp.ones(width, bool),
        diagonal=jnp.diagonal(joint),
        explained=jnp.diagonal(joint[:width, width:]),
        lost=zeros(width),
        predictor=zeros(*metric.shape),
        predicted=zeros(*metric.shape),
        factors=zeros(steps, 2 * width),
        order=jnp.zeros(steps, jnp.int64),
        increases=zeros(steps),
    )
    final = jax.lax.fori_loop(0, steps, step, start)
    return final.order, final.increases


@partial(jax.jit, static_argnames=("steps",))
def _eliminate_constants(gram: Float[Array, "D D"], steps: int) -> tuple[Int[Array, " T"], Float[Array, " T"]]:
    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        live, increase = state
        j = jnp.argmin(jnp.where(live, increase, jnp.inf))
        return (live.at[j].set(False), increase + 2 * gram[j]), (j, increase[j])

    start = (jnp.ones(len(gram), bool), jnp.diagonal(gram))
    return jax.lax.scan(step, start, None, length=steps)[1]
