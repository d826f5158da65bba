"""Weights of a chain of layers by the names and in the layouts of PyTorch. No PyTorch."""

import jax
import numpy as np

from abstraction.models.layers import BatchNorm, Convolution, Dense, Flatten
from abstraction.models.mlp import MLP
from abstraction.models.network import Network, check_network
from abstraction.models.sequential import Sequential
from abstraction.models.unrolling import unrolled

_NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def params_to_torch(network: Network) -> dict[str, np.ndarray]:
    """Return the state dict of the `torch.nn.Sequential` whose modules have the layers' names.

    Dense maps become [out, in] and convolutions [out, in, ...]. PyTorch has channels first, so what reads flattened
    channels has its inputs in the order of `torch.nn.Flatten`. `num_batches_tracked`, which no output depends on, is
    not among them.

    Args:
      network: of a `Sequential`, or of an `MLP`, whose layers are `dense0`, `hidden0`, ..., `head`.

    Raises:
      ValueError: another model, weights that do not fit it, or layers without a counterpart: a bias per position, or a
        dense map of inputs that have positions.
    """
    if not isinstance(network.model, Sequential | MLP):
        raise ValueError(f"got a network of a {type(network.model).__name__}, expected a Sequential or an MLP")
    check_network(network)
    model, params = network.model, network.params
    if isinstance(model, MLP):
        model, params = unrolled(model, params)
    shape, order, state = model.inputs, None, {}
    for layer in model.layers:
        if isinstance(layer, Flatten):
            order = np.moveaxis(np.arange(np.prod(shape)).reshape(shape), -1, 0).ravel()
        arrays = {name: np.asarray(leaf) for name, leaf in jax.device_get(params.get(layer.name, {})).items()}
        if isinstance(layer, Convolution) and layer.bias_map:
            raise ValueError(f"got layer {layer.name!r} with a bias per position, expected one per channel")
        if isinstance(layer, Dense) and len(shape) > 1:
            raise ValueError(f"got dense layer {layer.name!r} on inputs {shape}, expected Flatten before it")
        if order is not None and isinstance(layer, Dense):
            arrays["kernel"], order = arrays["kernel"][order], None
        elif order is not None and isinstance(layer, BatchNorm):
            arrays = {name: leaf[order] for name, leaf in arrays.items()}
        state |= {f"{layer.name}.{_NAMES[name]}": _turned(leaf) for name, leaf in arrays.items()}
        shape = layer.output_shape(shape)
    return state


def _turned(leaf: np.ndarray) -> np.ndarray:
    """Bring outputs and inputs to the front."""
    axes = (leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2)) if leaf.ndim > 1 else (0,)
    return np.ascontiguousarray(leaf.transpose(axes))
