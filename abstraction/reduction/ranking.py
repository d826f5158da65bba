"""The order in which the units of a tap go: statistics, scores, and the exact elimination, one pass.

Source: CMR, arXiv 2602.24266; steps 1 and 2 of `pipeline`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from abstraction.checks import indices, one_of
from abstraction.models import Network
from abstraction.models.network import check_network
from abstraction.models.wiring import find_array
from abstraction.reduction.calibration import Calibration, calibration_of
from abstraction.reduction.discrepancies import DISCREPANCIES
from abstraction.reduction.elimination import Path, eliminate, eliminate_constants
from abstraction.reduction.folding import reducible, starts_at_zero
from abstraction.reduction.methods import METHODS, Method
from abstraction.reduction.moments import LawMoments, Statistics, about_origin, collect_statistics, law_moments
from abstraction.reduction.scores import constant_risk, taylor_scores, unit_scores
from abstraction.reduction.selection import (
    allocate,
    check_partition,
    eliminate_groups,
    group_scores,
    keep_highest,
    members,
)


class Ranking(NamedTuple):
    """The order in which the units of a tap go.

    Attributes:
      network: what they are units of.
      tap: where.
      method: how they were ranked.
      calibration: what they were ranked on.
      origin: folds go through the origin, about which all moments are.
      statistics: of the tap.
      moments: of the tap under the method's law.
      scores: per unit; of an elimination, what its removal added to the risk.
      path: of an elimination, its order.
      groups: units that stay or go together.
      warning: why the result cannot be trusted, or None.
    """

    network: Network
    tap: str
    method: Method
    calibration: Calibration
    origin: bool
    statistics: Statistics
    moments: LawMoments
    scores: Float[np.ndarray, " D"]
    path: Path | None
    groups: Sequence[Sequence[int]] | None
    warning: str | None

    def kept(self, keep: int) -> Int[np.ndarray, " K"]:
        """Return the units that stay; with groups, `keep` counts groups."""
        if self.groups is None:
            return keep_highest(self.scores, keep) if self.path is None else self.path.kept(keep)
        if self.path is not None:
            return members(self.groups, self.path.kept(keep))
        return members(self.groups, keep_highest(group_scores(self.scores, self.groups), keep))

    def keeping(self, units: ArrayLike) -> "Ranking":
        """Return a ranking by which these units, chosen in another way, stay where as many are kept.

        Raises:
          ValueError: units that are not there or repeat, or a ranking of groups.
        """
        if self.groups is not None:
            raise ValueError("got units for a ranking of groups, expected one of units")
        scores = np.zeros(self.statistics.width)
        scores[indices("kept units", units, self.statistics.width)] = 1.0
        return self._replace(scores=scores, path=None)


def rank_units(
    network: Network,
    inputs: Any,
    tap: str,
    method: Method = METHODS["cmr"],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    key: Array | None = None,
    batch_size: int = 512,
) -> Ranking:
    """Collect a tap's statistics and rank its units.

    Args:
      network: what to reduce.
      inputs: calibration inputs `[N, ...]`, or a `Calibration` with the labels that the method reads.
      tap: where.
      method: how.
      groups: units that stay or go together (heads); an elimination takes groups of equal size, observed.
      key: randomness of `random` and of Monte-Carlo curvature.
      batch_size: examples per run.

    Raises:
      ValueError: the tap is unknown, the method no `Method`, what `check_calibration` refuses, labels or a key are
        missing, groups do not fit, or activations are not finite.
    """
    calibration = calibration_of(inputs)
    check_method(method)
    one_of("tap", tap, sorted(network.taps))
    if groups is not None:
        check_partition(groups, network.taps[tap].width)
        if method.selector == "greedy-constants":
            raise ValueError("got groups for the selector 'greedy-constants', expected 'elimination' or a criterion")
    statistics = collect_statistics(
        network,
        calibration,
        tap,
        discrepancy=DISCREPANCIES[method.discrepancy],
        curvature=method.curvature,
        key=key,
        batch_size=batch_size,
    )
    return rank_measured(network, calibration, tap, method, Measured(statistics), groups=groups, key=key)


class Measured(NamedTuple):
    """What is known of a tap before its units are ranked.

    Attributes:
      statistics: of the tap.
      root: V with V^T V the curvature, `[R, D]`, where it is at hand; otherwise an elimination finds one.
      least: units, or groups, that will be kept at least; an elimination ends there.
    """

    statistics: Statistics
    root: Float[np.ndarray, "R D"] | None = None
    least: int = 1


def rank_measured(
    network: Network,
    calibration: Calibration,
    tap: str,
    method: Method,
    measured: Measured,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    key: Array | None = None,
) -> Ranking:
    """Rank the units of a tap by statistics that are there already.

    Args:
      network: what to reduce.
      calibration: what the statistics are of.
      tap: where.
      method: how; its discrepancy is that of the statistics.
      measured: statistics of the tap.
      groups: units that stay or go together.
      key: randomness of `random`.

    Raises:
      ValueError: what `rank_units` refuses of all but the inputs.
    """
    statistics = measured.statistics
    origin = method.folding == "zero" or (method.folding == "affine" and starts_at_zero(network, tap))
    moments, observed = (
        law_moments(statistics, law, ridge=method.ridge, origin=origin) for law in (method.law, (0.0,))
    )
    statistics = about_origin(statistics) if origin else statistics
    path = _path(measured._replace(statistics=statistics), moments if groups is None else observed, method, groups)
    warning = None
    if method.folding == "curvature-constant" or method.selector == "curvature":
        warning = constant_risk(statistics, relative=method.relative_flat).warning
    none = np.zeros(0)
    ranking = Ranking(network, tap, method, calibration, origin, statistics, moments, none, path, groups, warning)
    return ranking._replace(scores=_scores(ranking, key) if path is None else _path_scores(path, groups))


def check_method(method: Any) -> None:
    """Refuse what is no method, a preset's name for one.

    Raises:
      ValueError: saying how to look a name up.
    """
    if not isinstance(method, Method):
        raise ValueError(f"got method {method!r}, expected a Method; `method_named` looks presets up by name")


def _path(
    measured: Measured, moments: LawMoments, method: Method, groups: Sequence[Sequence[int]] | None
) -> Path | None:
    """Run the elimination, where the method is one."""
    statistics, root, least = measured
    if method.selector == "greedy-constants":
        return eliminate_constants(statistics.hessian, statistics.covariance, keep=least)
    if method.selector != "elimination":
        return None
    if groups is None:
        return eliminate(statistics.hessian, moments, keep=least, root=root)
    return eliminate_groups(statistics.hessian, moments, _table(groups), keep=least, root=root)


def share_budget(
    rankings: Sequence[Ranking],
    keep: int,
    *,
    costs: Mapping[str, float] | None = None,
    min_keep: int = 1,
    round_to: int = 1,
) -> dict[str, int]:
    """Spend one budget over several taps: how many units each keeps, the dearest to remove staying wherever they are.

    Along an elimination a unit is worth what its removal added to the risk, and no less than those that went before.

    Args:
      rankings: of the taps, by one method, so that their scores share a unit.
      keep: units to keep in all.
      costs: what a unit of each tap costs, by default 1.
      min_keep: units every tap keeps at least.
      round_to: every tap keeps a multiple of this.

    Raises:
      ValueError: rankings of several methods, with groups, or by a criterion whose unit differs between taps.
    """
    methods = {ranking.method for ranking in rankings}
    comparable = all(m.selector in ("elimination", "greedy-constants", "curvature", "taylor", "obd") for m in methods)
    if len(methods) != 1 or not comparable or any(ranking.groups is not None for ranking in rankings):
        raise ValueError(
            f"got rankings by {sorted(m.selector for m in methods)}, expected one method without groups whose scores "
            "are losses: elimination, greedy-constants, curvature, taylor or obd"
        )
    worth = {ranking.tap: ranking.scores if ranking.path is None else _worth(ranking.path) for ranking in rankings}
    shared = allocate(worth, keep, costs=costs, min_keep=min_keep, round_to=round_to)
    return {tap: len(units) for tap, units in shared.items()}


def _worth(path: Path) -> Float[np.ndarray, " D"]:
    increases = np.maximum.accumulate(path.increases)
    worth = np.full(path.width, np.inf)
    worth[path.order] = increases
    return np.where(np.isinf(worth), increases[-1] if len(increases) else 0.0, worth)


def _path_scores(path: Path, groups: Sequence[Sequence[int]] | None) -> Float[np.ndarray, " D"]:
    """Score units by the risk of the path up to their removal; those that are never removed are worth most."""
    total = np.cumsum(path.increases)
    scores = np.full(path.width, total[-1] if len(total) else 0.0)
    scores[path.order] = total
    if groups is None:
        return scores
    of_units = np.zeros(sum(len(group) for group in groups))
    for group, score in zip(groups, scores, strict=True):
        of_units[list(group)] = score
    return of_units


def _table(groups: Sequence[Sequence[int]]) -> Int[np.ndarray, "G M"]:
    if len({len(group) for group in groups}) != 1:
        raise ValueError(
            f"got groups of {sorted({len(group) for group in groups})} units for an elimination, expected equally many "
            "in each; a criterion takes any groups"
        )
    return np.asarray(groups)


def _scores(ranking: Ranking, key: Array | None) -> Float[np.ndarray, " D"]:
    method, statistics, tap = ranking.method, ranking.statistics, ranking.tap
    if method.selector == "curvature":
        return constant_risk(statistics, relative=method.relative_flat).score
    weights = taylor = None
    if method.selector in ("magnitude", "wanda", "flap"):
        weights = reader_weights(ranking.network, tap)
    if method.selector == "taylor":
        taylor = taylor_scores(ranking.network, ranking.calibration, tap, statistics.mean)
    return unit_scores(method.selector, statistics, weights=weights, taylor=taylor, key=key)  # pyright: ignore[reportArgumentType]


def reader_weights(network: Network, tap: str) -> Float[np.ndarray, "M D"]:
    """Stack everything that reads a tap, a row per number read and a column per unit.

    Raises:
      ValueError: the model does not tell what reads the tap, or the weights are not the model's.
    """
    check_network(network)
    rows = []
    for consumer in reducible(network).consumers(tap):
        kernel = np.asarray(find_array(network.params, consumer.kernel))
        moved = np.moveaxis(kernel, consumer.axes, tuple(range(-len(consumer.axes), 0)))
        rows.append(moved.reshape(-1, network.taps[tap].width))
    return np.concatenate(rows)
