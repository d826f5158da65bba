"""The same multilayer perceptron in two forms: `MLP`, which scans over its layers, and a chain of layers.

The scan compiles once for any depth and wants layers of equal width; in the chain every layer may have its own, so it
is the form to reduce.
"""

import jax
import jax.numpy as jnp

from abstraction.models.layers import Activation, Dense
from abstraction.models.mlp import MLP
from abstraction.models.sequential import Sequential
from abstraction.typing import Params


def unrolled(mlp: MLP, params: Params) -> tuple[Sequential, Params]:
    """Write an MLP that scans over its layers as a chain, whose layers may then differ in width.

    Returns:
      The network, with layers `dense0`, `hidden0`, `dense1`, ..., `head`, and its params.
    """
    hidden = tuple(
        layer
        for depth in range(mlp.depth)
        for layer in (Dense(f"dense{depth}", mlp.width), Activation(f"hidden{depth}", mlp.activation))
    )
    blocks = [jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"]) for index in range(mlp.depth - 1)]
    arrays = {f"dense{depth}": dict(block) for depth, block in enumerate([params["stem"], *blocks])}
    return Sequential((mlp.inputs,), (*hidden, Dense("head", mlp.outputs))), {**arrays, "head": dict(params["head"])}


def stacked(sequential: Sequential, params: Params) -> tuple[MLP, Params]:
    """Write a chain of dense layers of equal width as an MLP that scans over them: `unrolled`, backwards.

    Raises:
      ValueError: the chain is not dense, activation, ..., dense with biases, one width and one activation.
    """
    dense, functions = sequential.layers[::2], sequential.layers[1::2]
    widths = {layer.features for layer in dense[:-1] if isinstance(layer, Dense)}
    names = {layer.function for layer in functions if isinstance(layer, Activation)}
    alternates = all(isinstance(layer, Dense) and layer.use_bias for layer in dense) and all(
        isinstance(layer, Activation) for layer in functions
    )
    flat = len(sequential.inputs) == 1 and len(sequential.layers) % 2 == 1
    if not (alternates and flat and len(widths) == len(names) == 1):
        raise ValueError(
            f"got layers {sequential.layers} on inputs {sequential.inputs}, expected dense layers with biases, all "
            "hidden ones of one width, with one and the same activation between"
        )
    arrays = [params[layer.name] for layer in dense]
    tree = {"stem": dict(arrays[0]), "head": dict(arrays[-1])}
    if len(arrays) > 2:
        tree["blocks"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays[1:-1])
    mlp = MLP(sequential.inputs[0], widths.pop(), len(functions), sequential.taps["logits"].width, names.pop())
    return mlp, tree
