"""Options of the mechanism reduction experiments. Every field is a flag; its docstring is the flag's help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

DataName = Literal["mnist", "digits"]


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
class Network:
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
