"""Certificates: golden sample counts, CIF's rule against an oracle, error rates, paired comparisons."""

from math import log

import numpy as np
import pytest

from abstraction.evaluation.certification import (
    CERTIFIED,
    REFUTED,
    UNDECIDED,
    certify,
    compare_risks,
    paired_losses,
)
from abstraction.evaluation.losses import weighted_losses
from abstraction.evaluation.sequences import METHODS, confidence_sequence, hoeffding_radii

FIDELITIES = np.array([0.9, 0.95, 0.99])
W_MAX = 1 / 0.7


@pytest.mark.parametrize("method", ["betting", "betting-two-sided"])
@pytest.mark.parametrize(("w_max", "trials"), [(1.0, [64, 125, 613]), (W_MAX, [90, 177, 875])])
def test_a_stream_without_losses_certifies_at_the_golden_trials(method, w_max, trials):
    certificate = certify(np.zeros(1000), FIDELITIES, 0.05, w_max=w_max, method=method)
    np.testing.assert_array_equal(certificate.trials, trials)
    assert certificate.certified.all()


@pytest.mark.parametrize(("w_max", "trials"), [(1.0, [889, 4172, 10_000]), (W_MAX, [1976, 9156, 10_000])])
def test_hoeffding_certifies_at_the_golden_trials(w_max, trials):
    certificate = certify(np.zeros(12_000), FIDELITIES, 0.05, w_max=w_max, method="hoeffding")
    np.testing.assert_array_equal(certificate.trials, trials)
    np.testing.assert_array_equal(certificate.verdict, [CERTIFIED, CERTIFIED, UNDECIDED])


def _cif(losses, mean, delta):
    """Walk one stream by CIF's rule: verdict and trial."""
    capital, bet, energy, total = 0.0, 0.0, 1.0, 0.0
    for trial, loss in enumerate(losses, 1):
        gain = 1 + bet * (loss - mean)
        capital, gradient, total = capital + log(gain), (loss - mean) / gain, total + loss
        energy += gradient**2
        bet = min(max(bet + 2 / (2 - log(3)) * gradient / energy, -0.5), 0.5)
        if capital >= log(1 / delta):
            return (CERTIFIED, trial) if total / trial <= mean else (REFUTED, trial)
    return UNDECIDED, len(losses)


def test_two_sided_certificates_follow_the_rule_of_cif(rng):
    losses = (rng.random((12, 600)) < np.linspace(0, 0.3, 12)[:, None]).astype(float)
    certificate = certify(losses, FIDELITIES, 0.05, method="betting-two-sided")
    expected = np.array([[_cif(row, mean, 0.05) for mean in 1 - FIDELITIES] for row in losses])
    np.testing.assert_array_equal(certificate.verdict, expected[..., 0])
    np.testing.assert_array_equal(certificate.trials, expected[..., 1])
    assert {CERTIFIED, UNDECIDED, REFUTED} == set(certificate.verdict.ravel().tolist())


def test_evidence_of_the_wrong_side_does_not_certify():
    """After a hundred ones the capital is huge while the mean is high; CIF's rule waits for the mean."""
    certificate = certify(np.r_[np.ones(100), np.zeros(150)], np.array([0.5]), 0.05, method="betting-two-sided")
    assert certificate.verdict == REFUTED


@pytest.mark.parametrize("method", METHODS)
def test_verdicts_agree_with_the_confidence_sequence(rng, method):
    """A verdict needs no more trials than the two-sided interval at the same delta, and never contradicts it."""
    losses = (rng.random((20, 1500)) < rng.choice([0.02, 0.2], (20, 1))).astype(float)
    certificate = certify(losses, np.array([0.9]), 0.05, method=method)
    bounds = confidence_sequence(losses, 0.05, method=method)
    below, above = bounds.upper <= 0.1, bounds.lower > 0.1
    assert below.any()
    assert above.any()
    for row in range(20):
        verdict, trials = certificate.verdict[row, 0], certificate.trials[row, 0]
        decided = below[row] | above[row]
        assert not decided[: trials - 1].any()
        if decided.any():
            assert verdict == (CERTIFIED if below[row].any() else REFUTED)


def test_stronger_claims_take_more_trials(rng):
    losses = (rng.random((30, 4000)) < 0.005).astype(float)
    trials = certify(losses, FIDELITIES, 0.05).trials
    assert (np.diff(trials, axis=1) > 0).all()


def test_streams_and_thresholds_are_judged_apart(rng):
    losses = (rng.random((2, 3, 500)) < 0.05).astype(float)
    whole = certify(losses, FIDELITIES, 0.05)
    one = certify(losses[1, 2], FIDELITIES[1:2], 0.05)
    assert whole.verdict.shape == (2, 3, 3)
    assert whole.trials[1, 2, 1] == one.trials[0]


def test_trials_after_the_limit_are_not_looked_at():
    certificate = certify(np.zeros(1000), FIDELITIES, 0.05, n_max=124)
    np.testing.assert_array_equal(certificate.verdict, [CERTIFIED, UNDECIDED, UNDECIDED])
    np.testing.assert_array_equal(certificate.trials, [64, 124, 124])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_wrong_verdicts_are_rarer_than_delta(rng, method, risk):
    """At R = 1 - F0 exactly both verdicts are as likely as they get; each claim errs at most at delta."""
    delta, reps = 0.1, 400
    losses = (rng.random((reps, 1500)) < risk).astype(float)
    certificate = certify(losses, np.array([1 - risk]), delta, method=method)
    most = delta + 3 * np.sqrt(delta * (1 - delta) / reps)
    assert certificate.certified.mean() <= most
    assert certificate.refuted.mean() <= most


def test_a_false_claim_would_be_counted(rng):
    """The count above sees verdicts: five percent off the threshold most streams get one."""
    losses = (rng.random((100, 1500)) < 0.15).astype(float)
    assert certify(losses, np.array([0.8]), 0.1).certified.mean() > 0.5
    assert certify(losses, np.array([0.9]), 0.1).refuted.mean() > 0.5


def test_one_sided_bets_certify_at_least_as_often(rng):
    losses = (rng.random((200, 2000)) < 0.03).astype(float)
    one, two = (certify(losses, np.array([0.95]), 0.05, method=m).certified.mean() for m in METHODS[:2])
    assert one >= two > 0.5


def test_larger_bets_certify_flawless_streams_sooner():
    slow, fast = (certify(np.zeros(1000), FIDELITIES, 0.05, limit=limit).trials for limit in (0.5, 0.9))
    assert (fast < 0.7 * slow).all()


def test_weighted_losses_certify_at_the_scaled_threshold(rng):
    """Weights of mean one leave the verdict what it was."""
    losses, weights = (rng.random(5000) < 0.02).astype(float), rng.choice([0.6, 1.4], 5000)
    scaled = weighted_losses(losses, weights, W_MAX)
    certificate = certify(scaled, np.array([0.95, 0.99]), 0.05, w_max=W_MAX)
    np.testing.assert_array_equal(certificate.verdict, [CERTIFIED, REFUTED])


@pytest.mark.parametrize("method", METHODS)
def test_a_threshold_is_scaled_as_the_losses_are(method):
    """A risk of .4 in losses divided by 2: below 1 - .5, above 1 - .7, although .2 itself is below both."""
    certificate = certify(np.full(10_000, 0.2), np.array([0.5, 0.7]), 0.05, w_max=2.0, method=method)
    np.testing.assert_array_equal(certificate.verdict, [CERTIFIED, REFUTED])


def test_paired_losses_are_known():
    np.testing.assert_array_equal(paired_losses(np.array([1.0, 0, 1, 0]), np.array([0.0, 1, 1, 0])), [1, 0, 0.5, 0.5])


def test_paired_hoeffding_radius_is_twice_the_golden_one():
    """With R1 - R2 = 0 at every trial no running end is narrower than the last radius, 2 x 0.03362087."""
    comparison = compare_risks(np.ones(10_000), np.ones(10_000), 0.05, method="hoeffding")
    np.testing.assert_allclose(comparison.bounds.radius, 0.06724174, rtol=1e-7)
    assert not comparison.significant


@pytest.mark.parametrize("method", METHODS)
def test_only_differences_away_from_zero_are_significant(rng, method):
    uniform = rng.random((3, 4000))
    first = (uniform < np.array([[0.4], [0.3], [0.3]])).astype(float)
    second = (uniform < np.array([[0.2], [0.5], [0.3]])).astype(float)
    comparison = compare_risks(first, second, 0.05, method=method)
    np.testing.assert_allclose(comparison.difference, first.mean(axis=1) - second.mean(axis=1), atol=1e-12)
    np.testing.assert_array_equal(comparison.significant, [True, True, False])
    assert (comparison.bounds.lower <= comparison.difference).all()
    assert (comparison.difference <= comparison.bounds.upper).all()


def test_swapping_the_models_flips_the_difference(rng):
    first, second = (rng.random((2, 1000)) < np.array([[0.4], [0.3]])).astype(float)
    there, back = compare_risks(first, second, 0.05), compare_risks(second, first, 0.05)
    # Candidates are found from the stream's mean, whose mirror image is rounded apart from it.
    np.testing.assert_allclose(there.bounds.lower, -back.bounds.upper, atol=1e-9)


def test_betting_profits_from_trials_on_which_models_agree(rng):
    rare = (rng.random(4000) < 0.02).astype(float)
    betting = compare_risks(rare, np.zeros(4000), 0.05)
    hoeffding = compare_risks(rare, np.zeros(4000), 0.05, method="hoeffding")
    assert betting.significant
    assert not hoeffding.significant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": np.array([1.0])}, "expected fidelities"),
        ({"w_max": 0.5}, "got w_max 0.5"),
        ({"n_max": 0}, "got n_max 0"),
        ({"method": "wald"}, "got method 'wald'"),
        ({"limit": 0.0}, "limit 0.0"),
        ({"delta": 0.0}, "got delta 0.0"),
        ({"losses": np.array([2.0])}, "got losses 2.0"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    arguments = {"losses": np.zeros(3), "thresholds": FIDELITIES, "delta": 0.05, **options}
    with pytest.raises(ValueError, match=message):
        certify(**arguments)


@pytest.mark.parametrize("method", METHODS)
def test_a_verdict_on_the_last_trial_counts(method):
    """One trial fewer and there is none: trials are compared with how many there are, and the last is one of them."""
    needed = int(certify(np.zeros(5000), np.array([0.9]), 0.05, method=method).trials[0])
    enough, short = (certify(np.zeros(count), np.array([0.9]), 0.05, method=method) for count in (needed, needed - 1))
    assert (enough.verdict[0], enough.trials[0]) == (CERTIFIED, needed)
    assert (short.verdict[0], short.trials[0]) == (UNDECIDED, needed - 1)
    limited = certify(np.zeros(5000), np.array([0.9]), 0.05, method=method, n_max=needed)
    assert limited.verdict[0] == CERTIFIED


def test_a_capital_of_exactly_the_level_rejects():
    """Against m = 1/2 the bet after one flawless trial is -1/2, so two make 1 + 1/4."""
    for method in ("betting", "betting-two-sided"):
        certificate = certify(np.zeros(2), np.array([0.5]), 0.8, method=method)
        assert (certificate.verdict[0], certificate.trials[0]) == (CERTIFIED, 2), method
    refuted = certify(np.ones(2), np.array([0.5]), 0.8)
    assert (refuted.verdict[0], refuted.trials[0]) == (REFUTED, 2)


def test_a_running_mean_of_exactly_the_risk_certifies():
    """R <= 1 - F0 includes equality: in this stream the capital passes 1.5 first where the mean comes back to 1/2."""
    losses = np.array([1, 0.75, 1, 0.375, 0.25, 0.375, 0.125, 0.125])
    certificate = certify(losses, np.array([0.5]), 1 / 1.5, method="betting-two-sided")
    assert losses.mean() == 0.5
    assert (certificate.verdict[0], certificate.trials[0]) == (CERTIFIED, 8)


@pytest.mark.parametrize("trials", [8, 12])
def test_hoeffding_certifies_at_equality_and_refutes_beyond_it(trials):
    radius = float(hoeffding_radii(trials, 0.2))
    assert 0.5 < radius < 1, "in this range 1 - radius is exact"
    certificate = certify(np.zeros(50), np.array([1 - radius]), 0.2, method="hoeffding")
    assert (certificate.verdict[0], certificate.trials[0]) == (CERTIFIED, trials)
    refuted = certify(np.ones(50), np.array([radius]), 0.2, method="hoeffding")
    assert (refuted.verdict[0], refuted.trials[0]) == (REFUTED, trials + 1)


def test_losses_that_are_all_one_are_never_certified():
    """What a network of NaN is given: 1 in every trial."""
    for method in METHODS:
        assert not certify(np.ones(3000), FIDELITIES, 0.05, method=method).certified.any()
