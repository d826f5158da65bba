"""Options of discovery."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, get_args

from abstraction.localization import SearchConfig
from abstraction.tasks import addition
from experiments.addition.options import AdderBackbone, AdditionBanks
from experiments.equality.options import Backbone, EqualityPairs, PlotGrid
from experiments.harness import valid
from experiments.harness.options import DasOptions, Localization
from experiments.mcqa.options import WIDTHS, Mcqa, McqaBanks

KEEPS = valid.Valid(lambda keep: keep >= 1, "numbers of units, each once", distinct=True)
NAME = "discovery"
DENSE = "dense"
SURVIVES = 0.95
"""The least IIA of DAS, over variables and both kinds of pairs, at which the variables are still there."""
HARD = {
    "heq": ("sensitive", "specific"),
    "addition": ("sensitive", "invariant"),
    "mcqa": ("sensitive", "invariant"),
}
"""Pairs of a verdict: the output must change, or it must not although another variable differs."""

Task = Literal["heq", "addition", "mcqa"]
Reducer = Literal["cmr", "cmr-closed", "vbp", "random"]
Folder = Literal["obs-affine", "random-affine", "vbp-zero"]
Closed = Literal["cmr-closed", "vbp", "random"]
HIDDEN = 128
"""Units in each MLP of the decoder that ships with the project."""
_KEEPS = (16, 14, 12, 10, 8, 6, 4, 3, 2)


@dataclass(frozen=True)
class Reductions:
    """How the MLPs of hierarchical equality are reduced, all hidden layers to one width."""

    keeps: Annotated[tuple[int, ...], KEEPS] = _KEEPS
    """Units to keep per hidden layer; all of them is the dense network."""
    methods: Annotated[tuple[Reducer, ...], valid.one_of(get_args(Reducer))] = get_args(Reducer)
    """cmr, the same without its refit, variance with means, and a random order with means."""
    calibration_rows: Annotated[int, valid.least(8)] = 4000
    """Inputs a reduction looks at: half uniform rows, half with every combination of WX and YZ equally often."""


@dataclass(frozen=True)
class Folds:
    """How the GRUs of binary addition are reduced, by maps through the origin: their state starts at 0."""

    keeps: Annotated[tuple[int, ...], KEEPS] = (16, 14, 12, 10, 8, 6, 5, 4, 3)
    """Units of the state to keep; all of them is the dense network."""
    methods: Annotated[tuple[Folder, ...], valid.one_of(get_args(Folder))] = get_args(Folder)
    """Linear maps of the units that exact elimination keeps, linear maps of random units, and zero in place of the
    units of smallest mean square."""


@dataclass(frozen=True)
class Units:
    """How the decoder of multiple choice is reduced, the MLPs of all blocks to one width."""

    keeps: Annotated[tuple[int, ...], KEEPS] = (128, 64, 32, 16, 8, 4, 2)
    """Units to keep per block; all of them is the dense network."""
    methods: Annotated[tuple[Closed, ...], valid.one_of(get_args(Closed))] = get_args(Closed)
    """Exact elimination under interventions with affine folds, variance with means, and a random order with means."""
    calibration: Annotated[int, valid.least(2)] = 200
    """Prompts a reduction looks at."""
    evaluation: Annotated[int, valid.least(2)] = 1000
    """Prompts that accuracy is measured on, and that trials are drawn from."""
    trials: Annotated[int, valid.least(2)] = 1024
    """Interchanges per block that dense and reduced network are compared on."""


def _search(**changes: Any) -> SearchConfig:
    usual = SearchConfig(batch_size=128, patience=100, cosine=True)
    return replace(usual, **changes)


@dataclass(frozen=True)
class Discovery(Localization):
    """Discovery: reduce trained networks, and see whether the causal variables are still in what is left.

    Writes a run folder and prints its tables. Eight minutes per seed on two cores.
    """

    seeds: str = "1:4"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    tasks: Annotated[tuple[Task, ...], valid.one_of(get_args(Task))] = get_args(Task)
    """Hierarchical equality (an MLP), binary addition (a GRU) and multiple choice (a decoder that ships with this)."""
    control_draws: Annotated[int, valid.COUNT] = 10
    """Random subspaces per handle."""
    control_shuffles: Annotated[int, valid.COUNT] = 2
    """Shuffles of the sources per handle."""
    trials: Annotated[int, valid.COUNT] = 4096
    """Interchanges per layer that dense and reduced network are compared on."""
    equality: Reductions = Reductions()
    backbone: Backbone = Backbone()
    pairs: EqualityPairs = EqualityPairs(fit=4000, calibration=2000)
    plot: PlotGrid = PlotGrid(
        (0.01, 0.1, 1.0), (1, 2, 3, 4, 6, 8, 12, 16), (0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0), iterations=1000
    )
    das: DasOptions = DasOptions((1, 2, 4, 8, 12), (2e-2,), training=_search(max_epochs=10, sensitive_weight=0.7))
    carries: Folds = Folds()
    adder: AdderBackbone = AdderBackbone()
    adder_banks: AdditionBanks = AdditionBanks()
    adder_das: DasOptions = DasOptions(
        (1, 2, 3, 4),
        (2e-2,),
        restarts=2,
        parametrization="oblique",
        training=_search(batch_size=64, max_epochs=15, sensitive_weight=0.5),
    )
    choice: Units = Units()
    choice_banks: McqaBanks = McqaBanks()
    choice_das: DasOptions = DasOptions((2, 4, 8, 16, 32), (2e-2,), restarts=2, training=Mcqa().das.training)

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "seeds": "1", "control_draws": 3, "control_shuffles": 1, "trials": 2048, "equality.keeps": (16, 8, 3),
            "equality.methods": ("cmr", "random"), "backbone.epochs": 12, "pairs.fit": 2000,
            "plot.epsilons": (0.1, 1.0), "plot.subset_sizes": (1, 2, 4, 8), "plot.strengths": (0.8, 1.0, 1.4),
            "das.ranks": (1, 4, 8), "das.training.max_epochs": 5, "carries.keeps": (16, 8),
            "carries.methods": ("obs-affine", "vbp-zero"), "adder_das.ranks": (1, 2), "adder_das.restarts": 1,
            "adder_das.training.max_epochs": 12, "choice.keeps": (128, 16), "choice.methods": ("cmr-closed",),
            "choice.calibration": 64, "choice.trials": 256, "choice_banks.fit": 192, "choice_banks.calibration": 96,
            "choice_banks.test": 192, "choice_das.ranks": (8, 32), "choice_das.restarts": 1,
            "choice_das.training.max_epochs": 12,
        },
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        rows, batch = self.backbone.rows, self.backbone.batch_size
        valid.require("--backbone.rows", rows, rows >= batch, "a batch or more")
        pairs = self.adder_banks.fit * len(addition.source_families(self.adder.bits))
        if "heq" in self.tasks:
            self._check_sweep("equality", self.backbone.width)
            self.das.check("--das", self.backbone.width, self.pairs.fit)
        if "addition" in self.tasks:
            self._check_sweep("carries", self.adder.width)
            self.adder_das.check("--adder-das", self.adder.width, pairs)
        if "mcqa" in self.tasks:
            valid.most_of("--choice.keeps", self.choice.keeps, HIDDEN, "the units")
            self.choice_das.check("--choice-das", WIDTHS["embedded"], self.choice_banks.fit)

    def _check_sweep(self, flag: str, width: int) -> None:
        keeps, das = getattr(self, flag).keeps, "das" if flag == "equality" else "adder-das"
        valid.most_of(f"--{flag}.keeps", keeps, width, "the units")
        ranks, sizes = getattr(self, das.replace("-", "_")).ranks, self.plot.subset_sizes
        expected = f"one of at most {min(keeps)}, the least of --{flag}.keeps"
        valid.require(f"--{das}.ranks", ranks, min(ranks) <= min(keeps), expected)
        valid.require("--plot.subset-sizes", sizes, min(sizes) <= min(keeps), expected)
