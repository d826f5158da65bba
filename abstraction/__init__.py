"""Neural causal abstraction in JAX: find a high-level causal model inside a trained network.

    net   = wrap(model, params, inputs, {"hidden": "layers/[0-9]+"})   # Flax, Equinox, plain JAX: `listing` says what
    net   = Network(model, params)                                    # or a model of the library, or load_decoder(...)
    fit, calibration, test = (record(net, encode, bank, tap="hidden") for bank in banks)
    found = plot(net, fit, unit_sites(net.taps["hidden"]), evidence=calibration)
    das   = alignment_search(key, net, fit, evidence=calibration)
    print(judge(net, das.handles, test)["test"])                      # beside chance and its controls
    small = reduce_network(net, inputs, {"hidden": 32}).network       # smaller, a Network again: what names its readers
    save(das.choice, "handles.safetensors", network=net)

The rooms, from the ground up (a room imports only from the rooms before it):

    causal         the high-level side: causal models, counterfactual pair banks
    models         the low-level side: networks whose activations can be tapped and edited
    interventions  edits as data, bases, sites, handles, patching
    training       optimisation loop, checkpoints
    tasks          a causal model, its data and its encoding, per benchmark
    evaluation     recorded banks, interchange-intervention accuracy, intervals, controls, certificates
    localization   PLOT and distributed alignment search
    reduction      mechanism reduction: replace units, fold, compile
    artifacts      files of what was found
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abstraction.artifacts import load as load
    from abstraction.artifacts import save as save
    from abstraction.causal import PairBank as PairBank
    from abstraction.causal import causal_model as causal_model
    from abstraction.causal import label_pairs as label_pairs
    from abstraction.causal import sample_bank as sample_bank
    from abstraction.evaluation import Bits as Bits
    from abstraction.evaluation import Classes as Classes
    from abstraction.evaluation import certify as certify
    from abstraction.evaluation import judge as judge
    from abstraction.evaluation import record as record
    from abstraction.interventions import Handle as Handle
    from abstraction.interventions import group_sites as group_sites
    from abstraction.interventions import state_sites as state_sites
    from abstraction.interventions import unit_sites as unit_sites
    from abstraction.localization import Recipe as Recipe
    from abstraction.localization import Search as Search
    from abstraction.localization import alignment_search as alignment_search
    from abstraction.localization import plot as plot
    from abstraction.localization import sweep as sweep
    from abstraction.models import GRU as GRU
    from abstraction.models import MLP as MLP
    from abstraction.models import Decoder as Decoder
    from abstraction.models import Network as Network
    from abstraction.models import Sequential as Sequential
    from abstraction.models import TokenView as TokenView
    from abstraction.models import check_model as check_model
    from abstraction.models import listing as listing
    from abstraction.models import load_decoder as load_decoder
    from abstraction.models import tap as tap
    from abstraction.models import wrap as wrap
    from abstraction.reduction import reduce_network as reduce_network

__version__ = "0.1.0"

# Each name is imported when it is first asked for: whoever wants one room does not pay for the others.
_HOMES = {
    "load": "abstraction.artifacts",
    "save": "abstraction.artifacts",
    "PairBank": "abstraction.causal",
    "causal_model": "abstraction.causal",
    "label_pairs": "abstraction.causal",
    "sample_bank": "abstraction.causal",
    "Bits": "abstraction.evaluation",
    "Classes": "abstraction.evaluation",
    "certify": "abstraction.evaluation",
    "judge": "abstraction.evaluation",
    "record": "abstraction.evaluation",
    "Handle": "abstraction.interventions",
    "group_sites": "abstraction.interventions",
    "state_sites": "abstraction.interventions",
    "unit_sites": "abstraction.interventions",
    "Recipe": "abstraction.localization",
    "Search": "abstraction.localization",
    "alignment_search": "abstraction.localization",
    "plot": "abstraction.localization",
    "sweep": "abstraction.localization",
    "GRU": "abstraction.models",
    "MLP": "abstraction.models",
    "Decoder": "abstraction.models",
    "Network": "abstraction.models",
    "Sequential": "abstraction.models",
    "TokenView": "abstraction.models",
    "check_model": "abstraction.models",
    "listing": "abstraction.models",
    "load_decoder": "abstraction.models",
    "tap": "abstraction.models",
    "wrap": "abstraction.models",
    "reduce_network": "abstraction.reduction",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


class _Name:
    """A name that is imported when it is first asked for.

    It is looked up on the module's class: nnsight gives every object of Python a `save`, which a module's own
    `__getattr__` would never get to replace.
    """

    def __init__(self, name: str):
        self.name = name

    def __get__(self, module: Any, kind: Any = None) -> Any:
        value = globals()[self.name] = getattr(importlib.import_module(_HOMES[self.name]), self.name)
        return value


sys.modules[__name__].__class__ = type("Door", (types.ModuleType,), {name: _Name(name) for name in _HOMES})


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module 'abstraction' has no attribute {name!r}; it has {', '.join(sorted(_HOMES))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
