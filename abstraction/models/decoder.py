"""A decoder-only transformer with blocks as the depth axis: GPT-2, Llama, Qwen2, Gemma-2 by `DecoderConfig`.

Inputs are tokens `[N, T]`, padded with -1 on either side; positions count tokens from 0. Outputs are logits of the
token after each prompt's last one: of the whole vocabulary, or of answer symbols, each of which may be written in
several ways (max over its tokens), with the best of all other tokens beside them on request.

Taps, `[L, N, T, D]` each: the residual stream `block_input` and `block_output`; `attention_input` (after its norm),
`query`, `key`, `value` (before rotation; key and value in the space of key-value heads), `head_output` (z of all heads
side by side), `attention_output`, `attention_post_norm`; `mlp_input`, `mlp_hidden` (after the nonlinearity),
`mlp_product` (gated), `mlp_output`, `mlp_post_norm`. Once: `final_input`, what the last norm reads, and `logits`.
`at_positions` restricts an edit to some tokens; heads are groups of `head_size` coordinates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from abstraction.models.decoder_blocks import Past, Place
from abstraction.models.decoder_config import DecoderConfig
from abstraction.models.decoder_network import Network, StackedNetwork
from abstraction.models.positions import (
    check_edited_positions,
    check_positions,
    check_tokens,
    last_token,
    picked,
    recorded_at,
    token_mask,
    token_positions,
)
from abstraction.models.skipping import run_if
from abstraction.models.taps import NO_EDITS, Edits, Tap, check_taps, tapped_once
from abstraction.typing import AnyArray, Outputs, Params

RESUMES = {"block_input": 0, "block_output": 1}
"""Taps to resume from, and how many blocks later than theirs the next one is."""
ONCE = ("final_input", "logits")
"""Taps that are no block's."""


class Run(NamedTuple):
    """One run of the network.

    Attributes:
      outputs: `[N, C]`.
      recorded: each recorded tap, `[L, N, T, D]`, or `[L, N, P, D]` at chosen positions.
      past: keys and values of every token, `[L, N, T, ...]`, or None.
    """

    outputs: Outputs
    recorded: dict[str, Array]
    past: Past | None


@dataclass(frozen=True)
class Decoder:
    """A transformer; implements `abstraction.models.Model`.

    Attributes:
      config: what it is made of.
      answers: the token ids of each answer symbol; empty for logits of the whole vocabulary.
      rest: add a last output, the largest logit of all tokens that are no symbol's.
    """

    config: DecoderConfig
    answers: tuple[tuple[int, ...], ...] = ()
    rest: bool = False

    @property
    def outputs(self) -> int:
        """The number of outputs C."""
        return len(self.answers) + self.rest if self.answers else self.config.vocabulary

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The activations there are; see the module."""
        c = self.config
        query, key = c.heads * c.head_size, c.kv_heads * c.head_size
        sizes = [
            ("block_input", c.width, "residual stream before a block"),
            ("block_output", c.width, "residual stream after a block"),
            ("attention_input", c.width, "what attention reads, after its norm"),
            ("query", query, "queries, before rotation"),
            ("key", key, "keys, before rotation"),
            ("value", key, "values"),
            ("head_output", query, "z of every head, before the output map"),
            ("attention_output", c.width, "what attention writes"),
            ("mlp_input", c.width, "what the MLP reads, after its norm"),
            ("mlp_hidden", c.hidden, "units after the nonlinearity"),
            ("mlp_output", c.width, "what the MLP writes"),
        ]
        sizes += [("mlp_product", c.hidden, "gated units")] if c.gated else []
        if c.post_norms:
            sizes += [
                (f"{part}_post_norm", c.width, f"what the {part} writes, normed") for part in ("attention", "mlp")
            ]
        taps = [Tap(name, width, c.depth, about, name in RESUMES) for name, width, about in sizes]
        taps += [
            Tap("final_input", c.width, about="what the last norm reads"),
            Tap("logits", self.outputs, about="the outputs"),
        ]
        return {tap.name: tap for tap in taps}

    def init(self, key: Array) -> Params:
        """Draw parameters: kernels N(0, 1/fan_in), what writes to the stream less by sqrt(2 L), embeddings N(0, 1/D).

        Raises:
          ValueError: an impossible configuration or answer.
        """
        self.config.check()
        known = range(self.config.vocabulary)
        tokens = [token for symbol in self.answers for token in symbol]
        if not all(self.answers) or any(isinstance(token, bool) or token not in known for token in tokens):
            raise ValueError(
                f"got answers {self.answers}, expected one or more tokens from 0 to {self.config.vocabulary - 1} each"
            )
        return _initial(self.config, key)

    def apply(
        self, params: Params, inputs: Int[AnyArray, "N T"], edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`."""
        run = self.run(params, inputs, edits, record)
        return run.outputs, run.recorded

    def run(
        self,
        params: Params,
        tokens: Int[AnyArray, "N T"],
        edits: Edits = NO_EDITS,
        record: Sequence[str] = (),
        *,
        at: Int[AnyArray, "N ..."] | None = None,
        cache: bool = False,
    ) -> Run:
        """Run the network and keep what is asked for.

        Args:
          params: what `init` returns.
          tokens: padded with -1.
          edits: by tap.
          record: taps to keep.
          at: positions at which to keep them, `[N]` or `[N, P]`, by default all.
          cache: keep keys and values.

        Raises:
          ValueError: at trace time, for an unknown tap, an edit that does not fit, or too many tokens; where values are
            known, for a token that is none of the vocabulary or a position that is no token.
        """
        check_tokens(tokens, self.config.vocabulary)
        check_edited_positions(self.taps, edits, tokens)
        if at is not None:
            check_positions(tokens, at)
            index = jnp.asarray(at)
            mask = token_mask(tokens)
            at = jnp.where(picked(mask, jnp.clip(index, 0, mask.shape[1] - 1)), index, -1)
        return self.scan(params, tokens, edits, record, at=at, cache=cache)

    def scan(
        self,
        params: Params,
        tokens: Int[AnyArray, "N T"],
        edits: Edits,
        record: Sequence[str],
        *,
        at: Int[AnyArray, "N ..."] | Mapping[str, Int[AnyArray, "N ..."]] | None,
        cache: bool,
    ) -> Run:
        """Run the network as `run` does, with positions of each tap apart, if need be.

        Here a position may be padding, whose activations mean nothing.
        """
        check_taps(self.taps, edits, record)
        network, (tokens, place) = self._network(params), self.placed(tokens)
        per_block = {name: edit for name, edit in edits.items() if name not in ONCE}

        def keep(name: str, value: Array) -> Array:
            here = at.get(name) if isinstance(at, Mapping) else at
            return value if here is None else recorded_at(value, jnp.asarray(here))

        graph, weights = nnx.split(network.blocks)

        def step(stream: Array, slices: tuple) -> tuple[Array, tuple[Past | None, dict[str, Array]]]:
            weights, local, edits = slices
            stream, fresh, values = nnx.merge(graph, weights)(stream, place, None, local, edits)
            return stream, (
                fresh if cache else None,
                {name: keep(name, values[name]) for name in record if name in values},
            )

        stream = network.embed(tokens, place.positions)
        stream, (past, recorded) = jax.lax.scan(step, stream, (weights, self._windowed(), per_block))
        stream, _ = tapped_once("final_input", stream, edits)
        outputs, emitted = tapped_once("logits", self.read(network, picked(stream, last_token(tokens))), edits)
        recorded |= {"final_input": keep("final_input", stream)[None], "logits": emitted}
        return Run(outputs, {name: recorded[name] for name in record}, past)

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N T D"],
        *,
        inputs: Int[AnyArray, "N T"],
        states: Float[Array, "L N T D"],
    ) -> Outputs:
        """Run from the residual stream before or after one block; see `Model.resume`."""
        if tap not in RESUMES:
            raise ValueError(f"got a resume from {tap!r}, expected one of {sorted(RESUMES)}")
        tokens, place = self.placed(inputs)
        network = self._network(params)
        stream = self.continued(network, activation, depth + RESUMES[tap], place, None)
        return self.read(network, picked(stream, last_token(tokens)))

    def present(self, inputs: Int[AnyArray, "N T"], tap: str) -> Bool[Array, "N P"]:
        """Return where a tap holds no padding, at every depth; see `abstraction.models.Padded`."""
        return jnp.ones((len(inputs), 1), bool) if tap == "logits" else token_mask(jnp.asarray(inputs))

    def continued(
        self,
        network: StackedNetwork,
        stream: Float[Array, "N S D"],
        start: Int[Array, ""] | None,
        place: Place,
        past: Sequence[Past] | None,
        *,
        first: int = 0,
        edits: Callable[[Int[Array, ""]], Edits] = lambda block: NO_EDITS,
        last: bool = False,
        backward: bool = False,
    ) -> Float[Array, "N Q D"]:
        """Run blocks `start` and later on fresh positions, which earlier ones reach by their keys and values.

        Args:
          network: the merged network.
          stream: residual stream before block `start`.
          start: a value: one program serves every depth. None runs all from `first` on.
          place: where the positions are.
          past: keys and values of earlier tokens, of each block.
          first: no start is ever before this block; those are not compiled in.
          edits: of a block, of which the number is a value.
          last: whether the stream of the last position alone is wanted, `[N, 1, D]`: the last block then reads the
            others as keys and values.
          backward: whether the result is differentiated. A condition hands all it reads on to its gradient, so each
            block is then taken out of the stack before it; otherwise skipped blocks are not read.
        """
        run, take = self._block_runner(network, place, past, first, edits)
        taken = take if backward else lambda index: None
        depth = self.config.depth
        apart = last and start is not None and stream.shape[1] > 1 and first < depth  # of one token all is wanted

        def step(stream: Array, index: Array) -> tuple[Array, None]:
            here = None if start is None else taken(index)
            one = lambda stream: run(stream, index, False, here)
            return (one(stream) if start is None else run_if(index >= start, one, stream)), None

        if first < depth - apart:
            stream, _ = jax.lax.scan(step, stream, jnp.arange(first, depth - apart))
        if not apart or start is None:
            return stream[:, -1:] if last else stream
        here = taken(final := jnp.asarray(depth - 1))
        return run_if(start < depth, lambda _: run(stream, final, True, here), stream[:, -1:])

    def _block_runner(
        self,
        network: StackedNetwork,
        place: Place,
        past: Sequence[Past] | None,
        first: int,
        edits: Callable[[Int[Array, ""]], Edits],
    ) -> tuple[Callable[[Array, Int[Array, ""], bool, Any], Array], Callable[[Int[Array, ""]], Any]]:
        """Return what runs one block, of which the number is a value, on a stream, and what takes out its weights."""
        graph, weights = nnx.split(network.blocks)
        windowed = self._windowed()
        # A gradient keeps the streams between blocks, and of a few fresh tokens what each block's maps say. It finds
        # the rest again: keeping all that is inside would stack a copy of every block's weights.
        policy = None if past is None else jax.checkpoint_policies.dots_with_no_batch_dims_saveable

        def take(index: Array) -> tuple[Any, Past | None]:
            before = (
                None if past is None else jax.lax.switch(index - first, [lambda one=one: one for one in past[first:]])
            )
            return jax.tree.map(lambda leaf: leaf[index], weights), before

        @partial(jax.checkpoint, prevent_cse=False, policy=policy, static_argnums=(2,))
        def run(stream: Array, index: Array, last: bool, taken: tuple[Any, Past | None] | None) -> Array:
            def pick(read: Callable[[Past], Array]) -> Array:
                if taken is not None and taken[1] is not None:
                    return read(taken[1])
                # A branch for each block reads its past where that lies; a slice out of all of them would be a copy.
                again = jax.checkpoint(read, prevent_cse=False)
                return jax.lax.switch(index - first, [partial(again, one) for one in (past or ())[first:]])

            # Blocks are taken out of the stack here, so that those that are skipped are not read.
            block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], weights) if taken is None else taken[0])
            reach = None if past is None else pick
            return block(stream, place, reach, windowed[index], edits(index), last=last)[0]

        return run, take

    def completed(
        self,
        network: StackedNetwork,
        tap: str,
        block: Int[Array, ""],
        token: tuple[Float[Array, "N 1 D"], Float[Array, "N 1 W"], Float[Array, "N 1 W"]],
        *,
        first: int = 0,
    ) -> Float[Array, "N 1 D"]:
        """Return the stream of one token after a block, of which the number is a value; see `Block.completed`."""
        graph, weights = nnx.split(network.blocks)

        @partial(jax.checkpoint, prevent_cse=False)
        def step(stream: Array, index: Array) -> tuple[Array, None]:
            def run(stream: Array) -> Array:
                return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[index], weights)).completed(tap, *token)

            return run_if(index == block, run, stream), None

        return jax.lax.scan(step, token[0], jnp.arange(first, self.config.depth))[0]

    def placed(self, tokens: AnyArray) -> tuple[Int[Array, "N T"], Place]:
        """Check whole prompts and say where their tokens are.

        Raises:
          ValueError: they are no integers `[N, T]`, or there are too many.
        """
        tokens = self._checked(tokens)
        return tokens, self.place(token_mask(tokens), token_positions(tokens), 0)

    def place(self, mask: Array, positions: Int[Array, "N S"], before: int) -> Place:
        """Say what fresh positions may look at: tokens up to themselves, those of a window where there is one.

        Args:
          mask: where there is a token, earlier and fresh, `[N, T]`.
          positions: of the fresh ones.
          before: how many of T are earlier.
        """
        ends, starts = before + jnp.arange(positions.shape[1])[:, None], jnp.arange(mask.shape[1])
        seen = (starts <= ends) & mask[:, None, :]
        window = self.config.window
        near = seen & (ends - starts < window) if window is not None and any(self.config.windowed) else None
        return Place(positions, seen, near)

    def read(self, network: Network, stream: Float[Array, "N D"]) -> Outputs:
        """Turn the residual stream at the last token into outputs, float32."""
        stream = network.final_norm(stream[:, None])[:, 0]
        if not self.answers:
            return self._capped(network.logits(stream, None))
        tokens = np.array(sorted({token for symbol in self.answers for token in symbol}))
        most = max(len(symbol) for symbol in self.answers)
        ways = np.array([[*symbol, *[symbol[0]] * (most - len(symbol))] for symbol in self.answers])
        if not self.rest:
            logits = network.logits(stream, tokens)
            return self._capped(logits[:, np.searchsorted(tokens, ways)].max(axis=-1))
        logits = network.logits(stream, None)
        others = logits.at[:, tokens].set(-jnp.inf).max(axis=-1, keepdims=True)
        return self._capped(jnp.concatenate([logits[:, ways].max(axis=-1), others], axis=1))

    def network(self, params: Params) -> StackedNetwork:
        """Put parameters into the modules."""
        return self._network(params)

    def _capped(self, logits: Array) -> Array:
        cap = self.config.final_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _windowed(self) -> Array:
        return jnp.asarray(self.config.windowed or (False,) * self.config.depth)

    def _checked(self, tokens: AnyArray) -> Int[Array, "N T"]:
        check_tokens(tokens, self.config.vocabulary)
        tokens, limit = jnp.asarray(tokens), self.config.learned_positions
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or (limit and tokens.shape[1] > limit):
            raise ValueError(
                f"got tokens of shape {tokens.shape} and type {tokens.dtype}, expected integers (N, T), padded with -1"
                + (f", of at most {limit} positions" if limit else "")
            )
        return tokens

    def _network(self, params: Params) -> StackedNetwork:
        return nnx.merge(self._graph, params)

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: StackedNetwork(self.config, nnx.Rngs(0))))[0]


@partial(jax.jit, static_argnames=("config",))
def _initial(config: DecoderConfig, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.split(StackedNetwork(config, nnx.Rngs(key)))[1])
