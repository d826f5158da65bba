"""Writing a decoder as a folder that transformers loads: `hub_configs` and `weights`, backwards. No PyTorch.

A reduced network is written where its blocks have one shape. Heads that were removed may leave key-value heads that
serve unequal numbers of query heads, which no family can say: these are repeated, which is the same function. Folding
leaves biases, and families differ in which maps may have one: Llama has all of them (`attention_bias`, `mlp_bias`), so
a Qwen2 network with folded constants is written as a Llama one with zeros where it had no bias, which is the same
function. Llama wants a width that its heads divide: where fewer heads do not, a network is written as Seed-OSS, the
same architecture. What no family carries is refused.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from abstraction.files import replaced
from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig
from abstraction.models.decoder_files import flat_parameters
from abstraction.models.decoder_unrolled import UnrolledDecoder, even_heads, stacked_decoder
from abstraction.models.hub_configs import config_from_hub
from abstraction.models.hub_files import INDEX, WEIGHTS
from abstraction.models.hub_tables import HEAD, TABLES
from abstraction.models.network import Network, check_network, params_digest
from abstraction.typing import Params

_DIGESTS = ("network", "made_from")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_MAPS = {"qkv_bias": ("query", "key", "value"), "output_bias": ("output",), "mlp_bias": ("gate", "up", "down")}
_FUNCTIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "silu": "silu"}


def export_decoder(
    network: Network, folder: str | Path, *, tokenizer: str | Path | None = None, made_from: Network | None = None
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` and `load_decoder` read.

    It holds `config.json` and `model.safetensors`, whose header has the digests of what it is and was made from.

    The answers a decoder reads out are not part of a folder: logits are those of the whole vocabulary.

    Args:
      network: of a `Decoder`, or of an `UnrolledDecoder` whose blocks have one shape: as many hidden units and query
        heads in each.
      folder: made if absent; must hold no network.
      tokenizer: a folder whose tokenizer files are copied.
      made_from: the network it was reduced from, whose digest is kept; by default itself.

    Raises:
      ValueError: another model, weights that do not fit it, blocks of different shapes, switches that no family has, a
        folder that holds a network, or a tokenizer folder without tokenizer files.
    """
    decoder, params = _stacked(network)
    family, config = _family(decoder.config)
    target = Path(folder)
    if there := [name for name in ("config.json", WEIGHTS, INDEX) if (target / name).exists()]:
        raise ValueError(f"got folder {target} that holds {there}, expected one without a network")
    copied = _tokenizer_files(tokenizer)
    digests = {"network": params_digest(network.params), "made_from": params_digest((made_from or network).params)}
    tensors = _tensors(family, params, config)
    with replaced(target / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt", **digests})
    for file in copied:
        shutil.copyfile(file, target / file.name)
    with replaced(target / "config.json") as partial:  # last: without it nobody takes the folder for a network
        partial.write_text(json.dumps(_FAMILIES[family].fields(config), indent=2), encoding="utf-8")


def require_made_from(folder: str | Path, network: Network) -> None:
    """Refuse a folder of `export_decoder` that was made from another network.

    Raises:
      ValueError: it was, or its weights are damaged or were not written by `export_decoder`.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read {path}: got {error}, expected safetensors") from error
    if not all(name in about for name in _DIGESTS):
        raise ValueError(f"got {path} with entries {sorted(about)}, expected {_DIGESTS}, as export_decoder writes")
    expected = params_digest(network.params)
    if about["made_from"] != expected:
        raise ValueError(f"got {path}, made from a network {about['made_from'][:12]}, expected {expected[:12]}")


def _stacked(network: Network) -> tuple[Decoder, Params]:
    if not isinstance(network.model, Decoder | UnrolledDecoder):
        kind = type(network.model).__name__
        raise ValueError(f"got a network of a {kind}, expected a Decoder or an UnrolledDecoder")
    check_network(network)
    if isinstance(network.model, Decoder):
        return network.model, network.params
    try:
        return stacked_decoder(*even_heads(network.model, network.params))
    except ValueError as error:
        raise ValueError(f"{error}; abstraction.artifacts.save keeps a network of any shapes") from error


def _family(config: DecoderConfig) -> tuple[str, DecoderConfig]:
    """Return the family that can say all of a configuration, and the configuration with the biases it has there."""
    misses = {}
    for name, family in _FAMILIES.items():
        if family.divides and config.width % config.heads:
            misses[name] = f"a width that {config.heads} heads divide"
            continue
        biased = replace(config, **family.biases(config))
        try:
            said = config_from_hub(family.fields(biased))
        except ValueError as error:
            misses[name] = str(error)
            continue
        differ = [one.name for one in fields(config) if not _alike(getattr(said, one.name), getattr(biased, one.name))]
        if not differ:
            return name, biased
        misses[name] = ", ".join(differ)
    raise ValueError(
        f"got {config}, which no family carries (what each cannot say: {misses}), expected the switches of one of "
        f"{list(_FAMILIES)}; abstraction.artifacts.save keeps any network"
    )


def _alike(said: Any, meant: Any) -> bool:
    numbers = isinstance(said, float) and isinstance(meant, float)
    return math.isclose(said, meant, rel_tol=1e-12) if numbers else said == meant


def _tensors(family: str, params: Params, config: DecoderConfig) -> dict[str, np.ndarray]:
    """Return what transformers stores, by its names and in its layouts."""
    flat = {path: np.asarray(leaf) for path, leaf in flat_parameters(params).items()}
    for switch, maps in _MAPS.items():
        for name in maps if getattr(config, switch) else ():
            kernel = flat.get(f"blocks/{name}/kernel")
            if kernel is not None:
                flat.setdefault(f"blocks/{name}/bias", np.zeros((len(kernel), kernel.shape[-1]), kernel.dtype))
    table, parts = TABLES[family], {}
    for path, array in flat.items():
        origin = table[path]
        for block, leaf in enumerate(array if "{}" in origin.name else array[None]):
            tensor = leaf.T if origin.transposed else leaf
            place = origin.fused.index(origin.part) if origin.fused else 0
            parts.setdefault(origin.name.format(block), {})[place] = tensor
    prefix = _FAMILIES[family].prefix
    joined = {name: np.concatenate([held[part] for part in sorted(held)], axis=-1) for name, held in parts.items()}
    return {name if name == HEAD else prefix + name: np.ascontiguousarray(leaf) for name, leaf in joined.items()}


def _tokenizer_files(folder: str | Path | None) -> list[Path]:
    if folder is None:
        return []
    found = [Path(folder) / name for name in _TOKENIZER if (Path(folder) / name).is_file()]
    if not found:
        raise ValueError(f"got tokenizer folder {folder}, expected one with some of {_TOKENIZER}")
    return found


def _gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": config.vocabulary,
        "n_embd": config.width, "n_layer": config.depth, "n_head": config.heads, "n_inner": config.hidden,
        "n_positions": config.learned_positions, "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": _FUNCTIONS[config.activation], "scale_attn_weights": config.query_scale is None,
        "tie_word_embeddings": config.tied, "torch_dtype": config.dtype,
    }  # fmt: skip


def _rotary(config: DecoderConfig, kind: str, name: str) -> dict[str, Any]:
    rope, scaling = config.rope_scaling, None
    if rope is not None:
        scaling = {
            "rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low, "high_freq_factor": rope.high,
            "original_max_position_embeddings": rope.context,
        }  # fmt: skip
    return {
        "model_type": kind, "architectures": [name], "vocab_size": config.vocabulary, "hidden_size": config.width,
        "num_hidden_layers": config.depth, "num_attention_heads": config.heads, "head_dim": config.head_size,
        "num_key_value_heads": config.kv_heads, "intermediate_size": config.hidden, "rope_theta": config.rope_theta,
        "rope_scaling": scaling, "rms_norm_eps": config.norm_epsilon, "hidden_act": _FUNCTIONS[config.activation],
        "tie_word_embeddings": config.tied, "torch_dtype": config.dtype,
    }  # fmt: skip


def _qwen2(config: DecoderConfig) -> dict[str, Any]:
    return _rotary(config, "qwen2", "Qwen2ForCausalLM")


def _llama(config: DecoderConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.output_bias, "mlp_bias": config.mlp_bias}
    return _rotary(config, "llama", "LlamaForCausalLM") | biases


def _qwen3(config: DecoderConfig) -> dict[str, Any]:
    return _rotary(config, "qwen3", "Qwen3ForCausalLM") | {
        "attention_bias": config.output_bias, "use_sliding_window": False,
    }  # fmt: skip


def _seed_oss(config: DecoderConfig) -> dict[str, Any]:
    return _rotary(config, "seed_oss", "SeedOssForCausalLM") | {
        "attention_bias": config.qkv_bias, "attention_out_bias": config.output_bias, "mlp_bias": config.mlp_bias,
    }  # fmt: skip


def _mistral(config: DecoderConfig) -> dict[str, Any]:
    return _rotary(config, "mistral", "MistralForCausalLM") | {"sliding_window": config.window}


def _gemma2(config: DecoderConfig) -> dict[str, Any]:
    kinds = config.windowed or (False,) * config.depth
    return _rotary(config, "gemma2", "Gemma2ForCausalLM") | {
        "attention_bias": config.output_bias, "hidden_activation": _FUNCTIONS[config.activation],
        "query_pre_attn_scalar": round(config.score_scale**-2), "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.final_cap, "sliding_window": config.window or 4096,
        "layer_types": ["sliding_attention" if kind else "full_attention" for kind in kinds],
    }  # fmt: skip


def _attention_biases(config: DecoderConfig) -> dict[str, Any]:
    """One switch for all maps of attention: those without a bias get zeros."""
    either = config.qkv_bias or config.output_bias
    return {"qkv_bias": either, "output_bias": either}


class _Family(NamedTuple):
    """How one family writes a network.

    Attributes:
      fields: of its configuration.
      biases: the switches of biases, once the configuration is read.
      prefix: of the names of its weights.
      divides: transformers takes it only where the number of heads divides the width.
    """

    fields: Callable[[DecoderConfig], dict[str, Any]]
    biases: Callable[[DecoderConfig], dict[str, Any]]
    prefix: str = "model."
    divides: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "gpt2": _Family(_gpt2, lambda config: {}, "transformer."),
    "qwen2": _Family(_qwen2, lambda config: {}),
    "llama": _Family(_llama, _attention_biases, divides=True),
    "mistral": _Family(_mistral, lambda config: {}),
    "qwen3": _Family(_qwen3, _attention_biases),
    "gemma2": _Family(
        _gemma2, lambda config: _attention_biases(config) | {"query_scale": config.score_scale}, divides=True
    ),
    "seed_oss": _Family(_seed_oss, lambda config: {}),
}
