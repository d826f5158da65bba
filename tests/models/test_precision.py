"""A decoder in bfloat16: its weights are rounded, its logits are float32, and the numbers are near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import MLP, Decoder, DecoderConfig, Network, in_precision

DECODER = Decoder(DecoderConfig(vocabulary=10, width=8, depth=2, heads=2, kv_heads=1, head_size=4, hidden=6))
NETWORK = Network(DECODER, DECODER.init(jax.random.key(0)))
TOKENS = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], np.int32)


def _logits(network):
    return np.asarray(network.model.run(network.params, TOKENS).outputs)


def test_weights_are_rounded_and_logits_stay_float32():
    rounded = in_precision(NETWORK, "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.bfloat16)}
    exact, near = _logits(NETWORK), _logits(rounded)
    assert near.dtype == jnp.float32
    error = np.abs(near - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < 0.1, "8 bits of mantissa"


def test_its_own_precision_changes_nothing():
    same = in_precision(NETWORK, "float32")
    np.testing.assert_array_equal(_logits(same), _logits(NETWORK))


def test_what_is_no_decoder_or_no_precision_is_refused(unchecked):
    with pytest.raises(ValueError, match="got a network of MLP, expected one of Decoder"):
        in_precision(Network(MLP(2, 4, 1, 2), MLP(2, 4, 1, 2).init(jax.random.key(0))), "bfloat16")
    with pytest.raises(ValueError, match="precision"):
        in_precision(NETWORK, "float16")
