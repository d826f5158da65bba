"""What a `config.json` of the Hugging Face hub says about a decoder, whatever family it is of.

Every field is used, known not to matter here, or refused: a switch that is overlooked is another network. Private
fields (`_name_or_path`, `_attn_implementation_autoset`) say how transformers runs, never what it computes. Names are
those of transformers, before version 5 (`rope_theta`, `rope_scaling`) and since (`rope_parameters`).
"""

from collections.abc import Mapping
from typing import Any

from abstraction.models.decoder_config import DecoderConfig, is_count
from abstraction.models.hub_families import FAMILIES
from abstraction.models.hub_readers import only

# What says nothing about logits without training: names, tokens, dropout, heads of other tasks, how transformers runs.
_IGNORED = {
    "architectures", "auto_map", "transformers_version",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "tokenizer_class", "task_specific_params",
    "attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "id2label", "label2id", "num_labels", "problem_type",
    "cache_implementation", "use_cache", "chunk_size_feed_forward", "gradient_checkpointing",
    "hidden_dropout", "residual_dropout", "classifier_dropout", "quantization_config", "is_decoder",
    "reorder_and_upcast_attn", "pretraining_tp", "return_dict", "output_attentions", "output_hidden_states",
}  # fmt: skip
_DEPTHS = ("num_hidden_layers", "n_layer")
_MOST_BLOCKS = 10_000


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
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"got model_type {kind!r}, expected one of {sorted(FAMILIES)}")
    left = {name: value for name, value in fields.items() if name != "model_type" and not name.startswith("_")}
    _check_depth(left, blocks)
    try:
        only(left.pop, "is_encoder_decoder", False)
        config = FAMILIES[kind](left.pop)
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
