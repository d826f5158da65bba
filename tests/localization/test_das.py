"""Distributed alignment search: orthogonality, invariances, and a plant it must find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import planted

from abstraction.interventions import LocalHandle, patched_outputs, random_frames, rotation_basis
from abstraction.localization import DASConfig, candidate_grid, gather_evidence, search_subspaces, train_rotations
from abstraction.localization.das import _pair_weights, _rotation
from abstraction.models import Tap

CONFIG = DASConfig(max_epochs=40, batch_size=64, patience=40)


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=True, gains=(2.0, 2.0))


def _train(plant, candidates, config=CONFIG, seed=0, **options):
    return train_rotations(
        jax.random.key(seed), plant.model, plant.params, *plant.fit, candidates, tap="hidden", config=config, **options
    )


@pytest.mark.parametrize("parametrization", ["cayley", "expm", "qr"])
def test_rotations_are_orthogonal_and_start_at_their_start(parametrization, rng):
    start = jnp.asarray(random_frames(jax.random.key(0), (), 6))
    # QR may flip the sign of a column, which spans the same line
    overlap = jnp.abs(_rotation(jnp.zeros((6, 6)), start, parametrization).T @ start)
    np.testing.assert_allclose(overlap, np.eye(6), atol=1e-5)
    free = jnp.asarray(rng.standard_normal((6, 6)), jnp.float32)
    rotation = _rotation(free, start, parametrization)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(6), atol=2e-5)
    assert np.abs(rotation - start).max() > 0.1


@pytest.mark.parametrize("parametrization", ["cayley", "expm", "qr"])
def test_a_rotated_plant_is_found_with_every_parametrization(plant, parametrization):
    candidates = candidate_grid(plant.model.taps["hidden"], 2, ranks=(1,), learning_rates=(2e-2,), restarts=2)
    config = DASConfig(parametrization, batch_size=32, max_epochs=150, patience=150, cosine=True)
    found = search_subspaces(
        jax.random.key(0), plant.model, plant.params, *plant.fit, candidates, gather_evidence([plant.calibration]),
        tap="hidden", config=config,
    )  # fmt: skip
    assert found.choice.tally.combined.min() > 0.98
    assert float(found.rotations.orthogonality_error.max()) < 1e-4
    for v in range(2):
        direction = np.asarray(found.choice.handles.basis.encoder[v][:, 0])
        angle = np.degrees(np.arccos(min(abs(direction @ plant.directions[v]), 1.0)))
        assert angle < 5


def test_curves_fall_and_end_where_training_stopped(plant):
    candidates = candidate_grid(plant.model.taps["hidden"], 2, ranks=(1, 4), learning_rates=(2e-2,))
    rotations = _train(plant, candidates, DASConfig(batch_size=64, max_epochs=50, patience=2, margin=0.05))
    curve, epochs = np.asarray(rotations.curve), np.asarray(rotations.epochs)
    for candidate, end in enumerate(epochs):
        assert np.isfinite(curve[:end, candidate]).all()
        assert np.isnan(curve[end:, candidate]).all()
    assert len(set(epochs)) > 1, "every search stops on its own plateau"
    assert bool(rotations.stopped.any())
    assert (np.nanmin(curve, axis=0) <= curve[0]).all()


def test_a_stopped_candidate_no_longer_moves(plant):
    candidates = candidate_grid(plant.model.taps["hidden"], 2, ranks=(1, 4), learning_rates=(2e-2,))
    config = DASConfig(batch_size=64, max_epochs=50, patience=2, margin=0.05)
    rotations = _train(plant, candidates, config)
    first = int(np.asarray(rotations.epochs).argmin())
    short = DASConfig(batch_size=64, max_epochs=int(rotations.epochs[first]), patience=2, margin=0.05)
    again = _train(plant, candidates, short)
    np.testing.assert_allclose(again.rotation[first], rotations.rotation[first], atol=1e-5)


def test_a_candidate_does_not_depend_on_its_neighbours(plant):
    tap = plant.model.taps["hidden"]
    # the starts are drawn for the whole batch, the first rows of a longer batch being those of a shorter one
    alone = _train(plant, candidate_grid(tap, 1, ranks=(2,), learning_rates=(1e-2,)))
    both = _train(plant, candidate_grid(tap, 1, ranks=(2, 3), learning_rates=(1e-2,)))
    assert int(both.candidates.rank[0]) == 2
    # batched linear algebra in float32 over 40 epochs
    np.testing.assert_allclose(both.projector[0], alone.projector[0], atol=1e-2)


def test_a_key_gives_the_same_rotations_and_another_key_does_not(plant):
    candidates = candidate_grid(plant.model.taps["hidden"], 1, ranks=(2,))
    config = DASConfig(max_epochs=2, batch_size=64)
    first, again, other = (_train(plant, candidates, config, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.rotation, again.rotation)
    assert np.abs(first.rotation - other.rotation).max() > 0.01


def test_reports_of_progress_do_not_change_the_result(plant):
    candidates = candidate_grid(plant.model.taps["hidden"], 2, ranks=(1,))
    config, heard = DASConfig(max_epochs=6, patience=6, batch_size=64), []
    whole = _train(plant, candidates, config)
    parts = _train(plant, candidates, config, epochs_per_call=2, progress=lambda *report: heard.append(report))
    np.testing.assert_array_equal(whole.rotation, parts.rotation)
    assert [epoch for epoch, _ in heard] == [2, 4, 6]


def test_full_rank_is_a_full_swap(plant):
    recording = plant.fit[0]
    width = plant.model.taps["hidden"].width
    basis = rotation_basis(random_frames(jax.random.key(0), (), width))
    rotated = patched_outputs(plant.model, plant.params, recording, LocalHandle(np.array(0), np.ones(width), basis))
    native = patched_outputs(plant.model, plant.params, recording, LocalHandle(np.array(0), np.ones(width)))
    np.testing.assert_allclose(rotated, native, atol=1e-4)  # float32 products


def test_only_the_subspace_matters_not_its_frame(plant):
    frame = random_frames(jax.random.key(0), (), 6)
    turned = frame.copy()
    turned[:, :3] = frame[:, :3] @ random_frames(jax.random.key(1), (), 3)
    mask = np.array([1, 1, 1, 0, 0, 0], np.float32)
    first, second = (
        patched_outputs(plant.model, plant.params, plant.fit[0], LocalHandle(np.array(0), mask, rotation_basis(matrix)))
        for matrix in (frame, turned)
    )
    np.testing.assert_allclose(first, second, atol=1e-4)  # float32 products


def test_weights_give_every_variable_the_same_total_and_sensitive_pairs_their_share(plant):
    bank = plant.fit[1]
    weights = _pair_weights(bank, 0.7)
    np.testing.assert_allclose(weights.mean(axis=1), 1.0)
    np.testing.assert_allclose((weights * bank.active).mean(axis=1), 0.7)
    np.testing.assert_allclose(_pair_weights(bank, None), 1.0)
    with pytest.raises(ValueError, match=r"got sensitive weight 1\.0"):
        _pair_weights(bank, 1.0)


def test_the_grid_is_the_cross_product():
    candidates = candidate_grid(Tap("hidden", 8, 3), 2, ranks=(1, 4), learning_rates=(1e-3, 1e-2), restarts=2)
    rows = set(zip(*(np.asarray(column).tolist() for column in vars(candidates).values()), strict=True))
    assert len(rows) == 2 * 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (0,)}, r"got ranks \[0\], expected values from 1 to 8"),
        ({"ranks": (9,)}, r"got ranks \[9\]"),
        ({"ranks": ()}, r"got ranks \[\]"),
        ({"ranks": (1,), "depths": (3,)}, r"got depths \[3\], expected values from 0 to 2"),
        ({"ranks": (1,), "restarts": 0}, "got 0 restarts"),
        ({"ranks": (1,), "learning_rates": (0.0,)}, "expected positive numbers"),
    ],
)
def test_searches_outside_the_tap_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        candidate_grid(Tap("hidden", 8, 3), 2, **options)


def test_training_refuses_test_pairs_and_banks_smaller_than_a_batch(plant):
    candidates = candidate_grid(plant.model.taps["hidden"], 2, ranks=(1,))
    with pytest.raises(ValueError, match="got a test bank to train on"):
        train_rotations(jax.random.key(0), plant.model, plant.params, *plant.test, candidates, tap="hidden")
    with pytest.raises(ValueError, match="got batch size 100000"):
        _train(plant, candidates, DASConfig(batch_size=100_000))
