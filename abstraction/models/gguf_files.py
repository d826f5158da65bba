"""Networks in GGUF files, the format of llama.cpp: what they say about a decoder, and their weights dequantised.

A file holds what `config.json`, `model.safetensors` and `tokenizer.json` hold elsewhere, under other names; here they
are given the names of transformers, so that one reader serves both. Two things are stored otherwise and undone: the
rows of Llama's query and key maps, which llama.cpp interleaves for its rotations, and the scales of Gemma's norms, to
which it adds the 1 of (1 + scale).

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. It is read by the package `gguf` (extra `hub`).
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SUFFIX = ".gguf"
_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
_TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
_OF_BLOCKS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_OF_GEMMA = _OF_BLOCKS | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FIELDS = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window", "rope.freq_base": "rope_theta",
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping",
    "context_length": "max_position_embeddings",
}  # fmt: skip
_REPEATED = ("attention.value_length", "rope.dimension_count", "vocab_size")
"""Sizes that follow from others, which they are checked against."""
_WIDE = (46, 62)
"""Blocks of Gemma's 27B, which scales scores by width / heads, not by the size of heads; no field says so."""
_BLOCK = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


class Stored(NamedTuple):
    """A tensor of a file: its own name, its shape, and its values, read when they are asked for."""

    name: str
    shape: tuple[int, ...]
    read: Any


class GgufFile(NamedTuple):
    """What is read of a file.

    Attributes:
      fields: as in a `config.json`.
      tensors: by the names of transformers, without `model.`.
      metadata: everything that the file says, by its own names.
    """

    fields: dict[str, Any]
    tensors: dict[str, Stored]
    metadata: dict[str, Any]


def is_gguf(source: str | Path) -> bool:
    """Return whether a source is named as a GGUF file."""
    return isinstance(source, str | Path) and str(source).endswith(SUFFIX)


def read_gguf(source: str | Path) -> GgufFile:
    """Read what a file says; its weights are mapped, not read.

    Raises:
      ValueError: there is no such file, it is damaged, or of an architecture or with fields that have no counterpart.
      ImportError: without `gguf`.
    """
    reader, metadata = _reader(source), {}
    for name, field in reader.fields.items():
        metadata[name] = field.contents()
    kind = metadata.get("general.architecture")
    if kind not in _FAMILIES:
        raise ValueError(f"got {source} of architecture {kind!r}, expected one of {sorted(_FAMILIES)}")
    try:
        tensors = _tensors(reader, kind)
        fields = _fields(kind, metadata, tensors)
        heads = {"q": fields["num_attention_heads"], "k": fields["num_key_value_heads"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"cannot use {source}: got no field {error}, expected it of a {kind} file") from error
    except ValueError as error:
        raise ValueError(f"cannot use {source}: {error}") from error
    if kind == "llama":
        tensors = {name: _straightened(name, tensor, heads) for name, tensor in tensors.items()}
    if kind.startswith("gemma"):
        tensors = {name: _centred(name, tensor) for name, tensor in tensors.items()}
    return GgufFile(fields, tensors, metadata)


def _reader(source: str | Path) -> Any:
    if not Path(source).is_file():
        raise ValueError(f"got {str(source)!r}, which is no file, expected a GGUF file")
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ImportError(f"reading {source} needs `gguf`: pip install 'abstraction-jax[hub]'") from error
    try:
        return GGUFReader(str(source))
    except (ValueError, OSError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"cannot read {source}: got {error}, expected a GGUF file") from error


def _tensors(reader: Any, kind: str) -> dict[str, Stored]:
    """Name the tensors as transformers does."""
    inside, tensors = _OF_GEMMA if kind.startswith("gemma") else _OF_BLOCKS, {}
    for tensor in reader.tensors:
        match, (whole, _, end) = _BLOCK.fullmatch(tensor.name), tensor.name.rpartition(".")
        if match is not None and match[2] in inside:
            name = f"layers.{match[1]}.{inside[match[2]]}.{match[3]}"
        elif whole in _TENSORS:
            name = f"{_TENSORS[whole]}.{end}"
        else:
            raise ValueError(f"got tensor {tensor.name}, whose effect is not known, expected those of {kind}")
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors[name] = Stored(tensor.name, shape, partial(_dequantised, tensor, shape))
    return tensors


def _dequantised(tensor: Any, shape: tuple[int, ...]) -> np.ndarray:
    from gguf import dequantize

    return np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)


def _fields(kind: str, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    """Say what a `config.json` would."""
    own = {name.removeprefix(f"{kind}."): value for name, value in metadata.items() if name.startswith(f"{kind}.")}
    repeated = {name: own.pop(name) for name in _REPEATED if name in own}
    scaling = {name: own.pop(name) for name in [*own] if name.startswith("rope.scaling.")}
    if unknown := sorted(own.keys() - _FIELDS.keys()):
        raise ValueError(f"got {kind} fields {unknown}, whose effect is not known, expected some of {sorted(_FIELDS)}")
    fields = {_FIELDS[name]: value for name, value in own.items()}
    fields.setdefault("num_key_value_heads", fields["num_attention_heads"])
    fields.setdefault("head_dim", fields["hidden_size"] // fields["num_attention_heads"])
    fields |= {"model_type": _FAMILIES[kind], "vocab_size": tensors["embed_tokens.weight"].shape[0]}
    fields |= {"tie_word_embeddings": "lm_head.weight" not in tensors, "rope_scaling": _scaling(scaling)}
    followed = {name: fields["head_dim"] for name in _REPEATED[:2]} | {_REPEATED[2]: fields["vocab_size"]}
    if wrong := {name: value for name, value in repeated.items() if value != followed[name]}:
        raise ValueError(f"got {wrong}, expected what follows from the others: {followed}")
    if kind == "llama":
        biased = lambda name: f"layers.0.{name}.bias" in tensors
        fields |= {"attention_bias": biased("self_attn.q_proj"), "mlp_bias": biased("mlp.up_proj")}
    if kind.startswith("gemma"):
        wide = fields["num_hidden_layers"] in _WIDE
        width = fields["hidden_size"] // fields["num_attention_heads"]
        fields["query_pre_attn_scalar"] = width if wide else fields["head_dim"]
    if kind == "gemma2":
        fields = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | fields
    return fields


def _scaling(given: Mapping[str, Any]) -> dict[str, Any] | None:
    left = {name.removeprefix("rope.scaling."): value for name, value in given.items()}
    kind = left.pop("type", "none")
    if kind == "none" and not left:
        return None
    if kind == "linear" and set(left) == {"factor"}:
        return {"rope_type": "linear", "factor": left["factor"]}
    raise ValueError(f"got rotations slowed by {dict(given)}, expected none, or 'linear' by a factor")


def _straightened(name: str, tensor: Stored, heads: Mapping[str, int]) -> Stored:
    """Undo the order of rows in which rotated pairs are neighbours: feature i goes with i + E/2 elsewhere."""
    match = re.fullmatch(r"layers\.\d+\.self_attn\.([qk])_proj\.(weight|bias)", name)
    if match is None:
        return tensor
    count = heads[match[1]]

    def read() -> np.ndarray:
        rows = tensor.read()
        return rows.reshape(count, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    return tensor._replace(read=read)


def _centred(name: str, tensor: Stored) -> Stored:
    return tensor._replace(read=lambda: tensor.read() - 1) if name.endswith("norm.weight") else tensor
