"""Host-side randomness from typed JAX keys.

Where numbers are drawn once and only then shipped to the device (orders, random frames), NumPy draws them: sorting or
factorising a few arrays is not worth a compiled program of its own.
"""

import jax
import numpy as np
from jaxtyping import Array


def host_generator(key: Array) -> np.random.Generator:
    """Return the NumPy generator that a typed key stands for; a key is used once, here as anywhere."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
