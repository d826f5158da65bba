"""Options: every field is a flag, its docstring the flag's help, and `Valid` beside its type says what it may be.

A preset names the fields it changes; flags are read on top of it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import tyro

from abstraction.localization import SearchConfig
from abstraction.localization.das import Parametrization
from experiments.harness import valid
from experiments.harness.meshes import parsed_mesh

T = TypeVar("T")
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all)")]
"""Names of methods, all of which run unless some are given."""


@dataclass(frozen=True)
class Options:
    """What every experiment can be told."""

    seeds: str = "0"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    out: Path | None = None
    """Run folder; by default runs/NAME-<time>."""
    resume: bool = False
    """Continue the run in --out, skipping complete seeds and what is complete of others."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Tell TensorBoard or Weights & Biases as well (extra `log`)."""
    mesh: str | None = None
    """Devices that share the run, such as pairs=4,candidates=2: some split pairs, some what is tried on them (sites,
    handles, searches), and with model=2 some split a decoder's heads and units. All numbers of pairs are multiples of
    the first. XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight devices of a CPU."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """What a preset changes, by the dotted names of fields."""

    @classmethod
    def preset(cls, name: str) -> Self:
        """Return the options of a preset."""
        return changed(cls(), cls.PRESETS[name])

    def check(self) -> None:
        """Refuse options that cannot work, before anything is trained.

        Raises:
          ValueError: names the flag, what was got and what is valid.
        """
        valid.parse_seeds(self.seeds)
        valid.check_values(self)
        parsed_mesh(self.mesh)


@dataclass(frozen=True)
class Localization(Options):
    """What experiments that find causal variables can be told."""

    control_draws: Annotated[int, valid.COUNT] = 20
    """Random subspaces per handle."""
    control_shuffles: Annotated[int, valid.COUNT] = 5
    """Shuffles of the sources per handle."""


@dataclass(frozen=True)
class DasOptions:
    """A distributed alignment search over every rank."""

    ranks: Annotated[tuple[int, ...], valid.COUNT] = tuple(range(1, 17))
    """Subspace sizes."""
    learning_rates: Annotated[tuple[float, ...], valid.POSITIVE] = (1e-2,)
    """Adam's."""
    restarts: Annotated[int, valid.COUNT] = 1
    """Random starts per place, rank and learning rate."""
    strengths: Annotated[tuple[float, ...], valid.POSITIVE] = (1.0,)
    """How far a trained subspace may move, chosen on calibration pairs; 1 is a swap."""
    parametrization: Parametrization = "cayley"
    """How the map stays orthogonal; oblique lets it be any invertible one."""
    training: SearchConfig = SearchConfig(max_epochs=20, patience=20, cosine=True, sensitive_weight=0.7)
    """How rotations are trained."""

    def check(self, flag: str, width: int, pairs: int) -> None:
        """Refuse ranks above the width, and batches of more pairs than there are."""
        valid.most_of(f"{flag}.ranks", self.ranks, width)
        check_training(f"{flag}.training", self.training, pairs)


def check_training(flag: str, training: SearchConfig, pairs: int) -> None:
    """Refuse a budget that does not fit the number of fit pairs."""
    valid.most_of(f"{flag}.batch-size", training.batch_size, pairs, "the fit pairs")
    if training.steps_per_epoch is not None:
        valid.most_of(f"{flag}.steps-per-epoch", training.steps_per_epoch, pairs // training.batch_size)


def changed(options: T, changes: Mapping[str, Any]) -> T:
    """Replace fields by their dotted names: `{"das.training.max_epochs": 5}`."""
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        inner = changed(getattr(options, name), {rest: value}) if rest else value
        options = dataclasses.replace(options, **{name: inner})  # pyright: ignore[reportArgumentType, reportCallIssue]
    return options
