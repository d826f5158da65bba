"""Weights of transformers' decoders from a folder, the Hugging Face hub, or a GGUF file.

The files are safetensors, whole or sharded, and are read without PyTorch. Each of our parameters is filled block by
block from the tensors that the family's table names, so that no more than one of them exists twice. PyTorch stores
linear maps as [out, in], ours are [in, out]; GPT-2 stores [in, out]. Some families store maps of one input as one:
query, key and value side by side (GPT-2, Phi-3) or head by head (GPT-NeoX), gate and up side by side (Phi-3).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open

from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig, Precision
from abstraction.models.decoder_files import nested_parameters, parameter_shapes, require_alike
from abstraction.models.gguf_files import Stored, is_gguf, read_gguf
from abstraction.models.hub_configs import config_from_hub
from abstraction.models.hub_files import PATTERNS, network_folder, read_json, weight_files
from abstraction.models.hub_tables import HEAD, TABLES, Origin, outputs_of
from abstraction.models.meshes import check_mesh, weight_on_mesh
from abstraction.models.network import Network

_FLOATS = ("F32", "BF16", "F16", "F64")
# Tables that older versions stored: causal masks, the frequencies of rotations.
_BUFFERS = re.compile(
    r"(h\.\d+\.attn|layers\.\d+\.attention)\.(masked_)?bias|(layers\.\d+\.(self_attn|attention)\.)?rotary_emb\.inv_freq"
)
_PREFIX = re.compile(r"^(model|transformer|gpt_neox)\.")
_BLOCK = re.compile(r"(?:h|layers)\.(\d+)\.")


def load_decoder(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: Precision | None = None,
    answers: Sequence[Sequence[int]] = (),
    rest: bool = False,
    mesh: Mesh | None = None,
) -> Network:
    """Load a network of transformers.

    Args:
      source: a folder with `config.json` and `model.safetensors` or its shards, a GGUF file, which is dequantised
        (extra `hub`), or else the name of a repository on the hub, which is downloaded (extra `hub`).
      revision: branch, tag or commit on the hub.
      dtype: of weights and activations; by default what `config.json` says, float32 where nothing is said.
      answers: see `Decoder`.
      rest: see `Decoder`.
      mesh: where the weights go, each to its devices as it is read: none of them need hold all (`device_mesh`).

    Returns:
      A network whose model is a `Decoder`.

    Raises:
      ValueError: no such source, a configuration that has no counterpart, or tensors that are missing, unknown, of
        another shape or not finite; names the file, and the field or tensor; or a mesh that cannot share them.
      OSError: the hub cannot be reached, or has no such network for you.
      ImportError: a download without `huggingface_hub`, or a GGUF file without `gguf`.
    """
    with ExitStack() as stack:
        place, fields, stored = _opened(source, revision, dtype, stack)
        config = _config(place, fields, blocks=_blocks(stored))
        decoder = Decoder(config, tuple(map(tuple, answers)), rest)
        wanted = parameter_shapes(decoder)
        family = TABLES[fields["model_type"]]
        table = {path: family[path] for path in wanted}
        _require_tensors(stored, table, wanted, config)
        if mesh is not None:
            check_mesh(decoder, mesh)
        filled = {}
        for path, origin in table.items():
            array = _filled(stored, origin, wanted[path], config)
            if path == "embedding" and config.tied and HEAD in stored:
                _require_tied(stored[HEAD].read(), array)
            filled[path] = jnp.asarray(array) if mesh is None else weight_on_mesh(decoder, path, array, mesh)
    return Network(decoder, nested_parameters(filled))


def load_config(source: str | Path, *, revision: str | None = None, dtype: Precision | None = None) -> DecoderConfig:
    """Read what a network is made of, without its weights; see `load_decoder`."""
    if is_gguf(source):
        return _config(Path(source), _of_dtype(read_gguf(source).fields, dtype))
    folder = network_folder(source, revision, PATTERNS[:1])
    return _config(folder / "config.json", _fields(folder, dtype))


def _opened(
    source: str | Path, revision: str | None, dtype: Precision | None, stack: ExitStack
) -> tuple[Path, Mapping[str, Any], dict[str, Stored]]:
    """Return where a network is described, how, and its tensors."""
    if is_gguf(source):
        if revision is not None:
            raise ValueError(f"got revision {revision!r} for the file {source}, expected None")
        file = read_gguf(source)
        return Path(source), _of_dtype(file.fields, dtype), file.tensors
    folder = network_folder(source, revision, PATTERNS)
    return folder / "config.json", _fields(folder, dtype), _stored(weight_files(folder), stack)


def _of_dtype(fields: Mapping[str, Any], dtype: Precision | None) -> Mapping[str, Any]:
    return fields if dtype is None else {**fields, "dtype": dtype}


def _fields(folder: Path, dtype: Precision | None) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"got {folder} without config.json, expected a folder written by transformers")
    return _of_dtype(read_json(path), dtype)


def _config(place: Path, fields: Mapping[str, Any], blocks: int | None = None) -> DecoderConfig:
    try:
        return config_from_hub(fields, blocks=blocks)
    except ValueError as error:
        raise ValueError(f"cannot use {place}: {error}") from error


def _stored(files: Sequence[Path], stack: ExitStack) -> dict[str, Stored]:
    """Open the files and return their tensors by name without prefix."""
    stored: dict[str, Stored] = {}
    for path in files:
        try:
            file = stack.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            raise ValueError(f"cannot read {path}: got {error}, expected safetensors") from error
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            view, plain = file.get_slice(name), _PREFIX.sub("", name)
            plain = HEAD if plain == "embed_out.weight" else plain  # what transformers called GPT-NeoX's head
            if plain in stored:
                raise ValueError(f"got tensors {stored[plain].name} and {name}, expected one of them")
            if view.get_dtype() not in _FLOATS and not _BUFFERS.fullmatch(plain):
                raise ValueError(f"got tensor {name} of type {view.get_dtype()}, expected one of {_FLOATS}")
            stored[plain] = Stored(name, tuple(view.get_shape()), partial(file.get_tensor, name))
    return stored


def _blocks(stored: Mapping[str, Stored]) -> int:
    """Count the blocks that there are tensors of."""
    return len({match[1] for name in stored if (match := _BLOCK.match(name)) and not _BUFFERS.fullmatch(name)})


def _require_tensors(
    stored: Mapping[str, Stored], table: Mapping[str, Origin], wanted: Mapping, config: DecoderConfig
) -> None:
    """Refuse names that are missing or unknown, and other shapes; nothing is read."""
    shapes: dict[str, list[int]] = {}
    for path, origin in table.items():
        shape = list(wanted[path].shape[path.startswith("blocks/") :])
        if origin.fused:
            shape[-1] = sum(outputs_of(config, name) for name in origin.fused)
        shapes |= {name: shape[::-1] if origin.transposed else shape for name in _names(origin, config.depth)}
    ignored = {name for name in stored if _BUFFERS.fullmatch(name) or name == HEAD} - set(shapes)
    found = {name: list(tensor.shape) for name, tensor in stored.items() if name not in ignored}
    require_alike("tensors", found, shapes)


def _filled(
    stored: Mapping[str, Stored], origin: Origin, wanted: jax.ShapeDtypeStruct, config: DecoderConfig
) -> np.ndarray:
    """Read one parameter, all blocks of it."""
    array = np.empty(wanted.shape, wanted.dtype)
    rows = array if "{}" in origin.name else array[None]
    for row, name in enumerate(_names(origin, len(rows))):
        tensor = stored[name].read()
        with np.errstate(over="ignore"):  # what overflows is refused as what is not finite
            rows[row] = origin.taken(tensor.T if origin.transposed else tensor, config)
        if not np.isfinite(rows[row]).all():
            raise ValueError(f"got tensor {stored[name].name} with values that are not finite, expected finite weights")
    return array


def _names(origin: Origin, depth: int) -> Iterator[str]:
    return (origin.name.format(block) for block in range(depth if "{}" in origin.name else 1))


def _require_tied(head: np.ndarray, embedding: np.ndarray) -> None:
    if not np.array_equal(head.astype(embedding.dtype), embedding):
        raise ValueError(f"got {HEAD} that is not the embedding, expected equal ones where tie_word_embeddings is set")
