"""Couplings against POT, and the authors' clamped solver against the same iteration in PyTorch."""

import numpy as np
import pytest

from abstraction.localization.couplings import gromov_wasserstein_couplings, reference_couplings, sinkhorn_couplings

pytestmark = pytest.mark.parity

EPSILONS = np.array([0.05, 0.2, 1.0], np.float32)


@pytest.fixture(name="ot")
def _ot():
    return pytest.importorskip("ot", reason="POT is the oracle: pip install -e '.[parity]'")


@pytest.fixture(name="torch")
def _torch():
    return pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")


@pytest.fixture(name="cost")
def _cost(rng):
    return rng.uniform(0, 1, (3, 12)).astype(np.float32)


def balanced(ot, cost, epsilon):
    return ot.sinkhorn(
        [], [], np.float64(cost), float(epsilon), method="sinkhorn_log", numItermax=100_000, stopThr=1e-12
    )


# float32 potentials divided by eps of .05: relative errors of about 1e-6 / .05
CLOSE = {"rtol": 5e-5, "atol": 1e-8}


def test_balanced_couplings_equal_pot(ot, cost):
    plans = sinkhorn_couplings(cost, EPSILONS[None]).plan[0]
    for plan, epsilon in zip(plans, EPSILONS, strict=True):
        np.testing.assert_allclose(plan, balanced(ot, cost, epsilon), **CLOSE)


def test_a_scope_solves_the_problem_of_its_columns_alone(ot, cost):
    scopes = np.arange(12)[None] % 3 == np.arange(3)[:, None]
    plans = np.asarray(sinkhorn_couplings(cost, np.tile(EPSILONS, (3, 1)), scopes).plan)
    for scope, row in zip(scopes, plans, strict=True):
        for plan, epsilon in zip(row, EPSILONS, strict=True):
            np.testing.assert_allclose(plan[:, scope], balanced(ot, cost[:, scope], epsilon), **CLOSE)
            assert (plan[:, ~scope] == 0).all()


@pytest.mark.parametrize(("tau_abstract", "tau_neural"), [(1.0, 0.9), (1.0, 0.2), (0.7, 1.0), (0.8, 0.5)])
def test_unbalanced_couplings_equal_pot(ot, cost, tau_abstract, tau_neural):
    plans = sinkhorn_couplings(cost, EPSILONS[None], tau_abstract=tau_abstract, tau_neural=tau_neural).plan[0]
    a, b = np.full(3, 1 / 3), np.full(12, 1 / 12)
    for plan, epsilon in zip(plans, np.float64(EPSILONS), strict=True):
        # tau = beta / (beta + eps)
        beta = [np.inf if tau == 1 else epsilon * tau / (1 - tau) for tau in (tau_abstract, tau_neural)]
        # ott-jax penalises KL(pi | 1), not KL(pi | a b^T): a difference only where no marginal is hard, in the mass
        reference = np.ones_like(cost, np.float64) if 1 not in (tau_abstract, tau_neural) else a[:, None] * b
        expected = ot.unbalanced.sinkhorn_unbalanced(
            a, b, np.float64(cost), epsilon, beta, c=reference, numItermax=100_000, stopThr=1e-14
        )
        np.testing.assert_allclose(plan, expected, **CLOSE)


def clouds(rng):
    """Six points, the same points permuted, and the distances within and between; every point is distinct."""
    points = rng.standard_normal((6, 2)) * np.array([1.0, 3.0])
    order = rng.permutation(6)
    distance = lambda x, y: np.linalg.norm(x[:, None] - y[None], axis=-1)
    within = distance(points, points) / distance(points, points).max()
    cross = np.abs(points[:, None, 0] - points[order][None, :, 0])
    return within.astype(np.float32), within[order][:, order].astype(np.float32), cross / cross.max(), order


# fifty linearisations, each with a few hundred iterations in float32: entries of 1/6 to four digits
QUADRATIC = {"rtol": 0, "atol": 1e-4}


def test_gromov_wasserstein_couplings_equal_pot_and_find_the_permutation(ot):
    abstract, neural, _, order = clouds(np.random.default_rng(3))
    epsilons = (0.02, 0.05, 0.1)
    plans = np.asarray(gromov_wasserstein_couplings(abstract, neural, epsilons).plan)
    np.testing.assert_array_equal(plans[0].argmax(axis=0), order)
    # at the smallest eps POT's inner iteration, which is not in the log domain, is far from done
    for plan, epsilon in zip(plans[1:], epsilons[1:], strict=True):
        # ott-jax linearises the square loss to half its gradient, POT to the whole
        expected = ot.gromov.entropic_gromov_wasserstein(
            np.float64(abstract), np.float64(neural), epsilon=2 * epsilon, max_iter=1000, tol=1e-12
        )
        np.testing.assert_allclose(plan, expected, **QUADRATIC)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.8])
def test_fused_couplings_equal_pot(ot, alpha):
    abstract, neural, cross, _ = clouds(np.random.default_rng(3))
    epsilon = 0.05
    # (1 - a) C + a L at eps, with L half the gradient, is POT's (1 - A) C + 2 A L at E, up to a factor
    theirs = alpha / (2 - alpha)
    plan = gromov_wasserstein_couplings(
        abstract, neural, (epsilon,), cross_cost=np.float32(cross), alpha=alpha, outer_iterations=100
    ).plan[0]
    expected = ot.gromov.entropic_fused_gromov_wasserstein(
        cross,
        np.float64(abstract),
        np.float64(neural),
        epsilon=epsilon * (1 - theirs) / (1 - alpha),
        alpha=theirs,
        max_iter=1000,
        tol=1e-12,
    )
    np.testing.assert_allclose(plan, expected, **QUADRATIC)


def clamped(torch, cost, epsilon, rho_abstract, rho_neural, iterations):
    """K = max(exp(-C/eps), 1e-30), r = (a / K c)^rho_a, c = (b / K^T r)^rho_b, all in float32."""
    kernel = torch.exp(-torch.tensor(cost) / epsilon).clamp(min=1e-30)
    rows, columns = torch.ones(len(cost)), torch.ones(cost.shape[1])
    for _ in range(iterations):
        rows = (1 / len(cost) / (kernel @ columns).clamp(min=1e-30)) ** rho_abstract
        columns = (1 / cost.shape[1] / (kernel.T @ rows).clamp(min=1e-30)) ** rho_neural
    return rows[:, None] * kernel * columns


@pytest.mark.parametrize(("beta_abstract", "beta_neural"), [(None, None), (None, 0.3), (1e6, 5.0)])
@pytest.mark.parametrize("iterations", [80, 500])
def test_reference_couplings_equal_the_clamped_iteration_in_pytorch(torch, rng, beta_abstract, beta_neural, iterations):
    cost = rng.uniform(100, 1000, (2, 48)).astype(np.float32)
    epsilons = (0.25, 4.0, 16.0, 100.0)
    ours = reference_couplings(
        cost, epsilons, beta_abstract=beta_abstract, beta_neural=(beta_neural,), iterations=iterations
    )
    shares = [float((np.exp(-cost / epsilon) <= 1e-30).mean()) for epsilon in epsilons]
    # the clamp bites everywhere, in part, and nowhere
    assert shares[0] == 1
    assert 0 < shares[1] < 1
    assert shares[-1] == 0
    np.testing.assert_allclose(ours.clamped[0], shares, atol=1e-6)
    for plan, epsilon in zip(np.asarray(ours.plan[0]), epsilons, strict=True):
        rho = [1.0 if beta is None else beta / (beta + epsilon) for beta in (beta_abstract, beta_neural)]
        expected = clamped(torch, cost, epsilon, *rho, iterations).numpy()
        # float32 kernels spanning thirty decades, powers of their sums
        np.testing.assert_allclose(plan, expected, rtol=1e-4, atol=1e-9)
