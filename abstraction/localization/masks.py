"""Searches that keep the features and learn their weights: desiderata-based masking, and fitted weights.

    DBM      w = sigmoid(a / T), T falling; loss + sparsity sum(w); at the end w = [a > 0]   (Davies et al. 2023)
    weights  w = a, free; a strength per feature, fitted where PLOT tries a grid of strengths

Features are the support's: coordinates, or principal components. Of coordinates nothing is encoded or decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from abstraction.checks import positive
from abstraction.interventions import Basis
from abstraction.interventions.gates import sigmoid_gate
from abstraction.localization.searching import Free
from abstraction.localization.supports import Candidates


@dataclass(frozen=True)
class Mask:
    """Desiderata-based masking; a `Featurizer`.

    Attributes:
      temperatures: at the start and at the end, falling geometrically.
    """

    temperatures: tuple[float, float] = (1.0, 0.01)

    def __post_init__(self) -> None:
        positive("temperatures", self.temperatures, 2)

    @property
    def rates(self) -> Mapping[str, float]:
        """One score per feature, at the candidate's rate."""
        return {"score": 1.0}

    def init(self, candidates: Candidates) -> Free:
        """Start with every feature half in."""
        return {"score": jnp.zeros(candidates.inside.shape)}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis | None]:
        """Weight features softly."""
        return self._soft(free, candidate, progress), candidate.basis

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis | None]:
        """Keep the features with a positive score."""
        return (free["score"] > 0) * inside(candidate), candidate.basis

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Price every feature in use."""
        return jnp.asarray(candidate.sparsity) * self._soft(free, candidate, progress).sum()

    def _soft(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        first, last = self.temperatures
        temperature = first * (last / first) ** progress
        return sigmoid_gate(free["score"], temperature) * inside(candidate)


@dataclass(frozen=True)
class Weights:
    """A strength per feature, free to exceed 1 or to be negative; a `Featurizer`."""

    @property
    def rates(self) -> Mapping[str, float]:
        """One weight per feature, at the candidate's rate."""
        return {"weight": 1.0}

    def init(self, candidates: Candidates) -> Free:
        """Start with a full swap of the support."""
        return {"weight": jnp.ones(candidates.inside.shape)}

    def features(self, free: Free, candidate: Candidates, progress: Array) -> tuple[Array, Basis | None]:
        """Weight features as they are."""
        return self.final(free, candidate)

    def final(self, free: Free, candidate: Candidates) -> tuple[Array, Basis | None]:
        """Weight features as they are."""
        return free["weight"] * inside(candidate), candidate.basis

    def penalty(self, free: Free, candidate: Candidates, progress: Array) -> Array:
        """Price every feature by the size of its weight."""
        return jnp.asarray(candidate.sparsity) * jnp.abs(free["weight"] * inside(candidate)).sum()


def inside(candidate: Candidates) -> Float[Array, " M"]:
    """Return 1 on the features of the support and 0 elsewhere."""
    return jnp.asarray(candidate.inside).astype(jnp.float32)
