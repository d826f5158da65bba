"""A decoder in a file of our own: every parameter under its path, the network's description in the header.

One file, so that the weights cannot be separated from what they are weights of.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from abstraction.files import replaced
from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig, RopeScaling
from abstraction.models.network import Network
from abstraction.typing import Params

FILE = "decoder.safetensors"
_FORMAT = "abstraction decoder 1"
_SHOWN = 4

_LATER = ("local_rope_theta", "rope_factor", "rotated", "query_key_norms", "parallel")
"""Switches that files written before them do not have; they stand at their defaults."""


def save_decoder(network: Network, folder: str | Path) -> None:
    """Write a decoder to a folder, where the file appears under its name only when complete.

    Raises:
      ValueError: the model is no decoder, or the parameters are not its own, or not finite.
      OSError: the folder cannot be written; names it.
    """
    decoder = network.model
    if not isinstance(decoder, Decoder):
        raise ValueError(f"got a network of {type(decoder).__name__}, expected one of Decoder")
    flat = flat_parameters(network.params)
    require_alike(f"parameters to save in {folder}", _kinds(flat), _kinds(parameter_shapes(decoder)))
    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in flat.items()}
    _require_finite(arrays)
    about = {"config": asdict(decoder.config), "answers": decoder.answers, "rest": decoder.rest}
    with replaced(Path(folder) / FILE) as partial:
        save_file(arrays, partial, {"format": _FORMAT, "decoder": json.dumps(about)})


def read_decoder(folder: str | Path) -> Network:
    """Read what `save_decoder` has written.

    Raises:
      ValueError: the file is damaged, or is not a decoder's; what is wrong with it.
      FileNotFoundError: there is no such file.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"got {path}, which is no file, expected one that `save_decoder` has written")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"format {header.get('format')!r}, expected {_FORMAT!r}")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            decoder = _described(json.loads(header["decoder"]), slices)
            found = {name: file.get_tensor(name) for name in slices}
        require_alike("arrays", _kinds(found), _kinds(parameter_shapes(decoder)))
        _require_finite(found)
    except (SafetensorError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ValueError) as error:
        raise ValueError(f"cannot read a decoder from {path}: got {error}, expected what was saved") from error
    return Network(decoder, nested_parameters({name: jnp.asarray(array) for name, array in found.items()}))


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


def _require_finite(arrays: Mapping[str, Any]) -> None:
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise ValueError(f"got {broken[0]} with values that are not finite, expected finite weights")


def _described(about: Mapping[str, Any], arrays: Mapping[str, Any]) -> Decoder:
    """Build the decoder that a header describes, if its blocks are as many as the arrays'."""
    switches = dict(about["config"])
    names = {field.name for field in fields(DecoderConfig)}
    if wrong := {name for name in set(switches) ^ names if name in switches or name not in _LATER}:
        raise ValueError(f"fields {sorted(wrong)} missing or unknown")
    scaling = switches["rope_scaling"]
    switches["rope_scaling"] = None if scaling is None else RopeScaling(**scaling)
    switches["windowed"] = tuple(switches["windowed"])
    depths = {array.get_shape()[0] for name, array in arrays.items() if name.startswith("blocks/")}
    if depths != {switches["depth"]}:
        raise ValueError(f"depth {switches['depth']!r}, expected {sorted(depths)}, the blocks that there are arrays of")
    if not isinstance(about["rest"], bool):
        raise ValueError(f"rest {about['rest']!r}, expected true or false")
    return Decoder(DecoderConfig(**switches), tuple(map(tuple, about["answers"])), about["rest"])
