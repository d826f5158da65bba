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

from abstraction.checks import are_some_of, is_whole, positive, whole
from abstraction.interventions import Basis
from abstraction.interventions.bases import frame_basis, random_frames
from abstraction.interventions.handles import check_depths
from abstraction.models import Tap
from abstraction.pytrees import pytree, static
from abstraction.randomness import check_key
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
      tap: the tap's name.
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

    tap: str = static()
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
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("tap", "encoder", "decoder")]
        return {name: np.asarray(getattr(self, name)) for name in names}


def full_supports(tap: Tap, variables: Sequence[int], depths: Sequence[int] | None = None) -> list[Support]:
    """Make the whole state at each depth a support of each variable, variable-major.

    Raises:
      ValueError: a depth is outside the tap, or a variable is negative.
    """
    depths = range(tap.depth) if depths is None else depths
    return [coordinate_support(tap, v, depth, range(tap.width), "full") for v in variables for depth in depths]


def coordinate_support(tap: Tap, variable: int, depth: int, coordinates: Sequence[int], name: str) -> Support:
    """Make some coordinates of the state at one depth a support.

    Raises:
      ValueError: the support is empty or repeats a coordinate, or the depth or a coordinate is outside the tap.
    """
    return feature_support(tap, variable, depth, frame_basis(np.eye(tap.width, dtype=np.float32)), coordinates, name)


def feature_support(
    tap: Tap, variable: int, depth: int, basis: Basis, features: Sequence[int], name: str, *, turn: bool = True
) -> Support:
    """Make some features of a basis at one depth a support.

    Args:
      tap: the tap.
      variable: which variable.
      depth: depth index.
      basis: the features at that depth.
      features: which of them.
      name: for people.
      turn: see `Support`.

    Raises:
      ValueError: the support is empty or repeats a feature, the depth or a feature does not exist, a variable is
        negative, or the basis has another width or is not finite.
    """
    encoder, decoder = np.asarray(basis.encoder), np.asarray(basis.decoder)
    check_depths(np.asarray(depth), tap)
    whole(f"variable of support {name!r}", variable, 0)
    if encoder.ndim != 2 or encoder.shape[0] != tap.width or decoder.shape != encoder.shape[::-1]:
        raise ValueError(
            f"got encoder {encoder.shape} and decoder {decoder.shape} in support {name!r}, expected a basis of width "
            f"{tap.width}"
        )
    if not are_some_of(features, encoder.shape[1]):
        raise ValueError(
            f"got features {list(features)} in support {name!r} of variable {variable}, expected one or more of 0 to "
            f"{encoder.shape[1] - 1}, each once"
        )
    chosen = list(features)
    if not (np.isfinite(encoder[:, chosen]).all() and np.isfinite(decoder[chosen]).all()):
        raise ValueError(f"got directions of support {name!r} that are not finite, expected finite numbers")
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
    check_key(key)
    _check_grid(tap, supports, ranks, learning_rates, sparsities, restarts)
    rows = [
        row
        for row in itertools.product(range(len(supports)), ranks, learning_rates, sparsities, range(restarts))
        if row[1] <= supports[row[0]].size and (supports[row[0]].turn or row[-1] == 0)
    ]
    index, rank, rate, sparsity, restart = (np.asarray(column) for column in zip(*rows, strict=True))
    encoder, decoder = _starts(key, [supports[i] for i in index], tap.width)
    integers = lambda column: np.asarray(column, np.int32)
    return Candidates(
        tap=tap.name,
        variable=integers([supports[i].variable for i in index]),
        depth=integers([supports[i].depth for i in index]),
        support=integers(index),
        limit=integers([supports[i].size for i in index]),
        rank=integers(rank),
        learning_rate=rate.astype(np.float32),
        sparsity=sparsity.astype(np.float32),
        restart=integers(restart),
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
    integral = all(map(is_whole, ranks))
    if not ranks or not supports or not integral or not all(1 <= rank <= tap.width for rank in ranks):
        raise ValueError(
            f"got ranks {list(ranks)} and {len(supports)} supports, expected ranks from 1 to {tap.width}, the width of "
            f"tap {tap.name!r}"
        )
    whole("restarts", restarts)
    positive("learning rates", learning_rates)
    if not sparsities or not all(0 <= price < np.inf for price in sparsities):
        raise ValueError(f"got sparsities {list(sparsities)}, expected finite numbers of at least 0, one or more")
    for support in supports:
        check_depths(np.asarray(support.depth), tap)
        if np.shape(support.encoder) != (tap.width, support.size) or support.size < 1:
            raise ValueError(
                f"got support {support.name!r} of shape {np.shape(support.encoder)}, expected [{tap.width}, m], "
                f"features of tap {tap.name!r}"
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
