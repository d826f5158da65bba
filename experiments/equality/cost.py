"""What hierarchical equality asks of its network: see `--explain`."""

from abstraction.explaining import Case, shape
from abstraction.models import MLP
from abstraction.tasks import equality
from experiments.equality.options import Backbone, Equality
from experiments.harness.explaining import Costs, searches
from experiments.harness.options import DasOptions

VARIABLES, _TESTS = 2, 6
"""WX and YZ; sensitive, invariant and specific test pairs of each."""


def costs(config: Equality) -> Costs:
    """Return what a seed's network is asked."""
    plot, banks = config.plot, config.banks
    handles = VARIABLES * len(plot.epsilons) * len(plot.subset_sizes) * len(plot.strengths)
    recorded = banks.fit + banks.calibration + _TESTS * banks.size
    return Costs([equality_case("heq", config.backbone, (banks.fit, recorded), config.das, handles)])


def equality_case(name: str, backbone: Backbone, pairs: tuple[int, int], das: DasOptions, handles: int) -> Case:
    """Return an MLP, fit pairs and pairs of all banks, searches of every layer, and handles on a grid."""
    size, (fit, recorded) = 4 * equality.ENTITY_WIDTH, pairs
    found = searches("das", das, VARIABLES * backbone.depth, backbone.width, backbone.depth)
    return Case(
        name, MLP(size, backbone.width, backbone.depth, equality.CLASSES), lambda count: shape((count, size)), "hidden",
        fit, recorded, [found], handles=(handles, 0),
    )  # fmt: skip
