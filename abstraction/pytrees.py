"""Frozen dataclasses that JAX can map over.

Arrays are leaves; names and flags are static and become part of the tree structure, so a new array value never
recompiles and a new name does. Nothing is validated on construction: JAX rebuilds these objects with tracers and
placeholders, so checks live in builder functions.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

_T = TypeVar("_T")


def static(**options: Any) -> Any:
    """Declare a dataclass field that is part of the tree structure (hashable, not an array)."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[_T]) -> type[_T]:
    """Turn a class into a frozen dataclass and register it as a JAX pytree.

    Fields declared with `static()` are metadata, all others are children. Equality is identity, because the
    truth value of an array comparison is not a bool.
    """
    frozen: Any = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(frozen)
    return jax.tree_util.register_dataclass(
        frozen,
        data_fields=[field.name for field in fields if not field.metadata.get("static")],
        meta_fields=[field.name for field in fields if field.metadata.get("static")],
    )


def leading_axis(tree: Any) -> int:
    """Return the length of the axis all leaves share in front.

    Raises:
      ValueError: the tree has no array, a leaf is a scalar, or leaves disagree.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    lengths = {jax.tree_util.keystr(path): next(iter(jnp.shape(leaf)), None) for path, leaf in leaves}
    if not lengths or None in lengths.values() or len(set(lengths.values())) != 1:
        raise ValueError(
            f"got leading axes {lengths or 'of an empty tree'}, expected arrays that share one leading axis"
        )
    return next(length for length in lengths.values() if length is not None)
