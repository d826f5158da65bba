"""What each family of the Hugging Face hub says in its `config.json`, in terms of our switches.

GPT-2, GPT-NeoX (Pythia), Llama, Mistral, Phi-3, Qwen2, Qwen3, Seed-OSS, Gemma-2 and Gemma 3 (text). Defaults are those
of transformers, which leaves out fields that have them.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from abstraction.models.decoder_config import DecoderConfig
from abstraction.models.hub_readers import (
    ACTIVATIONS,
    LAYERS,
    Rope,
    Take,
    count,
    flag,
    number,
    one_of,
    only,
    precision,
    rope,
    rotary,
    rotated,
    shared,
    sliding,
)

_CAPS = {"attention_cap": "attn", "final_cap": "final"}
_BASES = (1_000_000.0, 10_000.0)
"""Of Gemma 3's rotations, in whole and in windowed layers."""


def _gpt2(take: Take) -> DecoderConfig:
    width, heads = count(take, "n_embd"), count(take, "n_head")
    positions = count(take, "n_positions")
    take("n_ctx", None)
    only(take, "scale_attn_by_inverse_layer_idx", False)
    only(take, "add_cross_attention", False)
    return DecoderConfig(
        vocabulary=count(take, "vocab_size"),
        width=width,
        depth=count(take, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=shared(width, heads),
        hidden=count(take, "n_inner", None) or 4 * width,
        learned_positions=positions,
        norm="layer",
        norm_epsilon=number(take, "layer_norm_epsilon", 1e-5),
        gated=False,
        activation=one_of("activation_function", take("activation_function", "gelu_new"), ACTIVATIONS),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=flag(take, "tie_word_embeddings", True),
        query_scale=None if flag(take, "scale_attn_weights", True) else 1.0,
        dtype=precision(take),
    )


def _llama(take: Take) -> DecoderConfig:
    biased = flag(take, "attention_bias", False)
    return DecoderConfig(
        **rotary(take),
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=flag(take, "mlp_bias", False),
        tied=flag(take, "tie_word_embeddings", False),
    )


def _seed_oss(take: Take) -> DecoderConfig:
    """Read Seed-OSS: Llama, with a switch for each kind of bias."""
    return DecoderConfig(
        **rotary(take, size=128),
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        qkv_bias=flag(take, "attention_bias", True),
        output_bias=flag(take, "attention_out_bias", False),
        mlp_bias=flag(take, "mlp_bias", False),
        tied=flag(take, "tie_word_embeddings", False),
    )


def _qwen2(take: Take) -> DecoderConfig:
    only(take, "use_sliding_window", False)
    only(take, "use_mrope", False)
    for unused in ("sliding_window", "max_window_layers"):
        take(unused, None)
    sizes = rotary(take)
    if any(sliding(take, sizes["depth"], default=(False,) * sizes["depth"])):
        raise ValueError("got qwen2 layer_types with windows and use_sliding_window false, expected no windows")
    return DecoderConfig(
        **sizes,
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        qkv_bias=True,
        tied=flag(take, "tie_word_embeddings", False),
    )


def _gemma2(take: Take) -> DecoderConfig:
    sizes = rotary(take, size=256)
    for unused in ("hidden_act", "sliding_window_size"):  # Old files repeat what hidden_activation and the window say.
        take(unused, None)
    caps = {name: number(take, f"{field}_logit_softcapping", null=True) for name, field in _CAPS.items()}
    return _gemma(take, sizes, caps, every=2)


def _gemma3(take: Take) -> DecoderConfig:
    """Read Gemma 3: queries and keys have norms, all blocks but every sixth a window and rotations of another base."""
    turns, local = _rope_by_layer(take)
    sizes = rotary(take, turns, size=256)
    only(take, "attn_logit_softcapping", None)  # transformers reads it and does not apply it
    caps = {"final_cap": number(take, "final_logit_softcapping", None)}
    config = _gemma(take, sizes, caps, every=count(take, "sliding_window_pattern", None) or 6)
    return replace(config, query_key_norms=True, local_rope_theta=local if config.windowed else None)


def _rope_by_layer(take: Take) -> tuple[Rope, float]:
    """Read rotations, and their base in windowed blocks: apart, or by kind of layer."""
    given = take("rope_parameters", None)
    if given is None:
        local = number(take, "rope_local_base_freq", None) or 10_000
        return rope(take, theta=1_000_000.0), float(local)
    if not isinstance(given, Mapping) or set(given) != set(LAYERS):
        raise ValueError(f"got rope_parameters {given!r}, expected those of {LAYERS}")
    each = [rope({"rope_parameters": given[kind]}.pop, theta=base) for kind, base in zip(LAYERS, _BASES, strict=True)]
    if each[1][1:] != Rope(0.0)[1:]:
        raise ValueError(f"got rope_parameters {given[LAYERS[1]]} of windowed layers, expected a base alone")
    return each[0], each[1].theta


def _gemma(take: Take, sizes: Mapping[str, Any], caps: Mapping[str, float | None], every: int) -> DecoderConfig:
    """Read what Gemma-2 and 3 spell alike; every so manieth block is not windowed."""
    biased = flag(take, "attention_bias", False)
    only(take, "use_bidirectional_attention", False, None)
    return DecoderConfig(
        **sizes,
        **caps,
        **_window(take, tuple((block + 1) % every > 0 for block in range(sizes["depth"])), optional=False),
        norm_offset=1.0,
        post_norms=True,
        activation=one_of("hidden_activation", take("hidden_activation", "gelu_pytorch_tanh"), ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        tied=flag(take, "tie_word_embeddings", True),
        embedding_scale=sizes["width"] ** 0.5,
        query_scale=number(take, "query_pre_attn_scalar") ** -0.5,
    )


def _qwen3(take: Take) -> DecoderConfig:
    biased, used = flag(take, "attention_bias", False), flag(take, "use_sliding_window", False)
    sizes, first = rotary(take, size=128), take("max_window_layers", None)
    if not used:
        take("sliding_window", None)
        if any(sliding(take, sizes["depth"], default=())):
            raise ValueError("got qwen3 layer_types with windows and use_sliding_window false, expected no windows")
    windows = {}
    if used:
        first = 28 if first is None else first
        if isinstance(first, bool) or not isinstance(first, int):
            raise ValueError(f"got max_window_layers {first!r}, expected a whole number")
        windows = _window(take, tuple(block >= first for block in range(sizes["depth"])))
    return DecoderConfig(
        **sizes,
        **windows,
        query_key_norms=True,
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        tied=flag(take, "tie_word_embeddings", False),
    )


def _mistral(take: Take) -> DecoderConfig:
    sizes = rotary(take)
    return DecoderConfig(
        **sizes,
        **_window(take, (True,) * sizes["depth"]),
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        tied=flag(take, "tie_word_embeddings", False),
    )


def _phi3(take: Take) -> DecoderConfig:
    take("original_max_position_embeddings", None)  # of longrope, which is refused
    only(take, "attention_bias", False)
    sizes = rotary(take, rope(take, share=1.0))
    window = count(take, "sliding_window", None)
    return DecoderConfig(
        **sizes,
        window=window,
        windowed=() if window is None else (True,) * sizes["depth"],
        activation=one_of("hidden_act", take("hidden_act", "silu"), ACTIVATIONS),
        tied=flag(take, "tie_word_embeddings", False),
    )


def _gpt_neox(take: Take) -> DecoderConfig:
    """Read GPT-NeoX and Pythia: attention and MLP side by side, a part of each head rotated."""
    width, heads = count(take, "hidden_size"), count(take, "num_attention_heads")
    take("max_position_embeddings", None)
    theta, share = number(take, "rotary_emb_base", None), number(take, "rotary_pct", None)
    turns, biased = (
        rope(take, theta=float(theta or 10_000), share=float(share or 0.25)),
        flag(take, "attention_bias", True),
    )
    return DecoderConfig(
        vocabulary=count(take, "vocab_size"),
        width=width,
        depth=count(take, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=shared(width, heads),
        hidden=count(take, "intermediate_size"),
        rope_theta=turns.theta,
        rope_factor=turns.factor,
        rope_scaling=turns.scaling,
        rotated=rotated(turns, shared(width, heads)),
        norm="layer",
        norm_epsilon=number(take, "layer_norm_eps", 1e-5),
        parallel=flag(take, "use_parallel_residual", True),
        gated=False,
        activation=one_of("hidden_act", take("hidden_act", "gelu"), ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=True,
        tied=flag(take, "tie_word_embeddings", False),
        dtype=precision(take),
    )


def _window(take: Take, default: tuple[bool, ...], *, optional: bool = True) -> dict[str, Any]:
    """Read the window and the blocks that have one: none where it is null, if it may be."""
    window, windowed = count(take, "sliding_window", null=True), sliding(take, len(default), default=default)
    used = any(windowed) and not (optional and window is None)
    return {"window": window if used else None, "windowed": windowed if used else ()}


FAMILIES: Mapping[str, Callable[[Take], DecoderConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "seed_oss": _seed_oss,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gpt_neox": _gpt_neox,
    "mistral": _mistral,
    "phi3": _phi3,
    "qwen3": _qwen3,
}
