"""Which tensor of a family's files fills each of our parameters: a row per parameter, a table per family."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from abstraction.models.decoder_config import DecoderConfig


class Origin(NamedTuple):
    """Where a parameter comes from.

    Attributes:
      name: of the tensor, without `model.`, `transformer.` or `gpt_neox.`; `{}` is the block.
      transposed: it is stored as [out, in].
      fused: the maps that are stored as one, in their order, or nothing.
      part: which of those it is.
      by_head: each head has its parts side by side, not all heads of a part.
    """

    name: str
    transposed: bool = False
    fused: tuple[str, ...] = ()
    part: str = ""
    by_head: bool = False

    def taken(self, array: np.ndarray, config: DecoderConfig) -> np.ndarray:
        """Take the part from the last axis of what is stored."""
        if not self.fused:
            return array
        if self.by_head:
            heads = array.reshape(*array.shape[:-1], config.heads, len(self.fused), -1)
            return heads[..., self.fused.index(self.part), :].reshape(*array.shape[:-1], -1)
        ends = np.cumsum([outputs_of(config, name) for name in self.fused])
        return np.split(array, ends[:-1], axis=-1)[self.fused.index(self.part)]


def outputs_of(config: DecoderConfig, part: str) -> int:
    """Return how many outputs a map has."""
    heads = {"query": config.heads, "key": config.kv_heads, "value": config.kv_heads}
    return config.hidden if part in ("gate", "up") else heads[part] * config.head_size


HEAD = "lm_head.weight"


def _linear(path: str, name: str, *, transposed: bool = False, **switches: Any) -> dict[str, Origin]:
    """Return kernel and bias; a family without the bias has no use for its row."""
    kernel = Origin(f"{name}.weight", transposed, **switches)
    return {f"{path}/kernel": kernel, f"{path}/bias": Origin(f"{name}.bias", **switches)}


def _norm(path: str, name: str) -> dict[str, Origin]:
    return {f"{path}/scale": Origin(f"{name}.weight"), f"{path}/bias": Origin(f"{name}.bias")}


def _fused(parts: tuple[str, ...], name: str, **switches: Any) -> dict[str, Origin]:
    """Return kernels and biases of maps that are stored as one."""
    rows = [_linear(f"blocks/{part}", name, fused=parts, part=part, **switches) for part in parts]
    return {path: origin for row in rows for path, origin in row.items()}


_QKV = ("query", "key", "value")
_GPT2 = {
    "embedding": Origin("wte.weight"),
    "positions": Origin("wpe.weight"),
    "unembedding": Origin(HEAD),
    **_norm("final_norm", "ln_f"),
    **_norm("blocks/attention_norm", "h.{}.ln_1"),
    **_norm("blocks/mlp_norm", "h.{}.ln_2"),
    **_fused(_QKV, "h.{}.attn.c_attn"),
    **_linear("blocks/output", "h.{}.attn.c_proj"),
    **_linear("blocks/up", "h.{}.mlp.c_fc"),
    **_linear("blocks/down", "h.{}.mlp.c_proj"),
}
_LLAMA = {
    "embedding": Origin("embed_tokens.weight"),
    "unembedding": Origin(HEAD),
    **_norm("final_norm", "norm"),
    **_norm("blocks/attention_norm", "layers.{}.input_layernorm"),
    **_norm("blocks/mlp_norm", "layers.{}.post_attention_layernorm"),
    **_linear("blocks/query", "layers.{}.self_attn.q_proj", transposed=True),
    **_linear("blocks/key", "layers.{}.self_attn.k_proj", transposed=True),
    **_linear("blocks/value", "layers.{}.self_attn.v_proj", transposed=True),
    **_linear("blocks/output", "layers.{}.self_attn.o_proj", transposed=True),
    **_linear("blocks/gate", "layers.{}.mlp.gate_proj", transposed=True),
    **_linear("blocks/up", "layers.{}.mlp.up_proj", transposed=True),
    **_linear("blocks/down", "layers.{}.mlp.down_proj", transposed=True),
}
_GEMMA2 = _LLAMA | {
    **_norm("blocks/attention_post_norm", "layers.{}.post_attention_layernorm"),
    **_norm("blocks/mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    **_norm("blocks/mlp_post_norm", "layers.{}.post_feedforward_layernorm"),
}
_NORMS = {
    **_norm("blocks/query_norm", "layers.{}.self_attn.q_norm"),
    **_norm("blocks/key_norm", "layers.{}.self_attn.k_norm"),
}
_PHI3 = _LLAMA | {
    **_fused(_QKV, "layers.{}.self_attn.qkv_proj", transposed=True),
    **_fused(("gate", "up"), "layers.{}.mlp.gate_up_proj", transposed=True),
}
_GPT_NEOX = {
    "embedding": Origin("embed_in.weight"),
    "unembedding": Origin(HEAD),
    **_norm("final_norm", "final_layer_norm"),
    **_norm("blocks/attention_norm", "layers.{}.input_layernorm"),
    **_norm("blocks/mlp_norm", "layers.{}.post_attention_layernorm"),
    **_fused(_QKV, "layers.{}.attention.query_key_value", transposed=True, by_head=True),
    **_linear("blocks/output", "layers.{}.attention.dense", transposed=True),
    **_linear("blocks/up", "layers.{}.mlp.dense_h_to_4h", transposed=True),
    **_linear("blocks/down", "layers.{}.mlp.dense_4h_to_h", transposed=True),
}
TABLES: Mapping[str, Mapping[str, Origin]] = {
    "gpt2": _GPT2,
    "gpt_neox": _GPT_NEOX,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | _NORMS,
    "seed_oss": _LLAMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2 | _NORMS,
}
"""By family: the tensor of every parameter that one of its networks may have."""
