"""Taps: the named activations of a model, and how an edit reaches them.

A network is a deterministic structural causal model; a tap is one of its variables. An edit is a pytree that maps
the tapped value to a new one. Edits are arguments, not hooks: their arrays are leaves, so sites, strengths and
sources vmap and differentiate, and changing them never recompiles.

Where a tap recurs along depth (layers, time steps), every leaf of its edit has that depth as leading axis, and the
recorded activation is stacked along it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array


@dataclass(frozen=True)
class Tap:
    """Where and how large a named activation is.

    Attributes:
      name: what edits and records call it.
      width: size D of its last axis.
      depth: number of times L it occurs, or None when it occurs once and has no depth axis.
      about: one line for people.
    """

    name: str
    width: int
    depth: int | None = None
    about: str = ""


@runtime_checkable
class Edit(Protocol):
    """A pytree that maps an activation to one of the same shape, at one depth."""

    def __call__(self, activation: Array) -> Array: ...


Edits = Mapping[str, Edit]
NO_EDITS: Edits = {}


def check_taps(taps: Mapping[str, Tap], edits: Edits, record: Sequence[str]) -> None:
    """Refuse unknown tap names and edits without the depth axis of their tap.

    Raises:
      ValueError: at trace time, naming what is valid.
    """
    for what, names in (("an edit of", edits), ("a record of", record)):
        unknown = [name for name in names if name not in taps]
        if unknown:
            raise ValueError(f"got {what} {unknown}, expected tap names among {sorted(taps)}")
    for name, edit in edits.items():
        depth = taps[name].depth
        wrong = [leaf.shape for leaf in jax.tree.leaves(edit) if depth is not None and leaf.shape[:1] != (depth,)]
        if wrong:
            raise ValueError(
                f"got arrays of shape {wrong} in the edit of {name!r}, expected a leading depth axis of {depth} in each"
            )


def at_depth(edits: Edits, depth: int | slice) -> Edits:
    """Index the depth axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[depth], edits)


def tapped(name: str, activation: Array, edits: Edits) -> Array:
    """Return the activation after the edit of its tap, if there is one.

    Raises:
      ValueError: the edit does not fit the activation.
    """
    if name not in edits:
        return activation
    try:
        edited = edits[name](activation)
    except (TypeError, ValueError) as error:
        raise ValueError(f"got an edit that does not fit tap {name!r} of shape {activation.shape}: {error}") from error
    if edited.shape != activation.shape:
        raise ValueError(f"got shape {edited.shape} from the edit of {name!r}, expected {activation.shape}")
    return edited.astype(activation.dtype)
