"""Chains of layers against a loop over positions in NumPy, and the two forms of an MLP against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from once import once

from abstraction.interventions import Add, Set
from abstraction.models import MLP, Activation, Dense, Reducible, Sequential
from abstraction.models.layers import AveragePool, BatchNorm, Convolution, Flatten, GlobalAverage, MaxPool
from abstraction.models.unrolling import stacked, unrolled

DENSE = Sequential((5,), (Dense("fc1", 4), Activation("act", "tanh"), Dense("fc2", 3, use_bias=False)))
CONVOLUTIONAL = Sequential(
    (8, 5, 2),
    (
        Convolution("conv1", 3, padding="SAME"),
        BatchNorm("norm"),
        Activation("relu"),
        MaxPool("max"),
        Convolution("conv2", 4, (2, 2), (2, 1), use_bias=False),
        AveragePool("mean", (1, 1), (1, 1)),
        Flatten("flat"),
        Dense("head", 3),
    ),
)
STRIDED = Sequential(
    (7, 6, 2), (Convolution("conv", 3, (3, 2), (2, 3), "SAME"), GlobalAverage("mean"), Dense("head", 2))
)
MODELS = {"dense": DENSE, "convolutional": CONVOLUTIONAL, "strided": STRIDED}


def _params(model, seed=0):
    """Draw weights in which no array is trivially 0 or 1, as the statistics of a fresh BatchNorm are."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: rng.uniform(0.5, 1.5, leaf.shape) if "var" in str(path) else rng.normal(size=leaf.shape)
    return jax.tree_util.tree_map_with_path(lambda p, leaf: jnp.float32(draw(p, leaf)), model.init(jax.random.key(0)))


def _windows(values, window, strides, padding):
    """Yield each output position and what its window sees, `[N, *window, D]`."""
    if padding == "SAME":
        sizes = zip(values.shape[1:3], window, strides, strict=True)
        total = [max((-(-size // step) - 1) * step + wide - size, 0) for size, wide, step in sizes]
        values = np.pad(values, ((0, 0), *((t // 2, t - t // 2) for t in total), (0, 0)))
    counts = [(n - w) // s + 1 for n, w, s in zip(values.shape[1:3], window, strides, strict=True)]
    for i in range(counts[0]):
        for j in range(counts[1]):
            y, x = i * strides[0], j * strides[1]
            yield i, j, values[:, y : y + window[0], x : x + window[1]]


def _pooled(values, window, strides, padding, function):
    cells = [(i, j, function(seen)) for i, j, seen in _windows(values, window, strides, padding)]
    rows, columns = cells[-1][0] + 1, cells[-1][1] + 1
    return np.stack([cell for _, _, cell in cells], axis=1).reshape(len(values), rows, columns, -1)


def _layer(layer, arrays, a):
    match layer:
        case Dense():
            return a @ arrays["kernel"] + arrays.get("bias", 0.0)
        case Convolution():
            mixed = lambda seen: np.einsum("nijc,ijco->no", seen, arrays["kernel"])
            return _pooled(a, layer.kernel, layer.strides, layer.padding, mixed) + arrays.get("bias", 0.0)
        case BatchNorm():
            return arrays["scale"] * (a - arrays["mean"]) / np.sqrt(arrays["var"] + 1e-5) + arrays["bias"]
        case Activation():
            return {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[layer.function](a)
        case MaxPool():
            return _pooled(a, layer.window, layer.strides or layer.window, "VALID", lambda seen: seen.max(axis=(1, 2)))
        case AveragePool():
            return _pooled(a, layer.window, layer.strides or layer.window, "VALID", lambda seen: seen.mean(axis=(1, 2)))
        case GlobalAverage():
            return a.mean(axis=(1, 2))
        case Flatten():
            return a.reshape(len(a), -1)


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_matches_numpy(name, rng):
    model = MODELS[name]
    params = _params(model)
    inputs = rng.standard_normal((3, *model.inputs)).astype(np.float32)
    outputs, acts = model.apply(params, inputs, record=tuple(model.taps))
    value = inputs.astype(np.float64)
    for layer in model.layers:
        value = _layer(layer, jax.tree.map(lambda a: np.asarray(a, np.float64), params.get(layer.name)), value)
        assert acts[layer.name].shape[-1] == model.taps[layer.name].width
        # float32 against float64
        np.testing.assert_allclose(acts[layer.name][0], value, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(acts["logits"][0], outputs)
    np.testing.assert_array_equal(acts["inputs"][0], inputs)


@pytest.mark.parametrize("name", MODELS)
def test_resuming_from_any_layer_gives_the_outputs_of_apply(name, rng):
    model = MODELS[name]
    params = _params(model)
    inputs = rng.standard_normal((3, *model.inputs)).astype(np.float32)
    names = [layer.name for layer in model.layers]
    outputs, acts = model.apply(params, inputs, record=names)
    for tap in names:
        resumed = model.resume(params, tap, jnp.int32(0), acts[tap][0], inputs=inputs, states=acts[tap])
        np.testing.assert_array_equal(resumed, outputs)
    with pytest.raises(ValueError, match="got a resume from 'inputs', expected one of"):
        model.resume(params, "inputs", jnp.int32(0), acts[tap][0], inputs=inputs, states=acts[tap])


def test_an_edit_of_a_channel_reaches_every_position(rng):
    params, inputs = _params(CONVOLUTIONAL), rng.standard_normal((3, 8, 5, 2)).astype(np.float32)
    edit = Set(np.full(1, 7, np.float32), np.array([0, 1, 0], np.float32))
    _, acts = CONVOLUTIONAL.apply(params, inputs, {"relu": once(edit)}, record=("relu", "norm"))
    assert (acts["relu"][..., 1] == 7).all()
    np.testing.assert_array_equal(acts["relu"][..., [0, 2]], jnp.maximum(acts["norm"], 0)[..., [0, 2]])


def test_the_last_layer_is_edited_by_its_name_and_as_logits(rng):
    params, inputs = _params(DENSE), rng.standard_normal((3, 5)).astype(np.float32)
    plain, _ = DENSE.apply(params, inputs)
    both, _ = DENSE.apply(params, inputs, {"fc2": once(Add(np.full(3, 2.0))), "logits": once(Add(np.full(3, 3.0)))})
    np.testing.assert_allclose(both, plain + 5, rtol=1e-6)


def test_weights_start_uniform_within_one_over_root_fan_in():
    model = Sequential((8, 8, 5), (Convolution("conv", 200), Flatten("flat"), Dense("fc", 40)))
    params = model.init(jax.random.key(0))
    for layer, fan_in in (("conv", 45), ("fc", 7200)):
        kernel = np.asarray(params[layer]["kernel"]) * fan_in**0.5
        assert np.abs(kernel).max() <= 1.0001
        assert 0 < np.abs(np.asarray(params[layer]["bias"])).max() <= 1.0001 * fan_in**-0.5
        # U(-1, 1) has variance 1/3; 9 000 draws give a standard error of .003
        assert abs(kernel.var() - 1 / 3) < 0.012


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_mlp_and_its_chain_of_layers_are_the_same_network(depth, activation, rng):
    mlp = MLP(3, 5, depth, 2, activation)
    params = mlp.init(jax.random.key(1))
    inputs = rng.standard_normal((7, 3)).astype(np.float32)
    chain, arrays = unrolled(mlp, params)
    outputs, acts = mlp.apply(params, inputs, record=("hidden",))
    taps = [f"hidden{index}" for index in range(depth)]
    chained, values = chain.apply(arrays, inputs, record=taps)
    # float32 sums in another order
    np.testing.assert_allclose(chained, outputs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([values[tap] for tap in taps]), acts["hidden"], rtol=1e-5, atol=1e-6)
    back, again = stacked(chain, arrays)
    assert back == mlp
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
    "layers",
    [
        (Dense("a", 4), Activation("b"), Dense("c", 5), Activation("d"), Dense("e", 2)),
        (Dense("a", 4), Activation("b"), Dense("c", 4), Activation("d", "tanh"), Dense("e", 2)),
        (Dense("a", 4, use_bias=False), Activation("b"), Dense("e", 2)),
        (Dense("a", 4), Dense("b", 4), Dense("e", 2)),
        (Dense("e", 2),),
    ],
)
def test_chains_that_no_mlp_can_hold_are_refused(layers):
    chain = Sequential((3,), layers)
    with pytest.raises(ValueError, match="expected dense layers with biases, all hidden ones of one width"):
        stacked(chain, chain.init(jax.random.key(0)))


def test_params_of_pytorch_are_transposed(rng):
    arrays = {
        "fc1.weight": rng.normal(size=(4, 5)),
        "fc1.bias": rng.normal(size=4),
        "fc2.weight": rng.normal(size=(3, 4)),
    }
    inputs = rng.normal(size=(6, 5))
    outputs, _ = DENSE.apply(DENSE.params_from_torch(arrays), inputs.astype(np.float32))
    expected = np.tanh(inputs @ arrays["fc1.weight"].T + arrays["fc1.bias"]) @ arrays["fc2.weight"].T
    # float32 against float64
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("fc1.bias"), r"missed \['fc1.bias'\]"),
        (lambda a: a.update({"fc2.bias": np.zeros(3)}), r"got unknown arrays \['fc2.bias'\]"),
        (lambda a: a.update({"fc1.weight": np.zeros((5, 4))}), r"'fc1.weight' of shape \(5, 4\), expected \(4, 5\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(change, message):
    arrays = {"fc1.weight": np.zeros((4, 5)), "fc1.bias": np.zeros(4), "fc2.weight": np.zeros((3, 4))}
    change(arrays)
    with pytest.raises(ValueError, match=message):
        DENSE.params_from_torch(arrays)


def test_a_checkpoint_of_convolutions_is_refused():
    with pytest.raises(ValueError, match=r"got layers \['conv'\] with arrays of their own"):
        STRIDED.params_from_torch({})


@pytest.mark.parametrize(
    ("inputs", "layers", "message"),
    [
        ((3,), (Dense("a", 2), Dense("a", 2)), "expected at least one, distinct"),
        ((3,), (Dense("logits", 2),), "none of"),
        ((3,), (), "expected at least one"),
        ((3,), (Activation("a", "sine"),), r"got activation 'sine', expected one of \['gelu'"),
        ((3,), (Dense("a", 0),), "at least one feature"),
        ((4, 4, 1), (Convolution("a", 2, padding="FULL"),), r"got padding 'FULL' in layer 'a', expected one of"),
        ((3,), (Convolution("a", 2),), r"got inputs of shape \(3,\) for Convolution"),
        ((2, 4, 1), (Convolution("a", 2),), "positional axes of at least"),
        ((4, 4, 1), (Convolution("a", 2, strides=(0, 1), padding="SAME"),), "positive steps"),
        ((3, 3, 1), (MaxPool("a", (4, 4)),), "positional axes of at least"),
        ((3,), (GlobalAverage("a"),), "positions to average over"),
    ],
)
def test_layers_that_do_not_fit_are_refused(inputs, layers, message):
    with pytest.raises(ValueError, match=message):
        Sequential(inputs, layers).init(jax.random.key(0))


def test_inputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"got inputs of shape \(3, 6\), expected \(N, 5\)"):
        DENSE.apply(_params(DENSE), np.zeros((3, 6), np.float32))


def test_dense_layers_act_on_every_position(rng):
    model = Sequential((2, 3), (Dense("a", 4),))
    params, inputs = _params(model), rng.standard_normal((5, 2, 3)).astype(np.float32)
    outputs, _ = model.apply(params, inputs)
    assert outputs.shape == (5, 2, 4)
    # float32 matrix products of another shape
    np.testing.assert_allclose(outputs[:, 1], inputs[:, 1] @ params["a"]["kernel"] + params["a"]["bias"], rtol=1e-5)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("inputs", "expected one of"),
        ("logits", "expected one of"),
        ("nope", "expected one of"),
        ("head", "read by the output alone"),
        ("flat", "expected one before positions are flattened"),
    ],
)
def test_taps_without_units_to_remove_say_why(tap, message):
    assert isinstance(CONVOLUTIONAL, Reducible)
    with pytest.raises(ValueError, match=message):
        CONVOLUTIONAL.consumers(tap)


def test_a_tap_before_any_layer_that_mixes_has_no_producer():
    model = Sequential((3,), (Activation("a"), Dense("b", 2)))
    with pytest.raises(ValueError, match="comes before any layer that mixes units"):
        model.consumers("a")
