"""GGUF files: every tensor is found, put in our order, and what is not understood is refused."""

import gguf_networks as written
import jax.numpy as jnp
import numpy as np
import pytest
from gguf_networks import tensors, write

from abstraction.models import load_decoder, packaged
from abstraction.models.packaged import smollm2
from abstraction.models.weights import load_config
from abstraction.tasks.prompts import load_tokenizer

KINDS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
OURS = {
    "token_embd.weight": "embedding", "attn_q.weight": "query/kernel", "attn_k.weight": "key/kernel",
    "attn_v.weight": "value/kernel", "attn_output.weight": "output/kernel", "ffn_gate.weight": "gate/kernel",
    "ffn_up.weight": "up/kernel", "ffn_down.weight": "down/kernel", "attn_norm.weight": "attention_norm/scale",
    "ffn_norm.weight": "mlp_norm/scale", "attn_q.bias": "query/bias", "attn_k.bias": "key/bias",
    "attn_v.bias": "value/bias", "attn_q_norm.weight": "query_norm/scale", "attn_k_norm.weight": "key_norm/scale",
    "post_attention_norm.weight": "attention_post_norm/scale", "post_ffw_norm.weight": "mlp_post_norm/scale",
    "output_norm.weight": "final_norm/scale", "output.weight": "unembedding",
}  # fmt: skip


def _leaf(params, path):
    for part in path.split("/"):
        params = params[part]
    return np.asarray(params)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_where_it_belongs(kind, tmp_path, rng):
    arrays = tensors(kind, rng)
    network = load_decoder(write(tmp_path / "one.gguf", kind, arrays))
    config = network.model.config
    assert (config.heads, config.kv_heads, config.head_size) == (written.HEADS, written.KV, written.SIZE)
    assert (config.rope_theta, config.tied) == (50_000.0, kind.startswith("gemma"))
    assert config.query_key_norms == (kind in ("qwen3", "gemma3"))
    for name, array in arrays.items():
        block, whole = (name.split(".")[1], name.split(".", 2)[2]) if name.startswith("blk.") else (None, name)
        path = OURS[whole]
        found = _leaf(network.params, path) if block is None else _leaf(network.params["blocks"], path)[int(block)]
        stored = array.T if path.endswith("kernel") else array
        # llama.cpp stores the whole factor of Gemma's norms, our parameter is without its 1
        stored = stored - config.norm_offset if path.endswith("scale") else stored
        np.testing.assert_array_equal(found, stored.astype(np.float32), err_msg=name)
    prompt = jnp.array([[1, 2, 3, 4, 5]])
    assert np.isfinite(network.model.apply(network.params, prompt)[0]).all()


def test_quantised_weights_come_back_as_what_their_blocks_say(tmp_path, rng):
    """Q8_0: 32 weights to a scale of 16 bits, each a signed byte."""
    arrays = tensors("llama", rng)
    rows = rng.standard_normal((written.VOCABULARY, 32)).astype(np.float32)
    scale = (np.abs(rows).max(axis=1, keepdims=True) / 127).astype(np.float16)
    quantised = written.gguf.quantize(rows, written.gguf.GGMLQuantizationType.Q8_0)
    back = written.gguf.dequantize(quantised, written.gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_allclose(back, rows, atol=float(scale.max()) * 0.51)
    assert load_decoder(write(tmp_path / "one.gguf", "llama", arrays)).params["embedding"].dtype == jnp.float32


FIELDS = {
    "an architecture": ("mamba", {}, {}, "architecture 'mamba', expected one of"),
    "an unknown field": ("llama", {"expert_count": 2}, {}, r"fields \['expert_count'\]"),
    "a size that contradicts": ("llama", {"rope.dimension_count": 2}, {}, "rope.dimension_count': 2"),
    "yarn": ("llama", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, {}, "yarn"),
    "an unknown tensor": ("llama", {}, {"rope_freqs.weight": (3,)}, "tensor rope_freqs.weight"),
    "a tensor of another shape": ("llama", {}, {"blk.0.ffn_up.weight": (3, 16)}, r"mlp.up_proj.weight: got \[3, 16\]"),
    "no width": ("llama", {"embedding_length": None}, {}, "no field 'hidden_size'"),
}


@pytest.mark.parametrize("case", FIELDS.values(), ids=FIELDS)
def test_what_is_not_understood_is_refused(case, tmp_path, rng):
    kind, changes, more, match = case
    arrays = tensors("llama", rng) | {name: np.ones(shape, np.float32) for name, shape in more.items()}
    path = write(tmp_path / "one.gguf", kind, arrays, changes=changes)
    with pytest.raises(ValueError, match=match):
        load_decoder(path)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(40))
    for name in ("absent.gguf", "damaged.gguf"):
        with pytest.raises(ValueError, match=name):
            load_decoder(tmp_path / name)
    with pytest.raises(ValueError, match=r"revision 'main' for the file .*, expected None"):
        load_decoder(tmp_path / "damaged.gguf", revision="main")


def test_linear_rotations_are_slowed(tmp_path, rng):
    changes = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert load_config(write(tmp_path / "one.gguf", "qwen3", tensors("qwen3", rng), changes=changes)).rope_factor == 4.0


TOKENS = ["<s>", "a", "b", "c", "Ġ", "1", "2", "ab", "Ġc", "12", "Ċ"]
VOCABULARY = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] + [1] * 10, "tokenizer.ggml.merges": ["a b", "Ġ c", "1 2"],
    "tokenizer.ggml.bos_token_id": 0,
}  # fmt: skip


def _tokenizer(path, rng, **changes):
    fields = VOCABULARY | {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return load_tokenizer(write(path / "one.gguf", "llama", tensors("llama", rng), fields))


def test_a_text_is_cut_and_merged_as_the_file_says(tmp_path, rng):
    pytest.importorskip("tokenizers")
    tokenizer = _tokenizer(tmp_path, rng)
    ids, spans = tokenizer.encode("ab c12<s>\nab")
    assert [TOKENS[index] for index in ids] == ["ab", "Ġc", "1", "2", "<s>", "Ċ", "ab"]  # digits stay apart
    assert spans[1] == (3, 4) or spans[1] == (2, 4)
    assert tokenizer.decode(ids) == "ab c12<s>\nab"
    assert _tokenizer(tmp_path, rng, pre="gpt-2").encode("12")[0] == [9]
    assert _tokenizer(tmp_path, rng, add_bos_token=True).encode("ab")[0] == [0, 7]


@pytest.mark.parametrize("change", [{"pre": "tekken"}, {"model": "llama"}, {"merges": None}])
def test_a_tokenizer_of_another_kind_is_refused(change, tmp_path, rng):
    pytest.importorskip("tokenizers")
    with pytest.raises(ValueError, match="got a tokenizer"):
        _tokenizer(tmp_path, rng, **change)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    smollm2.cache_clear()
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="make smollm2"):
        smollm2()


def test_another_version_of_the_package_is_refused(monkeypatch, tmp_path):
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    found = type("Found", (), {"submodule_search_locations": [str(tmp_path)]})
    smollm2.cache_clear()
    monkeypatch.setattr(packaged, "find_spec", lambda name: found)
    with pytest.raises(ValueError, match="SHA-256"):
        smollm2()
    smollm2.cache_clear()
