"""Sites and handles: what can be interchanged, as arrays.

A site is one depth and a weighted set of features of a tap, kept as their indices, so a bank of S sites of W features
each is 2 S W numbers whatever the width of the tap: one pytree, and measuring all of them is one mapped program. A
handle is the alignment of one causal variable: a weighted union of sites, which is a weight per depth and feature.
Overlapping sites of one handle add up.
"""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.checks import are_some_of, is_whole, places
from abstraction.interventions.bases import Basis
from abstraction.interventions.handles import Handle, check_depths, coordinate_mass
from abstraction.models import Tap
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray


@pytree
class SiteBank:
    """S sites at one tap; build it with `unit_sites`, `group_sites` or `state_sites`.

    Attributes:
      depth: depth index of each site, `[S]`.
      index: the features of each site, each once, `[S, W]`; W is the largest number of them.
      value: their weights, `[S, W]`; 0 where a site has fewer than W.
      tap: the tap's name.
      tap_depth: the tap's depth L.
      features: how many features K there are: the tap's width, or those of the basis.
      basis: the features, each leaf `[L, ...]`, or None for native coordinates.
    """

    depth: Int[AnyArray, " S"]
    index: Int[AnyArray, "S W"]
    value: Float[AnyArray, "S W"]
    tap: str = static()
    tap_depth: int = static()
    features: int = static()
    basis: Basis | None = None

    @property
    def size(self) -> int:
        """The number of sites S."""
        return len(self.depth)

    @property
    def counts(self) -> Int[np.ndarray, " S"]:
        """The number of features of each site."""
        return (np.asarray(self.value) != 0).sum(axis=1)

    def weights(self) -> Float[np.ndarray, "S K"]:
        """Spread each site over all features: S K numbers."""
        weights = np.zeros((self.size, self.features), np.float32)
        np.add.at(weights, (np.arange(self.size)[:, None], np.asarray(self.index)), self.value)
        return weights

    def handles(self) -> Handle:
        """Make each site a handle of strength 1, alone: S K numbers."""
        return Handle(self.tap, self.weights(), basis_at(self.basis, self.depth), self.depth)

    def rows(self) -> Float[np.ndarray, "S L K"]:
        """Spread each site over the tap's depth axis and all features: S L K numbers."""
        rows = np.zeros((self.size, self.tap_depth, self.features), np.float32)
        rows[np.arange(self.size), np.asarray(self.depth)] = self.weights()
        return rows

    def union(self, mass: Float[np.ndarray, "*H S"]) -> Float[np.ndarray, "*H L K"]:
        """Weight sites by `mass` and add them up: the weights of a handle. Sites without mass cost nothing."""
        flat = np.reshape(mass, (-1, self.size))
        handle, site = np.nonzero(flat)
        place = np.asarray(self.depth)[site, None] * self.features + np.asarray(self.index)[site]
        weight = np.zeros((len(flat), self.tap_depth * self.features), np.result_type(flat, np.float32))
        np.add.at(weight, (handle[:, None], place), flat[handle, site][:, None] * np.asarray(self.value)[site])
        return weight.reshape(*np.shape(mass)[:-1], self.tap_depth, self.features)

    def succession(self, mass: Float[np.ndarray, "*H S"]) -> Float[np.ndarray, "*H L K"]:
        """Swap sites one after another, each by its `mass`: weights 1 - prod_j (1 - m_j site_j)."""
        left = np.ones((*mass.shape[:-1], self.tap_depth, self.features))
        depth, index, value = (np.asarray(array) for array in (self.depth, self.index, self.value))
        for site in np.flatnonzero(mass.reshape(-1, self.size).any(axis=0)):
            used = value[site] != 0
            left[..., depth[site], index[site][used]] *= 1 - mass[..., site, None] * value[site][used]
        return 1 - left

    def take(self, index: Int[np.ndarray, " T"] | Bool[np.ndarray, " S"]) -> "SiteBank":
        """Pick some sites."""
        return dataclasses.replace(self, depth=self.depth[index], index=self.index[index], value=self.value[index])


def unit_sites(tap: Tap) -> SiteBank:
    """Make every single coordinate a site, depth-major."""
    return group_sites(tap, 1)


def group_sites(tap: Tap, width: int) -> SiteBank:
    """Make every contiguous block of `width` coordinates a site, depth-major; the last block may be smaller.

    Raises:
      ValueError: `width` is not between 1 and the tap's width.
    """
    if not is_whole(width) or not 1 <= width <= tap.width:
        raise ValueError(f"got site width {width}, expected between 1 and {tap.width}, the width of tap {tap.name!r}")
    starts = range(0, tap.width, width)
    return coordinate_sites(
        tap, [(depth, range(s, min(s + width, tap.width))) for depth in range(tap.depth) for s in starts]
    )


def state_sites(tap: Tap) -> SiteBank:
    """Make the full state at each depth a site."""
    return group_sites(tap, tap.width)


def coordinate_sites(tap: Tap, sites: Sequence[tuple[int, Sequence[int]]]) -> SiteBank:
    """Make sites from explicit (depth, coordinates).

    Raises:
      ValueError: a depth or a coordinate is outside the tap or given twice, or there is no site, or an empty one.
    """
    if not len(sites):
        raise ValueError(f"got no site of tap {tap.name!r}, expected at least one")
    for index, (depth, coordinates) in enumerate(sites):
        _check_place(tap, index, depth)
        if not are_some_of(coordinates, tap.width):
            raise ValueError(
                f"got coordinates {list(coordinates)} in site {index}, expected some of 0 to {tap.width - 1}, each "
                f"once, the width of tap {tap.name!r}"
            )
    return SiteBank(*_indexed(sites), tap.name, tap.depth, tap.width)


def _indexed(
    sites: Sequence[tuple[int, Sequence[int]]],
) -> tuple[Int[np.ndarray, " S"], Int[np.ndarray, "S W"], Float[np.ndarray, "S W"]]:
    """Write sites as depths, indices and weights of 1, padded to the longest."""
    most = max(len(features) for _, features in sites)
    index, value = np.zeros((len(sites), most), np.int32), np.zeros((len(sites), most), np.float32)
    for row, (_, features) in enumerate(sites):
        index[row, : len(features)] = features
        value[row, : len(features)] = 1.0
    return np.array([depth for depth, _ in sites], np.int32), index, value


def sites_within(sites: SiteBank, handles: Handle) -> SiteBank:
    """Keep the sites that lie in what some handle of a batch moves: groups of a head, once heads are chosen.

    Args:
      sites: native, finer ones.
      handles: native, of the same tap.

    Raises:
      ValueError: another tap, features that are of a basis, or no site lies within.
    """
    if handles.tap != sites.tap or sites.basis is not None or handles.basis is not None:
        raise ValueError(f"got handles of tap {handles.tap!r}, expected native ones, as the sites, of {sites.tap!r}")
    moved = coordinate_mass(handles, sites.tap_depth) > 0
    inside = moved[:, np.asarray(sites.depth)[:, None], np.asarray(sites.index)] | (np.asarray(sites.value) == 0)
    kept = inside.all(axis=2).any(axis=0)
    if not kept.any():
        raise ValueError(f"got {sites.size} sites, none within what the handles move, expected finer ones")
    return sites.take(kept)


_Basis = TypeVar("_Basis", bound=Basis | None)


def basis_at(basis: _Basis, depth: Int[AnyArray, "*H"]) -> _Basis:
    """Pick a basis per depth, each leaf `[L, ...]`, at given depths."""
    index = np.asarray(depth)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], basis)


def span_sites(tap: Tap, basis: Basis, spans: Sequence[tuple[int, Sequence[int]]]) -> SiteBank:
    """Make sites from explicit (depth, features of a basis per depth).

    Raises:
      ValueError: a depth is outside the tap, there is no site, or an empty one, the basis has no such feature there, or
        is not one per depth of the tap.
    """
    _check_basis(tap, basis)
    ranks = feature_ranks(basis)
    if not len(spans):
        raise ValueError(f"got no site of tap {tap.name!r}, expected at least one")
    for index, (depth, features) in enumerate(spans):
        _check_place(tap, index, depth)
        if not are_some_of(features, ranks[depth]):
            raise ValueError(
                f"got components {list(features)} in site {index}, expected 0 to {ranks[depth] - 1}, each once: the "
                f"states of tap {tap.name!r} at depth {depth} have rank {ranks[depth]}"
            )
    return SiteBank(*_indexed(spans), tap.name, tap.depth, np.shape(basis.encoder)[-1], basis)


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
    if not is_whole(size) or not 1 <= size <= max(ranks):
        raise ValueError(
            f"got spans of {size} components, expected 1 to {max(ranks)}, the states' rank by depth {ranks}"
        )
    return ranks


def check_sites(sites: SiteBank, tap: Tap) -> None:
    """Refuse a bank of sites that does not fit its tap.

    Raises:
      ValueError: another tap, depth or width, no site, a depth that is not there, or weights that are not finite.
    """
    if (sites.tap, sites.tap_depth) != (tap.name, tap.depth):
        raise ValueError(
            f"got sites of tap {sites.tap!r} of depth {sites.tap_depth}, expected tap {tap.name!r} of depth {tap.depth}"
        )
    if sites.basis is not None:
        _check_basis(tap, sites.basis)
    features = tap.width if sites.basis is None else np.shape(sites.basis.encoder)[-1]
    shape = np.shape(sites.index)
    if sites.features != features or shape != np.shape(sites.value) or shape[:1] != (len(sites.depth),) or not shape[0]:
        raise ValueError(
            f"got {len(sites.depth)} sites of features {shape} among {sites.features}, expected a row for each, at "
            f"least one, of {features} features at tap {tap.name!r}"
        )
    check_depths(np.asarray(sites.depth), tap)
    places(f"features of sites at tap {tap.name!r}", sites.index, features)
    if not np.isfinite(np.asarray(sites.value, np.float64)).all():
        raise ValueError(f"got weights of sites of tap {tap.name!r} that are not finite, expected finite numbers")


def _check_basis(tap: Tap, basis: Basis) -> None:
    shape, back = np.shape(basis.encoder), np.shape(basis.decoder)
    if len(shape) != 3 or shape[0] != tap.depth:
        depths = shape[0] if len(shape) == 3 else f"no axis of depths, but an encoder {shape}"
        raise ValueError(f"got a basis at {depths} depths, expected {tap.depth}, the depth of tap {tap.name!r}")
    if shape[1] != tap.width or back != (shape[0], shape[2], shape[1]):
        raise ValueError(f"got encoder {shape} and decoder {back}, expected a basis of width {tap.width}")
    if not np.isfinite(np.asarray(basis.encoder)).all() or not np.isfinite(np.asarray(basis.decoder)).all():
        raise ValueError(f"got a basis of tap {tap.name!r} that is not finite, expected finite numbers")


def _check_place(tap: Tap, index: int, depth: int) -> None:
    if not is_whole(depth) or not 0 <= depth < tap.depth:
        raise ValueError(f"got site {index} at depth {depth}, expected 0 to {tap.depth - 1} of tap {tap.name!r}")
