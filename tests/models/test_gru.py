"""The GRU against a step-by-step NumPy forward, and the loading of PyTorch checkpoints."""

from pathlib import Path

import jax
import numpy as np
import pytest

from abstraction.interventions import Add
from abstraction.models import GRU
from abstraction.tasks import addition

DATA = Path(__file__).parents[3] / "shared" / "data"
MODEL = GRU(2, 6, 4)


def _torch_arrays(rng, width=6, inputs=2):
    shapes = {
        "cell.weight_ih": (3 * width, inputs),
        "cell.weight_hh": (3 * width, width),
        "cell.bias_ih": (3 * width,),
        "cell.bias_hh": (3 * width,),
        "sum_head.weight": (1, width),
        "sum_head.bias": (1,),
        "final_carry_head.weight": (1, width),
        "final_carry_head.bias": (1,),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _forward(arrays, inputs):
    """Run the equations of PyTorch's GRUCell in float64."""
    w = {name: value.astype(np.float64) for name, value in arrays.items()}
    width = w["cell.weight_hh"].shape[1]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    h, states = np.zeros((len(inputs), width)), []
    for t in range(inputs.shape[1]):
        a = inputs[:, t] @ w["cell.weight_ih"].T + w["cell.bias_ih"]
        b = h @ w["cell.weight_hh"].T + w["cell.bias_hh"]
        gate = lambda k, x: x[:, k * width : (k + 1) * width]
        r, z = sigmoid(gate(0, a) + gate(0, b)), sigmoid(gate(1, a) + gate(1, b))
        n = np.tanh(gate(2, a) + r * gate(2, b))
        h = (1 - z) * n + z * h
        states.append(h)
    bits = [h @ w["sum_head.weight"].T + w["sum_head.bias"] for h in states]
    bits.append(states[-1] @ w["final_carry_head.weight"].T + w["final_carry_head.bias"])
    return np.concatenate(bits, axis=1), np.stack(states)


def test_forward_matches_numpy(rng):
    arrays, inputs = _torch_arrays(rng), rng.standard_normal((7, 4, 2)).astype(np.float32)
    outputs, acts = MODEL.apply(MODEL.params_from_torch(arrays), inputs, record=("hidden",))
    expected, states = _forward(arrays, inputs)
    # float32 against float64
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(acts["hidden"], states, rtol=1e-4, atol=1e-5)


def test_an_edit_of_a_step_changes_its_bit_and_later_ones_only(rng):
    inputs = rng.standard_normal((7, 4, 2)).astype(np.float32)
    params = MODEL.init(jax.random.key(0))
    outputs, _ = MODEL.apply(params, inputs)
    for step in range(4):
        offset = jax.nn.one_hot(step, 4)[:, None, None] * jax.numpy.ones(6)
        moved = np.abs(MODEL.apply(params, inputs, {"hidden": Add(offset)})[0] - outputs).max(axis=0)
        assert (moved[:step] < 1e-6).all()  # another program, which may round otherwise
        assert (moved[step:] > 1e-4).all()


@pytest.mark.parametrize("seed", range(3))
def test_shipped_adders_add_every_pair_of_numbers(seed):
    path = DATA / f"binary_addition_gru_h16_seed{seed}.npz"
    if not path.exists():
        pytest.skip("the trained adders are not beside this checkout")
    model = GRU(2, 16, 4)
    pool = addition.every_input(4)
    outputs, _ = model.apply(model.params_from_torch(np.load(path)), addition.encode(pool))
    total = ((np.asarray(outputs) >= 0) << np.arange(5)).sum(axis=1)
    np.testing.assert_array_equal(total, pool["a"] + pool["b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("cell.bias_hh"), r"missed \['cell.bias_hh'\]"),
        (lambda a: a.update({"cell.bias": a.pop("cell.bias_ih")}), r"got unknown arrays \['cell.bias'\]"),
        (lambda a: a.update({"cell.weight_hh": np.zeros((9, 3))}), r"weight_hh' of shape \(9, 3\), expected \(18, 6\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(rng, change, message):
    arrays = _torch_arrays(rng)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        MODEL.params_from_torch(arrays)


def test_inputs_of_another_length_are_refused(rng):
    with pytest.raises(ValueError, match=r"got inputs of shape \(7, 3, 2\), expected \(N, 4, 2\)"):
        MODEL.apply(MODEL.init(jax.random.key(0)), np.zeros((7, 3, 2), np.float32))


@pytest.mark.parametrize("sizes", [(0, 4, 1), (2, 0, 1), (2, 4, 0)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="expected each to be at least 1"):
        GRU(*sizes).init(jax.random.key(0))
