"""A decoder seen at one token of each prompt, at the cost of the tokens after it.

What comes before an edited token does not depend on the edit. So a bank of prompts is run once; of that run the keys
and values of the prefix are kept, and the residual stream of the last S tokens, the window, which the edited token is
in. An edit after block l then runs the window alone, through blocks l + 1 and later: a single token, if the last one is
edited. The result is that of a full run, exactly.

    cost of an edit / cost of a full run  =  S (L - l - 1) / (T L)         (without the logits)

A view is a `Model` whose activations have no token axis, so everything that works on a network with depth works on it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from abstraction.models.decoder import Decoder
from abstraction.models.decoder_blocks import Past
from abstraction.models.positions import (
    at_positions,
    check_positions,
    check_tokens,
    token_mask,
    token_positions,
)
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap, check_taps
from abstraction.pytrees import pytree
from abstraction.typing import AnyArray, Outputs, Params

RESIDUAL = "block_output"


@pytree
class Prompts:
    """N prompts and one token in each; build it with `prompts_at`.

    Attributes:
      tokens: padded on the left with -1, `[N, T]`.
      position: index of the token that is looked at, `[N]`.
      past: keys and values of the tokens before the window in each block, once the prompts have been run.
      window: residual stream of the window after each block, `[N, L, S, D]`, where the window is more than a token.
    """

    tokens: Int[AnyArray, "N T"]
    position: Int[AnyArray, " N"]
    past: tuple[Past, ...] | None = None
    window: Float[AnyArray, "N L S D"] | None = None


def prompts_at(tokens: Int[AnyArray, "N T"], position: Int[AnyArray, " N"] | None = None) -> Prompts:
    """Pick one token of each prompt, by default the last.

    Args:
      tokens: padded with -1 on either side; padding is moved to the left.
      position: indices into the padded prompts.

    Raises:
      ValueError: no integers, a prompt that is empty or has padding inside, or a position that is not a token of it.
    """
    check_tokens(tokens)
    tokens = np.asarray(tokens, np.int32)
    mask = tokens >= 0
    first, count = mask.argmax(axis=1), mask.sum(axis=1)
    inside = np.arange(tokens.shape[1])
    whole = (inside >= first[:, None]) & (inside < (first + count)[:, None])
    if not count.all() or (mask != whole).any():
        bad = np.flatnonzero((count == 0) | (mask != whole).any(axis=1))
        raise ValueError(f"got prompts {bad[:8].tolist()} empty or with padding inside, expected padding at the ends")
    if position is not None:
        check_chosen(tokens, position)
    chosen = np.asarray(first + count - 1 if position is None else position, np.int32)
    shift = tokens.shape[1] - first - count
    rolled = np.stack([np.roll(row, by) for row, by in zip(tokens, shift, strict=True)])
    return Prompts(rolled, (chosen + shift).astype(np.int32))


def check_chosen(tokens: AnyArray, position: AnyArray) -> None:
    """Refuse a choice that is not one token of each prompt.

    Raises:
      ValueError: naming the prompt and its tokens.
    """
    if np.ndim(position) != 1:
        raise ValueError(f"got positions of shape {np.shape(position)}, expected one for each of {len(tokens)} prompts")
    check_positions(tokens, position, none=False)


def window_of(*prompts: Prompts) -> int:
    """Return how many tokens at the end have to be run for edits of all these prompts: S."""
    return max(int(one.tokens.shape[1] - np.min(np.asarray(one.position))) for one in prompts)


@dataclass(frozen=True)
class TokenView:
    """A decoder at one token; implements `abstraction.models.Model` and `Recordable`.

    Attributes:
      decoder: the network.
      window: tokens S at the end that are run again, see `window_of`.
      first: no edit is ever before this block's output, so that earlier blocks are not compiled in.
      batch: prompts recorded at once, or None for all.
    """

    decoder: Decoder
    window: int = 1
    first: int = 0
    batch: int | None = None

    @property
    def taps(self) -> Mapping[str, Tap]:
        """`block_output`, the residual stream after each block, and `logits`."""
        taps = self.decoder.taps
        return {name: taps[name] for name in (RESIDUAL, "logits")}

    def init(self, key: Array) -> Params:
        """Draw the decoder's parameters."""
        return self.decoder.init(key)

    def record(self, params: Params, inputs: Prompts, taps: Sequence[str]) -> tuple[Prompts, Outputs, dict[str, Array]]:
        """Run prompts once and keep what edits of them need; see `Recordable.record`.

        Raises:
          ValueError: an unknown tap, or a token before the window.
        """
        check_taps(self.taps, NO_EDITS, taps)
        if not isinstance(inputs.position, Tracer):  # `run_pairs` has checked what it is given
            self.check(inputs)
        batch = jnp.asarray(inputs.tokens), jnp.asarray(inputs.position)
        if self.batch is None or self.batch >= len(batch[0]):
            past, window, states, outputs = self._record(params, *batch)
        else:
            single = lambda row: jax.tree.map(lambda leaf: leaf[0], self._record(params, row[0][None], row[1][None]))
            past, window, states, outputs = jax.lax.map(single, batch, batch_size=self.batch)
        prompts = Prompts(*batch, past, window if self.window > 1 else None)
        values = {RESIDUAL: jnp.moveaxis(states, 0, 1), "logits": outputs[None]}
        return prompts, outputs, {name: values[name] for name in taps}

    def apply(
        self, params: Params, inputs: Prompts, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the prompts, whole, with edits of the one token; see `Model.apply`."""
        check_taps(self.taps, edits, record)
        position = jnp.asarray(inputs.position)
        placed: dict[str, Edit] = {
            name: at_positions(edit, position, depth=self.taps[name].depth) if name == RESIDUAL else edit
            for name, edit in edits.items()
        }
        run = self.decoder.run(params, jnp.asarray(inputs.tokens), placed, record, at=position)
        return run.outputs, run.recorded

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N D"],
        *,
        inputs: Prompts,
        states: Float[Array, "L N D"],
    ) -> Outputs:
        """Run the window from the residual stream after one block, one token of which is given; see `Model.resume`.

        Raises:
          ValueError: another tap, or prompts that have not been recorded.
        """
        if tap != RESIDUAL:
            raise ValueError(f"got a resume from {tap!r}, expected {RESIDUAL!r}")
        if inputs.past is None:
            raise ValueError("got prompts that have not been run, expected those of a recording (`run_pairs`)")
        tokens = jnp.asarray(inputs.tokens)
        before = tokens.shape[1] - self.window
        network = self.decoder.network(params)
        place = self.decoder.place(token_mask(tokens), token_positions(tokens)[:, before:], before)
        stream = activation[:, None]
        if inputs.window is not None:
            rows = jnp.arange(tokens.shape[0])
            whole = jnp.asarray(inputs.window)[:, depth]
            stream = whole.at[rows, jnp.asarray(inputs.position) - before].set(activation.astype(whole.dtype))
        stream = self.decoder.continued(network, stream, depth + 1, place, inputs.past, first=self.first + 1)
        return self.decoder.read(network, stream[:, -1])

    def from_depth(self, depth: int) -> "TokenView":
        """Leave out the blocks before an edit of this block's output; see `Recordable.from_depth`."""
        return dataclasses.replace(self, first=depth)

    def _record(
        self, params: Params, tokens: Int[Array, "N T"], position: Int[Array, " N"]
    ) -> tuple[tuple[Past, ...], Float[Array, "N L S D"], Float[Array, "N L D"], Float[Array, "N C"]]:
        before = tokens.shape[1] - self.window
        window = jnp.broadcast_to(before + jnp.arange(self.window), (tokens.shape[0], self.window))
        # Of a short prompt some of the window is padding.
        run = self.decoder.scan(params, tokens, NO_EDITS, (RESIDUAL,), at=window, cache=True)
        blocks = range(self.decoder.config.depth)
        past = tuple(jax.tree.map(lambda leaf, block=block: leaf[block, :, :, :before], run.past) for block in blocks)
        states = jnp.moveaxis(run.recorded[RESIDUAL], 0, 1)
        return past, states, jax.vmap(lambda state, at: state[:, at])(states, position - before), run.outputs

    def check(self, inputs: Prompts) -> None:
        """Refuse ids that are none of the vocabulary, a position that is no token, and a token before the window.

        Raises:
          ValueError: as said, or a window that cannot be.
        """
        check_tokens(inputs.tokens, self.decoder.config.vocabulary)
        check_chosen(inputs.tokens, inputs.position)
        length = inputs.tokens.shape[1]
        if not 1 <= self.window <= length:
            raise ValueError(f"got a window of {self.window} tokens, expected 1 to {length}")
        furthest = int(length - np.min(np.asarray(inputs.position)))
        if furthest > self.window:
            raise ValueError(
                f"got a token {furthest} from the end, expected it within the window of {self.window}; `window_of` "
                "says how many are needed"
            )
