"""Costs, scopes and distances as they enter a coupling: checked once, on the host, in units that fit float32.

A NaN cost would spread over a whole plan, -inf would take all of it, and +inf is a pair that is forbidden. A plan
depends on costs over eps only, so both may be divided by a power of two, which rounds nothing:

    plan(C, eps) = plan(C / u, eps / u)

That is done where the largest cost lies outside 2^-40 to 2^40. There float32 loses squares of costs, and with them
their spread: eps relative to a spread that has underflowed to 0 is no longer relative, and the plan is uniform.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from abstraction.typing import AnyArray

_ORDINARY = 40
_ASYMMETRY = 1e-4


def checked_scopes(scopes: AnyArray, sites: int) -> Bool[np.ndarray, "G S"]:
    """Return which sites each scope may use.

    Raises:
      ValueError: not a truth value per scope and site, or a scope without sites.
    """
    scopes = np.asarray(scopes)
    if scopes.ndim != 2 or not len(scopes) or scopes.shape[1] != sites or scopes.dtype != bool:
        raise ValueError(
            f"got scopes of shape {scopes.shape} and type {scopes.dtype}, expected truth values, one row per scope and "
            f"one column for each of {sites} sites"
        )
    empty = np.flatnonzero(~scopes.any(axis=1)).tolist()
    if empty:
        raise ValueError(f"got a scope without sites ({empty}), expected at least one site in each")
    return scopes


def checked_cost(cost: AnyArray, scopes: Bool[np.ndarray, "G S"]) -> Float[np.ndarray, "V S"]:
    """Return costs that transport is possible on.

    Raises:
      ValueError: a cost is NaN or -inf, or a scope forbids every pair of a variable or of one of its sites.
    """
    cost = matrix(cost, "costs")
    refuse(np.isnan(cost) | (cost == -np.inf), cost, "cost", "finite costs, or +inf to forbid a pair")
    allowed = np.isfinite(cost)
    if not allowed.all():
        for place, scope in enumerate(scopes):
            refuse_empty(allowed[:, scope], f"costs in scope {place}")
            lonely = np.flatnonzero(scope & ~allowed.any(axis=0)).tolist()
            if lonely:
                raise ValueError(f"got sites {lonely} forbidden for all variables, expected them out of scope {place}")
    return cost


def checked_distance(distance: AnyArray, what: str) -> Float[np.ndarray, "M M"]:
    """Return distances within one set of things.

    Raises:
      ValueError: not square, not finite, negative, not symmetric, or not 0 from a thing to itself.
    """
    distance = matrix(distance, f"{what} distances")
    if distance.shape[0] != distance.shape[1]:
        raise ValueError(f"got {what} distances of shape {distance.shape}, expected a square")
    refuse(~np.isfinite(distance) | (distance < 0), distance, f"{what} distance", "finite distances of 0 or more")
    slack = _ASYMMETRY * distance.max()
    refuse(np.abs(distance - distance.T) > slack, distance, f"{what} distance", "a symmetric matrix")
    refuse(np.diag(np.diag(distance) > slack), distance, f"{what} distance", "0 from a thing to itself")
    return distance


def matrix(values: AnyArray, what: str) -> Float[np.ndarray, "V S"]:
    """Return real numbers in two axes, neither of them empty.

    Raises:
      ValueError: they are something else.
    """
    values = np.asarray(values)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "biuf":
        raise ValueError(
            f"got {what} of shape {values.shape} and type {values.dtype}, expected numbers in two axes, variables and "
            "sites, with at least one of each"
        )
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)


def refuse(wrong: Bool[np.ndarray, "V S"], values: np.ndarray, what: str, expected: str) -> None:
    """Name the first value that is wrong, and its place.

    Raises:
      ValueError: one is.
    """
    if wrong.any():
        row, column = (int(axis[0]) for axis in np.nonzero(wrong))
        raise ValueError(f"got {what} {values[row, column]} at [{row}, {column}], expected {expected}")


def refuse_empty(allowed: Bool[np.ndarray, "V S"], what: str) -> None:
    """Name the variables for which nothing is allowed.

    Raises:
      ValueError: there are any.
    """
    rows = np.flatnonzero(~allowed.any(axis=1)).tolist()
    if rows:
        raise ValueError(f"got {what} that forbid every pair of variables {rows}, expected at least one for each")


def spread(cost: Float[np.ndarray, "V S"]) -> np.floating:
    """Return the standard deviation of the costs that are allowed, 0 where they are equal."""
    allowed = np.isfinite(cost)
    if not allowed.all():
        cost = cost[allowed]
    if cost.min() == cost.max():
        return np.float32(0)
    units = unit(cost)
    return cost.std() if units == 1 else np.float64((cost.astype(np.float64) / units).std() * units)


def unit(values: np.ndarray) -> float:
    """Return 1, or the power of two next to the largest finite value where float32 would lose its square."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    exponent = int(np.frexp(np.float64(largest))[1])
    return 1.0 if largest == 0 or abs(exponent) <= _ORDINARY else float(np.ldexp(1.0, exponent))


def in_units(values: AnyArray | Sequence[float], *units: float) -> Float[np.ndarray, "..."]:
    """Divide by each of the units, in float64, and return float32."""
    scaled = np.asarray(values, np.float64)
    for each in units:
        scaled = scaled / each
    with np.errstate(over="ignore", under="ignore"):
        return scaled.astype(np.float32)


def epsilons_in_units(epsilons: AnyArray | Sequence[float], *units: float) -> Float[np.ndarray, "..."]:
    """Divide eps by the units of its costs.

    Raises:
      ValueError: what is left is more than float32 can hold: eps is then 0 or infinite for these costs.
    """
    scaled = in_units(epsilons, *units)
    if not (scaled >= np.finfo(np.float32).tiny).all() or not np.isfinite(scaled).all():
        raise ValueError(
            f"got epsilons {np.asarray(epsilons).ravel().tolist()} for costs of the order of {np.prod(units):.3g}, "
            "expected a ratio that float32 can hold"
        )
    return scaled
