"""Several interventions in one run, whose order does not matter.

An edit that adds (a vector, noise) commutes with everything that adds: such edits are summed, after all others. Every
other edit writes: it sets, interchanges, clamps or scales features, and the result hangs on what it reads. Two of these
are independent, and so in any order, if neither writes what the other reads:

    coordinates            no coordinate of one is one of the other's
    linear features        G_1 E_2 = 0 and G_2 E_1 = 0, of the features in use
    any other features     read and write every coordinate

at the depths, examples and positions they share. Dependent ones are refused; who means an order says so by `InOrder`.
"""

from collections.abc import Mapping
from itertools import combinations
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.interventions.bases import Basis
from abstraction.interventions.edits import Add, Clamp, Interchange, Masked, Noise, Renormalised, Scale, Set
from abstraction.interventions.featurizers import InFeatures
from abstraction.models import Edit
from abstraction.models.positions import AtPositions, known_values
from abstraction.models.taps import Edits
from abstraction.pytrees import pytree

_INDEPENDENT = 1e-3


@pytree
class Together:
    """Apply independent edits, and add what others add; build it with `together`.

    Attributes:
      writes: edits that do not read what another of them writes.
      additions: edits that add what does not depend on the activation.
    """

    writes: tuple[Edit, ...]
    additions: tuple[Edit, ...]

    def __call__(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        for edit in (*self.writes, *self.additions):
            activation = edit(activation)
        return activation


def together(*edits: Edits | None) -> dict[str, Edit]:
    """Combine edits into those of one run; in whatever order they are given, the result is the same.

    An absolute write and an addition at one coordinate are both done: the value is written, then added to. What JAX
    traces is not known: a traced weight counts as not 0, traced positions as all.

    Args:
      edits: `{tap: edit}` each, as builders return them; None is skipped.

    Raises:
      ValueError: two writes of one tap, depth, position and coordinate, or of features that are not independent.
    """
    parts: dict[str, list[Edit]] = {}
    for given in edits:
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"got {given!r}, expected edits by tap")
        for name, edit in (given or {}).items():
            parts.setdefault(name, []).extend(_flat(edit))
    combined: dict[str, Edit] = {}
    for name, several in parts.items():
        writes = tuple(edit for edit in several if not _adds(edit))
        additions = tuple(edit for edit in several if _adds(edit))
        _check_independent(name, writes)
        combined[name] = several[0] if len(several) == 1 else Together(writes, additions)
    return combined


def _flat(edit: Edit) -> tuple[Edit, ...]:
    return (*edit.writes, *edit.additions) if isinstance(edit, Together) else (edit,)


def _adds(edit: Edit) -> bool:
    """Tell whether edit(h) - h does not depend on h."""
    if isinstance(edit, Masked | AtPositions):
        return _adds(edit.edit)
    if isinstance(edit, InFeatures):
        return isinstance(edit.features, Basis) and _adds(edit.edit)
    return isinstance(edit, Add | Noise)


class _Footprint(NamedTuple):
    """What an edit reads and writes.

    Attributes:
      name: of its kind.
      units: the coordinates, `[L, N or 1, D or 1]`, or the features of `basis` in use.
      basis: linear features, or None.
      positions: `[L, N, P]`, or None for all.
    """

    name: str
    units: np.ndarray
    basis: Basis | None = None
    positions: np.ndarray | None = None


def _check_independent(tap: str, writes: tuple[Edit, ...]) -> None:
    if len(writes) < 2:
        return
    for first, second in combinations([_footprint(edit) for edit in writes], 2):
        shared = _shared(first, second)
        if not shared.any():
            continue
        depth, row, unit = np.argwhere(shared)[0]
        where = f"depth {depth}" + (f", example {row}" if shared.shape[1] > 1 else "")
        where += f", coordinate {unit}" if shared.shape[2] > 1 else ""
        raise ValueError(
            f"got two writes of tap {tap!r}, {first.name} and {second.name}, at {where}, expected one of what each "
            "reads and writes; `InOrder` applies them one after another"
        )


def _shared(first: _Footprint, second: _Footprint) -> np.ndarray:
    """Return where two edits meet, `[L, N or 1, D or 1]`."""
    meeting = _met(first.positions, second.positions)
    if first.basis is None and second.basis is None:
        return meeting[..., None] & first.units & second.units
    return meeting[..., None] & _entangled(first, second)[:, None, None]


def _met(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray:
    """Return at which depths, and in which examples, two sets of positions meet, `[L, N or 1]`."""
    if first is None and second is None:
        return np.ones((1, 1), bool)
    if first is None or second is None:
        there = first if first is not None else second
        return np.asarray((np.asarray(there) >= 0).any(axis=-1))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"got positions in {first.shape[1]} and {second.shape[1]} examples, expected equal numbers")
    equal = (first[..., :, None] == second[..., None, :]) & (first[..., :, None] >= 0)
    return np.asarray(equal.any(axis=(-2, -1)))


def _entangled(first: _Footprint, second: _Footprint) -> np.ndarray:
    """Return at which depths one of two edits writes what the other reads, `[L]`; one of them has linear features."""
    units = [np.asarray(one.units.any(axis=1)) for one in (first, second)]
    if first.basis is None or second.basis is None:
        coordinates, features = units if first.basis is None else units[::-1]
        read, write = _in_use(first.basis or second.basis, features)
        return _beyond(read * coordinates[:, :, None], read) | _beyond(write * coordinates[:, None, :], write)
    (read, write), (other_read, other_write) = _in_use(first.basis, units[0]), _in_use(second.basis, units[1])
    return _beyond(write @ other_read, write, other_read) | _beyond(other_write @ read, other_write, read)


def _in_use(basis: Any, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions that an edit reads, `[L, D, K]`, and those that it writes, `[L, K, D]`, 0 where unused."""
    return np.asarray(basis.encoder) * used[:, None, :], np.asarray(basis.decoder) * used[:, :, None]


def _beyond(product: np.ndarray, *factors: np.ndarray) -> np.ndarray:
    """Tell at which depths a product is more than the rounding of its factors' largest entries."""
    most = lambda matrix: np.sqrt((matrix**2).sum(axis=(-2, -1)))
    limit = np.prod([most(factor) for factor in factors], axis=0)
    return np.abs(product).max(axis=(-2, -1), initial=0.0) > _INDEPENDENT * limit


def _footprint(edit: Any) -> _Footprint:
    if isinstance(edit, AtPositions):
        inner, known = _footprint(edit.edit), known_values(edit.positions)
        return inner if known is None else inner._replace(positions=known.reshape(*known.shape[:2], -1))
    if isinstance(edit, Masked):
        inner, mask = _footprint(edit.edit), _units(edit.mask, lambda mask: mask.astype(bool))
        # A mask of coordinates over features of them: all that is known is at which depths.
        mask = mask if inner.basis is None else mask.any(axis=(1, 2), keepdims=True)
        return inner._replace(units=inner.units & mask)
    if isinstance(edit, Renormalised):
        return _everywhere(_footprint(edit.edit))
    if isinstance(edit, InFeatures):
        inner = _footprint(edit.edit)
        return _read_in(edit.features, inner) if inner.basis is None else _everywhere(inner)
    return _written(edit)


def _written(edit: Any) -> _Footprint:
    """Return what an edit that holds no other does."""
    name = type(edit).__name__
    if isinstance(edit, Interchange):
        one = _Footprint(name, _units(edit.weight, lambda weight: weight != 0))
        return one if edit.basis is None else _read_in(edit.basis, one)
    if isinstance(edit, Set) and edit.weight is not None:
        return _Footprint(name, _units(edit.weight, lambda weight: weight != 0))
    if isinstance(edit, Scale):
        return _Footprint(name, _units(edit.factor, lambda factor: factor != 1))
    if isinstance(edit, Clamp):
        lower, upper = _units(edit.low, lambda low: low > -np.inf), _units(edit.high, lambda high: high < np.inf)
        return _Footprint(name, lower | upper)
    return _Footprint(name, np.ones((1, 1, 1), bool))


def _read_in(features: Any, one: _Footprint) -> _Footprint:
    """Return the footprint of an edit of features, given that among them."""
    if not isinstance(features, Basis) or known_values(features.encoder) is None:
        return _everywhere(one)
    units = np.broadcast_to(one.units, (*one.units.shape[:2], features.count))
    return one._replace(units=units, basis=features)


def _everywhere(one: _Footprint) -> _Footprint:
    """Let an edit that acts somewhere at a depth act on all of it."""
    return _Footprint(one.name, np.asarray(one.units.any(axis=(1, 2), keepdims=True)), None, one.positions)


def _units(leaf: Any, acts: Any) -> np.ndarray:
    """Return which units a leaf says are acted on, `[L, N or 1, K or 1]`; all of them where it is traced."""
    known = known_values(leaf)
    if known is None:
        return np.ones((jnp.shape(leaf)[0], 1, 1), bool)
    there = np.asarray(acts(known), bool)
    if there.ndim < 3:
        return there.reshape(len(there), 1, -1)
    return np.asarray(there.any(axis=tuple(range(2, there.ndim - 1))))
