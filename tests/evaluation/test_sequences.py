"""Confidence sequences: golden values, a slow oracle, coverage under peeking, and what is refused."""

from math import log

import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.evaluation.losses import weighted_losses
from abstraction.evaluation.sequences import (
    METHODS,
    confidence_sequence,
    crossing_times,
    fixed_radius,
    fixed_trials,
    hoeffding_radii,
    interval,
    log_capitals,
    upper_bound,
)

BETTING = ("betting", "betting-two-sided")
ONE_SIDED, TWO_SIDED = (-0.5, 0.0), (-0.5, 0.5)


def _oracle(losses, mean, low, high):
    """Run the recursion for one stream and one candidate, as it is printed."""
    capital, bet, energy, trace = 0.0, 0.0, 1.0, []
    for loss in losses:
        gain = 1 + bet * (loss - mean)
        capital += log(gain)
        gradient = (loss - mean) / gain
        energy += gradient**2
        bet = min(max(bet + 2 / (2 - log(3)) * gradient / energy, low), high)
        trace.append(capital)
    return np.array(trace)


def _streams(rng, trials=400):
    return np.stack([rng.random(trials) < 0.05, rng.random(trials) < 0.5, rng.beta(0.5, 2, trials)]).astype(float)


def _with_drift(rng):
    zeros, ones = np.zeros(200), np.ones(200)
    return np.concatenate([_streams(rng), [np.r_[zeros, ones], np.r_[ones, zeros], np.tile([0.0, 1.0], 200)]])


def test_hoeffding_radius_is_the_golden_one():
    np.testing.assert_allclose(hoeffding_radii(10_000, 0.05), 0.03362087, rtol=1e-7)
    np.testing.assert_allclose(hoeffding_radii(np.array([10_000]), 0.05, 2.0), [0.06724174], rtol=1e-7)


def test_fixed_sample_size_is_the_smallest_that_reaches_the_width():
    trials = fixed_trials(0.03, 0.05)
    assert fixed_radius(trials, 0.05) <= 0.03 < fixed_radius(trials - 1, 0.05)


@pytest.mark.parametrize("bets", [ONE_SIDED, TWO_SIDED, (0.0, 0.5), (-0.9, 0.0)])
def test_capitals_are_the_recursions(rng, bets):
    losses, means = _with_drift(rng), np.array([1e-6, 0.02, 0.3, 0.5, 0.97])
    expected = np.stack([[_oracle(row, mean, *bets) for mean in means] for row in losses])
    # Sums of 400 logs in another order of operations.
    np.testing.assert_allclose(log_capitals(losses, means, bets), expected.transpose(0, 2, 1), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bets", [ONE_SIDED, TWO_SIDED])
def test_crossing_times_are_where_the_oracle_first_reaches_the_level(rng, bets):
    losses, means = _with_drift(rng), np.array([1e-6, 0.02, 0.3, 0.55, 0.97])
    for row, times in zip(losses, crossing_times(losses, means, 20.0, bets), strict=True):
        reached = np.stack([_oracle(row, mean, *bets) >= log(20) for mean in means])
        expected = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 401)
        np.testing.assert_array_equal(times, expected)


def test_lower_capital_is_the_upper_capital_of_the_mirrored_stream(rng):
    losses, means = _streams(rng), np.array([0.05, 0.4])
    mirrored = log_capitals(1 - losses, 1 - means, (-0.5, 0.0))
    # Rounding of 1 - (1 - y) over 400 trials.
    np.testing.assert_allclose(log_capitals(losses, means, (0.0, 0.5)), mirrored, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "bets", "level"), [("betting", ONE_SIDED, 40), ("betting-two-sided", TWO_SIDED, 20)]
)
def test_ends_enclose_every_mean_the_oracle_keeps_and_little_more(rng, method, bets, level):
    losses = _streams(rng)
    bounds = confidence_sequence(losses, 0.05, method=method)
    fine = np.linspace(0, 1, 401)
    for row, lower, upper in zip(losses, bounds.lower, bounds.upper, strict=True):
        kept = np.stack([np.maximum.accumulate(_oracle(row, mean, *bets)) < log(level) for mean in fine])
        mirror = np.stack([np.maximum.accumulate(_oracle(1 - row, 1 - mean, *bets)) < log(level) for mean in fine])
        for trial in (0, 9, 99, 399):
            inside = fine[kept[:, trial] & mirror[:, trial]]
            assert lower[trial] <= inside.min()
            assert inside.max() <= upper[trial]
            # One step of the oracle's grid, and one percent of a distance below 1 from the mean.
            assert inside.min() - lower[trial] < 0.0025 + 0.01
            assert upper[trial] - inside.max() < 0.0025 + 0.01


@pytest.mark.parametrize("method", METHODS)
def test_running_intersections_only_narrow(rng, method):
    bounds = confidence_sequence(_with_drift(rng), 0.05, method=method)
    assert (np.diff(bounds.lower) >= 0).all()
    assert (np.diff(bounds.upper) <= 0).all()
    assert (bounds.radius[:3, -1] < bounds.radius[:3, 0]).all()


@pytest.mark.parametrize("method", BETTING)
def test_last_interval_is_the_end_of_the_sequence_up_to_rounding(rng, method):
    losses = _streams(rng)
    whole, last = confidence_sequence(losses, 0.05, method=method), interval(losses, 0.05, method=method)
    assert (whole.lower[:, -1] <= last.lower + 1e-5).all()
    assert (last.upper <= whole.upper[:, -1] + 1e-5).all()
    # Candidates of the whole sequence are about one percent of the distance apart.
    np.testing.assert_allclose(whole.radius[:, -1], last.radius, rtol=0.02)


@pytest.mark.parametrize("method", BETTING)
def test_last_interval_ends_where_the_capital_reaches_the_level(rng, method):
    losses = _streams(rng)
    last = interval(losses, 0.05, method=method)
    bets, level = (ONE_SIDED, 40) if method == "betting" else (TWO_SIDED, 20)
    for row, upper in zip(losses, last.upper, strict=True):
        assert _oracle(row, float(upper), *bets).max() >= log(level)
        assert _oracle(row, float(upper) - 2e-5, *bets).max() < log(level)


def test_last_hoeffding_interval_is_the_end_of_the_sequence(rng):
    losses = _streams(rng)
    whole, last = confidence_sequence(losses, 0.05, method="hoeffding"), interval(losses, 0.05, method="hoeffding")
    np.testing.assert_array_equal(last.upper, whole.upper[:, -1])
    np.testing.assert_array_equal(last.lower, whole.lower[:, -1])


@pytest.mark.parametrize("method", METHODS)
def test_intervals_of_losses_and_of_their_mirror_image_are_mirror_images(rng, method):
    losses = _streams(rng)
    there, back = (confidence_sequence(y, 0.05, method=method) for y in (losses, 1 - losses))
    # 1 - (1 - y) is not y to the last bit, and a candidate may fall on the other side of a lattice point by that.
    np.testing.assert_allclose(there.lower, 1 - back.upper, atol=1e-9)


@pytest.mark.parametrize("limit", [0.5, 0.9])
@pytest.mark.parametrize("method", BETTING)
def test_thousands_of_zeros_leave_room_above_zero(method, limit):
    last = interval(np.zeros(7000), 0.05, method=method, limit=limit)
    whole = confidence_sequence(np.zeros(7000), 0.05, method=method, limit=limit)
    assert 3.0e-4 <= last.upper <= whole.upper[-1] < 1.2e-3
    assert last.lower == whole.lower[-1] == 0


def test_zeros_end_where_the_largest_bet_ends(rng):
    """K ~ (1 + m/2)^n after the bet has reached its limit, so the end is near 2 (40^(1/n) - 1)."""
    # The first trials, before the bet is at its limit, cost a few percent.
    np.testing.assert_allclose(interval(np.zeros(10_000), 0.05).upper, 2 * (40 ** (1 / 10_000) - 1), rtol=0.03)


def test_all_ones_mirror_all_zeros():
    zeros, ones = interval(np.zeros(500), 0.05), interval(np.ones(500), 0.05)
    assert ones.upper == 1
    np.testing.assert_allclose(ones.lower, 1 - zeros.upper, atol=1e-12)


def test_one_trial_says_nothing():
    bounds = confidence_sequence(np.array([1.0]), 0.05)
    assert bounds.lower == 0
    assert bounds.upper == 1


def test_a_stream_that_no_mean_explains_has_an_empty_interval():
    bounds = interval(np.r_[np.zeros(3000), np.ones(3000)], 0.05)
    assert bounds.upper < bounds.lower


def test_bets_beat_hoeffding_and_two_sided_bets(rng):
    losses = (rng.random((5, 2000)) < 0.05).astype(float)
    betting, two_sided, hoeffding = (interval(losses, 0.05, method=method).radius for method in METHODS)
    assert (betting < hoeffding / 1.5).all()
    assert (two_sided < hoeffding / 1.5).all()


def test_streams_of_a_batch_do_not_meet(rng):
    losses = _streams(rng).reshape(3, 1, -1)
    batch = confidence_sequence(losses, 0.05)
    assert batch.lower.shape == losses.shape
    np.testing.assert_array_equal(batch.upper[1, 0], confidence_sequence(losses[1, 0], 0.05).upper)
    assert interval(losses, 0.05).lower.shape == (3, 1)


def test_float32_losses_are_bounded_in_float64(rng):
    losses = _streams(rng)[:2]
    bounds = interval(jnp.asarray(losses, jnp.float32), 0.05)
    assert bounds.upper.dtype == np.float64
    np.testing.assert_array_equal(bounds.upper, interval(losses, 0.05).upper)


def test_one_sided_bounds_are_the_ends_of_intervals_at_twice_the_delta(rng):
    losses = _streams(rng)
    # Either zooms in to 5e-6, and further where another stream of its batch needs more steps.
    np.testing.assert_allclose(upper_bound(losses, 0.025), interval(losses, 0.05).upper, atol=5e-6)


def _misses(generator, rate, reps, trials, delta, **options):
    losses = (generator.random((reps, trials)) < rate).astype(float)
    bounds = confidence_sequence(losses, delta, candidates=64, **options)
    return float(((bounds.lower[:, -1] > rate) | (bounds.upper[:, -1] < rate)).mean())


def _most(delta, reps):
    return delta + 3 * np.sqrt(delta * (1 - delta) / reps)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_misses_at_any_time_are_rarer_than_delta(rng, rate):
    """Running intersections miss at the end if they ever missed: this peeks after every trial."""
    for options in ({"method": "betting"}, {"method": "betting-two-sided"}, {"limit": 0.9}):
        misses = _misses(rng, rate, 200, 1000, 0.1, **options)
        assert misses <= _most(0.1, 200), options


@pytest.mark.parametrize(
    ("method", "bets", "level"), [("betting", ONE_SIDED, 20.0), ("betting-two-sided", TWO_SIDED, 10.0)]
)
def test_a_mean_that_no_bet_rejected_is_inside(rng, method, bets, level):
    """Also where what is left is narrower than the candidates are dense."""
    rates = rng.choice([0.02, 0.3225, 0.9], (400, 1))
    losses = (rng.random((400, 1500)) < rates).astype(float)
    kept = (crossing_times(losses, rates, level, bets) > 1500)[:, 0]
    kept &= (crossing_times(1 - losses, 1 - rates, level, bets) > 1500)[:, 0]
    assert 0.8 < kept.mean() < 1
    for bounds in (
        interval(losses, 0.1, method=method),
        confidence_sequence(losses, 0.1, method=method, candidates=64),
    ):
        lower, upper = bounds.lower.reshape(400, -1)[:, -1], bounds.upper.reshape(400, -1)[:, -1]
        assert (lower[kept] <= rates[kept, 0]).all()
        assert (rates[kept, 0] <= upper[kept]).all()


def test_intervals_that_are_too_narrow_would_be_caught(rng):
    """The same count for betting at a level of 2 exceeds what delta = 0.05 allows."""
    losses = (rng.random((200, 1000)) < 0.3).astype(float)
    rejected = crossing_times(losses, np.array([0.3]), 2.0, TWO_SIDED) <= 1000
    assert rejected.mean() > _most(0.05, 200)


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "trials"), [(1e-4, 10_000), (0.01, 2000), (0.1, 2000), (0.5, 2000)])
def test_misses_of_a_thousand_streams_are_rarer_than_delta(rng, rate, trials):
    for method in METHODS:
        assert _misses(rng, rate, 1000, trials, 0.05, method=method) <= _most(0.05, 1000), method


def test_weighted_losses_are_scaled_to_the_unit_interval():
    losses, weights = np.array([1.0, 0.0, 1.0]), np.array([1 / 0.7, 1.0, 0.7])
    np.testing.assert_allclose(weighted_losses(losses, weights, 1 / 0.7), [1.0, 0.0, 0.49], rtol=1e-12)


def test_weights_above_the_largest_are_refused():
    with pytest.raises(ValueError, match="w_max=1"):
        weighted_losses(np.ones(2), np.array([0.5, 1.5]), 1.0)


@pytest.mark.parametrize(
    ("losses", "delta", "options", "message"),
    [
        (np.array([0.5, 1.5]), 0.05, {}, "got losses 0.5 to 1.5"),
        (np.array([0.5, np.nan]), 0.05, {}, "got losses nan"),
        (np.zeros(0), 0.05, {}, "got losses none"),
        (np.zeros(3), 1.0, {}, "got delta 1.0"),
        (np.zeros(3), 0.05, {"method": "bernstein"}, "got method 'bernstein'"),
        (np.zeros(3), 0.05, {"limit": 1.5}, "limit 1.5"),
    ],
)
def test_impossible_arguments_are_refused(losses, delta, options, message):
    for function in (confidence_sequence, interval):
        with pytest.raises(ValueError, match=message):
            function(losses, delta, **options)


def test_an_interval_of_the_last_trial_alone_holds_the_sample_mean_and_the_running_one(rng):
    for rate in (0.0, 0.02, 0.4, 1.0):
        losses = (rng.random((6, 600)) < rate).astype(float)
        narrow, wide = interval(losses, 0.05), interval(losses, 0.05, running=False)
        assert ((wide.lower <= losses.mean(1)) & (losses.mean(1) <= wide.upper)).all()
        assert ((wide.lower <= narrow.lower + 1e-5) & (narrow.upper <= wide.upper + 1e-5)).all()  # found to 5e-6


def test_an_interval_of_the_last_trial_alone_is_where_the_capital_is_below_the_level_now(rng):
    losses = (rng.random(400) < 0.1).astype(float)
    upper = float(interval(losses, 0.1, running=False).upper)
    around = np.array([upper - 2e-5, upper + 2e-5])
    final = log_capitals(losses, around, (-0.5, 0.0))[-1]
    assert final[0] < np.log(2 / 0.1) <= final[1]


def test_weights_of_zero_and_of_the_largest_are_weights():
    np.testing.assert_array_equal(weighted_losses(np.ones(3), np.array([0.0, 2.0, 1.0]), 2.0), [0.0, 1.0, 0.5])


@pytest.mark.parametrize("weight", [-1e-12, -1.0, np.nan])
def test_weights_below_zero_are_refused(weight):
    """One in a thousand is enough: it would lower the mean, and the certificate with it."""
    weights = np.ones(1000)
    weights[7] = weight
    with pytest.raises(ValueError, match=r"got weights .*, expected values in \[0, w_max=2\.0\]"):
        weighted_losses(np.zeros(1000), weights, 2.0)
