"""Controls: what they keep of a handle and what they destroy."""

import dataclasses

import jax
import numpy as np
import pytest

from abstraction.causal import causal_model, concatenate_banks, label_pairs
from abstraction.causal.pairs import restrict
from abstraction.evaluation import Repeats, full_state_handles, identity_handle, record
from abstraction.evaluation.controls import chance_level, random_subspaces, shuffled_order, without_idle_features
from abstraction.evaluation.judging import judge_alone, judge_controls
from abstraction.interventions import Handle
from abstraction.interventions.handles import stack_handles, take_handle
from abstraction.interventions.patching import patched_outputs
from abstraction.models import MLP, Network

COPY = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
MODEL = MLP(2, 4, 2, 4)


@pytest.fixture(scope="module", name="setup")
def _setup():
    a, b, c, d = np.random.default_rng(0).integers(0, 2, (4, 60))
    bank = label_pairs(COPY, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role="test")
    network = Network(MODEL, MODEL.init(jax.random.key(0)))
    encode = lambda setting: np.stack([setting["a"], setting["b"]], -1).astype(np.float32)
    return network, record(network, encode, bank, tap="hidden")


def test_the_identity_handle_changes_nothing(setup):
    network, recorded = setup
    patched = patched_outputs(network, recorded.runs, identity_handle(MODEL.taps["hidden"]))
    # another program than the recording's: float32 sums
    np.testing.assert_allclose(patched, recorded.runs.outputs, rtol=1e-5, atol=1e-6)


def test_a_full_state_handle_gives_the_source_outputs(setup):
    network, recorded = setup
    states = recorded.runs.source["hidden"]
    every = full_state_handles(MODEL.taps["hidden"])
    source = network.resume("hidden", jax.numpy.int32(0), states[0], inputs=recorded.runs.inputs, states=states)
    for depth in range(2):
        patched = patched_outputs(network, recorded.runs, take_handle(every, depth))
        np.testing.assert_allclose(patched, source, rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("local", [True, False])
def test_random_subspaces_keep_the_weights_and_draw_orthonormal_directions(local):
    weight = np.array([1.0, 0.5, 0.0, 0.0], np.float32)
    handle = Handle("hidden", weight, None, np.array(1)) if local else Handle("hidden", np.stack([weight, 0 * weight]))
    drawn = random_subspaces(jax.random.key(0), handle, 4, 6)
    np.testing.assert_array_equal(drawn.weight, np.broadcast_to(handle.weight, (6, *handle.weight.shape)))
    gram = np.asarray(drawn.basis.decoder) @ np.asarray(drawn.basis.encoder)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-5)
    assert len(np.unique(np.asarray(drawn.basis.encoder).round(5), axis=0)) == 6


def test_features_that_no_handle_moves_are_left_out_of_random_subspaces():
    """Of 100 features, those of two handles among them, 32 stay; where 34 are moved, 100 are fewer than 128."""
    weight = np.zeros((2, 100), np.float32)
    weight[0, 90], weight[1, [90, 3]] = 1.0, (0.5, 2.0)
    moved = without_idle_features(Handle("hidden", weight, None, np.zeros(2, np.int32)))
    assert moved.weight.shape == (2, 32)
    np.testing.assert_array_equal(np.sort(moved.weight)[:, -2:], [[0.0, 1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(moved.weight[:, [3, 31]], [[0.0, 1.0], [2.0, 0.5]])  # in the order of the features
    drawn = random_subspaces(jax.random.key(0), take_handle(moved, 1), 100, 6)
    assert drawn.basis.encoder.shape == (6, 100, 32)
    weight[0, 50:83] = 1.0
    assert without_idle_features(Handle("hidden", weight)).weight.shape == (2, 100)
    assert without_idle_features(Handle("hidden", np.zeros((2, 3, 4)))).weight.shape == (2, 3, 4)


def test_shuffling_stays_among_pairs_of_the_same_variables(setup, rng):
    bank = setup[1].bank
    joined = concatenate_banks(restrict(bank, 0), restrict(bank, 1))
    order = shuffled_order(rng, joined)
    assert sorted(order) == list(range(120))
    np.testing.assert_array_equal(joined.eligible[:, order], joined.eligible)
    assert (order != np.arange(120)).mean() > 0.8


def test_judging_counts_variable_by_variable(setup):
    network, recorded = setup
    bank = recorded.bank
    handles = stack_handles([identity_handle(MODEL.taps["hidden"])] * 2)
    tally = judge_alone(network, handles, {"test": recorded})["test"]
    predictions = np.asarray(recorded.runs.outputs).argmax(-1)
    for v in range(2):
        right = predictions == bank.labels[v]
        assert tally.hits[v].tolist() == [right[bank.active[v]].sum(), right[~bank.active[v]].sum()]


def test_shuffled_controls_are_the_mean_over_reorderings(setup):
    network, recorded = setup
    handles, tests = Handle("hidden", np.ones((2, 2, 4), np.float32)), {"test": recorded}
    first, again = (judge_controls(jax.random.key(1), network, handles, tests, Repeats(2, 3)) for _ in range(2))
    np.testing.assert_array_equal(first.shuffled["test"].hits, again.shuffled["test"].hits)
    np.testing.assert_array_equal(first.random["test"].hits, again.random["test"].hits)
    own = judge_alone(network, handles, tests)["test"]
    assert (first.shuffled["test"].pairs == own.pairs).all()
    assert not np.allclose(first.shuffled["test"].loss, own.loss, rtol=1e-4)


def _labelled(rows):
    """Make a bank of one variable from (factual, label, eligible)."""
    copy = causal_model(("y",), "out", z=lambda y: y, out=lambda z: z)
    factual, labels, eligible = (np.array(column) for column in zip(*rows, strict=True))
    bank = label_pairs(copy, {"y": factual}, {"y": labels}, variables=("z",), role="test")
    return dataclasses.replace(bank, eligible=eligible[None].astype(bool))


def test_chance_is_the_best_constant_by_hand():
    # sensitive: labels 1 1 0; invariant: 0 0 0 1; a constant 0 scores (1/3 + 3/4) / 2, a constant 1 (2/3 + 1/4) / 2
    rows = [(0, 1, 1), (2, 1, 1), (1, 0, 1), (0, 0, 1), (0, 0, 1), (0, 0, 1), (1, 1, 1), (3, 2, 0)]
    np.testing.assert_allclose(chance_level(_labelled(rows)), [13 / 24], rtol=1e-12)
    # pooled over banks, whatever the cut; a half without pairs does not count
    np.testing.assert_allclose(chance_level(_labelled(rows[:2]), _labelled(rows[2:])), [13 / 24], rtol=1e-12)
    np.testing.assert_allclose(chance_level(_labelled(rows[:3])), [2 / 3], rtol=1e-12)
    assert np.isnan(chance_level(_labelled(rows[-1:]))).all()


def test_no_constant_answer_beats_chance(setup):
    bank = setup[1].bank
    best = chance_level(bank)
    for v in range(2):
        halves = [bank.labels[v][bank.active[v]], bank.labels[v][~bank.active[v]]]
        scores = [np.mean([(half == constant).mean() for half in halves]) for constant in range(4)]
        np.testing.assert_allclose(best[v], max(scores), rtol=1e-12)
