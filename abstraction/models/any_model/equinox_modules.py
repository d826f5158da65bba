"""Marks on what Equinox modules return: a copy in which each has a subclass of its own class.

An Equinox module is a pytree, so a copy is a tree of other objects with the same arrays, and what is not an array is
part of the structure. It computes one example by convention; `EquinoxCall` maps it over a batch.
"""

import dataclasses
import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, cast

import jax

from abstraction.models.any_model.program import called
from abstraction.typing import Params


def is_equinox(value: Any) -> bool:
    """Tell an Equinox module; whoever has one has imported Equinox."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(value, equinox.Module)


@dataclass(frozen=True)
class EquinoxCall:
    """Map a module over a batch of examples: `module, inputs -> outputs`."""

    def __call__(self, module: Any, inputs: Any) -> Any:
        return jax.vmap(module)(inputs)


@dataclass(frozen=True)
class EquinoxCarrier:
    """An Equinox module without its arrays; compares by value.

    Attributes:
      tree: its structure.
      leaves: what is no array, or the path of what is, in the order of leaves.
    """

    tree: Any
    leaves: tuple[Any, ...]

    def join(self, params: Params) -> Any:
        """Return the module."""
        found = [params[leaf.path] if isinstance(leaf, ArrayAt) else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.tree, found)


class ArrayAt(NamedTuple):
    """Where an array was."""

    path: str


def split_equinox(module: Any) -> tuple[EquinoxCarrier, Params]:
    """Return a marked copy of a module, without its arrays, and these by path: `layers/0/weight`."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(_copied(module, ()))
    is_array, params, kept = sys.modules["equinox"].is_array, {}, []
    for path, leaf in leaves:
        name = "/".join(str(getattr(part, "name", getattr(part, "idx", getattr(part, "key", part)))) for part in path)
        if is_array(leaf):
            params[name] = leaf
        kept.append(ArrayAt(name) if is_array(leaf) else leaf)
    return EquinoxCarrier(tree, tuple(kept)), params


def _copied(value: Any, path: tuple[str, ...]) -> Any:
    """Copy modules, and the containers they are in, with a class that marks."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_copied(each, (*path, str(index))) for index, each in enumerate(value))
    if isinstance(value, dict):
        return {key: _copied(each, (*path, str(key))) for key, each in value.items()}
    if not is_equinox(value):
        return value
    kind = _marking(type(value), "/".join(path) or ".") if "__call__" in dir(type(value)) else type(value)
    copy = object.__new__(kind)
    for field in dataclasses.fields(cast(Any, kind)):
        if hasattr(value, field.name):
            object.__setattr__(copy, field.name, _copied(getattr(value, field.name), (*path, field.name)))
    return copy


@cache
def _marking(kind: type, place: str) -> type:
    """Return a subclass that marks what it returns; one for each class and place, so that two copies are equal."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return called(partial(kind.__call__, self), args, kwargs, place, kind.__name__)

    return type(kind)(
        kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )
