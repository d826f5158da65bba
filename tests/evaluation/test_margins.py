"""Margin certificates: a case by hand, the order of the bounds, and a finite-sample guarantee that holds."""

import numpy as np
import pytest

from abstraction.evaluation.margins import certified_margins, epsilon_grid, margin_bounds


def _problem(rng, rows=500, classes=5, noise=0.5):
    """Errors with a constant part, a part common to all classes, and noise."""
    dense = rng.standard_normal((rows, classes)) * rng.uniform(1, 3)
    shift, common = rng.standard_normal((1, classes)), rng.standard_normal((rows, 1))
    return dense, dense + noise * (shift + common + rng.standard_normal((rows, classes)))


def test_bounds_of_two_rows_are_those_by_hand():
    """Margins 3 and 1; errors (1, 0) and (0, 0), centred (1/2, -1/2) and 0."""
    dense, reduced = np.array([[0.0, 3.0], [1.0, 0.0]]), np.array([[1.0, 3.0], [1.0, 0.0]])
    bounds = margin_bounds(dense, reduced, np.array([0.8, 1.2, 2.0]))
    np.testing.assert_allclose(bounds.plain, [1.0, 0.5 + 0.5 / 1.44, 1.0], rtol=1e-12)
    np.testing.assert_allclose(bounds.centred, [0.5 + 0.25 / 0.64, 0.5 + 0.25 / 1.44, 0.5 + 0.25 / 4], rtol=1e-12)
    np.testing.assert_allclose(bounds.per_sample, (2 * 0.5 / 9 + 0) / 2, rtol=1e-12)
    assert bounds.disagreement == 0
    np.testing.assert_allclose([bounds.best_plain, bounds.best_centred], [0.5 + 0.5 / 1.44, 0.5625], rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_and_are_ordered(seed):
    rng = np.random.default_rng(seed)
    bounds = margin_bounds(*_problem(rng, noise=rng.uniform(0.01, 1)))
    assert bounds.disagreement <= bounds.per_sample
    # Sums of the same numbers in another order.
    assert (bounds.per_sample <= bounds.centred + 1e-12).all()
    assert (bounds.centred <= bounds.plain + 1e-12).all()


def test_bounds_are_informative_where_the_error_is_small(rng):
    bounds = margin_bounds(*_problem(rng, noise=0.01))
    assert bounds.per_sample < bounds.best_centred < 0.9


def test_adding_a_constant_to_all_logits_moves_only_the_plain_bound(rng):
    dense, reduced = _problem(rng, noise=0.05)
    epsilons = np.geomspace(0.1, 10, 8)
    before, after = margin_bounds(dense, reduced, epsilons), margin_bounds(dense, reduced + 0.2, epsilons)
    # Centring is a subtraction in float64.
    np.testing.assert_allclose(after.centred, before.centred, rtol=1e-9)
    np.testing.assert_allclose(after.per_sample, before.per_sample, rtol=1e-9)
    assert (after.plain > before.plain).any()


def test_a_tie_of_the_dense_model_counts_as_a_disagreement():
    dense = np.array([[1.0, 1.0, 0.0]])
    assert margin_bounds(dense, dense).per_sample == 1.0


def test_equal_models_have_bounds_near_zero(rng):
    dense, _ = _problem(rng)
    bounds = margin_bounds(dense, dense)
    assert bounds.per_sample == 0
    assert bounds.best_centred <= 1 / 500


def test_the_grid_holds_a_nearly_best_epsilon(rng):
    dense, reduced = _problem(rng, noise=0.02)
    fine = margin_bounds(dense, reduced, np.geomspace(1e-4, 1e2, 4000))
    # Neighbours of a grid of 64 differ by some percent.
    assert margin_bounds(dense, reduced).best_centred <= 1.1 * fine.best_centred
    assert epsilon_grid(dense, reduced, 5).shape == (5,)


def test_certified_bounds_cover_the_population(rng):
    """The population is a large sample of the same law; all bounds hold in all but delta of the draws."""
    dense, reduced = _problem(rng, rows=100_000, noise=0.05)
    rate = margin_bounds(dense, reduced).disagreement
    tail = margin_bounds(dense, reduced).per_sample
    assert rate > 0
    for _ in range(10):
        rows = rng.choice(100_000, 2000, replace=False)
        found = certified_margins(dense[rows], reduced[rows], 0.01)
        assert min(found.plain, found.centred, found.per_sample) >= rate
        assert tail <= found.per_sample < 2 * tail


def test_certified_bounds_are_wider_than_estimates_and_choose_on_the_first_half(rng):
    dense, reduced = _problem(rng, rows=2000, noise=0.02)
    found = certified_margins(dense, reduced, 0.05)
    first, second = (margin_bounds(dense[half], reduced[half]) for half in (slice(1000), slice(1000, None)))
    assert found.centred_epsilon == first.epsilons[first.centred.argmin()]
    assert found.plain_epsilon == first.epsilons[first.plain.argmin()]
    assert second.best_centred < found.centred < 1
    assert found.per_sample < found.centred <= found.plain


def test_logits_without_a_margin_are_refused():
    with pytest.raises(ValueError, match="got 1 classes"):
        margin_bounds(np.ones((3, 1)), np.ones((3, 1)))


def test_epsilons_that_are_not_positive_are_refused():
    with pytest.raises(ValueError, match="expected positive numbers"):
        margin_bounds(np.eye(2), np.eye(2), np.array([0.0, 1.0]))


def test_one_row_cannot_be_split():
    with pytest.raises(ValueError, match="got 1 rows"):
        certified_margins(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), 0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["dense", "reduced"])
def test_a_row_that_is_not_finite_is_one_disagreement_in_every_bound(rng, side, value):
    dense, reduced = _problem(rng, rows=100, noise=0.01)
    epsilons = np.geomspace(0.05, 2, 8)
    rest = margin_bounds(dense[1:], reduced[1:], epsilons)
    {"dense": dense, "reduced": reduced}[side][0, 2] = value
    bounds = margin_bounds(dense, reduced, epsilons)
    of_all = lambda of_rest: (99 * of_rest + 1) / 100
    np.testing.assert_allclose(bounds.disagreement, of_all(rest.disagreement), rtol=1e-12)
    np.testing.assert_allclose(bounds.per_sample, of_all(rest.per_sample), rtol=1e-12)
    for name in ("plain", "centred"):
        unclipped = getattr(rest, name) < 1
        assert unclipped.any()
        np.testing.assert_allclose(getattr(bounds, name)[unclipped], of_all(getattr(rest, name))[unclipped], rtol=1e-12)


def test_a_network_of_nan_is_bounded_by_one_and_never_certified():
    dense = np.random.default_rng(0).standard_normal((400, 3))
    bounds, certified = margin_bounds(dense, dense * np.nan), certified_margins(dense, dense * np.nan, 0.05)
    assert bounds.disagreement == bounds.best_plain == bounds.best_centred == bounds.per_sample == 1
    assert certified.plain == certified.centred == 1
    assert certified.per_sample > 1 - 1e-5


def test_a_margin_of_exactly_twice_eps_is_within_it():
    dense, moved = np.array([[3.0, 1.0], [5.0, 1.0]]), np.array([[3.0, 1.0], [5.0, 1.0]])
    bounds = margin_bounds(dense, moved, np.array([0.5, 1.0, 2.0]))
    np.testing.assert_array_equal(bounds.plain, [0.0, 0.5, 1.0])
