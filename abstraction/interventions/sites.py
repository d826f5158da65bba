"""Sites and handles: what can be interchanged, as arrays.

A site is one depth and one weight row over the features of a tap; a bank of S sites is one pytree, so measuring all
of them is one vmap. A handle is the alignment of one causal variable: a weighted union of sites, which is again a
weight per depth and feature. Overlapping sites of one handle add up.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from abstraction.interventions.bases import Basis
from abstraction.interventions.edits import Interchange
from abstraction.models import Edits, Tap
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray


@pytree
class SiteBank:
    """S sites at one tap; build it with `unit_sites`, `group_sites` or `state_sites`.

    Attributes:
      depth: depth index of each site, `[S]`.
      weight: weight of each feature in the site, `[S, K]`.
      tap: the tap's name.
      tap_depth: the tap's depth L.
      basis: the features, each leaf `[L, ...]`, or None for native coordinates.
    """

    depth: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, "S K"]
    tap: str = static()
    tap_depth: int = static()
    basis: Basis | None = None

    @property
    def size(self) -> int:
        """The number of sites S."""
        return self.depth.shape[0]

    def handles(self) -> "LocalHandle":
        """Make each site a handle of strength 1, alone."""
        return LocalHandle(self.depth, self.weight, basis_at(self.basis, self.depth), self.tap)

    def rows(self) -> Float[np.ndarray, "S L K"]:
        """Spread each site over the tap's depth axis."""
        rows = np.zeros((self.size, self.tap_depth, self.weight.shape[-1]), np.float32)
        rows[np.arange(self.size), np.asarray(self.depth)] = self.weight
        return rows

    def union(self, mass: Float[np.ndarray, "*H S"]) -> Float[np.ndarray, "*H L K"]:
        """Weight sites by `mass` and add them up: the weights of a handle."""
        return np.tensordot(mass, self.rows(), axes=1)

    def succession(self, mass: Float[np.ndarray, "*H S"]) -> Float[np.ndarray, "*H L K"]:
        """Swap sites one after another, each by its `mass`: weights 1 - prod_j (1 - m_j site_j)."""
        left = np.ones((*mass.shape[:-1], self.tap_depth, self.weight.shape[-1]))
        for index, (depth, weight) in enumerate(zip(self.depth, self.weight, strict=True)):
            left[..., depth, :] *= 1 - mass[..., index, None] * weight
        return 1 - left

    def take(self, index: Int[np.ndarray, " T"] | Bool[np.ndarray, " S"]) -> "SiteBank":
        """Pick some sites."""
        return dataclasses.replace(self, depth=self.depth[index], weight=self.weight[index])


@pytree
class Handle:
    """Where a causal variable lives: a weight per depth and feature of one tap, in a basis.

    Attributes:
      weight: strength times site weight, `[L, K]` (more leading axes for a batch of handles).
      basis: features per depth, each leaf `[L, ...]`, or None for native coordinates.
      tap: the tap's name.
    """

    weight: AnyArray
    basis: Basis | None = None
    tap: str = static(default="hidden")

    def edits(self, source: Float[Array, "L N D"]) -> Edits:
        """The interchange of this handle's features with those of recorded source states."""
        return {self.tap: Interchange(source, jnp.asarray(self.weight)[:, None, :], self.basis)}


@pytree
class LocalHandle:
    """A handle at a single depth, evaluated by resuming the network there.

    Attributes:
      depth: depth index, a scalar (a value: handles at different depths share one program).
      weight: `[K]`.
      basis: features at that depth, or None for native coordinates.
      tap: the tap's name.
    """

    depth: AnyArray
    weight: AnyArray
    basis: Basis | None = None
    tap: str = static(default="hidden")


AnyHandle = TypeVar("AnyHandle", bound=Handle | LocalHandle)


def unit_sites(tap: Tap) -> SiteBank:
    """Make every single coordinate a site, depth-major."""
    return group_sites(tap, 1)


def group_sites(tap: Tap, width: int) -> SiteBank:
    """Make every contiguous block of `width` coordinates a site, depth-major; the last block may be smaller.

    Raises:
      ValueError: `width` is not between 1 and the tap's width.
    """
    if not 1 <= width <= tap.width:
        raise ValueError(f"got site width {width}, expected between 1 and {tap.width}, the width of tap {tap.name!r}")
    starts = range(0, tap.width, width)
    return coordinate_sites(
        tap, [(depth, range(s, min(s + width, tap.width))) for depth in range(_depth(tap)) for s in starts]
    )


def state_sites(tap: Tap) -> SiteBank:
    """Make the full state at each depth a site."""
    return group_sites(tap, tap.width)


def coordinate_sites(tap: Tap, sites: Sequence[tuple[int, Sequence[int]]]) -> SiteBank:
    """Make sites from explicit (depth, coordinates).

    Raises:
      ValueError: a depth or a coordinate is outside the tap, or a site is empty.
    """
    weight = np.zeros((len(sites), tap.width), np.float32)
    for index, (depth, coordinates) in enumerate(sites):
        if not 0 <= depth < _depth(tap):
            raise ValueError(f"got site {index} at depth {depth}, expected 0 to {_depth(tap) - 1} of tap {tap.name!r}")
        wrong = [c for c in coordinates if not 0 <= c < tap.width]
        if wrong or not len(coordinates):
            raise ValueError(
                f"got coordinates {list(coordinates)} in site {index}, expected some of 0 to {tap.width - 1}, "
                f"the width of tap {tap.name!r}"
            )
        weight[index, list(coordinates)] = 1.0
    return SiteBank(np.array([depth for depth, _ in sites], np.int32), weight, tap.name, _depth(tap))


def basis_at(basis: Basis | None, depth: Int[AnyArray, "*H"]) -> Basis | None:
    """Pick a basis per depth, each leaf `[L, ...]`, at given depths."""
    index = np.asarray(depth)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], basis)


def at_one_depth(handles: Handle) -> Handle | LocalHandle:
    """Make a batch of handles local if each of them acts at one depth, so that the network resumes there."""
    weight = np.asarray(handles.weight)
    acts = (weight != 0).any(axis=-1)
    if weight.ndim != 3 or (acts.sum(axis=1) > 1).any():
        return handles
    depth, rows = acts.argmax(axis=1).astype(np.int32), np.arange(len(weight))
    basis = jax.tree.map(lambda leaf: np.asarray(leaf)[rows, depth], handles.basis)
    return LocalHandle(depth, weight[rows, depth], basis, handles.tap)


def span_sites(tap: Tap, basis: Basis, spans: Sequence[tuple[int, Sequence[int]]]) -> SiteBank:
    """Make sites from explicit (depth, features of a basis per depth).

    Raises:
      ValueError: a depth is outside the tap, a site is empty, or the basis has no such feature there.
    """
    ranks = feature_ranks(basis)
    if len(ranks) != _depth(tap):
        raise ValueError(f"got a basis at {len(ranks)} depths, expected {_depth(tap)}, the depth of tap {tap.name!r}")
    weight = np.zeros((len(spans), np.shape(basis.encoder)[-1]), np.float32)
    for index, (depth, features) in enumerate(spans):
        if not 0 <= depth < _depth(tap):
            raise ValueError(f"got site {index} at depth {depth}, expected 0 to {_depth(tap) - 1} of tap {tap.name!r}")
        wrong = [feature for feature in features if not 0 <= feature < ranks[depth]]
        if wrong or not len(features):
            raise ValueError(
                f"got components {list(features)} in site {index}, expected 0 to {ranks[depth] - 1}: the states "
                f"of tap {tap.name!r} at depth {depth} have rank {ranks[depth]}"
            )
        weight[index, list(features)] = 1.0
    return SiteBank(np.array([depth for depth, _ in spans], np.int32), weight, tap.name, _depth(tap), basis)


def prefix_sites(tap: Tap, basis: Basis, size: int) -> SiteBank:
    """Make the first `size` features at each depth a site; where a depth has fewer, all of them.

    Raises:
      ValueError: no depth has as many features.
    """
    ranks = _enough(basis, size)
    return span_sites(tap, basis, [(depth, range(min(size, rank))) for depth, rank in enumerate(ranks)])


def band_sites(tap: Tap, basis: Basis, size: int) -> SiteBank:
    """Partition the features at each depth into bands of `size`, the last may be smaller; a site each.

    Raises:
      ValueError: no depth has as many features.
    """
    ranks = _enough(basis, size)
    bands = [(depth, range(s, min(s + size, rank))) for depth, rank in enumerate(ranks) for s in range(0, rank, size)]
    return span_sites(tap, basis, bands)


def feature_ranks(basis: Basis) -> list[int]:
    """Return how many features a basis per depth has at each; padding is zero."""
    return np.any(np.asarray(basis.encoder) != 0, axis=-2).sum(axis=-1).tolist()


def _enough(basis: Basis, size: int) -> list[int]:
    ranks = feature_ranks(basis)
    if not 1 <= size <= max(ranks):
        raise ValueError(
            f"got spans of {size} components, expected 1 to {max(ranks)}, the states' rank by depth {ranks}"
        )
    return ranks


def _depth(tap: Tap) -> int:
    if tap.depth is None:
        raise ValueError(f"got tap {tap.name!r} without a depth axis, expected a tap that recurs along depth")
    return tap.depth
