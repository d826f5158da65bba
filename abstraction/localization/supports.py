"""Supports and candidates: where an alignment search may look, and from which frame it starts.

A support is a place and a set of features there: the whole state, a few coordinates, a span of principal components,
or directions found otherwise. A search never leaves the span of its support.

A candidate is one search in one support. It starts from k orthonormal directions among the support's features, and
nothing of it is D x D: with native coordinates the features are those of the tap and only which of them are inside is
kept; the directions of other features are kept once a support, whatever the number of its candidates.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import are_some_of, is_whole, positive, whole
from abstraction.interventions import Basis
from abstraction.interventions.handles import check_depths
from abstraction.interventions.patching import map_handles
from abstraction.models import Tap
from abstraction.pytrees import pytree, static
from abstraction.randomness import check_key
from abstraction.sharding import run_candidates
from abstraction.typing import AnyArray


class Support(NamedTuple):
    """Features that one variable may live in.

    Attributes:
      variable: which variable.
      depth: depth index.
      width: D, of the tap.
      features: which features, `[m]`, of the basis or of the native coordinates.
      basis: read directions `[D, K]` and write directions `[K, D]`, or None for native coordinates.
      name: for people.
      turn: start from random directions among the features; otherwise from the first features as they are.
    """

    variable: int
    depth: int
    width: int
    features: Int[np.ndarray, " m"]
    basis: Basis | None = None
    name: str = "full"
    turn: bool = True

    @property
    def size(self) -> int:
        """The number of features m."""
        return len(self.features)

    @property
    def encoder(self) -> Float[np.ndarray, "D m"]:
        """Read directions; of native coordinates columns of the identity, made when asked for."""
        if self.basis is not None:
            return np.asarray(self.basis.encoder)[:, self.features]
        return (np.arange(self.width)[:, None] == self.features).astype(np.float32)

    @property
    def decoder(self) -> Float[np.ndarray, "m D"]:
        """Write directions."""
        return self.encoder.T if self.basis is None else np.asarray(self.basis.decoder)[self.features]


@pytree
class Candidates:
    """C searches; build them with `candidate_grid`.

    Attributes:
      tap: the tap's name.
      variable: which variable, `[C]`.
      depth: where to intervene, `[C]`.
      support: index of the support in the grid's list, `[C]`.
      limit: number m of features in the support, `[C]`.
      rank: features to swap, at most k, `[C]`.
      learning_rate: Adam's, `[C]`.
      sparsity: price of a feature, for searches that choose their features, `[C]`.
      restart: which random start, `[C]`.
      inside: which of the M features are in the support, `[C, M]`.
      start: orthonormal columns among those features, `[C, M, k]`; zero beyond the rank.
      spans: the features of each of U supports, leaves `[U, D, M]`, `[U, M, D]` and `[U, D]`, or None where all are
        native coordinates, M = D. It has no axis C.
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
    inside: Bool[AnyArray, "*C M"]
    start: Float[AnyArray, "*C M k"]
    spans: Basis | None = None

    @property
    def basis(self) -> Basis | None:
        """The features of one candidate's support, or None for native coordinates."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[self.support], self.spans)

    def columns(self) -> dict[str, np.ndarray]:
        """Return what each candidate is, without its start."""
        left = ("tap", "inside", "start", "spans")
        names = [field.name for field in dataclasses.fields(self) if field.name not in left]
        return {name: np.asarray(getattr(self, name)) for name in names}

    def take(self, rows: int | Int[np.ndarray, " R"]) -> "Candidates":
        """Pick one candidate, or several."""
        bare = jax.tree.map(lambda leaf: np.asarray(np.asarray(leaf)[rows]), dataclasses.replace(self, spans=None))
        return dataclasses.replace(bare, spans=self.spans)


def over_candidates(
    function: Callable[..., Any],
    candidates: Candidates,
    *batched: Any,
    together: int | None = None,
    given: tuple[Any, ...] = (),
    mesh: Mesh | None = None,
) -> Any:
    """Map `function(*given, candidate, *rest)` over the candidates and what else has an axis C.

    All at once or so many at a time; on a mesh each device its own, see `map_handles`.
    """

    def one(spans: Basis | None, given: tuple[Any, ...], each: tuple[Any, ...]) -> Any:
        return function(*given, dataclasses.replace(each[0], spans=spans), *each[1:])

    every, given = (dataclasses.replace(candidates, spans=None), *batched), (candidates.spans, given)
    if together is None or together >= len(candidates.depth):
        return run_candidates(mesh, jax.vmap(one, in_axes=(None, None, 0)), every, given=given)
    return map_handles(one, every, chunk=together, given=given, mesh=mesh)


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
    _check_place(tap, variable, depth, name)
    return Support(variable, depth, tap.width, _chosen(coordinates, tap.width, variable, name), None, name)


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
    _check_place(tap, variable, depth, name)
    if encoder.ndim != 2 or encoder.shape[0] != tap.width or decoder.shape != encoder.shape[::-1]:
        raise ValueError(
            f"got encoder {encoder.shape} and decoder {decoder.shape} in support {name!r}, expected a basis of width "
            f"{tap.width}"
        )
    chosen = _chosen(features, encoder.shape[1], variable, name)
    if not (np.isfinite(encoder[:, chosen]).all() and np.isfinite(decoder[chosen]).all()):
        raise ValueError(f"got directions of support {name!r} that are not finite, expected finite numbers")
    return Support(variable, depth, tap.width, chosen, basis, name, turn)


def _check_place(tap: Tap, variable: int, depth: int, name: str) -> None:
    check_depths(np.asarray(depth), tap)
    whole(f"variable of support {name!r}", variable, 0)


def _chosen(features: Sequence[int], count: int, variable: int, name: str) -> Int[np.ndarray, " m"]:
    if not are_some_of(features, count):
        raise ValueError(
            f"got features {list(features)} in support {name!r} of variable {variable}, expected one or more of 0 to "
            f"{count - 1}, each once"
        )
    return np.asarray(list(features))


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

    A rank that a support has not is left out for it; a support that is not turned has one start. Where a candidate
    starts follows from the key and from what it is, whatever else is in the grid.

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
    counts = (len(supports), len(ranks), len(learning_rates), len(sparsities), restarts)
    rows = [
        row
        for row in itertools.product(*map(range, counts))
        if ranks[row[1]] <= supports[row[0]].size and (supports[row[0]].turn or row[-1] == 0)
    ]
    index, rank, rate, sparsity, restart = (np.asarray(column) for column in zip(*rows, strict=True))
    values = {
        "variable": [support.variable for support in supports],
        "depth": [support.depth for support in supports],
        "limit": [support.size for support in supports],
    }
    integers = lambda column: np.asarray(column, np.int32)
    inside = _inside(supports)
    return Candidates(
        tap=tap.name,
        support=integers(index),
        rank=integers(ranks)[rank],
        learning_rate=np.asarray(learning_rates, np.float32)[rate],
        sparsity=np.asarray(sparsities, np.float32)[sparsity],
        restart=integers(restart),
        inside=inside[index],
        start=_starts(key, supports, ranks, rows),
        spans=_spans(supports),
        **{name: integers(column)[index] for name, column in values.items()},
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
        there = support.width if support.basis is None else np.shape(support.basis.encoder)[-1]
        if support.width != tap.width or not are_some_of(np.asarray(support.features).tolist(), there):
            raise ValueError(
                f"got support {support.name!r} of features {np.asarray(support.features).tolist()} of width "
                f"{support.width}, expected some of 0 to {there - 1}, each once, of width {tap.width}, that of tap "
                f"{tap.name!r}"
            )
    largest = {support.variable: 0 for support in supports}
    for support in supports:
        largest[support.variable] = max(largest[support.variable], support.size)
    if lost := {variable: size for variable, size in largest.items() if size < min(ranks)}:
        raise ValueError(
            f"got ranks {list(ranks)}, expected one that fits a support of every variable; the largest supports of "
            f"variables {sorted(lost)} have sizes {[lost[variable] for variable in sorted(lost)]}"
        )


def _slots(supports: Sequence[Support]) -> tuple[list[Int[np.ndarray, " m"]], int]:
    """Return where the features of each support are among M: at their coordinates, or one after another."""
    if all(support.basis is None for support in supports):
        return [support.features for support in supports], supports[0].width
    return [np.arange(support.size) for support in supports], max(support.size for support in supports)


def _inside(supports: Sequence[Support]) -> Bool[np.ndarray, "U M"]:
    places, count = _slots(supports)
    return np.stack([np.isin(np.arange(count), slots) for slots in places])


def _spans(supports: Sequence[Support]) -> Basis | None:
    if all(support.basis is None for support in supports):
        return None
    most = max(support.size for support in supports)
    pad = lambda matrix: np.pad(matrix, ((0, 0), (0, most - matrix.shape[1]))).astype(np.float32)
    encoder = np.stack([pad(support.encoder) for support in supports])
    decoder = np.stack([pad(support.decoder.T) for support in supports]).mT
    return Basis(encoder, decoder, np.zeros(encoder.shape[:2], np.float32))


def _starts(
    key: Array, supports: Sequence[Support], ranks: Sequence[int], rows: Sequence[tuple[int, ...]]
) -> Float[np.ndarray, "C M k"]:
    """Draw orthonormal columns among each support's features, uniformly (QR of a Gaussian, signs fixed)."""
    (places, count), seed = _slots(supports), np.asarray(jax.random.key_data(key)).tolist()
    starts = np.zeros((len(rows), count, max(ranks[row[1]] for row in rows)), np.float32)
    for start, (index, rank, *others) in zip(starts, rows, strict=True):
        support, k = supports[index], ranks[rank]
        frame = np.eye(support.size, k)
        if support.turn:
            # Named by what the candidate is, so that no other one moves it.
            name = (support.variable, support.depth, zlib.crc32(support.name.encode()), support.size, k, *others)
            frame, triangle = np.linalg.qr(np.random.default_rng([*seed, *name]).standard_normal((support.size, k)))
            frame = frame * np.sign(np.diagonal(triangle))
        start[places[index], :k] = frame
    return starts
