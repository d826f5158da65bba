"""Bases: linear features of an activation that an edit reads and writes.

    encode(h) = (h - mean) E,   decode(z) = z G

with an encoder E [D, K] and a decoder G [K, D], G E = I. One pair of matrices covers rotations (G = E^T), principal
components (the mean and the scale cancel in an interchange) and oblique directions that are read along one vector
and written along another.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from abstraction.pytrees import pytree
from abstraction.randomness import host_generator
from abstraction.typing import AnyArray


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

    def encode(self, activation: Float[Array, "*N D"]) -> Float[Array, "*N K"]:
        """Read the features."""
        return (activation - self.mean) @ self.encoder

    def decode(self, features: Float[Array, "*N K"]) -> Float[Array, "*N D"]:
        """Write features back, without the mean, which cancels in every edit."""
        return features @ self.decoder


def rotation_basis(matrix: Float[AnyArray, "*batch D K"]) -> Basis:
    """Use the orthonormal columns of a matrix, or of each of a batch of matrices, as features (DAS)."""
    return Basis(encoder=matrix, decoder=matrix.mT, mean=0 * matrix[..., 0])


def pca_basis(
    states: Float[AnyArray, "N D"], *, rank: int | None = None, centered: bool = True, whitened: bool = False
) -> Basis:
    """Use principal components of states as features, largest variance first.

    Args:
      states: activations to fit.
      rank: components to keep, by default min(N, D).
      centered: subtract the mean before the decomposition.
      whitened: divide each feature by its standard deviation (floor 1e-6).

    Raises:
      ValueError: `rank` exceeds what the states have.
    """
    states = jnp.asarray(states)
    available = min(states.shape)
    rank = available if rank is None else rank
    if not 1 <= rank <= available:
        raise ValueError(f"got rank {rank}, expected between 1 and {available} for states of shape {states.shape}")
    mean = states.mean(axis=0) if centered else jnp.zeros(states.shape[1], states.dtype)
    _, singular_values, directions = jnp.linalg.svd(states - mean, full_matrices=False)
    scale = jnp.maximum(singular_values[:rank] / jnp.sqrt(states.shape[0] - 1), 1e-6) if whitened else jnp.ones(rank)
    directions = directions[:rank]
    return Basis(encoder=directions.T / scale, decoder=directions * scale[:, None], mean=mean)


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
    if not 1 <= features <= width:
        raise ValueError(f"got {features} features, expected between 1 and {width}")
    factor, triangle = np.linalg.qr(host_generator(key).standard_normal((*shape, width, features)))
    signs = np.sign(np.diagonal(triangle, axis1=-2, axis2=-1))[..., None, :]
    return (factor * signs).astype(np.float32)
