"""What certification asks of a digit classifier: see `--explain`."""

from experiments.certify.options import Certify
from experiments.harness.explaining import Costs
from experiments.reduction.cost import digits_case


def costs(config: Certify) -> Costs:
    """Return what a seed's network is asked: statistics, and the trials of each method, budget and probability."""
    return Costs([digits_case("certify", config, config.calibration_images, config.trials)])
