"""Mechanism reduction: replace units by constants or affine maps of others, fold, compile, certify."""

from abstraction.reduction.calibration import Calibration
from abstraction.reduction.compiling import bill, compile_plan
from abstraction.reduction.discrepancies import Discrepancy, custom_discrepancy
from abstraction.reduction.folding import Fold, affine_fold, constant_fold
from abstraction.reduction.methods import METHODS, Method
from abstraction.reduction.pipeline import Reduction, reduce_network
from abstraction.reduction.plans import Plan, load_plan

__all__ = [
    "METHODS",
    "Calibration",
    "Discrepancy",
    "Fold",
    "Method",
    "Plan",
    "Reduction",
    "affine_fold",
    "bill",
    "compile_plan",
    "constant_fold",
    "custom_discrepancy",
    "load_plan",
    "reduce_network",
]
