"""Builders: one call per intervention, which checks its values and gives them the depth axis.

    from abstraction.interventions import building as do
    edits = do.together(do.zero(taps["mlp_output"], depth=3), do.add(taps["block_output"], v, at=positions))
    network(tokens, edits)

Every builder returns `{tap: edit}` and takes where to act:

    depth   one depth, or several; None for all
    units   coordinates, or features where there are features; None for all
    at      token positions per example, `[N]` or `[N, P]`, -1 for none; None where the tap has none, or for all
    basis   features to act on in place of coordinates: a `Basis`, or any `FeatureMap`

With one depth (a number), what is given is as that depth sees it: sources `[N, ..., D]`, features without an axis of
depths. Otherwise it leads with the tap's depth L: sources `[L, N, ..., D]`, each leaf of the features `[L, ...]`. A
number and a vector `[K]` are the same at all depths. At positions an edit sees `[N, D]`, or `[N, P, D]`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import finite, indices, is_whole, positive
from abstraction.interventions.bases import Basis
from abstraction.interventions.combining import together as together
from abstraction.interventions.edits import Add, Clamp, Interchange, Masked, Noise, Renormalised, Scale, Set
from abstraction.interventions.featurizers import FeatureMap, InFeatures
from abstraction.models import Edit, Tap, at_positions
from abstraction.models.positions import AtPositions, check_positions, known_values, picked
from abstraction.models.taps import Edits
from abstraction.randomness import check_key
from abstraction.typing import AnyArray

Depths = int | Sequence[int] | None
Units = Sequence[int] | AnyArray | None
Values = float | int | AnyArray


class Sites(TypedDict, total=False):
    """Where a builder acts; see the module."""

    depth: Depths
    units: Units
    at: AnyArray | None


class Where(Sites, total=False):
    """Where, and in which features; see the module."""

    basis: Any


def interchange(tap: Tap, source: AnyArray | None, *, weight: Values = 1.0, **where: Unpack[Where]) -> dict[str, Edit]:
    """Take features from a source: z <- (1 - w) z + w z_s.

    Args:
      tap: where to write; the source may be of another tap, depth or position of the same width (`taken`).
      source: states there, as recorded; None for no edit, so that a source can be skipped.
      weight: w, as other values of a builder; a gate (`gates.py`) too.
      where: where to act, see the module.

    Raises:
      ValueError: a source of another width or depth, or a place that is not there.
    """
    place = _place(tap, **where)
    if source is None:
        return {}
    states = jnp.asarray(source)
    lead = () if place.single else (tap.depth,)
    if states.ndim < len(lead) + 2 or states.shape[: len(lead)] != lead or states.shape[-1] != tap.width:
        wanted = f"[{'' if place.single else f'{tap.depth}, '}N, ..., {tap.width}]"
        raise ValueError(f"got a source of shape {states.shape} for tap {tap.name!r}, expected {wanted}")
    weight = place.spread("weight", weight)
    basis = where.get("basis")
    if basis is not None and not isinstance(basis, Basis):
        encode = lambda features, state: features.encode(state)
        encoded = place.leaf(encode(basis, states) if place.single else jax.vmap(encode)(basis, states))
        return place.edits(Interchange(encoded, weight))
    # Weights of 0 in place of a mask: a plain interchange, as a handle makes.
    if place.mask is not None:
        mask = place.mask.reshape(tap.depth, *[1] * (weight.ndim - 2), -1)
        weight = np.where(mask, weight, 0) if isinstance(weight, np.ndarray) else jnp.where(mask, weight, 0)
    return place.edits(Interchange(place.leaf(states), weight, place.features), masked=False, within=False)


def constant(tap: Tap, value: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Set to a value: z <- c.

    Args:
      tap: where.
      value: c: a number, `[K]`, or one value per depth, and per example.
      where: where to act, see the module.

    Raises:
      ValueError: values that are not finite or of another shape, or a place that is not there.
    """
    place = _place(tap, **where)
    return place.edits(Set(place.spread("value", value)))


def zero(tap: Tap, **where: Unpack[Where]) -> dict[str, Edit]:
    """Set to zero: z <- 0. With a basis whose features have a mean, that is the mean; see `constant`."""
    return constant(tap, 0.0, **where)


def mean(
    tap: Tap,
    states: Float[AnyArray, "L N ... D"],
    *,
    present: Bool[AnyArray, "N ..."] | None = None,
    **where: Unpack[Sites],
) -> dict[str, Edit]:
    """Set to the mean of recorded states over examples and positions: h <- E[h], one at each depth.

    Args:
      tap: where.
      states: as recorded, at all depths.
      present: which of `[N, ...]` count, for prompts that are padded.
      where: where to act, see the module.

    Raises:
      ValueError: states of another shape or not finite, none that counts, or a place that is not there.
    """
    if "basis" in where:
        raise ValueError("got a basis for a mean, expected none: `constant` sets features to the mean that you give")
    values = finite("states", states)
    if values.ndim < 3 or not values.size or (values.shape[0], values.shape[-1]) != (tap.depth, tap.width):
        raise ValueError(f"got states of shape {values.shape}, expected [{tap.depth}, N, ..., {tap.width}]")
    counts = np.ones(values.shape[1:-1], bool) if present is None else np.asarray(present)
    if counts.shape != values.shape[1:-1] or counts.dtype != bool or not counts.any():
        raise ValueError(
            f"got present of shape {counts.shape} and type {counts.dtype}, expected truth values "
            f"{values.shape[1:-1]}, one or more true"
        )
    place = _place(tap, **where)
    return place.edits(Set(values[:, counts].mean(axis=1, dtype=np.float64).astype(values.dtype)))


def lerp(tap: Tap, target: Values, weight: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Move towards a vector: z <- (1 - w) z + w c. Towards a source: `interchange` with a weight.

    Raises:
      ValueError: values that are not finite or of another shape, or a place that is not there.
    """
    place = _place(tap, **where)
    return place.edits(Set(place.spread("target", target), place.spread("weight", weight)))


def add(tap: Tap, vector: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Add a vector: z <- z + v.

    Raises:
      ValueError: values that are not finite or of another shape, or a place that is not there.
    """
    place = _place(tap, **where)
    return place.edits(Add(place.spread("vector", vector)))


def subtract(tap: Tap, vector: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Subtract a vector: z <- z - v, the addition of -v; see `add`."""
    opposite = jax.tree.map(lambda leaf: -(leaf if isinstance(leaf, Tracer) else np.asarray(leaf)), vector)
    return add(tap, opposite, **where)


def scale(tap: Tap, factor: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Multiply: z <- f z.

    Raises:
      ValueError: values that are not finite or of another shape, or a place that is not there.
    """
    place = _place(tap, **where)
    return place.edits(Scale(place.spread("factor", factor)))


def noise(tap: Tap, key: Array, deviation: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Add Gaussian noise: z <- z + sigma g, another g at each depth, example and position; see `Noise`.

    Args:
      tap: where.
      key: a typed key: the same one gives the same noise.
      deviation: sigma, as other values of a builder.
      where: where to act, see the module.

    Raises:
      ValueError: no typed key, values that are not finite or of another shape, or a place that is not there.
    """
    check_key(key)
    place = _place(tap, **where)
    keys = jax.vmap(lambda level: jax.random.fold_in(key, level))(jnp.arange(tap.depth))
    return place.edits(Noise(keys, place.spread("deviation", deviation)))


def clamp(tap: Tap, low: Values, high: Values, **where: Unpack[Where]) -> dict[str, Edit]:
    """Keep within bounds: z <- min(max(z, low), high). An infinite bound is none.

    Raises:
      ValueError: a bound that is NaN or of another shape, low above high, or a place that is not there.
    """
    place = _place(tap, **where)
    bounds = [place.spread(what, bound, bounded=False) for what, bound in (("low", low), ("high", high))]
    known = [bound for bound in map(known_values, bounds) if bound is not None]
    if len(known) == 2:
        # Both lead with the depth; the shorter of them is the same for all that is between.
        most = max(bound.ndim for bound in known)
        lower, upper = (bound.reshape(len(bound), *[1] * (most - bound.ndim), *bound.shape[1:]) for bound in known)
        if (lower > upper).any():
            raise ValueError(f"got low {np.asarray(low).tolist()} above high {np.asarray(high).tolist()}, expected not")
    return place.edits(Clamp(*bounds))


def renormalised(edits: Edits) -> dict[str, Edit]:
    """Give what each edit makes the norm it had before: h <- edit(h) |h| / |edit(h)|, at each position."""
    return {name: _renormalised(edit) for name, edit in edits.items()}


def _renormalised(edit: Edit) -> Edit:
    if isinstance(edit, AtPositions):
        return AtPositions(Renormalised(edit.edit), edit.positions)
    return Renormalised(edit)


def taken(
    states: Float[AnyArray, "L N ... D"], *, depth: int | None = None, at: Int[AnyArray, "N ..."] | None = None
) -> Array:
    """Pick a source out of recorded states: of one depth, at positions, or both.

    The source site need not be the site of the base: `interchange(taps["block_input"], taken(states["mlp_output"],
    depth=3, at=there), depth=1, at=here)`.

    Args:
      states: as recorded, `[L, N, ..., D]`.
      depth: one of L, or None for all.
      at: positions per example, `[N]` or `[N, P]`; -1 reads position 0, for an edit that has -1 in its place too.

    Returns:
      `[N, ..., D]`, behind an axis of L where no depth is chosen; positions in place of tokens where they are.

    Raises:
      ValueError: no such depth, or positions that are not there.
    """
    states = jnp.asarray(states)
    if depth is not None and not (is_whole(depth) and 0 <= depth < len(states)):
        raise ValueError(f"got depth {depth!r} of a source, expected 0 to {len(states) - 1}")
    if at is not None:
        if states.ndim != 4:
            raise ValueError(f"got positions in states of shape {states.shape}, expected [L, N, T, D]")
        tokens = np.zeros(states.shape[1:3], np.int32)
        check_positions(tokens, at)
        index = jnp.maximum(jnp.asarray(at), 0)
        states = jax.vmap(lambda state: picked(state, index))(states)
    return states if depth is None else states[depth]


@dataclass(frozen=True)
class _Place:
    """Where a builder acts, checked.

    Attributes:
      tap: the tap.
      single: at one depth, so that values have no axis of depths yet.
      mask: `[L, 1]` or `[L, K]`, or None for everywhere.
      at: positions or None.
      features: each leaf `[L, ...]`, or None for coordinates.
      count: K.
    """

    tap: Tap
    single: bool
    mask: np.ndarray | None
    at: AnyArray | None
    features: Any
    count: int

    def leaf(self, array: Any) -> Any:
        """Give an array the axis of depths, where it has none yet."""
        return _repeated(array, self.tap.depth) if self.single else array

    def spread(self, what: str, value: Values, *, bounded: bool = True) -> AnyArray:
        """Check a value and give it the axis of depths."""
        known = known_values(value)
        array = jnp.asarray(value) if known is None else known
        if known is not None:
            array = finite(what, known) if bounded else _ordered(what, known)
            array = np.asarray(array, np.float32 if array.dtype.kind in "biu" or array.dtype == np.float64 else None)
        depth = self.tap.depth
        everywhere = self.single or array.ndim < 2
        if (array.ndim and array.shape[-1] not in (1, self.count)) or not (everywhere or array.shape[0] == depth):
            wanted = f"a number, [{self.count}] or [{'' if self.single else f'{depth}, '}..., {self.count}]"
            raise ValueError(f"got {what} of shape {array.shape} at tap {self.tap.name!r}, expected {wanted}")
        # A number is a vector of one: what a depth gets is an array too.
        return _repeated(array.reshape(array.shape or (1,)), depth) if everywhere else array

    def edits(self, edit: Edit, *, masked: bool = True, within: bool = True) -> dict[str, Edit]:
        """Put an edit in its place."""
        if masked and self.mask is not None:
            edit = Masked(edit, self.mask)
        if within and self.features is not None:
            edit = InFeatures(self.features, edit)
        if self.at is not None:
            edit = at_positions(edit, self.at, depth=self.tap.depth)
        return {self.tap.name: edit}


def _place(
    tap: Tap, depth: Depths = None, units: Units = None, at: AnyArray | None = None, basis: Any = None
) -> _Place:
    single = is_whole(depth)
    levels = np.ones(tap.depth, bool)
    if depth is not None:
        chosen = indices(f"depths of tap {tap.name!r}", np.atleast_1d(np.asarray(depth)), tap.depth)
        positive("number of depths", [len(chosen)])
        levels = np.isin(np.arange(tap.depth), chosen)
    if basis is not None and not isinstance(basis, FeatureMap):
        raise ValueError(f"got basis {basis!r}, expected a Basis or another FeatureMap")
    features = basis
    if basis is not None and single:
        features = jax.tree.map(lambda leaf: _repeated(leaf, tap.depth), basis)
    elif wrong := [np.shape(leaf) for leaf in jax.tree.leaves(basis) if np.shape(leaf)[:1] != (tap.depth,)]:
        raise ValueError(f"got features of shapes {wrong}, expected a leading depth axis of {tap.depth}, or one depth")
    count = tap.width if basis is None else basis.count
    mask = None if levels.all() and units is None else levels[:, None]
    if units is not None:
        chosen = indices(f"units of tap {tap.name!r}", units, count)
        positive("number of units", [len(chosen)])
        mask = levels[:, None] & np.isin(np.arange(count), chosen)
    return _Place(tap, single, mask, at, features, count)


def _repeated(array: Any, depth: int) -> Any:
    """Give an array an axis of depths; one that is known stays so in a function that is traced."""
    repeat = jnp.broadcast_to if isinstance(array, jax.Array) else np.broadcast_to
    return repeat(array, (depth, *np.shape(array)))


def _ordered(what: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf" or np.isnan(array).any():
        raise ValueError(f"got {what} {array.tolist()}, expected numbers, which may be infinite")
    return array
