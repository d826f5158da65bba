"""Interchange trials, against a NumPy network, and the laws of masks and sources."""

import jax
import numpy as np
import pytest
from once import once

from abstraction.evaluation import bernoulli_trials, interchanged_outputs
from abstraction.evaluation.interchange import Trials, bounded_losses, group_trials, recorded_states, view
from abstraction.interventions import Substitute
from abstraction.models import GRU, Activation, Dense, Network, Sequential

MODEL = Sequential((5,), (Dense("one", 6), Activation("hidden", "relu"), Dense("two", 4)))
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(name="network")
def _network(rng):
    return MODEL.init(jax.random.key(0)), rng.standard_normal((9, 5)).astype(np.float32)


def _forward(params, inputs, change=lambda h: h):
    weights = {name: {key: np.asarray(leaf, float) for key, leaf in part.items()} for name, part in params.items()}
    hidden = np.maximum(inputs @ weights["one"]["kernel"] + weights["one"]["bias"], 0)
    return change(hidden) @ weights["two"]["kernel"] + weights["two"]["bias"], hidden


def test_masked_units_take_the_sources_value_and_all_others_the_base(network, rng):
    params, inputs = network
    units = np.array([0, 2, 5])
    trials = bernoulli_trials(rng, examples=9, units=3, probability=0.5, trials=40)
    outputs = interchanged_outputs(view(Network(MODEL, params), "hidden", units), inputs, trials, batch_size=16)
    _, hidden = _forward(params, inputs)
    hybrid = hidden[trials.base].copy()
    for t in range(40):
        for k, unit in enumerate(units):
            if trials.masks[t, k]:
                hybrid[t, unit] = hidden[trials.source[t], unit]
    expected, _ = _forward(params, inputs[trials.base], lambda _: hybrid)
    np.testing.assert_allclose(outputs, expected, **CLOSE)


def test_no_mask_is_the_network_on_the_base_and_a_whole_mask_is_it_on_the_source(network, rng):
    params, inputs = network
    trials = bernoulli_trials(rng, examples=9, units=6, probability=0.0, trials=12)
    seen = view(Network(MODEL, params), "hidden", np.arange(6))
    plain = MODEL.apply(params, inputs)[0]
    np.testing.assert_allclose(interchanged_outputs(seen, inputs, trials), plain[trials.base], **CLOSE)
    whole = Trials(trials.base, trials.source, np.ones((12, 6), bool))
    np.testing.assert_allclose(interchanged_outputs(seen, inputs, whole), plain[trials.source], **CLOSE)


def test_replaced_units_move_with_a_whole_mask_where_asked(network, rng):
    params, inputs = network
    trials = bernoulli_trials(rng, examples=9, units=2, probability=0.5, trials=30)
    seen = view(Network(MODEL, params), "hidden", np.array([1, 3]))
    outputs = interchanged_outputs(seen, inputs, trials, replaced="source")
    base = interchanged_outputs(seen, inputs, trials)
    whole = trials.masks.all(axis=1)
    assert whole.any()
    assert not whole.all()
    np.testing.assert_allclose(outputs[whole], MODEL.apply(params, inputs)[0][trials.source[whole]], **CLOSE)
    np.testing.assert_array_equal(outputs[~whole], base[~whole])


def test_a_patched_network_computes_the_replaced_units_from_the_hybrid(network, rng):
    params, inputs = network
    kept, replaced = np.array([0, 1, 4, 5]), np.array([2, 3])
    coefficients = rng.standard_normal((2, 4)).astype(np.float32)
    edit = Substitute(kept, replaced, np.float32([0.3, -0.2]), coefficients)
    trials = bernoulli_trials(rng, examples=9, units=4, probability=0.4, trials=25)
    outputs = interchanged_outputs(view(Network(MODEL, params), "hidden", kept, {"hidden": once(edit)}), inputs, trials)
    _, hidden = _forward(params, inputs)
    hybrid = hidden[trials.base].copy()
    hybrid[:, kept] = np.where(trials.masks, hidden[trials.source][:, kept], hybrid[:, kept])
    hybrid[:, replaced] = hybrid[:, kept] @ coefficients.T + [0.3, -0.2]
    np.testing.assert_allclose(outputs, _forward(params, inputs[trials.base], lambda _: hybrid)[0], **CLOSE)


def test_a_recurrent_state_is_interchanged_at_every_step(rng):
    model = GRU(2, 4, 3)
    params, inputs = model.init(jax.random.key(0)), rng.standard_normal((6, 3, 2)).astype(np.float32)
    trials = bernoulli_trials(rng, examples=6, units=4, probability=0.5, trials=10)
    whole = Trials(trials.base, trials.source, np.ones((10, 4), bool))
    seen = view(Network(model, params), "hidden", np.arange(4))
    assert recorded_states(seen, inputs).shape == (6, 3, 4)
    outputs = interchanged_outputs(seen, inputs, whole)
    np.testing.assert_allclose(outputs, model.apply(params, inputs)[0][trials.source], **CLOSE)


def test_trials_pair_different_inputs_and_mask_with_their_probability(rng):
    trials = bernoulli_trials(rng, examples=5, units=8, probability=0.3, trials=4000)
    assert (trials.base != trials.source).all()
    assert set(np.unique(trials.base)) == set(np.unique(trials.source)) == set(range(5))
    assert abs(trials.masks.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 32000)  # 5 sigma


def test_group_trials_move_one_group_each(rng):
    groups = [[0, 1], [2], [3, 4, 5]]
    trials = group_trials(rng, examples=4, groups=groups, trials=60)
    moved = {tuple(np.flatnonzero(mask)) for mask in np.asarray(trials.masks)}
    assert moved == {tuple(group) for group in groups}


def test_losses_are_bounded_and_zero_for_equal_outputs(rng):
    logits = (5 * rng.standard_normal((50, 3))).astype(np.float32)
    same = bounded_losses(logits, logits)
    assert all((values == 0).all() for values in same.values())
    other = bounded_losses(logits, rng.permutation(logits))
    assert all(((values >= 0) & (values <= 1)).all() for values in other.values())
    p, q = (np.exp(z) / np.exp(z).sum() for z in (logits[0].astype(float), logits[1].astype(float)))
    one = bounded_losses(logits[:1], logits[1:2])
    assert one["clipped_kl"][0] == pytest.approx(min(1, (p * np.log(p / q)).sum()), rel=1e-4)  # float32
    assert one["clipped_l2"][0] == pytest.approx(min(1, np.linalg.norm(p - q)), rel=1e-4)
    assert one["zero_one"][0] == float(p.argmax() != q.argmax())


def test_what_does_not_fit_is_refused(network, rng):
    params, inputs = network
    with pytest.raises(ValueError, match=r"got tap 'nope', expected one of"):
        view(Network(MODEL, params), "nope", np.arange(2))
    with pytest.raises(ValueError, match="expected some of 0 to 5, each once"):
        view(Network(MODEL, params), "hidden", np.array([6]))
    trials = bernoulli_trials(rng, examples=9, units=3, probability=0.5, trials=4)
    with pytest.raises(ValueError, match="got masks over 3 units, expected 2"):
        interchanged_outputs(view(Network(MODEL, params), "hidden", np.arange(2)), inputs, trials)
    with pytest.raises(ValueError, match=r"got probability 1.5"):
        bernoulli_trials(rng, examples=9, units=3, probability=1.5, trials=4)
    with pytest.raises(ValueError, match="got examples 1, expected at least 2"):
        bernoulli_trials(rng, examples=1, units=3, probability=0.5, trials=4)
    with pytest.raises(ValueError, match=r"got groups \[\]"):
        group_trials(rng, examples=4, groups=[], trials=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_lose_everything_in_either_network(rng, bad):
    logits = rng.standard_normal((3, 4)).astype(np.float32)
    broken = logits.copy()
    broken[1, 2] = bad
    for pair in ((logits, broken), (broken, logits), (broken, broken)):
        for losses in bounded_losses(*pair).values():
            np.testing.assert_array_equal(losses, [0.0, 1.0, 0.0])
