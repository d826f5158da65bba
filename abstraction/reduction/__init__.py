"""Mechanism reduction: replace units by constants or affine maps of others, fold, compile, certify."""

from abstraction.reduction.compiling import Bill, bill, compile_plan, latency, patch
from abstraction.reduction.curvature import (
    fisher_diagonal,
    gauss_newton_product,
    gauss_newton_rows,
    hessian_diagonal,
    hessian_vector_product,
    hutchinson_diagonal,
    last_layer_curvature,
    replacement_hessian,
    tap_gradient,
)
from abstraction.reduction.discrepancies import CE, DISCREPANCIES, KL, LOGIT, MSE, Discrepancy, custom_discrepancy
from abstraction.reduction.elimination import Path, eliminate, eliminate_constants
from abstraction.reduction.fitting import choose_parents, distortion, fit_affine, fit_sparse, fit_weighted
from abstraction.reduction.folding import Fold, Reduced, affine_fold, constant_fold, fold_params
from abstraction.reduction.methods import METHODS, MIXTURE, Method, method_named
from abstraction.reduction.moments import LawMoments, Statistics, collect_statistics, law_moments, merge_statistics
from abstraction.reduction.pipeline import Reduction, compose_folds, reduce_network, replace_units
from abstraction.reduction.plans import Plan, load_plan, reduction_plan
from abstraction.reduction.ranking import Calibration, Ranking, rank_units, reader_weights, share_budget
from abstraction.reduction.refitting import Refitted, refit_readers
from abstraction.reduction.risk import Risk, interventional_risk, replacement_effects, second_order_risk
from abstraction.reduction.scores import (
    ConstantRisk,
    constant_risk,
    joint_constants,
    off_diagonal_share,
    set_risk,
    taylor_scores,
    unit_scores,
)
from abstraction.reduction.selection import allocate, eliminate_groups, group_scores, keep_highest

__all__ = [
    "CE",
    "DISCREPANCIES",
    "KL",
    "LOGIT",
    "METHODS",
    "MIXTURE",
    "MSE",
    "Bill",
    "Calibration",
    "ConstantRisk",
    "Discrepancy",
    "Fold",
    "LawMoments",
    "Method",
    "Path",
    "Plan",
    "Ranking",
    "Reduced",
    "Reduction",
    "Refitted",
    "Risk",
    "Statistics",
    "affine_fold",
    "allocate",
    "bill",
    "choose_parents",
    "collect_statistics",
    "compile_plan",
    "compose_folds",
    "constant_fold",
    "constant_risk",
    "custom_discrepancy",
    "distortion",
    "eliminate",
    "eliminate_constants",
    "eliminate_groups",
    "fisher_diagonal",
    "fit_affine",
    "fit_sparse",
    "fit_weighted",
    "fold_params",
    "gauss_newton_product",
    "gauss_newton_rows",
    "group_scores",
    "hessian_diagonal",
    "hessian_vector_product",
    "hutchinson_diagonal",
    "interventional_risk",
    "joint_constants",
    "keep_highest",
    "last_layer_curvature",
    "latency",
    "law_moments",
    "load_plan",
    "merge_statistics",
    "method_named",
    "off_diagonal_share",
    "patch",
    "rank_units",
    "reader_weights",
    "reduce_network",
    "reduction_plan",
    "refit_readers",
    "replace_units",
    "replacement_effects",
    "replacement_hessian",
    "second_order_risk",
    "set_risk",
    "share_budget",
    "tap_gradient",
    "taylor_scores",
    "unit_scores",
]
