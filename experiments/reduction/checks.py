"""Refuse wrong options of the reduction experiment before anything is trained, each by its flag."""

from experiments.harness.checks import at_least, distinct, require, within
from experiments.reduction import digits
from experiments.reduction.options import Reduction, budgets


def check(config: Reduction) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    digits.check_network(config.network)
    width = config.network.width or digits.RECIPES[digits.data_name(config.data)].width
    distinct("--methods", config.methods)
    distinct("--both-methods", config.both_methods)
    for flag, keeps in (("--keeps", config.keeps), ("--both-keeps", config.both_keeps)):
        valid = lambda keep: 0 < keep <= 1 or (1 < keep <= width and keep == int(keep))
        within(flag, keeps, valid, f"shares in (0, 1] or whole numbers from 2 to {width}, the width")
    within("--probabilities", config.probabilities, lambda p: 0 < p <= 1, "values in (0, 1]")
    require("--delta", config.delta, lambda delta: 0 < delta < 1, "a value in (0, 1)")
    at_least("--trials", config.trials, 1)
    counts = [*budgets(config.keeps, width), *budgets(config.both_keeps, width)]
    widest = max((count for count in counts if count < width), default=1)
    at_least("--calibration", config.calibration, widest + 1)
    if config.network.checkpoint is not None:
        require("--network.checkpoint", config.network.checkpoint, lambda path: path.is_file(), "an npz file")
