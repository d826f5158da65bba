"""Searches that keep the features: masks and fitted weights on planted units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import UNITS, WIDTH, planted
from scipy.special import expit

from abstraction.evaluation import tally_handles
from abstraction.evaluation.judging import judge_alone
from abstraction.interventions import rotation_basis
from abstraction.localization import (
    Mask,
    Search,
    SearchConfig,
    Weights,
    alignment_search,
    candidate_grid,
    full_supports,
)
from abstraction.localization.searching import train_candidates
from abstraction.localization.supports import coordinate_support, feature_support

CONFIG = SearchConfig(batch_size=64, max_epochs=60, patience=60, cosine=True)


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False, gains=(2.0, 2.0))


def _coordinates(plant, variables=2, **options):
    """Search over native units: the support is not turned."""
    tap = plant.tap
    supports = [support._replace(turn=False) for support in full_supports(tap, range(variables))]
    return candidate_grid(jax.random.key(0), tap, supports, ranks=(1,), learning_rates=(5e-2,), **options)


def _train(plant, candidates, featurizer, config=CONFIG):
    return train_candidates(jax.random.key(0), plant.network, plant.fit, candidates, featurizer, config)


def _combined(plant, handles):
    return judge_alone(plant.network, handles, {"test": plant.test})["test"].combined


def _one(candidates, index=0):
    return candidates.take(index)


def test_a_mask_finds_exactly_the_planted_units(plant):
    search, candidates = Search(Mask(), CONFIG, controls=None), _coordinates(plant, sparsities=(1e-2,))
    found = alignment_search(
        jax.random.key(0), plant.network, plant.fit, candidates, search, evidence=plant.calibration
    )
    np.testing.assert_array_equal(found.handles.weight, np.eye(WIDTH)[list(UNITS)])
    assert found.handles.basis is None, "units are units: nothing is encoded"
    assert [setting["width"] for setting in found.choice.settings] == [1.0, 1.0]
    np.testing.assert_array_equal(_combined(plant, found.handles), 1.0)


def test_more_sparsity_never_keeps_more_units(plant):
    prices = (0.0, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    searched = _train(plant, _coordinates(plant, sparsities=prices), Mask())
    kept = np.asarray(searched.handles.weight).reshape(2, len(prices), WIDTH)
    counts = kept.sum(axis=-1)
    assert (np.diff(counts, axis=1) <= 0).all()
    for v in range(2):
        # what nothing reads costs nothing at price 0; what a swap needs goes only where the price exceeds its worth
        assert kept[v, 0, UNITS[v]] == kept[v, 2, UNITS[v]] == 1
        assert (counts[v, 2], counts[v, -1]) == (1, 0)


def test_a_mask_of_rotated_features_finds_the_feature():
    plant = planted(rotate=True, gains=(2.0, 2.0))
    tap = plant.tap
    basis = np.linalg.qr(np.concatenate([plant.directions, np.eye(WIDTH)[:4]]).T)[0].astype(np.float32)
    frame = rotation_basis(basis)
    supports = [feature_support(tap, v, 0, frame, range(WIDTH), "frame", turn=False) for v in range(2)]
    candidates = candidate_grid(
        jax.random.key(0), tap, supports, ranks=(1,), learning_rates=(5e-2,), sparsities=(1e-2,)
    )
    np.testing.assert_array_equal(_train(plant, candidates, Mask()).handles.weight, np.eye(WIDTH)[:2])


def test_a_mask_keeps_to_its_support(plant):
    tap = plant.tap
    supports = [coordinate_support(tap, 0, 0, [0, 5], "dead"), *full_supports(tap, [0])]
    supports = [support._replace(turn=False) for support in supports]
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(1,), learning_rates=(5e-2,))
    weight = np.asarray(_train(plant, candidates, Mask()).handles.weight)
    assert (weight[0, [1, 2, 3, 4]] == 0).all()
    assert weight[1, UNITS[0]] == 1


def test_soft_masks_harden_as_training_goes_on(plant):
    candidate, mask = _one(_coordinates(plant)), Mask((1.0, 0.01))
    score = jnp.array([0.1, -0.1, 0.0, 1.0, -1.0, 0.02])
    soft = [np.asarray(mask.features({"score": score}, candidate, jnp.asarray(t))[0]) for t in (0.0, 0.5, 1.0)]
    for weight, temperature in zip(soft, (1.0, 0.1, 0.01), strict=True):  # falls geometrically
        np.testing.assert_allclose(weight, expit(np.asarray(score) / temperature), rtol=1e-5, atol=1e-7)
    final, _ = mask.final({"score": score}, candidate)
    assert final.tolist() == [1, 0, 0, 1, 0, 1]


def test_features_beyond_the_support_have_no_weight_whatever_their_score(plant):
    tap = plant.tap
    supports = [coordinate_support(tap, 0, 0, [0, 5], "pair"), *full_supports(tap, [0])]
    candidate = _one(candidate_grid(jax.random.key(0), tap, supports, ranks=(1,)))
    inside = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert Mask().final({"score": jnp.full(6, 9.0)}, candidate)[0].tolist() == inside
    soft = Mask().features({"score": jnp.full(6, 9.0)}, candidate, jnp.zeros(()))[0]
    np.testing.assert_allclose(soft, expit(9.0) * np.array(inside), rtol=1e-6)
    assert Weights().final({"weight": jnp.ones(6)}, candidate)[0].tolist() == inside


def test_the_penalty_is_the_price_times_the_weights_inside_the_support(plant):
    tap = plant.tap
    supports = [coordinate_support(tap, 0, 0, [0, 5], "pair"), *full_supports(tap, [0])]
    candidate = _one(candidate_grid(jax.random.key(0), tap, supports, ranks=(1,), sparsities=(0.25,)))
    masked = Mask().penalty({"score": jnp.zeros(6)}, candidate, jnp.zeros(()))
    np.testing.assert_allclose(masked, 0.25 * 2 * 0.5, rtol=1e-6)
    fitted = Weights().penalty({"weight": jnp.array([2.0, 7.0, 0, 0, 0, -3.0])}, candidate, jnp.zeros(()))
    np.testing.assert_allclose(fitted, 0.25 * 5, rtol=1e-6)


def test_fitted_weights_recover_the_planted_units(plant):
    candidates = _coordinates(plant, sparsities=(3e-2,))
    searched = _train(plant, candidates, Weights())
    weight = np.asarray(searched.handles.weight)
    assert np.abs(weight).argmax(axis=1).tolist() == list(UNITS)
    for v in range(2):
        assert weight[v, UNITS[v]] > 0.7
        # the other variable's unit goes a little the other way, which sharpens the bit that must stay
        assert np.abs(np.delete(weight[v], UNITS[v])).max() < 0.2
    np.testing.assert_array_equal(_combined(plant, searched.handles), 1.0)


def test_a_weight_exceeds_one_where_a_variable_is_stored_at_more_places_than_it_is_swapped():
    """Two copies, of which the support has one: it must go about twice as far for their mean to be the source's."""
    plant = planted(rotate=False, copies=2, gains=(2.0, 2.0))
    tap = plant.tap
    supports = [coordinate_support(tap, 0, 0, [1], "copy")._replace(turn=False)]
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(1,), learning_rates=(5e-2,))
    handles = _train(plant, candidates, Weights()).handles
    assert float(handles.weight[0, 1]) > 1.5
    np.testing.assert_array_equal(tally_handles(plant.network, plant.test, handles, np.array([0])).combined, 1.0)
