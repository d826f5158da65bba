"""Laws every edit obeys; join by adding a row to `EDITS`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import Add, InOrder, Interchange, Scale, Set, rotation_basis
from abstraction.interventions.autoencoders import SparseAutoencoder
from abstraction.interventions.combining import Together
from abstraction.interventions.edits import Clamp, Masked, Noise, Renormalised
from abstraction.interventions.featurizers import InFeatures, Invertible
from abstraction.models import Edit

N, D = 5, 4


def _arrays(seed=0):
    return np.random.default_rng(seed).standard_normal((2, N, D)).astype(np.float32)


def _rotation():
    return rotation_basis(jnp.linalg.qr(jnp.asarray(_arrays(1)[0, :4]))[0])


def _autoencoder(kind, top=None):
    draw = np.random.default_rng(2).standard_normal
    arrays = [draw(shape).astype(np.float32) for shape in ((D, 7), (7,), (7, D), (D,), (7,))]
    return SparseAutoencoder(kind, top, True, *(arrays if kind == "jump_relu" else arrays[:4]))


def _forward(params, activation):
    return activation * params["scale"]


def _backward(params, features):
    return features / params["scale"]


SOURCE = jnp.asarray(_arrays()[1])
EDITS = {
    "interchange": Interchange(SOURCE, jnp.array([0.0, 0.5, 1.0, 2.0])),
    "interchange-per-pair": Interchange(SOURCE, jnp.ones((N, D))),
    "interchange-in-basis": Interchange(SOURCE, jnp.array([1.0, 0.0, 0.5, 0.0]), _rotation()),
    "set": Set(jnp.zeros(D)),
    "set-some": Set(jnp.zeros(D), jnp.array([1.0, 0.0, 1.0, 0.0])),
    "add": Add(jnp.ones(D)),
    "scale": Scale(jnp.arange(D, dtype=jnp.float32)),
    "noise": Noise(jax.random.key(0), jnp.array([1.0, 0.0, 2.0, 0.5])),
    "clamp": Clamp(jnp.full(D, -0.5), jnp.array([0.5, 1.0, 2.0, jnp.inf])),
    "masked": Masked(Scale(jnp.full(D, 2.0)), jnp.array([True, False, True, False])),
    "renormalised": Renormalised(Add(jnp.ones(D))),
    "together": Together((Set(jnp.zeros(D), jnp.array([1.0, 0.0, 0.0, 0.0])),), (Add(jnp.ones(D)),)),
    "in-features": InFeatures(_rotation(), Clamp(jnp.full(D, -0.1), jnp.full(D, 0.2))),
    "in-relu-latents": InFeatures(_autoencoder("relu"), Scale(jnp.arange(7.0))),
    "in-jump-relu-latents": InFeatures(_autoencoder("jump_relu"), Scale(jnp.arange(7.0))),
    "in-top-latents": InFeatures(_autoencoder("top_k", 2), Scale(jnp.arange(7.0))),
    "in-an-invertible-map": InFeatures(
        Invertible(_forward, _backward, D, {"scale": jnp.full(D, 2.0)}), Add(jnp.ones(D))
    ),
    "in-order": InOrder((Add(jnp.ones(D)), Scale(jnp.full(D, 2.0)))),
}


@pytest.fixture(params=EDITS, name="edit")
def _edit(request):
    return EDITS[request.param]


def test_an_edit_keeps_the_shape(edit):
    assert isinstance(edit, Edit)
    assert edit(jnp.asarray(_arrays()[0])).shape == (N, D)


def test_an_edit_is_a_pytree_of_arrays_that_round_trips(edit):
    leaves, structure = jax.tree.flatten(edit)
    assert leaves
    assert all(hasattr(leaf, "shape") for leaf in leaves)
    rebuilt = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(rebuilt(SOURCE), edit(SOURCE))


def _other(leaf):
    """Change a leaf, not its type: numbers, truth values, keys."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.fold_in(leaf, 1)
    return ~leaf if leaf.dtype == bool else leaf * 0.5


def test_changing_the_values_of_an_edit_does_not_recompile(edit):
    traces = []

    @jax.jit
    def run(edit, activation):
        traces.append(1)
        return edit(activation)

    run(edit, SOURCE)
    run(jax.tree.map(_other, edit), SOURCE)
    assert len(traces) == 1


def test_a_batch_of_edits_is_one_vmap(edit):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, _other(leaf)]), edit)
    activation = jnp.asarray(_arrays()[0])
    both = jax.vmap(lambda e: e(activation))(batch)
    for index in range(2):
        single = jax.tree.map(lambda leaf, index=index: leaf[index], batch)
        np.testing.assert_allclose(both[index], single(activation), rtol=1e-6, atol=1e-6)


def test_interchange_is_exact_at_weight_zero_and_one():
    base = jnp.asarray(_arrays()[0] * 1e4)
    np.testing.assert_array_equal(Interchange(SOURCE, jnp.ones(D))(base), SOURCE)
    np.testing.assert_array_equal(Interchange(SOURCE, jnp.zeros(D))(base), base)


def test_overlapping_sites_add_in_a_handle_and_compose_in_order():
    base = jnp.zeros((N, D))
    w1, w2 = 0.25, 0.5
    added = Interchange(SOURCE, jnp.full(D, w1 + w2))(base)
    ordered = InOrder((Interchange(SOURCE, jnp.full(D, w1)), Interchange(SOURCE, jnp.full(D, w2))))(base)
    np.testing.assert_allclose(added, (w1 + w2) * SOURCE, rtol=1e-6)
    np.testing.assert_allclose(ordered, (1 - (1 - w1) * (1 - w2)) * SOURCE, rtol=1e-6)


def test_interchange_in_a_basis_leaves_the_rest_untouched():
    basis = _rotation()
    base = jnp.asarray(_arrays()[0])
    edited = Interchange(SOURCE, jnp.array([1.0, 1.0, 0.0, 0.0]), basis)(base)
    before, after, source = (basis.encode(h) for h in (base, edited, SOURCE))
    # two float32 matrix products
    np.testing.assert_allclose(after[:, :2], source[:, :2], atol=1e-5)
    np.testing.assert_allclose(after[:, 2:], before[:, 2:], atol=1e-5)


def test_a_value_is_set_as_far_as_its_weight_says():
    base = jnp.asarray(_arrays()[0])
    weight = jnp.array([1.0, 0.0, 0.25, 1.0])
    edited = Set(jnp.full(D, 2.0), weight)(base)
    np.testing.assert_allclose(edited, (1 - weight) * base + weight * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(Set(jnp.full(D, 2.0))(base), np.full((N, D), 2.0))
