"""What binary addition asks of its network: see `--explain`."""

from abstraction.explaining import Case, Searches, shape
from abstraction.models import GRU
from abstraction.tasks import addition
from experiments.addition.network import BITS
from experiments.addition.options import AdderBackbone, Addition, AdditionBanks
from experiments.harness.explaining import Costs, searches


def costs(config: Addition) -> Costs:
    """Return what a seed's network is asked."""
    carries, width = config.backbone.bits - 1, config.backbone.width
    steps = config.backbone.bits
    every = [
        searches("plot-das", config.das, carries, width, steps),
        searches("full-das", config.das, carries * steps, width, steps),
        searches("oblique-das", config.oblique, carries * steps, width, steps),
    ]
    return Costs([adder_case("addition", config.backbone, config.banks, every)])


def adder_case(name: str, backbone: AdderBackbone, banks: AdditionBanks, every: list[Searches]) -> Case:
    """Return a GRU, its banks and searches."""
    families, bits = len(addition.source_families(backbone.bits)), backbone.bits
    fit, recorded = banks.fit * families, (banks.fit + banks.calibration + banks.test) * families
    inputs = lambda count: shape((count, bits, 2))
    return Case(
        name, GRU(2, backbone.width, bits), inputs, "hidden", fit, recorded, every, BITS, variables=bits - 1
    )  # fmt: skip
