"""Which searches are trained together: neighbouring depths, ranks that cost about the same, and few sizes.

A candidate is as wide as the largest rank it is trained beside. Where frames are most of the work, ranks are trained
in buckets, each up to four times the one before, {1}, {2..4}, {5..16}, ..., so that rank 1 does not pay for rank 64.
Where the network is, larger batches of it pay more.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from abstraction.interventions import Basis, Handle
from abstraction.localization.supports import Candidates

_WIDE = 2**18
"""Numbers in the frames of all candidates from which on ranks are worth a program for each bucket."""


def groups_of(candidates: Candidates, bands: int, weights: int) -> list[Int[np.ndarray, " G"]]:
    """Split candidates into those of neighbouring depths, and of ranks within a factor of 4 where that saves work.

    Args:
      candidates: the searches.
      bands: groups of neighbouring depths.
      weights: numbers in the network's parameters.
    """
    depths, ranks = np.asarray(candidates.depth), np.asarray(candidates.rank)
    order = np.argsort(depths, kind="stable")
    wide = np.size(candidates.start) > max(_WIDE, weights)
    buckets = np.ceil(np.log2(ranks) / 2).astype(int) * wide
    parts = np.array_split(order, min(bands, len(depths)))
    return [part[buckets[part] == bucket] for part in parts for bucket in np.unique(buckets[part])]


def narrowed(candidates: Candidates) -> Candidates:
    """Drop the columns that no candidate uses."""
    most = int(np.asarray(candidates.rank).max())
    return dataclasses.replace(candidates, start=np.asarray(candidates.start)[..., :most])


def padded_searches(
    candidates: Candidates, of: int = 1, *, exact: bool = False
) -> tuple[Candidates, Bool[np.ndarray, " C"]]:
    """Fill up to 1, 2, 3, 4, 6, 8, 12, ... searches with idle repetitions, so that few programs serve all numbers.

    Supports differ between networks, and with them the number of searches; compiling costs more than what is idle. It
    does not in a large network: `exact` fills up for devices alone.

    Args:
      candidates: the searches.
      of: devices that share them equally.
      exact: fill up no further.
    """
    count = len(candidates.depth)
    power = 2 ** int(np.ceil(np.log2(count)))
    size = power * 3 // 4 if power * 3 // 4 >= count else power
    size = -(-(count if exact else size) // of) * of
    return candidates.take(np.minimum(np.arange(size), count - 1)), np.arange(size) >= count


def widened(handles: Handle, most: int) -> Handle:
    """Give handles features that are out of use, up to `most`."""
    pad = lambda array, *sides: np.pad(array, [(0, 0), *((0, side) for side in sides)])
    more = most - np.shape(handles.weight)[-1]
    if handles.basis is None or not more:
        return handles
    basis = Basis(pad(handles.basis.encoder, 0, more), pad(handles.basis.decoder, more, 0), handles.basis.mean)
    return dataclasses.replace(handles, weight=pad(handles.weight, more), basis=basis)
