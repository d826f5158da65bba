"""Losses, weights, levels and counts out of range, in every way into a certificate; a new way joins by a row."""

import numpy as np
import pytest
from refusals import Refusal, check_refusal

from abstraction.evaluation import accuracy, binomial_interval, certify, confidence_sequence, mean_interval
from abstraction.evaluation.certification import compare_risks, paired_losses
from abstraction.evaluation.losses import weighted_losses
from abstraction.evaluation.margins import certified_margins, epsilon_grid, margin_bounds
from abstraction.evaluation.metrics import balanced_accuracy
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
from abstraction.evaluation.sequences import (
    crossing_times,
    fixed_radius,
    fixed_trials,
    hoeffding_radii,
    interval,
    log_capitals,
    upper_bound,
)

NAN, INF = np.nan, np.inf
ZEROS, HALF, F0 = np.zeros(4), np.full(4, 0.5), np.array([0.9])
SWAPS, MASKS = np.array([0.2, 0.5, 0.3]), np.eye(3, dtype=bool)
LOGITS = np.random.default_rng(0).standard_normal((6, 3))


def _generator():
    return np.random.default_rng(0)


def _certify(losses=ZEROS, thresholds=F0, delta=0.05, **options):
    return certify(losses, thresholds, delta, **options)


def _weighted(losses=HALF, weights=HALF, w_max=2.0):
    return weighted_losses(losses, weights, w_max)


def _stream(evaluate=lambda masks: masks[:, 0] * 1.0, trials=5, **options):
    return adaptive_stream(_generator(), evaluate, Sampling(**{"units": 3, "probability": 0.3, **options}), trials)


def _crossing(losses=ZEROS, means=HALF, level=20.0, bets=(-0.5, 0.0)):
    return crossing_times(losses, means, level, bets)


BAD_LOSSES = {
    "above 1": np.array([0.0, 1.98]),
    "below 0": np.array([0.0, -0.1]),
    "NaN": np.array([0.0, NAN]),
    "inf": np.array([0.0, INF]),
    "none": np.zeros(0),
    "a scalar": np.float64(0.5),
    "words": np.array(["0.5"]),
}
WAYS = {
    "certify": _certify,
    "confidence sequence": lambda losses: confidence_sequence(losses, 0.05),
    "interval": lambda losses: interval(losses, 0.05, method="hoeffding"),
    "upper bound": lambda losses: upper_bound(losses, 0.05),
    "compared, first": lambda losses: compare_risks(losses, np.zeros(2), 0.05),
    "compared, second": lambda losses: compare_risks(np.zeros(2), losses, 0.05),
    "paired": lambda losses: paired_losses(losses, np.zeros(2)),
    "weighted": lambda losses: weighted_losses(losses, np.ones(2), 2.0),
    "crossing": _crossing,
    "capitals": lambda losses: log_capitals(losses, HALF, (-0.5, 0.5)),
}
LOSSES = [
    Refusal(f"{way}: losses that are {kind}", lambda call=call, losses=losses: call(losses), "got losses")
    for way, call in WAYS.items()
    for kind, losses in BAD_LOSSES.items()
]

DELTAS = [
    Refusal(f"{way}: delta {delta}", lambda call=call, delta=delta: call(delta), "got delta")
    for way, call in {
        "certify": lambda delta: _certify(delta=delta),
        "confidence sequence": lambda delta: confidence_sequence(ZEROS, delta),
        "interval": lambda delta: interval(ZEROS, delta),
        "upper bound": lambda delta: upper_bound(ZEROS, delta),
        "compared": lambda delta: compare_risks(ZEROS, ZEROS, delta),
        "hoeffding": lambda delta: hoeffding_radii(10, delta),
        "fixed radius": lambda delta: fixed_radius(10, delta),
        "fixed trials": lambda delta: fixed_trials(0.1, delta),
        "margins": lambda delta: certified_margins(LOGITS, LOGITS, delta),
    }.items()
    for delta in (0.0, 1.0, 2.0, -0.1, NAN)
]

CERTIFICATES = [
    Refusal("a fidelity of 1", lambda: _certify(thresholds=np.array([1.0])), "got thresholds"),
    Refusal("a fidelity that is NaN", lambda: _certify(thresholds=np.array([0.9, NAN])), "got thresholds"),
    Refusal("no fidelity", lambda: _certify(thresholds=np.zeros(0)), "got thresholds"),
    Refusal("fidelities in two axes", lambda: _certify(thresholds=F0[None]), "got thresholds"),
    Refusal("w_max below 1", lambda: _certify(w_max=0.99), "got w_max 0.99"),
    Refusal("w_max that is NaN", lambda: _certify(w_max=NAN), "got w_max nan"),
    Refusal("w_max that is infinite", lambda: _certify(w_max=INF), "got w_max inf"),
    Refusal("no trials", lambda: _certify(n_max=0), "got n_max 0"),
    Refusal("half a trial", lambda: _certify(n_max=1.5), "got n_max 1.5"),
    Refusal("a method that is none", lambda: _certify(method="bet"), "got method 'bet'"),
    Refusal("a limit above 1", lambda: _certify(limit=1.01), "limit 1.01"),
    Refusal("a limit that is NaN", lambda: _certify(limit=NAN), "limit nan"),
    Refusal("ten trials against one", lambda: compare_risks(np.ones(10), np.zeros(1), 0.05), "the same trials of both"),
    Refusal("ten streams against one", lambda: paired_losses(np.ones((10, 4)), np.zeros((1, 4))), "the same trials"),
    Refusal("a comparison by no method", lambda: compare_risks(ZEROS, ZEROS, 0.05, method="t"), "got method 't'"),
    Refusal("no candidates", lambda: confidence_sequence(ZEROS, 0.05, candidates=0), "got 0 candidates"),
    Refusal("negative candidates", lambda: confidence_sequence(ZEROS, 0.05, candidates=-3), "got -3 candidates"),
    Refusal("a radius of no trials", lambda: hoeffding_radii(0, 0.05), "got trials 0"),
    Refusal("radii of no trials", lambda: hoeffding_radii(np.zeros(0, int), 0.05), "expected n >= 1"),
    Refusal("a scale of 0", lambda: hoeffding_radii(1, 0.05, 0.0), "scale 0.0"),
    Refusal("a fixed radius of no trials", lambda: fixed_radius(0, 0.05), "got 0 trials"),
    Refusal("a width of 0", lambda: fixed_trials(0.0, 0.05), "got half width 0.0"),
    Refusal("a width that is NaN", lambda: fixed_trials(NAN, 0.05), "got half width nan"),
    Refusal("a mean above 1", lambda: _crossing(means=np.array([1.5])), "got means"),
    Refusal("no means", lambda: _crossing(means=np.zeros(0)), "got means"),
    Refusal("means of other streams", lambda: _crossing(np.zeros((3, 4)), np.full((2, 5), 0.5)), "got means of shape"),
    Refusal("a level that is there at once", lambda: _crossing(level=1.0), "level 1.0"),
    Refusal("bets of more than there is", lambda: _crossing(bets=(-1.5, 0.0)), "got bets"),
    Refusal("bets the wrong way round", lambda: _crossing(bets=(0.5, -0.5)), "got bets"),
]

WEIGHTS = [
    Refusal("a negative weight", lambda: _weighted(weights=np.array([0.5, -0.1, 1, 1])), r"got weights -0\.1"),
    Refusal("a weight that is NaN", lambda: _weighted(weights=np.array([0.5, NAN, 1, 1])), "got weights nan"),
    Refusal("a weight above the largest", lambda: _weighted(weights=np.array([0.5, 2.1, 1, 1])), "got weights"),
    Refusal("an infinite weight", lambda: _weighted(weights=np.array([0.5, INF, 1, 1])), "got weights"),
    Refusal("one weight for all", lambda: _weighted(weights=np.ones(1)), "one for each loss"),
    Refusal("a largest weight below 1", lambda: _weighted(weights=HALF, w_max=0.5), "got w_max 0.5"),
    Refusal("a largest weight that is NaN", lambda: _weighted(w_max=NAN), "got w_max nan"),
    Refusal("an infinite largest weight", lambda: _weighted(w_max=INF), "got w_max inf"),
    Refusal("alpha of 1", lambda: largest_weight(1.0), "got alpha 1.0"),
    Refusal("alpha that is NaN", lambda: largest_weight(NAN), "got alpha nan"),
    Refusal("masks over other units", lambda: mixture_weights(MASKS[:, :2], SWAPS, 0.3), "masks over 2 units"),
    Refusal("masks in numbers", lambda: mixture_weights(MASKS * 2.0, SWAPS, 0.3), "expected truth values"),
    Refusal("a swap of 0", lambda: mixture_weights(MASKS, np.array([0.0, 0.5, 0.5]), 0.3), "got swaps"),
    Refusal("a swap that is NaN", lambda: mixture_weights(MASKS, np.array([NAN, 0.5, 0.5]), 0.3), "got swaps"),
    Refusal("a target of 1", lambda: mixture_weights(MASKS, SWAPS, 1.0), "got probability 1.0"),
    Refusal("negative alpha", lambda: mixture_weights(MASKS, SWAPS, 0.3, -0.1), "got alpha -0.1"),
    Refusal("masks of a target of 2", lambda: mixture_masks(_generator(), SWAPS, 2.0, 5), "got probability 2.0"),
    Refusal("no masks", lambda: mixture_masks(_generator(), SWAPS, 0.3, 0), "got 0 trials"),
    Refusal("masks of negative alpha", lambda: mixture_masks(_generator(), SWAPS, 0.3, 5, -1.0), "got alpha -1.0"),
    Refusal("a negative score", lambda: proposal(np.array([1.0, -1.0]), 0.3), "expected scores >= 0"),
    Refusal("a score that is NaN", lambda: proposal(np.array([1.0, NAN]), 0.3), "expected scores >= 0"),
    Refusal("no scores", lambda: proposal(np.zeros(0), 0.3), "got scores of shape"),
    Refusal("a proposal for nothing", lambda: proposal(SWAPS, 0.0), "got probability 0.0"),
    Refusal("more than every unit", lambda: water_filled(SWAPS, 4.0), "a total in"),
    Refusal("a total that is NaN", lambda: water_filled(SWAPS, NAN), "a total in"),
    Refusal("failures of other trials", lambda: failure_rates(MASKS, np.zeros(2)), "one for each of 3 masks"),
    Refusal("failures above 1", lambda: failure_rates(MASKS, np.array([0, 2.0, 0])), "got losses"),
    Refusal("a stream of losses above 1", lambda: _stream(lambda masks: np.full(len(masks), 1.98)), "got losses"),
    Refusal("a stream of NaN", lambda: _stream(lambda masks: np.full(len(masks), NAN)), "got losses nan"),
    Refusal("a stream of one loss", lambda: _stream(lambda masks: np.zeros(1)), "one for each of 5 masks"),
    Refusal("a stream of no trials", lambda: _stream(trials=0), "got 0 trials"),
    Refusal("a stream of no units", lambda: _stream(units=0), "got 0 units"),
    Refusal("a stream of half a unit", lambda: _stream(units=2.5), "got 2.5 units"),
    Refusal("a stream of an empty block", lambda: _stream(block=0), "got 0 trials in a block"),
    Refusal("a stream of alpha 1", lambda: _stream(alpha=1.0), "got alpha 1.0"),
    Refusal("a stream of a sure target", lambda: _stream(probability=1.0), "got probability 1.0"),
    Refusal("a stream with scores of others", lambda: _stream(scores=np.ones(2)), "got scores of shape"),
    Refusal("a stream with a negative score", lambda: _stream(scores=np.array([1.0, 1, -1])), "scores >= 0"),
]

MARGINS = [
    Refusal("one row against six", lambda: margin_bounds(LOGITS, LOGITS[:1]), "the same rows and classes"),
    Refusal("fewer classes", lambda: margin_bounds(LOGITS, LOGITS[:, :2]), "the same rows and classes"),
    Refusal("no rows", lambda: margin_bounds(LOGITS[:0], LOGITS[:0]), "at least one row"),
    Refusal("one class", lambda: margin_bounds(LOGITS[:, :1], LOGITS[:, :1]), "got 1 classes"),
    Refusal("logits in one axis", lambda: margin_bounds(LOGITS[0], LOGITS[0]), "at least one row"),
    Refusal("an eps of 0", lambda: margin_bounds(LOGITS, LOGITS, np.array([0.0])), "got epsilons"),
    Refusal("an eps that is NaN", lambda: margin_bounds(LOGITS, LOGITS, np.array([1.0, NAN])), "got epsilons"),
    Refusal("an infinite eps", lambda: margin_bounds(LOGITS, LOGITS, np.array([INF])), "got epsilons"),
    Refusal("no eps", lambda: margin_bounds(LOGITS, LOGITS, np.zeros(0)), "got epsilons"),
    Refusal("a grid of none", lambda: epsilon_grid(LOGITS, LOGITS, 0), "got a grid of 0"),
    Refusal("one row to certify", lambda: certified_margins(LOGITS[:1], LOGITS[:1], 0.05), "got 1 rows"),
    Refusal("rows of one model only", lambda: certified_margins(LOGITS, LOGITS[:4], 0.05), "the same rows"),
]

RATES = [
    Refusal("more hits than trials", lambda: binomial_interval(5, 4), "0 <= hits <= trials"),
    Refusal("negative hits", lambda: binomial_interval(-1, 4), "0 <= hits <= trials"),
    Refusal("hits that are NaN", lambda: binomial_interval(NAN, 4), "0 <= hits <= trials"),
    Refusal("trials that are NaN", lambda: binomial_interval(np.zeros(2), np.array([1.0, NAN])), "0 <= hits <= trials"),
    Refusal("endless trials", lambda: binomial_interval(1, INF), "0 <= hits <= trials"),
    Refusal("a level of 1", lambda: binomial_interval(1, 4, 1.0), "0 < level < 1"),
    Refusal("a level that is NaN", lambda: binomial_interval(1, 4, NAN), "0 < level < 1"),
    Refusal("a level of 95", lambda: mean_interval(ZEROS, 95), "0 < level < 1"),
    Refusal("values in two axes", lambda: mean_interval(np.zeros((2, 2))), "got values of shape"),
    Refusal("ten predictions of one label", lambda: accuracy(np.zeros(10, int), np.zeros(1, int)), "one prediction"),
    Refusal("no predictions", lambda: accuracy(np.zeros(0, int), np.zeros(0, int)), "at least one"),
    Refusal("labels that are NaN", lambda: accuracy(np.zeros(2, int), np.array([0, NAN])), "got labels of type"),
    Refusal("one prediction for all", lambda: balanced_accuracy(np.zeros(1, int), np.zeros(4, int)), "one prediction"),
    Refusal("classes that are NaN", lambda: balanced_accuracy(np.zeros(2, int), np.full(2, NAN)), "got labels of type"),
    Refusal("no classes", lambda: balanced_accuracy(np.zeros(0, int), np.zeros(0, int)), "at least one"),
]

ROWS = [
    pytest.param(row, id=f"{table}: {row.name}")
    for table, rows in (
        ("losses", LOSSES),
        ("level", DELTAS),
        ("certificate", CERTIFICATES),
        ("weights", WEIGHTS),
        ("margins", MARGINS),
        ("rates", RATES),
    )
    for row in rows
]


@pytest.mark.parametrize("row", ROWS)
def test_what_is_out_of_range_is_refused(row, unchecked):
    check_refusal(row)
