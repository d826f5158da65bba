"""Affine folds in closed form: a_S := intercept + B a_K.

For logit distortion, and any other curvature that is the same for every example, the best B does not depend on the
curvature: it is the regression of a_S on a_K. Kept units are interchanged in use, so the regression is that
under the intervention law:

    B = C_SK Om_KK^-1,   C = E[1-p] Sig,   Om = Cov(a_K under the law),   intercept = mean_S - B mean_K
    D(B) = tr V_S [ Sig_SS - B C_KS - C_SK B^T + B Om B^T ] V_S^T

p = 0 is the observational fold; p > 0 shrinks as a ridge does, from the data; p = 1 leaves the mean. Sparse folds
choose r parents per unit, by correlation, by partial correlation, or by forward selection, and solve all units' small
systems at once. The weighted regression with per-example curvature is the authors' (their code, CIP-Affine).
"""

from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import linalg

from abstraction.checks import finite, indices, number, one_of, whole
from abstraction.reduction.elimination import check_moments, cholesky, constant_units
from abstraction.reduction.moments import LawMoments
from abstraction.typing import AnyArray

ParentRule = Literal["correlation", "partial", "forward"]


class Fit(NamedTuple):
    """An affine map from kept to replaced units.

    Attributes:
      intercept: `[S]`.
      coefficients: B, `[S, K]`.
    """

    intercept: Float[np.ndarray, " S"]
    coefficients: Float[np.ndarray, "S K"]


def replaced_units(kept: Int[AnyArray, " K"], width: int) -> Int[np.ndarray, " S"]:
    """Return the units that are not kept, of those there are."""
    return np.setdiff1d(np.arange(width), np.asarray(kept))


def fit_affine(moments: LawMoments, kept: Int[AnyArray, " K"]) -> Fit:
    """Regress every replaced unit on all kept ones, under the law of the moments.

    Raises:
      ValueError: kept units that are not there or repeat, or moments that are not finite.
    """
    kept = _kept(kept, check_moments(moments))
    replaced = replaced_units(kept, len(moments.mean))
    dead = constant_units(moments)[kept]
    regressor = moments.regressor[np.ix_(kept, kept)] + np.diag(dead.astype(float))
    cross = np.asarray(moments.cross)[np.ix_(kept, replaced)]
    coefficients = linalg.cho_solve(cholesky(regressor), np.where(dead[:, None], 0.0, cross)).T
    return _with_intercept(moments, kept, replaced, coefficients)


def choose_parents(
    moments: LawMoments, kept: Int[AnyArray, " K"], parents: int, rule: ParentRule = "forward"
) -> Int[np.ndarray, "S R"]:
    """Choose parents among the kept units for every replaced one, as positions in `kept`.

        correlation   largest |Cov(j, k)| / sd(k)
        partial       largest |B_jk| / sqrt((Om^-1)_kk): partial correlation given all other kept units
        forward       one after another, each the one that explains most of what is left

    Raises:
      ValueError: more parents than kept units, an unknown rule, kept units that are not there, or moments that are
        not finite.
    """
    kept = _kept(kept, check_moments(moments))
    whole("parents", parents, 1, len(kept))
    one_of("parent rule", rule, get_args(ParentRule))
    replaced = replaced_units(kept, len(moments.mean))
    regressor = moments.regressor[np.ix_(kept, kept)] + np.diag(constant_units(moments)[kept].astype(float))
    cross = np.asarray(moments.cross)[np.ix_(replaced, kept)]
    if rule == "forward":
        with jax.enable_x64(True):
            return np.asarray(_forward(regressor, cross, parents))
    if rule == "correlation":
        strength = np.abs(cross) / np.sqrt(np.diagonal(regressor))
    else:
        inverse = linalg.cho_solve(cholesky(regressor), np.eye(len(regressor)))
        strength = np.abs(cross @ inverse) / np.sqrt(np.diagonal(inverse))
    strongest = np.sort(np.argpartition(-strength, parents - 1, axis=1)[:, :parents], axis=1)
    order = np.argsort(-np.take_along_axis(strength, strongest, axis=1), axis=1, kind="stable")
    return np.take_along_axis(strongest, order, axis=1)


def fit_sparse(moments: LawMoments, kept: Int[AnyArray, " K"], parents: Int[AnyArray, "S R"]) -> Fit:
    """Regress every replaced unit on its own parents: one batched solve.

    Args:
      moments: under the law.
      kept: units that stay.
      parents: positions in `kept`, per replaced unit.

    Raises:
      ValueError: units or parents that are not there or repeat, or moments that are not finite.
    """
    kept = _kept(kept, check_moments(moments))
    replaced = replaced_units(kept, len(moments.mean))
    parents = _parents(parents, len(replaced), len(kept))
    regressor = moments.regressor[np.ix_(kept, kept)] + np.diag(constant_units(moments)[kept].astype(float))
    cross = np.asarray(moments.cross)[np.ix_(replaced, kept)]
    with jax.enable_x64(True):
        solved = np.asarray(_solve_each(regressor, cross, parents))
    return _with_intercept(moments, kept, replaced, _spread(solved, parents, len(kept)))


def fit_weighted(
    activations: Float[AnyArray, "N D"],
    weights: Float[AnyArray, "N S"],
    kept: Int[AnyArray, " K"],
    parents: Int[AnyArray, "S R"],
    *,
    ridge: float = 1e-4,
    origin: bool = False,
) -> Fit:
    """Regress every replaced unit on its parents with its own weight per example.

        minimise  sum_n w_nj (a_nj - b_j - B_j x_n)^2 + ridge |B_j|^2

    Args:
      activations: of the tap.
      weights: w, per example and replaced unit; the curvature of the unit.
      kept: units that stay.
      parents: positions in `kept`, per replaced unit.
      ridge: absolute, and none on the intercept, as in the authors' code.
      origin: fit without an intercept.

    Raises:
      ValueError: units or parents that are not there or repeat; values, weights or ridge that are not finite, weights
        below 0, or of other examples or units than the activations.
    """
    values = finite("activations", activations).astype(np.float64)
    kept = _kept(kept, values.shape[1])
    replaced = replaced_units(kept, values.shape[1])
    parents, weights = _parents(parents, len(replaced), len(kept)), finite("weights", weights)
    number("ridge", ridge)
    if weights.shape != (len(values), len(replaced)) or (weights < 0).any():
        raise ValueError(
            f"got weights of shape {weights.shape} from {weights.min(initial=0):g}, expected "
            f"{(len(values), len(replaced))}, one of at least 0 per example and replaced unit"
        )
    with jax.enable_x64(True):
        solved = np.asarray(
            _solve_weighted(values[:, kept], values[:, replaced], weights, parents, jnp.asarray(ridge), origin)
        )
    return Fit(solved[:, -1], _spread(solved[:, :-1], parents, len(kept)))


def correlated_parents(
    activations: Float[AnyArray, "N D"], kept: Int[AnyArray, " K"], parents: int
) -> Int[np.ndarray, "S R"]:
    """Choose the kept units of largest |Pearson correlation|, deviations padded by 1e-8 as in the authors' code.

    Raises:
      ValueError: more parents than kept units, kept units that are not there, or values that are not finite.
    """
    values = finite("activations", activations).astype(np.float64)
    kept = _kept(kept, values.shape[1])
    whole("parents", parents, 1, len(kept))
    standard = (values - values.mean(0)) / (values.std(0, ddof=1) + 1e-8)
    correlation = standard[:, replaced_units(kept, values.shape[1])].T @ standard[:, kept]
    return np.argsort(-np.abs(correlation), axis=1, kind="stable")[:, :parents]


def distortion(
    hessian: Float[AnyArray, "D D"],
    moments: LawMoments,
    kept: Int[AnyArray, " K"],
    coefficients: Float[AnyArray, "S K"],
) -> float:
    """Return D(B), the expected quadratic form of a fold's error under the law; means are matched.

    Args:
      hessian: H, `[D, D]`; with the logit discrepancy's, half of D(B) is the logit distortion D_2.
      moments: under the law; their ridge counts as noise of the kept units.
      kept: units that stay.
      coefficients: B; zeros for constants.

    Raises:
      ValueError: kept units that are not there, shapes that do not fit, or numbers that are not finite.
    """
    width = check_moments(moments)
    kept = _kept(kept, width)
    replaced = replaced_units(kept, width)
    b = finite("coefficients", coefficients).astype(np.float64)
    if b.shape != (len(replaced), len(kept)) or finite("a curvature", hessian).shape != (width, width):
        raise ValueError(
            f"got coefficients of shape {b.shape} and a curvature of shape {np.shape(hessian)}, expected "
            f"{(len(replaced), len(kept))} and {(width, width)}"
        )
    shared = b @ np.asarray(moments.cross)[np.ix_(kept, replaced)]
    error = (
        moments.target[np.ix_(replaced, replaced)] - shared - shared.T + b @ moments.regressor[np.ix_(kept, kept)] @ b.T
    )
    return float((np.asarray(hessian, np.float64)[np.ix_(replaced, replaced)] * error).sum())


def _kept(kept: Int[AnyArray, " K"], width: int) -> Int[np.ndarray, " K"]:
    """Return kept units, sorted as coefficients have them."""
    kept = indices("kept units", kept, width)
    if not len(kept) or (np.diff(kept) <= 0).any():
        raise ValueError(f"got kept units {kept.tolist()[:8]}, expected at least one of 0 to {width - 1}, sorted")
    return kept


def _parents(parents: Int[AnyArray, "S R"], replaced: int, kept: int) -> Int[np.ndarray, "S R"]:
    parents = np.asarray(parents)
    if parents.ndim != 2 or len(parents) != replaced:
        raise ValueError(f"got parents of shape {parents.shape}, expected a row for each of {replaced} replaced units")
    for row in parents:
        indices("parents", row, kept)
    return parents


def _with_intercept(moments: LawMoments, kept: np.ndarray, replaced: np.ndarray, coefficients: np.ndarray) -> Fit:
    mean = np.asarray(moments.mean, np.float64)
    return Fit(mean[replaced] - coefficients @ mean[kept], coefficients)


def _spread(solved: np.ndarray, parents: np.ndarray, width: int) -> np.ndarray:
    coefficients = np.zeros((len(parents), width))
    np.put_along_axis(coefficients, parents, solved, axis=1)
    return coefficients


@partial(jax.jit, static_argnames=("parents",))
def _forward(regressor: Float[Array, "K K"], cross: Float[Array, "S K"], parents: int) -> Int[Array, "S R"]:
    """Pivot a Cholesky factorisation on the candidate of largest c_k^2 / v_k, for every unit at once."""

    def one(cross: Float[Array, " K"]) -> Int[Array, " R"]:
        def step(state: tuple[Array, ...], t: Array) -> tuple[tuple[Array, ...], Array]:
            left, spare, factors, used = state
            k = jnp.argmax(jnp.where(used, -1.0, left**2 / jnp.where(used, 1.0, spare)))
            factor = (regressor[k] - factors[:, k] @ factors) / jnp.sqrt(spare[k])
            left = left - factor * (left[k] / jnp.sqrt(spare[k]))
            return (left, spare - factor**2, factors.at[t].set(factor), used.at[k].set(True)), k

        start = (cross, jnp.diagonal(regressor), jnp.zeros((parents, len(cross))), jnp.zeros(len(cross), bool))
        return jax.lax.scan(step, start, jnp.arange(parents))[1]

    return jax.vmap(one)(cross)


@jax.jit
def _solve_each(regressor: Float[Array, "K K"], cross: Float[Array, "S K"], parents: Int[Array, "S R"]) -> Array:
    def one(cross: Array, chosen: Array) -> Array:
        factor = jax.scipy.linalg.cho_factor(regressor[jnp.ix_(chosen, chosen)])
        return jax.scipy.linalg.cho_solve(factor, cross[chosen])

    return jax.vmap(one)(cross, parents)


@partial(jax.jit, static_argnames=("origin",))
def _solve_weighted(
    regressors: Float[Array, "N K"],
    targets: Float[Array, "N S"],
    weights: Float[Array, "N S"],
    parents: Int[Array, "S R"],
    ridge: Float[Array, ""],
    origin: bool,
) -> Float[Array, "S R+1"]:
    count = parents.shape[1]
    # Through the origin the column of the intercept is empty, and a penalty alone makes it 0.
    penalty = jnp.diag(jnp.full(count + 1, ridge).at[-1].set(1.0 if origin else 0.0))
    ones = jnp.full((len(regressors), 1), 0.0 if origin else 1.0, regressors.dtype)

    def one(target: Array, weight: Array, chosen: Array) -> Array:
        design = jnp.concatenate([regressors[:, chosen], ones], axis=1)
        weighted = design * weight[:, None]
        factor = jax.scipy.linalg.cho_factor(weighted.T @ design + penalty)
        return jax.scipy.linalg.cho_solve(factor, weighted.T @ target)

    each = (targets.T, weights.T.astype(targets.dtype), parents)
    return jax.lax.map(lambda unit: one(*unit), each, batch_size=min(64, len(parents)))
