"""Equinox: an MLP, and a transformer whose blocks are stacked and scanned. Modules compute one example."""

import equinox as eqx
import jax
import jax.numpy as jnp

WIDTH, HEADS, DEPTH, VOCABULARY = 12, 3, 2, 11


class MLP(eqx.Module):
    layers: list
    head: eqx.nn.Linear

    def __init__(self, key):
        first, second, head = jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(6, 8, key=first), eqx.nn.Linear(8, 8, key=second)]
        self.head = eqx.nn.Linear(8, 4, key=head)

    def __call__(self, x):
        for layer in self.layers:
            x = jax.nn.relu(layer(x))
        return self.head(x)


class Block(eqx.Module):
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        attention, up, down = jax.random.split(key, 3)
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=attention)
        self.up = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=up)
        self.down = eqx.nn.Linear(2 * WIDTH, WIDTH, key=down)

    def __call__(self, x):
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        normed = jax.vmap(self.norm)(x)
        x = x + self.attention(normed, normed, normed, mask)
        return x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(x)))


class Transformer(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: Block
    head: eqx.nn.Linear

    def __init__(self, key):
        embed, blocks, head = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=embed)
        self.blocks = eqx.filter_vmap(Block)(jax.random.split(blocks, DEPTH))
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, key=head)

    def __call__(self, tokens):
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)
        step = lambda x, one: (eqx.combine(one, rest)(x), None)
        x, _ = jax.lax.scan(step, jax.vmap(self.embed)(tokens), arrays)
        return self.head(x[-1])
