"""What every task refuses: numbers that are not whole, indices that name nothing, settings without their variables."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from abstraction.typing import Setting


def check_indices(name: str, values: Any, below: int) -> np.ndarray:
    """Return values as an array, if all are whole numbers from 0 to below a limit.

    Raises:
      ValueError: naming the first that is not.
    """
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"got {name} of type {array.dtype}, expected whole numbers from 0 to {below - 1}")
    wrong = (array < 0) | (array >= below)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(f"got {name} {array[place]} at {place}, expected whole numbers from 0 to {below - 1}")
    return array


def check_setting(setting: Setting, names: Sequence[str], below: int) -> None:
    """Refuse a setting whose variables are missing, of different lengths, or out of range.

    Raises:
      ValueError: naming the variable.
    """
    if missing := [name for name in names if name not in setting]:
        raise ValueError(f"got a setting without {missing}, expected values of {list(names)}")
    shapes = {name: check_indices(name, setting[name], below).shape for name in names}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"got values of shapes {shapes}, expected one shape")
