"""Options of the mechanism reduction experiments. Every field is a flag; its docstring is the flag's help."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from experiments.equality.options import parse_seeds, smaller

DataName = Literal["mnist", "digits"]
MethodName = Literal[
    "cmr",
    "cmr-closed",
    "cmr-kl",
    "obs-affine",
    "kl-const",
    "logit-const",
    "joint-const",
    "cip-const",
    "cip-affine",
    "vbp",
    "vbp-bias",
    "vbp-affine",
    "magnitude",
    "taylor",
    "wanda",
    "obd",
    "random",
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


@dataclass(frozen=True)
class Data:
    """The images."""

    data: Annotated[Literal["auto", "mnist", "digits"], tyro.conf.arg(prefix_name=False)] = "auto"
    """MNIST, or the 1797 digits that scikit-learn bundles; auto is MNIST where --data-dir or ../shared/data/mnist is,
    and otherwise the bundled digits."""
    data_dir: Annotated[Path | None, tyro.conf.arg(prefix_name=False)] = None
    """Folder with the four IDX files of MNIST, gzipped or not; by default ../shared/data/mnist."""
    download: Annotated[bool, tyro.conf.arg(prefix_name=False)] = False
    """Fetch what is missing of MNIST into --data-dir; a file appears there once its checksum is right."""


@dataclass(frozen=True)
class NetworkOptions:
    """The network that is reduced, two hidden layers of ReLUs, and how it is trained on the training images."""

    checkpoint: Path | None = None
    """A trained PyTorch network, an npz file with weight and bias of fc1, fc2 and fc_out; otherwise one is trained."""
    width: int | None = None
    """Units per hidden layer; by default 512, as published, and 128 on the bundled digits."""
    epochs: int | None = None
    """Passes over the training images; by default 15, as published, and 60 over the bundled digits."""
    batch_size: int | None = None
    """Rows per step; by default 256, as published, and 32 on the bundled digits."""
    learning_rate: float = 1e-3
    """Adam's."""


@dataclass(frozen=True)
class Reduction:
    """Reduce a trained network, and test whether the smaller one does the same under interventions.

    Writes a run folder with the reduced networks and their plans, and prints its tables. Two minutes per seed on two
    cores with MNIST, half a minute with the bundled digits.
    """

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list: of the network, unless a checkpoint is given, of the
    calibration images and of the trials. Seed 0 draws the authors' calibration images."""
    methods: tuple[MethodName, ...] = METHODS
    """Methods to run; `abstraction.reduction.METHODS` says what each is."""
    keeps: tuple[float, ...] = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    """Units to keep in the last hidden layer: shares of its width in (0, 1], or whole numbers above 1."""
    both_keeps: tuple[float, ...] = (0.25, 0.125)
    """Units to keep in either hidden layer, when both are reduced in one call."""
    both_methods: tuple[MethodName, ...] = ("cmr", "cmr-closed", "obs-affine", "vbp", "random")
    """Methods to reduce both hidden layers with."""
    probabilities: tuple[float, ...] = (0.1, 0.2, 0.5)
    """Chance of each kept unit to be interchanged; 0, no intervention, is always reported as agreement."""
    trials: int = 20_000
    """Interchanges per method, budget and probability."""
    delta: float = 0.05
    """One minus the coverage of intervals."""
    calibration: int = 2000
    """Training images that reductions may look at."""
    quick: bool = False
    """A small version that finishes in seconds: the bundled digits, three budgets, fewer methods and trials."""
    out: Path | None = None
    """Run folder; by default runs/reduction-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds."""
    data: Data = field(default_factory=Data)
    network: NetworkOptions = field(default_factory=NetworkOptions)


def quick(config: Reduction) -> Reduction:
    """Shrink what was not chosen by a flag."""
    usual = Reduction()
    few: tuple[MethodName, ...] = ("cmr", "cmr-closed", "cip-const", "cip-affine", "vbp", "random")
    small = smaller(
        config,
        usual,
        methods=few,
        keeps=(0.5, 0.25, 0.125),
        both_keeps=(0.25,),
        both_methods=("cmr", "vbp"),
        probabilities=(0.1, 0.5),
        trials=2000,
        calibration=1000,
    )
    chosen = config.data != usual.data or config.network.checkpoint is not None
    return dataclasses.replace(
        small,
        seeds=str(parse_seeds(config.seeds)[0]),
        data=config.data if chosen else Data(data="digits"),
        network=smaller(config.network, usual.network, epochs=None if chosen else 30),
    )


def budgets(keeps: tuple[float, ...], width: int) -> list[int]:
    """Turn shares in (0, 1] and counts above 1 into units to keep, each once."""
    return list(dict.fromkeys(max(1, round(keep * width)) if keep <= 1 else int(keep) for keep in keeps))
