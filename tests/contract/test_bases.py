"""Laws every basis obeys; join by adding a row to `BASES`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import Interchange, pca_basis, rotation_basis
from abstraction.interventions.bases import pca_bases, random_frames
from abstraction.interventions.handles import take_handle
from abstraction.interventions.sites import band_sites, basis_at, feature_ranks, prefix_sites
from abstraction.models import Tap

N, D = 40, 6
STATES = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32) * np.arange(1, D + 1) + 3.0
LOW = (STATES[:, :2] @ np.random.default_rng(1).standard_normal((2, D)) + 5.0).astype(np.float32)  # rank 2 and a mean
STACK = np.stack([STATES, LOW, STATES[:, ::-1]])
BASES = {
    "rotation": rotation_basis(jnp.asarray(random_frames(jax.random.key(0), (), D))),
    "pca": pca_basis(jnp.asarray(STATES)),
    "pca-uncentered": pca_basis(jnp.asarray(STATES), centered=False),
    "pca-whitened": pca_basis(jnp.asarray(STATES), whitened=True),
    "pca-rank-3": pca_basis(jnp.asarray(STATES), rank=3),
    "pca-of-rank-2": pca_basis(LOW),
    "pca-at-depth": basis_at(pca_bases(STACK), np.array(2)),
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


@pytest.mark.parametrize(("states", "rank"), [(STATES, D), (LOW, 2), (STATES[:4], 3), (1e-6 * LOW, 2), (1e4 * LOW, 2)])
def test_a_basis_has_as_many_components_as_the_states_have(states, rank):
    basis = pca_basis(states)
    assert basis.encoder.shape == (D, rank)
    # nothing of the states is left out
    rest = states - basis.mean - np.asarray(basis.decode(basis.encode(jnp.asarray(states))))
    np.testing.assert_allclose(rest, 0.0, atol=1e-5 * np.abs(states).max())  # float32 matrices


def test_states_that_do_not_move_have_no_components():
    with pytest.raises(ValueError, match="got rank 0, expected between 1 and 0, the rank of the states"):
        pca_basis(np.full((N, D), 3.7, np.float32))


@pytest.mark.parametrize(("states", "available"), [(STATES, D), (LOW, 2)])
def test_a_rank_the_states_do_not_have_is_refused(states, available):
    for rank in (0, available + 1):
        with pytest.raises(ValueError, match=f"got rank {rank}, expected between 1 and {available}"):
            pca_basis(states, rank=rank)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_bases_per_depth_are_those_of_each_depth_padded_with_zeros(centered, whitened):
    bases = pca_bases(STACK, centered=centered, whitened=whitened)
    assert bases.encoder.shape == (3, D, D)
    assert feature_ranks(bases) == [D, 2 if centered else 3, D]
    for depth, rank in enumerate(feature_ranks(bases)):
        one = pca_basis(STACK[depth], centered=centered, whitened=whitened)
        np.testing.assert_array_equal(bases.encoder[depth, :, :rank], one.encoder)
        np.testing.assert_array_equal(bases.decoder[depth, :rank], one.decoder)
        np.testing.assert_array_equal(bases.mean[depth], one.mean)
        assert (bases.encoder[depth, :, rank:] == 0).all()
        assert (bases.decoder[depth, rank:] == 0).all()


def test_padding_neither_reads_nor_writes():
    basis = basis_at(pca_bases(STACK), np.array(1))
    base, source = jnp.asarray(LOW[:20]), jnp.asarray(LOW[20:])
    short, every = (jnp.asarray(np.arange(D) < count, jnp.float32) for count in (2, D))
    np.testing.assert_array_equal(Interchange(source, short, basis)(base), Interchange(source, every, basis)(base))


def test_all_components_of_states_of_low_rank_are_a_full_swap_among_them():
    base, source = jnp.asarray(LOW[:20]), jnp.asarray(LOW[20:])
    swapped = Interchange(source, jnp.ones(2), BASES["pca-of-rank-2"])(base)
    np.testing.assert_allclose(swapped, source, rtol=1e-4, atol=1e-4)  # float32 products of entries of order 10
    assert np.abs(source - base).max() > 1


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_prefix_swap_changes_only_what_the_prefix_spans(size):
    sites = prefix_sites(Tap("hidden", D, 3), pca_bases(STACK), size)
    handle = take_handle(sites.handles(), 0)
    base, source = STATES[:20], STATES[20:]
    swapped = np.asarray(Interchange(jnp.asarray(source), jnp.asarray(handle.weight), handle.basis)(jnp.asarray(base)))
    span = np.linalg.eigh(np.cov(STATES.astype(float), rowvar=False))[1][:, ::-1][:, :size]
    projector = span @ span.T
    # float32 against NumPy's eigenvectors in float64
    np.testing.assert_allclose(swapped @ projector, source @ projector, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(swapped @ (np.eye(D) - projector), base @ (np.eye(D) - projector), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_changes_by_bands_add_up_to_a_full_swap(size):
    sites = band_sites(Tap("hidden", D, 3), pca_bases(STACK), size)
    base, source = jnp.asarray(STATES[:20]), jnp.asarray(STATES[20:])
    handles = sites.handles()
    bands = [take_handle(handles, index) for index in np.flatnonzero(sites.depth == 0).tolist()]
    assert len(bands) == -(-D // size)
    changes = [Interchange(source, jnp.asarray(band.weight), band.basis)(base) - base for band in bands]
    np.testing.assert_allclose(base + sum(changes), source, rtol=1e-4, atol=1e-4)  # float32 sums
    assert min(np.abs(change).max() for change in changes) > 0.1


def test_more_features_than_coordinates_are_refused():
    with pytest.raises(ValueError, match="got 7 features"):
        random_frames(jax.random.key(0), (), D, 7)
