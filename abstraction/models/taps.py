"""Taps: the named activations of a model, and how an edit reaches them.

A network is a deterministic structural causal model; a tap is one of its variables. An edit is a pytree that maps
the tapped value to a new one. Edits are arguments, not hooks: their arrays are leaves, so sites, strengths and
sources vmap and differentiate, and changing them never recompiles.

A tap occurs L times along depth (layers, time steps), once where there is nothing to recur: every leaf of its edit has
that depth as leading axis, and the recorded activation is stacked along it, `[L, N, ..., D]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array

from abstraction.checks import places


@dataclass(frozen=True)
class Tap:
    """Where and how large a named activation is.

    Attributes:
      name: what edits and records call it.
      width: size D of its last axis.
      depth: number of times L it occurs.
      about: one line for people.
      resumes: whether the model's `resume` runs on from it.
      places: what its depth enumerates, as named axes and the labels along each, the last one fastest; empty where
        depth is one axis, of layers or steps.
    """

    name: str
    width: int
    depth: int = 1
    about: str = ""
    resumes: bool = False
    places: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def axes(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """The named axes that the depth enumerates, and the labels along each; their sizes multiply to the depth."""
        return self.places or (("layer", tuple(map(str, range(self.depth)))),)

    def place(self, depth: int) -> dict[str, str]:
        """Return what one depth stands for, the label along each axis: `{"layer": "3", "position": "last"}`.

        Raises:
          ValueError: there is no such depth.
        """
        places(f"depths at tap {self.name!r}", depth, self.depth)
        index = np.unravel_index(int(depth), [len(labels) for _, labels in self.axes])
        return {axis: labels[at] for (axis, labels), at in zip(self.axes, index, strict=True)}


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
        wrong = [leaf.shape for leaf in jax.tree.leaves(edit) if leaf.shape[:1] != (depth,)]
        if wrong:
            raise ValueError(
                f"got arrays of shape {wrong} in the edit of {name!r}, expected a leading depth axis of {depth} in each"
            )


def check_resume(taps: Mapping[str, Tap], tap: str, depth: Any, activation: Array) -> None:
    """Refuse a place that a model does not resume from, and a value that is not the tap's.

    A depth that is traced cannot be looked at, and is taken as it is.

    Raises:
      ValueError: the tap is unknown or determines too little, the depth is outside of it, or the width is another.
    """
    valid = [name for name, found in taps.items() if found.resumes]
    if tap not in valid:
        raise ValueError(f"got a resume from {tap!r}, expected one of {valid}")
    if not _inside(depth, taps[tap].depth):
        raise ValueError(f"got a resume at depth {depth} of {tap!r}, expected 0 to {taps[tap].depth - 1}")
    if activation.shape[-1:] != (taps[tap].width,):
        raise ValueError(
            f"got an activation of shape {activation.shape} for {tap!r}, expected one of width {taps[tap].width}"
        )


def _inside(depth: Any, size: int) -> bool:
    """Tell whether a depth is one of a tap's; one that is traced counts as such."""
    try:
        known = np.asarray(depth)
    except jax.errors.TracerArrayConversionError:
        return True
    return known.ndim == 0 and known.dtype.kind in "iu" and bool(0 <= known < size)


def at_depth(edits: Edits, depth: int | slice) -> Edits:
    """Index the depth axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[depth], edits)


def tapped_once(name: str, activation: Array, edits: Edits) -> tuple[Array, Array]:
    """Return the activation of a tap that occurs once, after its edit, and its record, with a depth axis of 1.

    Raises:
      ValueError: the edit does not fit the activation.
    """
    activation = tapped(name, activation, at_depth({name: edits[name]} if name in edits else NO_EDITS, 0))
    return activation, activation[None]


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
