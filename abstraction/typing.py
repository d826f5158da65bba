"""Shape letters and array aliases, fixed once for the whole package.

    N  pairs (base, source)          D  width of an activation       F  length of an effect signature
    V  variables of the causal model K  features a basis keeps       C  classes, or candidates of a search
    S  sites                         H  handles                      R  strengths, or values of epsilon
    L  depth (layers, time steps)    P  token positions              T  tokens

A shape such as `Float[Array, "V F"]` is checked at run time in the tests and is documentation elsewhere.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array

Params: TypeAlias = Any
"""A pytree of arrays: the weights of a model."""

Setting: TypeAlias = Mapping[str, Any]
"""Values of causal variables by name, each an array with the same leading axes."""

Outputs: TypeAlias = Array
"""What a model returns for a batch: logits `[N, C]`."""

AnyArray: TypeAlias = Array | np.ndarray
