"""Supports and candidates: where an alignment search may look, and from which features it starts.

A support is a place and a set of features there: the whole state, a few coordinates, a span of principal components,
or a pair of directions found otherwise. A search never leaves the span of its support.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.interventions import random_frames
from abstraction.models import Tap
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray


class Support(NamedTuple):
    """Features that one variable may live in.

    Attributes:
      variable: which variable.
      depth: depth index.
      encoder: read directions, `[D, m]`.
      decoder: write directions, `[m, D]`.
      name: for people.
      turn: start from a random rotation of the features; otherwise from the features as they are.
    """

    variable: int
    depth: int
    encoder: Float[np.ndarray, "D m"]
    decoder: Float[np.ndarray, "m D"]
    name: str = "full"
    turn: bool = True

    @property
    def size(self) -> int:
        """The number of features."""
        return self.encoder.shape[1]


@pytree
class Candidates:
    """C searches; build them with `candidate_grid`.

    Attributes:
      variable: which variable, `[C]`.
      depth: where to intervene, `[C]`.
      support: index of the support in the grid's list, `[C]`.
      limit: number m of features in the support, `[C]`; those beyond are padding.
      rank: features to swap, `[C]`.
      learning_rate: Adam's, `[C]`.
      sparsity: price of a feature, for searches that choose their features, `[C]`.
      restart: which random start, `[C]`.
      encoder: read directions at the start, `[C, D, K]`.
      decoder: write directions at the start, `[C, K, D]`.
    """

    variable: Int[AnyArray, "*C"]
    depth: Int[AnyArray, "*C"]
    support: Int[AnyArray, "*C"]
    limit: Int[AnyArray, "*C"]
    rank: Int[AnyArray, "*C"]
    learning_rate: Float[AnyArray, "*C"]
    sparsity: Float[AnyArray, "*C"]
    restart: Int[AnyArray, "*C"]
    encoder: Float[AnyArray, "*C D K"]
    decoder: Float[AnyArray, "*C K D"]

    def columns(self) -> dict[str, np.ndarray]:
        """Return what each candidate is, without its start."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("encoder", "decoder")]
        return {name: np.asarray(getattr(self, name)) for name in names}


def full_supports(tap: Tap, variables: Sequence[int], depths: Sequence[int] | None = None) -> list[Support]:
    """Make the whole state at each depth a support of each variable, variable-major.

    Raises:
      ValueError: a depth is outside the tap.
    """
    depths = range(tap.depth or 0) if depths is None else depths
    return [coordinate_support(tap, v, depth, range(tap.width), "full") for v in variables for depth in depths]


def coordinate_support(tap: Tap, variable: int, depth: int, coordinates: Sequence[int], name: str) -> Support:
    """Make some coordinates of the state at one depth a support.

    Raises:
      ValueError: the support is empty, or the depth or a coordinate is outside the tap.
    """
    return feature_support(tap, variable, depth, np.eye(tap.width, dtype=np.float32), None, coordinates, name)


def feature_support(
    tap: Tap,
    variable: int,
    depth: int,
    encoder: Float[AnyArray, "D K"],
    decoder: Float[AnyArray, "K D"] | None,
    features: Sequence[int],
    name: str,
    *,
    turn: bool = True,
) -> Support:
    """Make some features of a basis at one depth a support.

    Args:
      tap: the tap.
      variable: which variable.
      depth: depth index.
      encoder: read directions of the basis.
      decoder: its write directions; None where the encoder is orthonormal.
      features: which of them.
      name: for people.
      turn: see `Support`.

    Raises:
      ValueError: the support is empty, or the depth or a feature does not exist.
    """
    encoder = np.asarray(encoder)
    decoder = encoder.T if decoder is None else np.asarray(decoder)
    if not 0 <= depth < (tap.depth or 0):
        raise ValueError(f"got depths [{depth}], expected values from 0 to {(tap.depth or 0) - 1} of tap {tap.name!r}")
    wrong = [feature for feature in features if not 0 <= feature < encoder.shape[1]]
    if wrong or not len(features):
        raise ValueError(
            f"got features {list(features)} in support {name!r} of variable {variable}, expected one or more of 0 to "
            f"{encoder.shape[1] - 1}"
        )
    chosen = list(features)
    return Support(variable, depth, encoder[:, chosen], decoder[chosen], name, turn)


def candidate_grid(
    key: Array,
    tap: Tap,
    supports: Sequence[Support],
    *,
    ranks: Sequence[int],
    learning_rates: Sequence[float] = (1e-3,),
    sparsities: Sequence[float] = (0.0,),
    restarts: int = 1,
) -> Candidates:
    """Cross supports, ranks, learning rates, sparsities and restarts.

    A rank that a support has not is left out for it; a support that is not turned has one start.

    Args:
      key: seeds the random starts.
      tap: where to search.
      supports: places and features.
      ranks: subspace sizes k.
      learning_rates: for Adam.
      sparsities: prices of a feature.
      restarts: random starts per combination.

    Raises:
      ValueError: a rank exceeds the tap's width or every support of a variable, or a number is not positive.
    """
    _check_grid(tap, supports, ranks, learning_rates, sparsities, restarts)
    rows = [
        row
        for row in itertools.product(range(len(supports)), ranks, learning_rates, sparsities, range(restarts))
        if row[1] <= supports[row[0]].size and (supports[row[0]].turn or row[-1] == 0)
    ]
    index, rank, rate, sparsity, restart = (np.asarray(column) for column in zip(*rows, strict=True))
    encoder, decoder = _starts(key, [supports[i] for i in index], tap.width)
    whole = lambda column: np.asarray(column, np.int32)
    return Candidates(
        variable=whole([supports[i].variable for i in index]),
        depth=whole([supports[i].depth for i in index]),
        support=whole(index),
        limit=whole([supports[i].size for i in index]),
        rank=whole(rank),
        learning_rate=rate.astype(np.float32),
        sparsity=sparsity.astype(np.float32),
        restart=whole(restart),
        encoder=encoder,
        decoder=decoder,
    )


def _check_grid(
    tap: Tap,
    supports: Sequence[Support],
    ranks: Sequence[int],
    learning_rates: Sequence[float],
    sparsities: Sequence[float],
    restarts: int,
) -> None:
    if not ranks or not supports or not all(1 <= rank <= tap.width for rank in ranks):
        raise ValueError(
            f"got ranks {list(ranks)} and {len(supports)} supports, expected ranks from 1 to {tap.width}, the width of "
            f"tap {tap.name!r}"
        )
    positive = bool(learning_rates) and all(rate > 0 for rate in learning_rates)
    if restarts < 1 or not positive or not sparsities or min(sparsities) < 0:
        raise ValueError(
            f"got {restarts} restarts, learning rates {list(learning_rates)}, sparsities {list(sparsities)}, "
            "expected positive numbers, and sparsities of at least 0"
        )
    largest = {support.variable: 0 for support in supports}
    for support in supports:
        largest[support.variable] = max(largest[support.variable], support.size)
    if lost := {variable: size for variable, size in largest.items() if size < min(ranks)}:
        raise ValueError(
            f"got ranks {list(ranks)}, expected one that fits a support of every variable; the largest supports of "
            f"variables {sorted(lost)} have sizes {[lost[variable] for variable in sorted(lost)]}"
        )


def _starts(
    key: Array, supports: Sequence[Support], width: int
) -> tuple[Float[np.ndarray, "C D K"], Float[np.ndarray, "C K D"]]:
    """Turn each support's features by a Haar-random rotation, and pad with zeros."""
    features = max(support.size for support in supports)
    encoder = np.zeros((len(supports), width, features), np.float32)
    decoder = np.zeros((len(supports), features, width), np.float32)
    for size in sorted({support.size for support in supports}):
        members = [index for index, support in enumerate(supports) if support.size == size]
        frames = random_frames(jax.random.fold_in(key, size), (len(members),), size)
        for frame, index in zip(frames, members, strict=True):
            turn = frame if supports[index].turn else np.eye(size, dtype=np.float32)
            encoder[index, :, :size] = supports[index].encoder @ turn
            decoder[index, :size] = turn.T @ supports[index].decoder
    return encoder, decoder
