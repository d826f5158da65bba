"""Controls: what a handle must beat before its accuracy means anything.

identity         no edit: the network as it is.
random subspace  the same weights in a random rotation of the tap: as many directions, the wrong place, and as hard a
                 push where the handle's directions are orthonormal (an oblique handle pushes harder).
shuffled source  the same handle fed with the source of another pair: the right place, the wrong information.
full state       everything at one depth. Where flips of the output coincide for all variables this alone scores
                 high on sensitive pairs; only pairs that must stay as they are tell it from a real alignment.
"""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Int

from abstraction.causal import PairBank
from abstraction.interventions import AnyHandle, Handle, LocalHandle, random_frames, rotation_basis
from abstraction.models import Tap


def identity_handle(tap: Tap) -> LocalHandle:
    """Make the handle that changes nothing, at the last depth, where that costs least."""
    return LocalHandle(np.asarray((tap.depth or 1) - 1), np.zeros(tap.width, np.float32), None, tap.name)


def full_state_handles(tap: Tap) -> Handle:
    """Make one handle per depth that swaps the whole state there: weights `[L, L, D]`."""
    depth = tap.depth or 1
    return Handle(np.repeat(np.eye(depth, dtype=np.float32)[:, :, None], tap.width, axis=2), None, tap.name)


def shuffled_order(generator: np.random.Generator, bank: PairBank) -> Int[np.ndarray, " N"]:
    """Permute the pairs of a bank among those that count for the same variables."""
    order = np.arange(bank.size)
    groups = np.unique(bank.eligible, axis=1, return_inverse=True)[1].reshape(-1)
    for group in range(groups.max() + 1):
        members = np.flatnonzero(groups == group)
        order[members] = generator.permutation(members)
    return order


def random_subspaces(key: Array, handle: AnyHandle, width: int, draws: int) -> AnyHandle:
    """Put the weights of one handle on random orthonormal directions, `draws` times over.

    Args:
      key: a typed key.
      handle: a single handle.
      width: the tap's width D.
      draws: how many random handles to make.

    Returns:
      A batch of `draws` handles.
    """
    *depths, features = handle.weight.shape
    basis = rotation_basis(random_frames(key, (draws, *depths), width, features))
    repeated = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (draws, *leaf.shape)), jax.device_get(handle))
    return dataclasses.replace(repeated, basis=basis)
