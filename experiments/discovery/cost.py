"""What discovery asks of each network, the dense one and every reduced one of a width: see `--explain`."""

from abstraction.explaining import Asks
from abstraction.tasks.symbols import LETTERS
from experiments.addition.cost import adder_case
from experiments.discovery.options import Discovery
from experiments.equality.cost import VARIABLES, equality_case
from experiments.harness.explaining import Costs, Seen, decoder_case, searches
from experiments.mcqa.options import Mcqa
from experiments.mcqa.subject import ROLES, load_shape


def costs(config: Discovery) -> Costs:
    """Return what the dense network of every task is asked; a reduced one is asked the same, and is smaller."""
    plot, cases = config.plot, list[Asks]()
    if "heq" in config.tasks:
        handles = VARIABLES * len(plot.epsilons) * len(plot.subset_sizes) * len(plot.strengths)
        pairs = config.pairs.fit, config.pairs.fit + config.pairs.calibration + 6 * config.pairs.size
        cases.append(equality_case("discovery, heq", config.backbone, pairs, config.das, handles))
    if "addition" in config.tasks:
        das = searches("das", config.adder_das, config.adder.bits - 1, config.adder.width, config.adder.bits)
        cases.append(adder_case("discovery, addition", config.adder, config.adder_banks, [das]))
    if "mcqa" in config.tasks:
        shape, banks = load_shape(Mcqa()), config.choice_banks
        found = [searches("das", config.choice_das, VARIABLES, shape.decoder.width)]
        pairs = banks.fit, sum(getattr(banks, role) for role in ROLES)
        cases.append(decoder_case("discovery, mcqa", Seen(*shape, len(LETTERS)), pairs, found))
    return Costs(cases)
