"""Distributed alignment search: orthogonality, invariances, and a plant it must find."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import assert_searched_alike, planted, projectors
from scipy.linalg import expm
from scipy.special import expit

from abstraction.interventions import Basis, Handle, rotation_basis
from abstraction.interventions.bases import random_frames
from abstraction.interventions.patching import patched_outputs
from abstraction.localization import (
    Boundless,
    Rotation,
    Search,
    SearchConfig,
    alignment_search,
    candidate_grid,
    full_supports,
    searching,
)
from abstraction.localization.das import frame, oblique, orthogonality_error, turned_columns
from abstraction.localization.searching import pair_weights, train_candidates
from abstraction.localization.supports import feature_support

CONFIG = SearchConfig(max_epochs=40, batch_size=64, patience=40)
ROTATIONS = ["cayley", "expm", "qr"]


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=True, gains=(2.0, 2.0))


def _grid(plant, variables=2, **options):
    return candidate_grid(jax.random.key(3), plant.tap, full_supports(plant.tap, range(variables)), **options)


def _train(plant, candidates, config=CONFIG, seed=0, featurizer=None, **options):
    key, featurizer = jax.random.key(seed), featurizer or Rotation()
    return train_candidates(key, plant.network, plant.fit, candidates, featurizer, config, **options)


def _start_and_free(rng, width=12, rank=4, size=0.4):
    """Make a start of some columns, and a free matrix, in float32."""
    start = random_frames(jax.random.key(4), (), width)[:, :rank]
    return start, (size * rng.standard_normal((width, rank))).astype(np.float32)


def _dense(start, free, parametrization):
    """Return what the parametrization says of whole D x D matrices, in float64."""
    start, free = np.asarray(start, np.float64), np.asarray(free, np.float64)
    if parametrization == "qr":
        factor, triangle = np.linalg.qr(start + free)
        return factor * np.sign(np.diagonal(triangle))
    free = free - start @ (start.T @ free)
    skew, identity = start @ free.T - free @ start.T, np.eye(len(start))
    turn = expm(-skew) if parametrization == "expm" else np.linalg.solve(identity + skew, identity - skew)
    return turn @ start


@pytest.mark.parametrize("parametrization", ROTATIONS)
def test_frames_are_those_of_the_rotation_of_the_whole_space(parametrization, rng):
    for rank in (1, 4, 12):
        start, free = _start_and_free(rng, rank=rank)
        thin = frame(jnp.asarray(start), jnp.asarray(free), jnp.ones(rank), parametrization)
        # float32 products and inverses against float64 factorisations
        np.testing.assert_allclose(thin, _dense(start, free, parametrization), atol=2e-5)
        np.testing.assert_allclose(thin.T @ thin, np.eye(rank), atol=1e-5)
        np.testing.assert_allclose(
            frame(jnp.asarray(start), jnp.zeros_like(free), jnp.ones(rank), parametrization), start, atol=1e-6
        )
        moved = np.abs(thin @ thin.T - start @ start.T).max()
        assert moved < 1e-5 if rank == 12 else moved > 0.1, "a frame of everything has nowhere to go"


@pytest.mark.parametrize("parametrization", ROTATIONS)
def test_columns_out_of_use_stay_out_of_it(parametrization, rng):
    start, free = (jnp.asarray(array).at[:, 2:].set(0) for array in _start_and_free(rng))
    thin = frame(start, free, jnp.array([1.0, 1, 0, 0]), parametrization)
    narrow = frame(start[:, :2], free[:, :2], jnp.ones(2), parametrization)
    np.testing.assert_allclose(thin[:, :2], narrow, atol=1e-6)
    assert (thin[:, 2:] == 0).all()


def test_columns_are_turned_one_by_one_by_the_transform_of_the_whole_space(rng):
    for rank in (1, 4, 12):
        start, free = (np.asarray(array, np.float64) for array in _start_and_free(rng, rank=rank))
        skew, identity = start @ free.T - free @ start.T, np.eye(12)
        expected = np.linalg.solve(identity + skew, identity - skew) @ start
        thin = turned_columns(jnp.asarray(start, jnp.float32), jnp.asarray(free, jnp.float32))
        np.testing.assert_allclose(thin, expected, atol=2e-5)  # float32 solves
        assert np.abs(thin - start).max() > 0.1


def test_an_oblique_map_starts_at_its_start_and_writes_what_it_reads(rng):
    start, read = _start_and_free(rng, size=0.3)
    used, write = np.array([1, 1, 1, 0], np.float32), _start_and_free(rng, size=0.3)[1]
    start, read, write, used = (jnp.asarray(array) for array in (start, read, write, used))
    encoder, decoder = oblique(start, 0 * read, 0 * write, jnp.ones(4))
    np.testing.assert_allclose(encoder, start, atol=1e-6)
    np.testing.assert_allclose(decoder, start.T, atol=1e-6)
    encoder, decoder = oblique(*(array * used for array in (start, read, write)), used)
    # a float32 solve
    np.testing.assert_allclose(decoder @ encoder, jnp.diag(used), atol=2e-5)
    assert np.abs(encoder @ decoder - (encoder @ decoder).T).max() > 0.1, "no orthogonal projector"


@pytest.mark.parametrize("parametrization", [*ROTATIONS, "oblique"])
def test_no_free_matrix_leads_out_of_the_support(plant, parametrization, rng):
    candidate, span = _padded(plant)
    featurizer = Rotation(parametrization)
    free = {name: jnp.asarray(0.3 * rng.standard_normal((6, 2)), jnp.float32) for name in featurizer.rates}
    weight, basis = featurizer.final(free, candidate)
    assert weight.tolist() == [1, 1]
    # float32 factorisations
    np.testing.assert_allclose(span @ span.T @ basis.encoder, basis.encoder, atol=1e-5)
    np.testing.assert_allclose(basis.decoder @ span @ span.T, basis.decoder, atol=1e-5)
    np.testing.assert_allclose(basis.decoder @ basis.encoder, np.eye(2), atol=2e-5)


def _padded(plant, rank=2):
    """Make a candidate of three features beside one of six."""
    tap = plant.tap
    span = random_frames(jax.random.key(4), (), 6)[:, :3]
    supports = [feature_support(tap, 0, 0, rotation_basis(span), range(3), "three"), *full_supports(tap, [0])]
    return candidate_grid(jax.random.key(3), tap, supports, ranks=(rank,)).take(0), span


def test_a_soft_boundary_weights_places_by_how_far_they_are_inside(plant):
    candidate, _ = _padded(plant, rank=3)
    free = {"frame": jnp.zeros((6, 3)), "boundary": jnp.asarray(0.5)}
    # half of 3 features, places .5, 1.5 and 2.5, temperature 1 falling linearly to .2
    featurizer = Boundless(temperatures=(1.0, 0.2), penalty_weight=3.0)
    for progress, temperature in ((0.0, 1.0), (0.5, 0.6), (1.0, 0.2)):
        weight, _ = featurizer.features(free, candidate, jnp.asarray(progress))
        np.testing.assert_allclose(weight, expit(np.array([1.0, 0.0, -1.0]) / temperature), rtol=1e-5)
    np.testing.assert_allclose(featurizer.penalty(free, candidate, jnp.zeros(())), 1.5, rtol=1e-6)
    for boundary, width in ((-0.3, 0), (0.3, 1), (0.6, 2), (1.7, 3)):
        final, _ = featurizer.final({**free, "boundary": jnp.asarray(boundary)}, candidate)
        assert final.tolist() == [1.0] * width + [0.0] * (3 - width)


def test_an_unknown_parametrization_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"got parametrization 'euler', expected one of .*'cayley', 'expm', 'qr'"):
        Rotation("euler")


@pytest.mark.parametrize("parametrization", ROTATIONS)
def test_a_rotated_plant_is_found_with_every_parametrization(plant, parametrization):
    candidates = _grid(plant, ranks=(1,), learning_rates=(2e-2,), restarts=2)
    config = SearchConfig(batch_size=32, max_epochs=150, patience=150, cosine=True)
    search = Search(Rotation(parametrization), config, controls=None)
    found = alignment_search(
        jax.random.key(0), plant.network, plant.fit, candidates, search, evidence=plant.calibration
    )
    assert found.choice.tally.combined.min() > 0.98
    assert orthogonality_error(found.searched.handles.basis, np.full(4, 1)).max() < 1e-4
    for v in range(2):
        direction = np.asarray(found.choice.handles.basis.encoder[v][:, 0])
        angle = np.degrees(np.arccos(min(abs(direction @ plant.directions[v]), 1.0)))
        assert angle < 5


def test_a_boundless_search_finds_a_rotated_plant_and_a_width_within_its_support(plant):
    tap = plant.tap
    frame = np.concatenate([plant.directions, random_frames(jax.random.key(5), (), 6)[:, :1].T])
    span = np.linalg.qr(frame.T)[0].astype(np.float32)
    supports = [
        *full_supports(tap, range(2)),
        *(feature_support(tap, v, 0, rotation_basis(span), range(3), "three") for v in range(2)),
    ]
    candidates = candidate_grid(jax.random.key(3), tap, supports, ranks=(3, 6), learning_rates=(2e-2,))
    candidates = candidates.take(np.flatnonzero(candidates.rank == candidates.limit))
    config = SearchConfig(batch_size=32, max_epochs=150, patience=150, cosine=True)
    featurizer = Boundless(boundary_rate=0.25, penalty_weight=0.5)
    searched = _train(plant, candidates, config, featurizer=featurizer)
    weight, encoder = np.asarray(searched.handles.weight), np.asarray(searched.handles.basis.encoder)
    assert (weight.sum(axis=1) <= candidates.limit).all()
    assert (weight[2:, 3:] == 0).all()
    # a step function of the place: the first features are swapped whole, the others not at all
    np.testing.assert_array_equal(weight, np.arange(6) < weight.sum(axis=1, keepdims=True))
    assert weight.sum(axis=1).tolist() == [1, 1, 1, 1], "the price of width leaves one direction"
    for candidate, variable in enumerate(candidates.variable):
        cosine = abs(encoder[candidate, :, 0] @ plant.directions[variable])
        assert np.degrees(np.arccos(min(cosine, 1.0))) < 5


STOPS = SearchConfig(batch_size=64, max_epochs=12, min_epochs=1, patience=2, margin=0.05)


def _fast_and_slow(plant):
    """Make searches at two rates; at the lower one the loss hardly falls, and they stop as soon as they may."""
    return _grid(plant, 1, ranks=(1,), learning_rates=(1e-4, 2e-2))


@pytest.fixture(scope="module", name="halted")
def _halted(plant):
    return _train(plant, _fast_and_slow(plant), STOPS)


def test_curves_fall_and_end_where_training_stopped(halted):
    curve, epochs = np.asarray(halted.curve), np.asarray(halted.epochs)
    for candidate, end in enumerate(epochs):
        assert np.isfinite(curve[:end, candidate]).all()
        assert np.isnan(curve[end:, candidate]).all()
    assert epochs[0] == 3 < epochs[1], "every search stops on its own plateau"
    assert bool(halted.stopped[0])
    assert (np.nanmin(curve, axis=0) < curve[0]).all()


def test_a_stopped_candidate_no_longer_moves(plant, halted):
    short, on = (
        _train(plant, _fast_and_slow(plant), dataclasses.replace(STOPS, **change))
        for change in ({"max_epochs": 3}, {"patience": 12})
    )
    at_the_end, when_stopped, never_stopped = (projectors(each.handles)[0] for each in (halted, short, on))
    np.testing.assert_allclose(at_the_end, when_stopped, atol=1e-4)  # twelve steps of 1e-4 in float32
    assert np.abs(never_stopped - when_stopped).max() > 1e-3


def test_a_candidate_does_not_depend_on_its_neighbours(plant):
    config, rate = SearchConfig(max_epochs=1, batch_size=64), {"learning_rates": (1e-3,)}
    alone, both = (_train(plant, _grid(plant, 1, ranks=ranks, **rate), config) for ranks in ((2,), (2, 3)))
    assert np.asarray(both.candidates.rank).tolist() == [2, 3]
    cut = jax.tree.map(lambda leaf: leaf[:1], both._replace(candidates=None, curve=both.curve.T))
    narrow = lambda basis: Basis(basis.encoder[..., :2], basis.decoder[:, :2], basis.mean)
    handles = dataclasses.replace(cut.handles, weight=cut.handles.weight[:, :2], basis=narrow(cut.handles.basis))
    assert_searched_alike(alone, cut._replace(candidates=alone.candidates, handles=handles, curve=cut.curve.T))
    assert np.abs(np.subtract(*projectors(both.handles))).max() > 0.1, "the neighbour is another search"


def test_a_key_gives_the_same_rotations_and_another_key_does_not(plant):
    tap, config = plant.tap, SearchConfig(max_epochs=2, batch_size=64)
    starts = [
        candidate_grid(jax.random.key(seed), tap, full_supports(tap, [0]), ranks=(2,), learning_rates=(2e-2,))
        for seed in (0, 0, 1)
    ]
    first, again, other = (_train(plant, start, config).handles.basis.encoder for start in starts)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    reordered = _train(plant, starts[0], config, seed=1).handles.basis.encoder
    assert np.abs(first - reordered).max() > 1e-4, "the key of the training orders the pairs"


def test_reports_of_progress_do_not_change_the_result(plant, monkeypatch):
    candidates = _grid(plant, ranks=(1,))
    config, heard = SearchConfig(max_epochs=6, patience=6, batch_size=64), []
    whole = _train(plant, candidates, config)
    monkeypatch.setattr(searching, "_EPOCHS_PER_CALL", 2)
    parts = _train(plant, candidates, config, progress=lambda *report: heard.append(report))
    np.testing.assert_array_equal(whole.handles.basis.encoder, parts.handles.basis.encoder)
    assert [epoch for epoch, _ in heard] == [2, 4, 6]


def test_full_rank_is_a_full_swap(plant):
    width = plant.tap.width
    rotated, native = (
        patched_outputs(plant.network, plant.fit.runs, Handle("hidden", np.ones(width), basis, np.array(0)))
        for basis in (rotation_basis(random_frames(jax.random.key(0), (), width)), None)
    )
    np.testing.assert_allclose(rotated, native, atol=1e-4)  # float32 products


def test_only_the_subspace_matters_not_its_frame(plant):
    frame = random_frames(jax.random.key(0), (), 6)
    turned = frame.copy()
    turned[:, :3] = frame[:, :3] @ random_frames(jax.random.key(1), (), 3)
    mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
    first, second = (
        patched_outputs(plant.network, plant.fit.runs, Handle("hidden", mask, rotation_basis(matrix), np.array(0)))
        for matrix in (frame, turned)
    )
    np.testing.assert_allclose(first, second, atol=1e-4)  # float32 products


def test_weights_give_every_variable_the_same_total_and_sensitive_pairs_their_share(plant):
    bank = plant.fit.bank
    weights = pair_weights(bank, 0.7)
    np.testing.assert_allclose(weights.mean(axis=1), 1.0)
    np.testing.assert_allclose((weights * bank.active).mean(axis=1), 0.7)
    np.testing.assert_allclose(pair_weights(bank, None), 1.0)


def test_the_error_of_orthogonality_is_measured_on_the_features_in_use():
    encoder = np.array([[[1.0, 0.6, 9.0], [0.0, 0.8, 0.0], [0.0, 0.0, 0.0]]])
    basis = Basis(encoder, encoder.mT, encoder[..., 0])
    # columns 1 and 2 have norm 1 and product .6; column 3 is out of use
    np.testing.assert_allclose(orthogonality_error(basis, np.array([1])), 0.0, atol=1e-12)
    np.testing.assert_allclose(orthogonality_error(basis, np.array([2])), 0.6, rtol=1e-12)
    np.testing.assert_allclose(orthogonality_error(basis, np.array([3])), 80.0, rtol=1e-12)


def test_training_refuses_test_pairs_and_banks_smaller_than_a_batch(plant):
    candidates = _grid(plant, ranks=(1,))
    with pytest.raises(ValueError, match="got a test bank to train on"):
        _train(plant._replace(fit=plant.test), candidates)
    with pytest.raises(ValueError, match="got batch size 100000"):
        _train(plant, candidates, SearchConfig(batch_size=100_000))
