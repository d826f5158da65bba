"""Bases: linear features of an activation that an edit reads and writes.

    encode(h) = (h - mean) E,   decode(z) = z G

with an encoder E [D, K] and a decoder G [K, D], G E = I. One pair of matrices covers rotations (G = E^T), principal
components (the mean and the scale cancel in an interchange) and oblique directions that are read along one vector
and written along another.
"""

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from abstraction.pytrees import pytree
from abstraction.randomness import host_generator
from abstraction.sharding import on_host
from abstraction.typing import AnyArray

_ORTHONORMAL = 1e-3


@pytree
class Basis:
    """K linear features of a D-dimensional activation.

    Attributes:
      encoder: `[D, K]`; columns are the directions features are read along.
      decoder: `[K, D]`; rows are the directions features are written along.
      mean: `[D]`, subtracted before reading.
    """

    encoder: AnyArray
    decoder: AnyArray
    mean: AnyArray

    @property
    def count(self) -> int:
        """The number of features K."""
        return self.encoder.shape[-1]

    def encode(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N K"]:
        """Read the features."""
        return (activation - self.mean) @ self.encoder

    def decode(self, features: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Write features back, without the mean, which cancels in every edit."""
        return features @ self.decoder

    def shift(self, before: Float[Array, "*N K"], after: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Return what a change of the features changes: decode(after) - decode(before)."""
        return (after - before) @ self.decoder


def rotation_basis(matrix: Float[AnyArray, "*batch D K"]) -> Basis:
    """Use the orthonormal columns of a matrix, or of each of a batch of matrices, as features (DAS).

    Raises:
      ValueError: columns are not orthonormal, so that what is read along them is not what is written; a matrix that JAX
        traces cannot be checked.
    """
    if not isinstance(matrix, Tracer):
        values = np.asarray(matrix)
        error = np.abs(values.mT @ values - np.eye(values.shape[-1], dtype=values.dtype)).max(initial=0.0)
        if not error <= _ORTHONORMAL:
            raise ValueError(
                f"got a matrix of shape {values.shape} whose columns are not orthonormal: E^T E differs from I by "
                f"{error:.3g}, expected at most {_ORTHONORMAL}; any other `Basis` has an encoder and a decoder"
            )
    return frame_basis(matrix)


def frame_basis(matrix: Float[AnyArray, "*batch D K"]) -> Basis:
    """Use columns that are known to be orthonormal, as they are."""
    return Basis(encoder=matrix, decoder=matrix.mT, mean=0 * matrix[..., 0])


def pca_basis(
    states: Float[AnyArray, "N D"], *, rank: int | None = None, centered: bool = True, whitened: bool = False
) -> Basis:
    """Use principal components of states as features, largest variance first.

    Components whose singular value is below max(N, D) times the float32 precision times the largest are not there.

    Args:
      states: activations to fit.
      rank: components to keep, by default all there are.
      centered: subtract the mean before the decomposition.
      whitened: divide each feature by its standard deviation.

    Raises:
      ValueError: states that are not finite numbers `[N, D]`, `rank` exceeds their rank, or all are equal.
    """
    values = np.asarray(states)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(np.float64)  # bfloat16 is no number to NumPy
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ValueError(
            f"got states of shape {values.shape} and type {values.dtype}, expected finite numbers [N, D], at least one "
            "state"
        )
    values = values.astype(np.float64)
    mean = values.mean(axis=0) if centered else np.zeros(values.shape[1])
    _, singular_values, directions = np.linalg.svd(values - mean, full_matrices=False)
    smallest = max(values.shape) * np.finfo(np.float32).eps * max(singular_values[0], np.abs(values).max())
    available = int((singular_values > smallest).sum())
    rank = available if rank is None else rank
    if not isinstance(rank, int | np.integer) or not 1 <= rank <= available:
        raise ValueError(
            f"got rank {rank}, expected between 1 and {available}, the rank of the states of shape {values.shape}"
        )
    directions = directions[:rank]
    scale = singular_values[:rank] / np.sqrt(max(len(values) - 1, 1)) if whitened else np.ones(rank)
    arrays = (directions.T / scale, directions * scale[:, None], mean)
    return Basis(*(array.astype(np.float32) for array in arrays))


def pca_bases(states: Float[AnyArray, "L N D"], *, centered: bool = True, whitened: bool = False) -> Basis:
    """Use principal components at each depth: a basis per depth, each leaf `[L, ...]`, short ones padded with zeros."""
    if np.ndim(states) != 3 or not len(states):
        raise ValueError(f"got states of shape {np.shape(states)}, expected [L, N, D], at least one depth")
    found = [pca_basis(one, centered=centered, whitened=whitened) for one in on_host(states)]
    most = max(basis.encoder.shape[1] for basis in found)
    pad = lambda basis: (0, most - basis.encoder.shape[1])
    return Basis(
        np.stack([np.pad(basis.encoder, ((0, 0), pad(basis))) for basis in found]),
        np.stack([np.pad(basis.decoder, (pad(basis), (0, 0))) for basis in found]),
        np.stack([basis.mean for basis in found]),
    )


def random_frames(
    key: Array, shape: tuple[int, ...], width: int, features: int | None = None
) -> Float[np.ndarray, "*shape D K"]:
    """Draw matrices with orthonormal columns, uniformly (QR of a Gaussian, signs fixed).

    Args:
      key: a typed key.
      shape: how many, as leading axes.
      width: D.
      features: columns K, by default D.

    Raises:
      ValueError: more features than `width`.
    """
    features = width if features is None else features
    if not all(isinstance(size, int | np.integer) and size >= 0 for size in (*shape, width, features)):
        raise ValueError(f"got {shape} frames of {features} features of width {width}, expected whole numbers")
    if not 1 <= features <= width:
        raise ValueError(f"got {features} features, expected between 1 and {width}")
    factor, triangle = np.linalg.qr(host_generator(key).standard_normal((*shape, width, features)))
    signs = np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]
    return (factor * signs).astype(np.float32)
