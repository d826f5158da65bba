"""Budgets, groups and one-shot choices: from scores to the units that stay.

Scores under kl are nats for every layer, so layers can be ranked together without normalising; variances cannot, they
change when a unit is rescaled. Groups (heads, tied channels) live and die together; a group's score is its units' sum,
or, for the exact elimination, the joint risk of its units (docs/method.md, Exact elimination).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import linalg

from abstraction.checks import finite, indices, number, whole
from abstraction.reduction.elimination import Path, check_moments, constant_units, given_root
from abstraction.reduction.moments import LawMoments
from abstraction.typing import AnyArray


def check_keep(keep: int, width: int, *, round_to: int = 1) -> int:
    """Return `keep` rounded up to a multiple, at most the width.

    Raises:
      ValueError: `keep` is no whole number in [1, width], or the multiple none of at least 1.
    """
    whole("keep", keep, 1, width)
    whole("multiple to round to", round_to)
    return min(-(-keep // round_to) * round_to, width)


def keep_highest(scores: Float[AnyArray, " D"], keep: int) -> Int[np.ndarray, " K"]:
    """Keep the units of highest score, sorted by index.

    The lowest scores are removed in order, ties by index, as a stable sort has it.

    Raises:
      ValueError: `keep` is out of range, or a score is not finite.
    """
    scores = finite("scores", scores).astype(np.float64)
    check_keep(keep, len(scores))
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - keep :])


def group_scores(scores: Float[AnyArray, " D"], groups: Sequence[Sequence[int]]) -> Float[np.ndarray, " G"]:
    """Sum the scores of each group.

    Raises:
      ValueError: the groups are not a partition of the units, or a score is not finite.
    """
    scores = finite("scores", scores).astype(np.float64)
    check_partition(groups, len(scores))
    return np.array([scores[list(group)].sum() for group in groups])


def members(groups: Sequence[Sequence[int]], chosen: AnyArray) -> Int[np.ndarray, " K"]:
    """Return the units of some groups, sorted.

    Raises:
      ValueError: a group that is not there, or chosen twice.
    """
    return np.sort(np.concatenate([np.asarray(groups[i]) for i in indices("groups", chosen, len(groups))]))


def check_partition(groups: Sequence[Sequence[int]], width: int) -> None:
    """Refuse groups that miss a unit, share one, or name one that is not there.

    Raises:
      ValueError: naming the units.
    """
    parts = [np.asarray(group) for group in groups]
    if any(part.ndim != 1 or (part.size and part.dtype.kind not in "iu") for part in parts):
        raise ValueError(f"got groups {[part.tolist() for part in parts[:3]]!r}, expected lists of whole numbers")
    named = np.concatenate([*parts, np.zeros(0, int)]).astype(int)
    missing = np.setdiff1d(np.arange(width), named)
    unknown = np.setdiff1d(named, np.arange(width))
    values, counts = np.unique(named, return_counts=True)
    shared = values[counts > 1]
    if len(missing) or len(unknown) or len(shared) or any(not len(group) for group in groups):
        raise ValueError(
            f"got groups that miss units {missing[:5].tolist()}, share {shared[:5].tolist()} and name unknown "
            f"{unknown[:5].tolist()}, expected every unit of 0 to {width - 1} in exactly one group"
        )


def allocate(
    scores: Mapping[str, Float[AnyArray, " D"]],
    keep: int,
    *,
    costs: Mapping[str, float] | None = None,
    min_keep: int = 1,
    round_to: int = 1,
) -> dict[str, Int[np.ndarray, " K"]]:
    """Spend one budget of units over several taps: the units of highest score per cost stay, wherever they are.

    Args:
      scores: per tap, in a unit that taps share (nats).
      keep: units to keep over all taps.
      costs: what a unit of each tap costs (parameters, multiply-adds), by default 1.
      min_keep: units every tap keeps at least.
      round_to: every tap keeps a multiple of this, where it is wide enough, so that more than `keep` may stay.

    Returns:
      Units kept per tap, sorted.

    Raises:
      ValueError: the budget is below what every tap keeps at least, or above all units there are; scores or costs
        that are not finite, no cost above 0, or costs of other taps.
    """
    if costs is not None and set(costs) != set(scores):
        raise ValueError(f"got costs of taps {sorted(costs)}, expected those of the scores, {sorted(scores)}")
    for tap in scores:
        finite(f"scores of {tap!r}", scores[tap])
        number(f"cost of {tap!r}", 1.0 if costs is None else costs[tap], float(np.finfo(float).tiny))
    whole("keep", keep)
    whole("units to keep at least", min_keep)
    widths = {tap: len(values) for tap, values in scores.items()}
    least = {
        tap: min(check_keep(min(min_keep, width), width, round_to=round_to), width) for tap, width in widths.items()
    }
    if not sum(least.values()) <= keep <= sum(widths.values()):
        raise ValueError(
            f"got keep {keep} over taps {widths}, expected {sum(least.values())} (at least {least}) to "
            f"{sum(widths.values())}"
        )
    cost = {tap: 1.0 if costs is None else float(costs[tap]) for tap in scores}
    ranked = {tap: np.argsort(-np.asarray(values, np.float64), kind="stable") for tap, values in scores.items()}
    spare = [
        (float(np.asarray(scores[tap])[unit]) / cost[tap], tap) for tap in scores for unit in ranked[tap][least[tap] :]
    ]
    spare.sort(key=lambda entry: -entry[0])
    counts = dict(least)
    for _, tap in spare[: keep - sum(least.values())]:
        counts[tap] += 1
    return {
        tap: np.sort(ranked[tap][: check_keep(count, widths[tap], round_to=round_to)]) for tap, count in counts.items()
    }


def eliminate_groups(
    hessian: Float[AnyArray, "D D"],
    moments: LawMoments,
    groups: Int[AnyArray, "G M"],
    *,
    keep: int,
    root: Float[AnyArray, "R D"] | None = None,
) -> Path:
    """Remove groups one by one, each time the one whose affine fold costs least, exactly.

        cost of G = tr(V_G P_GG^-1 V_G^T),   V_R <- V_R - V_G P_GG^-1 P_GR,   P_RR <- P_RR - P_RG P_GG^-1 P_GR

    Args:
      hessian: curvature at the tap, `[D, D]`.
      moments: observational ones, `law_moments(statistics, (0.0,))`.
      groups: units of each group, equally many, `[G, M]`.
      keep: groups to keep.
      root: V with V^T V = H, where one is at hand.

    Returns:
      The path over groups.

    Raises:
      ValueError: moments of another law, groups that are no partition, `keep` out of range.
    """
    groups = np.asarray(groups)
    check_partition(groups.tolist(), check_moments(moments))
    check_keep(keep, len(groups))
    if not np.array_equal(moments.cross, moments.target):
        raise ValueError("got moments under interchanges, expected observational ones, law (0.0,)")
    dead = constant_units(moments)
    regressor = np.where(dead[:, None] | dead[None, :], 0.0, moments.regressor) + np.diag(dead.astype(float))
    metric = np.where(dead, 0.0, given_root(hessian, root))
    with jax.enable_x64(True):
        order, increases = _eliminate_groups(metric, linalg.inv(regressor), groups, len(groups) - keep)
        return Path(np.asarray(order), np.asarray(increases), len(groups))


@partial(jax.jit, static_argnames=("steps",))
def _eliminate_groups(
    metric: Float[Array, "R D"], inverse: Float[Array, "D D"], groups: Int[Array, "G M"], steps: int
) -> tuple[Int[Array, " T"], Float[Array, " T"]]:
    def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        live, metric, inverse = state

        def cost(alive: Array, units: Array) -> Array:
            columns = metric[:, units]
            block = jnp.where(alive, inverse[jnp.ix_(units, units)], jnp.eye(len(units), dtype=inverse.dtype))
            return jnp.where(alive, (columns * jnp.linalg.solve(block, columns.T).T).sum(), jnp.inf)

        costs = jax.vmap(cost)(live, groups)
        chosen = jnp.argmin(costs)
        units = groups[chosen]
        solved = jnp.linalg.solve(inverse[jnp.ix_(units, units)], inverse[units])
        metric = (metric - metric[:, units] @ solved).at[:, units].set(0.0)
        inverse = inverse - inverse[:, units] @ solved
        return (live.at[chosen].set(False), metric, inverse), (chosen, costs[chosen])

    start = (jnp.ones(len(groups), bool), metric, inverse)
    return jax.lax.scan(step, start, None, length=steps)[1]
