"""Readouts: what outputs say, by hand and against slow NumPy, and that everything that reads outputs asks them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import Plant, planted, recorded_banks

from abstraction.evaluation import CLASSES, Bits, Classes, Readout, Repeats, judge, tally_handles
from abstraction.evaluation.readouts import MISS, FactualLoss, scored
from abstraction.interventions import Handle, unit_sites
from abstraction.localization.calibration import calibrate
from abstraction.localization.cutting import CutMenu, handle_grid
from abstraction.models import MLP

READOUTS = {"classes": Classes(), "bits": Bits()}


@pytest.fixture(params=READOUTS, name="readout")
def _readout(request):
    return READOUTS[request.param]


def _cross_entropy(logits, label):
    return np.log(np.exp(logits.astype(float)).sum()) - float(logits[label])


def _bit_loss(logits, label):
    """Add -log P(bit) over bits, least significant first."""
    total = 0.0
    for place, logit in enumerate(logits.astype(float)):
        probability = 1 / (1 + np.exp(-logit))
        total -= np.log(probability if label >> place & 1 else 1 - probability)
    return total


def test_the_class_is_the_largest_logit_and_the_first_of_equals():
    logits = jnp.array([[0.1, 2.0, -1.0], [3.0, 3.0, 0.0], [-5.0, -4.0, -3.0]])
    assert Classes().decode(logits).tolist() == [1, 0, 2]


def test_bits_are_read_least_significant_first_and_a_half_is_a_one():
    logits = jnp.array([[2.0, -1.0, 0.5], [-3.0, -3.0, 4.0], [0.0, -1e-6, -1.0]])
    assert Bits().decode(logits).tolist() == [1 + 4, 4, 1]


def test_two_logits_of_zero_cost_log_two_each():
    np.testing.assert_allclose(Classes().loss(jnp.zeros((1, 2)), jnp.array([1])), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(Bits().loss(jnp.zeros((1, 3)), jnp.array([5])), 3 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("readout", "oracle", "labels"), [(Classes(), _cross_entropy, 4), (Bits(), _bit_loss, 16)])
def test_losses_match_a_loop_over_pairs(rng, readout, oracle, labels):
    logits = (3 * rng.standard_normal((40, 4))).astype(np.float32)
    label = rng.integers(0, labels, 40)
    expected = [oracle(row, number) for row, number in zip(logits, label, strict=True)]
    # float32 sums of exponentials
    np.testing.assert_allclose(readout.loss(jnp.asarray(logits), jnp.asarray(label)), expected, rtol=1e-5, atol=1e-6)


def test_every_number_is_read_off_its_own_bits():
    numbers = np.arange(32)
    logits = jnp.asarray(np.where(numbers[:, None] >> np.arange(5) & 1, 4.0, -4.0), jnp.float32)
    np.testing.assert_array_equal(Bits().decode(logits), numbers)
    # right with certainty 1 / (1 + exp(-4)) in each bit
    np.testing.assert_allclose(Bits().loss(logits, jnp.asarray(numbers)), 5 * np.log1p(np.exp(-4.0)), rtol=1e-5)


def test_a_loss_stays_finite_where_the_probability_underflows(readout):
    logits = jnp.array([[-1e4, 1e4]])
    assert float(readout.loss(logits, jnp.array([2 if isinstance(readout, Bits) else 1]))[0]) == 0.0
    wrong = float(readout.loss(logits, jnp.array([1 if isinstance(readout, Bits) else 0]))[0])
    np.testing.assert_allclose(wrong, 2e4, rtol=1e-6)


def test_descending_the_loss_reaches_the_label(readout):
    logits, label = jnp.array([[1.0, -1.0, 0.5]]), jnp.array([2])
    assert int(readout.decode(logits)[0]) != 2
    for _ in range(50):
        logits = logits - jax.grad(lambda outputs: readout.loss(outputs, label).sum())(logits)
    assert int(readout.decode(logits)[0]) == 2


def test_readouts_hash_and_compare_by_value(readout):
    assert isinstance(readout, Readout)
    assert type(readout)() == readout
    assert hash(type(readout)()) == hash(readout)
    assert Classes() == CLASSES != Bits()


@pytest.fixture(scope="module", name="plant")
def _plant():
    """Swap the four classes p + 2 q for logits of the two bits, so that either readout has something to read."""
    plant = planted(rotate=False)
    head = np.zeros((6, 4), np.float32)
    head[1, 0], head[4, 1] = 6.0, 6.0
    head[:, 2:] = -1.0
    bias = jnp.array([0.0, 0.0, -99.0, -99.0])
    params = {**plant.network.params, "head": {"kernel": jnp.asarray(head), "bias": bias}}
    network = dataclasses.replace(plant.network, params=params)
    return Plant(network, plant.directions, *recorded_banks(network))


def _by_bits(recorded):
    return dataclasses.replace(recorded, readout=Bits())


def test_everything_that_counts_or_chooses_uses_the_readout_the_bank_was_recorded_with(plant):
    handles = Handle("hidden", np.eye(6, dtype=np.float32)[[1, 4]][:, None, :])
    counted = [
        tally_handles(plant.network, recorded, handles, np.arange(2)).combined
        for recorded in (_by_bits(plant.test), plant.test)
    ]
    np.testing.assert_array_equal(counted[0], 1.0)
    assert counted[1].max() < 0.9, "an argmax does not read bits"
    score = judge(plant.network, handles, _by_bits(plant.test), Repeats(draws=3, shuffles=2))["test"]
    np.testing.assert_array_equal(score.tally.combined, counted[0])
    # shuffled sources still leave the other variable alone: invariant pairs keep their bit, most of the time
    assert 0.4 < score.shuffled.combined.mean() < 0.9


def test_a_calibration_by_bits_chooses_what_bits_say(plant):
    plan = np.full((2, 6), 0.01, np.float32)
    plan[0, 2], plan[0, 1], plan[1, 3], plan[1, 4] = 0.4, 0.3, 0.4, 0.3
    grid = handle_grid(plan, np.ones((2, 6)), unit_sites(plant.tap), (), CutMenu((1, 2), (1.0,)))
    choice = calibrate(plant.network, _by_bits(plant.calibration), grid)
    # alone, the heaviest site is a dead unit; with the second one the variable moves
    assert [setting["subset"] for setting in choice.settings] == [2, 2]
    np.testing.assert_array_equal(choice.tally.combined, 1.0)


def test_outputs_beyond_the_classes_neither_win_nor_count_in_the_loss():
    logits, labels = jnp.array([[0.1, 2.0, 9.0], [3.0, 1.0, 9.0]]), jnp.array([0, 0])
    assert Classes().decode(logits).tolist() == [2, 2]
    assert Classes(2).decode(logits).tolist() == [1, 0]
    np.testing.assert_array_equal(Classes(2).loss(logits, labels), Classes().loss(logits[:, :2], labels))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_say_nothing(readout, value):
    """Every label misses them, also class 0, which an argmax of NaN would be, and their loss is endless."""
    logits = jnp.array([[3.0, 1.0, 2.0], [value, 1.0, 2.0], [value, value, value], [1.0, 2.0, value]])
    assert readout.decode(logits).tolist() == [int(readout.decode(logits[:1])[0]), MISS, MISS, MISS]
    for label in range(3):
        hit, loss = scored(readout, logits, jnp.full(4, label))
        assert not hit[1:].any()
        assert np.isposinf(loss[1:]).all()
        np.testing.assert_array_equal(loss[:1], readout.loss(logits, jnp.full(4, label))[:1])


def test_an_output_beyond_the_classes_may_be_anything():
    logits = jnp.array([[1.0, 2.0, jnp.nan]])
    assert Classes(2).decode(logits).tolist() == [1]
    assert np.isfinite(scored(Classes(2), logits, jnp.array([1]))[1]).all()


def test_gradients_of_the_loss_are_finite_for_finite_outputs(readout, rng):
    logits = jnp.asarray(30 * rng.standard_normal((20, 4)), jnp.float32)
    gradient = jax.grad(lambda outputs: readout.loss(outputs, jnp.arange(20) % 4).sum())(logits)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "labels",
    [np.array([[0, 1], [1, 1]]), np.array([True, False]), np.array([1.0, 0.0]), np.array([1], np.uint8)],
)
def test_labels_that_can_be_scored_are_int32(readout, labels):
    checked = readout.check(labels, 2)
    assert checked.dtype == np.int32
    np.testing.assert_array_equal(checked, labels)


def test_the_largest_label_is_the_last_class_or_all_bits():
    assert Classes().check(np.array([4]), 5)[0] == Classes(5).check(np.array([4]), 9)[0] == 4
    assert Bits().check(np.array([2**31 - 1]), 31)[0] == 2**31 - 1
    assert Bits().decode(jnp.ones((1, 31)))[0] == 2**31 - 1


def test_the_factual_loss_is_the_mean_of_the_readouts_losses(rng: np.random.Generator):
    model = MLP(3, 4, 1, 2)
    params, labels = model.init(jax.random.key(0)), jnp.array([0, 1, 1, 0, 1])
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    outputs = np.asarray(model.apply(params, inputs)[0], np.float64)
    logs = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    expected = -logs[np.arange(5), labels].mean()
    batch = {"inputs": inputs, "labels": labels}
    assert float(FactualLoss(model, CLASSES)(params, batch, None)) == pytest.approx(expected, rel=1e-6)
    doubled = FactualLoss(model, CLASSES, lambda batch, factor: batch["half"] * factor)
    assert float(doubled(params, {"half": inputs / 2, "labels": labels}, 2.0)) == pytest.approx(expected, rel=1e-6)
