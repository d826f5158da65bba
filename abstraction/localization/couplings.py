"""Couplings between causal variables and sites: entropic optimal transport through ott-jax.

    minimise  <pi, C> + eps sum pi (log pi - 1)   subject to   pi 1 = a,  pi^T 1 = b,    a uniform over V, b over S

and the unbalanced relatives, which replace a marginal constraint by a penalty beta KL(pi^T 1 | b). A penalty enters
the iteration only through tau = beta / (beta + eps): 1 is a hard marginal, and as tau goes to 0 each row becomes
a softmax of -C / eps (PLOT, Sec. 3.2; Chizat et al. 2018). Where both marginals are penalised, mass leaks: `mass`.

Balanced plans hold no row weight above V/S of the row: at small eps the best S/V sites of a row are tied at that
cap. `saturated` counts them; ties are broken by cost when handles are cut.

A scope restricts the columns, so one call solves a joint problem, or one problem per depth, or per resolution.
eps is relative to the spread of the costs in scope, so it needs no tuning to the number of pairs.

A cost of +inf forbids a pair: its plan is 0, and eps is relative to the spread of the costs that are allowed. Where
what is allowed cannot carry the marginals, no plan exists, and the coupling says `converged=False`. Any other cost that
is not finite is refused.

`reference_couplings` is the authors' numerics instead: the float32 kernel exp(-C / eps) clamped at 1e-30, iterated a
fixed number of times. `clamped` says how much of the kernel the clamp has erased; where that is nearly all of it,
the plan is the uniform product and means nothing.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from abstraction.checks import positive, whole
from abstraction.localization.costs import (
    checked_cost,
    checked_distance,
    checked_scopes,
    epsilons_in_units,
    in_units,
    matrix,
    refuse,
    refuse_empty,
    spread,
    unit,
)
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray

CLAMP = 1e-30
TIE_RTOL = 1e-4
_TOLERANCE = 1e-4


@pytree
class Coupling:
    """Plans and how far to trust them; all share leading axes `*B` (scopes, epsilons, penalties).

    Attributes:
      plan: transported mass, `[*B, V, S]`.
      epsilon: absolute eps, `[*B]`.
      converged: whether the residual is below tolerance and the plan finite, `[*B]`; others mean nothing.
      marginal_error: largest deviation from a marginal that is enforced, `[*B]`.
      mass: total mass of the plan, 1 unless both marginals are penalised, `[*B]`.
      saturated: sites tied at the top of each row, `[*B, V]`.
      clamped: fraction of kernel entries at the clamp, 0 in the log domain, `[*B]`.
    """

    plan: AnyArray
    epsilon: AnyArray
    converged: AnyArray
    marginal_error: AnyArray
    mass: AnyArray
    saturated: AnyArray
    clamped: AnyArray


def relative_epsilons(
    cost: Float[AnyArray, "V S"], scopes: Bool[AnyArray, "G S"], ratios: Sequence[float]
) -> Float[np.ndarray, "G R"]:
    """Scale eps to each scope: ratio times the standard deviation of the costs in scope.

    Where all costs in scope are equal every eps gives the same plan, and the ratio itself is returned. Forbidden pairs
    (cost +inf) have no part in the spread.

    Raises:
      ValueError: a ratio is not positive, a cost is NaN or -inf, or a scope forbids a variable or a site altogether.
    """
    positive("epsilon ratios", ratios)
    scopes = checked_scopes(scopes, np.shape(cost)[-1] if np.ndim(cost) else 0)
    cost = checked_cost(cost, scopes)
    spreads = np.array([spread(cost[:, scope]) for scope in scopes])
    return np.where(spreads > 0, spreads, 1.0)[:, None] * np.asarray(ratios, np.float32)


def sinkhorn_couplings(
    cost: Float[AnyArray, "V S"],
    epsilons: Float[AnyArray, "G R"],
    scopes: Bool[AnyArray, "G S"] | None = None,
    *,
    tau_abstract: float = 1.0,
    tau_neural: float = 1.0,
    iterations: int = 2000,
) -> Coupling:
    """Solve every scope at every eps in one compiled program, in the log domain.

    Args:
      cost: transport cost C; +inf forbids a pair.
      epsilons: absolute eps per scope.
      scopes: which sites each scope may use; by default one scope of all sites.
      tau_abstract: 1 enforces that every variable is matched.
      tau_neural: 1 enforces that every site is used equally; less lets sites go unused. A static value: each one
        compiles its own program.
      iterations: Sinkhorn iterations, all of them run (a fixed number is what makes the batch fast).

    Returns:
      Couplings with leading axes `[G, R]`.

    Raises:
      ValueError: an eps, tau or number of iterations out of range, a cost that is NaN or -inf, a scope without sites,
        or one in which a variable or a site has no pair that is allowed.
    """
    sites = np.shape(cost)[-1] if np.ndim(cost) else 0
    scopes = checked_scopes(np.ones((1, sites), bool) if scopes is None else scopes, sites)
    positive("epsilons", np.asarray(epsilons).ravel())
    if np.ndim(epsilons) != 2 or len(epsilons) != len(scopes):
        raise ValueError(
            f"got epsilons of shape {np.shape(epsilons)}, expected one row for each of {len(scopes)} scopes"
        )
    if not (0 < tau_abstract <= 1 and 0 < tau_neural <= 1):
        raise ValueError(f"got tau {tau_abstract} and {tau_neural}, expected values in (0, 1]")
    whole("iterations", iterations)
    checked = checked_cost(cost, scopes)
    units = unit(checked)
    eps = epsilons_in_units(epsilons, units)
    if units == 1:
        return _sinkhorn(checked, eps, scopes, tau_abstract, tau_neural, iterations)
    solved = _sinkhorn(in_units(checked, units), eps, scopes, tau_abstract, tau_neural, iterations)
    return dataclasses.replace(solved, epsilon=np.asarray(epsilons, np.float32))


@partial(jax.jit, static_argnames=("tau_abstract", "tau_neural", "iterations"))
def _sinkhorn(
    cost: Array, epsilons: Array, scopes: Array, tau_abstract: float, tau_neural: float, iterations: int
) -> Coupling:
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    variables = cost.shape[0]
    row_marginal = jnp.full(variables, 1 / variables)
    solver = sinkhorn.Sinkhorn(
        threshold=_TOLERANCE, min_iterations=iterations, max_iterations=iterations, inner_iterations=iterations
    )

    def solve(epsilon: Array, column_marginal: Array) -> Coupling:
        with jax.numpy_rank_promotion("allow"):
            problem = linear_problem.LinearProblem(
                geometry.Geometry(cost_matrix=cost, epsilon=cast(float, epsilon)),
                a=row_marginal,
                b=column_marginal,
                tau_a=tau_abstract,
                tau_b=tau_neural,
            )
            output = solver(problem)
        plan = output.matrix
        error = _marginal_error(plan, row_marginal, column_marginal, tau_abstract == 1, tau_neural == 1)
        return _coupling(plan, epsilon, jnp.asarray(output.converged), error, jnp.zeros(()))

    marginals = scopes / scopes.sum(axis=1, keepdims=True)
    over_epsilons = jax.vmap(solve, in_axes=(0, None))
    return jax.vmap(over_epsilons)(epsilons, marginals)


def reference_couplings(
    cost: Float[AnyArray, "V S"],
    epsilons: Sequence[float],
    *,
    beta_abstract: float | None = None,
    beta_neural: Sequence[float | None] = (None,),
    iterations: int = 500,
) -> Coupling:
    """Reproduce the authors' solver: a float32 kernel clamped at 1e-30, scalings r then c, fixed iterations.

        K = max(exp(-C/eps), 1e-30);   r = (a / K c)^rho_a;   c = (b / K^T r)^rho_b;   rho = beta / (beta + eps)

    Every cost above 69.08 eps is one and the same after the clamp.

    Args:
      cost: transport cost C.
      epsilons: absolute values.
      beta_abstract: penalty of the abstract marginal, None for a hard one.
      beta_neural: penalties of the neural marginal, None for a hard one.
      iterations: 80 in the authors' binary addition, 500 in hierarchical equality.

    Returns:
      Couplings with leading axes `[len(beta_neural), len(epsilons)]`.

    Raises:
      ValueError: an eps or beta is not positive, there is none, a number of iterations below 1, or a cost that is not
        finite: the clamp knows no forbidden pairs.
    """
    positive("epsilons", epsilons)
    positive("neural betas", [1.0 if beta is None else beta for beta in beta_neural])
    positive("abstract betas", [1.0 if beta_abstract is None else beta_abstract])
    whole("iterations", iterations)
    checked = matrix(cost, "costs")
    refuse(~np.isfinite(checked), checked, "cost", "finite costs: forbidden pairs are for sinkhorn_couplings")
    units = unit(checked)
    eps = epsilons_in_units(epsilons, units)
    given = np.asarray(epsilons, np.float32 if units == 1 else np.float64)
    exponent = lambda beta: np.ones_like(eps) if beta is None else np.float32(beta / (beta + given))
    rho_neural = np.stack([exponent(beta) for beta in beta_neural])
    hard = beta_abstract is None, all(beta is None for beta in beta_neural)
    if units == 1:
        return _reference(checked, eps, exponent(beta_abstract), rho_neural, hard, iterations)
    solved = _reference(in_units(checked, units), eps, exponent(beta_abstract), rho_neural, hard, iterations)
    return dataclasses.replace(solved, epsilon=np.broadcast_to(np.float32(given), np.shape(solved.epsilon)))


@partial(jax.jit, static_argnames=("hard", "iterations"))
def _reference(
    cost: Array, epsilons: Array, rho_abstract: Array, rho_neural: Array, hard: tuple[bool, bool], iterations: int
) -> Coupling:
    variables, sites = cost.shape
    a, b = jnp.full(variables, 1 / variables), jnp.full(sites, 1 / sites)

    def solve(epsilon: Array, rho_a: Array, rho_b: Array) -> Coupling:
        exact = jnp.exp(-cost / epsilon)
        kernel = jnp.maximum(exact, CLAMP)

        def step(_: Int[Array, ""], scalings: tuple[Array, Array]) -> tuple[Array, Array]:
            rows = (a / jnp.maximum(kernel @ scalings[1], CLAMP)) ** rho_a
            return rows, (b / jnp.maximum(kernel.T @ rows, CLAMP)) ** rho_b

        rows, columns = jax.lax.fori_loop(0, iterations, step, (jnp.ones(variables), jnp.ones(sites)))
        plan = rows[:, None] * kernel * columns[None, :]
        error = _marginal_error(plan, a, b, *hard)
        accepted = jnp.isfinite(plan).all() & (error <= 1e-6)
        return _coupling(plan, epsilon, accepted, error, (exact <= CLAMP).mean())

    return jax.vmap(lambda rho_b: jax.vmap(solve)(epsilons, rho_abstract, rho_b))(rho_neural)


def gromov_wasserstein_couplings(
    abstract_distance: Float[AnyArray, "V V"],
    neural_distance: Float[AnyArray, "S S"],
    epsilons: Sequence[float],
    *,
    cross_cost: Float[AnyArray, "V S"] | None = None,
    alpha: float = 1.0,
    outer_iterations: int = 50,
) -> Coupling:
    """Match the geometry among variables to the geometry among sites (entropic Gromov-Wasserstein, square loss).

        minimise  (1 - alpha) <pi, C> + alpha sum (D_ii' - D_jj')^2 pi_ij pi_i'j' + eps sum pi (log pi - 1)

    Solved by repeated linearisation as the authors do it, L(pi)_ij = sum (D_ii' - D_jj')^2 pi_i'j', which leaves out
    the factor 2 of the gradient: other solvers reach the same plan of pure Gromov-Wasserstein at 2 eps.

    With two variables the abstract geometry is a single number, so without a cross cost the plan cannot tell them
    apart.

    Args:
      abstract_distance: distances among the variables' signatures.
      neural_distance: distances among the sites' signatures.
      epsilons: absolute values.
      cross_cost: C, finite, needed for alpha < 1 (fused Gromov-Wasserstein).
      alpha: weight of the relational part, in (0, 1].
      outer_iterations: linearisations, each solved by Sinkhorn.

    Returns:
      Couplings with leading axis `[len(epsilons)]`.

    Raises:
      ValueError: an eps is not positive, alpha or the number of linearisations is out of range, the cross cost is
        missing, or distances are not square, symmetric, finite and 0 from a thing to itself.
    """
    positive("epsilons", epsilons)
    if not 0 < alpha <= 1:
        raise ValueError(f"got alpha {alpha}, expected a value in (0, 1]; use sinkhorn_couplings for 0")
    if (cross_cost is None) != (alpha == 1):
        raise ValueError(f"got alpha {alpha} and cross cost {cross_cost is not None}, expected both or neither")
    whole("outer iterations", outer_iterations)
    abstract = checked_distance(abstract_distance, "abstract")
    neural = checked_distance(neural_distance, "neural")
    shape = len(abstract), len(neural)
    cross = matrix(np.zeros(shape, np.float32) if cross_cost is None else cross_cost, "cross costs")
    if cross.shape != shape:
        raise ValueError(f"got a cross cost of shape {cross.shape}, expected {shape}")
    refuse(~np.isfinite(cross), cross, "cross cost", "finite costs")
    units = unit(np.concatenate([abstract.ravel(), neural.ravel()]))
    if units == 1:
        scaled = epsilons_in_units(epsilons) / np.float32(alpha)
        return _gromov_wasserstein(abstract, neural, cross, scaled, np.float32(alpha), outer_iterations)
    # Distances are squared, so costs and eps are in squared units.
    given = np.asarray(epsilons, np.float64)
    scaled, inside = epsilons_in_units(given / alpha, units, units), in_units(cross, units, units)
    refuse(~np.isfinite(inside), cross, "cross cost", "costs of the order of squared distances")
    distances = in_units(abstract, units), in_units(neural, units)
    solved = _gromov_wasserstein(*distances, inside, scaled, np.float32(alpha), outer_iterations)
    return dataclasses.replace(solved, epsilon=np.float32(given))


@partial(jax.jit, static_argnames=("outer_iterations",))
def _gromov_wasserstein(
    abstract: Array, neural: Array, cross: Array, scaled: Array, alpha: Array, outer_iterations: int
) -> Coupling:
    from ott.geometry import geometry
    from ott.problems.quadratic import quadratic_problem
    from ott.solvers.linear import sinkhorn
    from ott.solvers.quadratic import gromov_wasserstein

    a = jnp.full(abstract.shape[0], 1 / abstract.shape[0])
    b = jnp.full(neural.shape[0], 1 / neural.shape[0])

    def solve(epsilon: Array) -> Coupling:
        with jax.numpy_rank_promotion("allow"):
            problem = quadratic_problem.QuadraticProblem(
                geometry.Geometry(cost_matrix=abstract),
                geometry.Geometry(cost_matrix=neural),
                geometry.Geometry(cost_matrix=cross),
                fused_penalty=cast(float, (1 - alpha) / alpha),
                a=a,
                b=b,
            )
            solver = gromov_wasserstein.GromovWasserstein(
                sinkhorn.Sinkhorn(threshold=_TOLERANCE, min_iterations=200, max_iterations=200, inner_iterations=200),
                epsilon=cast(float, epsilon),
                max_iterations=outer_iterations,
            )
            output = solver(problem)
        plan = output.matrix
        error = _marginal_error(plan, a, b, True, True)
        return _coupling(plan, alpha * epsilon, jnp.asarray(output.converged), error, jnp.zeros(()))

    return jax.vmap(solve)(scaled)


def score_coupling(scores: Float[AnyArray, "V S"], *, temperature: float = 1.0) -> Coupling:
    """Turn any score of (variable, site) into a plan by a softmax over sites: no transport.

    With cosines of signatures, or single-site accuracies, these are the paper's cosine and brute-force baselines. A
    score of -inf forbids a pair.

    Raises:
      ValueError: the temperature is not positive, a score is NaN or +inf, or a variable has no score above -inf.
    """
    positive("temperature", [temperature])
    checked = matrix(scores, "scores")
    refuse(np.isnan(checked) | (checked == np.inf), checked, "score", "finite scores, or -inf to forbid a pair")
    refuse_empty(np.isfinite(checked), "scores")
    return _plain(np.asarray(special.softmax(np.asarray(scores) / temperature, axis=-1), np.float32), temperature)


def nearest_coupling(cost: Float[AnyArray, "V S"]) -> Coupling:
    """Give each variable the site of smallest cost, the first of equals; +inf forbids a pair.

    Raises:
      ValueError: a cost is NaN or -inf, or a variable has no pair that is allowed.
    """
    cost = matrix(cost, "costs")
    refuse(np.isnan(cost) | (cost == -np.inf), cost, "cost", "finite costs, or +inf to forbid a pair")
    refuse_empty(np.isfinite(cost), "costs")
    return _plain(np.eye(cost.shape[1], dtype=np.float32)[cost.argmin(axis=-1)], 0.0)


@jax.jit
def _plain(rows: Float[Array, "V S"], epsilon: Float[Array, ""]) -> Coupling:
    """Wrap rows that sum to one as a plan that was not solved for."""
    plan = rows / rows.shape[0]
    return _coupling(plan, jnp.asarray(epsilon), jnp.isfinite(plan).all(), jnp.zeros(()), jnp.zeros(()))


def _coupling(plan: Array, epsilon: Array, converged: Array, error: Array, clamped: Array) -> Coupling:
    top = plan.max(axis=-1, keepdims=True)
    saturated = ((plan >= top * (1 - TIE_RTOL)) & (plan > 0)).sum(axis=-1)
    converged = converged & jnp.isfinite(plan).all(axis=(-2, -1))
    return Coupling(plan, epsilon, converged, error, plan.sum(axis=(-2, -1)), saturated, clamped)


def _marginal_error(plan: Array, a: Array, b: Array, rows: bool, columns: bool) -> Float[Array, ""]:
    row = jnp.abs(plan.sum(axis=1) - a).max() if rows else jnp.zeros(())
    column = jnp.abs(plan.sum(axis=0) - b).max() if columns else jnp.zeros(())
    return jnp.maximum(row, column)
