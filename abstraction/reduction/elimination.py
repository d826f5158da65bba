"""Exact greedy elimination: which unit costs least to fold into those that stay, one after another.

Replaced units S keep their base value u, kept units K carry v (interchanged under a law, or v = u), and an affine fold
predicts what S sent to the next layer from v_K. Weighed with the curvature H = V^T V at the tap, the error left is

    D(K) = tr(V_S Sig_SS V_S^T) - tr(A Om_KK^-1 A^T),     A = V_S C_SK,   C = E[1-p] Sig,   Om = Cov(v)

At every step each unit's increase of D is known in closed form. With P = Om^-1 over the live units, U = P C, Q = C P C:

    D(K \\ j) - D(K) = 2 V_j . (V_S Sig_Sj) + |V_j|^2 Sig_jj                     what S now also loses
                      + |(A P)_j|^2 / P_jj                                       what j explained of it
                      - 2 V_j . (A P' C)_j - |V_j|^2 (Q_jj - U_jj^2 / P_jj)      what the others explain of j

and all matrices change by rank one. Observed without intervention (v = u) this is the optimal brain surgeon's
|V_j|^2 / P_jj on folded weights; the general form is ours. Increases sum exactly to D of the final set, so
one run gives the order and the risk of every budget.

All of it is one pivoted, partial Cholesky factorisation of J = [[P, U], [U^T, Q]], in float64, on the host. Units go in
blocks. Within one J and E = A P stay as they are, and what its steps have done so far is kept as factors of low rank:
two rows of J and one column of E are made of them when a unit goes, and the numbers that a step compares,

    |E_j|^2,      V_j . E_j,      V_j . (E C)_j,

follow from three products of a vector with V and E. At the end of a block J and E are brought up to date by one product
of matrices each, and units that are gone are dropped: D^2 R in all, at the speed of matrix products but for two passes
over V and E a step.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg

from abstraction.checks import finite, whole
from abstraction.reduction.moments import LawMoments
from abstraction.typing import AnyArray

_BLOCK = 64
"""Units that go before matrices are brought up to date."""


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


def eliminate(
    hessian: Float[AnyArray, "D D"], moments: LawMoments, *, keep: int, root: Float[AnyArray, "R D"] | None = None
) -> Path:
    """Remove units one by one until `keep` are left, each time the one that adds least to D.

    Units of variance 0 cost nothing and go first; ties go to the lower index.

    Args:
      hessian: curvature at the tap, or any positive semidefinite metric, `[D, D]`; D is in units of its quadratic form.
      moments: of the tap, under the law folds are fitted for.
      keep: units to keep at least.
      root: V with V^T V = H, where one is at hand: the roots of H are most of the cost where few units go.

    Raises:
      ValueError: `keep` is not in [1, D], or the metric or its root are not finite or do not fit.
    """
    width = check_moments(moments)
    whole("keep", keep, 1, width)
    metric = given_root(hessian, root)
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
    order, increases = _eliminate(_start(metric, target, joint), width - keep)
    return Path(order, increases, width)


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


def given_root(hessian: Float[AnyArray, "D D"], root: Float[AnyArray, "R D"] | None) -> Float[np.ndarray, "R D"]:
    """Return the root of H that is at hand, or else find one.

    Raises:
      ValueError: it is not finite, or not one of as many units as H.
    """
    if root is None:
        return metric_root(hessian)
    values = finite("a root of the curvature", root).astype(np.float64)
    if values.ndim != 2 or values.shape[1:] != np.shape(hessian)[1:]:
        raise ValueError(
            f"got a root of shape {values.shape}, expected one column for each unit of {np.shape(hessian)}"
        )
    return values


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
    order, increases = _eliminate_constants(gram, width - keep)
    return Path(order, increases, width)


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


class _Left(NamedTuple):
    """The M units that are left at the start of a block.

    Attributes:
      units: which they are, `[M]`.
      metric: V, `[R, M]`.
      gram: V^T V, `[M, M]`.
      target: Sig, `[M, M]`.
      joint: J, `[2 M, 2 M]`.
      predictor: E = A P, `[R, M]`.
      lost: V_j . (V_S Sig_Sj), `[M]`.
      aligned: V_j . (E C)_j, `[M]`.
    """

    units: Int[np.ndarray, " M"]
    metric: Float[np.ndarray, "R M"]
    gram: Float[np.ndarray, "M M"]
    target: Float[np.ndarray, "M M"]
    joint: Float[np.ndarray, "J J"]
    predictor: Float[np.ndarray, "R M"]
    lost: Float[np.ndarray, " M"]
    aligned: Float[np.ndarray, " M"]


def _start(
    metric: Float[np.ndarray, "R D"], target: Float[np.ndarray, "D D"], joint: Float[np.ndarray, "J J"]
) -> _Left:
    zeros = np.zeros(metric.shape[1])
    return _Left(
        np.arange(len(zeros)), metric, metric.T @ metric, target, joint, np.zeros_like(metric), zeros, zeros.copy()
    )


def _eliminate(left: _Left, steps: int) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    orders, increases = [], []
    for done in range(0, steps, _BLOCK):
        order, increase, left = _eliminate_block(left, min(_BLOCK, steps - done))
        orders.append(order)
        increases.append(increase)
    return np.concatenate(orders), np.concatenate(increases)


def _eliminate_block(left: _Left, steps: int) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T"], _Left]:
    """Remove some units; J loses factors^T factors, and E gains spans^T weights."""
    (rank, width), metric, gram = left.metric.shape, left.metric, left.gram
    live, order, increases = np.ones(width, bool), np.zeros(steps, int), np.zeros(steps)
    factors = np.zeros((steps, 2 * width))
    spans, weights = np.zeros((2 * steps, rank)), np.zeros((2 * steps, width))
    diagonal, explained = np.diagonal(left.joint).copy(), np.diagonal(left.joint[:width, width:]).copy()
    own, along = (left.predictor**2).sum(0), (metric * left.predictor).sum(0)
    lost, aligned = left.lost.copy(), left.aligned.copy()
    norms, variance = np.diagonal(gram), np.diagonal(left.target)
    for t in range(steps):
        pivot = np.where(live, diagonal[:width], 1.0)
        unexplained = variance - diagonal[width:] + explained**2 / pivot
        increase = 2 * lost + norms * unexplained + own / pivot - 2 * (aligned - along * explained / pivot)
        j = int(np.argmin(np.where(live, increase, np.inf)))
        rows = left.joint[[j, width + j]] - factors[:t, [j, width + j]].T @ factors[:t]
        factor = rows[0] / np.sqrt(pivot[j])
        inverse, cross = np.split(factor, 2)
        solved, crossed = np.split(rows[1] - factor[width + j] * factor, 2)
        # E gains -moved inverse^T + V_j solved^T.
        column = left.predictor[:, j] + spans[: 2 * t].T @ weights[: 2 * t, j]
        moved, read = column / inverse[j], metric[:, j]
        both = np.stack([moved, read], axis=1)
        pulled = left.predictor.T @ both + weights[: 2 * t].T @ (spans[: 2 * t] @ both)
        seen = metric.T @ moved
        own += inverse * (moved @ moved * inverse - 2 * pulled[:, 0]) + solved * (norms[j] * solved + 2 * pulled[:, 1])
        own -= 2 * (moved @ read) * inverse * solved
        along += gram[j] * solved - seen * inverse
        aligned += gram[j] * crossed - seen * cross
        lost += gram[j] * left.target[j]
        diagonal -= factor**2
        explained -= inverse * cross
        live[j], order[t], increases[t] = False, left.units[j], increase[j]
        factors[t], spans[2 * t], spans[2 * t + 1] = factor, moved, read
        weights[2 * t], weights[2 * t + 1] = -inverse, solved
    joint = left.joint - factors.T @ factors
    there, twice = np.flatnonzero(live), np.flatnonzero(np.tile(live, 2))
    return (
        order,
        increases,
        _Left(
            left.units[there],
            metric[:, there],
            gram[np.ix_(there, there)],
            left.target[np.ix_(there, there)],
            joint[np.ix_(twice, twice)],
            (left.predictor + spans.T @ weights)[:, there],
            lost[there],
            aligned[there],
        ),
    )


def _eliminate_constants(
    gram: Float[np.ndarray, "D D"], steps: int
) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    live, increase = np.ones(len(gram), bool), np.diagonal(gram).copy()
    order, increases = np.zeros(steps, int), np.zeros(steps)
    for t in range(steps):
        j = int(np.argmin(np.where(live, increase, np.inf)))
        live[j], order[t], increases[t] = False, j, increase[j]
        increase = increase + 2 * gram[j]
    return order, increases
