"""Values are checked where they enter: on the host, once, before anything compiles.

XLA clamps an index that is out of range, broadcasts rows that do not belong together and carries NaN on in silence, so
whoever takes a value from a caller looks at it here first. Every refusal says what was got and what was expected.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike


def whole(what: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """Return a whole number, not a bool and not a float, from a range.

    Raises:
      ValueError: it is another kind of value, or outside.
    """
    if not is_whole(value) or value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"got {what} {value!r}, expected {limits}, a whole number")
    return int(value)


def is_whole(value: object) -> bool:
    """Tell whether a value counts or points: a truth value, an integer to Python, does not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def positive(what: str, values: Any, count: int | None = None) -> None:
    """Refuse scales that are none.

    Raises:
      ValueError: there are none, or not `count` of them, or one is not a positive finite number.
    """
    numbers = np.asarray(values)
    if count is not None and np.size(numbers) != count:
        raise ValueError(f"got {what} {numbers.tolist()}, expected {count} positive finite numbers")
    are = numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iuf"
    if not are or not ((numbers > 0) & (numbers < np.inf)).all():
        raise ValueError(f"got {what} {numbers.tolist()}, expected positive finite numbers, at least one")


def flag(what: str, value: Any) -> None:
    """Refuse what is no truth value: a word such as "no" would count as one.

    Raises:
      ValueError: it is not True or False.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"got {what} {value!r}, expected True or False")


def kind(what: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Refuse a value of another type.

    Raises:
      ValueError: it is.
    """
    if not isinstance(value, kinds):
        names = [each.__name__ for each in (kinds if isinstance(kinds, tuple) else (kinds,))]
        raise ValueError(f"got {what} {value!r}, expected {' or '.join(names)}")


def number(what: str, value: Any, least: int | float = 0.0, most: int | float = np.inf) -> float:
    """Return a finite number from a range.

    Raises:
      ValueError: it is another kind of value, not finite, or outside.
    """
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not np.isfinite(value) or not least <= value <= most:
        raise ValueError(f"got {what} {value!r}, expected {least:g} to {most:g}, a number")
    return float(value)


def one_of(what: str, word: Any, valid: Sequence[Any]) -> None:
    """Refuse a word that is not in a list.

    Raises:
      ValueError: naming those that are.
    """
    if not isinstance(word, str | None) or word not in valid:
        raise ValueError(f"got {what} {word!r}, expected one of {tuple(valid)}")


def finite(what: str, values: Any) -> np.ndarray:
    """Return real numbers as a host array, in their own type.

    Raises:
      ValueError: they are no real numbers, or not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" and not _extended(array):
        raise ValueError(f"got {what} of type {array.dtype}, expected real numbers")
    broken = array.size - int(np.isfinite(array).sum())
    if broken:
        raise ValueError(f"got {what} with {broken} values of {array.size} not finite, expected finite numbers")
    return array


def indices(what: str, values: ArrayLike, size: int) -> np.ndarray:
    """Return distinct indices of an axis, in the order given.

    Raises:
      ValueError: they are no list of integers, repeat, or one is not in [0, size).
    """
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"got {what} {array.tolist()!r}, expected a list of integers from 0 to {size - 1}")
    outside = array[(array < 0) | (array >= size)]
    if len(outside) or len(np.unique(array)) != len(array):
        raise ValueError(f"got {what} {array.tolist()[:8]}, expected some of 0 to {size - 1}, each once")
    return array.astype(np.int32)


def places(what: str, values: Any, count: int) -> None:
    """Refuse places in an axis that are not there, of any shape and order; what JAX traces passes.

    Raises:
      ValueError: one is not a whole number of 0 to `count` - 1.
    """
    if isinstance(values, Tracer):
        return
    array = np.asarray(values)
    integral = array.dtype.kind in "iu"
    if not integral or (array.size and not (array.min() >= 0 and array.max() < count)):
        wrong = array.ravel() if not integral else array[(array < 0) | (array >= count)]
        raise ValueError(f"got {what} {wrong[:8].tolist()}, expected whole numbers from 0 to {count - 1}")


def are_some_of(values: Any, count: int) -> bool:
    """Tell whether there is an index, all are whole numbers of 0 to `count` - 1, and none is given twice."""
    listed = list(values)
    inside = all(is_whole(index) and 0 <= index < count for index in listed)
    return bool(listed) and inside and len(set(listed)) == len(listed)


def _extended(array: np.ndarray) -> bool:
    """Tell the float types that JAX adds to NumPy's: bfloat16 and its kin."""
    return array.dtype.kind == "V" and array.dtype.names is None and "float" in array.dtype.name
