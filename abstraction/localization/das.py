"""Distributed alignment search, and its two relaxations: oblique maps, and a width that is learned.

    DAS        R = R_0 Q(A), Q orthogonal; swap the first k columns           M = R diag(1_k) R^T
    oblique    R = R_0 (I + A), any invertible map                            M = R diag(1_k) R^-1
    boundless  R = R_0 Q(A); column j counts by sigmoid((b m - j) / T)        (Wu et al. 2023)

with R_0 the start (a Haar-random rotation of the support's m features, or given directions) and A free. Orthogonal
maps, with Q(0) = I:

    cayley  (I + S)^-1 (I - S), S = A - A^T        expm  exp(A - A^T)        qr  the Q factor of I + A

DAS reads and writes along the same orthonormal directions. The definition of an interchange does not ask for that:
any invertible R gives features to swap, and M is then an oblique projector. At rank 1 it has a read vector v and a
write vector u with v.u = 1, and h <- h + u (v.(h_s - h)).

A is confined to the first m rows and columns, so a search stays inside its support.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstraction.checks import number, one_of, places, positive
from abstraction.interventions import Basis
from abstraction.localization.searching import Free, zero_mean
from abstraction.localization.supports import Candidates
from abstraction.typing import AnyArray

Parametrization = Literal["cayley", "expm", "qr", "oblique"]


@dataclass(frozen=True)
class Rotation:
    """DAS at a fixed rank, or, with `oblique`, its relaxation to invertible maps; a `Featurizer`."""

    parametrization: Parametrization = "cayley"

    def __post_init__(self) -> None:
        _check_parametrization(self.parametrization)

    @property
    def rates(self) -> Mapping[str, float]:
        """One matrix, at the candidate's rate."""
        return {"matrix": 1.0}

    def init(self, candidates: Candidates) -> Free:
        """Start at the support's features."""
        count, _, features = candidates.encoder.shape
        return {"matrix": jnp.zeros((count, features, features))}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis]:
        """Turn the start, and swap the first `rank` features."""
        return self.final(free, candidate)

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis]:
        """Turn the start, and swap the first `rank` features."""
        weight = leading(candidate.rank, candidate.encoder.shape[-1])
        return weight, turned(free["matrix"], candidate, self.parametrization)

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Nothing is added to the loss."""
        return jnp.zeros(())


@dataclass(frozen=True)
class Boundless:
    """DAS whose width is learned; a `Featurizer`.

    Attributes:
      parametrization: of the rotation.
      boundary_rate: learning rate of the boundary, in units of the rotation's.
      penalty_weight: price of the whole width.
      temperatures: of the soft boundary, at the start and at the end.
    """

    parametrization: Parametrization = "cayley"
    boundary_rate: float = 1e-2
    penalty_weight: float = 1.0
    temperatures: tuple[float, float] = (1.0, 0.1)

    def __post_init__(self) -> None:
        _check_parametrization(self.parametrization)
        positive("temperatures", self.temperatures, 2)
        number("boundary rate", self.boundary_rate, 0, np.inf)
        number("penalty weight", self.penalty_weight, 0, np.inf)

    @property
    def rates(self) -> Mapping[str, float]:
        """The rotation at the candidate's rate, the boundary at its own."""
        return {"matrix": 1.0, "boundary": self.boundary_rate}

    def init(self, candidates: Candidates) -> Free:
        """Start at the support's features, half of them in use."""
        count = candidates.encoder.shape[0]
        return {**Rotation().init(candidates), "boundary": jnp.full((count,), 0.5)}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis]:
        """Turn the start; features count the less the further they are beyond the boundary."""
        first, last = self.temperatures
        temperature = first + (last - first) * progress
        spots = jnp.arange(candidate.encoder.shape[-1]) + 0.5
        weight = jax.nn.sigmoid((free["boundary"] * candidate.limit - spots) / temperature)
        weight = weight * leading(candidate.limit, len(spots))
        return weight, turned(free["matrix"], candidate, self.parametrization)

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis]:
        """Cut at the boundary."""
        width = jnp.round(jnp.clip(free["boundary"], 0, 1) * candidate.limit)
        weight = leading(width.astype(jnp.int32), candidate.encoder.shape[-1])
        return weight, turned(free["matrix"], candidate, self.parametrization)

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Price the boundary, as a share of the support."""
        return self.penalty_weight * jnp.clip(free["boundary"], 0, 1)


def turned(matrix: Float[Array, "K K"], candidate: Candidates, parametrization: Parametrization) -> Basis:
    """Apply the free map to the start, inside the support."""
    inside = leading(candidate.limit, matrix.shape[-1])
    forward, inverse = _map(matrix * inside[:, None] * inside, parametrization)
    encoder = jnp.asarray(candidate.encoder) @ forward
    return Basis(encoder, inverse @ jnp.asarray(candidate.decoder), zero_mean(encoder))


def _map(
    free: Float[Array, "K K"], parametrization: Parametrization
) -> tuple[Float[Array, "K K"], Float[Array, "K K"]]:
    """Return a map, the identity at 0, and its inverse."""
    skew, identity = free - free.T, jnp.eye(free.shape[-1], dtype=free.dtype)
    if parametrization == "oblique":
        return identity + free, jnp.linalg.inv(identity + free)
    if parametrization == "qr":
        orthogonal = jnp.linalg.qr(identity + free)[0]
    elif parametrization == "expm":
        orthogonal = jax.scipy.linalg.expm(skew)
    else:
        orthogonal = jnp.linalg.solve(identity + skew, identity - skew)
    return orthogonal, orthogonal.T


def _check_parametrization(name: str) -> None:
    one_of("parametrization", name, get_args(Parametrization))


def leading(count: Int[AnyArray, "*C"], width: int) -> Float[Array, "*C K"]:
    """Return 1 on the first `count` of `width` features and 0 elsewhere."""
    return (jnp.arange(width) < jnp.asarray(count)[..., None]).astype(jnp.float32)


def orthogonality_error(basis: Basis, rank: Int[AnyArray, " C"]) -> Float[np.ndarray, " C"]:
    """Return max |R_k^T R_k - I| of each trained basis; 0 for DAS, and how oblique a map is otherwise.

    Raises:
      ValueError: bases that are not `[C, D, K]`, or there is not a rank of 0 to K for each.
    """
    shape = np.shape(basis.encoder)
    if len(shape) != 3 or np.shape(rank) != shape[:1]:
        raise ValueError(f"got encoders {shape} and ranks {np.shape(rank)}, expected [C, D, K] and a rank for each")
    places("ranks", rank, shape[2] + 1)
    encoder = np.asarray(basis.encoder, np.float64) * np.asarray(leading(rank, basis.encoder.shape[-1]))[:, None, :]
    expected = np.eye(encoder.shape[-1]) * np.asarray(leading(rank, encoder.shape[-1]))[:, None, :]
    return np.abs(encoder.mT @ encoder - expected).max(axis=(1, 2))
