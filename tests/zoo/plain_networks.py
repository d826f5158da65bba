"""Functions of arrays: an MLP, and time before batch; Haiku's own way of writing one."""

import jax
import jax.numpy as jnp


def init_mlp(rng):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32) * 0.5
    return {"layers": [(draw(6, 8), draw(8)), (draw(8, 8), draw(8))], "head": draw(8, 4)}


def mlp(params, x):
    for kernel, bias in params["layers"]:
        x = jax.nn.relu(x @ kernel + bias)
    return x @ params["head"]


def init_recurrent(rng):
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32) * 0.5
    return {"input": draw(3, 7), "state": draw(7, 7), "head": draw(7, 4)}


def recurrent(params, x):
    """Run an Elman network, examples on the second axis while it runs."""

    def step(state, x):
        state = jnp.tanh(x @ params["input"] + state @ params["state"])
        return state, state

    _, states = jax.lax.scan(step, jnp.zeros((x.shape[0], 7)), jnp.swapaxes(x, 0, 1), reverse=True)
    return states[0] @ params["head"]
