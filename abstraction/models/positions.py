"""Edits at token positions, which may differ from example to example."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from abstraction.models.taps import Edit
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray


@pytree
class AtPositions:
    """Let an edit see only some token positions of an activation `[N, T, D]`; build it with `at_positions`.

    Attributes:
      edit: sees `[N, D]`, or `[N, P, D]` where each example has P positions.
      positions: `[N]` or `[N, P]`, indices into the padded prompt; negative ones are left alone (ragged sets).
    """

    edit: Any
    positions: AnyArray

    def __call__(self, activation: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        positions = jnp.asarray(self.positions)
        # Beyond the end a gather clamps and a scatter drops: what a ragged set leaves out stays as it was.
        index = jnp.where(positions < 0, activation.shape[1], positions)
        edited = self.edit(picked(activation, index))
        rows = jnp.arange(activation.shape[0])
        rows = rows if index.ndim == 1 else rows[:, None]
        return activation.at[rows, index].set(edited.astype(activation.dtype), mode="drop")


def at_positions(edit: Edit, positions: Int[AnyArray, "N ..."], *, depth: int | None = None) -> AtPositions:
    """Restrict an edit to token positions, the same at every depth.

    Args:
      edit: what to do there; its leaves lead with the tap's depth axis, where it has one.
      positions: per example, in padded coordinates.
      depth: the tap's depth L, or None where it has none.
    """
    positions = jnp.asarray(positions)
    return AtPositions(edit, positions if depth is None else jnp.broadcast_to(positions, (depth, *positions.shape)))


def picked(activation: Float[Array, "N T ..."], positions: Int[AnyArray, "N ..."]) -> Float[Array, "N ..."]:
    """Return the activation at one or several positions per example."""
    rows = jnp.arange(activation.shape[0])
    return activation[rows if positions.ndim == 1 else rows[:, None], positions]


def token_mask(tokens: Int[AnyArray, "N T"]) -> Array:
    """Return where there is a token: padding is -1, on either side."""
    return jnp.asarray(tokens) >= 0


def token_positions(tokens: Int[AnyArray, "N T"]) -> Int[Array, "N T"]:
    """Count tokens from 0, without padding."""
    return jnp.maximum(jnp.cumsum(token_mask(tokens), axis=1) - 1, 0)


def last_token(tokens: Int[AnyArray, "N T"]) -> Int[Array, " N"]:
    """Return the index of each prompt's last token."""
    return tokens.shape[1] - 1 - jnp.argmax(token_mask(tokens)[:, ::-1], axis=1)
