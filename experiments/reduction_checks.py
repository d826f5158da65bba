"""Refuse wrong options of the reduction experiment before anything is trained, each by its flag."""

from experiments import digits
from experiments.reduction_options import Reduction, budgets


def check(config: Reduction) -> None:
    """Refuse options that cannot work.

    Raises:
      ValueError: names the flag, what was got and what is valid.
    """
    digits.check_network(config.network)
    width = config.network.width or digits.RECIPES[digits.data_name(config.data)].width
    for flag, methods in (("--methods", config.methods), ("--both-methods", config.both_methods)):
        if not methods or len(set(methods)) != len(methods):
            raise ValueError(f"got {flag} {list(methods)}, expected at least one, each once")
    for flag, keeps in (("--keeps", config.keeps), ("--both-keeps", config.both_keeps)):
        try:
            budgets(keeps, width)
        except ValueError as error:
            raise ValueError(f"{flag}: {error}") from None
    if not config.probabilities or not all(0 < p <= 1 for p in config.probabilities):
        raise ValueError(f"got --probabilities {list(config.probabilities)}, expected values in (0, 1]")
    if config.trials < 1 or config.calibration < 2:
        raise ValueError(
            f"got --trials {config.trials} and --calibration {config.calibration}, expected at least 1 and 2"
        )
    if not 0 < config.delta < 1:
        raise ValueError(f"got --delta {config.delta}, expected a value in (0, 1)")
    widest = max(budgets(config.keeps, width) + budgets(config.both_keeps, width))
    if config.calibration <= widest < width:
        raise ValueError(
            f"got --calibration {config.calibration} for {widest} kept units, expected more images than kept units"
        )
    if config.network.checkpoint is not None and not config.network.checkpoint.is_file():
        raise ValueError(f"got --network.checkpoint {config.network.checkpoint}, expected an npz file")
