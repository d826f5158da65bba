"""From coupling to handle.

A row of a plan becomes a handle in three steps (PLOT, Sec. 3.3): keep the K heaviest sites, renormalise their
weights to sum to one, multiply by a strength. Every (scope, eps, K, strength, variable) is one row of one array.

Sites that overlap either add up, or are swapped one after another: successive interpolations towards one source
leave 1 - (1 - w_1)(1 - w_2) ... of it, whatever their order.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from abstraction.checks import flag, one_of, positive, whole
from abstraction.interventions import Basis, SiteBank
from abstraction.localization.couplings import TIE_RTOL
from abstraction.typing import AnyArray


class Grid(NamedTuple):
    """Candidate handles and what each axis means. Host arrays: cutting is cheap, evaluating is what is compiled.

    Attributes:
      weight: handle weights, strength included, `[V, *axes, L, K]`.
      cost: transport cost of each handle, `[V, *axes]`: the mean cost of its sites under its weights.
      ambiguous: whether the last site kept ties with the first one dropped, in mass and cost, `[V, *axes]`.
      axes: name and values of every axis after V.
      tap: the tap the weights are at.
      basis: the features the weights are on, per depth, or None for native coordinates.
    """

    weight: Float[np.ndarray, "V ... L K"]
    cost: Float[np.ndarray, "V ..."]
    ambiguous: Bool[np.ndarray, "V ..."]
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    tap: str
    basis: Basis | None = None

    def only(self, name: str, values: Collection[Any]) -> "Grid":
        """Keep some values of one axis.

        Raises:
          ValueError: there is no such axis, or none of the values is on it.
        """
        names = [axis for axis, _ in self.axes]
        if name not in names:
            raise ValueError(f"got axis {name!r}, expected one of {names}")
        axis = names.index(name)
        kept = [index for index, value in enumerate(self.axes[axis][1]) if value in values]
        if not kept:
            raise ValueError(f"got values {list(values)} of axis {name!r}, expected some of {list(self.axes[axis][1])}")
        axes = [(n, tuple(v[i] for i in kept)) if n == name else (n, v) for n, v in self.axes]
        pick = lambda array: np.take(array, kept, axis=axis + 1)
        return Grid(pick(self.weight), pick(self.cost), pick(self.ambiguous), tuple(axes), self.tap, self.basis)


@dataclasses.dataclass(frozen=True)
class CutMenu:
    """How plans are cut into handles.

    Attributes:
      subset_sizes: K, sites to keep.
      strengths: how far to move.
      per_site: a strength r moves the average kept site by r, so the weights of a handle sum to r K (also where fewer
        than K sites have mass, which then move further); otherwise, as in the paper, they sum to r, and a full swap
        of K sites needs r = K.
      break_ties: whether sites of equal mass are kept by `cost`, cheapest first, or in site `order` as in the paper.
      overlap: whether the weights of sites that overlap `add` up, or the sites are swapped one `after` another.
      alone: K picks the K-th heaviest site, alone, instead of the K heaviest together.

    Raises:
      ValueError: no sizes or strengths, one that is not positive and finite, or an unknown word.
    """

    subset_sizes: tuple[int, ...]
    strengths: tuple[float, ...]
    per_site: bool = True
    break_ties: Literal["cost", "order"] = "cost"
    overlap: Literal["add", "after"] = "add"
    alone: bool = False

    def __post_init__(self) -> None:
        positive("subset sizes", self.subset_sizes)
        for size in self.subset_sizes:
            whole("subset size", size)
        positive("strengths", self.strengths)
        one_of("break_ties", self.break_ties, ("cost", "order"))
        one_of("overlap", self.overlap, ("add", "after"))
        flag("per_site", self.per_site)
        flag("alone", self.alone)


def handle_grid(
    plan: Float[AnyArray, "*B V S"],
    cost: Float[AnyArray, "V S"],
    sites: SiteBank,
    axes: Sequence[tuple[str, Sequence[Any]]],
    menu: CutMenu,
) -> Grid:
    """Cut every row of every plan at every K, at every strength.

    Args:
      plan: couplings over leading axes `*B`.
      cost: transport cost of every variable and site.
      sites: what the columns are.
      axes: names and values of the axes `*B`.
      menu: how to cut.

    Returns:
      A grid with axes `*B`, `subset`, `strength`. A row without mass gives handles that change nothing.

    Raises:
      ValueError: K exceeds the number of sites, plan and cost are not over these sites, a cost is NaN, or the axes are
        not those of the plan.
    """
    sizes, strengths = np.asarray(menu.subset_sizes), np.asarray(menu.strengths, np.float32)
    if np.shape(plan)[-2:] != np.shape(cost) or np.shape(cost)[-1] != sites.size:
        raise ValueError(
            f"got a plan of shape {np.shape(plan)} and a cost of shape {np.shape(cost)}, expected both over "
            f"{sites.size} sites and the same variables"
        )
    lengths = tuple(len(values) for _, values in axes)
    if lengths != np.shape(plan)[:-2]:
        raise ValueError(
            f"got axes {[name for name, _ in axes]} of lengths {lengths}, expected {np.shape(plan)[:-2]}, those of "
            "the plan"
        )
    if np.isnan(np.asarray(cost)).any():
        raise ValueError("got a cost that is not a number, expected numbers, or +inf for a pair that is forbidden")
    if sizes.max() > sites.size:
        raise ValueError(
            f"got subset sizes {sizes.tolist()}, expected values from 1 to {sites.size}, the sites there are"
        )
    plan = np.nan_to_num(np.moveaxis(np.asarray(plan), -2, 0), nan=0.0, posinf=0.0, neginf=0.0)
    cost = np.broadcast_to(np.expand_dims(np.asarray(cost), tuple(range(1, plan.ndim - 1))), plan.shape)
    masses, ambiguous = _cut(plan, cost, sizes, menu.break_ties, menu.alone)
    counted = sizes[:, None] if menu.per_site and not menu.alone else np.ones((len(sizes), 1), np.float32)
    factors = strengths * counted
    if menu.overlap == "add":
        weight = sites.union(masses)[..., None, :, :] * factors[..., None, None]
    else:
        weight = sites.succession(masses[..., None, :] * factors[..., None])
    repeat = lambda values: np.repeat(values[..., None], len(strengths), axis=-1)
    return Grid(
        weight.astype(np.float32),
        # A forbidden pair costs +inf and has no mass: it is no part of the handle, nor of its cost.
        repeat((masses * np.where(masses > 0, cost[..., None, :], 0.0)).sum(axis=-1)),
        repeat(ambiguous),
        (*((n, tuple(v)) for n, v in axes), ("subset", menu.subset_sizes), ("strength", menu.strengths)),
        sites.tap,
        sites.basis,
    )


def _cut(
    mass: Float[np.ndarray, "... S"],
    cost: Float[np.ndarray, "... S"],
    sizes: Int[np.ndarray, " K"],
    break_ties: str,
    alone: bool,
) -> tuple[Float[np.ndarray, "... K S"], Bool[np.ndarray, "... K"]]:
    """Keep the heaviest sites of each row, renormalised; masses within a relative 1e-4 of the top are equal."""
    top = np.maximum(mass.max(axis=-1, keepdims=True), 1e-30)
    level = np.round(mass / top / TIE_RTOL)
    by_cost = break_ties == "cost"
    order = np.lexsort((cost, -level)) if by_cost else np.argsort(-mass, axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1)
    chosen = rank[..., None, :] == sizes[:, None] - 1 if alone else rank[..., None, :] < sizes[:, None]
    kept = np.where(chosen, mass[..., None, :], 0.0)
    kept = kept / np.maximum(kept.sum(axis=-1, keepdims=True), 1e-30)
    at = lambda values, positions: np.take_along_axis(values, np.take(order, positions, axis=-1), axis=-1)
    last, following = sizes - 1, np.minimum(sizes, mass.shape[-1] - 1)
    tied = (at(level, last) == at(level, following)) & (at(level, last) > 0) & (last != following)
    return kept, tied & (np.isclose(at(cost, last), at(cost, following)) | (not by_cost))
