"""What replaces a state where its source does not: zero, the mean over a bank, the state of another pair."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from abstraction.evaluation import Recorded, Repeats
from abstraction.interventions.patching import reorder_sources
from abstraction.models import Model, Network
from abstraction.models.base import present
from abstraction.randomness import host_generator, named_key


def replaced_sources(network: Network, recorded: Recorded, replace: str, repeats: Repeats) -> Recorded:
    """Let the sources be what replaces a state.

    Args:
      network: the network.
      recorded: a bank, recorded at one tap.
      replace: `zero`, `mean` (of the base states that are there), `resample` (another pair's base state), or anything
        else for the sources as they are.
      repeats: whose seed says which other pair.

    Raises:
      ValueError: a bank of one pair to resample from.
    """
    runs = recorded.runs
    if replace == "zero":
        source = jax.tree.map(jnp.zeros_like, runs.base)
    elif replace == "mean":
        source = {name: _mean(network.model, runs.inputs, name, each) for name, each in runs.base.items()}
    else:
        source = runs.base if replace == "resample" else runs.source
    runs = dataclasses.replace(runs, source=source)
    if replace == "resample":
        runs = reorder_sources(runs, _others(recorded, repeats))
    return dataclasses.replace(recorded, runs=runs)


def _mean(model: Model, inputs: Any, tap: str, states: Array) -> Array:
    """Average `[L, N, D]` or `[L, N, T, D]` over examples, of which padding is none."""
    if states.ndim < 4:
        return jnp.broadcast_to(states.mean(axis=1, keepdims=True), states.shape)
    there = present(model, inputs, tap, states.shape[2])[None, :, :, None]
    total = jnp.where(there, states, 0).sum(axis=1, keepdims=True)
    return jnp.broadcast_to(total / jnp.maximum(there.sum(axis=1, keepdims=True), 1), states.shape)


def _others(recorded: Recorded, repeats: Repeats) -> Int[np.ndarray, " N"]:
    """Give every pair another one: a random circle of all.

    Raises:
      ValueError: there is one pair alone.
    """
    count = recorded.bank.size
    if count < 2:
        raise ValueError("got a bank of one pair to resample from, expected two or more: each takes another's state")
    circle = host_generator(named_key(repeats.seed, "sweep resample")).permutation(count)
    order = np.empty(count, int)
    order[circle] = np.roll(circle, 1)
    return order
