"""Randomness: keys by name, and host-side generators from typed JAX keys.

Where numbers are drawn once and only then shipped to the device (orders, random frames), NumPy draws them: sorting or
factorising a few arrays is not worth a compiled program of its own.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def host_generator(key: Array) -> np.random.Generator:
    """Return the NumPy generator that a typed key stands for; a key is used once, here as anywhere."""
    check_key(key)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def check_key(key: Array) -> None:
    """Refuse what is not a typed key: a seed, or the numbers of an old one.

    Raises:
      ValueError: it is not.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape:
        raise ValueError(f"got key {key!r}, expected one typed key, as `jax.random.key(0)`")


def named_key(seed: int | Array, name: str) -> Array:
    """Return the typed key that belongs to a name under a seed or a key.

    Keys come from names, not from places in a list: what is added later redraws nothing that was there before.
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    check_key(key)
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
