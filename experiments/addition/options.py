"""Options of binary addition."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from abstraction.localization import SearchConfig
from abstraction.tasks import addition
from experiments.harness import valid
from experiments.harness.options import DasOptions, Names
from experiments.harness.stages import CoarseToFine, budget

METHODS = (
    "plot-stage-a", "plot-native", "plot-pca", "plot-native-fitted", "plot-pca-fitted", "plot-das", "plot-native-das",
    "plot-pca-das", "full-das", "plot-oblique-das", "oblique-das", "readwrite", "dbm", "dbm-pca", "boundless-das",
    "cosine", "brute-force", "row-argmin", "full-state", "plot-native-v1", "plot-pca-v1", "plot-native-v4",
    "plot-pca-v4", "plot-das-v1", "plot-native-das-v1", "plot-pca-das-v1", "full-das-v1",
)  # fmt: skip
PAPER_METHODS = (*(name for name in METHODS if name.endswith(("-v1", "-v4"))), "dbm", "dbm-pca", "full-state")
Honesty = Literal["plot-das", "plot-oblique-das", "plot-native-fitted"]
_SWAPS = (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)
BITS = valid.Valid(lambda bits: 2 <= bits <= 30, "2 to 30 bits: one has no carry")


@dataclass(frozen=True)
class AdderBackbone:
    """The network that is searched: a GRU that reads two numbers bit by bit and emits their sum."""

    bits: Annotated[int, BITS] = 4
    """Width of the numbers."""
    width: Annotated[int, valid.COUNT] = 16
    """State size; 8 and 16 in the paper."""
    checkpoints: Path | None = None
    """Folder with trained PyTorch adders, binary_addition_gru_h<width>_seed<seed>.npz; otherwise one is trained."""
    batch_size: Annotated[int, valid.COUNT] = 64
    """Rows per step."""
    epochs: Annotated[int, valid.COUNT] = 400
    """Most passes over all inputs (above 6 bits: over 65536 random ones); training stops once every sum is right."""
    learning_rate: Annotated[float, valid.POSITIVE] = 2e-2
    """Adam's."""


@dataclass(frozen=True)
class AdditionBanks:
    """Bases per role; each meets one source of every family (26 for 4 bits)."""

    fit: Annotated[int, valid.COUNT] = 128
    """Bases of the fit bank."""
    calibration: Annotated[int, valid.COUNT] = 64
    """Bases of the calibration bank."""
    test: Annotated[int, valid.COUNT] = 64
    """Bases of the test bank."""


@dataclass(frozen=True)
class Addition(CoarseToFine):
    """Binary addition: find the carries C1, C2, C3 in a GRU, coarse to fine (PLOT, second benchmark).

    Writes a run folder and prints its tables. About a minute per seed on two cores for all methods.
    """

    seeds: str = "0:5"
    """Seeds, as start:stop (stop excluded) or a comma list."""
    methods: Annotated[Names, valid.one_of(METHODS)] = METHODS
    """Methods to run; controls always run. Names ending in -v1 and -v4 are the paper's variants of that version."""
    honesty: tuple[Honesty, ...] = get_args(Honesty)
    """Searches to run again where there is nothing to find: with shuffled labels, at an earlier step, in an untrained
    network."""
    backbone: AdderBackbone = AdderBackbone()
    banks: AdditionBanks = AdditionBanks()
    das: DasOptions = DasOptions(
        (1, 2, 4, 8, 12), (2e-2,), restarts=4, strengths=_SWAPS, training=budget(max_epochs=8, patience=8)
    )
    oblique: DasOptions = DasOptions(
        (1, 2, 3, 4), (2e-2,), 2, parametrization="oblique", training=budget(max_epochs=15, patience=15)
    )
    das_v1: DasOptions = DasOptions(
        (1, 2, 4, 8, 16),
        (1e-2, 3e-3),
        strengths=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        training=SearchConfig(batch_size=64, max_epochs=12, min_epochs=12, patience=12, steps_per_epoch=4),
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {
            "seeds": "0", "control_draws": 5, "control_shuffles": 2, "honesty": ("plot-oblique-das",),
            "stages.resolutions": (16, 4, 1), "stages.fitted_shares": (0.8, 1.0), "das.ranks": (2, 4),
            "oblique.ranks": (2, 3), "das_v1.ranks": (2, 4), "masks.sparsities": (0.0, 1e-3),
            "weights.learning_rates": (0.05,),
            **{f"{search}.{name}": value for search in ("das", "oblique", "das_v1") for name, value in
               {"restarts": 1, "strengths": (1.0,), "training.max_epochs": 6}.items()},
        },
        "paper": {"methods": PAPER_METHODS, "honesty": ()},
    }  # fmt: skip

    def check(self) -> None:
        """Refuse options that cannot work."""
        super().check()
        families = len(addition.source_families(self.backbone.bits))
        self.check_searches(self.backbone.width, self.banks.fit * families)
