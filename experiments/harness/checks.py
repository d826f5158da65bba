"""Refuse wrong options before anything is trained, each by its flag."""

import math
from collections.abc import Callable, Collection
from typing import Any

from abstraction.localization import SearchConfig
from abstraction.tasks import addition
from experiments.addition.network import load_adder
from experiments.addition.options import Addition, StageOptions
from experiments.equality.options import (
    HEQ,
    Backbone,
    DasOptions,
    EqualityBanks,
    PaperOptions,
    PlotOptions,
    parse_seeds,
)
from experiments.mcqa.options import Mcqa

MOST_WIDTH = 2**20
"""Width of a network of the user's, which is not known before it is loaded."""
MOST_ROWS = 46341
"""Largest pool whose ordered pairs can be numbered by 32-bit integers."""

Test = Callable[[Any], bool]


def check(config: HEQ) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    sites = config.backbone.width * config.backbone.depth
    distinct("--methods", config.methods)
    at_least("--control-draws", config.control_draws, 1)
    at_least("--control-shuffles", config.control_shuffles, 1)
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


def check_addition(config: Addition) -> None:
    """Refuse options of the binary addition experiment that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    width, families = config.backbone.width, len(addition.source_families(max(config.backbone.bits, 2)))
    distinct("--methods", config.methods)
    at_least("--control-draws", config.control_draws, 1)
    at_least("--control-shuffles", config.control_shuffles, 1)
    require("--backbone.bits", config.backbone.bits, lambda bits: 2 <= bits <= 30, "2 to 30 bits: one has no carry")
    for name in ("width", "batch_size", "epochs"):
        at_least(f"--backbone.{name.replace('_', '-')}", getattr(config.backbone, name), 1)
    above_zero("--backbone.learning-rate", config.backbone.learning_rate)
    for name in ("fit", "calibration", "test"):
        at_least(f"--banks.{name}", getattr(config.banks, name), 1)
    _check_checkpoints(config)
    _check_stages(config.stages, width)
    pairs = config.banks.fit * families
    for flag, options in (("--das", config.das), ("--oblique", config.oblique), ("--das-v1", config.das_v1)):
        _check_das(flag, options, width, pairs)
    within("--masks.sparsities", config.masks.sparsities, lambda price: price >= 0, "numbers of at least 0")
    above_zero("--masks.learning-rate", config.masks.learning_rate)
    above_zero("--boundless.learning-rate", config.boundless.learning_rate)
    above_zero("--boundless.boundary-rate", config.boundless.boundary_rate)
    require("--boundless.penalty", config.boundless.penalty, lambda price: price >= 0, "a number of at least 0")
    positive("--weights.learning-rates", config.weights.learning_rates)
    for flag in ("masks", "boundless", "weights"):
        _check_training(f"--{flag}.training", getattr(config, flag).training, pairs)


def check_mcqa(config: Mcqa) -> None:
    """Refuse options of the MCQA experiment that cannot work, as far as the network need not be loaded for it.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    distinct("--methods", config.methods)
    at_least("--control-draws", config.control_draws, 1)
    at_least("--control-shuffles", config.control_shuffles, 1)
    above_zero("--network.gib", config.network.gib)
    for name in ("fit", "calibration", "test"):
        at_least(f"--banks.{name}", getattr(config.banks, name), 3)
    require("--banks.spare", config.banks.spare, lambda spare: spare >= 1, "a number of at least 1")
    width = MOST_WIDTH if config.network.model else 64 if config.network.kind == "embedded" else 100
    _check_stages(config.stages, width)
    for flag, options in (("--das", config.das), ("--oblique", config.oblique), ("--das-v1", config.das_v1)):
        _check_das(flag, options, width, config.banks.fit)
    within("--masks.sparsities", config.masks.sparsities, lambda price: price >= 0, "numbers of at least 0")
    positive("--weights.learning-rates", config.weights.learning_rates)
    for flag in ("masks", "boundless", "weights"):
        _check_training(f"--{flag}.training", getattr(config, flag).training, config.banks.fit)


def _check_checkpoints(config: Addition) -> None:
    if config.backbone.checkpoints is not None:
        for seed in parse_seeds(config.seeds):
            load_adder(config.backbone, seed)


def _check_stages(options: StageOptions, width: int) -> None:
    within("--stages.resolutions", options.resolutions, lambda size: size >= 1, "positive widths")
    fits = lambda sizes: min(sizes) <= width
    require("--stages.resolutions", options.resolutions, fits, f"one of at most {width}, the width of a state")
    within("--stages.prefixes", options.prefixes, lambda size: size >= 1, "positive numbers of components")
    for name in ("shares", "fitted_shares"):
        flag = f"--stages.{name.replace('_', '-')}"
        within(flag, getattr(options, name), lambda share: 0 < share <= 1, "shares in (0, 1]")


def _check_backbone(options: Backbone) -> None:
    for name in ("width", "depth", "batch_size", "epochs", "stop_epochs"):
        at_least(f"--backbone.{name.replace('_', '-')}", getattr(options, name), 1)
    at_least("--backbone.validation-rows", options.validation_rows, 4)
    at_least("--backbone.rows", options.rows, options.batch_size)
    require("--backbone.stop-target", options.stop_target, lambda value: 0 < value <= 1, "a value in (0, 1]")
    above_zero("--backbone.learning-rate", options.learning_rate)


def _check_banks(options: EqualityBanks) -> None:
    at_least("--banks.size", options.size, 2)
    at_least("--banks.fit", options.fit, 3)
    at_least("--banks.calibration", options.calibration, 3)
    require("--banks.both", options.both, lambda share: 0 <= share < 1, "a share in [0, 1)")
    for name in ("fit_pool", "calibration_pool", "test_pool"):
        flag = f"--banks.{name.replace('_', '-')}"
        require(flag, getattr(options, name), lambda rows: 2 <= rows <= MOST_ROWS, f"2 to {MOST_ROWS} rows")


def _check_plot(options: PlotOptions, sites: int) -> None:
    positive("--plot.epsilons", options.epsilons)
    positive("--plot.gw-epsilons", options.gw_epsilons)
    positive("--plot.strengths", options.strengths)
    within("--plot.taus", options.taus, lambda tau: 0 < tau < 1, "values in (0, 1)")
    within("--plot.subset-sizes", options.subset_sizes, lambda size: 1 <= size <= sites, f"values from 1 to {sites}")
    at_least("--plot.iterations", options.iterations, 1)
    require("--plot.fused-alpha", options.fused_alpha, lambda alpha: 0 < alpha < 1, "a value in (0, 1)")


def _check_paper(options: PaperOptions, sites: int) -> None:
    positive("--paper.epsilons", options.epsilons)
    above_zero("--paper.beta-abstract", options.beta_abstract)
    positive("--paper.beta-neural", options.beta_neural)
    at_least("--paper.iterations", options.iterations, 1)
    at_least("--paper.strengths", options.strengths, 1)
    size = options.subset_sizes
    require("--paper.subset-sizes", size, lambda size: 1 <= size <= sites, f"a value from 1 to {sites}")


def _check_das(flag: str, options: DasOptions, width: int, pairs: int) -> None:
    within(f"{flag}.ranks", options.ranks, lambda rank: 1 <= rank <= width, f"values from 1 to {width}")
    positive(f"{flag}.learning-rates", options.learning_rates)
    positive(f"{flag}.strengths", options.strengths)
    at_least(f"{flag}.restarts", options.restarts, 1)
    _check_training(f"{flag}.training", options.training, pairs)


def _check_training(flag: str, training: SearchConfig, pairs: int) -> None:
    weight, steps = training.sensitive_weight, training.steps_per_epoch
    at_least(f"{flag}.max-epochs", training.max_epochs, 1)
    at_least(f"{flag}.patience", training.patience, 1)
    at_least(f"{flag}.min-epochs", training.min_epochs, 0)
    require(f"{flag}.margin", training.margin, lambda margin: 0 <= margin < 1, "a value in [0, 1)")
    batch = f"a value from 1 to {pairs}, the fit pairs"
    require(f"{flag}.batch-size", training.batch_size, lambda size: 1 <= size <= pairs, batch)
    if weight is not None:
        require(f"{flag}.sensitive-weight", weight, lambda weight: 0 < weight < 1, "a value in (0, 1)")
    if steps is not None:
        most = pairs // training.batch_size
        require(f"{flag}.steps-per-epoch", steps, lambda steps: 1 <= steps <= most, f"a value from 1 to {most}")


def require(flag: str, value: Any, holds: Test, expected: str) -> None:
    """Refuse a value by its flag, saying what was expected."""
    if not holds(value):
        raise ValueError(f"got {flag} {value}, expected {expected}")


def within(flag: str, values: Collection[Any], holds: Test, expected: str) -> None:
    """Refuse an empty list, or one with a value that does not hold."""
    require(flag, list(values), lambda values: bool(values) and all(holds(value) for value in values), expected)


def positive(flag: str, values: Collection[float]) -> None:
    """Refuse values that are not positive and finite."""
    within(flag, values, lambda value: value > 0 and math.isfinite(value), "positive finite numbers")


def above_zero(flag: str, value: float) -> None:
    """Refuse a value that is not positive and finite."""
    require(flag, value, lambda value: value > 0 and math.isfinite(value), "a positive finite number")


def at_least(flag: str, value: int, least: int) -> None:
    """Refuse a value below the least."""
    require(flag, value, lambda value: value >= least, f"at least {least}")


def distinct(flag: str, values: Collection[str]) -> None:
    """Refuse an empty list, or one that names something twice."""
    expected = "at least one, each once"
    require(flag, list(values), lambda values: bool(values) and len(set(values)) == len(values), expected)
