"""Controls: what they keep of a handle and what they destroy."""

import jax
import numpy as np
import pytest

from abstraction.causal import causal_model, concatenate_banks, label_pairs, restrict
from abstraction.evaluation import (
    full_state_handles,
    identity_handle,
    judge,
    judge_controls,
    random_subspaces,
    shuffled_order,
)
from abstraction.interventions import Handle, LocalHandle, patched_outputs, record_pairs, stack_handles, take_handle
from abstraction.models import MLP

COPY = causal_model(("a", "b"), "y", p=lambda a: a, q=lambda b: b, y=lambda p, q: p + 2 * q)
MODEL = MLP(2, 4, 2, 4)


@pytest.fixture(scope="module", name="setup")
def _setup():
    a, b, c, d = np.random.default_rng(0).integers(0, 2, (4, 60))
    bank = label_pairs(COPY, {"a": a, "b": b}, {"a": c, "b": d}, variables=("p", "q"), role="test")
    params = MODEL.init(jax.random.key(0))
    inputs = [np.stack([s["a"], s["b"]], -1).astype(np.float32) for s in (bank.base, bank.source)]
    return bank, params, record_pairs(MODEL, params, *inputs, taps=("hidden",))


def test_the_identity_handle_changes_nothing(setup):
    _, params, recording = setup
    handle = identity_handle(MODEL.taps["hidden"])
    np.testing.assert_array_equal(patched_outputs(MODEL, params, recording, handle), recording.outputs)


def test_a_full_state_handle_gives_the_source_outputs(setup):
    _, params, recording = setup
    states = recording.source["hidden"]
    every = full_state_handles(MODEL.taps["hidden"])
    source = MODEL.resume(params, "hidden", jax.numpy.int32(0), states[0], inputs=recording.inputs, states=states)
    for depth in range(2):
        patched = patched_outputs(MODEL, params, recording, take_handle(every, depth))
        np.testing.assert_allclose(patched, source, rtol=1e-5, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("local", [True, False])
def test_random_subspaces_keep_the_weights_and_draw_orthonormal_directions(local):
    weight = np.array([1.0, 0.5, 0.0, 0.0], np.float32)
    handle = LocalHandle(np.array(1), weight) if local else Handle(np.stack([weight, 0 * weight]))
    drawn = random_subspaces(jax.random.key(0), handle, 4, 6)
    np.testing.assert_array_equal(drawn.weight, np.broadcast_to(handle.weight, (6, *handle.weight.shape)))
    gram = np.asarray(drawn.basis.decoder) @ np.asarray(drawn.basis.encoder)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-5)
    assert len(np.unique(np.asarray(drawn.basis.encoder).round(5), axis=0)) == 6


def test_shuffling_stays_among_pairs_of_the_same_variables(setup, rng):
    bank = setup[0]
    joined = concatenate_banks(restrict(bank, 0), restrict(bank, 1))
    order = shuffled_order(rng, joined)
    assert sorted(order) == list(range(120))
    np.testing.assert_array_equal(joined.eligible[:, order], joined.eligible)
    assert (order != np.arange(120)).mean() > 0.8


def test_judging_counts_variable_by_variable(setup):
    bank, params, recording = setup
    handles = stack_handles([identity_handle(MODEL.taps["hidden"])] * 2)
    tally = judge(MODEL, params, handles, {"test": (recording, bank)})["test"]
    predictions = np.asarray(recording.outputs).argmax(-1)
    for v in range(2):
        right = predictions == bank.labels[v]
        assert tally.hits[v].tolist() == [right[bank.active[v]].sum(), right[~bank.active[v]].sum()]


def test_shuffled_controls_are_the_mean_over_reorderings(setup):
    bank, params, recording = setup
    handles = Handle(np.ones((2, 2, 4), np.float32))
    tests = {"test": (recording, bank)}
    once = judge_controls(jax.random.key(1), MODEL, params, handles, tests, draws=2, shuffles=3)
    again = judge_controls(jax.random.key(1), MODEL, params, handles, tests, draws=2, shuffles=3)
    np.testing.assert_array_equal(once.shuffled["test"].hits, again.shuffled["test"].hits)
    np.testing.assert_array_equal(once.random["test"].hits, again.random["test"].hits)
    assert (once.shuffled["test"].pairs == judge(MODEL, params, handles, tests)["test"].pairs).all()
    assert not np.allclose(once.shuffled["test"].loss, judge(MODEL, params, handles, tests)["test"].loss, rtol=1e-4)
