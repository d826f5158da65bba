"""Options of the coarse-to-fine experiments: what each stage, and each search after it, tries."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from abstraction.localization import SearchConfig
from experiments.harness import valid
from experiments.harness.options import DasOptions, Localization, check_training


def budget(**changes: Any) -> SearchConfig:
    """Return the usual budget of a search with some changes."""
    usual = SearchConfig(batch_size=64, max_epochs=29, patience=29, cosine=True, sensitive_weight=0.5)
    return dataclasses.replace(usual, **changes)


@dataclass(frozen=True)
class StageOptions:
    """What is handed from one stage to the next."""

    resolutions: Annotated[tuple[int, ...], valid.COUNT] = (16, 8, 4, 2, 1)
    """Stage B: widths of coordinate groups, and lengths of principal component spans; those wider than a state are
    left out."""
    spans: Literal["prefix", "partition"] = "prefix"
    """Stage B: spans are the first components, or bands of them."""
    pca: Literal["centered", "uncentered", "whitened"] = "centered"
    """Stage B: how principal components are computed, from the states of fit bases."""
    shares: Annotated[tuple[float, ...], valid.SHARE] = (0.8, 0.9)
    """plot-native-das: supports that hold these shares of a row's evidence, beside the selected and the full one."""
    prefixes: Annotated[tuple[int, ...], valid.COUNT] = (1, 2, 4)
    """plot-pca-das: supports of the first components, beside the selected ones and all."""
    fitted_shares: Annotated[tuple[float, ...], valid.SHARE] = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
    """plot-*-fitted: supports that hold these shares of a row's evidence."""


@dataclass(frozen=True)
class MaskOptions:
    """Desiderata-based masking."""

    sparsities: Annotated[tuple[float, ...], valid.PRICE] = (0.0, 1e-5, 1e-4, 1e-3)
    """Price of a feature."""
    learning_rate: Annotated[float, valid.POSITIVE] = 1e-2
    """Adam's."""
    training: SearchConfig = budget(max_epochs=8, patience=8, cosine=False)
    """How masks are trained."""


@dataclass(frozen=True)
class BoundlessOptions:
    """Boundless DAS: the width is learned."""

    learning_rate: Annotated[float, valid.POSITIVE] = 1e-2
    """Adam's, of the rotation."""
    boundary_rate: Annotated[float, valid.POSITIVE] = 1e-2
    """The boundary's learning rate over the rotation's; .01 in the paper's revision, which hardly moves it."""
    penalty: Annotated[float, valid.PRICE] = 1.0
    """Price of the whole width."""
    training: SearchConfig = budget(max_epochs=12, patience=1, margin=1e-3, cosine=False)
    """How rotation and boundary are trained."""


@dataclass(frozen=True)
class WeightOptions:
    """Fitted weights: a strength per feature by gradient, instead of a grid of strengths."""

    learning_rates: Annotated[tuple[float, ...], valid.POSITIVE] = (0.02, 0.05, 0.1)
    """Adam's."""
    training: SearchConfig = budget(batch_size=128, max_epochs=12, patience=12)
    """How weights are trained."""


@dataclass(frozen=True)
class CoarseToFine(Localization):
    """What the coarse-to-fine experiments can be told."""

    stages: StageOptions = StageOptions()
    das: DasOptions = DasOptions()
    oblique: DasOptions = DasOptions()
    das_v1: DasOptions = DasOptions()
    masks: MaskOptions = MaskOptions()
    boundless: BoundlessOptions = BoundlessOptions()
    weights: WeightOptions = WeightOptions()

    def check_searches(self, width: int, pairs: int) -> None:
        """Refuse searches that do not fit a state of this width and so many fit pairs."""
        sizes = self.stages.resolutions
        valid.require(
            "--stages.resolutions", sizes, min(sizes) <= width, f"one of at most {width}, the width of a state"
        )
        for name in ("das", "oblique", "das_v1"):
            getattr(self, name).check(f"--{name.replace('_', '-')}", width, pairs)
        for name in ("masks", "boundless", "weights"):
            check_training(f"--{name}.training", getattr(self, name).training, pairs)
