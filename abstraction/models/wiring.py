"""How a tap is read: what a model must tell about its wiring so that units can be removed from it.

A unit whose mechanism is replaced by an affine map of kept ones, a_S := beta + B a_K, leaves no trace where everything
that reads it is affine,

    W a + b  =  (W_K + W_S B) a_K + (b + W_S beta)                              (CMR, folding; B = 0 for constants),

so a model names, for each tap that can be reduced, every affine map that reads it: a `Consumer` says where kernel and
bias lie, which axes of the kernel are the tap's units, and what lies between. A plain transformer needs no more than

    Consumer(("block0", "down", "kernel"), ("block0", "down", "bias"))
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Int

from abstraction.checks import indices
from abstraction.models.base import Model
from abstraction.typing import AnyArray, Params

Path = tuple[Any, ...]
"""Where an array is in params: names, or numbers in lists."""


@dataclass(frozen=True)
class Passage:
    """Something between a tap and its consumer that acts on every unit by itself.

    Attributes:
      name: what it is, for people: "activation 'relu'".
      function: `(params, values [..D]) -> values`, what it makes of units that are constant over positions; where
        positions are flattened, the values position by position, `[P D]`.
      shifts: whether a constant other than 0 passes.
      mixes: whether an affine relation among units passes: the function is affine in each unit and the same at
        every position before it.
    """

    name: str
    function: Callable[[Params, Array], Array] = lambda params, values: values
    shifts: bool = True
    mixes: bool = True


@dataclass(frozen=True)
class Consumer:
    """An affine map that reads a tap.

    Attributes:
      kernel: path of its kernel in the params.
      bias: path of its bias; nothing needs to be there.
      axes: axes of the kernel that together are its input, units innermost: D, or P D where positions are flattened.
      summed: axes of the kernel that a constant is summed over (the window of a convolution).
      passages: what lies between, from the tap on.
      plane: `(params, values [D]) -> offset`, its linear map, without bias, of inputs with these values at every
        position, where that depends on the position (zeros around a border); None where the kernel alone tells.
    """

    kernel: Path
    bias: Path
    axes: tuple[int, ...] = (0,)
    summed: tuple[int, ...] = ()
    passages: tuple[Passage, ...] = ()
    plane: Callable[[Params, Array], Array] | None = None


@runtime_checkable
class Reducible(Model, Protocol):
    """A model that units can be removed from."""

    def consumers(self, tap: str) -> tuple[Consumer, ...]:
        """Return everything that reads the units of a tap.

        Raises:
          ValueError: the tap is unknown, has a reader that is not affine, or has no units of its own; says which.
        """
        ...

    def with_biases(self, params: Params, tap: str) -> tuple["Reducible", Params]:
        """Return the same network, in which every consumer of the tap has a bias, zeros where there was none.

        The bias of a consumer with a `plane` has a value of its own at every position.
        """
        ...

    def narrowed(self, params: Params, tap: str, kept: Int[np.ndarray, " K"]) -> tuple["Reducible", Params]:
        """Return the network without the other units of a tap: neither computed nor read.

        The function stays the same where nothing reads the removed units (their rows in all consumers are zero).

        Raises:
          ValueError: what `consumers` refuses, units that are not there, repeat or are not sorted, or that cannot be
            removed apart.
        """
        ...


def check_kept(tap: str, kept: Any, width: int) -> Int[np.ndarray, " K"]:
    """Return the units of a tap that stay.

    Raises:
      ValueError: none stays, or they are no sorted integers of the tap, each once.
    """
    units = indices(f"kept units of {tap!r}", kept, width)
    if not len(units) or (np.diff(units) <= 0).any():
        raise ValueError(f"got kept units {units.tolist()[:8]} of {tap!r}, expected some of 0 to {width - 1}, sorted")
    return units


def dotted(path: Path) -> str:
    """Write a path for people."""
    return ".".join(map(str, path))


def find_array(params: Params, path: Path) -> Any:
    """Return the array at a path, or None where there is none."""
    for part in path:
        there = part in params if isinstance(params, Mapping) else isinstance(part, int) and part < len(params)
        if not there:
            return None
        params = params[part]
    return params


def replace_array(params: Params, path: Path, value: AnyArray) -> Params:
    """Return params with another array at a path; nothing is modified in place."""
    if not path:
        return value
    head, *rest = path
    if isinstance(params, list | tuple):
        return type(params)(
            replace_array(old, tuple(rest), value) if n == head else old for n, old in enumerate(params)
        )
    return {**params, head: replace_array(params.get(head, {}), tuple(rest), value)}


def take_units(array: AnyArray, kept: Int[np.ndarray, " K"], width: int, axis: int = -1) -> AnyArray:
    """Keep some of `width` units along an axis that holds them once, or position by position."""
    index = np.arange(array.shape[axis]).reshape(-1, width)[:, np.asarray(kept)].ravel()
    return array.take(index, axis=axis)
