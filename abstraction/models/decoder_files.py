"""A decoder in a file of our own: every parameter under its path, the network's description in the header.

One file, so that the weights cannot be separated from what they are weights of.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig, RopeScaling
from abstraction.typing import Params

FILE = "decoder.safetensors"
_FORMAT = "abstraction decoder 1"
_SHOWN = 4


def save_decoder(folder: str | Path, decoder: Decoder, params: Params) -> None:
    """Write a decoder to a folder, where the file appears under its name only when complete.

    Raises:
      ValueError: the parameters are not the decoder's.
    """
    flat = flat_parameters(params)
    require_alike(f"parameters to save in {folder}", _kinds(flat), _kinds(parameter_shapes(decoder)))
    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in flat.items()}
    about = {"config": asdict(decoder.config), "answers": decoder.answers, "rest": decoder.rest}
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    # Named after the process, so that two that write the same decoder do not write into each other's file.
    partial = target.with_name(f".{FILE}.{os.getpid()}")
    try:
        save_file(arrays, partial, {"format": _FORMAT, "decoder": json.dumps(about)})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def read_decoder(folder: str | Path) -> tuple[Decoder, Params]:
    """Read what `save_decoder` has written.

    Raises:
      ValueError: the file is damaged, or is not a decoder's; what is wrong with it.
      FileNotFoundError: there is no such file.
    """
    path = Path(folder) / FILE
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"format {header.get('format')!r}, expected {_FORMAT!r}")
            decoder = _described(json.loads(header["decoder"]))
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        require_alike("arrays", _kinds(found), _kinds(parameter_shapes(decoder)))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read a decoder from {path}: {error}") from error
    return decoder, nested_parameters({name: jnp.asarray(array) for name, array in found.items()})


def parameter_shapes(decoder: Decoder) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of every parameter by its path, such as `blocks/query/kernel`; nothing is computed.

    Raises:
      ValueError: an impossible configuration or answer.
    """
    return flat_parameters(jax.eval_shape(decoder.init, jax.random.key(0)))


def flat_parameters(params: Params) -> dict[str, Any]:
    """Return every leaf by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested_parameters(flat: Mapping[str, Any]) -> Params:
    """Put every leaf where its path says."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def require_alike(what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse names that are missing or unknown, and values that differ.

    Raises:
      ValueError: naming the first few, what was got and what was expected.
    """
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if names:
        rows = [f"{name}: got {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}" for name in names]
        more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise ValueError(f"{what} do not fit the decoder: " + "; ".join(rows[:_SHOWN]) + more)


def _kinds(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in arrays.items()}


def _described(about: Mapping[str, Any]) -> Decoder:
    """Build the decoder that a header describes."""
    switches = dict(about["config"])
    names = {field.name for field in fields(DecoderConfig)}
    if set(switches) != names:
        raise ValueError(f"fields {sorted(set(switches) ^ names)} missing or unknown")
    scaling = switches["rope_scaling"]
    switches["rope_scaling"] = None if scaling is None else RopeScaling(**scaling)
    switches["windowed"] = tuple(switches["windowed"])
    return Decoder(DecoderConfig(**switches), tuple(map(tuple, about["answers"])), about["rest"])
