"""Reading decoders: what configurations mean, which tensor goes where, what is refused; our own file. No PyTorch."""

import json
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from abstraction.models import Decoder, DecoderConfig, RopeScaling
from abstraction.models.decoder_files import FILE, parameter_shapes, read_decoder, save_decoder
from abstraction.models.hub_configs import config_from_hub
from abstraction.models.weights import load_decoder

# What the hub has for four networks, and how many parameters their authors count.
GPT2_SMALL = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
QWEN_HALF_B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA_2B = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "float32",
    "transformers_version": "4.42.4", "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
PUBLIC = [(GPT2_SMALL, 124_439_808), (LLAMA_8B, 8_030_261_248), (QWEN_HALF_B, 494_032_768), (GEMMA_2B, 2_614_341_888)]

TINY = {
    "gpt2": GPT2_SMALL | {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 6, "n_inner": 12, "vocab_size": 10},
    "llama": LLAMA_8B | {"torch_dtype": "float32"},
    "qwen2": QWEN_HALF_B | {"torch_dtype": "float32"},
    "gemma2": GEMMA_2B | {"head_dim": 6},
}
for _name in ("llama", "qwen2", "gemma2"):
    TINY[_name] |= {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4, "num_hidden_layers": 2}
    TINY[_name] |= {"num_key_value_heads": 2, "vocab_size": 10}


def _shapes(kind):
    """Spell out what transformers stores for the tiny networks."""
    if kind == "gpt2":
        block = {
            "ln_1.weight": (8,), "ln_1.bias": (8,), "ln_2.weight": (8,), "ln_2.bias": (8,),
            "attn.c_attn.weight": (8, 24), "attn.c_attn.bias": (24,), "attn.c_proj.weight": (8, 8),
            "attn.c_proj.bias": (8,), "mlp.c_fc.weight": (8, 12), "mlp.c_fc.bias": (12,),
            "mlp.c_proj.weight": (12, 8), "mlp.c_proj.bias": (8,),
        }  # fmt: skip
        whole = {"wte.weight": (10, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
        return {f"transformer.{name}": shape for name, shape in whole.items()} | {
            f"transformer.h.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()
        }
    size = 6 if kind == "gemma2" else 2
    block = {
        "input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,),
        "self_attn.q_proj.weight": (4 * size, 8), "self_attn.k_proj.weight": (2 * size, 8),
        "self_attn.v_proj.weight": (2 * size, 8), "self_attn.o_proj.weight": (8, 4 * size),
        "mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8), "mlp.down_proj.weight": (8, 12),
    }  # fmt: skip
    if kind == "qwen2":
        block |= {"self_attn.q_proj.bias": (8,), "self_attn.k_proj.bias": (4,), "self_attn.v_proj.bias": (4,)}
    if kind == "gemma2":
        block |= {"pre_feedforward_layernorm.weight": (8,), "post_feedforward_layernorm.weight": (8,)}
    shapes = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()}
    return shapes | ({"lm_head.weight": (10, 8)} if kind == "llama" else {})


def _tensors(kind, rng):
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in _shapes(kind).items()}


def _write(folder, kind, tensors, **fields):
    (folder / "config.json").write_text(json.dumps(TINY[kind] | fields))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("fields", "count"), PUBLIC, ids=["gpt2", "llama", "qwen2", "gemma2"])
def test_public_networks_have_the_parameters_their_authors_count(fields, count):
    shapes = parameter_shapes(Decoder(config_from_hub(fields)))
    assert sum(leaf.size for leaf in shapes.values()) == count


def test_configurations_are_translated_field_by_field():
    assert config_from_hub(GPT2_SMALL) == DecoderConfig(
        50257, 768, 12, 12, 12, 64, 3072, learned_positions=1024, norm="layer", norm_epsilon=1e-5, gated=False,
        activation="gelu_tanh", qkv_bias=True, output_bias=True, mlp_bias=True,
    )  # fmt: skip
    assert config_from_hub(LLAMA_8B) == DecoderConfig(
        128256, 4096, 32, 32, 8, 128, 14336, rope_theta=500_000.0, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        norm_epsilon=1e-5, tied=False, dtype="bfloat16",
    )  # fmt: skip
    assert config_from_hub(QWEN_HALF_B) == DecoderConfig(
        151936, 896, 24, 14, 2, 64, 4864, rope_theta=1_000_000.0, qkv_bias=True, dtype="bfloat16"
    )
    assert config_from_hub(GEMMA_2B) == DecoderConfig(
        256000, 2304, 26, 8, 4, 256, 9216, norm_offset=1.0, post_norms=True, activation="gelu_tanh",
        embedding_scale=48.0, query_scale=1 / 16, attention_cap=50.0, final_cap=30.0, window=4096,
        windowed=(True, False) * 13,
    )  # fmt: skip


def test_both_spellings_of_transformers_mean_the_same():
    new = {name: value for name, value in LLAMA_8B.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= {"rope_parameters": LLAMA_8B["rope_scaling"] | {"rope_theta": 500000.0}, "dtype": "bfloat16"}
    assert config_from_hub(new) == config_from_hub(LLAMA_8B)
    kinds = ["full_attention", "sliding_attention"] * 13
    assert config_from_hub(GEMMA_2B | {"layer_types": kinds}).windowed == (False, True) * 13
    unwindowed = config_from_hub(GEMMA_2B | {"layer_types": ["full_attention"] * 26})
    assert (unwindowed.window, unwindowed.windowed) == (None, ())


def test_switches_that_have_a_counterpart_are_used():
    biased = config_from_hub(LLAMA_8B | {"attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.output_bias, biased.mlp_bias) == (True, True, True)
    assert config_from_hub(GPT2_SMALL | {"scale_attn_weights": False}).score_scale == 1.0
    assert config_from_hub(GPT2_SMALL | {"tie_word_embeddings": False}).tied is False
    assert config_from_hub(GPT2_SMALL | {"n_inner": 100}).hidden == 100
    assert config_from_hub(GEMMA_2B | {"query_pre_attn_scalar": 144}).score_scale == 1 / 12


REFUSED = {
    "architecture": (GPT2_SMALL, {"model_type": "mamba"}, "mamba.*gemma2.*gpt2.*llama.*qwen2"),
    "unknown field": (LLAMA_8B, {"sparsity": 3}, "sparsity.*3"),
    "quantized": (QWEN_HALF_B, {"quantization_config": {"bits": 4}}, "quantization_config"),
    "missing field": (LLAMA_8B, {"hidden_size": ...}, "without field 'hidden_size'"),
    "no architecture": (LLAMA_8B, {"model_type": ...}, "model_type ''"),
    "scale per layer": (GPT2_SMALL, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "cross attention": (GPT2_SMALL, {"add_cross_attention": True}, "add_cross_attention"),
    "encoder": (GPT2_SMALL, {"is_encoder_decoder": True}, "is_encoder_decoder"),
    "activation": (LLAMA_8B, {"hidden_act": "relu"}, "hidden_act 'relu'.*silu"),
    "rope type": (LLAMA_8B, {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
    "rope field": (LLAMA_8B, {"rope_scaling": {"rope_type": "default", "beta_fast": 2}}, "beta_fast"),
    "rope without factor": (LLAMA_8B, {"rope_scaling": {"rope_type": "llama3"}}, "without field 'factor'"),
    "rope twice": (LLAMA_8B, {"rope_parameters": {"rope_theta": 1e4}}, "both rope_scaling"),
    "two thetas": (QWEN_HALF_B, {"rope_parameters": {"rope_theta": 1e4}}, "10000.*to agree"),
    "half rotated": (QWEN_HALF_B, {"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "window": (QWEN_HALF_B, {"use_sliding_window": True}, "use_sliding_window"),
    "windows by type": (QWEN_HALF_B, {"layer_types": ["sliding_attention"] * 24}, "layer_types"),
    "short layer types": (GEMMA_2B, {"layer_types": ["full_attention"]}, "each of 26 layers"),
    "layer type": (GEMMA_2B, {"layer_types": ["chunked_attention"] * 26}, "chunked_attention"),
    "bidirectional": (GEMMA_2B, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    "no window": (GEMMA_2B, {"sliding_window": None}, "window of None"),
    "half precision": (LLAMA_8B, {"torch_dtype": "float16"}, "dtype 'float16'"),
    "head width": (QWEN_HALF_B, {"num_attention_heads": 15}, "width 896 for 15 heads"),
    "no layers": (QWEN_HALF_B, {"num_hidden_layers": 0}, "depth"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_configurations_without_a_counterpart_are_refused(case):
    fields, change, message = case
    fields = {name: value for name, value in (fields | change).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        config_from_hub(fields)


@pytest.mark.parametrize("kind", TINY)
def test_every_parameter_is_found_and_fits(kind, tmp_path, rng):
    decoder, params = load_decoder(_write(tmp_path, kind, _tensors(kind, rng)))
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert kinds(params) == kinds(decoder.init(jax.random.key(0)))
    assert np.isfinite(jax.jit(decoder.apply)(params, np.array([[1, 2, 3, -1], [4, 5, 6, 7]]))[0]).all()


def test_linear_maps_are_turned_and_stacked(tmp_path, rng):
    tensors = _tensors("llama", rng)
    blocks = load_decoder(_write(tmp_path, "llama", tensors))[1]["blocks"]
    for ours, theirs in {"query": "self_attn.q_proj", "output": "self_attn.o_proj", "down": "mlp.down_proj"}.items():
        for layer in range(2):
            stored = tensors[f"model.layers.{layer}.{theirs}.weight"]
            np.testing.assert_array_equal(blocks[ours]["kernel"][layer], stored.T)


def test_fused_maps_are_split_in_three_and_not_turned(tmp_path, rng):
    tensors = _tensors("gpt2", rng)
    blocks = load_decoder(_write(tmp_path, "gpt2", tensors))[1]["blocks"]
    for part, name in enumerate(("query", "key", "value")):
        third = slice(8 * part, 8 * part + 8)
        stored = tensors["transformer.h.1.attn.c_attn.weight"][:, third]
        np.testing.assert_array_equal(blocks[name]["kernel"][1], stored)
        np.testing.assert_array_equal(blocks[name]["bias"][1], tensors["transformer.h.1.attn.c_attn.bias"][third])


def test_answers_reach_the_decoder(tmp_path, rng):
    folder = _write(tmp_path, "qwen2", _tensors("qwen2", rng))
    decoder, params = load_decoder(folder, answers=[[1], [2, 3]], rest=True)
    assert jax.eval_shape(decoder.apply, params, np.array([[1, 2]]))[0].shape == (1, 3)
    with pytest.raises(ValueError, match="tokens from 0 to 9"):
        load_decoder(folder, answers=[[10]])


def _same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


@pytest.mark.parametrize("kind", TINY)
def test_names_with_and_without_prefix_are_the_same(kind, tmp_path, rng):
    tensors = _tensors(kind, rng)
    params = load_decoder(_write(tmp_path, kind, tensors))[1]
    bare = {name.removeprefix("model.").removeprefix("transformer."): array for name, array in tensors.items()}
    _same(load_decoder(_write(tmp_path, kind, bare))[1], params)


def test_shards_are_the_same_as_one_file(tmp_path, rng):
    tensors = _tensors("gemma2", rng)
    params = load_decoder(_write(tmp_path, "gemma2", tensors))[1]
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    shards = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _same(load_decoder(tmp_path)[1], params)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"without .*model-00002-of-00002"):
        load_decoder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, rng):
    tensors = _tensors("llama", rng)
    tensors["norm.weight"] = tensors["model.norm.weight"]
    with pytest.raises(ValueError, match="expected one of them"):
        load_decoder(_write(tmp_path, "llama", tensors))


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32], ids=lambda kind: kind.__name__)
def test_stored_values_are_cast_to_the_dtype_asked_for(stored, tmp_path, rng):
    tensors = {name: array.astype(stored) for name, array in _tensors("llama", rng).items()}
    folder = _write(tmp_path, "llama", tensors, torch_dtype=np.dtype(stored).name)
    for dtype in ("float32", "bfloat16"):
        decoder, params = load_decoder(folder, dtype=dtype)
        assert decoder.config.dtype == dtype
        head = tensors["lm_head.weight"].astype(jnp.dtype(dtype))
        assert params["unembedding"].dtype == head.dtype
        np.testing.assert_array_equal(params["unembedding"], head)
    if stored is np.float16:
        with pytest.raises(ValueError, match="float16"):
            load_decoder(folder)
    else:
        assert load_decoder(folder)[1]["unembedding"].dtype == stored


def test_without_dtype_in_the_configuration_weights_are_float32(tmp_path, rng):
    params = load_decoder(_write(tmp_path, "gpt2", _tensors("gpt2", rng)))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


BROKEN = {
    "missing": ("llama", {"model.layers.1.mlp.up_proj.weight": None}, r"up_proj.weight: got nothing, expected .12, 8"),
    "extra": ("qwen2", {"model.layers.2.mlp.up_proj.weight": (12, 8)}, r"layers.2.mlp.*got .12, 8., expected nothing"),
    "renamed": (
        "gemma2",
        {"model.norm.weight": None, "model.final.weight": (8,)},
        "final.weight: got .8., expected nothing; norm.weight: got nothing",
    ),
    "turned": ("qwen2", {"model.layers.0.mlp.up_proj.weight": (8, 12)}, r"got \[8, 12\], expected \[12, 8\]"),
    "fused": ("gpt2", {"transformer.h.0.attn.c_attn.weight": (8, 16)}, r"got \[8, 16\], expected \[8, 24\]"),
    "vocabulary": ("gemma2", {"model.embed_tokens.weight": (11, 8)}, r"got \[11, 8\], expected \[10, 8\]"),
    "bias": ("llama", {"model.layers.0.self_attn.q_proj.bias": (8,)}, "q_proj.bias: got .8., expected nothing"),
    "untied": ("llama", {"lm_head.weight": None}, r"lm_head.weight: got nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_tensors_that_do_not_fit_are_refused_by_name(case, tmp_path, rng):
    kind, changes, message = case
    tensors = _tensors(kind, rng) | {
        name: None if shape is None else np.zeros(shape, np.float32) for name, shape in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        load_decoder(_write(tmp_path, kind, {name: value for name, value in tensors.items() if value is not None}))


def test_known_buffers_are_ignored(tmp_path, rng):
    tensors = _tensors("gpt2", rng) | {"transformer.h.0.attn.bias": np.ones((1, 1, 6, 6), bool)}
    tensors["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    load_decoder(_write(tmp_path, "gpt2", tensors))
    tensors = _tensors("llama", rng) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32)}
    load_decoder(_write(tmp_path, "llama", tensors))


def test_a_tied_head_must_be_the_embedding(tmp_path, rng):
    tensors = _tensors("gemma2", rng)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    load_decoder(_write(tmp_path, "gemma2", tensors))
    tensors["lm_head.weight"][3, 2] += 1
    with pytest.raises(ValueError, match="not the embedding"):
        load_decoder(_write(tmp_path, "gemma2", tensors))


def test_integers_are_refused(tmp_path, rng):
    tensors = _tensors("llama", rng)
    tensors["model.norm.weight"] = np.ones(8, np.int8)
    with pytest.raises(ValueError, match=r"norm\.weight of type I8"):
        load_decoder(_write(tmp_path, "llama", tensors))


def test_folders_that_hold_no_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without config\.json"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY["gpt2"]))
    with pytest.raises(ValueError, match=r"without .'model\.safetensors'"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        load_decoder(tmp_path)
    for source in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "a/b/c", ""):
        with pytest.raises(ValueError, match=r"is no folder|without config"):
            load_decoder(source)
    with pytest.raises(ValueError, match="revision"):
        load_decoder(tmp_path, revision="main")


def test_other_names_are_downloaded_from_the_hub(tmp_path, rng, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")
    folder, calls = _write(tmp_path, "gpt2", _tensors("gpt2", rng)), []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: calls.append((args, options)) or str(folder))
    _same(load_decoder("someone/net-2.5", revision="abc")[1], load_decoder(folder)[1])
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    assert calls == [(("someone/net-2.5",), {"revision": "abc", "allow_patterns": patterns})]


# Our own file.
CONFIG = config_from_hub(TINY["gemma2"])
SAVED = [
    Decoder(CONFIG, ((1,), (2, 3)), rest=True),
    Decoder(replace(CONFIG, dtype="bfloat16", rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32), windowed=(), window=None)),
    Decoder(config_from_hub(TINY["gpt2"])),
]


@pytest.mark.parametrize("decoder", SAVED, ids=["gemma2", "bfloat16", "gpt2"])
def test_a_decoder_comes_back_from_its_file(decoder, tmp_path):
    params = decoder.init(jax.random.key(0))
    save_decoder(tmp_path / "new", decoder, params)
    assert os.listdir(tmp_path / "new") == [FILE]
    back, again = read_decoder(tmp_path / "new")
    assert back == decoder
    assert hash(back) == hash(decoder)
    assert jax.tree.map(lambda leaf: leaf.dtype, again) == jax.tree.map(lambda leaf: leaf.dtype, params)
    _same(again, params)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    decoder = SAVED[2]
    save_decoder(tmp_path, decoder, decoder.init(jax.random.key(0)))
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_decoder(tmp_path, decoder, decoder.init(jax.random.key(1)))
    assert (tmp_path / FILE).read_bytes() == before
    assert os.listdir(tmp_path) == [FILE]


def test_parameters_of_another_network_are_not_saved(tmp_path):
    params = SAVED[0].init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"blocks/attention_post_norm/scale.*expected nothing"):
        save_decoder(tmp_path, SAVED[2], params)
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        read_decoder(tmp_path)
    decoder = SAVED[0]
    save_decoder(tmp_path, decoder, decoder.init(jax.random.key(0)))
    with safe_open(tmp_path / FILE, framework="numpy") as file:
        header = file.metadata()
    arrays, about = load_file(tmp_path / FILE), json.loads(header["decoder"])

    def reads(message, arrays=arrays, about=about, **changes):
        save_file(arrays, tmp_path / FILE, header | {"decoder": json.dumps(about)} | changes)
        with pytest.raises(ValueError, match=message):
            read_decoder(tmp_path)

    reads("format 'other'", format="other")
    reads("extra: got .*expected nothing", arrays | {"extra": np.zeros(1)})
    reads("embedding: got nothing", {name: array for name, array in arrays.items() if name != "embedding"})
    reads(r"embedding: got float32\[3\], expected float32\[10, 8\]", arrays | {"embedding": np.zeros(3, np.float32)})
    reads("'surprise'.* missing or unknown", about=about | {"config": about["config"] | {"surprise": 1}})
    fewer = {name: value for name, value in about["config"].items() if name != "norm_offset"}
    reads("'norm_offset'.* missing or unknown", about=about | {"config": fewer})
    reads("at least 1", about=about | {"config": about["config"] | {"heads": 0}})
    reads("rest", about={name: value for name, value in about.items() if name != "rest"})
    (tmp_path / FILE).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot read a decoder"):
        read_decoder(tmp_path)
