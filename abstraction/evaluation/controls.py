"""Controls: what a handle must beat before its accuracy means anything.

chance           the best constant answer: no network at all.
identity         no edit: the network as it is.
random subspace  the same weights in a random rotation of the tap: as many directions, the wrong place, and as hard a
                 push where the handle's directions are orthonormal (an oblique handle pushes harder).
shuffled source  the same handle fed with the source of another pair: the right place, the wrong information.
full state       everything at one depth. Where flips of the output coincide for all variables this alone scores
                 high on sensitive pairs; only pairs that must stay as they are tell it from a real alignment.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.causal import PairBank
from abstraction.checks import whole
from abstraction.interventions import Handle
from abstraction.interventions.bases import frame_basis, random_frames
from abstraction.models import Tap

_FEATURES = 32


def identity_handle(tap: Tap) -> Handle:
    """Make the handle that changes nothing, at the last depth, where that costs least."""
    return Handle(tap.name, np.zeros(tap.width, np.float32), None, np.asarray(tap.depth - 1))


def full_state_handles(tap: Tap) -> Handle:
    """Make one handle per depth that swaps the whole state there: weights `[L, L, D]`."""
    return Handle(tap.name, np.repeat(np.eye(tap.depth, dtype=np.float32)[:, :, None], tap.width, axis=2))


def chance_level(*banks: PairBank) -> Float[np.ndarray, " V"]:
    """Return what the best constant answer scores for each variable on pooled banks; NaN where no pair counts.

    For every label c, the mean over sensitive and invariant pairs of the share of each whose label is c; the largest.
    """
    return np.array([_best_constant(banks, variable) for variable in range(len(banks[0].variables))])


def _best_constant(banks: Sequence[PairBank], variable: int) -> float:
    labels, eligible, active = (
        np.concatenate([getattr(bank, name)[variable] for bank in banks]) for name in ("labels", "eligible", "active")
    )
    halves = [labels[mask] for mask in (eligible & active, eligible & ~active) if mask.any()]
    if not halves:
        return np.nan
    shares = [dict(zip(*np.unique(half, return_counts=True), strict=True)) for half in halves]
    constants = {label for share in shares for label in share}
    return max(
        float(np.mean([share.get(label, 0) / len(half) for share, half in zip(shares, halves, strict=True)]))
        for label in constants
    )


def shuffled_order(generator: np.random.Generator, bank: PairBank) -> Int[np.ndarray, " N"]:
    """Permute the pairs of a bank among those that count for the same variables."""
    order = np.arange(bank.size)
    groups = np.unique(bank.eligible, axis=1, return_inverse=True)[1].reshape(-1)
    for group in range(groups.max() + 1):
        members = np.flatnonzero(groups == group)
        order[members] = generator.permutation(members)
    return order


def without_idle_features(handles: Handle) -> Handle:
    """Leave out features that no handle of a batch moves, and the basis with them: a batch of weights alone.

    A random subspace has as many directions as are moved; drawing all others would cost D^3. Some idle ones stay, up to
    32, 128, 512, ... features: how many are moved differs from seed to seed, and a program is made for each number.
    """
    weight = np.asarray(handles.weight)
    idle = ~(weight != 0).any(axis=tuple(range(weight.ndim - 1)))
    kept = _FEATURES
    while kept < (~idle).sum():
        kept *= 4
    return dataclasses.replace(handles, weight=weight[..., np.sort(np.argsort(idle, kind="stable")[:kept])], basis=None)


def random_subspaces(key: Array, handle: Handle, width: int, draws: int) -> Handle:
    """Put the weights of one handle on random orthonormal directions, `draws` times over.

    Args:
      key: a typed key.
      handle: a single handle.
      width: the tap's width D.
      draws: how many random handles to make.

    Returns:
      A batch of `draws` handles.

    Raises:
      ValueError: fewer than one draw, or more features than the width.
    """
    whole("draws of random subspaces", draws)
    *depths, features = handle.weight.shape
    basis = frame_basis(random_frames(key, (draws, *depths), width, features))
    repeated = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (draws, *leaf.shape)), jax.device_get(handle))
    return dataclasses.replace(repeated, basis=basis)
