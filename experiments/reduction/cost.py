"""What the reduction of a digit classifier asks of it: see `--explain`."""

from abstraction.explaining import Reducing, shape
from experiments.harness.explaining import Costs
from experiments.reduction.digits import loaded_digits, network
from experiments.reduction.options import OfDigits, Reduction


def costs(config: Reduction) -> Costs:
    """Return what a seed's network is asked: statistics once for each discrepancy, trials for every reduced network."""
    return Costs([digits_case("reduction", config, config.calibration, config.trials)])


def digits_case(name: str, config: OfDigits, calibration: int, trials: int) -> Reducing:
    """Return the last hidden layer of the classifier, so many calibration images and trials."""
    data = loaded_digits(config.data, lambda text: None)
    (pixels,), tests = data.digits.train_images.shape[1:], len(data.digits.test_images)
    inputs = lambda count: shape((count, pixels))
    calibration = min(calibration, len(data.digits.train_images))
    return Reducing(name, network(config.network, data), inputs, "hidden2", calibration, tests, trials)
