"""PLOT, coarse to fine (PLOT, Sec. 3.4):

    Stage A   couple the variables to full states, one site per depth; each variable goes to its heaviest depth
    Stage B   couple them to finer sites (coordinate groups, spans of principal components) at these depths only, at
              several resolutions; mask each row to its own depth; cut, calibrate, choose
    guide     hand what Stage B selected to an alignment search as its support

Stage B solves one coupling per resolution, or one for the union of all resolutions. Published variants are in
`VARIANTS`: `v1` (May 2026: the union, the kernel solver with its clamp, sites swapped one after another) and `v4`
(October 2026: one coupling per resolution, log domain). `ours` relaxes the neural marginal, which otherwise caps the
share of a row's mass that its best site can have (balanced plans use every site equally).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.checks import flag, kind, whole
from abstraction.evaluation import Recorded
from abstraction.interventions import SiteBank, state_sites
from abstraction.interventions.handles import check_depths
from abstraction.localization.calibration import SELECTION, Choice, Evidence, Selection, calibrate
from abstraction.localization.cutting import CutMenu, Grid, handle_grid
from abstraction.localization.effects import Effects, measure_effects
from abstraction.localization.pipeline import Localization, localize
from abstraction.localization.rules import Plans, ReferenceTransport, Rule, Scopes, Transport
from abstraction.localization.signatures import SIGNATURE, Signature
from abstraction.models import Network


@dataclasses.dataclass(frozen=True)
class Variant:
    """How both stages couple, cut and choose.

    Attributes:
      coarse: rule of Stage A.
      fine: rule of Stage B.
      menu: how Stage B cuts; sizes beyond the number of sites keep all of them.
      union: one coupling for all resolutions together, instead of one each.
      heaviest: how many of a row's heaviest depths Stage A swaps, each alone, to choose one.
      selection: how both stages choose.

    Raises:
      ValueError: an option of another kind, or fewer than one depth to swap.
    """

    coarse: Rule
    fine: Rule
    menu: CutMenu
    union: bool = False
    heaviest: int = 1
    selection: Selection = SELECTION

    def __post_init__(self) -> None:
        kind("coarse rule", self.coarse, Rule)
        kind("fine rule", self.fine, Rule)
        kind("menu", self.menu, CutMenu)
        flag("union", self.union)
        whole("heaviest", self.heaviest)
        kind("selection", self.selection, Selection)


_SHARED = Selection(shared_axis="epsilon", first_wins=True)
_STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
COARSE_EPSILONS, FINE_EPSILONS = (0.01, 0.03), (0.003, 0.01, 0.03, 0.1)

VARIANTS: dict[str, Variant] = {
    "v1": Variant(
        ReferenceTransport(COARSE_EPSILONS, iterations=80),
        ReferenceTransport(FINE_EPSILONS, iterations=80),
        CutMenu((1, 2, 4), _STRENGTHS, per_site=False, break_ties="order", overlap="after"),
        union=True,
        selection=_SHARED,
    ),
    "v4": Variant(
        Transport("joint", COARSE_EPSILONS, absolute=True),
        Transport("joint", FINE_EPSILONS, absolute=True),
        CutMenu((1, 2, 4), _STRENGTHS, per_site=False, break_ties="order", overlap="after"),
        selection=_SHARED,
    ),
    "ours": Variant(
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(0.5,)),
        Transport("joint", (0.03, 0.1, 0.3, 1.0), taus=(1.0, 0.5)),
        CutMenu((1, 2, 3, 4, 6, 8), tuple(round(0.5 + 0.1 * step, 1) for step in range(16))),
    ),
}
"""Named variants of the method; say which one a result is from."""


class Refinement(NamedTuple):
    """What Stage B found.

    Attributes:
      effects: what was measured, at the sites of all resolutions.
      plans: every coupling, rows masked to their depth; its axis `resolution` has one value for their union.
      fallback: whether a row had no mass at its depth and was left unmasked, `[*axes, V]`.
      grid: every handle tried.
      choice: the handles chosen.
    """

    effects: Effects
    plans: Plans
    fallback: Bool[np.ndarray, "... V"]
    grid: Grid
    choice: Choice


def coarse_stage(
    network: Network, fit: Recorded, variant: Variant, signature: Signature = SIGNATURE, *, evidence: Evidence
) -> Localization:
    """Stage A: couple full states, swap each row's heaviest whole, or the best of a few on the evidence.

    Args:
      network: the network.
      fit: recorded fit pairs; the depths of their tap are the sites.
      variant: how to couple and choose.
      signature: how effects are measured.
      evidence: the pairs to choose eps by.
    """
    effects = measure_effects(network, fit, state_sites(network.taps[fit.tap]), signature)
    tried = tuple(range(1, min(variant.heaviest, effects.sites.size) + 1))
    menu = CutMenu(tried, (1.0,), break_ties=variant.menu.break_ties, alone=True)
    return localize(network, effects, variant.coarse(effects), menu, evidence=evidence, selection=variant.selection)


def fine_stage(
    network: Network,
    fit: Recorded,
    menus: Mapping[str, SiteBank],
    depths: Sequence[int] | Int[np.ndarray, " V"],
    variant: Variant,
    signature: Signature = SIGNATURE,
    *,
    evidence: Evidence,
) -> Refinement:
    """Stage B: couple finer sites at the depths that Stage A chose.

    Args:
      network: the network.
      fit: recorded fit pairs.
      menus: sites by resolution, over all depths, on one basis.
      depths: where each variable goes.
      variant: how to couple, cut and choose.
      signature: how effects are measured.
      evidence: the pairs to choose by.

    Raises:
      ValueError: there is no menu, one has no site at the depth of some variable, they differ in basis or tap, or
        there is not one depth per variable.
    """
    depths = np.asarray(depths)
    if depths.shape != (len(fit.variables),):
        raise ValueError(f"got {depths.size} depths, expected one for each of {list(fit.variables)}")
    check_depths(depths, network.taps[fit.tap])
    banks = {name: _at_depths(name, sites, depths, fit.variables) for name, sites in menus.items()}
    if not banks:
        raise ValueError("got an empty stage menu, expected sites of at least one resolution")
    sites, scopes = _joined(banks, variant.union)
    effects = measure_effects(network, fit, sites, signature)
    plans, fallback = mask_rows(variant.fine(effects, scopes), sites, depths)
    sizes = tuple(min(size, sites.size) for size in variant.menu.subset_sizes)
    menu = dataclasses.replace(variant.menu, subset_sizes=sizes)
    grid = handle_grid(plans.coupling.plan, effects.cost, sites, plans.axes, menu)
    choice = calibrate(network, evidence, grid, variant.selection)
    return Refinement(effects, plans, fallback, grid, choice)


def mask_rows(plans: Plans, sites: SiteBank, depths: Int[np.ndarray, " V"]) -> tuple[Plans, Bool[np.ndarray, "... V"]]:
    """Keep each row's mass at its own depth; a row without mass there keeps all of it.

    Returns:
      The masked plans (cutting renormalises), and which rows fell back.
    """
    coupling = jax.device_get(plans.coupling)
    own = np.asarray(sites.depth) == np.asarray(depths)[:, None]
    masked = np.nan_to_num(coupling.plan) * own
    fallback = masked.sum(axis=-1) <= 0
    plan = np.where(fallback[..., None], coupling.plan, masked)
    return Plans(dataclasses.replace(coupling, plan=plan), plans.axes), fallback


def chosen_rows(plans: Plans, choice: Choice) -> Float[np.ndarray, "V S"]:
    """Return the row of the plan that each variable's handle was cut from."""
    plan, rows = np.asarray(plans.coupling.plan), []
    for variable, setting in enumerate(choice.settings):
        place = tuple(values.index(setting[axis]) for axis, values in plans.axes)
        rows.append(plan[(*place, variable)])
    return np.stack(rows)


def evidence_support(mass: Float[np.ndarray, " S"], sites: SiteBank, share: float) -> tuple[int, list[int]]:
    """Return the smallest set of features at the heaviest depth that holds a share of a row's evidence.

    The evidence of a feature is the mass of the sites that contain it, each divided by the size of the site.

    Args:
      mass: one row of a plan.
      sites: its columns.
      share: in (0, 1].

    Returns:
      The depth, and the features in order.

    Raises:
      ValueError: the share is out of range, or the row is not one of a mass per site, none of them negative, of which
        there is some.
    """
    mass = np.asarray(mass)
    if mass.shape != (sites.size,) or not (mass >= 0).all() or not np.isfinite(mass).all():
        raise ValueError(
            f"got masses {mass.ravel()[:8].tolist()} of shape {mass.shape}, expected a finite mass of 0 or more for "
            f"each of {sites.size} sites, and some mass"
        )
    if not 0 < share <= 1 or not mass.sum() > 0:
        raise ValueError(f"got share {share} of a row of mass {mass.sum()}, expected a share in (0, 1] of some mass")
    size = np.maximum(sites.counts, 1)
    evidence = sites.union(mass / size)
    depth = int(evidence.sum(axis=1).argmax())
    order = np.argsort(-evidence[depth], kind="stable")
    held = np.cumsum(evidence[depth][order]) / evidence[depth].sum()
    count = int(np.searchsorted(held, share - 1e-9)) + 1
    return depth, sorted(order[:count].tolist())


def _at_depths(name: str, sites: SiteBank, depths: Int[np.ndarray, " V"], variables: Sequence[str]) -> SiteBank:
    there = np.asarray(sites.depth)
    for variable, depth in zip(variables, depths, strict=True):
        if depth not in there:
            raise ValueError(
                f"got a menu {name!r} without a site at depth {depth}, where {variable!r} is; expected sites at depths "
                f"{sorted(set(depths.tolist()))}, got some at {sorted(set(there.tolist()))}"
            )
    return sites.take(np.isin(there, depths))


def _joined(banks: Mapping[str, SiteBank], union: bool) -> tuple[SiteBank, Scopes]:
    """Join the sites of all resolutions, and couple each resolution on its own or all together."""
    every = list(banks.values())
    if len(kinds := {(id(bank.basis), bank.tap, bank.features) for bank in every}) != 1:
        raise ValueError(
            f"got menus {list(banks)} on {len(kinds)} bases or taps, expected one basis of one tap for all"
        )
    most = max(np.shape(bank.index)[1] for bank in every)
    widened = lambda array: np.pad(array, ((0, 0), (0, most - np.shape(array)[1])))
    sites = dataclasses.replace(
        every[0],
        depth=np.concatenate([bank.depth for bank in every]),
        index=np.concatenate([widened(bank.index) for bank in every]),
        value=np.concatenate([widened(bank.value) for bank in every]),
    )
    if union:
        return sites, Scopes("resolution", ("union",), np.ones((1, sites.size), bool))
    owner = np.repeat(np.arange(len(every)), [bank.size for bank in every])
    return sites, Scopes("resolution", tuple(banks), owner == np.arange(len(every))[:, None])
