"""A checksum of weights that is cheap enough to compare wherever recordings and a network come together.

    sum over weights i of mix(bits_i + i c)  mod 2^32,  of every array; and CRC-32 of these, of their paths and types

`mix` scatters the bits of one weight, so that signs, scales and places all count; a sum of integers is the same in
whatever order devices add it. Small arrays are read on the host, which compiles nothing. Equal weights have equal
checksums on every device and mesh; other weights have another one but for one time in four billion. It is no identity
to keep: that is `params_digest`.
"""

import weakref
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from abstraction.models.network import named_params
from abstraction.sharding import on_host
from abstraction.typing import AnyArray, Params

_LARGE = 2**20
_known: dict[int, tuple[weakref.ref, int]] = {}
"""Checksums of JAX's arrays that are alive, which never change, by their `id`."""


def params_checksum(params: Params) -> int:
    """Return the checksum of weights, below 2^32; arrays of random keys are left out."""
    total = 0
    for path, leaf in sorted(named_params(params).items()):
        about = f"{path} {jnp.result_type(leaf).name} {np.shape(leaf)} {_checksum(leaf)}"
        total = zlib.crc32(about.encode(), total)
    return total


def _checksum(leaf: AnyArray) -> int:
    if (known := _known.get(id(leaf))) and known[0]() is leaf:
        return known[1]
    small = np.size(leaf) <= _LARGE
    found = zlib.crc32(np.asarray(on_host(leaf)).tobytes()) if small else int(on_host(_scattered(leaf)))
    if isinstance(leaf, jax.Array):
        key = id(leaf)
        _known[key] = weakref.ref(leaf, lambda _: _known.pop(key, None)), found
    return found


@jax.jit
def _scattered(leaf: Array) -> UInt32[Array, ""]:
    bits, place = _bits(leaf), jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits + place * jnp.uint32(0x9E3779B1)
    for factor in (0xC2B2AE3D, 0x27D4EB2F):
        mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(factor)
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)


def _bits(leaf: Array) -> Any:
    """Return an array's bits, as 32-bit words; twice as many of one of 64 bits."""
    if jnp.iscomplexobj(leaf):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if leaf.dtype == bool:
        return leaf.astype(jnp.uint32)
    words = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, words).astype(jnp.uint32)
