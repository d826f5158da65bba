"""Linen: an MLP, a transformer by `nn.scan` and `nn.remat`, and a GRU by `nn.RNN` and by `nn.scan`."""

import flax.linen as nn
import jax.numpy as jnp

WIDTH, HEADS, DEPTH, VOCABULARY, HIDDEN = 12, 3, 2, 11, 7


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 8):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(4, name="head")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(nn.LayerNorm()(x), mask=mask)
        hidden = nn.gelu(nn.Dense(2 * WIDTH, name="up")(x))
        return x + nn.Dense(WIDTH, name="down")(hidden), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(VOCABULARY, WIDTH)(tokens)
        blocks = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH)
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(VOCABULARY, name="head")(x[:, -1])


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        states = nn.RNN(nn.GRUCell(HIDDEN), name="rnn")(x)
        return nn.Dense(4, name="head")(states[:, -1])


class ScannedCell(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(nn.GRUCell, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        cell = scan(HIDDEN, name="cell")
        state, _ = cell(jnp.zeros((x.shape[0], HIDDEN)), x)
        return nn.Dense(4, name="head")(state)


def sequences(rng, count=5, length=4):
    return jnp.asarray(rng.standard_normal((count, length, 3)), jnp.float32)
