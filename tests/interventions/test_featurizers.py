"""Features that are not linear: against NumPy loops, and an edit that does nothing is nothing, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from abstraction.interventions import Basis
from abstraction.interventions import building as do
from abstraction.interventions.autoencoders import autoencoder, read_autoencoder, save_autoencoder
from abstraction.interventions.bases import random_frames
from abstraction.interventions.featurizers import FeatureMap, InFeatures, encoded, invertible
from abstraction.models import MLP, Network, Tap
from abstraction.models.taps import at_depth

N, D, K, L = 9, 5, 12, 2
TAP = Tap("stream", D, L)
RNG = np.random.default_rng(0)
BASE, SOURCE = RNG.standard_normal((2, N, D)).astype(np.float32)
ARRAYS = {
    "W_enc": RNG.standard_normal((D, K)), "b_enc": 0.3 * RNG.standard_normal(K), "W_dec": RNG.standard_normal((K, D)),
    "b_dec": RNG.standard_normal(D), "threshold": RNG.uniform(-0.5, 1.5, K),
}  # fmt: skip
ARRAYS = {name: array.astype(np.float32) for name, array in ARRAYS.items()}
KINDS = {"relu": {}, "jump_relu": {}, "top_k": {"top": 3}, "relu centered": {"centered": True}}
# float32 against float64
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def made(name):
    return autoencoder(ARRAYS, name.split()[0], **KINDS[name])


def latents(name, states):
    """Loop over examples and latents, in float64."""
    w, b = ARRAYS["W_enc"].astype(np.float64), ARRAYS["b_enc"].astype(np.float64)
    out = np.zeros((len(states), K))
    for n, state in enumerate(states.astype(np.float64)):
        read = state - ARRAYS["b_dec"] if "centered" in name else state
        values = [sum(read[d] * w[d, k] for d in range(D)) + b[k] for k in range(K)]
        for k, value in enumerate(values):
            rank = sum(other > value for other in values)
            on = {"relu": value > 0, "jump": value > ARRAYS["threshold"][k], "top_": rank < 3}[name[:4]]
            out[n, k] = max(value, 0) if on else 0
    return out


@pytest.mark.parametrize("name", KINDS)
def test_latents_are_those_of_loops(name):
    features = made(name)
    assert isinstance(features, FeatureMap)
    assert features.count == K
    wanted = latents(name, BASE)
    assert (wanted > 0).any()
    assert (wanted == 0).any()
    np.testing.assert_allclose(features.encode(jnp.asarray(BASE)), wanted, **CLOSE)
    decoded = wanted @ ARRAYS["W_dec"].astype(np.float64) + ARRAYS["b_dec"]
    np.testing.assert_allclose(features.decode(jnp.asarray(wanted, jnp.float32)), decoded, **CLOSE)


def apply(edits, base=BASE, depth=1):
    return np.asarray(at_depth(edits, depth)["stream"](jnp.asarray(base)))


def shifted(name, change, units):
    """The formula: h + decode(z') - decode(z), written h - decode(z) + decode(z')."""
    z = latents(name, BASE)
    moved = z.copy()
    moved[:, units] = change(z, latents(name, SOURCE))[:, units]
    decode = lambda features: features @ ARRAYS["W_dec"].astype(np.float64) + ARRAYS["b_dec"]
    error = BASE - decode(z)
    return decode(moved) + error


@pytest.mark.parametrize("name", KINDS)
def test_latents_are_interchanged_and_ablated(name):
    features, units = made(name), [1, 4, 7, 8]
    edits = do.interchange(TAP, SOURCE, depth=1, units=units, basis=features)
    np.testing.assert_allclose(apply(edits), shifted(name, lambda z, s: s, units), **CLOSE)
    half = do.interchange(TAP, SOURCE, weight=0.5, depth=1, units=units, basis=features)
    np.testing.assert_allclose(apply(half), shifted(name, lambda z, s: (z + s) / 2, units), **CLOSE)
    zero = do.zero(TAP, depth=1, units=units, basis=features)
    np.testing.assert_allclose(apply(zero), shifted(name, lambda z, s: 0 * z, units), **CLOSE)
    clamp = do.clamp(TAP, 0.5, np.inf, depth=1, units=units, basis=features)
    np.testing.assert_allclose(apply(clamp), shifted(name, lambda z, s: np.maximum(z, 0.5), units), **CLOSE)
    for edit in (edits, zero, clamp):
        np.testing.assert_array_equal(apply(edit, depth=0), BASE)


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_of_no_latent_is_nothing_to_the_bit(name):
    """P12: the reconstruction is bad, and its error term stays."""
    features, big = made(name), BASE * 100
    assert np.abs(np.asarray(features.decode(features.encode(jnp.asarray(BASE)))) - BASE).max() > 0.5
    nothing = [
        do.interchange(TAP, SOURCE, weight=0.0, depth=1, basis=features),
        do.interchange(TAP, big, depth=1, basis=features),
        do.scale(TAP, 1.0, depth=1, basis=features),
        do.clamp(TAP, 0.0, np.inf, depth=1, basis=features),
    ]
    for edits in nothing:
        edit = at_depth(edits, 1)["stream"]
        np.testing.assert_array_equal(jax.jit(edit.__call__)(jnp.asarray(big)), big)
        np.testing.assert_array_equal(edit(jnp.asarray(big)), big)


def test_a_basis_is_a_feature_map_too():
    frame = random_frames(jax.random.key(0), (), D, 3)
    basis = Basis(frame, frame.T, np.ones(D, np.float32))
    assert isinstance(basis, FeatureMap)
    inside = InFeatures(basis, do.scale(Tap("z", 3), 2.0)["z"])
    got = at_depth({"z": inside.edit}, 0)["z"]
    wanted = BASE + ((BASE.astype(np.float64) - 1) @ frame) @ frame.T
    np.testing.assert_allclose(InFeatures(basis, got)(jnp.asarray(BASE)), wanted, **CLOSE)


def test_features_work_in_a_network_at_one_depth_of_two():
    model = MLP(3, D, L, 2)
    network = Network(model, model.init(jax.random.key(0)))
    base, source = RNG.standard_normal((2, N, 3)).astype(np.float32)
    states = network(source, record=("hidden",))[1]["hidden"]
    features = made("jump_relu")
    edits = do.interchange(network.taps["hidden"], states[1], depth=1, basis=features)
    outputs, recorded = network(base, edits, ("hidden",))
    before = network(base, record=("hidden",))[1]["hidden"]
    np.testing.assert_array_equal(recorded["hidden"][0], before[0])
    np.testing.assert_allclose(features_of(recorded, before), changes_of(states, before), **CLOSE)
    head = network.params["head"]
    np.testing.assert_allclose(outputs, recorded["hidden"][1] @ head["kernel"] + head["bias"], **CLOSE)


def features_of(recorded, before):
    return np.asarray(recorded["hidden"][1] - before[1])


def changes_of(states, before):
    z, s = (latents("jump_relu", np.asarray(one[1])) for one in (before, states))
    return (s - z) @ ARRAYS["W_dec"].astype(np.float64)


def test_states_are_encoded_at_each_depth():
    features = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), made("relu"))
    both = encoded(features, np.stack([BASE, BASE]))
    np.testing.assert_allclose(both[0], latents("relu", BASE), **CLOSE)
    np.testing.assert_allclose(both[1], 2 * latents("relu", BASE), **CLOSE)


def forward(params, h):
    return jnp.sinh(h @ params["turn"])


def backward(params, z):
    return jnp.arcsinh(z) @ params["turn"].T


def test_any_invertible_map_gives_features():
    params = {"turn": random_frames(jax.random.key(1), (), D)}
    features = invertible(forward, backward, params, sample=BASE)
    assert features.count == D
    z, s = (np.sinh(h.astype(np.float64) @ params["turn"]) for h in (BASE, SOURCE))
    z[:, [0, 3]] = s[:, [0, 3]]
    wanted = np.arcsinh(z) @ params["turn"].T
    edits = do.interchange(TAP, SOURCE, depth=0, units=[0, 3], basis=features)
    np.testing.assert_allclose(apply(edits, depth=0), wanted, rtol=1e-4, atol=1e-4)  # sinh amplifies rounding
    np.testing.assert_array_equal(apply(do.scale(TAP, 1.0, depth=0, basis=features), depth=0), BASE)
    traces = []
    run = jax.jit(lambda edits, base: (traces.append(1), at_depth(edits, 0)["stream"](base))[1])
    for key in range(2):
        turned = invertible(forward, backward, {"turn": random_frames(jax.random.key(key), (), D)}, sample=BASE)
        run(do.zero(TAP, depth=0, units=[0], basis=turned), BASE)
    assert len(traces) == 1


STORED = {
    "common": lambda a: a,
    "linear maps": lambda a: {
        "encoder.weight": a["W_enc"].T.copy(), "encoder.bias": a["b_enc"], "decoder.weight": a["W_dec"].T.copy(),
        "b_dec": a["b_dec"], "threshold": a["threshold"], "num_batches": np.zeros(1, np.int64),
    },
    "mixed": lambda a: {
        "encoder.weight": a["W_enc"].T.copy(), "encoder.bias": a["b_enc"], "W_dec": a["W_dec"], "bias": a["b_dec"],
        "threshold": a["threshold"],
    },
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize("names", STORED)
def test_files_of_others_are_read(tmp_path, names, suffix):
    path, arrays = tmp_path / f"sae{suffix}", STORED[names](ARRAYS)
    save_file(arrays, path) if suffix == ".safetensors" else np.savez(path, **arrays)
    features = read_autoencoder(path, "jump_relu")
    np.testing.assert_allclose(features.encode(jnp.asarray(BASE)), latents("jump_relu", BASE), **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_saved_is_read_back(tmp_path, name):
    features, path = made(name), tmp_path / "sae.safetensors"
    save_autoencoder(features, path)
    back = read_autoencoder(path, name.split()[0], **KINDS[name])
    assert jax.tree.structure(back) == jax.tree.structure(features)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(features), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_file_in_half_precision_is_read(tmp_path):
    import ml_dtypes

    path = tmp_path / "sae.safetensors"
    save_file({name: array.astype(ml_dtypes.bfloat16) for name, array in ARRAYS.items()}, path)
    features = read_autoencoder(path, "relu")
    np.testing.assert_array_equal(features.encoder, ARRAYS["W_enc"].astype(ml_dtypes.bfloat16))


def test_a_file_that_says_what_it_is_is_not_read_as_anything_else(tmp_path):
    path = tmp_path / "features.safetensors"
    rng = np.random.default_rng(0)
    arrays = {"W_enc": rng.normal(size=(4, 6)), "b_enc": rng.normal(size=6), "W_dec": rng.normal(size=(6, 4))}
    features = autoencoder(arrays | {"b_dec": rng.normal(size=4)}, "top_k", top=2, centered=True)
    save_autoencoder(features, path)
    with pytest.raises(ValueError, match=r"expected .*'top_k', 'top': 2, 'centered': True"):
        read_autoencoder(path, "relu")
    assert read_autoencoder(path, "top_k", top=2, centered=True).top == 2
