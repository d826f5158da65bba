"""Handles: where a causal variable lives, as arrays.

A handle is the alignment of one causal variable: a weight per depth and feature of one tap, in a basis,

    h_l <- h_l + decode(w_l (z(s)_l - z(h)_l))        at every depth l                     (PLOT, Sec. 2)

Many handles of one kind are one pytree with a leading axis. A handle that acts at a single depth says which, as a
value; it is evaluated by resuming the network there, so that handles at different depths share one program.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from abstraction.checks import places
from abstraction.interventions.bases import Basis
from abstraction.interventions.edits import Interchange
from abstraction.models import Tap
from abstraction.models.taps import Edits
from abstraction.pytrees import leading_axis, pytree, static
from abstraction.typing import AnyArray


@pytree
class Handle:
    """Where a causal variable lives; every leaf has more leading axes in a batch of handles.

    Attributes:
      tap: the tap's name.
      weight: strength times site weight, `[L, K]`, or `[K]` where there is a depth.
      basis: the features, each leaf `[L, ...]`, or those at the depth; None for native coordinates.
      depth: the one depth index it acts at, or None where it acts at all of them.
    """

    tap: str = static()
    weight: AnyArray
    basis: Basis | None = None
    depth: AnyArray | None = None

    def edits(self, source: Float[Array, "L N *P D"]) -> Edits:
        """The interchange of this handle's features with those of recorded source states.

        With a depth, the weights elsewhere are 0.
        """
        weight = jnp.asarray(self.weight)
        if self.depth is None:
            return {self.tap: Interchange(source, weight[:, None, :], self.basis)}
        there = jnp.arange(source.shape[0]) == jnp.asarray(self.depth)
        spread = lambda leaf: jnp.broadcast_to(leaf, (source.shape[0], *jnp.shape(leaf)))
        basis = jax.tree.map(spread, self.basis)
        return {self.tap: Interchange(source, (there[:, None] * weight)[:, None, :], basis)}


def at_one_depth(handles: Handle) -> Handle:
    """Write a batch of handles, each of which acts at one depth, as such, so that the network resumes there.

    Handles of which one acts at several depths are returned as they are.
    """
    weight = np.asarray(handles.weight)
    if handles.depth is not None or weight.ndim != 3:
        return handles
    acts = (weight != 0).any(axis=-1)
    if (acts.sum(axis=1) > 1).any():
        return handles
    depth, rows = acts.argmax(axis=1).astype(np.int32), np.arange(len(weight))
    basis = jax.tree.map(lambda leaf: np.asarray(leaf)[rows, depth], handles.basis)
    return Handle(handles.tap, weight[rows, depth], basis, depth)


def handle_depths(handles: Handle) -> Int[np.ndarray, " V"]:
    """Return the depth at which each handle of a batch moves most; the earlier of equals."""
    if handles.depth is not None:
        return np.asarray(handles.depth)
    return np.abs(np.asarray(handles.weight)).sum(axis=-1).argmax(axis=-1)


def stack_handles(handles: Sequence[Handle]) -> Handle:
    """Join single handles of one kind into a batch.

    Raises:
      ValueError: there is none, or they differ in tap, basis shape, or in whether they have a depth.
    """
    if len({jax.tree.structure(handle) for handle in handles}) != 1:
        kinds = sorted({(handle.tap, handle.depth is not None, handle.basis is not None) for handle in handles})
        raise ValueError(
            f"got {len(handles)} handles of kinds (tap, depth, basis) {kinds}, expected at least one, all of one kind"
        )
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(handle)) for handle in handles}
    if len(shapes) != 1:
        raise ValueError(f"got {len(handles)} handles of shapes {sorted(shapes)}, expected one shape for all")
    return jax.tree.map(lambda *leaves: leaves[0].__array_namespace__().stack(leaves), *handles)


def take_handle(handles: Handle, index: int | Int[AnyArray, "..."]) -> Handle:
    """Pick one handle, or several, from a batch.

    Raises:
      ValueError: an index is not a whole number of 0 to H - 1; one that JAX traces cannot be checked.
    """
    places("handle indices", index, leading_axis(handles))
    if isinstance(index, Tracer):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], handles)
    return jax.tree.map(lambda leaf: leaf[index] if isinstance(leaf, Array) else np.asarray(leaf[index]), handles)


def check_handles(handles: Handle, tap: Tap) -> int:
    """Refuse a batch of handles that does not fit its tap; return how many there are.

    Weights and features may be anything: what is not finite is a miss wherever handles are tallied.

    Raises:
      ValueError: another tap, leaves that disagree, features of another width, or a depth that is not there.
    """
    if handles.tap != tap.name:
        raise ValueError(f"got handles of tap {handles.tap!r}, expected tap {tap.name!r}")
    count, shape = leading_axis(handles), np.shape(handles.weight)
    features = tap.width if handles.basis is None else np.shape(handles.basis.encoder)[-1]
    depths = () if handles.depth is not None else (tap.depth,)
    if shape != (count, *depths, features):
        raise ValueError(
            f"got handle weights of shape {shape}, expected {(count, *depths, features)} at tap {tap.name!r} of width "
            f"{tap.width} and depth {tap.depth}"
        )
    if handles.basis is not None:
        expected = ((*shape[:-1], tap.width, features), (*shape[:-1], features, tap.width))
        found = (np.shape(handles.basis.encoder), np.shape(handles.basis.decoder))
        if found != expected:
            raise ValueError(f"got encoder and decoder of shapes {found}, expected {expected}")
    if handles.depth is not None:
        check_depths(np.asarray(handles.depth), tap)
    return count


def check_depths(depths: Int[np.ndarray, "..."], tap: Tap) -> None:
    """Refuse depths that a tap has not.

    Raises:
      ValueError: they are not whole numbers, or out of range.
    """
    places(f"depths at tap {tap.name!r}", depths, tap.depth)


def coordinate_mass(handles: Handle, depth: int) -> Float[np.ndarray, "V L D"]:
    """Return how much of each native coordinate a handle moves, `[V, L, D]`: |weight|, or the projector's diagonal."""
    weight = np.abs(np.asarray(handles.weight))
    if handles.basis is not None:
        weight = np.einsum(
            "...dk,...k,...kd->...d", *map(np.asarray, (handles.basis.encoder, weight, handles.basis.decoder))
        )
    if handles.depth is None:
        return weight
    mass = np.zeros((len(weight), depth, weight.shape[-1]), weight.dtype)
    mass[np.arange(len(weight)), np.asarray(handles.depth)] = weight
    return mass
