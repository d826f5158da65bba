"""Tiny decoders, one of every family, with parameters none of which is at its neutral value."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.models import Decoder, DecoderConfig
from abstraction.models.decoder_config import RopeScaling

SIZES = {"vocabulary": 23, "width": 16, "depth": 3, "heads": 4, "head_size": 4, "hidden": 24}
FAMILIES = {
    "gpt2": DecoderConfig(
        **SIZES, kv_heads=4, learned_positions=12, norm="layer", norm_epsilon=1e-5, gated=False,
        activation="gelu_tanh", qkv_bias=True, output_bias=True, mlp_bias=True,
    ),
    "llama": DecoderConfig(**SIZES, kv_heads=2, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), tied=False),
    "qwen2": DecoderConfig(**SIZES, kv_heads=1, qkv_bias=True, rope_theta=1e6),
    "gemma2": DecoderConfig(
        **SIZES | {"head_size": 6}, kv_heads=2, norm_offset=1.0, post_norms=True, activation="gelu_tanh",
        embedding_scale=4.0, query_scale=0.3, attention_cap=2.0, final_cap=3.0, window=3, windowed=(True, False, True),
    ),
}  # fmt: skip
LATER = {
    "gpt_neox": DecoderConfig(
        **SIZES, kv_heads=4, rotated=2, norm="layer", norm_epsilon=1e-5, parallel=True, gated=False, activation="gelu",
        qkv_bias=True, output_bias=True, mlp_bias=True, tied=False,
    ),
    "gemma3": DecoderConfig(
        **SIZES | {"head_size": 6}, kv_heads=2, norm_offset=1.0, query_key_norms=True, post_norms=True,
        activation="gelu_tanh", embedding_scale=4.0, query_scale=0.3, window=3, windowed=(True, True, False),
        rope_theta=1e6, local_rope_theta=100.0, rope_factor=4.0,
    ),
}  # fmt: skip
"""Families with switches of their own, for the tests that these concern."""


@functools.cache
def drawn(decoder: Decoder, seed: int = 0):
    """Draw parameters; biases and norms too, which start at 0 and 1."""
    leaves, structure = jax.tree.flatten(jax.jit(decoder.init)(jax.random.key(seed)))
    draw = np.random.default_rng(seed + 1).standard_normal
    moved = [np.asarray(leaf) + (0.2 * draw(leaf.shape)).astype(leaf.dtype) for leaf in leaves]
    return jax.tree.map(jnp.asarray, jax.tree.unflatten(structure, moved))


def padded(rng, prompts: int, tokens: int, shortest: int, vocabulary: int = SIZES["vocabulary"]):
    """Draw prompts of lengths from `shortest` on, padded on the left."""
    drawn = rng.integers(vocabulary, size=(prompts, tokens), dtype=np.int32)
    lengths = shortest + np.arange(prompts) % (tokens - shortest + 1)
    return np.where(np.arange(tokens) >= tokens - lengths[:, None], drawn, np.int32(-1))
