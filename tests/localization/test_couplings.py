"""Couplings: known answers, limits, symmetries and diagnostics (PLOT, Sec. 3.2)."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import clamped_sinkhorn, sinkhorn
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from abstraction.localization.couplings import (
    gromov_wasserstein_couplings,
    nearest_coupling,
    reference_couplings,
    relative_epsilons,
    score_coupling,
    sinkhorn_couplings,
)

# Cost of the full states of a trained GRU adder against its three carries, at two small eps. The float32 kernel
# underflows at .01, so the clamp decides the plan; at .03 it does not, and the log domain agrees with it at both.
STAGE_A_LIKE = np.array([[0.1, 1.9, 1.9, 0.9], [0.9, 0.1, 1.9, 1.0], [1.0, 1.9, 0.1, 0.9]], np.float32)


def _solve(cost, epsilons, **options):
    epsilons = np.atleast_1d(np.asarray(epsilons, np.float32))
    return sinkhorn_couplings(jnp.asarray(cost, jnp.float32), epsilons[None], **options)


def _plan(cost, epsilon, **options):
    return np.asarray(_solve(cost, epsilon, **options).plan)[0, 0]


def _random_cost(seed, shape=(3, 8)):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0])
def test_two_by_two_has_its_closed_form(epsilon):
    p = 1 / (1 + np.exp(-1.0 / epsilon))
    np.testing.assert_allclose(_plan(1 - np.eye(2), epsilon), 0.5 * np.array([[p, 1 - p], [1 - p, p]]), rtol=1e-5)


def test_a_constant_cost_gives_the_product_plan():
    np.testing.assert_allclose(_plan(np.full((2, 5), 3.0), 0.1), 0.1, rtol=1e-5)


def test_row_and_column_constants_change_nothing():
    cost = _random_cost(0)
    shifted = cost + np.arange(3)[:, None] + np.linspace(0, 1, 8)
    np.testing.assert_allclose(_plan(shifted, 0.1), _plan(cost, 0.1), atol=1e-5)  # float32 potentials of order 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("epsilon", [0.05, 0.3])
def test_balanced_plans_match_the_oracle_and_its_marginals(seed, epsilon):
    cost = _random_cost(seed)
    coupling = _solve(cost, epsilon)
    plan = np.asarray(coupling.plan)[0, 0]
    np.testing.assert_allclose(plan, sinkhorn(cost.astype(float), epsilon), atol=2e-6)  # float32
    np.testing.assert_allclose(plan.sum(0), 1 / 8, atol=1e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 3, atol=1e-6)
    assert bool(coupling.converged.all())
    np.testing.assert_allclose(coupling.mass, 1.0, rtol=1e-5)
    assert float(coupling.marginal_error.max()) < 1e-6


@pytest.mark.parametrize("tau", [0.9, 0.5, 0.1])
def test_one_sided_plans_match_the_oracle(tau):
    cost, epsilon = _random_cost(1), 0.1
    beta = tau * epsilon / (1 - tau)
    plan = _plan(cost, epsilon, tau_neural=tau)
    np.testing.assert_allclose(plan, sinkhorn(cost.astype(float), epsilon, beta_neural=beta), atol=2e-6)
    np.testing.assert_allclose(plan.sum(1), 1 / 3, atol=1e-5)


def test_two_sided_plans_match_the_oracle_and_report_their_mass():
    cost, epsilon, tau = _random_cost(2), 0.2, 0.7
    beta = tau * epsilon / (1 - tau)
    coupling = _solve(cost, epsilon, tau_abstract=tau, tau_neural=tau)
    expected = sinkhorn(cost.astype(float), epsilon, beta_abstract=beta, beta_neural=beta)
    np.testing.assert_allclose(np.asarray(coupling.plan)[0, 0], expected, atol=2e-6)
    np.testing.assert_allclose(float(coupling.mass[0, 0]), expected.sum(), rtol=1e-5)
    assert abs(expected.sum() - 1) > 0.1


def test_large_eps_gives_the_product_plan_and_small_eps_the_assignment():
    cost = _random_cost(3, (5, 5))
    np.testing.assert_allclose(_plan(cost, 1e4), 1 / 25, rtol=1e-3)
    rows, columns = linear_sum_assignment(cost)
    expected = np.zeros((5, 5))
    expected[rows, columns] = 1 / 5
    # at eps = .005 a share exp(-gap / eps) is still off the assignment
    np.testing.assert_allclose(_plan(cost, 5e-3), expected, atol=5e-3)


def test_a_hard_penalty_is_balanced_and_a_soft_one_is_a_softmax():
    cost, epsilon = _random_cost(4), 0.2
    np.testing.assert_allclose(_plan(cost, epsilon, tau_neural=1 - 1e-6), _plan(cost, epsilon), atol=1e-4)
    free = _plan(cost, epsilon, tau_neural=1e-6)
    np.testing.assert_allclose(free, softmax(-cost / epsilon, axis=1) / 3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_permuting_variables_and_sites_permutes_the_plan(seed):
    cost, generator = _random_cost(seed), np.random.default_rng(seed)
    rows, columns = generator.permutation(3), generator.permutation(8)
    permuted = _plan(cost[rows][:, columns], 0.1)
    np.testing.assert_allclose(permuted, _plan(cost, 0.1)[rows][:, columns], atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_balanced_rows_are_capped_at_variables_over_sites(epsilon):
    coupling = _solve(_random_cost(5), epsilon)
    plan = np.asarray(coupling.plan)[0, 0]
    assert (plan / plan.sum(1, keepdims=True)).max() <= 3 / 8 + 1e-4


def test_saturated_sites_are_counted():
    cost = np.array([[0.0, 0.0, 9.0, 9.0], [9.0, 9.0, 0.0, 0.0]])
    assert np.asarray(_solve(cost, 0.1).saturated).tolist() == [[[2, 2]]]


def test_a_single_variable_is_uniform_balanced_and_ranked_by_cost_otherwise():
    cost = _random_cost(6, (1, 8))
    np.testing.assert_allclose(_plan(cost, 0.1), 1 / 8, rtol=1e-5)
    for tau in (0.9, 0.5, 0.1):
        assert np.argsort(-_plan(cost, 0.2, tau_neural=tau)[0]).tolist() == np.argsort(cost[0]).tolist()


def test_a_scope_is_the_smaller_problem():
    cost = _random_cost(7)
    scopes = np.zeros((2, 8), bool)
    scopes[0, :3], scopes[1, 3:] = True, True
    epsilons = np.full((2, 1), 0.1, np.float32)
    plans = np.asarray(sinkhorn_couplings(cost, epsilons, scopes).plan)[:, 0]
    for plan, scope in zip(plans, scopes, strict=True):
        np.testing.assert_allclose(plan[:, scope], _plan(cost[:, scope], 0.1), atol=2e-6)
        assert (plan[:, ~scope] == 0).all()


def test_a_batch_of_eps_is_each_eps_alone():
    cost = _random_cost(8)
    batch = np.asarray(_solve(cost, [0.05, 0.5, 5.0]).plan)[0]
    for plan, epsilon in zip(batch, [0.05, 0.5, 5.0], strict=True):
        np.testing.assert_allclose(plan, _plan(cost, epsilon), atol=1e-6)


def test_too_few_iterations_are_reported():
    coupling = _solve(_random_cost(9), 1e-3, iterations=3)
    assert not bool(coupling.converged.any())
    assert float(coupling.marginal_error.max()) > 1e-3


def test_relative_eps_makes_plans_free_of_the_costs_scale():
    cost, scopes = _random_cost(0), np.ones((1, 8), bool)
    plans = [np.asarray(sinkhorn_couplings(c, relative_epsilons(c, scopes, [0.3])).plan) for c in (cost, 1000 * cost)]
    np.testing.assert_allclose(*plans, atol=1e-5)


def test_costs_without_spread_keep_the_ratio_as_eps():
    assert relative_epsilons(np.ones((2, 8)), np.ones((1, 8), bool), [0.3])[0, 0] == pytest.approx(0.3)


def _forbidden(seed):
    """Forbid one site of each variable, so that a plan still exists."""
    cost = _random_cost(seed)
    cost[0, 0] = cost[1, 3] = cost[2, 7] = np.inf
    return cost


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"tau_neural": 0.6}, {"tau_abstract": 0.8, "tau_neural": 0.6}])
def test_a_forbidden_pair_is_a_pair_of_endless_cost(seed, options):
    """The oracle scales exp(-C / eps), which is 0 where C is infinite."""
    cost, epsilon = _forbidden(seed), 0.1
    coupling = _solve(cost, epsilon, **options)
    plan = np.asarray(coupling.plan)[0, 0]
    beta = lambda tau: None if tau == 1 else tau * epsilon / (1 - tau)
    betas = {f"beta_{side}": beta(options.get(f"tau_{side}", 1.0)) for side in ("abstract", "neural")}
    np.testing.assert_allclose(plan, sinkhorn(cost.astype(float), epsilon, **betas), atol=3e-6)  # float32
    assert (plan[np.isinf(cost)] == 0).all()
    assert coupling.converged.all()


def test_eps_follows_the_costs_that_are_allowed():
    cost, scopes = _forbidden(1), np.ones((1, 8), bool)
    epsilons = relative_epsilons(cost, scopes, [0.1])
    np.testing.assert_allclose(epsilons, 0.1 * cost[np.isfinite(cost)].astype(float).std(), rtol=1e-6)


def test_a_plan_that_cannot_exist_has_not_converged():
    """A variable of mass 1/3 cannot go to one site of capacity 1/8."""
    cost = _random_cost(2)
    cost[0, 1:] = np.inf
    coupling = _solve(cost, 0.1)
    assert not coupling.converged.any()
    assert coupling.marginal_error.min() > 0.1


@pytest.mark.parametrize("exponent", [-140, -83, -41, 41, 100])
def test_a_plan_does_not_depend_on_the_unit_of_its_costs(exponent):
    """Multiplied by a power of two the costs are the same numbers, so the plans are the same bits."""
    cost, scopes = _random_cost(3) + np.float32(0.5), np.eye(2, dtype=bool).repeat(4, axis=1)
    scaled = np.ldexp(cost.astype(np.float64), exponent)
    epsilons, other = (relative_epsilons(c, scopes, [0.1, 1.0]) for c in (cost, scaled))
    np.testing.assert_allclose(other, np.ldexp(epsilons.astype(float), exponent), rtol=1e-6)  # float32 sums
    plain = sinkhorn_couplings(cost, epsilons, scopes)
    there = sinkhorn_couplings(scaled, np.ldexp(epsilons.astype(float), exponent), scopes)
    np.testing.assert_array_equal(there.plan, plain.plan)
    reference = reference_couplings(cost, [0.1, 1.0], beta_neural=(None, 0.5))
    beta = float(np.ldexp(0.5, exponent))
    there = reference_couplings(scaled, np.ldexp([0.1, 1.0], exponent).tolist(), beta_neural=(None, beta))
    np.testing.assert_allclose(there.plan, reference.plan, rtol=1e-4)  # powers of sums, rho rounded to float32


def test_tiny_costs_are_solved_and_not_smeared():
    cost = _random_cost(4)
    tiny = cost * np.float32(1e-25)
    plan = np.asarray(sinkhorn_couplings(tiny, relative_epsilons(tiny, np.ones((1, 8), bool), [0.1])).plan)[0, 0]
    # eps is .1 standard deviations of the costs: float32 potentials of order 30 eps
    np.testing.assert_allclose(plan, sinkhorn(cost.astype(float), 0.1 * cost.astype(float).std()), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_costs_in_ordinary_units_are_solved_as_they_are(scale):
    cost = _random_cost(5) * np.float32(scale)
    spread = np.asarray(cost)[:, np.ones(8, bool)].std()
    epsilons = relative_epsilons(cost, np.ones((1, 8), bool), [0.3])
    assert epsilons.dtype == np.float32
    assert epsilons[0, 0] == spread * np.float32(0.3)


def test_distances_in_any_unit_match_alike():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.5], [4.0, 1.0]])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1).astype(np.float32)
    cross = _random_cost(6, (4, 4))
    plain = gromov_wasserstein_couplings(distance, distance, [0.05], cross_cost=cross, alpha=0.5)
    tiny = np.ldexp(distance.astype(float), -60)
    there = gromov_wasserstein_couplings(
        tiny, tiny, np.ldexp([0.05], -120).tolist(), cross_cost=np.ldexp(cross.astype(float), -120), alpha=0.5
    )
    # in units of 2^3 rather than 1, sums round differently
    np.testing.assert_allclose(there.plan, plain.plan, atol=1e-4)


def test_the_nearest_site_is_among_those_allowed():
    cost = _random_cost(7)
    cost[0, cost[0].argmin()] = np.inf
    assert np.asarray(nearest_coupling(cost).plan).argmax(1).tolist() == cost.argmin(1).tolist()
    scores = np.where(np.isinf(cost), -np.inf, -cost)
    plan = np.asarray(score_coupling(scores).plan)
    assert (plan[np.isinf(cost)] == 0).all()
    np.testing.assert_allclose(plan.sum(1), 1 / 3, rtol=1e-6)


def test_the_solver_is_imported_where_something_is_solved():
    code = "import sys, abstraction.localization.couplings; print([n for n in sys.modules if n.split('.')[0] == 'ott'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("epsilon", [0.01, 0.03, 1.0])
@pytest.mark.parametrize("beta", [None, 0.5])
def test_reference_numerics_match_the_clamped_loop(epsilon, beta):
    cost = STAGE_A_LIKE
    got = reference_couplings(cost, [epsilon], beta_neural=(beta,))
    rho = 1.0 if beta is None else beta / (beta + epsilon)
    expected = clamped_sinkhorn(cost, epsilon, rho_neural=rho)
    np.testing.assert_allclose(np.asarray(got.plan)[0, 0], expected, atol=1e-6)
    clamped = (np.exp(-cost / np.float32(epsilon)) <= 1e-30).mean()
    assert float(got.clamped[0, 0]) == pytest.approx(clamped)


def test_reference_and_log_domain_agree_where_nothing_is_clamped():
    cost = _random_cost(1)
    reference = np.asarray(reference_couplings(cost, [0.1]).plan)[0, 0]
    np.testing.assert_allclose(reference, _plan(cost, 0.1), atol=2e-6)


def test_a_clamped_kernel_loses_the_cost():
    cost = 1000 + 1000 * _random_cost(2)
    coupling = reference_couplings(cost, [0.01])
    assert float(coupling.clamped[0, 0]) == 1.0
    np.testing.assert_allclose(np.asarray(coupling.plan)[0, 0], 1 / 24, rtol=1e-4)


def test_gromov_wasserstein_finds_an_isometry():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.5], [4.0, 1.0]])
    order = np.array([2, 0, 3, 1])
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1).astype(np.float32)
    coupling = gromov_wasserstein_couplings(distance, distance[order][:, order], [0.05])
    assert np.asarray(coupling.plan)[0].argmax(axis=0).tolist() == order.tolist()
    assert np.asarray(coupling.plan)[0].max(axis=0) == pytest.approx(np.full(4, 0.25), abs=1e-2)


def test_a_nearly_linear_fused_problem_is_transport():
    cost, distance = _random_cost(3, (3, 3)), np.ones((3, 3), np.float32) - np.eye(3, dtype=np.float32)
    coupling = gromov_wasserstein_couplings(distance, distance, [0.1], cross_cost=cost, alpha=1e-3)
    # alpha = 1e-3 is not 0
    np.testing.assert_allclose(np.asarray(coupling.plan)[0], _plan(cost, 0.1), atol=5e-3)


def test_scores_become_row_softmaxes_and_the_nearest_site_takes_all():
    scores = _random_cost(4)
    plan = np.asarray(score_coupling(scores, temperature=0.5).plan)
    np.testing.assert_allclose(plan * 3, softmax(scores / 0.5, axis=1), rtol=1e-5)
    nearest = np.asarray(nearest_coupling(scores).plan)
    assert nearest.argmax(1).tolist() == scores.argmin(1).tolist()
    assert (nearest > 0).sum() == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _solve(_random_cost(0), 0.0), r"got epsilons \[0.0\], expected positive finite numbers"),
        (lambda: _solve(_random_cost(0), -1.0), "expected positive"),
        (lambda: _solve(_random_cost(0), np.nan), "expected positive"),
        (lambda: _solve(_random_cost(0), 0.1, tau_neural=0.0), r"expected values in \(0, 1\]"),
        (lambda: _solve(_random_cost(0), 0.1, tau_abstract=1.5), r"expected values in \(0, 1\]"),
        (lambda: _solve(_random_cost(0), 0.1, scopes=np.zeros((1, 8), bool)), "scope without sites"),
        (lambda: relative_epsilons(_random_cost(0), np.ones((1, 8), bool), [0.0]), "epsilon ratios"),
        (lambda: reference_couplings(_random_cost(0), [0.0]), "epsilons"),
        (lambda: reference_couplings(_random_cost(0), [0.1], beta_neural=(-1.0,)), "betas"),
        (lambda: gromov_wasserstein_couplings(np.eye(2), np.eye(3), [0.1], alpha=0.0), "got alpha 0.0"),
        (lambda: gromov_wasserstein_couplings(np.eye(2), np.eye(3), [0.1], alpha=0.5), "cross cost False"),
        (lambda: score_coupling(_random_cost(0), temperature=0.0), "temperature"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
