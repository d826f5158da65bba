"""Sparse autoencoders as features, in the three common kinds, and their files.

    z = phi((h - [b_dec]) W_enc + b_enc),    decode(z) = z W_dec + b_dec

    relu        phi(x) = max(x, 0)
    jump_relu   phi(x) = x where x > max(threshold, 0), else 0                        (Rajamanoharan et al. 2024)
    top_k       phi(x) = max(x, 0) where x is among the k largest, else 0                      (Gao et al. 2024)

The decoder's bias is subtracted before encoding in some trainings and not in others: no file says so by its arrays, so
the caller does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.checks import finite, flag, one_of, whole
from abstraction.files import kind_of, read_arrays, read_npz, read_safetensors, write_arrays
from abstraction.pytrees import pytree, static
from abstraction.typing import AnyArray

Kind = Literal["relu", "jump_relu", "top_k"]
FILE_KIND = "sparse autoencoder 1"

# By our name: what files call it, and whether it is stored the other way round there, as PyTorch's linear maps are.
_NAMES = {
    "W_enc": {"W_enc": False, "encoder.weight": True},
    "b_enc": {"b_enc": False, "encoder.bias": False},
    "W_dec": {"W_dec": False, "decoder.weight": True},
    "b_dec": {"b_dec": False, "decoder.bias": False, "bias": False},
    "threshold": {"threshold": False},
}


@pytree
class SparseAutoencoder:
    """K latents of a D-dimensional activation, a `FeatureMap`; build it with `autoencoder` or `read_autoencoder`.

    Attributes:
      kind: "relu", "jump_relu" or "top_k".
      top: how many latents may be on at once, for "top_k".
      centered: subtract `decoder_bias` before encoding.
      encoder: `[D, K]`.
      encoder_bias: `[K]`.
      decoder: `[K, D]`.
      decoder_bias: `[D]`.
      threshold: `[K]`, for "jump_relu".
    """

    kind: Kind = static()
    top: int | None = static()
    centered: bool = static()
    encoder: AnyArray
    encoder_bias: AnyArray
    decoder: AnyArray
    decoder_bias: AnyArray
    threshold: AnyArray | None = None

    @property
    def count(self) -> int:
        """The number of latents K."""
        return self.encoder.shape[-1]

    def encode(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N K"]:
        """Read the latents."""
        read = activation - self.decoder_bias if self.centered else activation
        values = read @ self.encoder + self.encoder_bias
        if self.kind == "jump_relu":
            return jnp.where(values > jnp.maximum(jnp.asarray(self.threshold), 0), values, 0)
        values = jax.nn.relu(values)
        if self.top is None:
            return values
        largest, index = jax.lax.top_k(values, self.top)
        return jnp.put_along_axis(jnp.zeros_like(values), index, largest, axis=-1, inplace=False)

    def decode(self, features: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Write latents back."""
        return features @ self.decoder + self.decoder_bias

    def shift(self, before: Float[Array, "*N K"], after: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Return decode(after) - decode(before): the bias cancels."""
        return (after - before) @ self.decoder


def autoencoder(
    arrays: Mapping[str, AnyArray], kind: Kind, *, top: int | None = None, centered: bool = False
) -> SparseAutoencoder:
    """Make an autoencoder of named arrays.

    Args:
      arrays: `W_enc` [D, K], `b_enc` [K], `W_dec` [K, D], `b_dec` [D] and, for "jump_relu", `threshold` [K].
        `encoder.weight` and `decoder.weight` are W_enc and W_dec the other way round; others are ignored.
      kind: "relu", "jump_relu" or "top_k".
      top: k, for "top_k".
      centered: the decoder's bias is subtracted before encoding.

    Raises:
      ValueError: an array is missing, of another shape or not finite, or an option does not belong to the kind.
    """
    one_of("kind", kind, get_args(Kind))
    flag("centered", centered)
    names = [name for name in _NAMES if name != "threshold" or kind == "jump_relu"]
    found = {name: _named(name, arrays) for name in names}
    encoder = found["W_enc"]
    if encoder.ndim != 2 or not encoder.size:
        raise ValueError(f"got W_enc of shape {encoder.shape}, expected [D, K], at least one latent")
    width, count = encoder.shape
    shapes = {"W_enc": (width, count), "b_enc": (count,), "W_dec": (count, width), "b_dec": (width,)}
    for name, array in found.items():
        shape = shapes.get(name, (count,))
        if array.shape != shape:
            raise ValueError(f"got {name} of shape {array.shape}, expected {shape} beside W_enc of {encoder.shape}")
    if (top is None) == (kind == "top_k"):
        raise ValueError(f"got top {top} of kind {kind!r}, expected a number for 'top_k' and None for others")
    top = None if top is None else whole("top", top, 1, count)
    rest = (found[name] for name in names[1:])
    return SparseAutoencoder(kind, top, centered, encoder, *rest)


def read_autoencoder(
    path: str | Path, kind: Kind, *, top: int | None = None, centered: bool = False
) -> SparseAutoencoder:
    """Read an autoencoder from a safetensors file, or an npz file as Gemma Scope has them; see `autoencoder`.

    Raises:
      ValueError: the file is damaged, its arrays are not those of such an autoencoder, or it says itself that it is of
        another kind.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    one_of("suffix", path.suffix, (".safetensors", ".npz"))
    arrays = read_npz(path) if path.suffix == ".npz" else read_safetensors(path)
    given = {"kind": kind, "top": top, "centered": centered}
    if path.suffix != ".npz" and (told := _described(path)) not in (None, given):
        raise ValueError(f"got {given} for {path}, expected {told}, with which it was saved")
    return autoencoder(arrays, kind, top=top, centered=centered)


def _described(path: Path) -> dict[str, Any] | None:
    """Return the options that `save_autoencoder` has written, or None for a file of others."""
    try:
        if kind_of(path) != FILE_KIND:
            return None
    except ValueError:
        return None
    about = read_arrays(path, FILE_KIND)[1]
    return {name: about[name] for name in ("kind", "top", "centered")}


def save_autoencoder(features: SparseAutoencoder, path: str | Path) -> None:
    """Write an autoencoder to a safetensors file under the common names, which other libraries read too."""
    arrays = {
        "W_enc": features.encoder,
        "b_enc": features.encoder_bias,
        "W_dec": features.decoder,
        "b_dec": features.decoder_bias,
    }
    arrays |= {} if features.threshold is None else {"threshold": features.threshold}
    about = {"kind": features.kind, "top": features.top, "centered": features.centered}
    write_arrays(path, FILE_KIND, arrays, about)


def _named(name: str, arrays: Mapping[str, AnyArray]) -> np.ndarray:
    there = [(stored, turned) for stored, turned in _NAMES[name].items() if stored in arrays]
    if not there:
        raise ValueError(f"got arrays {sorted(arrays)}, expected one of {list(_NAMES[name])}")
    stored, turned = there[0]
    array = finite(stored, arrays[stored])
    return array.T if turned else array
