"""Laws every basis obeys; join by adding a row to `BASES`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import Interchange, pca_basis, random_frames, rotation_basis

N, D = 40, 6
STATES = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32) * np.arange(1, D + 1) + 3.0
BASES = {
    "rotation": rotation_basis(jnp.asarray(random_frames(jax.random.key(0), (), D))),
    "pca": pca_basis(jnp.asarray(STATES)),
    "pca-uncentered": pca_basis(jnp.asarray(STATES), centered=False),
    "pca-whitened": pca_basis(jnp.asarray(STATES), whitened=True),
    "pca-rank-3": pca_basis(jnp.asarray(STATES), rank=3),
    "frame": rotation_basis(jnp.asarray(random_frames(jax.random.key(1), (), D, 2))),
}
# float32 SVD and products of matrices with entries of order 10
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=BASES, name="basis")
def _basis(request):
    return BASES[request.param]


def test_writing_then_reading_returns_the_features(basis):
    features = basis.encoder.shape[1]
    np.testing.assert_allclose(basis.decoder @ basis.encoder, np.eye(features), **CLOSE)


def test_a_full_basis_round_trips(basis):
    if basis.encoder.shape[1] < D:
        pytest.skip("spans a part of the space")
    np.testing.assert_allclose(
        basis.decode(basis.encode(jnp.asarray(STATES))) + basis.mean, STATES, rtol=1e-3, atol=1e-3
    )


def test_swapping_all_features_of_a_full_basis_is_a_full_swap(basis):
    if basis.encoder.shape[1] < D:
        pytest.skip("spans a part of the space")
    base, source = jnp.asarray(STATES[:20]), jnp.asarray(STATES[20:])
    np.testing.assert_allclose(Interchange(source, jnp.ones(D), basis)(base), source, rtol=1e-3, atol=1e-3)


def test_swapping_bands_one_after_another_is_a_full_swap(basis):
    features = basis.encoder.shape[1]
    base, source = jnp.asarray(STATES[:20]), jnp.asarray(STATES[20:])
    every = Interchange(source, jnp.ones(features), basis)(base)
    state = base
    for feature in range(features):
        state = Interchange(source, jax.nn.one_hot(feature, features), basis)(state)
    np.testing.assert_allclose(state, every, rtol=1e-3, atol=1e-3)


def test_pca_matches_numpy_eigenvectors():
    basis = BASES["pca"]
    values, vectors = np.linalg.eigh(np.cov(STATES.astype(np.float64), rowvar=False))
    overlap = np.abs(np.sum(np.asarray(basis.encoder) * vectors[:, ::-1], axis=0))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
    spread = np.asarray(basis.encode(jnp.asarray(STATES))).var(axis=0, ddof=1)
    np.testing.assert_allclose(spread, values[::-1], rtol=1e-4)


def test_whitened_features_have_unit_variance():
    spread = np.asarray(BASES["pca-whitened"].encode(jnp.asarray(STATES))).var(axis=0, ddof=1)
    np.testing.assert_allclose(spread, 1.0, rtol=1e-4)


def test_whitening_does_not_change_a_full_strength_swap():
    base, source = jnp.asarray(STATES[:20]), jnp.asarray(STATES[20:])
    weight = jnp.array([1.0, 0, 1, 0, 0, 0])
    plain, white = (Interchange(source, weight, BASES[name])(base) for name in ("pca", "pca-whitened"))
    np.testing.assert_allclose(plain, white, rtol=1e-3, atol=1e-3)


def test_frames_are_orthonormal_and_drawn_uniformly():
    frames = random_frames(jax.random.key(2), (4000,), 3)
    np.testing.assert_allclose(frames.mT @ frames, np.broadcast_to(np.eye(3), frames.shape), atol=1e-5)
    # Haar: entries have mean 0 and variance 1/D; 4000 draws give standard errors of about .01
    np.testing.assert_allclose(frames.mean(axis=0), 0.0, atol=0.04)
    np.testing.assert_allclose(frames.var(axis=0), 1 / 3, atol=0.03)


@pytest.mark.parametrize("rank", [0, D + 1])
def test_a_rank_the_states_do_not_have_is_refused(rank):
    with pytest.raises(ValueError, match=f"got rank {rank}, expected between 1 and {D}"):
        pca_basis(jnp.asarray(STATES), rank=rank)


def test_more_features_than_coordinates_are_refused():
    with pytest.raises(ValueError, match="got 7 features"):
        random_frames(jax.random.key(0), (), D, 7)
