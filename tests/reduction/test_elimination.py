"""Greedy elimination: every step against brute force over sets, and increases against the trace formula of the end."""

import numpy as np
import pytest

from abstraction.reduction.elimination import (
    Path,
    constant_units,
    eliminate,
    eliminate_constants,
    metric_root,
)
from abstraction.reduction.moments import LawMoments

LAWS = [(0.0,), (0.1,), (0.0, 0.1, 0.2), (0.7,)]


def _covariance(rng, width, samples=None):
    root = rng.standard_normal((samples or 3 * width, width)) @ (np.eye(width) + 0.4)
    return np.cov(root.T, bias=True)


def _metric(rng, width, rank=3):
    root = rng.standard_normal((rank, width))
    return root.T @ root


def _moments(covariance, law=(0.0,), *, ridge=0.0, mean=None):
    """The law's moments written out here: E[1-p] Sig, E[(1-p)^2 + p^2] off the diagonal, 1 + ridge on it."""
    p, variance = np.array(law), np.diagonal(covariance)
    regressor = ((1 - p) ** 2 + p**2).mean() * (covariance - np.diag(variance)) + (1 + ridge) * np.diag(variance)
    mean = np.zeros(len(covariance)) if mean is None else mean
    return LawMoments(mean, covariance, (1 - p).mean() * covariance, regressor)


def _left(metric, moments, kept):
    """D(K) = tr H_SS (Sig_SS - C_SK Om_KK^-1 C_KS) of one set, with its own solve."""
    kept = np.asarray(kept)
    replaced = np.setdiff1d(np.arange(len(metric)), kept)
    cross = moments.cross[np.ix_(replaced, kept)]
    explained = cross @ np.linalg.solve(moments.regressor[np.ix_(kept, kept)], cross.T)
    return float((metric[np.ix_(replaced, replaced)] * (moments.target[np.ix_(replaced, replaced)] - explained)).sum())


def _greedy(left, width, keep):
    """Remove the unit whose removal leaves least, looking at all of them each time; return order and what is left."""
    kept, order, losses = list(range(width)), [], [0.0]
    while len(kept) > keep:
        options = [left([k for k in kept if k != unit]) for unit in kept]
        order.append(kept.pop(int(np.argmin(options))))
        losses.append(min(options))
    return order, np.diff(losses)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_every_step_is_the_cheapest_of_all_and_costs_what_it_says(law, ridge):
    for seed in range(4):
        generator = np.random.default_rng(seed)
        metric, moments = _metric(generator, 7), _moments(_covariance(generator, 7), law, ridge=ridge)
        order, increases = _greedy(lambda kept, m=metric, c=moments: _left(m, c, kept), 7, 1)
        path = eliminate(metric, moments, keep=1)
        assert path.order.tolist() == order
        np.testing.assert_allclose(path.increases, increases, rtol=1e-8, atol=1e-10)  # differences of sums


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_increases_sum_to_the_loss_of_every_budget(law, rng):
    width = 60
    metric, moments = _metric(rng, width, 9), _moments(_covariance(rng, width, 90), law, ridge=1e-4)
    path = eliminate(metric, moments, keep=1)
    assert sorted(path.order.tolist() + path.kept(1).tolist()) == list(range(width))
    for keep in (1, 2, 10, 30, 59):
        assert path.risk(keep) == pytest.approx(_left(metric, moments, path.kept(keep)), rel=1e-8)
    assert path.risk(width) == 0


def test_a_shorter_path_is_the_beginning_of_a_longer_one(rng):
    metric, moments = _metric(rng, 12), _moments(_covariance(rng, 12), (0.1,), ridge=1e-4)
    whole, part = eliminate(metric, moments, keep=1), eliminate(metric, moments, keep=8)
    np.testing.assert_array_equal(part.order, whole.order[:4])
    np.testing.assert_allclose(part.increases, whole.increases[:4], rtol=1e-12)


def test_observed_only_a_step_is_the_optimal_brain_surgeons(rng):
    """|V_j|^2 / P_jj of folded weights and of the inverse covariance downdated, as it is usually written."""
    width = 8
    covariance, root = _covariance(rng, width), rng.standard_normal((3, width))
    path = eliminate(root.T @ root, _moments(covariance), keep=1)
    inverse, folded, live = np.linalg.inv(covariance), root.copy(), list(range(width))
    for order, increase in zip(path.order, path.increases, strict=True):
        costs = {unit: (folded[:, unit] ** 2).sum() / inverse[unit, unit] for unit in live}
        unit = min(costs, key=lambda unit: costs[unit])
        assert order == unit
        assert increase == pytest.approx(costs[unit], rel=1e-8)
        folded = folded - np.outer(folded[:, unit], inverse[unit]) / inverse[unit, unit]
        inverse = inverse - np.outer(inverse[unit], inverse[unit]) / inverse[unit, unit]
        live.remove(unit)


def test_copies_and_sums_of_other_units_cost_nothing(rng):
    a = rng.standard_normal((200, 6))
    a[:, 2] = a[:, 1]
    a[:, 5] = 2 * a[:, 0] - a[:, 4] + 3
    metric = np.diag([1.0, 2, 3, 4, 5, 6])
    moments = _moments(np.cov(a.T, bias=True), ridge=1e-10, mean=a.mean(0))
    path = eliminate(metric, moments, keep=1)
    assert np.abs(path.increases[:2]).max() < 1e-8  # the ridge of 1e-10 is what copies cost
    assert len({1, 2} & set(path.order[:2].tolist())) == 1
    assert len({0, 4, 5} & set(path.order[:2].tolist())) == 1
    assert path.increases[2] > 0.1
    # by constants they cost what any unit of their variance does
    constants = eliminate_constants(metric, moments.target, keep=1)
    assert constants.increases[0] == pytest.approx((np.diagonal(metric) * np.diagonal(moments.target)).min())


def test_units_that_do_not_vary_go_first_and_free(rng):
    a = rng.standard_normal((50, 5)) * 1e-3
    a[:, 1], a[:, 3] = 0.0, 0.1 + 0.2  # a mean of 0.30000000000000004 leaves a variance of rounding
    for law in LAWS:
        covariance = np.cov(a.T, bias=True)
        covariance[3, 3] = 1e-32
        moments = _moments(covariance, law, ridge=1e-4, mean=a.mean(0))
        np.testing.assert_array_equal(constant_units(moments), [False, True, False, True, False])
        path = eliminate(_metric(rng, 5, 5) + np.eye(5), moments, keep=1)
        assert path.order[:2].tolist() == [1, 3]
        np.testing.assert_array_equal(path.increases[:2], 0.0)
        assert (path.increases[2:] > 0).all()


def test_ties_go_to_the_lower_index():
    path = eliminate(np.eye(4), _moments(np.eye(4)), keep=1)
    assert path.order.tolist() == [0, 1, 2]
    assert eliminate_constants(np.eye(4), np.eye(4), keep=2).order.tolist() == [0, 1]


def test_constants_step_by_step_and_in_sum(rng):
    for seed in range(4):
        generator = np.random.default_rng(seed)
        metric, covariance = _metric(generator, 7), _covariance(generator, 7)

        def left(kept, metric=metric, covariance=covariance):
            gone = np.setdiff1d(np.arange(7), kept)
            return float(np.trace(metric[np.ix_(gone, gone)] @ covariance[np.ix_(gone, gone)]))

        order, increases = _greedy(left, 7, 2)
        path = eliminate_constants(metric, covariance, keep=2)
        assert path.order.tolist() == order
        np.testing.assert_allclose(path.increases, increases, rtol=1e-8, atol=1e-10)  # differences of sums
        assert path.risk(2) == pytest.approx(left(path.kept(2)), rel=1e-10)


def test_the_root_squares_to_the_metric_with_no_more_rows_than_rank(rng):
    metric = _metric(rng, 8, 3)
    root = metric_root(metric)
    assert root.shape == (3, 8)
    np.testing.assert_allclose(root.T @ root, metric, atol=1e-12)
    scale = 10.0 ** np.arange(-4, 4)  # units of other scales change columns, and not what counts as rank
    np.testing.assert_allclose(np.abs(metric_root(metric * np.outer(scale, scale))), np.abs(root * scale), rtol=1e-8)
    noisy = metric + 1e-9 * np.eye(8)
    assert metric_root(noisy).shape == (3, 8)
    assert metric_root(noisy, tolerance=1e-12).shape == (8, 8)
    np.testing.assert_array_equal(metric_root(np.zeros((4, 4))), np.zeros((1, 4)))


def test_a_metric_of_zero_prices_every_unit_at_zero():
    path = eliminate(np.zeros((4, 4)), _moments(np.eye(4)), keep=2)
    assert path.order.tolist() == [0, 1]
    assert path.risk(2) == 0


def test_paths_by_hand():
    path = Path(np.array([3, 0]), np.array([0.5, 2.0]), 4)
    assert path.kept(4).tolist() == [0, 1, 2, 3]
    assert path.kept(3).tolist() == [0, 1, 2]
    assert path.kept(2).tolist() == [1, 2]
    assert [path.risk(keep) for keep in (4, 3, 2)] == [0, 0.5, 2.5]
    for keep in (1, 5):
        with pytest.raises(ValueError, match=f"got keep {keep}, expected 2 to 4"):
            path.kept(keep)


@pytest.mark.parametrize("keep", [0, 5])
def test_budgets_that_do_not_fit_are_refused(keep):
    with pytest.raises(ValueError, match=f"got keep {keep}, expected 1 to 4"):
        eliminate(np.eye(4), _moments(np.eye(4)), keep=keep)
    with pytest.raises(ValueError, match=f"got keep {keep}, expected 1 to 4"):
        eliminate_constants(np.eye(4), np.eye(4), keep=keep)


def test_a_metric_that_is_not_finite_is_refused():
    metric = np.eye(3)
    metric[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"got a curvature with .* not finite"):
        eliminate(metric, _moments(np.eye(3)), keep=1)
