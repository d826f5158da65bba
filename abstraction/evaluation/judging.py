"""Judge frozen handles on test banks, and their controls.

The one place where test pairs meet handles. It takes handles that have been chosen already and returns counts; it
has no way to choose.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from abstraction.causal import PairBank
from abstraction.evaluation.controls import random_subspaces, shuffled_order
from abstraction.evaluation.iia import Tally, tally_handles
from abstraction.evaluation.readouts import CLASSES, Readout
from abstraction.interventions import Handle, LocalHandle, Recording, reorder_sources, take_handle
from abstraction.models import Model
from abstraction.pytrees import leading_axis
from abstraction.randomness import host_generator
from abstraction.typing import Params

Tests = Mapping[str, tuple[Recording, PairBank]]
"""Recorded banks by the name of the split they report."""


class Controls(NamedTuple):
    """Counts of the controls of a handle by split, `[V]` each, as means over repetitions.

    Attributes:
      random: the same weights on random subspaces.
      shuffled: the handle with shuffled sources.
    """

    random: dict[str, Tally]
    shuffled: dict[str, Tally]


def judge(
    model: Model,
    params: Params,
    handles: Handle | LocalHandle,
    tests: Tests,
    *,
    readout: Readout = CLASSES,
) -> dict[str, Tally]:
    """Count hits of one handle per variable on every split.

    Args:
      model: the network.
      params: its weights.
      handles: a batch of V handles, the v-th for variable v.
      tests: recorded banks by split.
      readout: how outputs meet labels.
    """
    variable = np.arange(leading_axis(handles))
    return {
        split: tally_handles(model, params, recording, bank, handles, variable, readout=readout)
        for split, (recording, bank) in tests.items()
    }


def judge_controls(
    key: Array,
    model: Model,
    params: Params,
    handles: Handle | LocalHandle,
    tests: Tests,
    *,
    draws: int = 20,
    shuffles: int = 5,
    readout: Readout = CLASSES,
) -> Controls:
    """Count hits of the controls that belong to given handles.

    Args:
      key: seeds the random subspaces and the shuffles.
      model: the network.
      params: its weights.
      handles: a batch of V handles, the v-th for variable v.
      tests: recorded banks by split.
      draws: random subspaces per variable.
      shuffles: permutations of the sources.
      readout: how outputs meet labels.
    """
    variables = leading_axis(handles)
    width = model.taps[handles.tap].width
    subspace_key, shuffle_key = jax.random.split(key)
    keys = jax.random.split(subspace_key, variables)
    batches = [random_subspaces(keys[v], take_handle(handles, v), width, draws) for v in range(variables)]
    subspaces = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    generator = host_generator(shuffle_key)
    controls = Controls({}, {})
    for split, (recording, bank) in tests.items():

        def count(recording: Recording, handles: Handle | LocalHandle, repeats: int, bank: PairBank = bank) -> Tally:
            owner = np.repeat(np.arange(variables), repeats)
            return tally_handles(model, params, recording, bank, handles, owner, readout=readout)

        drawn = count(recording, subspaces, draws)
        controls.random[split] = jax.tree.map(lambda leaf: leaf.reshape(variables, draws, 2).mean(axis=1), drawn)
        orders = [shuffled_order(generator, bank) for _ in range(shuffles)]
        shuffled = [count(reorder_sources(recording, order), handles, 1) for order in orders]
        controls.shuffled[split] = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *shuffled)
    return controls
