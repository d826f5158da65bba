"""Sites and handles: what can be interchanged, as arrays.

A site is one depth and one weight row over the features of a tap; a bank of S sites is one pytree, so measuring all
of them is one vmap. A handle is the alignment of one causal variable: a weighted union of sites, which is again a
weight per depth and feature. Overlapping sites of one handle add up.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

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
    """

    depth: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, "S K"]
    tap: str = static()
    tap_depth: int = static()

    @property
    def size(self) -> int:
        """The number of sites S."""
        return self.depth.shape[0]

    def handles(self) -> "LocalHandle":
        """Make each site a handle of strength 1, alone."""
        return LocalHandle(self.depth, self.weight, None, self.tap)

    def rows(self) -> Float[np.ndarray, "S L K"]:
        """Spread each site over the tap's depth axis."""
        rows = np.zeros((self.size, self.tap_depth, self.weight.shape[-1]), np.float32)
        rows[np.arange(self.size), np.asarray(self.depth)] = self.weight
        return rows

    def union(self, mass: Float[np.ndarray, "*H S"]) -> Float[np.ndarray, "*H L K"]:
        """Weight sites by `mass` and add them up: the weights of a handle."""
        return np.tensordot(mass, self.rows(), axes=1)


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


def _depth(tap: Tap) -> int:
    if tap.depth is None:
        raise ValueError(f"got tap {tap.name!r} without a depth axis, expected a tap that recurs along depth")
    return tap.depth
