"""What a decoder-only transformer is made of: one set of switches covers the families that `load_decoder` reads.

    h <- h + post(W_O z + b_O),   z = heads' attention of norm(h)
    h <- h + post(W_down (phi(g) u) + b_down),   g, u = norm(h) W_gate, norm(h) W_up        (without gate: phi(u))

`post` is a norm in Gemma and nothing elsewhere. In parallel blocks (GPT-NeoX) both lines read the same h.
"""

from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal, get_args

import jax.numpy as jnp

NormKind = Literal["rms", "layer"]
ActivationKind = Literal["gelu", "gelu_tanh", "silu"]
Precision = Literal["float32", "bfloat16"]

_MOST = 2**31 - 1
_SIZES = ("vocabulary", "width", "depth", "heads", "kv_heads", "head_size", "hidden")
_FLAGS = ("query_key_norms", "post_norms", "parallel", "gated", "qkv_bias", "output_bias", "mlp_bias", "tied")

_POSITIVE = ("rope_theta", "rope_factor", "norm_epsilon", "embedding_scale")
_OPTIONAL = ("local_rope_theta", "query_scale", "attention_cap", "final_cap")


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 1 on, small enough to count with 32 bits."""
    return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= _MOST


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(float(value))


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretch of the slow rotations.

    Attributes:
      factor: slow rotations are this much slower.
      low: rotations with fewer turns than this within `context` are slow.
      high: rotations with more turns than this are as they were; between the two it is interpolated.
      context: tokens of the original training.
    """

    factor: float
    low: float
    high: float
    context: int

    def check(self) -> None:
        """Refuse what stretches nothing.

        Raises:
          ValueError: naming what was got and what is valid.
        """
        numbers = self.factor, self.low, self.high
        if not all(is_number(value) and value > 0 for value in numbers) or not self.low < self.high:
            raise ValueError(f"got rope_scaling {self}, expected finite numbers above 0, and low below high")
        if not is_count(self.context):
            raise ValueError(f"got rope_scaling {self}, expected a context of 1 token or more")


@dataclass(frozen=True)
class BlockShape:
    """What the blocks of one decoder may differ in, once units are removed.

    Attributes:
      groups: the key-value head that each query head reads.
      hidden: units of the MLP.
      output_bias: the attention's output map has a bias.
      down_bias: the MLP's output map has one; its other maps have theirs by `mlp_bias`.
    """

    groups: tuple[int, ...]
    hidden: int
    output_bias: bool
    down_bias: bool

    @property
    def heads(self) -> int:
        """Query heads."""
        return len(self.groups)

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return max(self.groups) + 1

    @property
    def even(self) -> bool:
        """Whether each key-value head serves equally many query heads in a row."""
        return self.heads % self.kv_heads == 0 and self.groups == evenly(self.heads, self.kv_heads)


def evenly(heads: int, kv_heads: int) -> tuple[int, ...]:
    """Return the key-value head of each query head where each serves equally many in a row."""
    return tuple(head * kv_heads // heads for head in range(heads))


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and switches of a decoder; `check` refuses impossible ones.

    Attributes:
      vocabulary: tokens.
      width: D of the residual stream.
      depth: blocks L.
      heads: query heads.
      kv_heads: key and value heads; each serves `heads / kv_heads` query heads in a row.
      head_size: width of a head, whatever `width / heads` is.
      hidden: units of the MLP.
      learned_positions: rows of a learned position table, or None for rotations (RoPE).
      rope_theta: base of the rotations.
      local_rope_theta: their base in windowed blocks, where it is another (Gemma 3), or None.
      rope_factor: rotations are this much slower, those of `local_rope_theta` apart.
      rope_scaling: Llama 3.1's stretch, or None; of all blocks with `rope_theta`.
      rotated: the features of each head that are rotated, the first ones (GPT-NeoX), or None for all.
      norm: `rms`, or `layer` with a bias.
      norm_offset: added to the norm's scale: 1 in Gemma.
      norm_epsilon: added to the variance.
      query_key_norms: norms of each head's queries and keys, before rotations (Qwen3, Gemma 3).
      post_norms: norms after attention and MLP too (Gemma).
      parallel: the MLP reads what attention reads, not what it wrote (GPT-NeoX).
      gated: the MLP has a gate.
      activation: its nonlinearity.
      qkv_bias: queries, keys and values have biases.
      output_bias: the attention's output map has a bias.
      mlp_bias: the MLP's maps have biases.
      tied: logits are read with the embedding.
      embedding_scale: factor on embeddings: sqrt(D) in Gemma, rounded to `dtype`.
      query_scale: factor on query-key products; None for `head_size ** -0.5`.
      attention_cap: c of c tanh(score / c), or None.
      final_cap: the same for logits.
      window: tokens a windowed block looks back on, its own included, or None.
      windowed: which blocks are windowed, one flag each; empty for none.
      dtype: of weights and activations; norms, softmax and logits are float32.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    learned_positions: int | None = None
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    rope_factor: float = 1.0
    rope_scaling: RopeScaling | None = None
    rotated: int | None = None
    norm: NormKind = "rms"
    norm_offset: float = 0.0
    norm_epsilon: float = 1e-6
    query_key_norms: bool = False
    post_norms: bool = False
    parallel: bool = False
    gated: bool = True
    activation: ActivationKind = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    embedding_scale: float = 1.0
    query_scale: float | None = None
    attention_cap: float | None = None
    final_cap: float | None = None
    window: int | None = None
    windowed: tuple[bool, ...] = ()
    dtype: Precision = "float32"

    @property
    def precision(self) -> jnp.dtype:
        """The dtype of weights and activations."""
        return jnp.dtype(self.dtype)

    @property
    def score_scale(self) -> float:
        """The factor on query-key products."""
        return self.head_size**-0.5 if self.query_scale is None else self.query_scale

    @property
    def block(self) -> BlockShape:
        """The shape of every block."""
        groups = evenly(self.heads, self.kv_heads)
        return BlockShape(groups, self.hidden, self.output_bias, self.mlp_bias)

    def check(self) -> None:
        """Refuse what cannot be built.

        Raises:
          ValueError: naming the field, what was got and what is valid.
        """
        self._check_numbers()
        if self.heads % self.kv_heads:
            raise ValueError(f"got {self.heads} query heads for kv_heads {self.kv_heads}, expected a multiple")
        turned = self.head_size if self.rotated is None else self.rotated
        if self.learned_positions is None and (turned % 2 or turned > self.head_size):
            raise ValueError(
                f"got {turned} rotated features of head_size {self.head_size}, expected an even number, as rotations "
                "turn pairs, and no more than there are"
            )
        for name, kinds in (("norm", NormKind), ("activation", ActivationKind), ("dtype", Precision)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"got {name} {getattr(self, name)!r}, expected one of {get_args(kinds)}")
        flags = isinstance(self.windowed, tuple) and all(isinstance(flag, bool) for flag in self.windowed)
        if not flags or (self.windowed and (len(self.windowed) != self.depth or self.window is None)):
            raise ValueError(
                f"got window flags {self.windowed!r} and a window of {self.window} for {self.depth} blocks, "
                "expected True or False per block, and a window of at least 1"
            )
        if self.local_rope_theta is not None and not any(self.windowed):
            raise ValueError(f"got local_rope_theta {self.local_rope_theta} without windowed blocks, expected some")

    def _check_numbers(self) -> None:
        if wrong := {name: getattr(self, name) for name in _SIZES if not is_count(getattr(self, name))}:
            raise ValueError(f"got sizes {wrong} of a decoder, expected each to be at least 1 and at most {_MOST}")
        for name in ("learned_positions", "window", "rotated"):
            if getattr(self, name) is not None and not is_count(getattr(self, name)):
                raise ValueError(f"got {name} {getattr(self, name)!r}, expected None or 1 to {_MOST}")
        if wrong := {name: getattr(self, name) for name in _FLAGS if not isinstance(getattr(self, name), bool)}:
            raise ValueError(f"got switches {wrong}, expected True or False")
        if not is_number(self.norm_offset):
            raise ValueError(f"got norm_offset {self.norm_offset!r}, expected a finite number")
        positive = {name: getattr(self, name) for name in _POSITIVE}
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        positive |= {name: value for name, value in optional.items() if value is not None}
        if wrong := {name: value for name, value in positive.items() if not is_number(value) or value <= 0}:
            raise ValueError(f"got {wrong}, expected finite numbers above 0")
        if self.rope_scaling is not None:
            self.rope_scaling.check()
