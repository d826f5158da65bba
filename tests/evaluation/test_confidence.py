"""Intervals: known values, coverage, and what is refused."""

import numpy as np
import pytest
from scipy import stats

from abstraction.evaluation import binomial_interval, mean_interval
from abstraction.evaluation.confidence import standard_error


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (3, 10), (997, 1000), (1, 1)])
def test_binomial_intervals_are_scipys_exact_ones(hits, trials):
    expected = stats.binomtest(hits, trials).proportion_ci(method="exact")
    np.testing.assert_allclose(binomial_interval(hits, trials), expected, rtol=1e-9, atol=1e-12)


def test_no_trials_say_nothing():
    assert [float(bound) for bound in binomial_interval(0, 0)] == [0.0, 1.0]


@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_binomial_intervals_cover_at_least_their_level(rate):
    trials = 200
    hits = np.arange(trials + 1)
    low, high = binomial_interval(hits, np.full(trials + 1, trials))
    covered = stats.binom.pmf(hits, trials, rate)[(low <= rate) & (rate <= high)].sum()
    assert 0.95 <= covered < 0.99


def test_mean_intervals_are_scipys_t_intervals(rng):
    values = rng.standard_normal(7)
    expected = stats.t.interval(0.95, 6, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), expected, rtol=1e-9)


def test_one_run_has_no_interval():
    assert mean_interval(np.array([1.0])) == (-np.inf, np.inf)


@pytest.mark.parametrize(("hits", "trials", "level"), [(5, 4, 0.95), (-1, 4, 0.95), (1, 4, 1.0)])
def test_impossible_counts_are_refused(hits, trials, level):
    with pytest.raises(ValueError, match="expected 0 <= hits <= trials"):
        binomial_interval(hits, trials, level)


@pytest.mark.parametrize(("hits", "trials"), [(0, 0), (0, 12), (7, 12), (12, 12)])
def test_a_standard_error_is_the_deviation_of_a_beta(hits, trials):
    np.testing.assert_allclose(standard_error(hits, trials), stats.beta(hits + 1, trials - hits + 1).std(), rtol=1e-12)
