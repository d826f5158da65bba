"""Generation by a decoder with edits: of the prompt, in some passes after it, or in all.

Pass 0 runs the prompt and gives the first token. Pass t runs the token that pass t - 1 gave, alone, against the keys
and values of all tokens before it. What an edit changes stays: keys and values are kept as they were edited. The whole
is one program, a scan over passes; edits, the passes they act in, temperature and key are values.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from abstraction.checks import flag, is_whole, kind, number, whole
from abstraction.models.decoder import ONCE, Decoder
from abstraction.models.decoder_blocks import Past, Place
from abstraction.models.network import Network
from abstraction.models.positions import check_edited_positions, check_tokens, known_values, token_mask
from abstraction.models.taps import NO_EDITS, Edits, check_taps, tapped_once
from abstraction.pytrees import pytree
from abstraction.randomness import check_key
from abstraction.typing import AnyArray


class Generated(NamedTuple):
    """What was generated.

    Attributes:
      tokens: `[N, S]`; -1 after a stop token.
      logits: what each was chosen from, `[N, S, V]`, or None.
    """

    tokens: Int[Array, "N S"]
    logits: Float[Array, "N S V"] | None


class Sampling(NamedTuple):
    """How tokens are chosen, when to stop, and what is kept of the choice.

    Attributes:
      temperature: 0 takes the largest logit; else tokens are drawn by softmax(logits / temperature).
      key: a typed key, where tokens are drawn.
      stop: ids after which a prompt gives no more tokens.
      logits: return what each token was chosen from.
    """

    temperature: float = 0.0
    key: Array | None = None
    stop: tuple[int, ...] = ()
    logits: bool = False


GREEDY = Sampling()


@pytree
class _When:
    """Let an edit act where a truth value says so, one per depth."""

    edit: Any
    active: AnyArray

    def __call__(self, activation: Array) -> Array:
        return jnp.where(self.active, self.edit(activation), activation)


def generate(
    network: Network,
    prompts: Int[AnyArray, "N T"],
    steps: int,
    *,
    prompt_edits: Edits = NO_EDITS,
    step_edits: Edits = NO_EDITS,
    passes: Sequence[int] | AnyArray | None = None,
    sampling: Sampling = GREEDY,
) -> Generated:
    """Generate tokens, with edits.

    Args:
      network: a `Decoder` of the whole vocabulary.
      prompts: padded with -1 on the left.
      steps: how many tokens to generate.
      prompt_edits: edits of pass 0; they see `[N, T, D]`, or tokens of it (`at_positions`).
      step_edits: edits of passes 1 and later; they see the one token that is run, `[N, 1, D]`. A source or a vector
        may be the same in all; so is noise.
      passes: those that `step_edits` act in, some of 1 to `steps` - 1, by default all.
      sampling: how tokens are chosen, when to stop, and whether logits are returned.

    Raises:
      ValueError: another network, prompts that are none or padded elsewhere, too many tokens, an edit that does not
        fit, a pass that is not there, or sampling that cannot be.
    """
    model = network.model
    if not isinstance(model, Decoder):
        raise ValueError(f"got a network of {type(model).__name__}, expected one of Decoder")
    if model.answers:
        raise ValueError("got a decoder of answer symbols, expected one of the whole vocabulary: Decoder(config)")
    steps = whole("steps", steps)
    _check_prompts(model, prompts, steps)
    for edits in (prompt_edits, step_edits):
        check_taps(network.taps, edits, ())
    check_edited_positions(network.taps, prompt_edits, prompts)
    check_edited_positions(network.taps, step_edits, np.zeros((len(prompts), 1), np.int32))  # a step has one token
    temperature, key = _sampled(sampling, model.config.vocabulary)
    stop, active = jnp.asarray(sampling.stop, jnp.int32), jnp.asarray(_active(passes, steps))
    edits = prompt_edits, step_edits
    return _generate(network, jnp.asarray(prompts, jnp.int32), edits, active, (temperature, key, stop), sampling.logits)


@partial(jax.jit, static_argnames=("logits",))
def _generate(
    network: Network,
    prompts: Int[Array, "N T"],
    edits: tuple[Edits, Edits],
    active: Array,
    sampling: tuple[Array | None, Array | None, Array],
    logits: bool,
) -> Generated:
    model: Any = network.model
    steps, length = len(active), prompts.shape[1]
    run = model.run(network.params, prompts, edits[0], cache=True)
    room = [(0, 0)] * 3 + [(0, steps - 1), (0, 0)]
    past = jax.tree.map(lambda leaf: jnp.pad(leaf, room), run.past)
    filled = jnp.pad(token_mask(prompts), ((0, 0), (0, steps - 1)))
    first, ended = _chosen(run.outputs, jnp.zeros(len(prompts), bool), sampling, 0)

    def step(carry: tuple, index: Array) -> tuple[tuple, tuple]:
        token, ended, past, filled = carry
        at = length + index - 1
        values, fresh = one_token(model, network.params, token, (past, filled), at, _when(edits[1], active[index]))
        slot = lambda kept, new: jax.lax.dynamic_update_slice_in_dim(kept, new.astype(kept.dtype), at, axis=3)
        past = jax.tree.map(slot, past, fresh)
        filled = filled | (jnp.arange(filled.shape[1]) == at)
        token, ended_now = _chosen(values, ended, sampling, index)
        shown = jnp.where(ended, -1, token)
        return (token, ended_now, past, filled), (shown, values if logits else None)

    _, (later, seen) = jax.lax.scan(step, (first, ended, past, filled), jnp.arange(1, steps))
    tokens = jnp.concatenate([first[:, None], later.T], axis=1)
    if not logits:
        return Generated(tokens, None)
    return Generated(tokens, jnp.concatenate([run.outputs[:, None], jnp.moveaxis(seen, 0, 1)], axis=1))


def one_token(
    model: Decoder,
    params: Any,
    token: Int[Array, " N"],
    before: tuple[Past, Array],
    at: Int[Array, ""],
    edits: Edits = NO_EDITS,
) -> tuple[Float[Array, "N V"], Past]:
    """Run one fresh token of each prompt against what is kept of those before it.

    Args:
      model: the decoder.
      params: its weights.
      token: ids.
      before: keys and values of T slots, `[L, N, kv_heads, T, head_size]`, and which of them hold a token, `[N, T]`.
      at: which slot the fresh token is in, after all that hold one.
      edits: they see `[N, 1, D]`.

    Returns:
      Logits, and the fresh keys and values, `[L, N, kv_heads, 1, head_size]`.
    """
    past, filled = before
    network = model.network(params)
    place = _placed(model, filled, at)
    graph, weights = nnx.split(network.blocks)
    local = jnp.asarray(model.config.windowed or (False,) * model.config.depth)
    per_block = {name: edit for name, edit in edits.items() if name not in ONCE}

    def block(stream: Array, slices: tuple) -> tuple[Array, Past]:
        weights, earlier, local, edits = slices
        stream, fresh, _ = nnx.merge(graph, weights)(stream, place, lambda read: read(earlier), local, edits)
        return stream, fresh

    stream = network.embed(token[:, None], place.positions)
    stream, fresh = jax.lax.scan(block, stream, (weights, past, local, per_block))
    stream, _ = tapped_once("final_input", stream, edits)
    return tapped_once("logits", model.read(network, stream[:, 0]), edits)[0], fresh


def _placed(model: Decoder, filled: Array, at: Int[Array, ""]) -> Place:
    """Say where a fresh token is: behind all slots that hold one, and after itself there is nothing."""
    fresh = jnp.ones((len(filled), 1), bool)
    seen = jnp.concatenate([filled, fresh], axis=1)[:, None]
    window = model.config.window
    near = None
    if window is not None and any(model.config.windowed):
        close = at - jnp.arange(filled.shape[1]) < window
        near = jnp.concatenate([filled & close, fresh], axis=1)[:, None]
    return Place(filled.sum(axis=1, keepdims=True), seen, near)


def _when(edits: Edits, active: Array) -> Edits:
    depth = lambda edit: next(iter(jax.tree.leaves(edit))).shape[0] if jax.tree.leaves(edit) else 1
    return {name: _When(edit, jnp.broadcast_to(active, (depth(edit),))) for name, edit in edits.items()}


def _chosen(logits: Array, ended: Array, sampling: tuple, index: Any) -> tuple[Array, Array]:
    """Choose a token of each prompt, and say which have ended with it; the id of one that has ended means nothing."""
    temperature, key, stop = sampling
    if key is None:
        token = logits.argmax(axis=-1)
    else:
        token = jax.random.categorical(jax.random.fold_in(key, index), logits / temperature, axis=-1)
    token = token.astype(jnp.int32)
    return token, ended | (token[:, None] == stop).any(axis=1)


def _check_prompts(model: Decoder, prompts: AnyArray, steps: int) -> None:
    check_tokens(prompts, model.config.vocabulary)
    known, limit = known_values(prompts), model.config.learned_positions
    if known is None:
        raise ValueError("got prompts that are traced, expected arrays: generation is a program of its own")
    mask = known >= 0
    if (mask[:, :-1] & ~mask[:, 1:]).any():
        row = np.flatnonzero((mask[:, :-1] & ~mask[:, 1:]).any(axis=1))[0]
        raise ValueError(f"got prompt {row} padded on the right or inside, expected padding on the left alone")
    if limit and known.shape[1] + steps - 1 > limit:
        raise ValueError(f"got {known.shape[1]} tokens and {steps} steps, expected at most {limit} positions")


def _sampled(sampling: Sampling, vocabulary: int) -> tuple[Array | None, Array | None]:
    kind("sampling", sampling, Sampling)
    flag("logits", sampling.logits)
    stop = _listed("stop tokens", sampling.stop)
    if wrong := [token for token in stop if not (is_whole(token) and 0 <= token < vocabulary)]:
        raise ValueError(f"got stop tokens {wrong}, expected ids from 0 to {vocabulary - 1}")
    temperature = number("temperature", sampling.temperature)
    if (temperature == 0) != (sampling.key is None):
        raise ValueError(f"got temperature {temperature:g} and key {sampling.key}, expected a key where it is not 0")
    if sampling.key is None:
        return None, None
    check_key(sampling.key)
    return jnp.asarray(temperature, jnp.float32), sampling.key


def _active(passes: Sequence[int] | AnyArray | None, steps: int) -> np.ndarray:
    if passes is None:
        return np.ones(steps, bool)
    chosen = _listed("passes", passes)
    if wrong := [index for index in chosen if not (is_whole(index) and 1 <= index < steps)]:
        raise ValueError(f"got passes {wrong} for edits of steps, expected some of 1 to {steps - 1}; 0 is the prompt")
    return np.isin(np.arange(steps), chosen)


def _listed(what: str, values: Any) -> list[Any]:
    """Make a list of what may be a tuple, an array or a range, and refuse a number alone and a text."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise ValueError(f"got {what} {values!r}, expected several, as in ({values!r},)")
    return list(values)
