"""Options of mechanism reduction: the images, the network, and how it is made smaller."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import tyro

from abstraction.reduction import METHODS as PRESETS
from experiments.harness import valid
from experiments.harness.options import Names, Options

DataName = Literal["mnist", "digits"]
METHODS = tuple(name for name in PRESETS if name != "flap" and not name.endswith("-zero"))
"""All but that of recurrent networks, whose state starts at zero."""
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"


class Recipe(NamedTuple):
    """What is taken where an option is left open."""

    width: int
    epochs: int
    batch_size: int


RECIPES: dict[DataName, Recipe] = {"mnist": Recipe(512, 15, 256), "digits": Recipe(128, 60, 32)}
_BARE = tyro.conf.arg(prefix_name=False)


@dataclass(frozen=True)
class Data:
    """The images."""

    data: Annotated[Literal["auto", "mnist", "digits"], _BARE] = "auto"
    """MNIST, or the 1797 digits that scikit-learn bundles; auto is MNIST where --data-dir or ../shared/data/mnist is,
    and otherwise the bundled digits."""
    data_dir: Annotated[Path | None, _BARE] = None
    """Folder with the four IDX files of MNIST, gzipped or not; by default ../shared/data/mnist."""
    download: Annotated[bool, _BARE] = False
    """Fetch what is missing of MNIST into --data-dir; a file appears there once its checksum is right."""

    @property
    def name(self) -> DataName:
        """Decide which images are meant, without reading them; options that do not go together are refused."""
        if self.data == "digits":
            alone = self.data_dir is None and not self.download
            valid.require("--data", self.data, alone, "--data mnist where --data-dir or --download is given")
            return "digits"
        put = "--data-dir, the folder to put MNIST in, beside --download"
        valid.require("--download", self.download, not self.download or self.data_dir is not None, put)
        there = self.data_dir is not None or SHARED.is_dir()
        read = "the folder of its four files as --data-dir, or a new folder as --data-dir together with --download"
        valid.require("--data", self.data, there or self.data == "auto", read)
        return "mnist" if there else "digits"


@dataclass(frozen=True)
class NetworkOptions:
    """The network that is reduced, two hidden layers of ReLUs, and how it is trained on the training images."""

    checkpoint: Path | None = None
    """A trained PyTorch network, an npz file with weight and bias of fc1, fc2 and fc_out; otherwise one is trained."""
    width: Annotated[int | None, valid.COUNT] = None
    """Units per hidden layer; by default 512, as published, and 128 on the bundled digits."""
    epochs: Annotated[int | None, valid.COUNT] = None
    """Passes over the training images; by default 15, as published, and 60 over the bundled digits."""
    batch_size: Annotated[int | None, valid.COUNT] = None
    """Rows per step; by default 256, as published, and 32 on the bundled digits."""
    learning_rate: Annotated[float, valid.POSITIVE] = 1e-3
    """Adam's."""


KEEP = valid.Valid(lambda keep: 0 < keep <= 1 or keep == int(keep) > 1, "shares in (0, 1] or whole numbers of units")
"""Units to keep: up to 1 a share of the width, above it a count."""


def kept_units(keep: float, width: int) -> int:
    """Count the units that a share of the width, up to 1, or a count, above 1, keeps."""
    return max(1, round(keep * width)) if keep <= 1 else int(keep)


def budgets(flag: str, keeps: tuple[float, ...], width: int) -> list[int]:
    """Count the units of several options; one that is wider than the network, or there twice, is refused."""
    counts = [kept_units(keep, width) for keep in keeps]
    valid.require(flag, keeps, max(counts) <= width, f"at most {width} units, the width")
    valid.require(flag, tuple(counts), len(set(counts)) == len(counts), "budgets that are each there once")
    return counts


@dataclass(frozen=True)
class OfDigits(Options):
    """What the experiments on a digit classifier can be told."""

    data: Data = Data()
    network: NetworkOptions = NetworkOptions()

    @property
    def width(self) -> int:
        """Units per hidden layer."""
        return self.network.width or RECIPES[self.data.name].width


@dataclass(frozen=True)
class Reduction(OfDigits):
    """Reduce a trained network, and test whether the smaller one does the same under interventions.

    Writes a run folder with the reduced networks and their plans, and prints its tables. Two minutes per seed on two
    cores with MNIST, half a minute with the bundled digits.
    """

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list: of the network, unless a checkpoint is given, of the
    calibration images and of the trials. Seed 0 draws the authors' calibration images."""
    methods: Annotated[Names, valid.one_of(METHODS)] = METHODS
    """Methods to run; `abstraction.reduction.METHODS` says what each is."""
    keeps: Annotated[tuple[float, ...], KEEP] = (0.5, 0.25, 0.125, 0.0625, 0.03125)
    """Units to keep in the last hidden layer: shares of its width in (0, 1], or whole numbers above 1."""
    both_keeps: Annotated[tuple[float, ...], KEEP] = (0.25, 0.125)
    """Units to keep in either hidden layer, when both are reduced in one call."""
    both_methods: Annotated[tuple[str, ...], valid.one_of(METHODS)] = (
        "cmr",
        "cmr-closed",
        "obs-affine",
        "vbp",
        "random",
    )
    """Methods to reduce both hidden layers with."""
    probabilities: Annotated[tuple[float, ...], valid.SHARE] = (0.1, 0.2, 0.5)
    """Chance of each kept unit to be interchanged; 0, no intervention, is always reported as agreement."""
    trials: Annotated[int, valid.COUNT] = 20_000
    """Interchanges per method, budget and probability."""
    delta: Annotated[float, valid.INSIDE] = 0.05
    """One minus the coverage of intervals."""
    calibration: int = 2000
    """Training images that reductions may look at."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "methods": ("cmr", "cmr-closed", "cip-const", "cip-affine", "vbp", "random"), "keeps": (0.5, 0.25, 0.125),
            "both_keeps": (0.25,), "both_methods": ("cmr", "vbp"), "probabilities": (0.1, 0.5), "trials": 2000,
            "calibration": 1000, "data.data": "digits", "network.epochs": 30,
        },
        "paper": {"data.data": "mnist", "methods": ("cmr", "cip-affine", "cip-const", "vbp", "magnitude", "random")},
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        counts = budgets("--keeps", self.keeps, self.width) + budgets("--both-keeps", self.both_keeps, self.width)
        widest = max((count for count in counts if count < self.width), default=1)
        valid.require("--calibration", self.calibration, self.calibration > widest, f"at least {widest + 1}")
        path = self.network.checkpoint
        valid.require("--network.checkpoint", path, path is None or path.is_file(), "an npz file")
