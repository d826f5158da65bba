"""A decoder seen at some tokens of each prompt, at the cost of the tokens after them.

What comes before an edited token does not depend on the edit. So a bank of prompts is run once; of that run the keys
and values of the prefix are kept, and the residual stream of the last S tokens, the window, which the edited tokens are
in. An edit after block l then runs the window alone, through blocks l + 1 and later: a single token, if the last one is
edited. An edit within block l runs that block too. The result is that of a full run, exactly.

    cost of an edit / cost of a full run  =  S (L - l - 1) / (T L)     after block l, without the logits
                                             S (L - l) / (T L)         within it
                                             S / T                     in several blocks at once

A view is a `Model` whose activations have no token axis: P named tokens make L P places (`places.py`), so everything
that works on a network with depth works on it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from abstraction.models.decoder import ONCE, RESUMES, Decoder
from abstraction.models.decoder_blocks import WRITTEN, Past, completes_from_input
from abstraction.models.decoder_network import StackedNetwork
from abstraction.models.places import at_places, check_names, check_same_names, over_places, place_tap
from abstraction.models.positions import (
    check_positions,
    check_tokens,
    token_mask,
    token_positions,
)
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap, check_resume, check_taps, tapped_once
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray, Outputs, Params

RESIDUAL = "block_output"
ONE = ("token",)
"""Names of the tokens where there is one and it was given no name."""


@pytree
class Prompts:
    """N prompts and one or more tokens in each; build it with `prompts_at`.

    Attributes:
      tokens: padded on the left with -1, `[N, T]`.
      position: index of the token that is looked at, `[N]`, or of each of P named ones, `[N, P]`.
      past: keys and values of the tokens before the window in each block, once the prompts have been run; true of the
        parameters of that run alone.
      window: residual stream of the window after each block, `[N, L, S, D]`, where the window is more than a token or
        an edit may be within a block.
      names: of the P tokens.
    """

    tokens: Int[AnyArray, "N T"]
    position: Int[AnyArray, "N ..."]
    past: tuple[Past, ...] | None = None
    window: Float[AnyArray, "N L S D"] | None = None
    names: tuple[str, ...] = static(default=ONE)


def prompts_at(
    tokens: Int[AnyArray, "N T"],
    position: Int[AnyArray, " N"] | Mapping[str, Int[AnyArray, " N"]] | None = None,
) -> Prompts:
    """Pick one token of each prompt, by default the last, or several by name.

    Args:
      tokens: padded with -1 on either side; padding is moved to the left.
      position: indices into the padded prompts, or such by name.

    Raises:
      ValueError: no integers, a prompt that is empty or has padding inside, no name, or a position that is not a token
        of its prompt.
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
    shift = tokens.shape[1] - first - count
    rolled = np.stack([np.roll(row, by) for row, by in zip(tokens, shift, strict=True)])
    if isinstance(position, Mapping):
        chosen, names = _chosen_by_name(tokens, position), tuple(position)
        return Prompts(rolled, (chosen + shift[:, None]).astype(np.int32), names=names)
    if position is not None:
        check_chosen(tokens, position)
    chosen = np.asarray(first + count - 1 if position is None else position, np.int32)
    return Prompts(rolled, (chosen + shift).astype(np.int32))


def _chosen_by_name(tokens: AnyArray, positions: Mapping[str, AnyArray]) -> Int[np.ndarray, "N P"]:
    check_names(tuple(positions))
    for name, position in positions.items():
        try:
            check_chosen(tokens, position)
        except ValueError as error:
            raise ValueError(f"{error} (the token {name!r})") from error
    return np.stack([np.asarray(position) for position in positions.values()], axis=1)


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
    """A decoder at some tokens; implements `abstraction.models.Model` and `Recordable`.

    Attributes:
      decoder: the network.
      window: tokens S at the end that are run again, see `window_of`.
      first: no edit is ever in an earlier block, so that what is before it is not compiled in.
      batch: prompts recorded at once, or None for all.
      positions: names of the P tokens, as in `prompts_at`.
      backward: whether what is run is differentiated, see `Decoder.continued`.

    Raises:
      ValueError: no name, or a name twice.
    """

    decoder: Decoder
    window: int = 1
    first: int = 0
    batch: int | None = None
    positions: tuple[str, ...] = ONE
    backward: bool = False

    def __post_init__(self) -> None:
        check_names(self.positions)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Those of every block, at L P places each, and `logits`."""
        taps = self.decoder.taps
        inside = [dataclasses.replace(tap, resumes=True) for name, tap in taps.items() if name not in ONCE]
        if self.positions != ONE:
            inside = [place_tap(tap, self.positions) for tap in inside]
        return {tap.name: tap for tap in (*inside, taps["logits"])}

    def init(self, key: Array) -> Params:
        """Draw the decoder's parameters."""
        return self.decoder.init(key)

    def record(self, params: Params, inputs: Prompts, taps: Sequence[str]) -> tuple[Prompts, Outputs, dict[str, Array]]:
        """Run prompts once and keep what edits of these taps need; see `Recordable.record`.

        Raises:
          ValueError: an unknown tap, tokens that are named otherwise, or one before the window.
        """
        check_taps(self.taps, NO_EDITS, taps)
        if not isinstance(inputs.position, Tracer):  # `run_pairs` has checked what it is given
            self.check(inputs)
        inside = tuple(name for name in taps if name not in ONCE)
        run = partial(self._record, params, inside)
        batch = jnp.asarray(inputs.tokens), self._position(inputs)
        if self.batch is None or self.batch >= len(batch[0]):
            past, window, values, outputs = run(*batch)
        else:
            single = lambda row: jax.tree.map(lambda leaf: leaf[0], run(row[0][None], row[1][None]))
            past, window, values, outputs = jax.lax.map(single, batch, batch_size=self.batch)
        kept = self.window > 1 or bool(set(inside) - set(RESUMES))
        prompts = Prompts(batch[0], jnp.asarray(inputs.position), past, window if kept else None, inputs.names)
        recorded = {name: over_places(jnp.moveaxis(each, 0, 1)) for name, each in values.items()}
        recorded["logits"] = outputs[None]
        return prompts, outputs, {name: recorded[name] for name in taps}

    def apply(
        self, params: Params, inputs: Prompts, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the prompts with edits of the chosen tokens; see `Model.apply`.

        Prompts that have been recorded, with these parameters, run the window alone, unless something is to be kept.
        """
        check_taps(self.taps, edits, record)
        if inputs.past is not None and not record:
            return self._rerun(params, inputs, edits), {}
        position, depth = self._position(inputs), self.decoder.config.depth
        placed: dict[str, Edit] = {
            name: edit if name in ONCE else at_places(edit, position, depth) for name, edit in edits.items()
        }
        run = self.decoder.run(params, jnp.asarray(inputs.tokens), placed, record, at=position)
        values = run.recorded.items()
        return run.outputs, {name: each if name in ONCE else over_places(each) for name, each in values}

    def _rerun(self, params: Params, inputs: Prompts, edits: Edits) -> Outputs:
        """Run the window of recorded prompts through all blocks, with edits of each."""
        tokens, network, depth = jnp.asarray(inputs.tokens), self.decoder.network(params), self.decoder.config.depth
        before = tokens.shape[1] - self.window
        fresh, positions = tokens[:, before:], token_positions(tokens)[:, before:]
        placed = {
            name: at_places(edit, self._position(inputs) - before, depth)
            for name, edit in edits.items()
            if name not in ONCE
        }
        stream = self.decoder.continued(
            network,
            network.embed(fresh, positions),
            None,
            self.decoder.place(token_mask(tokens), positions, before),
            inputs.past,
            edits=lambda block: jax.tree.map(lambda leaf: jnp.asarray(leaf)[block], placed),
        )
        return tapped_once("logits", self.decoder.read(network, stream[:, -1]), edits)[0]

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N D"],
        *,
        inputs: Prompts,
        states: Float[Array, "LP N D"],
    ) -> Outputs:
        """Run the window from one block on, a value of which is given at one token; see `Model.resume`.

        From `block_output` the block itself is not run again.

        Raises:
          ValueError: another tap, or prompts that have not been recorded, or without this tap.
        """
        check_resume(self.taps, tap, depth, activation)
        if inputs.past is None:
            raise ValueError("got prompts that have not been run, expected those of a recording (`run_pairs`)")
        tokens = jnp.asarray(inputs.tokens)
        before = tokens.shape[1] - self.window
        network = self.decoder.network(params)
        place = self.decoder.place(token_mask(tokens), token_positions(tokens)[:, before:], before)
        block, which = jnp.divmod(depth, len(self.positions))
        position = self._position(inputs)[:, which] - before
        if tap in WRITTEN or (tap == "mlp_hidden" and not self.decoder.config.gated):
            activation, tap = self._completed(network, inputs, tap, (depth, position), (activation, states)), RESIDUAL
        given, later = Given(activation, position, self.window), RESUMES.get(tap, 0)
        if tap not in RESUMES:
            stream = self._entering(network, inputs, block)
            edits = lambda index: {tap: dataclasses.replace(given, there=index == block)}
        else:
            # Of a window of one token all is given.
            wide = self.window > 1
            whole = (self._after(inputs, block) if later else self._entering(network, inputs, block)) if wide else None
            stream, edits = activation[:, None] if whole is None else given(whole), lambda index: NO_EDITS
        past, backward = inputs.past, self.backward
        run = partial(self.decoder.continued, network, stream, block + later, place, past, backward=backward)
        return self.decoder.read(network, run(first=self.first + later, edits=edits, last=True)[:, -1])

    def _completed(
        self,
        network: StackedNetwork,
        inputs: Prompts,
        tap: str,
        where: tuple[Int[Array, ""], Int[Array, " N"]],
        values: tuple[Float[Array, "N W"], Float[Array, "LP N W"]],
    ) -> Float[Array, "N D"]:
        """Return the residual stream of an edited token after its block: what it writes reaches no other there."""
        (depth, position), (activation, states) = where, values
        block = depth // len(self.positions)
        before = completes_from_input(self.decoder.config, tap)
        window = self._entering(network, inputs, block) if before else self._after(inputs, block)
        token = jnp.take_along_axis(window, position[:, None, None], axis=1)
        given = (token, activation[:, None], states[depth][:, None])
        return self.decoder.completed(network, tap, block, given, first=self.first)[:, 0]

    def from_depth(self, depth: int) -> "TokenView":
        """Leave out the blocks before an edit at this place; see `Recordable.from_depth`."""
        return dataclasses.replace(self, first=depth // len(self.positions), backward=True)

    def _position(self, inputs: Prompts) -> Int[Array, "N P"]:
        """Return the index of every token that is looked at.

        Raises:
          ValueError: they are named otherwise.
        """
        check_same_names(inputs.names, self.positions)
        return jnp.asarray(inputs.position).reshape(-1, len(self.positions))

    def _after(self, inputs: Prompts, block: Int[Array, ""]) -> Float[Array, "N S D"]:
        """Return the residual stream of the window after a block, as recorded."""
        if inputs.window is None:
            raise ValueError("got prompts recorded for edits of the residual stream alone, expected `taps` to be named")
        return jnp.asarray(inputs.window)[:, block]

    def _entering(self, network: StackedNetwork, inputs: Prompts, block: Int[Array, ""]) -> Float[Array, "N S D"]:
        """Return the residual stream of the window before a block: after the one before, or the embeddings."""
        earlier = self._after(inputs, jnp.maximum(block - 1, 0))
        if self.first > 0:
            return earlier
        tokens = jnp.asarray(inputs.tokens)
        fresh = slice(tokens.shape[1] - self.window, None)
        return jnp.where(block == 0, network.embed(tokens[:, fresh], token_positions(tokens)[:, fresh]), earlier)

    def _record(
        self, params: Params, inside: tuple[str, ...], tokens: Int[Array, "N T"], position: Int[Array, "N P"]
    ) -> tuple[tuple[Past, ...], Float[Array, "N L S D"], dict[str, Array], Float[Array, "N C"]]:
        before = tokens.shape[1] - self.window
        window = jnp.broadcast_to(before + jnp.arange(self.window), (tokens.shape[0], self.window))
        # Of a short prompt some of the window is padding.
        at = {name: position for name in inside} | {RESIDUAL: window}
        run = self.decoder.scan(params, tokens, NO_EDITS, tuple(at), at=at, cache=True)
        blocks = range(self.decoder.config.depth)
        past = tuple(jax.tree.map(lambda leaf, block=block: leaf[block, :, :, :before], run.past) for block in blocks)
        values = {name: jnp.moveaxis(value, 0, 1) for name, value in run.recorded.items()}
        states = values.pop(RESIDUAL)
        if RESIDUAL in inside:
            values[RESIDUAL] = jax.vmap(lambda state, at: state[:, at])(states, position - before)
        return past, states, values, run.outputs

    def check(self, inputs: Prompts) -> None:
        """Refuse ids that are none of the vocabulary, a position that is no token, and a token before the window.

        Raises:
          ValueError: as said, tokens that are named otherwise, or a window that cannot be.
        """
        check_same_names(inputs.names, self.positions)
        check_tokens(inputs.tokens, self.decoder.config.vocabulary)
        chosen = np.asarray(inputs.position)
        for position in chosen.T if chosen.ndim == 2 else (chosen,):
            check_chosen(inputs.tokens, position)
        length = inputs.tokens.shape[1]
        if not 1 <= self.window <= length:
            raise ValueError(f"got a window of {self.window} tokens, expected 1 to {length}")
        furthest = int(length - np.min(np.asarray(inputs.position)))
        if furthest > self.window:
            raise ValueError(
                f"got a token {furthest} from the end, expected it within the window of {self.window}; `window_of` "
                "says how many are needed"
            )


@pytree
class Given:
    """Set one token of each prompt in an activation `[N, S, D]` of the window.

    Attributes:
      value: `[N, D]`.
      position: index in the window, `[N]`.
      window: tokens S of the window, of which an activation may have the last alone.
      there: whether to do so.
    """

    value: AnyArray
    position: Int[AnyArray, " N"]
    window: int = static()
    there: Bool[AnyArray, ""] | bool = True

    def __call__(self, activation: Float[Array, "N S D"]) -> Float[Array, "N S D"]:
        fresh = jnp.arange(self.window - activation.shape[1], self.window)
        chosen = self.there & (fresh == self.position[:, None])
        return jnp.where(chosen[..., None], self.value[:, None].astype(activation.dtype), activation)
