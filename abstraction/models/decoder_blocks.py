"""The modules of a decoder: norms, attention over cached and fresh keys, gated MLPs, one block.

A block sees S fresh positions and any number of earlier ones through their keys and values, so the whole prompt and
the last token alone are the same code.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from abstraction.models.decoder_config import BlockShape, DecoderConfig, RopeScaling
from abstraction.models.taps import Edits, tapped

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
_MASKED = -1e30
WRITTEN = (
    "head_output",
    "attention_output",
    "attention_post_norm",
    "mlp_product",
    "mlp_output",
    "mlp_post_norm",
)
"""Values of a token that reach the stream of that token alone, within their block; the first three of attention."""


class Place(NamedTuple):
    """Where fresh positions are and what they may look at.

    Attributes:
      positions: of the fresh tokens, `[N, S]`, without padding.
      seen: which of the T earlier and fresh tokens each may attend to, `[N, S, T]`.
      near: the same within the window, or None where no block is windowed.
    """

    positions: Int[Array, "N S"]
    seen: Bool[Array, "N S T"]
    near: Bool[Array, "N S T"] | None


class Past(NamedTuple):
    """Keys (turned already) and values of tokens that need not be run again, `[N, kv_heads, T, head_size]`."""

    keys: Array
    values: Array


Pick = Callable[[Callable[[Past], Array]], Array]
"""Calls a function with the past of one block, of which a scan over blocks knows the number as a value alone."""


class Norm(nnx.Module):
    """x / rms(x) (offset + scale), or LayerNorm with a bias; computed in float32."""

    def __init__(self, config: DecoderConfig, width: int | None = None):
        self.config, shape = config, (config.width if width is None else width,)
        self.scale = nnx.Param(jnp.full(shape, 1 - config.norm_offset, config.precision))
        self.bias = nnx.Param(jnp.zeros(shape, config.precision)) if config.norm == "layer" else None

    def __call__(self, stream: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
        x = stream.astype(jnp.float32)
        if self.bias is not None:
            x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt((x**2).mean(axis=-1, keepdims=True) + self.config.norm_epsilon)
        x = x * (self.config.norm_offset + self.scale[...].astype(jnp.float32))
        return (x if self.bias is None else x + self.bias[...].astype(jnp.float32)).astype(stream.dtype)


class Block(nnx.Module):
    """Attention and MLP, each between norms, each added to the residual stream."""

    def __init__(self, config: DecoderConfig, shape: BlockShape, rngs: nnx.Rngs):
        self.config, self.shape = config, shape
        linear = lambda inputs, outputs, bias, gain=1.0: _linear(config, inputs, outputs, bias, gain, rngs)
        size, writes = config.head_size, (2 * config.depth) ** -0.5
        self.attention_norm, self.mlp_norm = Norm(config), Norm(config)
        self.attention_post_norm = Norm(config) if config.post_norms else None
        self.mlp_post_norm = Norm(config) if config.post_norms else None
        self.query_norm = Norm(config, size) if config.query_key_norms else None
        self.key_norm = Norm(config, size) if config.query_key_norms else None
        self.query = linear(config.width, shape.heads * size, config.qkv_bias)
        self.key = linear(config.width, shape.kv_heads * size, config.qkv_bias)
        self.value = linear(config.width, shape.kv_heads * size, config.qkv_bias)
        self.output = linear(shape.heads * size, config.width, shape.output_bias, writes)
        self.gate = linear(config.width, shape.hidden, config.mlp_bias) if config.gated else None
        self.up = linear(config.width, shape.hidden, config.mlp_bias)
        self.down = linear(shape.hidden, config.width, shape.down_bias, writes)

    def __call__(
        self,
        stream: Float[Array, "N S D"],
        place: Place,
        past: Pick | None,
        local: Array,
        edits: Edits,
        number: int | None = None,
        *,
        last: bool = False,
    ) -> tuple[Float[Array, "N Q D"], Past, dict[str, Array]]:
        """Run fresh positions.

        Args:
          stream: the residual stream before the block.
          place: where they are.
          past: gives keys and values before them.
          local: whether this block is windowed.
          edits: by tap.
          number: of the block, which ends the names of its taps; None where they have a depth axis instead.
          last: whether the last position alone is wanted; the others are read as keys and values.

        Returns:
          The stream after the block, the fresh keys and values, and every tap's value.
        """
        values: dict[str, Array] = {}

        def tap(name: str, value: Array) -> Array:
            name = name if number is None else f"{name}{number}"
            values[name] = tapped(name, value, edits)
            return values[name]

        stream = tap("block_input", stream)
        read = tap("attention_input", self.attention_norm(stream))
        key, value = tap("key", self.key(read)), tap("value", self.value(read))
        stream, read = (stream[:, -1:], read[:, -1:]) if last else (stream, read)
        query = tap("query", self.query(read))
        heads, fresh = self._attend(query, key, value, place, past, local)
        written = tap("attention_output", self.output(tap("head_output", heads)))
        if self.attention_post_norm is not None:
            written = tap("attention_post_norm", self.attention_post_norm(written))
        before, stream = stream, stream + written
        read = tap("mlp_input", self.mlp_norm(before if self.config.parallel else stream))
        written = tap("mlp_output", self.down(self._hidden(read, tap)))
        if self.mlp_post_norm is not None:
            written = tap("mlp_post_norm", self.mlp_post_norm(written))
        return tap("block_output", stream + written), fresh, values

    def completed(
        self, tap: str, stream: Float[Array, "N 1 D"], value: Float[Array, "N 1 W"], clean: Float[Array, "N 1 W"]
    ) -> Float[Array, "N 1 D"]:
        """Return the stream of one token after the block, given one of its own values, without running attention.

        Args:
          tap: one of `WRITTEN`.
          stream: of the token, before the block where `completes_from_input`, else after the clean block.
          value: of the tap at the token.
          clean: what it is without an edit.
        """
        written = self._attention_written if tap in WRITTEN[:3] else self._mlp_written
        if completes_from_input(self.config, tap):
            stream = stream + written(tap, value)
            return stream + self._mlp_written(
                "mlp_output", self.down(self._hidden(self.mlp_norm(stream), lambda _, h: h))
            )
        return stream + (written(tap, value) - written(tap, clean))

    def _attention_written(self, tap: str, value: Array) -> Array:
        written = self.output(value) if tap == "head_output" else value
        if self.attention_post_norm is None or tap == "attention_post_norm":
            return written
        return self.attention_post_norm(written)

    def _mlp_written(self, tap: str, value: Array) -> Array:
        written = self.down(value) if tap in ("mlp_hidden", "mlp_product") else value
        if self.mlp_post_norm is None or tap == "mlp_post_norm":
            return written
        return self.mlp_post_norm(written)

    def _hidden(self, read: Array, tap: Callable[[str, Array], Array]) -> Array:
        phi = ACTIVATIONS[self.config.activation]
        if self.gate is None:
            return tap("mlp_hidden", phi(self.up(read)))
        return tap("mlp_product", tap("mlp_hidden", phi(self.gate(read))) * self.up(read))

    def _attend(
        self, query: Array, key: Array, value: Array, place: Place, past: Pick | None, local: Array
    ) -> tuple[Float[Array, "N S O"], Past]:
        config, shape = self.config, self.shape
        split = lambda flat, count: flat.reshape(*flat.shape[:2], count, config.head_size)
        query, key = split(query, shape.heads), split(key, shape.kv_heads)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if config.learned_positions is None:
            angles = rope_angles(config, place.positions, local)
            query, key = turned(query, angles[:, -query.shape[1] :]), turned(key, angles)
        heads_first = lambda split: jnp.swapaxes(split, 1, 2)
        fresh = Past(heads_first(key), heads_first(split(value, shape.kv_heads)))
        seen = place.seen if place.near is None else jnp.where(local, place.near, place.seen)
        read = lambda blocks: self._read(heads_first(query), blocks, seen[:, -query.shape[1] :])
        mixed = read([fresh]) if past is None else past(lambda earlier: read([earlier, fresh]))
        return heads_first(mixed).reshape(*query.shape[:2], -1), fresh

    def _read(
        self, query: Float[Array, "N H S E"], blocks: Sequence[Past], seen: Bool[Array, "N S T"]
    ) -> Float[Array, "N H S E"]:
        """Mix the values of tokens, block after block, by how well their keys fit each query."""
        config, shape, sharing = self.config, self.shape, self.shape.kv_heads
        if not shape.even:
            groups, sharing = jnp.asarray(shape.groups), shape.heads
            blocks = [Past(block.keys[:, groups], block.values[:, groups]) for block in blocks]
        grouped = query.reshape(query.shape[0], sharing, -1, *query.shape[2:])
        scores = jnp.concatenate([_scores(grouped, block.keys) for block in blocks], axis=-1) * config.score_scale
        if config.attention_cap is not None:
            scores = config.attention_cap * jnp.tanh(scores / config.attention_cap)
        values = [block.values for block in blocks]
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, _MASKED), axis=-1).astype(values[0].dtype)
        parts = jnp.split(weights, np.cumsum([value.shape[2] for value in values])[:-1], axis=-1)
        mixed = [jnp.einsum("nkgst,nktd->nkgsd", part, value) for part, value in zip(parts, values, strict=True)]
        return reduce(jnp.add, mixed).reshape(query.shape)


def _scores(query: Float[Array, "N K G S E"], keys: Float[Array, "N K T E"]) -> Float[Array, "N K G S T"]:
    return jnp.einsum("nkgsd,nktd->nkgst", query, keys, preferred_element_type=jnp.float32)


def completes_from_input(config: DecoderConfig, tap: str) -> bool:
    """Return whether `Block.completed` needs the stream before the block: the MLP reads what attention wrote."""
    return tap in WRITTEN[:3] and not config.parallel


def rope_angles(config: DecoderConfig, positions: Int[Array, "N S"], local: Array) -> Float[Array, "N S 1 M"]:
    """Return how far each pair of features is turned at each position, in radians; `local` in windowed blocks."""
    size = config.head_size if config.rotated is None else config.rotated
    exponents = -jnp.arange(0, size, 2) / size
    frequencies = config.rope_theta**exponents
    if config.rope_factor != 1:
        frequencies = frequencies / config.rope_factor
    if config.rope_scaling is not None:
        frequencies = _stretched(frequencies, config.rope_scaling)
    if config.local_rope_theta is not None:
        frequencies = jnp.where(local, config.local_rope_theta**exponents, frequencies)
    return (positions[..., None] * frequencies)[:, :, None]


def _stretched(frequencies: Array, scaling: RopeScaling) -> Array:
    turns = scaling.context * frequencies / (2 * jnp.pi)
    smooth = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return frequencies * (smooth + (1 - smooth) / scaling.factor)


def turned(heads: Float[Array, "N S H E"], angles: Float[Array, "N S 1 M"]) -> Float[Array, "N S H E"]:
    """Rotate feature i against feature i + M (RoPE, as Hugging Face lays it out); those from 2 M on stay."""
    count = angles.shape[-1]
    first, second, rest = jnp.split(heads.astype(jnp.float32), [count, 2 * count], axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate([*turned, rest] if rest.shape[-1] else turned, axis=-1).astype(heads.dtype)


def _linear(config: DecoderConfig, inputs: int, outputs: int, bias: bool, gain: float, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(gain * inputs**-0.5)
    kind = config.precision
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=init, dtype=kind, param_dtype=kind, rngs=rngs)
