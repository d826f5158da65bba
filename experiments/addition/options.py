"""Options of the binary addition experiment. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from abstraction.localization import SearchConfig
from experiments.equality.options import DasOptions, parse_seeds, smaller

AdditionMethod = Literal[
    "plot-stage-a",
    "plot-native",
    "plot-pca",
    "plot-native-fitted",
    "plot-pca-fitted",
    "plot-das",
    "plot-native-das",
    "plot-pca-das",
    "full-das",
    "plot-oblique-das",
    "oblique-das",
    "readwrite",
    "dbm",
    "dbm-pca",
    "boundless-das",
    "cosine",
    "brute-force",
    "row-argmin",
    "full-state",
    "plot-native-v1",
    "plot-pca-v1",
    "plot-native-v4",
    "plot-pca-v4",
    "plot-das-v1",
    "plot-native-das-v1",
    "plot-pca-das-v1",
    "full-das-v1",
]
ADDITION_METHODS: tuple[AdditionMethod, ...] = get_args(AdditionMethod)
Honesty = Literal["plot-das", "plot-oblique-das", "plot-native-fitted"]
_SWAPS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)


@dataclass(frozen=True)
class AdderBackbone:
    """The network that is searched: a GRU that reads two numbers bit by bit and emits their sum."""

    bits: int = 4
    """Width of the numbers."""
    width: int = 16
    """State size; 8 and 16 in the paper."""
    checkpoints: Path | None = None
    """Folder with trained PyTorch adders, binary_addition_gru_h<width>_seed<seed>.npz; otherwise one is trained."""
    batch_size: int = 64
    """Rows per step."""
    epochs: int = 400
    """Most passes over all inputs (above 6 bits: over 65536 random ones); training stops once every sum is right."""
    learning_rate: float = 2e-2
    """Adam's."""


@dataclass(frozen=True)
class AdditionBanks:
    """Bases per role; each meets one source of every family (26 for 4 bits)."""

    fit: int = 128
    """Bases of the fit bank."""
    calibration: int = 64
    """Bases of the calibration bank."""
    test: int = 64
    """Bases of the test bank."""


@dataclass(frozen=True)
class StageOptions:
    """What is handed from one stage to the next."""

    resolutions: tuple[int, ...] = (16, 8, 4, 2, 1)
    """Stage B: widths of coordinate groups, and lengths of principal component spans; those wider than a state are
    left out."""
    spans: Literal["prefix", "partition"] = "prefix"
    """Stage B: spans are the first components, or bands of them."""
    pca: Literal["centered", "uncentered", "whitened"] = "centered"
    """Stage B: how principal components are computed, from the states of fit bases."""
    shares: tuple[float, ...] = (0.8, 0.9)
    """plot-native-das: supports that hold these shares of a row's evidence, beside the selected and the full one."""
    prefixes: tuple[int, ...] = (1, 2, 4)
    """plot-pca-das: supports of the first components, beside the selected ones and all."""
    fitted_shares: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
    """plot-*-fitted: supports that hold these shares of a row's evidence."""


def _budget(**changes: int | float | bool | None) -> SearchConfig:
    usual = SearchConfig(batch_size=64, max_epochs=29, patience=29, cosine=True, sensitive_weight=0.5)
    return dataclasses.replace(usual, **changes)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class MaskOptions:
    """Desiderata-based masking."""

    sparsities: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    """Price of a feature."""
    learning_rate: float = 1e-2
    """Adam's."""
    training: SearchConfig = field(default_factory=lambda: _budget(max_epochs=8, patience=8, cosine=False))
    """How masks are trained."""


@dataclass(frozen=True)
class BoundlessOptions:
    """Boundless DAS: the width is learned."""

    learning_rate: float = 1e-2
    """Adam's, of the rotation."""
    boundary_rate: float = 1e-2
    """The boundary's learning rate over the rotation's; .01 in the paper's revision, which hardly moves it."""
    penalty: float = 1.0
    """Price of the whole width."""
    training: SearchConfig = field(
        default_factory=lambda: _budget(max_epochs=12, patience=1, margin=1e-3, cosine=False)
    )
    """How rotation and boundary are trained."""


@dataclass(frozen=True)
class WeightOptions:
    """Fitted weights: a strength per feature by gradient, instead of a grid of strengths."""

    learning_rates: tuple[float, ...] = (0.02, 0.05, 0.1)
    """Adam's."""
    training: SearchConfig = field(default_factory=lambda: _budget(batch_size=128, max_epochs=12, patience=12))
    """How weights are trained."""


@dataclass(frozen=True)
class Addition:
    """Binary addition: find the carries C1, C2, C3 in a GRU, coarse to fine (PLOT, second benchmark).

    Writes a run folder and prints its tables. About a minute per seed on two cores for all methods.
    """

    seeds: str = "0:5"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    methods: tuple[AdditionMethod, ...] = ADDITION_METHODS
    """Methods to run; controls always run. Names ending in -v1 and -v4 are the paper's variants of that version."""
    honesty: tuple[Honesty, ...] = get_args(Honesty)
    """Searches to run again where there is nothing to find: with shuffled labels, at an earlier step, in an untrained
    network."""
    quick: bool = False
    """A small version of everything that finishes in seconds: the first seed, short training, thin grids."""
    out: Path | None = None
    """Run folder; by default runs/addition-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    control_draws: int = 20
    """Random subspaces per handle."""
    control_shuffles: int = 5
    """Shuffles of the sources per handle."""
    backbone: AdderBackbone = field(default_factory=AdderBackbone)
    banks: AdditionBanks = field(default_factory=AdditionBanks)
    stages: StageOptions = field(default_factory=StageOptions)
    das: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 4, 8, 12),
            (2e-2,),
            restarts=4,
            strengths=_SWAPS,
            training=_budget(max_epochs=8, patience=8),
        )
    )
    oblique: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 3, 4),
            (2e-2,),
            restarts=2,
            parametrization="oblique",
            training=_budget(max_epochs=15, patience=15),
        )
    )
    das_v1: DasOptions = field(
        default_factory=lambda: DasOptions(
            (1, 2, 4, 8, 16),
            (1e-2, 3e-3),
            strengths=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
            training=SearchConfig(batch_size=64, max_epochs=12, min_epochs=12, patience=12, steps_per_epoch=4),
        )
    )
    masks: MaskOptions = field(default_factory=MaskOptions)
    boundless: BoundlessOptions = field(default_factory=BoundlessOptions)
    weights: WeightOptions = field(default_factory=WeightOptions)


def quick(config: Addition) -> Addition:
    """Shrink every axis that was not chosen by a flag; what remains still means something."""
    usual = Addition()

    def short(options: DasOptions, default: DasOptions) -> DasOptions:
        small = smaller(options, default, ranks=default.ranks[1:3], restarts=1, strengths=(1.0,))
        return dataclasses.replace(small, training=smaller(options.training, default.training, max_epochs=6))

    return dataclasses.replace(
        smaller(config, usual, control_draws=5, control_shuffles=2, honesty=usual.honesty[1:2]),
        seeds=str(parse_seeds(config.seeds)[0]),
        stages=smaller(config.stages, usual.stages, resolutions=(16, 4, 1), fitted_shares=(0.8, 1.0)),
        das=short(config.das, usual.das),
        oblique=short(config.oblique, usual.oblique),
        das_v1=short(config.das_v1, usual.das_v1),
        masks=smaller(config.masks, usual.masks, sparsities=(0.0, 1e-3)),
        weights=smaller(config.weights, usual.weights, learning_rates=(0.05,)),
    )
