"""The MLP and its taps against PyTorch modules and forward hooks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import MLP

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
from benchmarks.torch_oracle import hooked, record_hidden, tensor, torch_mlp  # noqa: E402

pytestmark = pytest.mark.parity

MODELS = [MLP(16, 16, 3, 2), MLP(7, 12, 1, 4, "tanh"), MLP(5, 33, 4, 3, "identity")]
# float32 sums of up to 33 products in another order, through up to five layers
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(params=MODELS, ids=str, name="case")
def _case(request, rng):
    model = request.param
    params = model.init(jax.random.key(1))
    inputs = rng.standard_normal((200, model.inputs)).astype(np.float32)
    return model, params, inputs, torch_mlp(params, model.activation)


def test_forward_pass_equals_pytorch(case):
    model, params, inputs, network = case
    np.testing.assert_allclose(model.apply(params, inputs)[0], network(tensor(inputs)), **CLOSE)


def test_recorded_taps_equal_what_hooks_see(case):
    model, params, inputs, network = case
    names = ("inputs", "preactivation", "hidden", "logits")
    _, taps = model.apply(params, inputs, record=names)
    preactivation = {}
    keep = [(layer[0], lambda z, at=depth: preactivation.update({at: z})) for depth, layer in enumerate(network.layers)]
    with hooked(keep):
        logits = network(tensor(inputs))
    hidden = record_hidden(network, tensor(inputs))
    stacked = [torch.stack([states[depth] for depth in range(model.depth)]) for states in (preactivation, hidden)]
    for name, expected in zip(names, (inputs[None], *stacked, logits[None]), strict=True):
        np.testing.assert_allclose(taps[name], expected, **CLOSE, err_msg=name)


def test_resuming_equals_the_layers_that_are_left(case):
    model, params, inputs, network = case
    states = record_hidden(network, tensor(inputs))
    recorded = jnp.stack([jnp.asarray(states[depth].numpy()) for depth in range(model.depth)])
    for depth in range(model.depth):
        ours = model.resume(params, "hidden", jnp.int32(depth), recorded[depth], inputs=inputs, states=recorded)
        np.testing.assert_allclose(ours, network.resume(depth, states[depth]), **CLOSE)
