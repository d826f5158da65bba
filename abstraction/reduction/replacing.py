"""What replaces the units that go: constants or affine maps, fitted as the method says.

Source: CMR, arXiv 2602.24266; step 4 of `pipeline`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from abstraction.reduction.calibration import shared_calibration
from abstraction.reduction.curvature import by_position, gauss_newton_rows, replacement_hessian
from abstraction.reduction.discrepancies import DISCREPANCIES
from abstraction.reduction.fitting import (
    Fit,
    choose_parents,
    correlated_parents,
    fit_affine,
    fit_sparse,
    fit_weighted,
    replaced_units,
)
from abstraction.reduction.folding import Fold, affine_fold
from abstraction.reduction.ranking import Ranking
from abstraction.reduction.scores import constant_risk, joint_constants
from abstraction.sharding import on_host


def fitted_fold(ranking: Ranking, kept: Int[np.ndarray, " K"]) -> tuple[Fold, dict[str, Any]]:
    """Fit what replaces the units that are not kept, and note how.

    Raises:
      ValueError: too few calibration inputs for affine maps.
    """
    method, statistics = ranking.method, ranking.statistics
    replaced = replaced_units(kept, statistics.width)
    notes: dict[str, Any] = {"method": method.about, "keep": len(kept)}
    if ranking.warning is not None:
        notes["warning"] = ranking.warning
    examples = float(statistics.count) * float(statistics.positions)
    if method.folding == "affine" and len(replaced) and examples <= min(len(kept), method.parents or len(kept)):
        raise ValueError(
            f"got {examples:.0f} calibration values per unit for affine maps of {len(kept)} kept units, expected more "
            "than kept units; give more inputs, keep fewer, or choose parents or constants"
        )
    if not len(replaced):
        fit = Fit(np.zeros(0), np.zeros((0, len(kept))))
    elif method.folding == "affine":
        fit = _affine(ranking, kept)
    elif method.folding == "zero":
        fit = Fit(np.zeros(len(replaced)), np.zeros((len(replaced), len(kept))))
    else:
        fit = Fit(_constants(ranking, replaced), np.zeros((len(replaced), len(kept))))
    return affine_fold(ranking.tap, kept, replaced, fit.intercept, fit.coefficients, width=statistics.width), notes


def _affine(ranking: Ranking, kept: Int[np.ndarray, " K"]) -> Fit:
    method, moments = ranking.method, ranking.moments
    if method.parents is None or method.parents >= len(kept):
        return fit_affine(moments, kept) if method.parent_rule != "authors" else _authors_fit(ranking, kept, len(kept))
    if method.parent_rule == "authors":
        return _authors_fit(ranking, kept, method.parents)
    return fit_sparse(moments, kept, choose_parents(moments, kept, method.parents, method.parent_rule))


def _authors_fit(ranking: Ranking, kept: Int[np.ndarray, " K"], parents: int) -> Fit:
    """Fit as CIP-Affine does: weights max(h, 1e-8), target a_j, absolute ridge 1e-4."""
    tap, calibration = ranking.tap, shared_calibration(ranking.network, ranking.calibration)
    _, recorded = ranking.network(calibration.inputs, record=(tap,))
    rows = gauss_newton_rows(ranking.network, calibration, tap, DISCREPANCIES[ranking.method.discrepancy])
    states, squares = on_host((by_position(recorded[tap]), (rows**2).sum(0)))
    curvature = np.asarray(squares, np.float64).reshape(-1, states.shape[-1])
    values = np.asarray(states, np.float64).reshape(curvature.shape)
    chosen = correlated_parents(values, kept, parents)
    weights = np.maximum(curvature[:, replaced_units(kept, values.shape[1])], 1e-8)
    return fit_weighted(values, weights, kept, chosen, origin=ranking.origin)


def _constants(ranking: Ranking, replaced: Int[np.ndarray, " S"]) -> Float[np.ndarray, " S"]:
    method, statistics = ranking.method, ranking.statistics
    if method.folding == "constant":
        return np.asarray(statistics.mean)[replaced]
    if method.folding == "curvature-constant":
        return constant_risk(statistics, relative=method.relative_flat).constant[replaced]
    calibration = shared_calibration(ranking.network, ranking.calibration)
    discrepancy = DISCREPANCIES[method.discrepancy]
    gradient, hessian = on_host(replacement_hessian(ranking.network, calibration, ranking.tap, discrepancy))
    return joint_constants(gradient, hessian, replaced)[0]
