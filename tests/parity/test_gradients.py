"""Row P20: gradients through an interchange inside a network of transformers are those of PyTorch's autograd.

With respect to the features R, the weights of a mask, the source's state, and the parameters of the network itself.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import broken
from gentle_decoders import gentle, recorded
from hooked_decoders import torch

from abstraction.interventions import Basis, Interchange
from abstraction.models import Network, at_positions

pytestmark = pytest.mark.parity

N, T, K, DEPTH = 3, 6, 3, 1
AT = np.array([2, 4, 1])
TORCH_NAMES = {
    ("blocks", "query", "kernel"): "self_attn.q_proj.weight",
    ("blocks", "value", "kernel"): "self_attn.v_proj.weight",
    ("blocks", "down", "kernel"): "mlp.down_proj.weight",
    ("blocks", "mlp_norm", "scale"): "post_attention_layernorm.weight",
    ("blocks", "attention_norm", "scale"): "input_layernorm.weight",
}


def _setting():
    net, ours = gentle("llama", head_dim=8)
    rng = np.random.default_rng(13)
    base, source = rng.integers(net.config.vocab_size, size=(2, N, T))
    width = ours.taps["block_output"].width
    matrix = (rng.standard_normal((width, K)) / np.sqrt(width)).astype(np.float32)  # gradients need no orthonormal R
    mask = rng.uniform(0.3, 1.2, K).astype(np.float32)
    state = np.asarray(recorded(ours, source)["block_output"][DEPTH])[np.arange(N), AT]
    labels = rng.integers(net.config.vocab_size, size=N)
    return net, ours, base, labels, {"matrix": matrix, "mask": mask, "source": state}


def _loss(ours, base, labels, free, params):
    depth = ours.taps["block_output"].depth
    there = (np.arange(depth) == DEPTH)[:, None, None]
    spread = lambda leaf: jnp.broadcast_to(leaf, (depth, *leaf.shape))
    basis = Basis(spread(free["matrix"]), spread(free["matrix"].T), jnp.zeros((depth, free["matrix"].shape[0])))
    edit = Interchange(spread(free["source"]), there * free["mask"], basis)
    outputs, _ = Network(ours.model, params)(base, {"block_output": at_positions(edit, AT, depth=depth)})
    return -jax.nn.log_softmax(outputs)[np.arange(N), labels].mean()


def _torch(net, base, labels, free):
    """Return the loss, the loss without the interchange, and gradients by name."""
    net = copy.deepcopy(net).requires_grad_(True)
    leaves = {name: torch.tensor(values, requires_grad=True) for name, values in free.items()}

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        rows = []
        for n in range(N):
            old = hidden[n, AT[n]]
            new = old + (leaves["mask"] * ((leaves["source"][n] - old) @ leaves["matrix"])) @ leaves["matrix"].T
            rows.append(torch.cat([hidden[n, : AT[n]], new[None], hidden[n, AT[n] + 1 :]]))
        edited = torch.stack(rows)
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    loss = lambda: torch.nn.functional.cross_entropy(net(torch.tensor(base)).logits[:, -1], torch.tensor(labels))
    clean = loss().item()
    handle = net.model.layers[DEPTH].register_forward_hook(hook)
    patched = loss()
    handle.remove()
    patched.backward()
    gradients = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
    for path, name in TORCH_NAMES.items():
        found = [
            net.get_parameter(f"model.layers.{block}.{name}").grad.numpy().T for block in range(len(net.model.layers))
        ]
        gradients[path] = np.stack(found)
    gradients["embedding",] = net.get_parameter("model.embed_tokens.weight").grad.numpy()
    return patched.item(), clean, gradients


def check_gradients():
    net, ours, base, labels, free = _setting()
    wanted, clean, gradients = _torch(net, base, labels, free)
    assert abs(wanted - clean) > 1e-2, "the intervention moves nothing"
    run = jax.jit(jax.value_and_grad(lambda free, params: _loss(ours, base, labels, free, params), argnums=(0, 1)))
    value, (by_free, by_params) = run(jax.tree.map(jnp.asarray, free), ours.params)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for path, theirs in gradients.items():
        got = by_free[path] if isinstance(path, str) else by_params
        for key in () if isinstance(path, str) else path:
            got = got[key]
        scale = np.abs(theirs).max()
        assert scale > 1e-4, path
        # float32 through four blocks and back; entries are compared with the largest
        np.testing.assert_allclose(got, theirs, rtol=0, atol=2e-5 * scale, err_msg=str(path))


def test_gradients_through_an_interchange_are_those_of_autograd():
    """P20."""
    check_gradients()


SWAP, DECODE = Interchange.__call__, Basis.decode
MUTANTS = {
    "sources are constants": (
        Interchange,
        "__call__",
        lambda self, h: SWAP(Interchange(jax.lax.stop_gradient(self.source), self.weight, self.basis), h),
    ),
    "masks are constants": (
        Interchange,
        "__call__",
        lambda self, h: SWAP(Interchange(self.source, jax.lax.stop_gradient(self.weight), self.basis), h),
    ),
    "what is written is a constant": (Basis, "decode", lambda self, z: z @ jax.lax.stop_gradient(self.decoder)),
    "the network is a constant": (Interchange, "__call__", lambda self, h: SWAP(self, jax.lax.stop_gradient(h))),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_row_notices_what_is_broken(mutant):
    """P20: values stay right, gradients do not."""
    with broken(*MUTANTS[mutant]), pytest.raises(AssertionError, match="Not equal to tolerance rtol=0"):
        check_gradients()
