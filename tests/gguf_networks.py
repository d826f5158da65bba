"""Tiny random networks as GGUF files, written by the package `gguf` from the formulas of llama.cpp's converter."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="pip install 'abstraction-jax[hub]'")

HEADS, KV, SIZE, WIDTH, HIDDEN, DEPTH, VOCABULARY = 4, 2, 4, 16, 20, 2, 11
METADATA = {
    "embedding_length": WIDTH, "block_count": DEPTH, "feed_forward_length": HIDDEN, "attention.head_count": HEADS,
    "attention.head_count_kv": KV, "attention.key_length": SIZE, "attention.value_length": SIZE,
    "rope.dimension_count": SIZE, "context_length": 64, "rope.freq_base": 50_000.0,
    "attention.layer_norm_rms_epsilon": 1e-5, "vocab_size": VOCABULARY,
}  # fmt: skip
MORE = {
    "gemma2": {"attention.sliding_window": 3, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 20.0},
    "gemma3": {"attention.sliding_window": 3},
}
ATTENTION = {"attn_q": HEADS * SIZE, "attn_k": KV * SIZE, "attn_v": KV * SIZE}


def tensors(kind, rng):
    """Draw the tensors of a file by their names there, in our order of rows and with plain scales of norms."""
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32) * 0.4
    found = {"token_embd.weight": draw(VOCABULARY, WIDTH), "output_norm.weight": 1 + draw(WIDTH)}
    if not kind.startswith("gemma"):
        found["output.weight"] = draw(VOCABULARY, WIDTH)
    for block in range(DEPTH):
        each = {f"{name}.weight": draw(rows, WIDTH) for name, rows in ATTENTION.items()}
        if kind == "qwen2":
            each |= {f"{name}.bias": draw(rows) for name, rows in ATTENTION.items()}
        if kind in ("qwen3", "gemma3"):
            each |= {"attn_q_norm.weight": 1 + draw(SIZE), "attn_k_norm.weight": 1 + draw(SIZE)}
        each |= {"attn_output.weight": draw(WIDTH, HEADS * SIZE), "ffn_down.weight": draw(WIDTH, HIDDEN)}
        each |= {"ffn_gate.weight": draw(HIDDEN, WIDTH), "ffn_up.weight": draw(HIDDEN, WIDTH)}
        norms = ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if kind[:5] == "gemma" else ()))
        each |= {f"{name}.weight": 1 + draw(WIDTH) for name in norms}
        found |= {f"blk.{block}.{name}": value for name, value in each.items()}
    return found


def interleaved(rows, heads):
    """Order the rows of each head so that feature i and i + E/2 are neighbours."""
    order = [head * SIZE + half * SIZE // 2 + i for head in range(heads) for i in range(SIZE // 2) for half in (0, 1)]
    return rows[order]


def write(path, kind, arrays, metadata=(), changes=()):
    """Write a file; `changes` of its fields, `metadata` of its tokenizer, by whole names."""
    writer = gguf.GGUFWriter(str(path), kind)
    fields = {f"{kind}.{name}": value for name, value in (METADATA | MORE.get(kind, {}) | dict(changes)).items()}
    for name, value in (fields | dict(metadata)).items():
        if value is None:
            continue
        kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        kinds.get(type(value), writer.add_array)(name, value)
    for name, array in arrays.items():
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            array = interleaved(array, HEADS if ".attn_q." in name else KV)
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
