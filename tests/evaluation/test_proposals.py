"""Adaptive sampling: proposals sum to the budget, weights are right, weighted streams still certify."""

from itertools import product

import numpy as np
import pytest

from abstraction.evaluation.proposals import (
    Sampling,
    adaptive_stream,
    failure_rates,
    largest_weight,
    mixture_masks,
    mixture_weights,
    proposal,
    water_filled,
)
from abstraction.evaluation.sequences import interval


@pytest.mark.parametrize(
    ("scores", "total", "expected"),
    [
        ([1.0, 1.0, 2.0], 2.0, [0.5, 0.5, 1.0]),
        ([100.0, 1.0, 1.0], 1.5, [1.0, 0.25, 0.25]),
        ([3.0, 1.0, 0.0, 0.0], 3.0, [1.0, 1.0, 0.5, 0.5]),
        ([0.0, 0.0], 1.0, [0.5, 0.5]),
        ([2.0, 5.0], 2.0, [1.0, 1.0]),
        ([2.0, 5.0], 0.0, [0.0, 0.0]),
    ],
)
def test_water_is_filled_as_by_hand(scores, total, expected):
    np.testing.assert_allclose(water_filled(np.array(scores), total), expected, atol=1e-15)


@pytest.mark.parametrize("seed", range(20))
def test_water_fills_to_the_total_under_the_cap_in_proportion(seed):
    rng = np.random.default_rng(seed)
    scores, total = rng.lognormal(0, 2, 50), rng.uniform(0, 50)
    filled = water_filled(scores, total)
    np.testing.assert_allclose(filled.sum(), total, rtol=1e-12)
    assert filled.min() >= 0
    assert filled.max() <= 1
    below = filled < 1
    assert scores[~below].min(initial=np.inf) >= scores[below].max(initial=0)
    ratios = filled[below] / scores[below]
    np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)), rtol=1e-12)


def test_proposals_keep_every_mask_possible():
    swaps = proposal(np.array([1e9, 1.0, 0.0]), 0.5)
    assert 0 < swaps.min() < 2e-6
    assert 1 - 2e-6 < swaps.max() < 1


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_weights_are_ratios_of_the_laws_and_average_to_one(rng, alpha, probability):
    """Over all 64 masks of six units, against products of probabilities."""
    swaps = proposal(rng.lognormal(0, 1, 6), probability)
    masks = np.array(list(product([False, True], repeat=6)))
    target = np.where(masks, probability, 1 - probability).prod(axis=1)
    mixture = (1 - alpha) * target + alpha * np.where(masks, swaps, 1 - swaps).prod(axis=1)
    weights = mixture_weights(masks, swaps, probability, alpha)
    np.testing.assert_allclose(weights, target / mixture, rtol=1e-10)
    np.testing.assert_allclose(mixture @ weights, 1, rtol=1e-10)
    assert weights.max() <= largest_weight(alpha)


def test_weights_of_many_units_neither_overflow_nor_pass_the_largest():
    swaps = proposal(np.r_[np.ones(2000), np.zeros(2000)], 0.5)
    masks = np.stack(
        [np.r_[np.zeros(2000, bool), np.ones(2000, bool)], np.r_[np.ones(2000, bool), np.zeros(2000, bool)]]
    )
    np.testing.assert_allclose(mixture_weights(masks, swaps, 0.5), [1 / 0.7, 0.0], atol=1e-12)


def test_masks_are_drawn_from_the_mixture(rng):
    swaps = np.array([0.9, 0.1, 0.5])
    masks = mixture_masks(rng, swaps, 0.2, 20_000, 0.3)
    # Five standard errors of a rate over 20,000 draws.
    np.testing.assert_allclose(masks.mean(axis=0), 0.7 * 0.2 + 0.3 * swaps, atol=5 * 0.5 / np.sqrt(20_000))
    joint = (masks[:, 0] & masks[:, 1]).mean()
    np.testing.assert_allclose(joint, 0.7 * 0.04 + 0.3 * 0.09, atol=5 * 0.5 / np.sqrt(20_000))


def test_failure_rates_are_posterior_means():
    masks = np.array([[True, False], [True, True], [True, False]])
    np.testing.assert_allclose(failure_rates(masks, np.array([1.0, 1.0, 0.0])), [3 / 5, 2 / 3], rtol=1e-12)


def test_units_never_swapped_have_the_prior_rate():
    np.testing.assert_array_equal(failure_rates(np.zeros((0, 3), bool), np.zeros(0)), [0.5, 0.5, 0.5])


def _fails(masks):
    """Fail where the first unit is swapped: R = p."""
    return masks[:, 0].astype(float)


@pytest.mark.parametrize("scores", [None, np.array([5.0, 1, 1, 1, 1, 1])], ids=["history", "static"])
def test_weighted_streams_estimate_the_risk_of_the_target(rng, scores):
    stream = adaptive_stream(rng, _fails, Sampling(6, 0.1, scores), 4050)
    assert stream.masks.shape == (4050, 6)
    assert stream.masks[:, 0].mean() > 0.12, "failures are drawn more often"
    assert 0 <= stream.scaled.min() <= stream.scaled.max() <= 1
    bounds = interval(stream.scaled, 0.001)
    assert bounds.lower * largest_weight(0.3) < 0.1 < bounds.upper * largest_weight(0.3)
    # Five standard errors of a mean of losses of variance below p (1 - p).
    np.testing.assert_allclose((stream.weights * stream.losses).mean(), 0.1, atol=5 * 0.3 / np.sqrt(4050))


def test_history_finds_the_unit_that_fails(rng):
    stream = adaptive_stream(rng, _fails, Sampling(6, 0.1), 3000)
    swaps = proposal(failure_rates(stream.masks, stream.losses), 0.1)
    assert swaps[0] == swaps.max() > 2 * swaps[1:].max()


def test_history_of_a_block_is_blind_to_the_block(rng):
    """The first block meets the prior: its weights are those of the uniform proposal, which is the target."""
    stream = adaptive_stream(rng, _fails, Sampling(6, 0.1, block=100), 250)
    np.testing.assert_allclose(stream.weights[:100], 1, rtol=1e-12)
    assert np.ptp(stream.weights[100:]) > 0


def test_scores_that_are_not_scores_are_refused():
    with pytest.raises(ValueError, match="expected scores >= 0"):
        water_filled(np.array([1.0, -1.0]), 1.0)
    with pytest.raises(ValueError, match="a total in"):
        water_filled(np.ones(2), 3.0)


def test_shares_that_leave_no_target_are_refused():
    with pytest.raises(ValueError, match=r"got alpha 1\.0"):
        largest_weight(1.0)


def test_impossible_targets_are_refused():
    with pytest.raises(ValueError, match=r"got probability 0\.0"):
        mixture_weights(np.zeros((1, 2), bool), np.array([0.5, 0.5]), 0.0)
