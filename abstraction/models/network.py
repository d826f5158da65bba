"""A network: a model and the weights it runs with, as one value.

A model says what is computed, its params with which numbers; neither is of use alone, so every function of this library
that runs something takes both as one `Network`. The model is part of the tree structure, the params are leaves: a
network goes through `jax.jit`, `jax.vmap` and `jax.grad` as any array does, and other weights never recompile.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from abstraction.models.base import Model, Shaped
from abstraction.models.taps import NO_EDITS, Edits, Tap
from abstraction.pytrees import pytree, static
from abstraction.sharding import on_host, to_device
from abstraction.typing import AnyArray, Outputs, Params

_LARGE = 2**22


@pytree
class Network:
    """A model and its weights.

    Attributes:
      model: what is computed; hashable, compared by value.
      params: its weights, a pytree of arrays.
    """

    model: Model = static()
    params: Params

    def __call__(
        self, inputs: Any, edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`."""
        return self.model.apply(self.params, inputs, edits, record)

    @property
    def taps(self) -> Mapping[str, Tap]:
        """The activations that can be recorded and edited, by name."""
        return self.model.taps

    def resume(self, tap: str, depth: Int[Array, ""], activation: Array, *, inputs: Any, states: Array) -> Outputs:
        """Run the rest of the network from the value of a tap at one depth; see `Model.resume`."""
        return self.model.resume(self.params, tap, depth, activation, inputs=inputs, states=states)


def on_device(network: Network) -> Network:
    """Put weights of the host on the device, once: a loop of programs would send them again for each.

    Weights that are on a device, or on a mesh, stay there.
    """
    return Network(network.model, to_device(network.params))


def check_network(network: Network) -> None:
    """Refuse weights that are not those of the model, or not numbers.

    Raises:
      ValueError: an array is missing, too many, of another shape, or holds values that are not finite; names it.
    """
    expected, arrays = _expected(network.model), named_params(network.params)
    found = {path: tuple(leaf.shape) for path, leaf in arrays.items()}
    if found != expected:
        path = min(path for path in {*found, *expected} if found.get(path) != expected.get(path))
        raise ValueError(
            f"got params{path} of shape {found.get(path, 'that is missing')}, expected "
            f"{expected.get(path, 'no such array')} for {network.model}"
        )
    if broken := [path for path, leaf in arrays.items() if not _is_finite(leaf)]:
        raise ValueError(f"got params{broken[0]} with values that are not finite, expected finite weights")


@cache
def _expected(model: Model) -> dict[str, tuple[int, ...]]:
    shapes = model.param_shapes() if isinstance(model, Shaped) else jax.eval_shape(model.init, jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in named_params(shapes).items()}


def named_params(params: Params) -> dict[str, Any]:
    """Return weights by their paths, random keys left out."""
    named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    # Random keys are no numbers to look at; those of a module's dropout are part of its state.
    return {
        path: leaf for path, leaf in named.items() if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    }


def _is_finite(leaf: AnyArray) -> bool:
    """Look at small arrays on the host, which compiles nothing, and at large ones where they are."""
    if leaf.size > _LARGE:
        return bool(jnp.isfinite(jnp.asarray(leaf)).all())
    return bool(np.isfinite(np.asarray(leaf)).all())


def params_digest(params: Params) -> str:
    """Return the SHA-256 of weights: paths, types, shapes and values. It is the identity of a trained network."""
    total = hashlib.sha256()
    for path, leaf in sorted(named_params(params).items()):
        values = np.ascontiguousarray(on_host(leaf))
        total.update(f"{path} {values.dtype.name} {values.shape}".encode())
        total.update(values.tobytes())
    return total.hexdigest()
