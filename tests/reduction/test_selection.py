"""Who stays: ties, groups, budgets over several taps against all subsets, and elimination of groups."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest

from abstraction.reduction.elimination import eliminate
from abstraction.reduction.moments import LawMoments
from abstraction.reduction.selection import (
    allocate,
    check_keep,
    check_partition,
    eliminate_groups,
    group_scores,
    keep_highest,
    members,
)


def test_the_highest_scores_stay_in_order_of_index():
    assert keep_highest(np.array([3.0, 1, 2, 5]), 2).tolist() == [0, 3]
    assert keep_highest(np.array([3.0, 1, 2, 5]), 4).tolist() == [0, 1, 2, 3]


def test_of_equal_scores_the_lower_index_goes_first():
    scores = np.array([1.0, 2, 1, 2, 1])
    assert [keep_highest(scores, keep).tolist() for keep in (4, 3, 2, 1)] == [[1, 2, 3, 4], [1, 3, 4], [1, 3], [3]]


def test_many_equal_scores_keep_the_order_of_their_indices(rng):
    scores = rng.integers(0, 3, 200).astype(float)  # enough that an unstable sort would show
    for keep in (1, 50, 120, 199):
        order = sorted(range(200), key=lambda unit: (scores[unit], unit))
        assert keep_highest(scores, keep).tolist() == sorted(order[200 - keep :])


def test_smaller_budgets_keep_subsets_of_larger_ones(rng):
    scores = rng.integers(0, 4, 12).astype(float)
    kept = [set(keep_highest(scores, keep).tolist()) for keep in range(1, 13)]
    assert all(small < large for small, large in pairwise(kept))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="got scores with 2 values of"):
        keep_highest(np.array([1.0, np.nan, np.inf]), 1)


def test_budgets_round_up_to_multiples_within_the_width():
    assert [check_keep(keep, 10, round_to=4) for keep in (1, 4, 5, 9, 10)] == [4, 4, 8, 10, 10]
    for keep, round_to in ((0, 1), (11, 1), (5, 0)):
        with pytest.raises(ValueError, match=r"got keep|got multiple"):
            check_keep(keep, 10, round_to=round_to)


def test_groups_add_up_and_name_their_units():
    groups = ((0, 3), (1,), (4, 2))
    np.testing.assert_array_equal(group_scores(np.array([1.0, 2, 4, 8, 16]), groups), [9, 2, 20])
    assert members(groups, np.array([2, 0])).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (((0, 1), (3,)), r"miss units \[2\]"),
        (((0, 1), (1, 2, 3)), r"share \[1\]"),
        (((0, 1), (2, 3, 4)), r"unknown \[4\]"),
        (((0, 1, 2, 3), ()), "exactly one group"),
        ((), r"miss units \[0, 1, 2, 3\]"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        check_partition(groups, 4)


def _best(scores, keep, costs, least):
    """Try every choice of units and return the largest sum of score per cost, and the choices that have it."""
    units = [(tap, unit) for tap in scores for unit in range(len(scores[tap]))]
    values = {}
    for chosen in combinations(units, keep):
        counts = {tap: sum(of == tap for of, _ in chosen) for tap in scores}
        if all(counts[tap] >= min(least, len(scores[tap])) for tap in scores):
            values[chosen] = sum(scores[tap][unit] / costs[tap] for tap, unit in chosen)
    return max(values.values())


def test_a_budget_over_taps_is_spent_as_the_best_of_all_choices(rng):
    for keep, least in product((3, 4, 6), (1, 2)):
        if keep < 2 * least:
            continue
        scores = {"first": rng.random(5), "second": 3 * rng.random(3)}
        costs = {"first": 1.0, "second": float(rng.uniform(1, 5))}
        kept = allocate(scores, keep, costs=costs, min_keep=least)
        assert sum(len(units) for units in kept.values()) == keep
        assert all(len(units) >= least for units in kept.values())
        value = sum(scores[tap][units].sum() / costs[tap] for tap, units in kept.items())
        assert value == pytest.approx(_best(scores, keep, costs, least), rel=1e-12)


def test_allocation_rounds_each_tap_up():
    scores = {"first": np.array([9.0, 8, 7, 1, 1, 1]), "second": np.array([2.0, 1, 0])}
    kept = allocate(scores, 5, round_to=2)
    assert {tap: units.tolist() for tap, units in kept.items()} == {"first": [0, 1, 2, 3], "second": [0, 1]}
    narrow = allocate(scores, 9, round_to=4)
    assert {tap: len(units) for tap, units in narrow.items()} == {"first": 6, "second": 3}


@pytest.mark.parametrize("keep", [1, 9])
def test_a_budget_below_what_every_tap_keeps_is_refused(keep):
    with pytest.raises(ValueError, match=rf"got keep {keep} over taps .*expected 2 .* to 8"):
        allocate({"first": np.ones(5), "second": np.ones(3)}, keep)


def _problem(rng, width=8):
    root = rng.standard_normal((3, width))
    covariance = np.cov((rng.standard_normal((4 * width, width)) @ (np.eye(width) + 0.3)).T, bias=True)
    return root.T @ root, LawMoments(np.zeros(width), covariance, covariance, covariance)


def _left(metric, covariance, kept):
    gone = np.setdiff1d(np.arange(len(metric)), kept)
    cross = covariance[np.ix_(gone, kept)]
    rest = covariance[np.ix_(gone, gone)] - cross @ np.linalg.solve(covariance[np.ix_(kept, kept)], cross.T)
    return float((metric[np.ix_(gone, gone)] * rest).sum())


def test_groups_go_one_by_one_at_the_least_joint_risk(rng):
    metric, moments = _problem(rng)
    groups = np.array([[0, 5], [1, 4], [2, 7], [3, 6]])
    path = eliminate_groups(metric, moments, groups, keep=1)
    left, total = [0, 1, 2, 3], 0.0
    for group, increase in zip(path.order, path.increases, strict=True):
        options = {g: _left(metric, moments.target, groups[[k for k in left if k != g]].ravel()) for g in left}
        assert group == min(options, key=lambda g: options[g])
        total += increase
        assert total == pytest.approx(options[int(group)], rel=1e-8)
        left.remove(int(group))
    assert path.width == 4
    assert path.kept(1).tolist() == left


def test_groups_of_one_go_as_units_do(rng):
    metric, moments = _problem(rng)
    alone = eliminate_groups(metric, moments, np.arange(8)[:, None], keep=1)
    units = eliminate(metric, moments, keep=1)
    np.testing.assert_array_equal(alone.order, units.order)
    np.testing.assert_allclose(alone.increases, units.increases, rtol=1e-8)


def test_a_group_of_units_that_do_not_vary_is_free(rng):
    metric, moments = _problem(rng)
    still = np.isin(np.arange(8), [2, 7])
    covariance = np.where(still[:, None] | still, 0.0, moments.target)
    covariance[2, 2] = 1e-32  # rounding of a unit that is constant
    mean = np.where(still, 0.3, 0.0)
    groups = np.array([[0, 5], [1, 4], [2, 7], [3, 6]])
    path = eliminate_groups(metric, LawMoments(mean, covariance, covariance, covariance), groups, keep=1)
    assert path.order[0] == 2
    assert path.increases[0] == 0
    live = np.flatnonzero(~still)
    kept = np.searchsorted(live, groups[path.kept(1)].ravel())
    expected = _left(metric[np.ix_(live, live)], covariance[np.ix_(live, live)], kept)
    assert path.risk(1) == pytest.approx(expected, rel=1e-8)


def test_groups_under_interchanges_and_budgets_out_of_range_are_refused(rng):
    metric, moments = _problem(rng)
    groups = np.arange(8).reshape(4, 2)
    law = LawMoments(moments.mean, moments.target, 0.9 * moments.target, moments.regressor)
    with pytest.raises(ValueError, match="got moments under interchanges, expected observational ones"):
        eliminate_groups(metric, law, groups, keep=2)
    with pytest.raises(ValueError, match="got keep 5, expected 1 to 4"):
        eliminate_groups(metric, moments, groups, keep=5)
    with pytest.raises(ValueError, match="exactly one group"):
        eliminate_groups(metric, moments, groups[:3], keep=2)
