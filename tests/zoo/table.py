"""Every network of the zoo as a row: how a user runs it, what he wraps it by, and the same forward written by hand.

`by_hand(inputs, edit)` composes the user's own modules in plain Python, layer by layer and step by step, and calls
`edit(tap, depth, value)` on every tapped value: it is the oracle of records and of edits, and shares no code with the
library. `own(inputs)` is the user's forward pass, compiled as users of that framework compile it.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from abstraction.models import Network, wrap
from zoo import equinox_networks, linen_networks, nnx_networks, plain_networks
from zoo.linen_networks import DEPTH, HEADS, HIDDEN, VOCABULARY, WIDTH


class Case(NamedTuple):
    """A network of the zoo; `state` is a tap that, at one depth or at all of them, carries everything."""

    model: Any
    params: Any
    base: jax.Array
    source: jax.Array
    taps: dict[str, str]
    state: str
    own: Callable[[Any], Any]
    by_hand: Callable[..., Any]

    def wrapped(self) -> Network:
        """Do what a user does."""
        return wrap(self.model, self.params, self.base, self.taps)


def line(module: Any, text: str, operation: str) -> str:
    """Return the place of a source line of a module that has a text."""
    lines = inspect.getsource(module).splitlines()
    number = next(n for n, each in enumerate(lines, 1) if text in each)
    return f"{module.__name__.split('.')[-1]}.py:{number} {operation}"


def keep(tap: str, depth: int, value: Any) -> Any:
    """Edit nothing."""
    return value


def at_layer(tree: Any, depth: int) -> Any:
    """Return one layer of stacked arrays."""
    return jax.tree.map(lambda leaf: leaf[depth], tree)


def _nnx_mlp(rng):
    model = nnx_networks.MLP(nnx_networks.seeded())
    base, source = nnx_networks.numbers(rng), nnx_networks.numbers(rng)
    taps = {"hidden": line(nnx_networks, "x = nnx.relu(layer(x))", "relu"), "linear": "first|second", "logits": "head"}

    def by_hand(x, edit=keep):
        for depth, layer in enumerate((model.first, model.second)):
            x = edit("hidden", depth, jax.nn.relu(edit("linear", depth, layer(x))))
        return edit("logits", 0, model.head(x))

    return Case(model, None, base, source, taps, "hidden", _nnx_own(model), by_hand)


def _nnx_own(model):
    forward = nnx.jit(lambda model, inputs: model(inputs))
    return lambda inputs: forward(model, inputs)


def _nnx_blocks(model, blocks, x, edit):
    x = edit("embed", 0, model.embed(x))
    for depth, block in enumerate(blocks):
        mask = nnx.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + edit("attention", depth, block.attention(block.norm(x), mask=mask))
        units = edit("units", depth, block.mlp.up(x))
        x = edit("residual", depth, x + block.mlp.down(nnx.gelu(units)))
    return model.head(x)[:, -1]


def _nnx_transformer(rng):
    model = nnx_networks.Transformer(nnx_networks.seeded())
    by_hand = lambda x, edit=keep: _nnx_blocks(model, model.blocks, x, edit)
    taps = {"residual": "blocks/[0-9]+", "attention": "blocks/[0-9]+/attention", "units": "blocks/[0-9]+/mlp/up"}
    return Case(model, None, *_tokens(rng), taps | {"embed": "embed"}, "residual", _nnx_own(model), by_hand)


def _nnx_scanned(rng):
    model = nnx_networks.ScannedTransformer(nnx_networks.seeded())
    graph, state = nnx.split(model.blocks)

    def by_hand(x, edit=keep):
        return _nnx_blocks(model, [nnx.merge(graph, at_layer(state, depth)) for depth in range(DEPTH)], x, edit)

    taps = {"residual": "blocks", "attention": "blocks/attention", "units": "blocks/mlp/up", "embed": "embed"}
    return Case(model, None, *_tokens(rng), taps, "residual", _nnx_own(model), by_hand)


def _tokens(rng):
    return nnx_networks.tokens(rng), nnx_networks.tokens(rng)


def _linen(model, base, source, taps, state, by_hand):
    """Draw variables, and add what all Linen networks have."""
    variables = model.init(jax.random.key(1), base)
    forward = jax.jit(model.apply)
    own = lambda inputs: forward(variables, inputs)
    hand = lambda x, edit=keep: by_hand(variables["params"], x, edit)
    return Case(model, variables, base, source, taps, state, own, hand)


def _linen_mlp(rng):
    def by_hand(params, x, edit):
        for depth in range(2):
            x = nn.Dense(8).apply({"params": params[f"Dense_{depth}"]}, x)
            x = edit("hidden", depth, nn.relu(edit("linear", depth, x)))
        return edit("logits", 0, nn.Dense(4).apply({"params": params["head"]}, x))

    place = line(linen_networks, "x = nn.relu(nn.Dense(width)(x))", "relu")
    taps = {"hidden": place, "linear": "Dense_[0-9]+", "logits": "head"}
    base, source = nnx_networks.numbers(rng), nnx_networks.numbers(rng)
    return _linen(linen_networks.MLP(), base, source, taps, "hidden", by_hand)


def _linen_transformer(rng):
    def by_hand(params, x, edit):
        run = lambda module, values, *args, **kwargs: module.apply({"params": values}, *args, **kwargs)
        x = edit("embed", 0, run(nn.Embed(VOCABULARY, WIDTH), params["Embed_0"], x))
        mask = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        for depth in range(DEPTH):
            own = at_layer(params["blocks"], depth)
            normed = run(nn.LayerNorm(), own["LayerNorm_0"], x)
            attention = run(nn.MultiHeadDotProductAttention(HEADS), own["attention"], normed, mask=mask)
            x = x + edit("attention", depth, attention)
            units = edit("units", depth, run(nn.Dense(2 * WIDTH), own["up"], x))
            x = edit("residual", depth, x + run(nn.Dense(WIDTH), own["down"], nn.gelu(units)))
        return run(nn.Dense(VOCABULARY), params["head"], x[:, -1])

    taps = {"residual": "blocks", "attention": "blocks/attention", "units": "blocks/up", "embed": "Embed_0"}
    return _linen(linen_networks.Transformer(), *_tokens(rng), taps, "residual", by_hand)


def _linen_gru(rng):
    taps = {"hidden": "GRUCell_0", "candidate": "GRUCell_0/in", "states": "rnn"}
    return _linen_recurrent(linen_networks.Recurrent(), "GRUCell_0", taps, rng)


def _linen_cell(rng):
    taps = {"hidden": "cell", "candidate": "cell/in"}
    return _linen_recurrent(linen_networks.ScannedCell(), "cell", taps, rng)


def _linen_recurrent(model, name, taps, rng):
    """Write the gates out: Flax's cell is h' = (1 - z) n + z h with n = tanh(in + r (hn))."""

    def by_hand(params, x, edit):
        cell = params[name]
        dense = lambda part, values: values @ cell[part]["kernel"] + cell[part].get("bias", 0.0)
        h, states = jnp.zeros((len(x), HIDDEN)), []
        for step in range(x.shape[1]):
            reset = nn.sigmoid(dense("ir", x[:, step]) + dense("hr", h))
            update = nn.sigmoid(dense("iz", x[:, step]) + dense("hz", h))
            candidate = edit("candidate", step, dense("in", x[:, step]))
            h = (1 - update) * jnp.tanh(candidate + reset * dense("hn", h)) + update * h
            h = edit("hidden", step, h)
            states.append(h)
        last = edit("states", 0, jnp.stack(states, 1))[:, -1]
        return last @ params["head"]["kernel"] + params["head"]["bias"]

    base, source = linen_networks.sequences(rng), linen_networks.sequences(rng)
    return _linen(model, base, source, taps, "hidden", by_hand)


def _equinox_own(model):
    forward = eqx.filter_jit(lambda model, inputs: jax.vmap(model)(inputs))
    return lambda inputs: forward(model, inputs)


def _equinox_mlp(rng):
    model = equinox_networks.MLP(jax.random.key(2))

    def by_hand(x, edit=keep):
        for depth, layer in enumerate(model.layers):
            x = edit("hidden", depth, jax.nn.relu(edit("linear", depth, jax.vmap(layer)(x))))
        return edit("logits", 0, jax.vmap(model.head)(x))

    place = line(equinox_networks, "x = jax.nn.relu(layer(x))", "relu")
    taps = {"hidden": place, "linear": "layers/[0-9]+", "logits": "head"}
    base, source = nnx_networks.numbers(rng), nnx_networks.numbers(rng)
    return Case(model, None, base, source, taps, "hidden", _equinox_own(model), by_hand)


def _equinox_transformer(rng):
    model = equinox_networks.Transformer(jax.random.key(2))
    arrays, rest = eqx.partition(model.blocks, eqx.is_array)
    tokenwise = lambda module, x: jax.vmap(jax.vmap(module))(x)

    def by_hand(x, edit=keep):
        x = edit("embed", 0, tokenwise(model.embed, x))
        mask = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        for depth in range(equinox_networks.DEPTH):
            block = eqx.combine(at_layer(arrays, depth), rest)
            attend = lambda one, block=block: block.attention(one, one, one, mask)
            x = x + edit("attention", depth, jax.vmap(attend)(tokenwise(block.norm, x)))
            units = edit("units", depth, tokenwise(block.up, x))
            x = edit("residual", depth, x + tokenwise(block.down, jax.nn.gelu(units)))
        return jax.vmap(model.head)(x[:, -1])

    taps = {"residual": "blocks", "attention": "blocks/attention", "units": "blocks/up", "embed": "embed"}
    return Case(model, None, *_tokens(rng), taps, "residual", _equinox_own(model), by_hand)


def _plain_mlp(rng):
    params = plain_networks.init_mlp(rng)

    def by_hand(x, edit=keep):
        for depth, (kernel, bias) in enumerate(params["layers"]):
            x = edit("hidden", depth, jnp.maximum(edit("linear", depth, x @ kernel + bias), 0))
        return edit("logits", 0, x @ params["head"])

    here = lambda text, operation: line(plain_networks, text, operation)
    taps = {name: here("jax.nn.relu(x @", operation) for name, operation in (("hidden", "relu"), ("linear", "add"))}
    taps["logits"] = here('return x @ params["head"]', "dot_general")
    base, source = nnx_networks.numbers(rng), nnx_networks.numbers(rng)
    return _plain(plain_networks.mlp, params, base, source, taps, by_hand)


def _plain_recurrent(rng):
    params = plain_networks.init_recurrent(rng)

    def by_hand(x, edit=keep):
        state = jnp.zeros((len(x), 7))
        for depth, step in enumerate(reversed(range(x.shape[1]))):
            state = edit("sum", depth, x[:, step] @ params["input"] + state @ params["state"])
            state = edit("hidden", depth, jnp.tanh(state))
        return state @ params["head"]

    here = lambda operation: line(plain_networks, "state = jnp.tanh(", operation)
    base, source = linen_networks.sequences(rng), linen_networks.sequences(rng)
    return _plain(plain_networks.recurrent, params, base, source, {"hidden": here("tanh"), "sum": here("add")}, by_hand)


def _plain(function, params, base, source, taps, by_hand):
    forward = jax.jit(function)
    return Case(function, params, base, source, taps, "hidden", lambda x: forward(params, x), by_hand)


ROWS = {
    "nnx mlp": _nnx_mlp,
    "nnx transformer": _nnx_transformer,
    "nnx scanned transformer": _nnx_scanned,
    "linen mlp": _linen_mlp,
    "linen scanned transformer": _linen_transformer,
    "linen gru by rnn": _linen_gru,
    "linen gru by scan": _linen_cell,
    "equinox mlp": _equinox_mlp,
    "equinox scanned transformer": _equinox_transformer,
    "plain mlp": _plain_mlp,
    "plain reverse rnn": _plain_recurrent,
}


@cache
def case(name: str) -> Case:
    """Make a row, once."""
    return ROWS[name](np.random.default_rng(3))
