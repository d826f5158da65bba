"""Refuse wrong options before anything is trained, each by its flag."""

import math
from collections.abc import Callable, Collection
from typing import Any

from experiments.config import HEQ, Backbone, DasOptions, EqualityBanks, PaperOptions, PlotOptions

MOST_ROWS = 46341
"""Largest pool whose ordered pairs can be numbered by 32-bit integers."""

Test = Callable[[Any], bool]


def check(config: HEQ) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    sites = config.backbone.width * config.backbone.depth
    _distinct("--methods", config.methods)
    _at_least("--control-draws", config.control_draws, 1)
    _at_least("--control-shuffles", config.control_shuffles, 1)
    _check_backbone(config.backbone)
    _check_banks(config.banks)
    methods = set(config.methods)
    if methods - {"das", "das-paper", "plot-ot-paper", "plot-uot-paper", "full-state"}:
        _check_plot(config.plot, sites)
    if methods & {"plot-ot-paper", "plot-uot-paper", "row-argmin"}:
        _check_paper(config.paper, sites)
    ours = config.banks.fit if config.banks.policy == "independent" else config.banks.size
    if "das" in config.methods:
        _check_das("--das", config.das, config.backbone.width, ours)
    if "das-paper" in config.methods:
        _check_das("--paper.das", config.paper.das, config.backbone.width, config.banks.size)


def _check_backbone(options: Backbone) -> None:
    for name in ("width", "depth", "batch_size", "epochs", "stop_epochs"):
        _at_least(f"--backbone.{name.replace('_', '-')}", getattr(options, name), 1)
    _at_least("--backbone.validation-rows", options.validation_rows, 4)
    _at_least("--backbone.rows", options.rows, options.batch_size)
    _require("--backbone.stop-target", options.stop_target, lambda value: 0 < value <= 1, "a value in (0, 1]")
    _above_zero("--backbone.learning-rate", options.learning_rate)


def _check_banks(options: EqualityBanks) -> None:
    _at_least("--banks.size", options.size, 2)
    _at_least("--banks.fit", options.fit, 3)
    _at_least("--banks.calibration", options.calibration, 3)
    _require("--banks.both", options.both, lambda share: 0 <= share < 1, "a share in [0, 1)")
    for name in ("fit_pool", "calibration_pool", "test_pool"):
        flag = f"--banks.{name.replace('_', '-')}"
        _require(flag, getattr(options, name), lambda rows: 2 <= rows <= MOST_ROWS, f"2 to {MOST_ROWS} rows")


def _check_plot(options: PlotOptions, sites: int) -> None:
    _positive("--plot.epsilons", options.epsilons)
    _positive("--plot.gw-epsilons", options.gw_epsilons)
    _positive("--plot.strengths", options.strengths)
    _within("--plot.taus", options.taus, lambda tau: 0 < tau < 1, "values in (0, 1)")
    _within("--plot.subset-sizes", options.subset_sizes, lambda size: 1 <= size <= sites, f"values from 1 to {sites}")
    _at_least("--plot.iterations", options.iterations, 1)
    _require("--plot.fused-alpha", options.fused_alpha, lambda alpha: 0 < alpha < 1, "a value in (0, 1)")


def _check_paper(options: PaperOptions, sites: int) -> None:
    _positive("--paper.epsilons", options.epsilons)
    _above_zero("--paper.beta-abstract", options.beta_abstract)
    _positive("--paper.beta-neural", options.beta_neural)
    _at_least("--paper.iterations", options.iterations, 1)
    _at_least("--paper.strengths", options.strengths, 1)
    size = options.subset_sizes
    _require("--paper.subset-sizes", size, lambda size: 1 <= size <= sites, f"a value from 1 to {sites}")


def _check_das(flag: str, options: DasOptions, width: int, pairs: int) -> None:
    training, weight = options.training, options.training.sensitive_weight
    _within(f"{flag}.ranks", options.ranks, lambda rank: 1 <= rank <= width, f"values from 1 to {width}")
    _above_zero(f"{flag}.learning-rate", options.learning_rate)
    _at_least(f"{flag}.restarts", options.restarts, 1)
    _at_least(f"{flag}.training.max-epochs", training.max_epochs, 1)
    _at_least(f"{flag}.training.patience", training.patience, 1)
    _at_least(f"{flag}.training.min-epochs", training.min_epochs, 0)
    _require(f"{flag}.training.margin", training.margin, lambda margin: 0 <= margin < 1, "a value in [0, 1)")
    batch = f"a value from 1 to {pairs}, the fit pairs"
    _require(f"{flag}.training.batch-size", training.batch_size, lambda size: 1 <= size <= pairs, batch)
    if weight is not None:
        _require(f"{flag}.training.sensitive-weight", weight, lambda weight: 0 < weight < 1, "a value in (0, 1)")


def _require(flag: str, value: Any, holds: Test, expected: str) -> None:
    if not holds(value):
        raise ValueError(f"got {flag} {value}, expected {expected}")


def _within(flag: str, values: Collection[Any], holds: Test, expected: str) -> None:
    _require(flag, list(values), lambda values: bool(values) and all(holds(value) for value in values), expected)


def _positive(flag: str, values: Collection[float]) -> None:
    _within(flag, values, lambda value: value > 0 and math.isfinite(value), "positive finite numbers")


def _above_zero(flag: str, value: float) -> None:
    _require(flag, value, lambda value: value > 0 and math.isfinite(value), "a positive finite number")


def _at_least(flag: str, value: int, least: int) -> None:
    _require(flag, value, lambda value: value >= least, f"at least {least}")


def _distinct(flag: str, values: Collection[str]) -> None:
    expected = "at least one, each once"
    _require(flag, list(values), lambda values: bool(values) and len(set(values)) == len(values), expected)
