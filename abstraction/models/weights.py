"""Weights of GPT-2, Llama, Qwen2 and Gemma-2 from a folder or the Hugging Face hub.

The files are safetensors, whole or sharded, and are read without PyTorch. Each of our parameters is filled block by
block from the tensors that the family's table names, so that no more than one of them exists twice. PyTorch stores
linear maps as [out, in], ours are [in, out]; GPT-2 stores [in, out], with query, key and value side by side.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig, Precision
from abstraction.models.decoder_files import nested_parameters, parameter_shapes, require_alike
from abstraction.models.hub_configs import config_from_hub
from abstraction.models.hub_files import PATTERNS, network_folder, read_json, weight_files
from abstraction.models.network import Network

_FLOATS = ("F32", "BF16", "F16", "F64")
# Tables that older versions stored: causal masks, the frequencies of rotations.
_BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_BLOCK = re.compile(r"(?:h|layers)\.(\d+)\.")


class Origin(NamedTuple):
    """Where a parameter comes from.

    Attributes:
      name: of the tensor, without `model.` or `transformer.`; `{}` is the block.
      transposed: it is stored as [out, in].
      part: which third of the last axis it is, or None for all of it.
    """

    name: str
    transposed: bool = False
    part: int | None = None


class _Stored(NamedTuple):
    file: Any
    name: str
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        return self.file.get_tensor(self.name)


def load_decoder(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: Precision | None = None,
    answers: Sequence[Sequence[int]] = (),
    rest: bool = False,
) -> Network:
    """Load a network of transformers.

    Args:
      source: a folder with `config.json` and `model.safetensors` or its shards, or else the name of a repository on
        the hub, which is downloaded (extra `hub`).
      revision: branch, tag or commit on the hub.
      dtype: of weights and activations; by default what `config.json` says, float32 where it says nothing.
      answers: see `Decoder`.
      rest: see `Decoder`.

    Returns:
      A network whose model is a `Decoder`.

    Raises:
      ValueError: no such source, a configuration that has no counterpart, or tensors that are missing, unknown, of
        another shape or not finite; names the file, and the field or tensor.
      OSError: the hub cannot be reached, or has no such network for you.
      ImportError: a download without `huggingface_hub`.
    """
    folder = network_folder(source, revision, PATTERNS)
    fields = _fields(folder, dtype)
    with ExitStack() as stack:
        stored = _stored(weight_files(folder), stack)
        config = _config(folder, fields, blocks=_blocks(stored))
        decoder = Decoder(config, tuple(map(tuple, answers)), rest)
        wanted = parameter_shapes(decoder)
        family = _TABLES[fields["model_type"]]
        table = {path: family[path] for path in wanted}
        _require_tensors(stored, table, wanted, config.depth)
        filled = {path: jnp.asarray(_filled(stored, origin, wanted[path])) for path, origin in table.items()}
        if config.tied and _HEAD in stored:
            _require_tied(stored[_HEAD].array(), filled["embedding"])
    return Network(decoder, nested_parameters(filled))


def load_config(source: str | Path, *, revision: str | None = None, dtype: Precision | None = None) -> DecoderConfig:
    """Read what a network is made of, without its weights; see `load_decoder`."""
    folder = network_folder(source, revision, PATTERNS[:1])
    return _config(folder, _fields(folder, dtype))


def origins(family: str) -> Mapping[str, Origin]:
    """Return which tensor each parameter is in, by its path; `family` is the `model_type` of a `config.json`."""
    return _TABLES[family]


def _fields(folder: Path, dtype: Precision | None) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"got {folder} without config.json, expected a folder written by transformers")
    fields = read_json(path)
    return fields if dtype is None else {**fields, "dtype": dtype}


def _config(folder: Path, fields: Mapping[str, Any], blocks: int | None = None) -> DecoderConfig:
    try:
        return config_from_hub(fields, blocks=blocks)
    except ValueError as error:
        raise ValueError(f"cannot use {folder / 'config.json'}: {error}") from error


def _stored(files: Sequence[Path], stack: ExitStack) -> dict[str, _Stored]:
    """Open the files and return their tensors by name without prefix."""
    stored: dict[str, _Stored] = {}
    for path in files:
        try:
            file = stack.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"cannot read {path}: got {error}, expected safetensors") from error
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            view, plain = file.get_slice(name), re.sub(r"^(model|transformer)\.", "", name)
            if plain in stored:
                raise ValueError(f"got tensors {stored[plain].name} and {name}, expected one of them")
            if view.get_dtype() not in _FLOATS and not _BUFFERS.fullmatch(plain):
                raise ValueError(f"got tensor {name} of type {view.get_dtype()}, expected one of {_FLOATS}")
            stored[plain] = _Stored(file, name, tuple(view.get_shape()))
    return stored


def _blocks(stored: Mapping[str, _Stored]) -> int:
    """Count the blocks that there are tensors of."""
    return len({match[1] for name in stored if (match := _BLOCK.match(name)) and not _BUFFERS.fullmatch(name)})


def _require_tensors(stored: Mapping[str, _Stored], table: Mapping[str, Origin], wanted: Mapping, depth: int) -> None:
    """Refuse names that are missing or unknown, and other shapes; nothing is read."""
    shapes: dict[str, list[int]] = {}
    for path, origin in table.items():
        shape = list(wanted[path].shape[path.startswith("blocks/") :])
        if origin.part is not None:
            shape[-1] *= 3
        shapes |= {name: shape[::-1] if origin.transposed else shape for name in _names(origin, depth)}
    ignored = {name for name in stored if _BUFFERS.fullmatch(name) or name == _HEAD} - set(shapes)
    found = {name: list(tensor.shape) for name, tensor in stored.items() if name not in ignored}
    require_alike("tensors", found, shapes)


def _filled(stored: Mapping[str, _Stored], origin: Origin, wanted: jax.ShapeDtypeStruct) -> np.ndarray:
    """Read one parameter, all blocks of it."""
    array = np.empty(wanted.shape, wanted.dtype)
    rows = array if "{}" in origin.name else array[None]
    for row, name in enumerate(_names(origin, len(rows))):
        tensor = stored[name].array()
        if origin.part is not None:
            tensor = np.split(tensor, 3, axis=-1)[origin.part]
        with np.errstate(over="ignore"):  # what overflows is refused as what is not finite
            rows[row] = tensor.T if origin.transposed else tensor
        if not np.isfinite(rows[row]).all():
            raise ValueError(f"got tensor {stored[name].name} with values that are not finite, expected finite weights")
    return array


def _names(origin: Origin, depth: int) -> Iterator[str]:
    return (origin.name.format(block) for block in range(depth if "{}" in origin.name else 1))


def _require_tied(head: np.ndarray, embedding: jax.Array) -> None:
    if not np.array_equal(head.astype(embedding.dtype), embedding):
        raise ValueError(f"got {_HEAD} that is not the embedding, expected equal ones where tie_word_embeddings is set")


_HEAD = "lm_head.weight"


def _linear(path: str, name: str, **switches: Any) -> dict[str, Origin]:
    """Return kernel and bias; a family without the bias has no use for its row."""
    kernel, bias = Origin(f"{name}.weight", **switches), Origin(f"{name}.bias", part=switches.get("part"))
    return {f"{path}/kernel": kernel, f"{path}/bias": bias}


def _norm(path: str, name: str) -> dict[str, Origin]:
    return {f"{path}/scale": Origin(f"{name}.weight"), f"{path}/bias": Origin(f"{name}.bias")}


_GPT2 = {
    "embedding": Origin("wte.weight"),
    "positions": Origin("wpe.weight"),
    "unembedding": Origin(_HEAD),
    **_norm("final_norm", "ln_f"),
    **_norm("blocks/attention_norm", "h.{}.ln_1"),
    **_norm("blocks/mlp_norm", "h.{}.ln_2"),
    **_linear("blocks/query", "h.{}.attn.c_attn", part=0),
    **_linear("blocks/key", "h.{}.attn.c_attn", part=1),
    **_linear("blocks/value", "h.{}.attn.c_attn", part=2),
    **_linear("blocks/output", "h.{}.attn.c_proj"),
    **_linear("blocks/up", "h.{}.mlp.c_fc"),
    **_linear("blocks/down", "h.{}.mlp.c_proj"),
}
_LLAMA = {
    "embedding": Origin("embed_tokens.weight"),
    "unembedding": Origin(_HEAD),
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
_TABLES: Mapping[str, Mapping[str, Origin]] = {"gpt2": _GPT2, "llama": _LLAMA, "qwen2": _LLAMA, "gemma2": _GEMMA2}
