"""Where a guided search looks: supports made of what the stages of PLOT found (PLOT, guiding DAS).

    full        the whole state where Stage A puts a variable
    selected    the features that the handle of Stage B moves
    S80         the fewest features of one depth that hold 80 % of the variable's row of the coupling
    first 4     the first principal components there

A search of `alignment_search` over `candidate_grid(key, tap, distinct_supports(...), ...)` then costs as much as these
supports are, instead of every depth of the network.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from abstraction.interventions import Basis
from abstraction.interventions.handles import handle_depths
from abstraction.interventions.sites import basis_at, feature_ranks
from abstraction.localization.progressive import Refinement, chosen_rows, evidence_support
from abstraction.localization.supports import Support, coordinate_support, feature_support
from abstraction.models import Tap


def state_supports(tap: Tap, depths: Int[np.ndarray, " V"]) -> list[Support]:
    """Return the whole state at the depth of each variable."""
    return [support_of(tap, v, int(depth), range(tap.width), "full") for v, depth in enumerate(depths)]


def selected_supports(tap: Tap, found: Refinement, basis: Basis | None = None) -> list[Support]:
    """Return the features that the handles of Stage B move.

    Args:
      tap: where to search.
      found: of Stage B.
      basis: the features its sites are of, each leaf `[L, ...]`; None for native coordinates.
    """
    weight = np.asarray(found.choice.handles.weight)
    return [
        support_of(tap, v, depth, np.flatnonzero(weight[v, depth]).tolist(), "selected", basis)
        for v, depth in enumerate(handle_depths(found.choice.handles).tolist())
    ]


def evidence_supports(
    tap: Tap, found: Refinement, shares: Sequence[float], basis: Basis | None = None
) -> list[Support]:
    """Return the features that hold shares of the evidence in each variable's row, each set once.

    Args:
      tap: where to search.
      found: of Stage B.
      shares: of a row's mass, in (0, 1].
      basis: as in `selected_supports`.
    """
    rows, sites = chosen_rows(found.plans, found.choice), found.effects.sites
    supports = []
    for variable, row in enumerate(rows):
        for share in shares:
            depth, features = evidence_support(row, sites, share)
            supports.append(support_of(tap, variable, depth, features, f"S{100 * share:.0f}", basis))
    return distinct_supports(supports)


def prefix_supports(tap: Tap, depths: Int[np.ndarray, " V"], sizes: Sequence[int], basis: Basis) -> list[Support]:
    """Return the first features of a basis at the depth of each variable; fewer where the basis has fewer."""
    ranks = feature_ranks(basis)
    return [
        support_of(tap, v, depth, range(min(size, ranks[depth])), f"first {size}", basis)
        for v, depth in enumerate(depths.tolist())
        for size in sizes
    ]


def support_of(
    tap: Tap, variable: int, depth: int, features: Sequence[int], name: str, basis: Basis | None = None
) -> Support:
    """Make a support of native coordinates, or of features of a basis at one depth."""
    if basis is None:
        return coordinate_support(tap, variable, depth, features, name)
    return feature_support(tap, variable, depth, basis_at(basis, np.asarray(depth)), features, name)


def distinct_supports(supports: Sequence[Support]) -> list[Support]:
    """Drop supports that repeat an earlier one of the same variable, and order the rest by variable."""
    kept: dict[tuple, Support] = {}
    for support in supports:
        native = support.basis is None
        directions = support.features if native else support.encoder
        kept.setdefault((support.variable, support.depth, native, directions.tobytes()), support)
    return sorted(kept.values(), key=lambda support: support.variable)
