"""A network on a mesh of devices: what runs it finds the mesh there, and shares its work out (`abstraction.sharding`).

Along `model` the arrays of a decoder are split as Megatron splits them (Shoeybi et al. 2019), so that between two
all-reduces a block every device has its own heads and its own units:

    query, key, value, gate, up     by what they make: heads, units          [D, units / M]
    output, down                    by what they read                        [units / M, D]
    embedding, unembedding          by tokens                                [V / M, D]

Norms, biases of what is summed and learned positions are on every device, and so are keys and values of fewer heads
than devices share, and a vocabulary that they cannot share equally. All is on every device along the other axes.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from abstraction.models.decoder_blocks import Past
from abstraction.models.decoder_config import DecoderConfig
from abstraction.models.network import Network
from abstraction.sharding import AXES, MODEL, PAIRS, put

_MADE, _READ, _TOKENS = ("query", "key", "value", "gate", "up"), ("output", "down"), ("embedding", "unembedding")


def on_mesh(network: Network, mesh: Mesh) -> Network:
    """Put the weights of a network on a mesh, or say of shapes (`jax.ShapeDtypeStruct`) that they are there.

    Args:
      network: the network.
      mesh: what `device_mesh` returns.

    Raises:
      ValueError: another mesh, or several devices along `model` for a network that is no decoder, or that cannot share
        its heads or units equally.
    """
    check_mesh(network.model, mesh)
    config = _config(network.model)

    def split(path: tuple[Any, ...], leaf: Any) -> Any:
        names = {str(getattr(part, "key", getattr(part, "name", part))) for part in path}
        where = NamedSharding(mesh, PartitionSpec() if config is None else _split(names, leaf, config, mesh))
        return put(leaf, where)

    return Network(network.model, jax.tree_util.tree_map_with_path(split, network.params))


def weight_on_mesh(decoder: Any, path: str, leaf: Any, mesh: Mesh) -> Any:
    """Put one array of a decoder where `on_mesh` would.

    Args:
      decoder: whose it is.
      path: of the array, such as `blocks/query/kernel`.
      leaf: the array, of the host.
      mesh: what `device_mesh` returns.
    """
    return put(leaf, NamedSharding(mesh, _split(set(path.split("/")), leaf, decoder.config, mesh)))


def check_mesh(model: Any, mesh: Mesh) -> None:
    """Refuse what is no mesh of `device_mesh`, and one that cannot share a network's arrays.

    Raises:
      ValueError: as `on_mesh`.
    """
    if not isinstance(mesh, Mesh) or mesh.axis_names != AXES:
        raise ValueError(f"got {mesh}, expected a mesh with axes {AXES}, from `device_mesh`")
    if mesh.shape[MODEL] > 1:
        _check(model, _config(model), mesh.shape[MODEL])


def split_inputs(mesh: Mesh | None, inputs: Any) -> Any:
    """Split recorded inputs by pairs, and keys and values of earlier tokens by heads too, where devices share them.

    Args:
      mesh: where; None leaves arrays as they are.
      inputs: what a model has recorded, arrays or shapes that lead with N.
    """
    if mesh is None:
        return inputs
    size, pairs = mesh.shape[MODEL], NamedSharding(mesh, PartitionSpec(PAIRS))
    heads = NamedSharding(mesh, PartitionSpec(PAIRS, MODEL))

    def split(part: Any) -> Any:
        if not isinstance(part, Past):
            return put(part, pairs)
        return Past(*(put(leaf, pairs if leaf.shape[1] % size else heads) for leaf in part))

    return jax.tree.map(split, inputs, is_leaf=lambda part: isinstance(part, Past))


def _config(model: Any) -> DecoderConfig | None:
    """Return the configuration of a decoder, or of one that is seen at some tokens."""
    config = getattr(getattr(model, "decoder", model), "config", None)
    return config if isinstance(config, DecoderConfig) else None


def _check(model: Any, config: DecoderConfig | None, size: int) -> None:
    if config is None:
        raise ValueError(
            f"got model={size} for a {type(model).__name__}, expected 1: only a decoder's arrays are split"
        )
    shapes = getattr(getattr(model, "decoder", model), "shapes", None) or (config.block,)
    for shape in shapes:
        if shape.heads % size or shape.hidden % size:
            raise ValueError(
                f"got model={size} for {shape.heads} heads and {shape.hidden} units, expected a divisor of both"
            )


def _split(names: set[str], leaf: Any, config: DecoderConfig, mesh: Mesh) -> PartitionSpec:
    size = mesh.shape[MODEL]
    if names & set(_TOKENS):
        return PartitionSpec(MODEL) if leaf.shape[0] % size == 0 else PartitionSpec()
    bias = "bias" in names
    heads = leaf.shape[-1] // config.head_size
    if names & {"key", "value"} and heads % size:
        return PartitionSpec()
    if names & set(_MADE):
        return PartitionSpec(*[None] * (leaf.ndim - 1), MODEL)
    if names & set(_READ) and not bias:
        return PartitionSpec(*[None] * (leaf.ndim - 2), MODEL, None)
    return PartitionSpec()
