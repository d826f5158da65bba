"""What a `config.json` of the Hugging Face hub says about a decoder: GPT-2, Llama, Qwen2 and Gemma-2.

Every field is used, known not to matter here, or refused: a switch that is overlooked is another network. Private
fields (`_name_or_path`, `_attn_implementation_autoset`) say how transformers runs, never what it computes. Names are
those of transformers, before version 5 (`rope_theta`, `rope_scaling`) and since (`rope_parameters`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from abstraction.models.decoder_config import (
    ActivationKind,
    DecoderConfig,
    Precision,
    RopeScaling,
    is_count,
    is_number,
)

# What says nothing about logits without training: names, tokens, dropout, heads of other tasks, how transformers runs.
_IGNORED = {
    "architectures", "auto_map", "transformers_version",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "task_specific_params",
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "id2label", "label2id", "num_labels", "problem_type",
    "cache_implementation", "use_cache", "chunk_size_feed_forward", "gradient_checkpointing",
    "reorder_and_upcast_attn", "pretraining_tp", "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
_ACTIVATIONS: Mapping[str, ActivationKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
_PRECISIONS: Mapping[str | None, Precision] = {None: "float32", "float32": "float32", "bfloat16": "bfloat16"}
_LAYERS = ("full_attention", "sliding_attention")
_DEPTHS = ("num_hidden_layers", "n_layer")
_MOST_BLOCKS = 10_000
Take = Callable[..., Any]
"""Remove a field and return it, or a default where there is one."""


def config_from_hub(fields: Mapping[str, Any], *, blocks: int | None = None) -> DecoderConfig:
    """Translate the fields of a `config.json`.

    Args:
      fields: as parsed; `model_type` says which family they are of. Without `dtype` or `torch_dtype`: float32.
      blocks: of how many blocks there are weights, where that is known; 10,000 where it is not.

    Raises:
      ValueError: an unknown architecture, fields that are missing or not known, values of another type or that have no
        counterpart, or more layers than there are weights of.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"got a configuration of type {type(fields).__name__}, expected fields by name")
    kind = fields.get("model_type", "")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise ValueError(f"got model_type {kind!r}, expected one of {sorted(_FAMILIES)}")
    left = {name: value for name, value in fields.items() if name != "model_type" and not name.startswith("_")}
    _check_depth(left, blocks)
    try:
        _only(left.pop, "is_encoder_decoder", False)
        config = _FAMILIES[kind](left.pop)
    except KeyError as error:
        raise ValueError(f"got a {kind} configuration without field {error}, expected it") from error
    if unknown := sorted(left.keys() - _IGNORED):
        shown = {name: left[name] for name in unknown}
        raise ValueError(f"got {kind} fields {shown}, whose effect is not known, expected those of transformers")
    config.check()
    return config


def _check_depth(fields: Mapping[str, Any], blocks: int | None) -> None:
    """Refuse more layers than there are weights of, before anything is made for each of them."""
    most = _MOST_BLOCKS if blocks is None else min(blocks, _MOST_BLOCKS)
    why = "" if blocks is None else ", the blocks that there are weights of"
    for name in _DEPTHS:
        value = fields.get(name, 1)
        if not is_count(value) or (name in fields and value > most):
            raise ValueError(f"got {name} {value!r}, expected 1 to {most}{why}")


def _gpt2(take: Take) -> DecoderConfig:
    width, heads = _count(take, "n_embd"), _count(take, "n_head")
    positions = _count(take, "n_positions")
    take("n_ctx", None)
    _only(take, "scale_attn_by_inverse_layer_idx", False)
    _only(take, "add_cross_attention", False)
    return DecoderConfig(
        vocabulary=_count(take, "vocab_size"),
        width=width,
        depth=_count(take, "n_layer"),
        heads=heads,
        kv_heads=heads,
        head_size=_shared(width, heads),
        hidden=_count(take, "n_inner", None) or 4 * width,
        learned_positions=positions,
        norm="layer",
        norm_epsilon=_number(take, "layer_norm_epsilon", 1e-5),
        gated=False,
        activation=_one_of("activation_function", take("activation_function", "gelu_new"), _ACTIVATIONS),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=_flag(take, "tie_word_embeddings", True),
        query_scale=None if _flag(take, "scale_attn_weights", True) else 1.0,
        dtype=_precision(take),
    )


def _llama(take: Take) -> DecoderConfig:
    biased = _flag(take, "attention_bias", False)
    return DecoderConfig(
        **_rotary(take),
        activation=_one_of("hidden_act", take("hidden_act", "silu"), _ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=_flag(take, "mlp_bias", False),
        tied=_flag(take, "tie_word_embeddings", False),
    )


def _qwen2(take: Take) -> DecoderConfig:
    _only(take, "use_sliding_window", False)
    _only(take, "use_mrope", False)
    for unused in ("sliding_window", "max_window_layers"):
        take(unused, None)
    sizes = _rotary(take)
    if any(_sliding(take, sizes["depth"], default=(False,) * sizes["depth"])):
        raise ValueError("got qwen2 layer_types with windows and use_sliding_window false, expected no windows")
    return DecoderConfig(
        **sizes,
        activation=_one_of("hidden_act", take("hidden_act", "silu"), _ACTIVATIONS),
        qkv_bias=True,
        tied=_flag(take, "tie_word_embeddings", False),
    )


def _gemma2(take: Take) -> DecoderConfig:
    sizes, biased = _rotary(take), _flag(take, "attention_bias", False)
    _only(take, "use_bidirectional_attention", False, None)
    for unused in ("hidden_act", "sliding_window_size"):  # Old files repeat what hidden_activation and the window say.
        take(unused, None)
    window = _count(take, "sliding_window", null=True)
    windowed = _sliding(take, sizes["depth"], default=tuple(block % 2 == 0 for block in range(sizes["depth"])))
    return DecoderConfig(
        **sizes,
        norm_offset=1.0,
        post_norms=True,
        activation=_one_of("hidden_activation", take("hidden_activation", "gelu_pytorch_tanh"), _ACTIVATIONS),
        qkv_bias=biased,
        output_bias=biased,
        tied=_flag(take, "tie_word_embeddings", True),
        embedding_scale=sizes["width"] ** 0.5,
        query_scale=_number(take, "query_pre_attn_scalar") ** -0.5,
        attention_cap=_number(take, "attn_logit_softcapping", null=True),
        final_cap=_number(take, "final_logit_softcapping", null=True),
        window=window if any(windowed) else None,
        windowed=windowed if any(windowed) else (),
    )


_FAMILIES: Mapping[str, Callable[[Take], DecoderConfig]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "qwen2": _qwen2,
    "gemma2": _gemma2,
}


def _rotary(take: Take) -> dict[str, Any]:
    """Return what Llama, Qwen2 and Gemma-2 spell alike."""
    width, heads = _count(take, "hidden_size"), _count(take, "num_attention_heads")
    size = _count(take, "head_dim", None)
    take("max_position_embeddings", None)
    theta, scaling = _rope(take)
    return {
        "vocabulary": _count(take, "vocab_size"),
        "width": width,
        "depth": _count(take, "num_hidden_layers"),
        "heads": heads,
        "kv_heads": _count(take, "num_key_value_heads", None) or heads,
        "head_size": size or _shared(width, heads),
        "hidden": _count(take, "intermediate_size"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_epsilon": _number(take, "rms_norm_eps", 1e-6),
        "dtype": _precision(take),
    }


def _rope(take: Take) -> tuple[float, RopeScaling | None]:
    theta, old, new = _number(take, "rope_theta", None), take("rope_scaling", None), take("rope_parameters", None)
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"got {name} {value!r}, expected fields by name, or null")
    if old and new:
        raise ValueError(f"got both rope_scaling {old} and rope_parameters {new}, expected one of them")
    left = dict(new or old or {})
    inner, base = _number(left.pop, "rope_theta", None), 10_000.0
    if None not in (theta, inner) and theta != inner:
        raise ValueError(f"got rope_theta {theta} and {inner} inside rope_parameters, expected them to agree")
    base = next((value for value in (inner, theta) if value is not None), base)
    kinds = {str(left.pop(name)) for name in ("type", "rope_type") if name in left} or {"default"}
    _only(left.pop, "partial_rotary_factor", 1.0)
    scaling = None
    if kinds == {"llama3"}:
        factors = [_number(left.pop, name) for name in ("factor", "low_freq_factor", "high_freq_factor")]
        scaling = RopeScaling(factors[0], factors[1], factors[2], _count(left.pop, "original_max_position_embeddings"))
    elif kinds != {"default"}:
        raise ValueError(f"got rope scaling of type {sorted(kinds)}, expected 'default' or 'llama3'")
    if left:
        raise ValueError(
            f"got rope parameters {left}, whose effect is not known, expected those of 'default' or 'llama3'"
        )
    return float(base), scaling


def _sliding(take: Take, depth: int, *, default: tuple[bool, ...]) -> tuple[bool, ...]:
    kinds = take("layer_types", None)
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != depth or any(kind not in _LAYERS for kind in kinds):
        raise ValueError(f"got layer_types {kinds!r}, expected one of {_LAYERS} for each of {depth} layers")
    return tuple(kind == "sliding_attention" for kind in kinds)


def _precision(take: Take) -> Precision:
    new, old = take("dtype", None), take("torch_dtype", None)
    return _one_of("dtype", new or old, _PRECISIONS)


def _shared(width: int, heads: int) -> int:
    if width % heads:
        raise ValueError(f"got width {width} for {heads} heads, expected a multiple")
    return width // heads


def _count(take: Take, name: str, *default: Any, null: bool = False) -> Any:
    value = take(name, *default)
    if not is_count(value) and not (value is None and (null or default == (None,))):
        raise ValueError(f"got {name} {value!r}, expected a whole number of at least 1")
    return value


def _number(take: Take, name: str, *default: Any, null: bool = False) -> Any:
    value = take(name, *default)
    if value is not None and is_number(value) and value > 0:
        return value
    if value is None and (null or default == (None,)):
        return None
    raise ValueError(f"got {name} {value!r}, expected a finite number above 0")


def _flag(take: Take, name: str, default: bool) -> bool:
    value = take(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"got {name} {value!r}, expected true or false")
    return value


def _one_of(name: str, value: Any, known: Mapping) -> Any:
    if not isinstance(value, str | None) or value not in known:
        raise ValueError(f"got {name} {value!r}, expected one of {list(known)}")
    return known[value]


def _only(take: Take, name: str, *allowed: Any) -> None:
    value = take(name, allowed[0])
    if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
        raise ValueError(f"got {name} {value!r}, expected {allowed[0]!r}")
