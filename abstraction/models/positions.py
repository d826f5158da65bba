"""Token positions: where a prompt's tokens are, and edits and records there, which may differ from example to example.

A position is an index into the padded prompt. -1 says that an example has none there, so that sets may be ragged: an
edit leaves such an example alone, a record of it is NaN. Positions that are no token are refused where their values are
known. Where they are traced, nothing can be refused: a record past the end is NaN, and an edit there writes NaN.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Shaped

from abstraction.models.taps import Edit, Edits, Tap
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray


@pytree
class AtPositions:
    """Let an edit see only some token positions of an activation `[N, T, D]`; build it with `at_positions`.

    Attributes:
      edit: sees `[N, D]`, or `[N, P, D]` where each example has P positions.
      positions: `[N]` or `[N, P]`, indices into the padded prompt; those of -1 are left alone (ragged sets).
    """

    edit: Any
    positions: AnyArray

    def __call__(self, activation: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        positions, length = jnp.asarray(self.positions), activation.shape[1]
        if positions.ndim not in (1, 2) or len(positions) != len(activation):
            raise ValueError(f"got positions of shape {positions.shape}, expected a row for each of {len(activation)}")
        # The edit sees numbers everywhere, so that gradients of what is left out are 0 rather than 0 times NaN.
        edited = self.edit(picked(activation, jnp.clip(positions, 0, length - 1)))
        beyond = (positions >= length) | (positions < -1)
        rows = jnp.arange(activation.shape[0])
        if positions.ndim > 1:
            beyond, rows = beyond.any(axis=-1, keepdims=True), rows[:, None]
        edited = jnp.where(beyond[..., None], jnp.nan, edited.astype(activation.dtype))
        # A scatter drops what is past the end, and counts negative indices from there.
        index = jnp.where(positions == -1, length, jnp.clip(positions, 0, length - 1))
        return activation.at[rows, index].set(edited, mode="drop")


def at_positions(edit: Edit, positions: Int[AnyArray, "N ..."], *, depth: int = 1) -> AtPositions:
    """Restrict an edit to token positions, the same at every depth.

    Args:
      edit: what to do there; its leaves lead with the tap's depth axis.
      positions: per example, in padded coordinates, `[N]` or `[N, P]`; -1 for none.
      depth: the tap's depth L.

    Raises:
      ValueError: positions that are no integers, are below -1, or name a token twice.
    """
    # Values that are known stay so in a function that is traced: JAX's own broadcast would make them part of it.
    known = known_values(positions)
    if known is None:
        positions = jnp.asarray(positions)
        return AtPositions(edit, jnp.broadcast_to(positions, (depth, *positions.shape)))
    _check_indices(known, grouped=known.ndim == 2)
    return AtPositions(edit, np.broadcast_to(known, (depth, *known.shape)))


def picked(activation: Shaped[Array, "N T ..."], positions: Int[AnyArray, "N ..."]) -> Shaped[Array, "N ..."]:
    """Return the activation at one or several positions per example, all of which are there."""
    rows = jnp.arange(activation.shape[0])
    return activation[rows if positions.ndim == 1 else rows[:, None], positions]


def recorded_at(activation: Float[Array, "N T ..."], positions: Int[AnyArray, "N ..."]) -> Float[Array, "N ..."]:
    """Return the activation at one or several positions per example, NaN where there is no such position."""
    there = (positions >= 0) & (positions < activation.shape[1])
    values = picked(activation, jnp.where(there, positions, 0))
    return jnp.where(there.reshape(*there.shape, *[1] * (values.ndim - there.ndim)), values, jnp.nan)


def token_mask(tokens: Int[AnyArray, "N T"]) -> Array:
    """Return where there is a token: padding is -1, on either side."""
    return jnp.asarray(tokens) >= 0


def token_positions(tokens: Int[AnyArray, "N T"]) -> Int[Array, "N T"]:
    """Count tokens from 0, without padding."""
    return jnp.maximum(jnp.cumsum(token_mask(tokens), axis=1) - 1, 0)


def last_token(tokens: Int[AnyArray, "N T"]) -> Int[Array, " N"]:
    """Return the index of each prompt's last token."""
    return tokens.shape[1] - 1 - jnp.argmax(token_mask(tokens)[:, ::-1], axis=1)


def highlighted(
    tokens: Int[AnyArray, "N T"],
    positions: Int[AnyArray, "N ..."],
    decode: Callable[[Sequence[int]], str] | None = None,
) -> list[str]:
    """Write prompts with the chosen tokens in brackets, without padding, so that it is seen where they are.

    Args:
      tokens: padded with -1.
      positions: `[N]` or `[N, P]`; -1 for none.
      decode: the text of some ids, as a tokenizer's; None writes the ids, apart.

    Raises:
      ValueError: prompts that cannot be, or a position that is no token of its prompt.
    """
    check_tokens(tokens)
    check_positions(tokens, positions)
    text = decode or (lambda ids: " ".join(map(str, ids)))
    known, chosen = np.asarray(tokens), np.reshape(positions, (len(tokens), -1))
    return [_in_brackets(row, set(here.tolist()), text) for row, here in zip(known, chosen, strict=True)]


def _in_brackets(row: np.ndarray, chosen: set[int], text: Callable[[Sequence[int]], str]) -> str:
    """Write a token as what it adds to the text before it: spaces between words are of no token alone."""
    written, so_far, ids = "", "", []
    for index in np.flatnonzero(row >= 0).tolist():
        ids.append(int(row[index]))
        now = text(ids)
        # Part of a character changes what is before it.
        piece = now.removeprefix(so_far) if now.startswith(so_far) else text(ids[-1:])
        word, so_far = piece.lstrip(), now
        written += f"{piece[: len(piece) - len(word)]}[{word}]" if index in chosen else piece
    return written


def check_tokens(tokens: AnyArray, vocabulary: int | None = None) -> None:
    """Refuse prompts that cannot be, where their values are known; traced ones pass.

    Raises:
      ValueError: no integers `[N, T]`, no prompt, a prompt without a token, or an id that is none of the vocabulary.
    """
    known = known_values(tokens)
    if known is None:
        return
    if known.ndim != 2 or not np.issubdtype(known.dtype, np.integer) or known.size == 0:
        raise ValueError(
            f"got tokens of shape {known.shape} and type {known.dtype}, expected integers (N, T), padded with -1"
        )
    most = np.iinfo(np.int32).max if vocabulary is None else vocabulary - 1
    if known.min() < -1 or known.max() > most:
        row, column = np.argwhere((known < -1) | (known > most))[0]
        raise ValueError(
            f"got token {known[row, column]} at position {column} of prompt {row}, expected ids from 0 to {most}, or "
            "-1 for padding"
        )
    empty = np.flatnonzero((known < 0).all(axis=1))
    if len(empty):
        raise ValueError(f"got prompts {empty[:8].tolist()} without a token, expected one or more in each")


def check_positions(
    tokens: AnyArray, positions: AnyArray, depth: int | None = None, *, twice: bool = True, none: bool = True
) -> None:
    """Refuse positions that are no token of their prompt, where both are known.

    Args:
      tokens: N prompts, `[N, T]`.
      positions: `[N]` or `[N, P]`, behind an axis of depth where there is one; -1 for none.
      depth: its length L, or None.
      twice: a prompt may name a token twice, as records may and edits may not.
      none: -1 is valid.

    Raises:
      ValueError: no integers, not of N prompts, past the end or on padding; names the prompt and its tokens.
    """
    ids, known = known_values(tokens), known_values(positions)
    if known is None:
        return
    _check_indices(known, grouped=known.ndim == (2 if depth is None else 3) and not twice)
    lead = () if depth is None else (depth,)
    if known.shape[: len(lead) + 1] != (*lead, len(tokens)) or known.ndim > len(lead) + 2:
        raise ValueError(f"got positions of shape {known.shape}, expected {(*lead, len(tokens))} or a last axis more")
    if ids is None:
        return
    flat = known.reshape(depth or 1, len(ids), -1)
    inside = (flat >= 0) & (flat < ids.shape[1])
    there = np.take_along_axis(ids[None], np.where(inside, flat, 0), axis=2) >= 0
    wrong = np.argwhere(~(inside & there) & ((flat >= 0) | (not none)))
    if len(wrong):
        level, row, place = wrong[0]
        valid = np.flatnonzero(ids[row] >= 0)
        raise ValueError(
            f"got position {flat[level, row, place]} in prompt {row}, expected one of its tokens, {valid[0]} to "
            f"{valid[-1]}{', or -1 for none' if none else ''}"
        )


def check_edited_positions(taps: Mapping[str, Tap], edits: Edits, tokens: AnyArray) -> None:
    """Refuse edits at positions that are no token of their prompt; see `check_positions`."""
    for name, edit in edits.items():
        for part in jax.tree.leaves(edit, is_leaf=lambda part: isinstance(part, AtPositions)):
            if isinstance(part, AtPositions):
                check_positions(tokens, part.positions, taps[name].depth, twice=False)


def known_values(array: Any) -> np.ndarray | None:
    """Return values as NumPy, or None where they are traced and so not known.

    Raises:
      ValueError: rows of different lengths.
    """
    if isinstance(array, Tracer):
        return None
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError(f"got rows of different lengths, expected a whole array: {error}") from error


def _check_indices(positions: np.ndarray, *, grouped: bool) -> None:
    """Refuse what is no index; `grouped`: the last axis is of one prompt, which has each token at most once."""
    if not np.issubdtype(positions.dtype, np.integer) or positions.ndim == 0:
        raise ValueError(
            f"got positions of shape {positions.shape} and type {positions.dtype}, expected integers (N,) or (N, P)"
        )
    if (positions < -1).any():
        raise ValueError(f"got position {positions.min()}, expected an index from 0, or -1 for none")
    ordered = np.sort(positions, axis=-1)
    repeated = (np.diff(ordered, axis=-1) == 0) & (ordered[..., 1:] >= 0)
    if grouped and repeated.any():
        row = np.argwhere(repeated)[0][:-1]
        raise ValueError(
            f"got positions {positions[tuple(row)].tolist()} of prompt {row[-1]}, expected each token at most once"
        )
