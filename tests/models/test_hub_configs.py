"""What the hub's configurations mean, and which are refused."""

import pytest
from hub_fields import (
    GEMMA3_1B,
    GEMMA_2B,
    GPT2_SMALL,
    LLAMA_8B,
    MISTRAL_7B,
    PHI3_MINI,
    PYTHIA_70M,
    QWEN3_SMALL,
    QWEN_HALF_B,
)

from abstraction.models import Decoder, DecoderConfig
from abstraction.models.decoder_config import RopeScaling
from abstraction.models.decoder_files import parameter_shapes
from abstraction.models.hub_configs import config_from_hub

# How many parameters their authors count.
PUBLIC = [
    (GPT2_SMALL, 124_439_808),
    (LLAMA_8B, 8_030_261_248),
    (QWEN_HALF_B, 494_032_768),
    (GEMMA_2B, 2_614_341_888),
    (PYTHIA_70M | {"torch_dtype": "float32"}, 70_426_624),
    (MISTRAL_7B, 7_241_732_096),
    (QWEN3_SMALL, 596_049_920),
    (PHI3_MINI, 3_821_079_552),
    (GEMMA3_1B, 999_885_952),
]


@pytest.mark.parametrize(("fields", "count"), PUBLIC, ids=[fields["model_type"] for fields, _ in PUBLIC])
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
    pythia = config_from_hub(PYTHIA_70M | {"torch_dtype": "float32"})
    assert (pythia.parallel, pythia.rotated, pythia.qkv_bias, pythia.gated) == (True, 16, True, False)
    assert config_from_hub(QWEN3_SMALL).query_key_norms
    assert config_from_hub(MISTRAL_7B).windowed == (True,) * 32
    assert config_from_hub(MISTRAL_7B | {"sliding_window": None}).windowed == ()
    gemma = config_from_hub(GEMMA3_1B)
    assert (gemma.windowed[:7], gemma.rope_theta, gemma.local_rope_theta) == ((True,) * 5 + (False, True), 1e6, 1e4)


def test_how_transformers_runs_and_what_was_quantised_say_nothing():
    told = {"_name_or_path": "x", "_attn_implementation_autoset": True, "quantization_config": {"bits": 4}}
    assert config_from_hub(LLAMA_8B | told) == config_from_hub(LLAMA_8B)


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
    "long rotations": (PHI3_MINI, {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "longrope"),
    "slowed windows": (
        GEMMA3_1B,
        {
            "rope_theta": ...,
            "rope_local_base_freq": ...,
            "rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}},
        },
        "of windowed layers, expected a base alone",
    ),
    "capped scores": (GEMMA3_1B, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
    "rotated twice": (PYTHIA_70M, {"rotary_pct": 1.5}, "partial_rotary_factor 1.5"),
    "no window": (GEMMA_2B, {"sliding_window": None}, "window of None"),
    "half precision": (LLAMA_8B, {"torch_dtype": "float16"}, "dtype 'float16'"),
    "head width": (QWEN_HALF_B, {"num_attention_heads": 15}, "width 896 for 15 heads"),
    "no layers": (QWEN_HALF_B, {"num_hidden_layers": 0}, "num_hidden_layers 0"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_configurations_without_a_counterpart_are_refused(case):
    fields, change, message = case
    fields = {name: value for name, value in (fields | change).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        config_from_hub(fields)
