"""The MLP against a layer-by-layer NumPy forward."""

import jax
import numpy as np
import pytest
from oracles import mlp_layers, patched_mlp

from abstraction.interventions import Interchange
from abstraction.models import MLP


@pytest.mark.parametrize("activation", ["relu", "tanh", "identity"])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_forward_matches_numpy(activation, depth, rng):
    model = MLP(3, 5, depth, 2, activation)
    params = model.init(jax.random.key(depth))
    inputs = rng.standard_normal((7, 3)).astype(np.float32)
    outputs, acts = model.apply(params, inputs, record=("hidden", "inputs", "logits"))
    expected, states = mlp_layers(params, inputs, activation=activation)
    # float32 against float64
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(acts["hidden"], states, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(acts["inputs"][0], inputs)
    np.testing.assert_array_equal(acts["logits"][0], outputs)


def test_an_interchange_at_several_depths_matches_numpy(rng):
    model = MLP(3, 5, 3, 2)
    params = model.init(jax.random.key(0))
    base, source = rng.standard_normal((2, 7, 3)).astype(np.float32)
    weight = rng.uniform(0, 1.5, (3, 5)).astype(np.float32)
    _, acts = model.apply(params, source, record=("hidden",))
    patched, _ = model.apply(params, base, {"hidden": Interchange(acts["hidden"], weight[:, None, :])})
    # float32 against float64
    np.testing.assert_allclose(patched, patched_mlp(params, base, source, weight), rtol=1e-5, atol=1e-6)


def test_weights_start_uniform_within_one_over_root_fan_in():
    params = MLP(100, 400, 2, 3).init(jax.random.key(0))
    for layer, fan_in in (("stem", 100), ("blocks", 400), ("head", 400)):
        for name in ("kernel", "bias"):
            values = np.asarray(params[layer][name])
            assert np.abs(values).max() <= fan_in**-0.5
    kernel = np.asarray(params["blocks"]["kernel"]) * 20
    # U(-1, 1) has variance 1/3; 160 000 draws give a standard error of .0007
    assert abs(kernel.var() - 1 / 3) < 0.004


def test_a_seed_gives_the_same_weights_and_another_seed_does_not():
    model = MLP(3, 4, 2, 2)
    first, again, other = (model.init(jax.random.key(seed))["stem"]["kernel"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sizes", [(0, 4, 1, 2), (3, 4, 0, 2), (3, 4, 1, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="expected each to be at least 1"):
        MLP(*sizes).init(jax.random.key(0))


def test_an_unknown_activation_is_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"got activation 'sine', expected one of \['gelu'"):
        MLP(3, 4, 1, 2, "sine").init(jax.random.key(0))


def test_resuming_from_a_tap_that_does_not_determine_the_rest_is_refused(rng):
    model = MLP(3, 4, 2, 2)
    params = model.init(jax.random.key(0))
    state = jax.numpy.zeros((2, 4))
    with pytest.raises(ValueError, match="got a resume from 'inputs'"):
        model.resume(params, "inputs", jax.numpy.int32(0), state, inputs=state[:, :3], states=state[None])
