"""Rules that couple variables to sites: transport, and what it is compared with.

A rule turns measured effects into plans. All rules share the steps before and after, so a comparison of two rules
is a comparison of their plans and of nothing else.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from abstraction.checks import flag, one_of, positive, whole
from abstraction.evaluation import Recorded, tally_handles
from abstraction.interventions import SiteBank
from abstraction.interventions.sites import check_sites
from abstraction.localization.couplings import (
    Coupling,
    gromov_wasserstein_couplings,
    nearest_coupling,
    reference_couplings,
    relative_epsilons,
    score_coupling,
    sinkhorn_couplings,
)
from abstraction.localization.distances import cosine_similarity
from abstraction.localization.effects import Effects, kept_signatures
from abstraction.models import Network

Scope = Literal["depth", "joint"]
_TOGETHER = 2048
"""Sites that are written as handles, over all features, at once."""


class Plans(NamedTuple):
    """Step 2: couplings, and the name and values of each of their leading axes."""

    coupling: Coupling
    axes: tuple[tuple[str, tuple[Any, ...]], ...]


class Scopes(NamedTuple):
    """Which sites may appear together in one handle; a rule couples each scope on its own.

    Attributes:
      axis: what scopes are, for people and for the axes of a grid.
      values: what each one is.
      mask: its sites, `[G, S]`.
    """

    axis: str
    values: tuple[Any, ...]
    mask: Bool[np.ndarray, "G S"]


@runtime_checkable
class Rule(Protocol):
    """A way to couple variables to sites, in the scopes that are given or else in its own."""

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans: ...


@dataclass(frozen=True)
class Transport:
    """Entropic transport in the log domain; eps relative to the spread of the costs in each scope.

    Attributes:
      scope: `depth` solves one problem per depth and keeps a handle within one; `joint` solves one for all sites.
      epsilons: eps over the standard deviation of the costs in scope.
      absolute: eps as it is, whatever the costs, as in the paper.
      taus: relaxations of the neural marginal; 1 is balanced transport.
      iterations: Sinkhorn iterations.
      tau_abstract: relaxation of the abstract marginal; 1 matches every variable in full.
    """

    scope: Scope = "depth"
    epsilons: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    taus: tuple[float, ...] = (1.0,)
    iterations: int = 2000
    tau_abstract: float = 1.0
    absolute: bool = False

    def __post_init__(self) -> None:
        positive("epsilons", self.epsilons)
        positive("tau_abstract", (self.tau_abstract,))
        positive("taus", self.taus)
        whole("iterations", self.iterations)
        flag("absolute", self.absolute)
        if max(self.tau_abstract, *self.taus) > 1:
            raise ValueError(f"got tau_abstract {self.tau_abstract} and taus {self.taus}, expected values in (0, 1]")
        _check_scope(self.scope)

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        scopes = _checked(scopes) or site_scopes(effects.sites, self.scope)
        epsilons = relative_epsilons(effects.cost, scopes.mask, self.epsilons)
        if self.absolute:
            epsilons = np.broadcast_to(np.asarray(self.epsilons, np.float32), epsilons.shape)
        couplings = [
            sinkhorn_couplings(
                effects.cost,
                epsilons,
                scopes.mask,
                tau_abstract=self.tau_abstract,
                tau_neural=tau,
                iterations=self.iterations,
            )
            for tau in self.taus
        ]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(couplings))
        return Plans(stacked, (("tau", self.taus), (scopes.axis, scopes.values), ("epsilon", self.epsilons)))


@dataclass(frozen=True)
class ReferenceTransport:
    """The authors' solver and grids: absolute eps, one joint problem.

    Attributes:
      epsilons: absolute values.
      beta_abstract: penalty of the abstract marginal, None for a hard one.
      beta_neural: penalties of the neural marginal; None is hard.
      iterations: kernel iterations.
    """

    epsilons: tuple[float, ...] = (0.01, 0.25, 2.0, 4.0, 8.0, 16.0)
    beta_abstract: float | None = None
    beta_neural: tuple[float | None, ...] = (None,)
    iterations: int = 500

    def __post_init__(self) -> None:
        positive("epsilons", self.epsilons)
        positive("neural betas", [1.0 if beta is None else beta for beta in self.beta_neural])
        positive("abstract betas", [1.0 if self.beta_abstract is None else self.beta_abstract])
        whole("iterations", self.iterations)

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        axes, scopes = (("beta", self.beta_neural), ("epsilon", self.epsilons)), _checked(scopes)
        if scopes is None:
            return Plans(self._solve(np.asarray(effects.cost)), axes)
        couplings = []
        for mask in scopes.mask:
            solved = jax.device_get(self._solve(np.asarray(effects.cost)[:, mask]))
            plan = np.zeros((*solved.plan.shape[:-1], len(mask)), np.float32)
            plan[..., mask] = solved.plan
            couplings.append(dataclasses.replace(solved, plan=plan))
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *couplings)
        return Plans(stacked, ((scopes.axis, scopes.values), *axes))

    def _solve(self, cost: Float[np.ndarray, "V S"]) -> Coupling:
        return reference_couplings(
            cost,
            self.epsilons,
            beta_abstract=self.beta_abstract,
            beta_neural=self.beta_neural,
            iterations=self.iterations,
        )


@dataclass(frozen=True)
class GromovWasserstein:
    """Match geometries instead of effects; alpha < 1 fuses in the cosine cost.

    Attributes:
      epsilons: absolute values; distances are cosine distances over their maximum.
      alpha: weight of the relational part.
      scope: masks the plan before handles are cut.
    """

    epsilons: tuple[float, ...] = (0.01, 0.03, 0.1)
    alpha: float = 1.0
    scope: Scope = "depth"

    def __post_init__(self) -> None:
        positive("epsilons", self.epsilons)
        positive("alpha", (self.alpha,))
        if self.alpha > 1:
            raise ValueError(f"got alpha {self.alpha}, expected a value in (0, 1]")
        _check_scope(self.scope)

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        scopes = _checked(scopes) or site_scopes(effects.sites, self.scope)
        abstract, neural = effects.abstract, kept_signatures(effects)
        coupling = gromov_wasserstein_couplings(
            _cosine_distance(abstract, abstract, diagonal=True),
            _cosine_distance(neural, neural, diagonal=True),
            self.epsilons,
            cross_cost=_cosine_distance(abstract, neural) if self.alpha < 1 else None,
            alpha=self.alpha,
        )
        return _scoped(coupling, scopes, (("epsilon", self.epsilons),))


@dataclass(frozen=True)
class Cosine:
    """Rank sites by the cosine of signatures: a row softmax of cos(u_i, v_j) / temperature."""

    temperature: float = 1.0
    scope: Scope = "depth"

    def __post_init__(self) -> None:
        positive("temperature", (self.temperature,))
        _check_scope(self.scope)

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        scores = cosine_similarity(effects.abstract, kept_signatures(effects))
        coupling = score_coupling(scores, temperature=self.temperature)
        return _scoped(coupling, _checked(scopes) or site_scopes(effects.sites, self.scope), ())


@dataclass(frozen=True, eq=False)
class BruteForce:
    """Rank sites by what each does alone: a row softmax of single-site scores / temperature.

    Attributes:
      scores: `[V, S]`, see `single_site_scores`; -inf forbids a site that was not measured.

    Raises:
      ValueError: a score is NaN or +inf, a variable has none, or the temperature or scope is not one.
    """

    scores: np.ndarray
    temperature: float = 1.0
    scope: Scope = "depth"

    def __post_init__(self) -> None:
        scores = np.asarray(self.scores)
        if scores.ndim != 2 or not (scores < np.inf).all() or not np.isfinite(scores).any(axis=1).all():
            raise ValueError(
                f"got scores of shape {np.shape(scores)}, expected finite numbers [V, S], or -inf for sites that were "
                "not measured, but not for all"
            )
        positive("temperature", (self.temperature,))
        _check_scope(self.scope)

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        coupling = score_coupling(self.scores, temperature=self.temperature)
        return _scoped(coupling, _checked(scopes) or site_scopes(effects.sites, self.scope), ())


@dataclass(frozen=True)
class Nearest:
    """Give each variable its site of least cost."""

    def __call__(self, effects: Effects, scopes: Scopes | None = None) -> Plans:
        scopes = _checked(scopes)
        if scopes is None:
            return Plans(nearest_coupling(effects.cost), ())
        costs = [np.where(mask, np.asarray(effects.cost), np.inf).astype(np.float32) for mask in scopes.mask]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get([*map(nearest_coupling, costs)]))
        return Plans(stacked, ((scopes.axis, scopes.values),))


def single_site_scores(
    network: Network, fit: Recorded, sites: SiteBank, kept: Bool[np.ndarray, "V S"] | None = None
) -> Float[np.ndarray, "V S"]:
    """Return the combined IIA on the fit bank of a full swap of each site alone.

    Args:
      network: the network.
      fit: recorded fit pairs.
      sites: the sites.
      kept: which of them to measure for which variable (`Screened.kept`), by default all; the others score -inf.

    Raises:
      ValueError: the bank is not a fit bank, sites that do not fit their tap, or a mask of another shape.
    """
    if fit.bank.role != "fit":
        raise ValueError(f"got a {fit.bank.role} bank to rank sites on, expected a fit bank")
    variables = len(fit.variables)
    if sites.tap not in network.taps:
        raise ValueError(f"got sites of tap {sites.tap!r}, expected one of {sorted(network.taps)}")
    check_sites(sites, network.taps[sites.tap])
    kept = np.ones((variables, sites.size), bool) if kept is None else np.asarray(kept)
    if kept.shape != (variables, sites.size) or kept.dtype != bool or not kept.any():
        raise ValueError(
            f"got a mask of shape {kept.shape} and type {kept.dtype}, expected truth values "
            f"{(variables, sites.size)}, at least one of them true"
        )
    scores = np.full(kept.shape, -np.inf)
    for start in range(0, sites.size, _TOGETHER):
        variable, column = np.nonzero(kept[:, start : start + _TOGETHER])
        if len(column):
            handles = sites.take(column + start).handles()
            scores[variable, column + start] = tally_handles(network, fit, handles, variable).combined
    return scores


def site_scopes(sites: SiteBank, scope: Scope) -> Scopes:
    """Let all sites appear together in one handle, or those of one depth.

    Raises:
      ValueError: an unknown scope.
    """
    _check_scope(scope)
    if scope == "joint":
        return Scopes("scope", (0,), np.ones((1, sites.size), bool))
    depths = np.asarray(sites.depth)
    masks = np.stack([depths == depth for depth in np.unique(depths)])
    return Scopes("scope", tuple(range(len(masks))), masks)


def _check_scope(scope: str) -> None:
    one_of("scope", scope, get_args(Scope))


def _checked(scopes: Scopes | None) -> Scopes | None:
    if scopes is not None and not scopes.mask.any(axis=1).all():
        empty = [value for value, mask in zip(scopes.values, scopes.mask, strict=True) if not mask.any()]
        raise ValueError(f"got {scopes.axis} {empty} without sites, expected at least one site in each scope")
    return scopes


def _scoped(coupling: Coupling, scopes: Scopes, axes: Sequence[tuple[str, tuple]]) -> Plans:
    """Mask a plan to each scope; cutting renormalises what is left."""
    count = len(scopes.mask)
    coupling = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (count, *leaf.shape)), jax.device_get(coupling))
    masks = np.expand_dims(scopes.mask, tuple(range(1, coupling.plan.ndim - 1)))
    return Plans(dataclasses.replace(coupling, plan=coupling.plan * masks), ((scopes.axis, scopes.values), *axes))


def _cosine_distance(first: Array, second: Array, *, diagonal: bool = False) -> np.ndarray:
    distance = np.maximum(1 - np.asarray(cosine_similarity(first, second)), 0.0)
    if diagonal:
        np.fill_diagonal(distance, 0.0)
    return distance / max(distance.max(), 1e-30)
