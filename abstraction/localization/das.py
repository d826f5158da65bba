"""Distributed alignment search, and its two relaxations: oblique maps, and a width that is learned.

A search of rank k trains frames: k read directions E, and k write directions G with G E = I, among the M features of
its support. Nothing is M x M. With W_0 the start, k orthonormal columns, and A [M, k] free:

    DAS        G = E^T, E orthonormal                                        M = E E^T      (Geiger et al. 2024)
    oblique    E = W_0 + A,  G = (G' E)^-1 G',  G' = W_0^T + B               M = E G, any projector of rank k
    boundless  E = Q W_0, Q orthogonal; column j counts by sigmoid((b k - j) / T)        (Wu et al. 2023)

What DAS swaps is a subspace, whatever the frame. So where a rotation is meant A moves the frame off itself alone,
A <- A - W_0 W_0^T A, and with B = A^T A, a k x k matrix, the orthonormal columns are

    cayley   2 (W_0 + A) (I + B)^-1 - W_0                the mirror image of W_0 in the span of W_0 + A
    expm     W_0 cos(B^1/2) + A B^-1/2 sin(B^1/2)        the geodesic from W_0 along A
    qr       Y L^-T,  Y = W_0 + A,  L L^T = Y^T Y        the Q factor of W_0 + A, any A

each W_0 at A = 0 and O(M k^2). The first is the Cayley transform (I + S)^-1 (I - S) W_0 of S = W_0 A^T - A W_0^T, and
the second exp(-S) W_0, both without the M x M matrix that defines them. Boundless search weights the columns one by
one, so there the frame matters, A turns within its span too, and the transform takes an inverse of size 2 k.

DAS reads and writes along the same orthonormal directions. The definition of an interchange does not ask for that:
any E, G with G E = I give features to swap, and M is then an oblique projector. At rank 1 it has a read vector v and a
write vector u with v.u = 1, and h <- h + u (v.(h_s - h)).

A is confined to the features of the support, so a search stays inside its span.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.checks import number, one_of, places, positive
from abstraction.interventions import Basis
from abstraction.interventions.gates import boundary_gate
from abstraction.localization.searching import Free
from abstraction.localization.small_matrices import cosine_and_sine, general_inverse, inverse, orthonormalized, product
from abstraction.localization.supports import Candidates
from abstraction.typing import AnyArray

Parametrization = Literal["cayley", "expm", "qr", "oblique"]


@dataclass(frozen=True)
class Rotation:
    """DAS at a fixed rank, or, with `oblique`, its relaxation to invertible maps; a `Featurizer`."""

    parametrization: Parametrization = "cayley"

    def __post_init__(self) -> None:
        one_of("parametrization", self.parametrization, get_args(Parametrization))

    @property
    def rates(self) -> Mapping[str, float]:
        """The candidate's rate; twice where A stands for both halves of a skew matrix, which both would take steps."""
        if self.parametrization == "oblique":
            return {"read": 1.0, "write": 1.0}
        return {"frame": 1.0 if self.parametrization == "qr" else 2.0}

    def init(self, candidates: Candidates) -> Free:
        """Start at the start."""
        return {name: jnp.zeros(candidates.start.shape) for name in self.rates}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis]:
        """Move the start, and swap its `rank` features."""
        return self.final(free, candidate)

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis]:
        """Move the start, and swap its `rank` features."""
        start, used = used_start(candidate)
        if self.parametrization == "oblique":
            read, write = (_confined(free[name], candidate, used) for name in ("read", "write"))
            return used, _spanned(candidate, *oblique(start, read, write, used))
        read = frame(start, _confined(free["frame"], candidate, used), used, self.parametrization)
        return used, _spanned(candidate, read, read.T)

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Nothing is added to the loss."""
        return jnp.zeros(())


@dataclass(frozen=True)
class Boundless:
    """DAS whose width is learned, up to the candidate's rank; a `Featurizer`.

    Attributes:
      boundary_rate: learning rate of the boundary, in units of the rotation's.
      penalty_weight: price of the whole width.
      temperatures: of the soft boundary, at the start and at the end.
    """

    boundary_rate: float = 1e-2
    penalty_weight: float = 1.0
    temperatures: tuple[float, float] = (1.0, 0.1)

    def __post_init__(self) -> None:
        positive("temperatures", self.temperatures, 2)
        number("boundary rate", self.boundary_rate, 0, np.inf)
        number("penalty weight", self.penalty_weight, 0, np.inf)

    @property
    def rates(self) -> Mapping[str, float]:
        """The rotation at twice the candidate's rate, as in `Rotation`, the boundary at its own."""
        return {"frame": 2.0, "boundary": self.boundary_rate}

    def init(self, candidates: Candidates) -> Free:
        """Start at the start, half of it in use."""
        return {"frame": jnp.zeros(candidates.start.shape), "boundary": jnp.full(candidates.rank.shape, 0.5)}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis]:
        """Turn the start; features count the less the further they are beyond the boundary."""
        first, last = self.temperatures
        temperature = first + (last - first) * progress
        count = candidate.start.shape[-1]
        weight = boundary_gate(free["boundary"] * candidate.rank, count, temperature)
        return weight * leading(candidate.rank, count), self._turned(free, candidate)

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis]:
        """Cut at the boundary."""
        width = jnp.round(jnp.clip(free["boundary"], 0, 1) * candidate.rank)
        return leading(width.astype(jnp.int32), candidate.start.shape[-1]), self._turned(free, candidate)

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Price the boundary, as a share of the most features there may be."""
        return self.penalty_weight * jnp.clip(free["boundary"], 0, 1)

    def _turned(self, free: Free, candidate: Candidates) -> Basis:
        start, used = used_start(candidate)
        read = turned_columns(start, _confined(free["frame"], candidate, used))
        return _spanned(candidate, read, read.T)


def used_start(candidate: Candidates) -> tuple[Float[Array, "M k"], Float[Array, " k"]]:
    """Return the columns that one candidate starts from, and 1 where they are in use: the first `rank`."""
    used = leading(candidate.rank, candidate.start.shape[-1])
    return jnp.asarray(candidate.start) * used, used


def frame(
    start: Float[Array, "M k"], free: Float[Array, "M k"], used: Float[Array, " k"], parametrization: Parametrization
) -> Float[Array, "M k"]:
    """Move orthonormal columns by a free matrix, orthonormal again; see the module's first lines.

    Columns that are not in use are 0 in both, and stay so.
    """
    if parametrization == "qr":
        return orthonormalized((start + free) * used)
    free = free - product(start, product(start.T, free))
    gram, identity = product(free.T, free), jnp.eye(start.shape[-1], dtype=start.dtype)
    if parametrization == "expm":
        cosine, sine = cosine_and_sine(gram)
        return product(start, cosine) + product(free, sine)
    return 2 * product(start + free, inverse(identity + gram)) - start


def turned_columns(start: Float[Array, "M k"], free: Float[Array, "M k"]) -> Float[Array, "M k"]:
    """Return Q W_0 with the Cayley transform Q of S = W_0 A^T - A W_0^T, column by column.

    S = U V^T has rank 2 k, so by Woodbury (I + S)^-1 (I - S) = I - 2 U (I + V^T U)^-1 V^T.
    """
    left, right = jnp.concatenate([start, -free], axis=1), jnp.concatenate([free, start], axis=1)
    small = jnp.eye(left.shape[1], dtype=left.dtype) + product(right.T, left)
    return start - 2 * product(left, product(general_inverse(small), product(right.T, start)))


def oblique(
    start: Float[Array, "M k"], read: Float[Array, "M k"], write: Float[Array, "M k"], used: Float[Array, " k"]
) -> tuple[Float[Array, "M k"], Float[Array, "k M"]]:
    """Return E = W_0 + A and G = (G' E)^-1 G' with G' = W_0^T + B, so that what is read is what is written."""
    encoder, other = start + read, (start + write).T
    overlap = product(other, encoder) + jnp.diag(1 - used)  # columns out of use are 0, and stay so
    return encoder, product(general_inverse(overlap), other)


def _confined(free: Float[Array, "M k"], candidate: Candidates, used: Float[Array, " k"]) -> Float[Array, "M k"]:
    return jnp.where(jnp.asarray(candidate.inside)[:, None] & (used > 0), free, 0.0)


def _spanned(candidate: Candidates, read: Float[Array, "M k"], write: Float[Array, "k M"]) -> Basis:
    """Say in coordinates of the tap what is said in features of the support."""
    if (basis := candidate.basis) is not None:
        read, write = jnp.asarray(basis.encoder) @ read, write @ jnp.asarray(basis.decoder)
    return Basis(read, write, jnp.zeros(len(read), read.dtype))


def leading(count: Int[AnyArray, "*C"], width: int) -> Float[Array, "*C K"]:
    """Return 1 on the first `count` of `width` features and 0 elsewhere."""
    return (jnp.arange(width) < jnp.asarray(count)[..., None]).astype(jnp.float32)


def orthogonality_error(basis: Basis, rank: Int[AnyArray, " C"]) -> Float[np.ndarray, " C"]:
    """Return max |E_r^T E_r - I| over the first `rank` features of each basis; 0 for DAS, and how oblique a map is.

    Raises:
      ValueError: bases that are not `[C, D, K]`, or there is not a rank of 0 to K for each.
    """
    shape = np.shape(basis.encoder)
    if len(shape) != 3 or np.shape(rank) != shape[:1]:
        raise ValueError(f"got encoders {shape} and ranks {np.shape(rank)}, expected [C, D, K] and a rank for each")
    places("ranks", rank, shape[2] + 1)
    used = (np.arange(shape[2]) < np.asarray(rank)[:, None]).astype(np.float64)
    encoder = np.asarray(basis.encoder, np.float64) * used[:, None, :]
    expected = np.eye(shape[2]) * used[:, None, :]
    return np.abs(encoder.mT @ encoder - expected).max(axis=(1, 2))
